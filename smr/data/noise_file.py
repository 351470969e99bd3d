"""Lists of labels in the place of a data set's own, as `--noise_file` takes them (method 1).

JSON, a label for each training image, null for one that is not trained on.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from smr.data.cifar_files import checked_labels
from smr.data.image_folder import Listing
from smr.data.loader import ImageData
from smr.errors import InputError

# In an array of labels: the image is not trained on.
DROPPED = -1


def read_label_list(path: str | Path, count: int, classes: int) -> np.ndarray:
    """int64 [count] from a JSON list, as DivideMix and SMR write; DROPPED where it has null.

    Raises InputError.
    """
    try:
        labels = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: expected a plain list of labels") from error
    nulls = []
    if isinstance(labels, list):
        nulls = [i for i, label in enumerate(labels) if label is None]
        labels = [0 if label is None else label for label in labels]
    checked = checked_labels(labels, count, classes, str(path))
    checked[nulls] = DROPPED
    if len(nulls) == count:
        raise InputError(f"{path}: drops every image")
    return checked


def label_list(labels: list[int], dropped: list[int]) -> list[int | None]:
    """The labels of the images that are trained on, with null in the place of each dropped one."""
    whole: list[int | None] = list(labels)
    for position in sorted(dropped):
        whole.insert(position, None)
    return whole


def dropped_facts(labels: np.ndarray) -> dict:
    """What config.json tells of the images that these labels drop: their positions."""
    dropped = np.flatnonzero(labels == DROPPED).tolist()
    return {"dropped_images": dropped} if dropped else {}


def dropped_notes(labels: np.ndarray) -> list[str]:
    """A line for the log where these labels drop images."""
    dropped = np.count_nonzero(labels == DROPPED)
    return [f"--noise_file drops {dropped} training images"] if dropped else []


def without_dropped(data: ImageData) -> ImageData:
    """The data without the training images that its labels drop."""
    labels = data.train_labels
    kept = labels != DROPPED
    if kept.all():
        return data
    return replace(
        data,
        train_images=data.train_images[kept],
        train_labels=labels[kept],
        clean_labels=None if data.clean_labels is None else data.clean_labels[kept],
        files=data.files and [data.files[i] for i in np.flatnonzero(kept)],
        notes=data.notes + dropped_notes(labels),
    )


def relabeled(
    listing: Listing, path: str | Path, classes: int, notes: list[str]
) -> tuple[Listing, dict]:
    """The image files with the labels of a list, without those that it drops; `dropped_facts`.

    Without a list, "", as they are. Adds to `notes`. Raises InputError.
    """
    if not path:
        return listing, {}
    labels = read_label_list(path, len(listing.files), classes)
    notes += dropped_notes(labels)
    return replace(listing, labels=labels).only(labels != DROPPED), dropped_facts(labels)

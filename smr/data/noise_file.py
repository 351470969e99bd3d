"""Labels from a file instead of the dataset's own, as `--noise_file` takes them.

JSON, NumPy, torch or CSV: a label for each training image; null in JSON excludes the image.
"""

import csv
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from smr.data.cifar_files import Refused, checked_labels, load_archive, read_npy
from smr.data.image_folder import Listing, first_ten, read_text
from smr.data.memory_dataset import ImageData
from smr.errors import InputError

# In an array of labels: the image is not trained on.
DROPPED = -1
LABEL_COLUMNS = ("label", "labels", "noisy_label", "given", "target", "class", "y")
INDEX_COLUMNS = ("index", "id", "idx")
EXPECTED = "expected a list of whole numbers: .json, .npy, .npz with 'label', .pt or .csv"


def read_noise_file(path: str | Path):
    """The content of a file of labels, a list or a dict of columns. Raises InputError."""
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if suffix in (".pt", ".pth"):
            return load_archive(path)
        if suffix == ".npy":
            return read_npy(path)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as content:
                columns = dict(content)
                return columns if len(columns) > 1 else [*columns.values(), []][0]
        text = read_text(path, EXPECTED)
        return read_table(text) if suffix in (".csv", ".tsv", ".txt") else json.loads(text)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except Refused as error:
        raise InputError(f"{path}: no file of labels: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {EXPECTED}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {EXPECTED}") from error


def read_table(text: str) -> list | dict:
    """The columns of a CSV file as numbers; a list if it has one column without a name."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.reader(text.splitlines(), delimiter=delimiter)
    rows = [[number(cell) for cell in row] for row in rows if row]
    if all(len(row) == 1 and isinstance(row[0], int) for row in rows):
        return [row[0] for row in rows]
    names, *rows = rows
    columns = list(zip(*rows, strict=True))
    return {str(n).strip().lower(): list(c) for n, c in zip(names, columns, strict=False)}


def number(cell: str) -> int | str:
    """3 of '3' or '3.0'; anything else as it is."""
    return int(float(cell)) if re.fullmatch(r"\s*[0-9]{1,9}(\.0*)?\s*", cell) else cell


def as_list(values):
    """A tensor or an array as a list, whole floats as ints; anything else as it is."""
    if not hasattr(values, "tolist"):
        return values
    array = np.asarray(values).squeeze()
    is_whole = array.dtype.kind == "f" and (array == array.round()).all()
    return (array.astype(np.int64) if is_whole else array).tolist()


def read_label_list(
    path: str | Path, count: int, classes: int, whole: int | None = None
) -> np.ndarray:
    """int64 [count] from a file of labels; DROPPED for null.

    Args: whole, the number of training images of which these are the first `count`: a list of all
    of them is accepted too. Raises InputError.
    """
    labels, index = read_noise_file(path), None
    if isinstance(labels, dict):
        columns = labels
        labels, index = (
            next((columns[name] for name in names if name in columns), None)
            for names in (LABEL_COLUMNS, INDEX_COLUMNS)
        )
        if labels is None:
            hint = "; the human labels of CIFAR-N: name them with --noise_mode, such as worst"
            raise InputError(
                f"{path}: no column of labels among {first_ten([str(name) for name in columns])}; "
                f"{EXPECTED}{hint if 'clean_label' in columns else ''}"
            )
    labels, index = as_list(labels), as_list(index)
    if not isinstance(labels, list):
        raise InputError(f"{path}: {EXPECTED}")
    if isinstance(index, list):
        if sorted(index, key=str) != sorted(range(len(labels)), key=str):
            raise InputError(f"{path}: its index is not 0 to {len(labels) - 1}, each once")
        labels = [labels[row] for row in np.argsort(index)]
    if len(labels) == whole:
        labels = labels[:count]
    nulls = [position for position, label in enumerate(labels) if label is None]
    labels = checked_labels(
        [0 if label is None else label for label in labels], count, classes, str(path)
    )
    labels[nulls] = DROPPED
    if len(nulls) == count:
        raise InputError(f"{path}: drops every image")
    return labels


def label_list(labels: list[int], dropped: list[int]) -> list[int | None]:
    """The labels of the images that are trained on, with null for each dropped one."""
    whole: list[int | None] = list(labels)
    for position in sorted(dropped):
        whole.insert(position, None)
    return whole


def agreement_notes(labels: np.ndarray, clean: np.ndarray, classes: int) -> list[str]:
    """A note if labels of a file agree with the true ones no better than random labels would."""
    agreement = float((labels == clean)[labels != DROPPED].mean())
    chance = 1 / classes
    if agreement > chance + 3 * (chance * (1 - chance) / len(labels)) ** 0.5:
        return []
    return [
        f"the labels of --noise_file agree with the true labels on {100 * agreement:.1f} % of the "
        "images, no more than random labels do: is it of this dataset, in the same order?"
    ]


def dropped_by(labels: np.ndarray) -> tuple[list[int], list[str]]:
    """The positions that these labels exclude, and a line for the log if there are any."""
    dropped = np.flatnonzero(labels == DROPPED).tolist()
    return dropped, [f"--noise_file drops {len(dropped)} training images"] if dropped else []


def with_labels(data: ImageData, labels: np.ndarray) -> ImageData:
    """The data with other training labels, without the images that these drop."""
    chosen, (dropped, notes) = labels != DROPPED, dropped_by(labels)
    data = replace(data, train_labels=labels, dropped_images=dropped, notes=data.notes + notes)
    if not dropped:
        return data
    return replace(
        data,
        train_images=data.train_images[chosen],
        train_labels=labels[chosen],
        clean_labels=None if data.clean_labels is None else data.clean_labels[chosen],
        files=data.files and [data.files[i] for i in np.flatnonzero(chosen)],
    )


def relabeled(listing: Listing, path: str | Path, classes: int) -> tuple[Listing, list[int]]:
    """The files with the labels of a file, "" for their own, and the positions that it drops.

    Raises InputError.
    """
    if not path:
        return listing, []
    labels = read_label_list(path, len(listing.files), classes)
    dropped, notes = dropped_by(labels)
    listing = replace(listing, labels=labels, notes=listing.notes + notes)
    return listing.only(labels != DROPPED), dropped

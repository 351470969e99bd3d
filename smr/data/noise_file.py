"""Labels from a file instead of the dataset's own, as `--noise_file` takes them.

JSON, NumPy, torch or CSV: a label for each training image; null in JSON excludes the image.
"""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from smr.data.cifar_files import checked_labels, load_archive
from smr.data.image_folder import Listing, first_ten, read_text
from smr.data.label_table import read_table
from smr.data.memory_dataset import ImageData
from smr.errors import InputError

# In an array of labels: the image is not trained on.
DROPPED = -1
# arr_0: of np.savez without a name.
LABEL_COLUMNS = ("label", "labels", "noisy_label", "given", "target", "class", "y", "arr_0")
INDEX_COLUMNS = ("index", "id", "idx")
EXPECTED = (
    "expected a list of whole numbers (.json, .npy, .npz with 'label', .pt or .csv), or "
    "CIFAR-10_human.pt or CIFAR-100_human.pt of CIFAR-N with its --noise_mode, such as worst"
)


def read_noise_file(path: Path):
    """The content of a file of labels, a list or a dict of columns. Raises InputError."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".pt", ".pth"):
            return load_archive(path)
        if suffix in (".npy", ".npz"):
            content = np.load(path, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            columns = dict(content)
            return columns if len(columns) != 1 else next(iter(columns.values()))
        if suffix in (".csv", ".tsv", ".txt"):
            return read_csv(path)
        return json.loads(read_text(path, EXPECTED))
    except InputError:
        raise
    except (OSError, ValueError, EOFError, RecursionError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: no file of labels: {reason}; {EXPECTED}") from error


def read_csv(path: Path) -> list | dict[str, list]:
    """The columns of a table as numbers; a list if it has one column without a name."""
    names, rows = read_table(path)
    columns = {name.strip().lower(): [number(row[name]) for _, row in rows] for name in names}
    if len(names) == 1 and isinstance(number(names[0]), int):
        return [number(names[0]), *columns[names[0].strip()]]
    return columns


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
    path: str | Path,
    count: int,
    classes: int,
    whole: int | None = None,
    column: str = "",
    clean: np.ndarray | None = None,
) -> np.ndarray:
    """int64 [count] from a file of labels; DROPPED for null. Raises InputError.

    Args:
        whole: the number of training images of which these are the first `count`: a list of all
            of them is accepted too.
        column: of the labels, in a file of several; "" for the usual names.
        clean: int64 [count], the true labels, which a column clean_label must have.
    """
    content = read_noise_file(Path(path))
    names = [column] if column else LABEL_COLUMNS
    columns = content if isinstance(content, dict) else {names[0]: content}
    labels, index, true = (
        next((as_list(columns[name]) for name in usual if name in columns), None)
        for usual in (names, INDEX_COLUMNS, ["clean_label"])
    )
    if not isinstance(labels, list):
        present = f"; found {first_ten([*map(str, columns)])}" if columns is content else ""
        raise InputError(f"{path}: no list of labels{present}; {EXPECTED}")
    if isinstance(index, list):
        if sorted(index, key=str) != sorted(range(len(labels)), key=str):
            raise InputError(f"{path}: its index is not 0 to {len(labels) - 1}, each once")
        labels = [labels[row] for row in np.argsort(index)]
    if isinstance(true, list) and clean is not None and true[:count] != clean.tolist():
        raise InputError(
            f"{path}: its clean labels are not those of the {count} images: it belongs to another "
            f"dataset, or is in TensorFlow's order, as the files named _ordered are; {EXPECTED}"
        )
    if len(labels) == whole or true:
        labels = labels[:count]
    is_dropped = [label is None for label in labels]
    labels = [0 if label is None else label for label in labels]
    labels = checked_labels(labels, count, classes, str(path))
    if all(is_dropped):
        raise InputError(f"{path}: drops every image")
    labels[is_dropped] = DROPPED
    return labels


def label_list(labels: list[int], dropped: list[int]) -> list[int | None]:
    """The labels of the images that are trained on, with null for each dropped one."""
    whole: list[int | None] = list(labels)
    for position in sorted(dropped):
        whole.insert(position, None)
    return whole


def dropped_by(labels: np.ndarray) -> tuple[list[int], list[str]]:
    """The positions that these labels exclude, and a line for the log if there are any."""
    dropped = np.flatnonzero(labels == DROPPED).tolist()
    return dropped, [f"--noise_file drops {len(dropped)} training images"] if dropped else []


def with_labels(data: ImageData, labels: np.ndarray) -> ImageData:
    """The data with other training labels, without the images that these drop."""
    chosen, (dropped, notes) = labels != DROPPED, dropped_by(labels)
    return replace(
        data,
        train_images=data.train_images[chosen],
        train_labels=labels[chosen],
        clean_labels=None if data.clean_labels is None else data.clean_labels[chosen],
        files=data.files and [data.files[i] for i in np.flatnonzero(chosen)],
        dropped_images=dropped,
        notes=data.notes + notes,
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

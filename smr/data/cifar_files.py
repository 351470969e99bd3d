"""CIFAR's official files and scikit-learn's digits, read into memory (method 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from smr.data import pickles
from smr.data.image_folder import OWN_PHOTOS, has_class_folders
from smr.data.loader import ImageData
from smr.errors import InputError


@dataclass(frozen=True)
class Archive:
    """The official files of a data set, and what their labels and class names are called."""

    num_class: int
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    label_key: str
    names_file: str
    names_key: str


ARCHIVES = {
    "cifar10": Archive(
        *(10, "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
        *("labels", "batches.meta", "label_names"),
    ),
    "cifar100": Archive(
        *(100, "cifar-100-python", ("train",), "test"),
        *("fine_labels", "meta", "fine_label_names"),
    ),
}


def read_pickle(path: Path) -> dict:
    """The dict of a CIFAR file, keys as str, strings as bytes, arrays as NumPy's; runs nothing.

    Raises InputError.
    """
    repair = "restore it from the official archive (--download fetches it)"
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; {repair}")
    try:
        content = pickles.unpickle(path.read_bytes())
        return {as_text(key): value for key, value in content.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except pickles.Refused as error:
        raise InputError(f"{path}: not a CIFAR file: {error}; {repair}") from error
    except (AttributeError, UnicodeDecodeError) as error:  # no dict, or keys that are no text
        raise InputError(f"{path}: not a CIFAR file; {repair}") from error


def as_text(string: bytes | str) -> str:
    """A string of Python 2, which `pickles` leaves as bytes, or one of Python 3."""
    return string if isinstance(string, str) else string.decode()


def find_data(root: str | Path, dataset: str) -> Path:
    """The folder that holds the data set: `root` or its official sub-folder. Raises InputError."""
    archive = ARCHIVES[dataset]
    for folder in (Path(root), Path(root) / archive.folder):
        if (folder / archive.train_files[0]).is_file():
            return folder
    own_photos = f"; {OWN_PHOTOS}" if has_class_folders(Path(root)) else ""
    raise InputError(
        f"{dataset} not found: looked for {archive.train_files[0]} in {root} and in "
        f"{Path(root) / archive.folder}; get the Python version from the CIFAR page of the "
        "University of Toronto, or let --download fetch it; --dataset digits needs no data"
        f"{own_photos}"
    )


def download(root: str | Path, dataset: str) -> None:
    """Fetch and unpack the official archive through torchvision, its checksum verified.

    Does nothing for digits, or where the data set is there. Raises InputError.
    """
    from torchvision import datasets  # takes a second to import, and only a download needs it

    if dataset not in ARCHIVES:
        return
    root = Path(root)
    try:
        find_data(root, dataset)
        return
    except InputError:
        parent = root.parent if root.name == ARCHIVES[dataset].folder else root
    source = datasets.CIFAR10 if dataset == "cifar10" else datasets.CIFAR100
    try:
        source(str(parent), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--download to {parent} failed ({error}); fetch the Python version by hand"
        ) from error


def _read_split(
    folder: Path, files: Sequence[str], part: str, archive: Archive
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for number, name in enumerate(files, start=1):
        path, content = folder / name, read_pickle(folder / name)
        expected = f"{part} batch {number} of {len(files)}"
        if content.get("batch_label", expected) not in (expected, expected.encode()):
            raise InputError(f"{path}: another file stands under this name: it is no '{expected}'")
        rows = content.get("data")
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (3072,):
            raise InputError(f"{path}: 'data' is not rows of 3072 bytes (uint8)")
        if not len(rows):
            raise InputError(f"{path}: holds no image")
        what = f"{path}: {archive.label_key}"
        labels.append(
            checked_labels(content.get(archive.label_key), len(rows), archive.num_class, what)
        )
        images.append(rows)
    rows = np.concatenate(images)
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.concatenate(labels)


def checked_labels(labels, count: int, classes: int, what: str) -> np.ndarray:
    """int64 [count] of a list of ints in 0..classes-1; `what` names it in the InputError."""
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise InputError(f"{what}: expected a plain list of whole numbers")
    if len(labels) != count:
        raise InputError(f"{what}: {len(labels)} labels for {count} images")
    if labels and not 0 <= min(labels) <= max(labels) < classes:
        raise InputError(
            f"{what}: labels from {min(labels)} to {max(labels)}, expected 0 to {classes - 1}"
        )
    return np.asarray(labels, dtype=np.int64)


def read_cifar(root: str | Path, dataset: str) -> ImageData:
    """CIFAR-10 or CIFAR-100 from the official Python layout, as many images as the files hold."""
    archive = ARCHIVES[dataset]
    folder = find_data(root, dataset)
    train_images, train_labels = _read_split(folder, archive.train_files, "training", archive)
    test_images, test_labels = _read_split(folder, [archive.test_file], "testing", archive)
    names = read_names(folder / archive.names_file, archive)
    return ImageData(train_images, train_labels, test_images, test_labels, names)


def read_names(path: Path, archive: Archive) -> list[str]:
    """The classes' names from the data set's own file; without one, their numbers."""
    if not path.is_file():
        return [str(label) for label in range(archive.num_class)]
    try:
        names = [as_text(name) for name in read_pickle(path)[archive.names_key]]
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
        names = []
    if len(names) != archive.num_class:
        raise InputError(
            f"{path}: '{archive.names_key}' is not {archive.num_class} names; delete it"
        )
    return names


def read_digits() -> ImageData:
    """The 1,797 scans that scikit-learn ships: 8x8, three equal channels, a fixed split."""
    digits = load_digits()
    gray = (digits.images * (255 / 16)).round().astype(np.uint8)
    images = np.repeat(gray[..., None], 3, axis=3)
    train, test = train_test_split(
        np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0
    )
    labels = digits.target.astype(np.int64)
    names = [str(label) for label in range(10)]
    return ImageData(images[train], labels[train], images[test], labels[test], names)

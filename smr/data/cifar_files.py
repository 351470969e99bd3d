"""CIFAR's official files and scikit-learn's digits; pickles and torch files, read without running
anything that is in them."""

import _codecs
import pickle
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from smr.data.image_folder import OWN_PHOTOS, subfolders
from smr.data.memory_dataset import ImageData
from smr.errors import InputError

# Of bool, integers and floats.
NUMBER_TYPES = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"]


class Refused(ValueError):
    """What is wrong with a file, in words that follow its name."""


class NumberArray(np.ndarray):
    """Replaces np.ndarray, whose arguments could place an array of objects at any address."""

    def __new__(cls, *_):
        return super().__new__(cls, 0, np.uint8)


def number_type(name: str, *_) -> np.dtype:
    """Replaces np.dtype: one of NumPy's own types of numbers, which no file can change."""
    dtype = np.dtype(np.dtype(name).type)
    if type(dtype) not in NUMBER_TYPES:
        raise Refused("it holds an array that is not of numbers")
    return dtype


def from_buffer(raw: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """How pickle's protocol 5 makes an array."""
    return np.frombuffer(bytes(raw), dtype).reshape(shape, order=order)


ALLOWED = {"numpy.ndarray": NumberArray, "numpy.dtype": number_type}
ALLOWED["_codecs.encode"] = _codecs.encode
for core in ("core", "_core"):  # NumPy has moved its functions: a file may use either name
    ALLOWED[f"numpy.{core}.multiarray._reconstruct"] = NumberArray
    ALLOWED[f"numpy.{core}.numeric._frombuffer"] = from_buffer


class PlainUnpickler(pickle.Unpickler):
    """An unpickler of plain data and NumPy's arrays: any other name is refused, not imported."""

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" not in ALLOWED:
            raise Refused(f"it asks for '{module}.{name}', which no such file needs")
        return ALLOWED[f"{module}.{name}"]


def load_archive(path: str | Path):
    """What torch.load(weights_only=True) returns, on the CPU, with NumPy's arrays allowed.

    Raises OSError, and Refused with what is wrong.
    """
    allowed = [(function, name) for name, function in ALLOWED.items()]
    try:
        if zipfile.is_zipfile(path) and (damaged := zipfile.ZipFile(path).testzip()):
            # torch itself compares no checksum.
            raise Refused(f"it is damaged: {damaged} has another checksum")
        with torch.serialization.safe_globals(allowed + NUMBER_TYPES):
            return torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, Refused):
        raise
    except Exception as error:  # zipfile and torch raise many types
        what = "damaged, not of torch.save's form, or holds more than numbers and text"
        raise Refused(f"it is {what}, of which none was run") from error


class Archive(NamedTuple):
    """The official files of a dataset; `prefix` is that of its labels' and classes' keys."""

    num_class: int
    folder: str
    train_files: list[str]
    test_file: str
    names_file: str
    prefix: str


BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
ARCHIVES = {
    "cifar10": Archive(10, "cifar-10-batches-py", BATCHES, "test_batch", "batches.meta", ""),
    "cifar100": Archive(100, "cifar-100-python", ["train"], "test", "meta", "fine_"),
}


def read_pickle(path: Path) -> dict:
    """The dict of a CIFAR file, its keys as str, arrays as NumPy's; runs nothing.

    Raises InputError.
    """
    try:
        with open(path, "rb") as file:
            content = PlainUnpickler(file, encoding="latin1").load()
        return {as_text(key): value for key, value in content.items()}
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except Refused as error:
        reason = f"not a CIFAR file: {error}"
    except Exception:  # pickle and NumPy raise many types
        reason = "not a CIFAR file: it is damaged, cut off or no dict"
    raise InputError(f"{path}: {reason}; restore it from the official archive (--download)")


def as_text(string: bytes | str) -> str:
    """A string; bytes are one of Python 2 that Python 3 wrote again."""
    return string.decode("latin1") if isinstance(string, bytes) else string


def find_data(root: str | Path, dataset: str) -> Path:
    """The folder that holds the dataset: `root` or its official sub-folder. Raises InputError."""
    first, root = ARCHIVES[dataset].train_files[0], Path(root)
    folders = root, root / ARCHIVES[dataset].folder
    for folder in folders:
        if (folder / first).is_file():
            return folder
    own_photos = f"; {OWN_PHOTOS}" if subfolders(root) else ""
    raise InputError(
        f"{dataset} not found: looked for {first} in {folders[0]} and in {folders[1]}; get the "
        "Python version from the CIFAR page of the University of Toronto, or let --download fetch "
        f"it; --dataset digits needs no data{own_photos}"
    )


def download(root: str | Path, dataset: str) -> None:
    """Fetch and unpack the official archive through torchvision, its checksum verified.

    Does nothing for digits, or where the dataset is there. Raises InputError.
    """
    from torchvision import datasets  # takes a second to import, and only a download needs it

    if dataset not in ARCHIVES:
        return
    with suppress(InputError):
        find_data(root, dataset)
        return
    root = Path(root)
    parent = root.parent if root.name == ARCHIVES[dataset].folder else root
    try:
        getattr(datasets, dataset.upper())(parent, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--download to {parent} failed ({error}); fetch the Python version by hand"
        ) from error


def read_part(
    folder: Path, files: Sequence[str], archive: Archive
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 32, 32, 3] and labels int64 [n] of these files. Raises InputError."""
    images, labels, key = [], [], f"{archive.prefix}labels"
    for path in (folder / name for name in files):
        content = read_pickle(path)
        rows, given = content.get("data"), content.get(key)
        if getattr(rows, "dtype", None) != np.uint8 or rows.shape[1:] != (3072,) or not len(rows):
            raise InputError(f"{path}: 'data' is not rows of 3072 bytes (uint8)")
        labels.append(checked_labels(given, len(rows), archive.num_class, f"{path}: {key}"))
        images.append(rows.reshape(-1, 3, 32, 32))
    return np.concatenate(images).transpose(0, 2, 3, 1), np.concatenate(labels)


def checked_labels(labels, count: int, classes: int, what: str) -> np.ndarray:
    """int64 [count] of a list of ints in 0..classes-1; `what` names it in the InputError."""
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise InputError(f"{what}: expected a plain list of whole numbers")
    if len(labels) != count:
        raise InputError(f"{what}: {len(labels)} labels for {count} images")
    if labels and not 0 <= min(labels) <= max(labels) < classes:
        span = f"labels from {min(labels)} to {max(labels)}"
        raise InputError(f"{what}: {span}, expected 0 to {classes - 1}")
    return np.asarray(labels, dtype=np.int64)


def read_cifar(root: str | Path, dataset: str) -> ImageData:
    """CIFAR-10 or CIFAR-100 from the official Python layout, as many images as the files hold.

    Without the file of the classes' names, their numbers. Raises InputError.
    """
    archive, folder = ARCHIVES[dataset], find_data(root, dataset)
    train = read_part(folder, archive.train_files, archive)
    test = read_part(folder, [archive.test_file], archive)
    names = [str(label) for label in range(archive.num_class)]
    path = folder / archive.names_file
    if path.is_file():
        names = read_pickle(path).get(f"{archive.prefix}label_names")
        names = [as_text(name) for name in names] if isinstance(names, list) else []
        if [*map(type, names)] != [str] * archive.num_class:
            raise InputError(f"{path}: holds no {archive.num_class} names of classes; delete it")
    return ImageData(*train, *test, names)


def read_digits() -> ImageData:
    """The 1,797 scans that scikit-learn ships: 8x8, three equal channels, a fixed split."""
    digits = load_digits()
    gray = (digits.images * (255 / 16)).round().astype(np.uint8)
    images, labels = np.repeat(gray[..., None], 3, axis=3), digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(images)), test_size=360, stratify=labels, random_state=0
    )
    names = [str(label) for label in range(10)]
    return ImageData(images[train], labels[train], images[test], labels[test], names)

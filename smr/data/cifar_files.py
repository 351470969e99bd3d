"""CIFAR's official files and scikit-learn's digits; pickles and torch files, read without running
anything that is in them."""

import _codecs
import io
import pickle
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from smr.data.image_folder import OWN_PHOTOS, subfolders
from smr.data.memory_dataset import ImageData
from smr.errors import InputError


class Refused(ValueError):
    """What is wrong with a file, in words that follow its name."""


class PlainType:
    """Replaces np.dtype: numbers, and objects that are lists, in the file's byte order."""

    def __init__(self, name: bytes | str, *_):
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biufO" or self.dtype.names:
            raise Refused("it holds an array that is not of numbers")

    def __setstate__(self, state: tuple):
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(np.ndarray):
    """Replaces np.ndarray, whose arguments could place an array of objects at any address."""

    def __new__(cls, *_):
        return super().__new__(cls, 0, np.uint8)

    def __setstate__(self, state: tuple):
        version, shape, kind, fortran, raw = state
        super().__setstate__((version, shape, kind.dtype, fortran, raw))


def from_buffer(raw: bytes, kind: PlainType, shape: tuple[int, ...], order: str) -> np.ndarray:
    """How pickle's protocol 5 makes an array."""
    return np.frombuffer(raw, kind.dtype).reshape(shape, order=order)


ALLOWED = {"numpy.ndarray": PlainArray, "numpy.dtype": PlainType, "_codecs.encode": _codecs.encode}
for core in ("core", "_core"):  # NumPy has moved its functions: a file may use either name
    ALLOWED[f"numpy.{core}.multiarray._reconstruct"] = PlainArray
    ALLOWED[f"numpy.{core}.numeric._frombuffer"] = from_buffer


class PlainUnpickler(pickle.Unpickler):
    """An unpickler of plain data and NumPy's arrays: any other name is refused, not imported."""

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" not in ALLOWED:
            raise Refused(f"it asks for '{module}.{name}', which no such file needs")
        return ALLOWED[f"{module}.{name}"]


def unpickle(raw: bytes):
    """The object of a pickle; strings of Python 2 stay bytes. Raises Refused."""
    try:
        return PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except Refused:
        raise
    except Exception as error:  # pickle and NumPy raise many types
        raise Refused("it is damaged or cut off") from error


def read_npy(path: Path):
    """The array of a .npy file, or its dict, as in CIFAR-N. Raises OSError, Refused, ValueError."""
    with open(path, "rb") as file:
        # The header of every version is read by one of two functions.
        first = np.lib.format.read_magic(file) == (1, 0)
        header = "read_array_header_1_0" if first else "read_array_header_2_0"
        shape, _, dtype = getattr(np.lib.format, header)(file)
        if not dtype.hasobject:
            return np.load(path, allow_pickle=False)
        content = unpickle(file.read())
    if shape != () or not isinstance(content, np.ndarray) or not isinstance(content[()], dict):
        raise Refused("it holds an array that is not of numbers")
    return {as_text(name): column for name, column in content[()].items()}


def load_archive(path: str | Path):
    """What torch.load(weights_only=True) returns, on the CPU, with NumPy's arrays allowed.

    Raises OSError, and Refused with what is wrong.
    """
    if not Path(path).is_file():
        raise Refused("there is no such file")
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch itself compares no checksum
            if damaged:
                raise Refused(f"it is damaged: {damaged} has another checksum")
        allowed = [(function, name) for name, function in ALLOWED.items()]
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, Refused):
        raise
    except Exception as error:  # zipfile and torch raise many types on a damaged file
        is_pickle = isinstance(error, pickle.UnpicklingError)
        if is_pickle and (is_zip or "global" in str(error).lower()):
            raise Refused("it holds more than numbers and text, and none of it was run") from error
        raise Refused("it is damaged, cut off, or not of torch.save's form") from error


@dataclass(frozen=True)
class Archive:
    """The official files of a dataset; `prefix` is that of its labels' and classes' keys."""

    num_class: int
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    prefix: str


ARCHIVES = {
    "cifar10": Archive(
        num_class=10,
        folder="cifar-10-batches-py",
        train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test_file="test_batch",
        names_file="batches.meta",
        prefix="",
    ),
    "cifar100": Archive(
        num_class=100,
        folder="cifar-100-python",
        train_files=("train",),
        test_file="test",
        names_file="meta",
        prefix="fine_",
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
        content = unpickle(path.read_bytes())
        return {as_text(key): value for key, value in content.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (Refused, AttributeError, UnicodeDecodeError) as error:
        # The latter: no dict, or keys that are no text.
        reason = f": {error}" if isinstance(error, Refused) else ""
        raise InputError(f"{path}: not a CIFAR file{reason}; {repair}") from error


def as_text(string: bytes | str) -> str:
    """A string of Python 2, which `unpickle` leaves as bytes, or one of Python 3."""
    return string if isinstance(string, str) else string.decode()


def find_data(root: str | Path, dataset: str) -> Path:
    """The folder that holds the dataset: `root` or its official sub-folder. Raises InputError."""
    archive, root = ARCHIVES[dataset], Path(root)
    for folder in (root, root / archive.folder):
        if (folder / archive.train_files[0]).is_file():
            return folder
    own_photos = f"; {OWN_PHOTOS}" if subfolders(root) else ""
    raise InputError(
        f"{dataset} not found: looked for {archive.train_files[0]} in {root} and in "
        f"{root / archive.folder}; get the Python version from the CIFAR page of the University of "
        f"Toronto, or let --download fetch it; --dataset digits needs no data{own_photos}"
    )


def download(root: str | Path, dataset: str) -> None:
    """Fetch and unpack the official archive through torchvision, its checksum verified.

    Does nothing for digits, or where the dataset is there. Raises InputError.
    """
    from torchvision import datasets  # takes a second to import, and only a download needs it

    if dataset not in ARCHIVES:
        return
    root = Path(root)
    with suppress(InputError):
        find_data(root, dataset)
        return
    parent = root.parent if root.name == ARCHIVES[dataset].folder else root
    source = datasets.CIFAR10 if dataset == "cifar10" else datasets.CIFAR100
    try:
        source(str(parent), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--download to {parent} failed ({error}); fetch the Python version by hand"
        ) from error


def read_part(
    folder: Path, files: Sequence[str], part: str, archive: Archive
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 32, 32, 3] and labels int64 [n] of these files. Raises InputError."""
    images, labels = [], []
    for number, name in enumerate(files, start=1):
        path, content = folder / name, read_pickle(folder / name)
        expected = f"{part} batch {number} of {len(files)}"
        if content.get("batch_label", expected) not in (expected, expected.encode()):
            raise InputError(f"{path}: another file stands under this name: it is no '{expected}'")
        rows, key = content.get("data"), f"{archive.prefix}labels"
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (3072,):
            raise InputError(f"{path}: 'data' is not rows of 3072 bytes (uint8)")
        if not len(rows):
            raise InputError(f"{path}: holds no image")
        about = f"{path}: {key}"
        labels.append(checked_labels(content.get(key), len(rows), archive.num_class, about))
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
    """CIFAR-10 or CIFAR-100 from the official Python layout, as many images as the files hold."""
    archive, folder = ARCHIVES[dataset], find_data(root, dataset)
    train_images, train_labels = read_part(folder, archive.train_files, "training", archive)
    test_images, test_labels = read_part(folder, [archive.test_file], "testing", archive)
    names = read_names(folder / archive.names_file, archive)
    return ImageData(train_images, train_labels, test_images, test_labels, names)


def read_names(path: Path, archive: Archive) -> list[str]:
    """The classes' names from the dataset's own file; without one, their numbers."""
    if not path.is_file():
        return [str(label) for label in range(archive.num_class)]
    key = f"{archive.prefix}label_names"
    names = read_pickle(path).get(key)
    if not isinstance(names, list) or len(names) != archive.num_class:
        raise InputError(f"{path}: '{key}' is not {archive.num_class} names; delete it")
    try:
        return [as_text(name) for name in names]
    except (AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: '{key}' has a name that is no text; delete it") from error


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

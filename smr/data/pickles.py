"""Pickles and torch archives from elsewhere: reading them runs nothing that is in them."""

import _codecs
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch


class Refused(ValueError):
    """What is wrong with a file, in words that follow its name."""


class Kind:
    """Stands for NumPy's dtype: one of plain numbers, without the flags that a file may add."""

    def __init__(self, name: bytes | str, *_):
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biuf":
            raise Refused("it holds an array that is not of numbers")

    def __setstate__(self, state: tuple):
        self.dtype = self.dtype.newbyteorder(state[1])


class Numbers(np.ndarray):
    """Stands for NumPy's array, of which a file could make one of objects at any address."""

    def __new__(cls, *_):
        return super().__new__(cls, 0, np.uint8)

    def __setstate__(self, state: tuple):
        version, shape, kind, fortran, raw = state
        super().__setstate__((version, shape, kind.dtype, fortran, raw))


def from_buffer(raw: bytes | bytearray, kind: Kind, shape: tuple[int, ...], order: str):
    """How protocol 5 makes an array."""
    return np.frombuffer(raw, kind.dtype).reshape(shape, order=order)


# NumPy has moved its functions, so that a file may use either name.
ALLOWED = {
    "numpy.ndarray": Numbers,
    "numpy.dtype": Kind,
    "_codecs.encode": _codecs.encode,
    "numpy.core.multiarray._reconstruct": Numbers,
    "numpy._core.multiarray._reconstruct": Numbers,
    "numpy.core.numeric._frombuffer": from_buffer,
    "numpy._core.numeric._frombuffer": from_buffer,
}


class PlainUnpickler(pickle.Unpickler):
    """An unpickler of plain data and NumPy's arrays: every other name is refused unimported."""

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
    except Exception as error:  # pickle and NumPy raise whatever they stumble over
        raise Refused("it is damaged or cut off") from error


def load_archive(path: Path):
    """What torch.load(weights_only=True) gives, on the CPU, with NumPy's arrays allowed.

    Raises OSError, and Refused with what is wrong.
    """
    if not path.is_file():
        raise Refused("there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself compares no checksum
        if damaged:
            raise Refused(f"it is damaged: {damaged} has another checksum")
        with torch.serialization.safe_globals([(kind, name) for name, kind in ALLOWED.items()]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, Refused):
        raise
    except zipfile.BadZipFile as error:
        raise Refused("it is not of torch.save's form, or it is cut off") from error
    except pickle.UnpicklingError as error:
        raise Refused("it holds more than numbers and text, and none of it was run") from error
    except Exception as error:  # zipfile, zlib and torch raise many kinds on a damaged file
        raise Refused("it is damaged") from error

"""Pickles and torch archives from elsewhere: reading them runs nothing that is in them."""

import _codecs
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch

# NumPy has moved it, so that a file may use either name.
RECONSTRUCT = np.empty(0).__reduce__()[0]
RECONSTRUCT_NAMES = [f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")]
ALLOWED = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": _codecs.encode,
} | dict.fromkeys(RECONSTRUCT_NAMES, RECONSTRUCT)


class Refused(ValueError):
    """What is wrong with a file, in words that follow its name."""


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
    dtypes = {type(np.dtype(kind)) for kind in np.typecodes["AllInteger"]}
    named = [(RECONSTRUCT, name) for name in RECONSTRUCT_NAMES]
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself compares no checksum
        if damaged:
            raise Refused(f"it is damaged: {damaged} has another checksum")
        with torch.serialization.safe_globals([np.ndarray, np.dtype, *dtypes, *named]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, Refused):
        raise
    except zipfile.BadZipFile as error:
        raise Refused("it is not of torch.save's form, or it is cut off") from error
    except pickle.UnpicklingError as error:
        raise Refused("it holds more than numbers and text, and none of it was run") from error
    except Exception as error:  # zipfile, zlib and torch raise many kinds on a damaged file
        raise Refused("it is damaged") from error

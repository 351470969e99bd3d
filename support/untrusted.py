"""Pickles and torch archives from elsewhere: reading them runs nothing and takes little memory.

A pickle is a program. `unpickle` runs the part of it that data needs, on stand-ins of the names
that its caller allows: nothing is imported, nothing called, and no length that the file claims is
believed before the bytes are there. `load_archive` lets torch read a file that passed this way.
"""

import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

# Objects that any file may make, and bytes of a file for each one more: CIFAR-100 has 500 for each.
FREE_OBJECTS, BYTES_PER_OBJECT = 100_000, 256
# The directory at the end of an archive: a checkpoint of two VGG-19 has 20 KB.
LARGEST_DIRECTORY = 2**21
SHORT = 256

NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
STRINGS = {b"U": "<B", b"T": "<I", b"X": "<I", b"\x8c": "<B", b"C": "<B", b"B": "<I"}
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
EMPTY = {b"}": dict, b"]": list, b")": tuple}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
PUTS = {b"q": "<B", b"r": "<I"}
GETS = {b"h": "<B", b"j": "<I"}
SKIPPED = {b"\x80": 1, b"\x95": 8}  # protocol and frame

STORAGE_KINDS = {"Double": 8, "Float": 4, "Long": 8, "Int": 4, "Byte": 1, "Bool": 1}
# The end of an archive: signature, the directory's bytes, the comment's.
END_RECORD = struct.Struct("<4s8xI4xH")
NOT_AN_ARCHIVE = "it is not of torch.save's form"


class Refused(ValueError):
    """What is wrong with a file, in words that follow its name."""


class Array:
    """Stands in for numpy.ndarray: `values` once it is built, of whole numbers alone."""

    values: np.ndarray

    def build(self, state) -> None:
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, Dtype):
            raise Refused("an array of no type")
        order = "F" if fortran_order else "C"
        self.values = np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


class Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, name, *_):
        self.name = text(name)
        if self.name not in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
            raise Refused(f"an array of type {self.name}, where whole numbers are expected")

    def build(self, state) -> None:
        order = text(state[1])
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise Refused("an array of a composed type")
        self.dtype = np.dtype(order + self.name)


class Ordered(dict):
    """Stands in for collections.OrderedDict, whose attributes (a state dict's metadata) go by."""

    def build(self, state) -> None:
        pass


def text(raw) -> str:
    """A string of a pickle, which `unpickle` leaves as bytes."""
    return bytes(raw).decode()


def numpy_names(file_bytes: int) -> dict[str, Callable]:
    """The names that NumPy arrays of whole numbers need in a pickle; new ones for each file."""
    left = file_bytes

    def encode(string, _encoding):
        nonlocal left
        left -= len(string)
        if left < 0:
            raise Refused("it makes more than it holds")
        return str(string, "utf-8").encode("latin1")

    def reconstruct(kind, *_):
        return kind()

    return {
        "numpy.core.multiarray._reconstruct": reconstruct,
        "numpy._core.multiarray._reconstruct": reconstruct,
        "numpy.ndarray": Array,
        "numpy.dtype": Dtype,
        "_codecs.encode": encode,
    }


def unpickle(raw: bytes, names: Mapping[str, Callable], persistent: Callable | None = None):
    """The object of a pickle of plain data; strings stay bytes. Raises Refused.

    Args: names, what may be asked for by name → what stands in for it; persistent, called with a
    persistent id, as torch's archives have them.
    """
    try:
        return _Machine(raw, names, persistent).run()
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise Refused("it is damaged") from error
    except ValueError as error:  # of NumPy and of decoders
        raise error if isinstance(error, Refused) else Refused(f"it is damaged: {error}") from error


class _Machine:
    """The stack machine that a pickle is a program for, without what runs code."""

    def __init__(self, raw: bytes, names: Mapping[str, Callable], persistent: Callable | None):
        self.raw, self.view, self.position = raw, memoryview(raw), 0
        self.names, self.persistent = names, persistent
        self.stack, self.marks, self.memo = [], [], {}

    def run(self):
        for _ in range(FREE_OBJECTS + len(self.raw) // BYTES_PER_OBJECT):
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            self.step(bytes(code))
        raise Refused("it holds more objects than its size explains")

    def take(self, count: int):
        """The next bytes: a copy where they are few, else a view of the file's."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.raw):
            raise Refused("it is cut off")
        return (self.raw if count < SHORT else self.view)[start : self.position]

    def number(self, form: str):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        start, end = self.position, self.raw.find(b"\n", self.position, self.position + SHORT)
        if end < 0:
            raise Refused("it is damaged")
        self.position = end + 1
        return text(self.raw[start:end])

    def since_mark(self) -> list:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def named(self, name: str) -> Callable:
        if name not in self.names:
            raise Refused(f"it asks for {name!r}, which no such file needs")
        return self.names[name]

    def step(self, code: bytes) -> None:
        """Run one operation."""
        push, pop = self.stack.append, self.stack.pop
        if code in NUMBERS:
            push(self.number(NUMBERS[code]))
        elif code in STRINGS:
            push(self.take(self.number(STRINGS[code])))
        elif code in CONSTANTS:
            push(CONSTANTS[code])
        elif code in EMPTY:
            push(EMPTY[code]())
        elif code in PUTS:
            self.memo[self.number(PUTS[code])] = self.stack[-1]
        elif code == b"\x94":
            self.memo[len(self.memo)] = self.stack[-1]
        elif code in GETS:
            push(self.memo[self.number(GETS[code])])
        elif code in SKIPPED:
            self.take(SKIPPED[code])
        elif code == b"\x8a":
            push(int.from_bytes(self.take(self.number("<B")), "little", signed=True))
        elif code == b"(":
            self.marks.append(len(self.stack))
        elif code == b"t":
            push(tuple(self.since_mark()))
        elif code in TUPLES:
            self.stack[-TUPLES[code] :] = [tuple(self.stack[-TUPLES[code] :])]
        elif code in b"ea":
            values = self.since_mark() if code == b"e" else [pop()]
            expect(self.stack[-1], list).extend(values)
        elif code in b"us":
            values = self.since_mark() if code == b"u" else [pop(-2), pop()]
            expect(self.stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
        elif code == b"c":
            push(self.named(f"{self.line()}.{self.line()}"))
        elif code == b"\x93":
            push(self.named(f"{text(pop(-2))}.{text(pop())}"))
        elif code == b"R":
            arguments = expect(pop(), tuple)
            push(pop()(*arguments))  # only what `names` gives can be called
        elif code == b"b":
            state = pop()
            self.stack[-1].build(state)
        elif code == b"Q" and self.persistent:
            push(self.persistent(pop()))
        else:
            raise Refused(f"it holds the operation {code!r}, which no such file needs")


def expect(value, kind: type):
    """The value, which must be of this kind."""
    if not isinstance(value, kind):
        raise Refused("it is damaged")
    return value


@dataclass(frozen=True)
class StorageKind:
    """Stands in for a class such as torch.FloatStorage."""

    item_bytes: int


@dataclass(frozen=True)
class Storage:
    """Stands in for a tensor's memory that the archive holds."""

    items: int


def check_tensor(storage, offset, size, stride, *_) -> None:
    """Stands in for torch's _rebuild_tensor_v2, which enlarges a storage that is too small."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    smallest = min(offset, *size, *stride, 0)
    if smallest < 0 or max(math.prod(size), last + 1) > expect(storage, Storage).items:
        raise Refused("a tensor reaches beyond its memory")


def tensor_names() -> dict[str, Callable]:
    """The names that tensors and state dicts need in an archive."""
    kinds = {f"torch.{name}Storage": StorageKind(size) for name, size in STORAGE_KINDS.items()}
    return kinds | {
        "collections.OrderedDict": Ordered,
        "torch._utils._rebuild_tensor_v2": check_tensor,
    }


def check_archive(path: Path) -> None:
    """Raise Refused where torch.load would need more than about the file's size, or find damage."""
    with open(path, "rb") as file:
        check_ends(file)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            sizes = {entry.filename: entry.file_size for entry in entries}
            packed = any(
                e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size
                for e in entries
            )
            if packed or len(sizes) < len(entries) or sum(sizes.values()) > path.stat().st_size:
                raise Refused("its parts are packed, doubled or larger than the file")
            damaged = archive.testzip()
            if damaged:
                raise Refused(f"it is damaged: {damaged} has another checksum")
            pickles = [name for name in sizes if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise Refused(NOT_AN_ARCHIVE)
            raw = archive.read(pickles[0])

    def storage(identity) -> Storage:
        _, kind, key, _, items = identity
        if sizes[pickles[0][: -len("data.pkl")] + "data/" + text(key)] != items * kind.item_bytes:
            raise Refused("a tensor's memory is not of the size that it claims")
        return Storage(items)

    unpickle(raw, numpy_names(len(raw)) | tensor_names(), storage)


def check_ends(file: BinaryIO) -> None:
    """Raise Refused unless an archive starts and ends as torch.save writes it."""
    start = file.read(4)
    file.seek(max(0, file.seek(0, os.SEEK_END) - END_RECORD.size))
    end = file.read()
    if start != b"PK\x03\x04" or len(end) < END_RECORD.size:
        raise Refused(NOT_AN_ARCHIVE)
    signature, directory_bytes, comment_bytes = END_RECORD.unpack(end)
    if signature != b"PK\x05\x06" or comment_bytes or directory_bytes > LARGEST_DIRECTORY:
        raise Refused(NOT_AN_ARCHIVE + ", or it is cut off")


def load_archive(path: Path):
    """What torch.load(weights_only=True) gives, on the CPU, with NumPy's arrays allowed.

    Raises OSError, and Refused with what is wrong.
    """
    if not path.is_file():
        raise Refused("there is no such file")
    try:
        check_archive(path)
        with torch.serialization.safe_globals(numpy_globals()):
            return torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, Refused):
        raise
    except Exception as error:  # zipfile, zlib and torch raise many kinds on a damaged file
        raise Refused("it is damaged") from error


def numpy_globals() -> list:
    """What torch must be told to allow for NumPy's arrays of whole numbers."""
    reconstruct = np.empty(0).__reduce__()[0]  # NumPy has moved it, so a file may use either name
    names = [f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")]
    dtypes = {type(np.dtype(kind)) for kind in np.typecodes["AllInteger"]}
    return [np.ndarray, np.dtype, *dtypes, *((reconstruct, name) for name in names)]

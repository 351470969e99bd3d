"""Atomic writes."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` once it is complete and on disk. Raises OSError.

    Until then, and if that fails, the older one stays.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """`atomic_write` of a small text."""
    with atomic_write(path) as file:
        file.write(content.encode())


def write_json(path: Path, content: dict) -> None:
    """`atomic_write` of indented JSON."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")

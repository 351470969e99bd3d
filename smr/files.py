"""Files that are whole at every instant."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is whole and on disk.

    Until then, and where that fails, the older one stays. Raises OSError.
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
    """`replacing` with a small text."""
    with atomic_write(path) as file:
        file.write(content.encode())


def write_json(path: Path, content: dict) -> None:
    """`replacing` with indented JSON."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")

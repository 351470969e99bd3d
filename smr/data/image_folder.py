"""Image files in folders: their names, labels and the parts of a dataset; opens no image."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from smr.errors import InputError

OWN_PHOTOS = "your own photos in class folders: train_folder.py"
# What systems leave in folders, in lower case: thumbnails, archives' metadata, trash.
JUNK = {
    *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "$recycle.bin", "__macosx"),
    *("thumbs.db", "desktop.ini", "ehthumbs.db", "lost+found", "system volume information"),
}
PHOTO_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"),
    *(".heif", ".jp2", ".ppm", ".pgm"),
}


@dataclass(frozen=True)
class Listing:
    """Image files relative to `root`, [n], with their labels, int64 [n].

    broken: file → why it is no image or has no label. notes: lines for the log.
    """

    root: Path
    files: list[str]
    labels: np.ndarray
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def paths(self) -> list[Path]:
        """The files with their folder."""
        return [self.root / file for file in self.files]

    def only(self, chosen: np.ndarray) -> "Listing":
        """The files of bool `chosen` [n]."""
        files = [self.files[i] for i in np.flatnonzero(chosen)]
        return replace(self, files=files, labels=self.labels[chosen])


def sorted_listing(
    root: Path, rows: list[tuple[int, tuple, str]], broken: dict[str, str]
) -> Listing:
    """The Listing of these (label, sort key, name), in ascending order."""
    rows = sorted(rows)
    labels = np.array([label for label, *_ in rows], dtype=np.int64)
    return Listing(root, [name for *_, name in rows], labels, broken)


def read_text(path: Path, about: str) -> str:
    """The text of a file in UTF-8 or, with a byte order mark, UTF-16.

    Raises InputError, with `about`: what to do.
    """
    try:
        raw = path.read_bytes()
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not UTF-8")
        raise InputError(f"{path}: {reason}; {about}") from error


def read_lines(path: Path, about: str) -> list[str]:
    """The lines of a dataset's own list that are not empty, stripped. Raises InputError."""
    return [line.strip() for line in read_text(path, about).splitlines() if line.strip()]


def names_and_labels(path: Path, about: str) -> list[tuple[str, int]]:
    """(name, label) of the lines `name label` of a list. Raises InputError; about: `read_text`."""
    rows = []
    for number, line in enumerate(read_lines(path, about), start=1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal():
            raise InputError(f"{path}: line {number} is '{line[:80]}', expected a path and a label")
        rows.append((name, int(label)))
    return rows


def entries(folder: Path) -> list[os.DirEntry]:
    """A folder's content without hidden files and junk, in natural order. Raises InputError."""
    try:
        with os.scandir(folder) as content:
            visible = [entry for entry in content if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    shown = [entry for entry in visible if entry.name.casefold() not in JUNK]
    return sorted(shown, key=lambda entry: natural_order(entry.name))


def printable(name: str) -> str:
    """The name, with escapes if it has control characters or is not valid UTF-8."""
    is_text = not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    return name if is_text else ascii(name)[1:-1]


def natural_order(name: str) -> tuple:
    """A key that sorts 2.jpg before 10.jpg."""
    words = re.split(r"([0-9]+)", name)
    return tuple(int(word) if i % 2 else word for i, word in enumerate(words)), name


def first_ten(names: Sequence[str]) -> str:
    """The first ten names, and dots if there are more."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def same_name(name: str) -> str:
    """Equal for two spellings of a class's name: cat and Cat, ü in one or two characters."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def subfolders(folder: Path) -> list[str]:
    """The names of a folder's folders; none if it is no folder."""
    return [entry.name for entry in entries(folder) if entry.is_dir()] if folder.is_dir() else []


def is_photo(name: str) -> bool:
    """Whether a file has the name of a photo."""
    return Path(name).suffix.lower() in PHOTO_SUFFIXES


def files_inside(
    folder: Path,
    broken: dict[str, str],
    prefix: str = "",
    above: frozenset[str] = frozenset(),
    lenient: bool = False,
) -> Iterator[str]:
    """Each file's name, `prefix` before it, in a folder and those inside.

    What cannot be read is added to `broken`, and unless lenient what has no readable name.
    """
    above |= {os.path.realpath(folder)}
    try:
        content = entries(folder)
    except InputError as error:
        if not lenient:
            raise
        broken[prefix] = error.__cause__.strerror
        return
    for entry in content:
        name = posixpath.join(prefix, entry.name)
        if not lenient and name != printable(name):
            broken[printable(name)] = "its name is not readable"
        elif entry.is_dir():
            if os.path.realpath(entry.path) in above:
                broken[name] = "a link to a folder that it lies in"
            else:
                yield from files_inside(Path(entry.path), broken, name, above, lenient)
        elif entry.is_file():
            yield name
        else:
            broken[name] = "no file"


def refuse_broken(*parts: Listing, skip_broken: bool) -> list[str]:
    """A note on the files of one root that are excluded. Raises InputError unless skip_broken."""
    broken = [f"{name} ({why})" for part in parts for name, why in part.broken.items()]
    count = f"{len(broken)} of {len(broken) + sum(map(len, parts))} files"
    if broken and not skip_broken:
        raise InputError(
            f"{parts[0].root}: {count} cannot be read as images: {first_ten(broken)}; repair or "
            "remove them, or exclude them with --skip_broken"
        )
    about = f"left out {count}, which cannot be read as images: {first_ten(broken)}"
    return [about] if broken else []


def class_notes(train: Listing, test: Listing, classes: Sequence[str]) -> list[str]:
    """A note on classes without a training image. Raises InputError on an empty part."""
    for name, part in (("training", train), ("test", test)):
        if not part.files:
            raise InputError(f"{part.root}: no {name} image")
    empty = [name for label, name in enumerate(classes) if label not in train.labels]
    return [f"classes without a training image: {', '.join(empty)}"] if empty else []

"""Which image files there are and what their names and folders say of them; opens none."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from smr.data.corrections_log import dropped_folders
from smr.errors import InputError

# What people call the folders of class folders.
TRAINING, TESTING = ("training", "train"), ("testing", "test", "val")
OWN_PHOTOS = "photos of your own in class folders: train_animal10N.py --dataset folder"
# So many times larger a class is than another before a note says so.
UNEVEN = 10


@dataclass(frozen=True)
class Listing:
    """Image files relative to the data's root, [n], with their labels, int64 [n].

    `broken` says of each file that is none, or out of place, why.
    """

    files: list[str]
    labels: np.ndarray
    broken: dict[str, str] = field(default_factory=dict)

    def only(self, chosen: np.ndarray) -> "Listing":
        """The files of bool `chosen` [n]."""
        files = [self.files[i] for i in np.flatnonzero(chosen)]
        return Listing(files, self.labels[chosen], self.broken)


def listing_of(found: list[tuple[int, tuple, str]], broken: dict[str, str]) -> Listing:
    """The Listing of these (label, sort key, name), in ascending order."""
    found = sorted(found)
    labels = np.array([label for label, *_ in found], dtype=np.int64)
    return Listing([name for *_, name in found], labels, broken)


def lines_of(path: Path, about: str) -> list[str]:
    """The lines of a data set's own list. Raises InputError, with `about`: where to get it."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; {about}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def names_and_labels(path: Path, about: str) -> list[tuple[str, int]]:
    """(name, label) of a list's lines `name label`. Raises InputError; `about`, see `lines_of`."""
    found = []
    for number, line in enumerate(lines_of(path, about), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise InputError(f"{path}: line {number} is '{line[:80]}', expected a path and a label")
        found.append((name, int(label)))
    return found


def entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, without hidden files, in natural order. Raises InputError."""
    try:
        with os.scandir(folder) as found:
            shown = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    for entry in shown:
        if not entry.name.isprintable():
            raise InputError(f"{folder}: the name {entry.name!a} is not readable; rename it")
    return sorted(shown, key=lambda entry: natural_order(entry.name))


def natural_order(name: str) -> tuple:
    """A key that sorts 2.jpg before 10.jpg."""
    words = re.split(r"([0-9]+)", name)
    return tuple(int(word) if i % 2 else word for i, word in enumerate(words)), name


def first_ten(names: Sequence[str]) -> str:
    """The first ten names, and dots where there are more."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def has_class_folders(folder: Path) -> bool:
    """Whether there are folders in it."""
    return folder.is_dir() and any(entry.is_dir() for entry in entries(folder))


def find_part(root: Path, names: Sequence[str]) -> str | None:
    """The first of root's folders of these names that holds class folders; None if none does."""
    return next((name for name in names if has_class_folders(root / name)), None)


def same_name(name: str) -> str:
    """What two spellings of a class's name share: cat and Cat, and ü in one or two characters."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def class_names(root: str | Path) -> list[str]:
    """The classes of root/training/<class>/, or of root/<class>/ itself, in natural order.

    Raises InputError.
    """
    root = Path(root)
    refuse_a_part(root)
    folder = root / (
        find_part(root, TRAINING) or ("training" if (root / "training").is_dir() else "")
    )
    if not has_class_folders(folder):
        held = [entry.name for entry in entries(folder)]
        raise InputError(
            f"{folder}: no class folders; expected {folder / '<class>' / '<images>'}, a folder for "
            f"each class; found {first_ten(held) or 'nothing'}"
        )
    names = [entry.name for entry in class_entries(root, folder) if entry.is_dir()]
    if len(names) < 2:
        raise InputError(f"{folder}: only the class '{names[0]}'; expected at least 2 folders")
    spellings: dict[str, str] = {}
    for name in names:
        if (other := spellings.setdefault(same_name(name), name)) != name:
            raise InputError(f"{folder}: are '{other}' and '{name}' one class? Rename one of them")
    return names


def refuse_a_part(root: Path) -> None:
    """Raise InputError for a folder of training images whose test images lie beside it."""
    name, parent = root.resolve().name, root.resolve().parent
    for own, other in ((TRAINING, TESTING), (TESTING, TRAINING)):
        if name in own and (beside := find_part(parent, other)):
            raise InputError(f"{root}: give the folder above it, which holds {name}/ and {beside}/")


def class_entries(root: Path, folder: Path) -> list[os.DirEntry]:
    """What `folder` holds, without the photos that correct_labels.py dropped into `root`."""
    dropped = dropped_folders(root) if folder == root else set()
    return [entry for entry in entries(folder) if entry.name not in dropped]


def list_class_folders(
    root: Path, part: str, labels: Mapping[str, int], otherwise: str = "rename or remove it"
) -> Listing:
    """The files of root/part/<class>/ and of the folders inside, by label and natural order.

    Args: part, "" for root itself; labels, the label of each class's name, however it is spelt.
    Raises InputError on another folder, with `otherwise`: what to do.
    """
    found, broken = [], {}
    spelt = {same_name(name): label for name, label in labels.items()}
    for folder in class_entries(root, root / part):
        name = posixpath.join(part, folder.name)
        if not folder.is_dir():
            broken[name] = "in no class folder"
            continue
        if same_name(folder.name) not in spelt:
            raise InputError(
                f"{folder.path}: no class has this name, only {first_ten(list(labels))}; "
                f"{otherwise}"
            )
        label = spelt[same_name(folder.name)]
        for file in files_inside(Path(folder.path), broken, name):
            found.append((label, natural_order(file.removeprefix(f"{name}/")), file))
    return listing_of(found, broken)


def files_inside(
    folder: Path, broken: dict[str, str], prefix: str, above: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Each file's name, `prefix` before it, in a folder and those inside; adds to `broken`."""
    above |= {os.path.realpath(folder)}
    for entry in entries(folder):
        name = f"{prefix}/{entry.name}"
        if entry.is_dir():
            if os.path.realpath(entry.path) in above:
                broken[name] = "a link to a folder that it lies in"
            else:
                yield from files_inside(Path(entry.path), broken, name, above)
        elif entry.is_file():
            yield name
        else:
            broken[name] = "no file"


def held_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Bool [n], a test part: `fraction` of each class that has two images or more.

    Raises InputError where that is no image at all.
    """
    draw = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        count = max(1, round(fraction * len(members))) if len(members) > 1 else 0
        chosen[members[: min(count, len(members) - 1)]] = True
    if not chosen.any():
        raise InputError("no class has two images: none can be held out; make a folder testing/")
    return chosen


def refuse_broken(root: Path, *parts: Listing, skip_broken: bool) -> list[str]:
    """A note on the files that are left out; an InputError where leaving out is not allowed."""
    broken = [f"{name} ({why})" for part in parts for name, why in part.broken.items()]
    if not broken:
        return []
    found = f"{len(broken)} of {len(broken) + sum(len(part.files) for part in parts)} files"
    if not skip_broken:
        raise InputError(
            f"{root}: {found} cannot be read as images: {first_ten(broken)}; mend or remove them, "
            "or leave them out with --skip_broken"
        )
    return [f"left out {found}, which cannot be read as images: {', '.join(broken)}"]


def class_notes(root: Path, train: Listing, test: Listing, classes: Sequence[str]) -> list[str]:
    """Notes on classes without a training image, and on uneven ones.

    Raises InputError on an empty part.
    """
    for name, part in (("training", train), ("test", test)):
        if not part.files:
            raise InputError(f"{root}: no {name} image")
    counts = np.bincount(train.labels, minlength=len(classes))
    empty = [classes[label] for label in np.flatnonzero(counts == 0)]
    notes = [f"classes without a training image: {', '.join(empty)}"] if empty else []
    filled = np.flatnonzero(counts)
    least, most = filled[counts[filled].argmin()], counts.argmax()
    if counts[most] > UNEVEN * counts[least]:
        notes.append(
            f"classes are uneven, from {counts[least]:,} images of {classes[least]} to "
            f"{counts[most]:,} of {classes[most]}: a small class's labels are judged badly"
        )
    return notes

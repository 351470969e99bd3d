"""Which image files there are and what their names and folders say of them; opens none."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from smr.errors import InputError


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


def class_names(root: str | Path) -> list[str]:
    """The classes of root/training/<class>/, in natural order. Raises InputError."""
    folder = Path(root) / "training"
    if not has_class_folders(folder):
        raise InputError(
            f"{folder}: no class folders; expected {folder / '<class>' / '<images>'}, a folder for "
            "each class"
        )
    names = [entry.name for entry in entries(folder) if entry.is_dir()]
    if len(names) < 2:
        raise InputError(f"{folder}: only the class '{names[0]}'; expected at least 2 folders")
    return names


def list_class_folders(root: Path, part: str, labels: Mapping[str, int]) -> Listing:
    """The files of root/part/<class>/*, in ascending order of label and natural order of name.

    Args: labels, the label of each class folder's name. Raises InputError on another folder.
    """
    found, broken = [], {}
    for folder in entries(root / part):
        if not folder.is_dir():
            broken[f"{part}/{folder.name}"] = "in no class folder"
            continue
        if folder.name not in labels:
            raise InputError(
                f"{folder.path}: no class has this name, only {first_ten(list(labels))}; rename or "
                "remove it"
            )
        for entry in entries(Path(folder.path)):
            name = f"{part}/{folder.name}/{entry.name}"
            if entry.is_file():
                found.append((labels[folder.name], natural_order(entry.name), name))
            else:
                broken[name] = "no file"
    return listing_of(found, broken)


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
    """A note on the classes without a training image. Raises InputError on an empty part."""
    for name, part in (("training", train), ("test", test)):
        if not part.files:
            raise InputError(f"{root}: no {name} image")
    counts = np.bincount(train.labels, minlength=len(classes))
    empty = [classes[label] for label in np.flatnonzero(counts == 0)]
    return [f"classes without a training image: {', '.join(empty)}"] if empty else []

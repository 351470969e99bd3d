"""The parts of a folder of photos: training and test, each with its class folders."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smr.data.corrections_log import dropped_folders
from smr.data.image_folder import (
    JUNK,
    entries,
    files_inside,
    first_ten,
    holds_files,
    is_ignored,
    is_photo,
    is_readable,
    printable,
    same_name,
    subfolders,
)
from smr.errors import InputError

# The usual names of the folders that hold class folders, in lower case.
TRAINING = ("training", "train")
TESTING = ("testing", "test", "validation", "valid", "val", "evaluation", "eval", "dev")


@dataclass(frozen=True)
class Parts:
    """Where a folder's class folders lie: root/training/ and root/testing/, "" for root itself,
    None if there is no test part; the class folders' names; notes on what is not used."""

    training: str
    testing: str | None
    class_names: list[str]
    notes: list[str]


def find_parts(root: Path) -> Parts:
    """The parts of a folder of photos, by the usual names in upper or lower case.

    Raises InputError if the folder can be read in two ways.
    """
    root = Path(root)
    refuse_a_part(root)
    folders = subfolders(root)
    ours = sorted(dropped_folders(root) & set(folders))
    folders = [name for name in folders if name not in ours]
    with_classes = [name for name in folders if subfolders(root / name)]
    training, testing = (
        [name for word in words for name in with_classes if name.casefold() == word]
        for words in (TRAINING, TESTING)
    )
    notes = [f"{name}/ holds the photos that corrections dropped" for name in ours]
    if junk := junk_names(root):
        notes.append(f"ignored: {first_ten(junk)}")
    if len(training) > 1:
        raise InputError(
            f"{root}: {training[0]}/ and {training[1]}/ are both training parts; keep one"
        )
    if testing and not training:
        raise InputError(
            f"{root}: {testing[0]}/ holds class folders, but there is no training/ beside it; "
            f"found {first_ten(folders)}"
        )
    if not training:
        empty = [name for name in folders if not holds_files(root / name)]
        classes = [name for name in folders if name not in empty]
        check_classes(root, root, classes)
        refuse_parts_as_classes(root, classes)
        return Parts("", None, classes, notes + unused(empty, "empty folders"))
    part, test = training[0], testing[0] if testing else None
    beside = [name for name in folders if name not in (part, test, *testing[1:])]
    photos = [entry.name for entry in entries(root) if entry.is_file() and is_photo(entry.name)]
    if strange := [f"{name}/" for name in beside if holds_photos(root / name)] + photos:
        raise InputError(
            f"{root}: {part}/ is the training part, but photos lie beside it: "
            f"{first_ten(strange)}; move them into {part}/ or elsewhere"
        )
    inside = subfolders(root / part)
    empty = [name for name in inside if not holds_files(root / part / name)]
    classes = [name for name in inside if name not in empty]
    check_classes(root, root / part, classes)
    notes += unused([*testing[1:], *beside], "folders that are not used")
    return Parts(
        part, test, classes, notes + unused([f"{part}/{name}" for name in empty], "empty folders")
    )


def unused(names: Sequence[str], words: str) -> list[str]:
    """A note on folders, if there are any."""
    return [f"{words}: {', '.join(f'{name}/' for name in names)}"] if names else []


def junk_names(folder: Path) -> list[str]:
    """The junk in a folder and in those inside, each name once with its number."""
    counts: dict[str, int] = defaultdict(int)
    for _, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if name.casefold() in JUNK:
                counts[name] += 1
        folders[:] = [name for name in folders if not is_ignored(name)]
    return [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]


def refuse_a_part(root: Path) -> None:
    """Raise InputError for a training or test part whose other part lies beside it."""
    name, parent = root.resolve().name, root.resolve().parent
    for own, others in ((TRAINING, TESTING), (TESTING, TRAINING)):
        if name.casefold() not in own or not subfolders(root):
            continue
        beside = [other for other in subfolders(parent) if other.casefold() in others]
        if beside := [other for other in beside if subfolders(parent / other)]:
            raise InputError(
                f"{root}: give the folder above it, which holds {name}/ and {beside[0]}/"
            )


def check_classes(root: Path, folder: Path, names: list[str]) -> None:
    """Raise InputError if these folders are no two classes or more."""
    content = [printable(entry.name) for entry in entries(folder)]
    tables = [name for name in content if Path(name).suffix.lower() in (".csv", ".tsv")]
    hint = f"; labels from a table: --labels {folder / tables[0]}" if tables else ""
    if not names:
        raise InputError(
            f"{folder}: no class folders; expected {folder / '<class>' / '<images>'}, a folder for "
            f"each class; found {first_ten(content) or 'nothing'}{hint}"
        )
    if len(names) < 2:
        inside = subfolders(folder / names[0])
        if len(inside) > 1:
            hint = f"; give {folder / names[0]}, which holds {first_ten(inside)}{hint}"
        raise InputError(
            f"{folder}: only the class '{names[0]}'; expected at least 2 folders, one for each "
            f"class; found {first_ten(content)}{hint}"
        )
    spellings: dict[str, str] = {}
    for name in names:
        if not is_readable(name):
            raise InputError(f"{folder}: the name {name!a} is not readable; rename it")
        if (other := spellings.setdefault(same_name(name), name)) != name:
            raise InputError(f"{folder}: are '{other}' and '{name}' one class? Rename one of them")


def refuse_parts_as_classes(root: Path, names: list[str]) -> None:
    """Raise InputError if two folders hold the same folders: parts of a dataset, not classes."""
    holders: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        for inner in subfolders(unwrapped(root / name)):
            if (other := holders.setdefault(same_name(inner), name)) != name:
                shared[other, name].append(inner)
    for (one, other), inner in shared.items():
        if len(inner) > 1:
            raise InputError(
                f"{root}: {one}/ and {other}/ both hold {first_ten(inner)}: parts of a dataset or "
                "classes? Name the parts training/ and testing/, or put each class's photos into "
                "one folder"
            )


def unwrapped(folder: Path) -> Path:
    """The folder, or the one inside if that is all it contains."""
    while len(content := entries(folder)) == 1 and content[0].is_dir(follow_symlinks=False):
        folder = Path(content[0].path)
    return folder


def holds_photos(folder: Path) -> bool:
    """Whether files in a folder, or in those inside, have the name of a photo."""
    return any(is_photo(name) for name in files_inside(folder, {}, ""))

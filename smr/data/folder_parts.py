"""The parts of a folder of photos: training and test, each with its class folders."""

import os
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
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
    refuse_a_part(root)
    folders, dropped = subfolders(root), dropped_folders(root)
    ours = [name for name in folders if name in dropped]
    folders = [name for name in folders if name not in dropped]
    training, testing = parts_among(root, folders, TRAINING), parts_among(root, folders, TESTING)
    notes = [f"{name}/ holds the photos that corrections dropped" for name in ours]
    if junk := junk_names(root):
        notes.append(f"ignored: {first_ten(junk)}")
    if len(training) > 1:
        both = f"{training[0]}/ and {training[1]}/"
        raise InputError(f"{root}: {both} are both training parts; keep one")
    if testing and not training:
        raise InputError(
            f"{root}: {testing[0]}/ holds class folders, but there is no training/ beside it; "
            f"found {first_ten(folders)}"
        )
    unused, part, test = [], "", None
    if training:
        part, test = training[0], testing[0] if testing else None
        beside = [name for name in folders if name not in (part, *testing)]
        unused = [*testing[1:], *beside]
        strange = [f"{name}/" for name in beside if holds_photos(root / name)]
        files = [entry.name for entry in entries(root) if entry.is_file()]
        strange += [name for name in files if is_photo(name)]
        if strange:
            raise InputError(
                f"{root}: {part}/ is the training part, but photos lie beside it: "
                f"{first_ten(strange)}; move them into {part}/ or elsewhere"
            )
        folders = subfolders(root / part)
    empty = [name for name in folders if not holds_files(root / part / name)]
    classes = [name for name in folders if name not in empty]
    check_classes(root / part, classes)
    if not training:
        refuse_parts_as_classes(root, classes)
    if unused:
        notes.append("folders that are not used: " + ", ".join(f"{name}/" for name in unused))
    if empty:
        paths = [f"{part}/{name}/".lstrip("/") for name in empty]
        notes.append("empty folders: " + ", ".join(paths))
    return Parts(part, test, classes, notes)


def parts_among(root: Path, folders: list[str], words: tuple[str, ...]) -> list[str]:
    """Those of the folders that have one of these names and hold folders, in order of `words`."""
    named = [name for word in words for name in folders if name.casefold() == word]
    return [name for name in named if subfolders(root / name)]


def junk_names(folder: Path) -> list[str]:
    """The junk in a folder and in those inside, each name once with its number."""
    counts: Counter[str] = Counter()
    for _, folders, files in os.walk(folder):
        counts.update(name for name in (*folders, *files) if name.casefold() in JUNK)
        folders[:] = [name for name in folders if not is_ignored(name)]
    return [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]


def refuse_a_part(root: Path) -> None:
    """Raise InputError for a training or test part whose other part lies beside it."""
    name, parent = root.resolve().name, root.resolve().parent
    for own, others in ((TRAINING, TESTING), (TESTING, TRAINING)):
        if name.casefold() not in own or not subfolders(root):
            continue
        if beside := parts_among(parent, subfolders(parent), others):
            above = f"which holds {name}/ and {beside[0]}/"
            raise InputError(f"{root}: give the folder above it, {above}")


def check_classes(folder: Path, names: list[str]) -> None:
    """Raise InputError if these folders are no two classes or more."""
    content = [printable(entry.name) for entry in entries(folder)]
    tables = [name for name in content if Path(name).suffix.lower() in (".csv", ".tsv")]
    hint = f"; labels from a table: --labels {folder / tables[0]}" if tables else ""
    if len(names) == 1 and len(inside := subfolders(folder / names[0])) > 1:
        hint = f"; give {folder / names[0]}, which holds {first_ten(inside)}{hint}"
    if len(names) < 2:
        only = f"only the class '{names[0]}'" if names else "no class folders"
        raise InputError(
            f"{folder}: {only}; expected {folder / '<class>' / '<images>'}, at least 2 folders, "
            f"one for each class; found {first_ten(content) or 'nothing'}{hint}"
        )
    spellings: dict[str, str] = {}
    for name in names:
        if not is_readable(name):
            raise InputError(f"{folder}: the name {name!a} is not readable; rename it")
        if (other := spellings.setdefault(same_name(name), name)) != name:
            raise InputError(f"{folder}: are '{other}' and '{name}' one class? Rename one of them")


def refuse_parts_as_classes(root: Path, names: list[str]) -> None:
    """Raise InputError if two folders hold the same folders: parts of a dataset, not classes."""
    inside = {
        name: {same_name(inner): inner for inner in subfolders(unwrapped(root / name))}
        for name in names
    }
    for one, other in combinations([name for name in names if inside[name]], 2):
        shared = [inner for key, inner in inside[other].items() if key in inside[one]]
        if len(shared) > 1:
            raise InputError(
                f"{root}: {one}/ and {other}/ both hold {first_ten(shared)}: parts of a dataset or "
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

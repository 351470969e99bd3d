"""Anyone's own photos: a folder of class folders, or images with a CSV file of labels.

loader = folder_dataloader("./photos", 32, num_workers=4, frame=Frame(146, 128, square=True))
for images, noisy_labels, index in loader.run("warmup"): ...
"""

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from smr.data.corrections_log import dropped_folders
from smr.data.fingerprint import add_duplicates
from smr.data.image_file_dataset import IMAGENET_VIEWS, Frame, ImageFileLoader
from smr.data.image_folder import (
    Listing,
    entries,
    files_inside,
    first_ten,
    is_photo,
    natural_order,
    same_name,
    sorted_listing,
    subfolders,
)
from smr.data.label_table import read_label_table
from smr.data.loader import DatasetInfo
from smr.errors import InputError

# Share of each class that is the test set if there is no other.
VAL_FRACTION = 0.1
# The usual names of the folders that hold class folders, in lower case.
TRAINING = ("training", "train")
TESTING = ("testing", "test", "validation", "valid", "val", "evaluation", "eval", "dev")


def list_folder(
    root: str | Path,
    val_fraction: float | None = None,
    seed: int = 123,
    labels_csv: str | Path | None = None,
) -> tuple[Listing, Listing, DatasetInfo]:
    """The photos of root/training/<class>/ or root/<class>/, and of root/testing/<class>/.

    Returns the training photos, the test photos and their description. With labels_csv they are
    those of the CSV file, anywhere in root. Without a test part `val_fraction` of each class, by
    default VAL_FRACTION, is held out by `seed`. Opens no image. Raises InputError.
    """
    root, test = Path(root), None
    if labels_csv:
        train, classes, notes = read_label_table(Path(labels_csv), root)
    else:
        train, test, classes, notes = read_class_folders(root)
    info = DatasetInfo(classes, data_notes=notes, labels_in_paths=not labels_csv)
    if test is None:
        info.test_labels_are_noisy = True
        chosen = validation_split(train.labels, val_fraction or VAL_FRACTION, seed)
        notes.append(
            f"no testing/: {chosen.sum()} training images are held out for the test and get no "
            "label-quality score (another --seed holds out others); their labels are noisy too: "
            "test accuracy is agreement with noisy labels"
        )
        test, train = replace(train.only(chosen), broken={}), train.only(~chosen)
    elif val_fraction is not None:
        notes.append("--val_fraction is not used: there is a folder of test images")
    return train, test, info


def read_class_folders(root: Path) -> tuple[Listing, Listing | None, list[str], list[str]]:
    """The training photos, the test photos if there are any, the classes, and notes for the log.

    The parts have the usual names in any case. Raises InputError if the folder can be read in two
    ways.
    """
    folders = subfolders(root)
    training, testing = (parts_among(root, folders, words) for words in (TRAINING, TESTING))
    if testing and not training:
        raise InputError(
            f"{root}: {testing[0]}/ holds class folders, but there is no training/ beside it; "
            f"found {first_ten(folders)}"
        )
    part, dropped = "".join(training[:1]), dropped_folders(root)
    inside = [file.partition("/") for file in files_inside(root / part, {})]
    names = dict.fromkeys(name for name, folder, _ in inside if folder)
    classes = [name for name in names if part or name not in dropped]
    check_classes(root / part, classes)
    if part:
        others = [name for name in folders if name not in {part, *testing, *dropped}]
        refuse_photos_beside(root, part, others)
        unused = [name for name in folders if name not in (part, *testing[:1])]
        unused += [f"{part}/{name}" for name in subfolders(root / part) if name not in classes]
    else:
        refuse_parts_as_classes(root, classes)
        unused = [name for name in folders if name not in classes]
    form = " and ".join(posixpath.join(name, "<class>/") for name in (part, *testing[:1]))
    notes = [f"form: {form}, {len(classes)} classes"]
    if unused:
        notes.append("folders that are not used: " + ", ".join(f"{name}/" for name in unused))
    test = list_part(root, testing[0], classes) if testing else None
    return list_part(root, part, classes), test, classes, notes


def parts_among(root: Path, folders: list[str], words: tuple[str, ...]) -> list[str]:
    """Those of the folders that have one of these names and hold folders, in order of `words`."""
    named = [name for word in words for name in folders if name.casefold() == word]
    return [name for name in named if subfolders(root / name)]


def list_part(root: Path, part: str, classes: Sequence[str]) -> Listing:
    """The files of root/part/<class>/ and of the folders inside, by label and natural order.

    Args: part, "" for root itself; classes, whose folders may be spelled otherwise. Raises
    InputError on another folder of the part that holds files.
    """
    rows, broken = [], {}
    labels = {same_name(name): label for label, name in enumerate(classes)}
    for file in files_inside(root / part, broken, part):
        name, folder, rest = file.removeprefix(f"{part}/").partition("/")
        if not folder:
            broken[file] = "in no class folder"
        elif (label := labels.get(same_name(name))) is not None:
            rows.append((label, natural_order(rest), file))
        elif part:
            raise InputError(
                f"{root / part / name}: no class has this name, only {first_ten(classes)}; rename "
                "or remove it"
            )
    return sorted_listing(root, rows, broken)


def check_classes(folder: Path, names: list[str]) -> None:
    """Raise InputError if these folders are no two classes or more."""
    if len(names) < 2:
        content = [entry.name for entry in entries(folder)]
        only = f"only the class '{names[0]}'" if names else "no class folders"
        raise InputError(
            f"{folder}: {only}; expected {folder / '<class>' / '<images>'}, at least 2 folders, "
            f"one for each class, or --labels FILE.csv; found {first_ten(content) or 'nothing'}"
        )
    spellings: dict[str, str] = {}
    for name in names:
        if (other := spellings.setdefault(same_name(name), name)) != name:
            raise InputError(f"{folder}: are '{other}' and '{name}' one class? Rename one of them")


def refuse_photos_beside(root: Path, part: str, folders: list[str]) -> None:
    """Raise InputError if photos lie in root or these folders, beside the training part."""
    strange = [f"{name}/" for name in folders if any(map(is_photo, files_inside(root / name, {})))]
    strange += [entry.name for entry in entries(root) if entry.is_file() and is_photo(entry.name)]
    if strange:
        raise InputError(
            f"{root}: {part}/ is the training part, but photos lie beside it: "
            f"{first_ten(strange)}; move them into {part}/ or elsewhere"
        )


def refuse_parts_as_classes(root: Path, names: list[str]) -> None:
    """Raise InputError if two folders hold the same folders: parts of a dataset, not classes."""
    inside = {}
    for name in names:
        folder = root / name
        while len(subfolders(folder)) == 1 == len(entries(folder)):
            folder /= subfolders(folder)[0]
        inside[name] = subfolders(folder)
    for one, other in combinations(names, 2):
        shared = [name for name in inside[other] if name in inside[one]]
        if len(shared) > 1:
            raise InputError(
                f"{root}: {one}/ and {other}/ both hold {first_ten(shared)}: parts of a dataset or "
                "classes? Name the parts training/ and testing/, or put each class's photos into "
                "one folder"
            )


def validation_split(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Bool [n], a test part: `fraction` of each class that has two images or more.

    Raises InputError if that is no image at all.
    """
    draw = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[members[:count]] = True
    if not chosen.any():
        raise InputError("no class has two images: none can be held out; make a folder testing/")
    return chosen


def folder_dataloader(
    root: str | Path,
    batch_size: int,
    num_workers: int = 0,
    frame: Frame = Frame(146, 128, square=True),  # noqa: B008, it is frozen
    val_fraction: float | None = None,
    labels_csv: str | Path | None = None,
    seed: int = 123,
    **options,
) -> ImageFileLoader:
    """A folder's photos; `.run` is described in `smr.data.loader.Loader`.

    Args: val_fraction and labels_csv, see list_folder; the others are those of ImageFileLoader.
    Raises InputError.
    """
    train, test, info = list_folder(root, val_fraction, seed, labels_csv)
    loader = ImageFileLoader(
        train,
        {"test": test},
        IMAGENET_VIEWS,
        frame,
        info,
        num_workers=num_workers,
        batch_size=batch_size,
        seed=seed,
        **options,
    )
    add_duplicates(loader)
    return loader

"""Animal-10N, and any folder of class folders: photos with wrong labels (method 1).

loader = animal_dataloader("./data/Animal-10N", 128, 4)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from smr.console import Console
from smr.data.image_files import entries, first_ten, natural_order, read_images
from smr.data.images import Views
from smr.data.loaders import ImageData, NoisyLoader
from smr.errors import InputError

ANIMALS = (
    *("cat", "lynx", "wolf", "coyote", "cheetah", "jaguar"),
    *("chimpanzee", "orangutan", "hamster", "guinea pig"),
)
# Names of class folders that stand for them.
ANIMAL_FOLDERS = {
    spelling: label
    for label, name in enumerate(ANIMALS)
    for spelling in (str(label), name, name.replace(" ", "_"), name.replace(" ", "-"))
}
ANIMAL_SIZE = 64
# A record of the binaries: big-endian id and label, then the pixels, channel by channel.
RECORD = np.dtype(
    [("id", ">i4"), ("label", ">i4"), ("pixels", "u1", (3, ANIMAL_SIZE, ANIMAL_SIZE))]
)
RECORDS_AT_A_TIME = 2048


# Kept: Clothing1M's constants; the published crop of 64 from 64 pixels does nothing.
ANIMAL_VIEWS = Views((0.6959, 0.6537, 0.6371), (0.3113, 0.3192, 0.3214), flip=True)


def folder_views(size: int) -> Views:
    """ImageNet's constants, as is usual for photos; CIFAR's crops, 4 of 32 pixels."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Views(mean, std, padding=round(size / 8), flip=True)


@dataclass
class Part:
    """The training or the test part as its reader found it.

    Images uint8 [n, size, size, 3], labels int64 [n], `files` relative to the data's root;
    `broken` says of each file that is no image why.
    """

    images: np.ndarray
    labels: np.ndarray
    files: list[str]
    broken: dict[str, str] = field(default_factory=dict)


def read_animal10n(
    root: str | Path, threads: int, skip_broken: bool, console: Console
) -> ImageData:
    """Animal-10N in any of its forms; which one, is found out by looking (method 1).

    Images are in ascending order of label and id, so that each form gives the same.
    Raises InputError.
    """
    root = Path(root)
    if (root / "training").is_dir():
        if has_class_folders(root / "training"):
            form = "class folders in training/ and testing/"
            list_part = partial(list_class_folders, labels=ANIMAL_FOLDERS)
        else:
            form = "files named label_id in training/ and testing/"
            list_part = list_labelled_names
        console.line(f"{root}: {form}")
        train, test = (
            decode_part(root, part, list_part(root, part), ANIMAL_SIZE, threads, console)
            for part in ("training", "testing")
        )
    else:
        names = find_binaries(root)
        form = f"binaries {', '.join(names)} and test_batch.bin"
        console.line(f"{root}: {form}")
        train, test = read_binaries(root, names), read_binaries(root, ["test_batch.bin"])
    notes = [f"form: {form}", *refuse_broken(root, train, test, skip_broken=skip_broken)]
    return checked(root, train, test, list(ANIMALS), notes)


def read_folder(
    root: str | Path,
    size: int,
    val_fraction: float,
    seed: int,
    threads: int,
    skip_broken: bool,
    console: Console,
) -> ImageData:
    """Photos in root/training/<class>/ and, where it is there, root/testing/<class>/.

    Without root/testing, `val_fraction` of each class is held out, chosen by `seed`.
    Raises InputError.
    """
    root = Path(root)
    classes = class_names(root)
    wanted = ["training", "testing"] if (root / "testing").is_dir() else ["training"]
    form = " and ".join(f"{part}/<class>/" for part in wanted)
    console.line(f"{root}: {form}, {len(classes)} classes")
    labels = {name: label for label, name in enumerate(classes)}
    train, *test = (
        decode_part(root, part, list_class_folders(root, part, labels), size, threads, console)
        for part in wanted
    )
    notes = [f"form: {form}", *refuse_broken(root, train, *test, skip_broken=skip_broken)]
    if test:
        return checked(root, train, test[0], classes, notes)
    train, held_out = hold_out(train, val_fraction, seed)
    notes.append(
        f"no testing/: {len(held_out.labels)} training images are held out for the test; their "
        "labels are noisy too, so that test accuracy counts agreement with wrong labels as well"
    )
    data = checked(root, train, held_out, classes, notes)
    data.test_labels_are_noisy = True
    return data


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


@dataclass(frozen=True)
class Listing:
    """Files relative to the data's root, their labels, and of what is out of place, why."""

    files: list[str]
    labels: list[int]
    broken: dict[str, str]


def listing_of(found: list[tuple[int, tuple, str]], broken: dict[str, str]) -> Listing:
    """The Listing of these (label, sort key, name)."""
    found = sorted(found)
    return Listing([name for *_, name in found], [label for label, *_ in found], broken)


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


def list_labelled_names(root: Path, part: str) -> Listing:
    """The files of root/part/<label>_*, in ascending order of label and natural order of the rest.

    Raises InputError where a label is outside the classes.
    """
    found, broken, outside = [], {}, []
    for entry in entries(root / part):
        prefix = re.match("([0-9]+)_", entry.name)
        name = f"{part}/{entry.name}"
        if not entry.is_file():
            broken[name] = "no file"
        elif not prefix:
            broken[name] = "its name does not begin with a label and _"
        elif int(prefix[1]) >= len(ANIMALS):
            outside.append(name)
        else:
            rest = entry.name[prefix.end() :]
            found.append((int(prefix[1]), natural_order(rest), name))
    if outside:
        raise InputError(
            f"{root}: {len(outside)} of {len(outside) + len(found)} files in {part}/ have a label "
            f"outside 0 to {len(ANIMALS) - 1}: {first_ten(outside)}"
        )
    return listing_of(found, broken)


def decode_part(
    root: Path,
    part: str,
    listing: Listing,
    size: int,
    threads: int,
    console: Console,
) -> Part:
    """The images of a listing, decoded or from the cache beside them."""
    cache = root / f"{part}_{size}.cache.npz"
    decoded = read_images(root, listing.files, size, threads, cache, console)
    undecodable = {listing.files[i]: reason for i, reason in decoded.broken.items()}
    return Part(
        decoded.images,
        np.asarray(listing.labels, dtype=np.int64)[decoded.kept],
        [listing.files[i] for i in decoded.kept],
        listing.broken | undecodable,
    )


def refuse_broken(root: Path, *parts: Part, skip_broken: bool) -> list[str]:
    """A note on the files that are left out; an InputError where leaving out is not allowed."""
    broken = [f"{name} ({why})" for part in parts for name, why in part.broken.items()]
    if not broken:
        return []
    found = f"{len(broken)} of {len(broken) + sum(len(part.labels) for part in parts)} files"
    if not skip_broken:
        raise InputError(
            f"{root}: {found} cannot be read as images: {first_ten(broken)}; mend or remove them, "
            "or leave them out with --skip_broken"
        )
    return [f"left out {found}, which cannot be read as images: {', '.join(broken)}"]


def find_binaries(root: Path) -> list[str]:
    """The names of the training binaries. Raises InputError where the data is in no known form."""
    held = [entry.name for entry in entries(root)]
    names = [name for name in held if re.fullmatch(r"data_batch_[0-9]+\.bin", name)]
    names = names or [name for name in held if name == "training_batch.bin"]
    if not names or "test_batch.bin" not in held:
        raise InputError(
            f"{root}: no Animal-10N: expected folders training/ and testing/, or data_batch_1.bin "
            f"and test_batch.bin; found {first_ten(held) or 'nothing'}"
        )
    return names


def read_binaries(root: Path, names: Sequence[str]) -> Part:
    """The records of Animal-10N's binaries in ascending order of label and id (method 1).

    Raises InputError.
    """
    counts = []
    for name in names:
        length = (root / name).stat().st_size
        if not length or length % RECORD.itemsize:
            raise InputError(
                f"{root / name}: {length} bytes, expected a multiple of {RECORD.itemsize}, the "
                "length of a record; fetch it again"
            )
        counts.append(length // RECORD.itemsize)
    total = sum(counts)
    images = np.empty((total, ANIMAL_SIZE, ANIMAL_SIZE, 3), dtype=np.uint8)
    labels, ids = np.empty((2, total), dtype=np.int64)
    files, filled = [], 0
    for name, count in zip(names, counts, strict=True):
        with open(root / name, "rb") as file:
            for start in range(0, count, RECORDS_AT_A_TIME):
                records = np.fromfile(file, RECORD, min(RECORDS_AT_A_TIME, count - start))
                rows = slice(filled, filled + len(records))
                images[rows] = records["pixels"].transpose(0, 2, 3, 1)
                labels[rows], ids[rows] = records["label"], records["id"]
                filled += len(records)
        files += [f"{name}:{record}" for record in range(count)]
    outside = np.flatnonzero((labels < 0) | (labels >= len(ANIMALS)))
    if len(outside):
        shown = first_ten([f"{files[i]} ({labels[i]})" for i in outside])
        raise InputError(
            f"{root}: {len(outside)} of {total} records have a label outside 0 to "
            f"{len(ANIMALS) - 1}: {shown}"
        )
    order = np.lexsort((ids, labels))
    return Part(images[order], labels[order], [files[i] for i in order])


def hold_out(part: Part, fraction: float, seed: int) -> tuple[Part, Part]:
    """(training part, held-out part): `fraction` of each class that has two images or more.

    Raises InputError where that is no image at all.
    """
    draw = np.random.default_rng(seed)
    chosen = np.zeros(len(part.labels), dtype=bool)
    for label in np.unique(part.labels):
        members = draw.permutation(np.flatnonzero(part.labels == label))
        count = max(1, round(fraction * len(members))) if len(members) > 1 else 0
        chosen[members[: min(count, len(members) - 1)]] = True
    if not chosen.any():
        raise InputError("no class has two images: none can be held out; make a folder testing/")
    return select(part, ~chosen), select(part, chosen)


def select(part: Part, chosen: np.ndarray) -> Part:
    """The images of bool `chosen` [n]."""
    files = [part.files[i] for i in np.flatnonzero(chosen)]
    return Part(part.images[chosen], part.labels[chosen], files)


def checked(root: Path, train: Part, test: Part, classes: list[str], notes: list[str]) -> ImageData:
    """Both parts as ImageData, with a note on each empty class. Raises InputError where one part
    has no image."""
    for name, part in (("training", train), ("test", test)):
        if not len(part.labels):
            raise InputError(f"{root}: no {name} image")
    counts = np.bincount(train.labels, minlength=len(classes))
    empty = [classes[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        notes = [*notes, f"classes without a training image: {', '.join(empty)}"]
    return ImageData(
        train.images,
        train.labels,
        test.images,
        test.labels,
        classes,
        files=train.files,
        notes=notes,
    )


class animal_dataloader(NoisyLoader):
    """Animal-10N or a folder of class folders; `.run` is described in `smr.data.loaders.Loader`.

    Args:
        root: the data's folder.
        num_workers: threads that decode images.
        paths: accepted for the family's sake; which images there are, the folder tells.
        dataset: 'animal10N' or 'folder'.
        image_size, val_fraction: of 'folder' alone: the images' side, and the share held out
            where there is no testing/.
        skip_broken: leave out what is no image instead of refusing it.
        log: an open text file for a line about each split, or None.
        device, channels_last: where images are served, and in which memory format.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        num_workers: int,
        paths: Sequence[str] = (),
        dataset: str = "animal10N",
        image_size: int = ANIMAL_SIZE,
        val_fraction: float = 0.1,
        skip_broken: bool = False,
        seed: int = 123,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        log=None,
    ):
        threads, console = num_workers, Console()
        if dataset == "folder":
            views = folder_views(image_size)
            data = read_folder(root, image_size, val_fraction, seed, threads, skip_broken, console)
        else:
            views = ANIMAL_VIEWS
            data = read_animal10n(root, threads, skip_broken, console)
        super().__init__(data, views, batch_size, seed, device, channels_last, log)

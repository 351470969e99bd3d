"""Animal-10N: photos with labels as people gave them.

loader = animal_dataloader("./data/Animal-10N", 128, 4)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from smr.data.augment import Views
from smr.data.decoding import read_files
from smr.data.image_file_dataset import Frame, scaled
from smr.data.image_folder import (
    OWN_PHOTOS,
    Listing,
    class_notes,
    entries,
    files_inside,
    first_ten,
    natural_order,
    refuse_broken,
    sorted_listing,
)
from smr.data.memory_dataset import ImageData, MemoryLoader
from smr.data.noise_file import read_label_list, with_labels
from smr.errors import InputError

ANIMALS = (
    *("cat", "lynx", "wolf", "coyote", "cheetah", "jaguar"),
    *("chimpanzee", "orangutan", "hamster", "guinea pig"),
)
# What stands for them in the names of files and of class folders.
SPELLINGS = {
    spelling: label
    for label, name in enumerate(ANIMALS)
    for spelling in (str(label), name, name.replace(" ", "_"))
}
ANIMAL_SIZE = 64
# A record of the binaries: big-endian id and label, then the pixels, channel by channel.
RECORD = np.dtype(
    [("id", ">i4"), ("label", ">i4"), ("pixels", "u1", (3, ANIMAL_SIZE, ANIMAL_SIZE))]
)
# Kept: Clothing1M's constants; the published crop of 64 from 64 pixels does nothing.
ANIMAL_VIEWS = Views((0.6959, 0.6537, 0.6371), (0.3113, 0.3192, 0.3214), flip=True)


def read_animal10n(root: Path, threads: int, skip_broken: bool) -> ImageData:
    """Animal-10N in any of its forms, which is known by its folders and files.

    Images are in ascending order of label and id, so that each form gives the same.
    Raises InputError.
    """
    if in_folders := (root / "training").is_dir():
        form = "images in training/ and testing/"
        parts = [read_images(root, part, threads) for part in ("training", "testing")]
    else:
        names = find_binaries(root)
        form = f"binaries {', '.join(names)} and test_batch.bin"
        parts = [read_binaries(root, part) for part in (names, ["test_batch.bin"])]
    (images, train), (test_images, test) = parts
    notes = [f"form: {form}", *refuse_broken(root, train, test, skip_broken=skip_broken)]
    notes += class_notes(root, train, test, ANIMALS)
    return ImageData(
        train_images=images,
        train_labels=train.labels,
        test_images=test_images,
        test_labels=test.labels,
        class_names=list(ANIMALS),
        files=train.files,
        notes=notes,
        labels_in_paths=in_folders,
    )


def read_images(root: Path, part: str, threads: int) -> tuple[np.ndarray, Listing]:
    """Images uint8 [n, 64, 64, 3] and Listing of root/part/<label>_* or root/part/<animal>/*.

    By ascending label and natural order of the rest. Raises InputError if a file has no label.
    """
    rows, broken, unlabeled = [], {}, []
    for name in files_inside(root / part, broken, part):
        inside = name.removeprefix(f"{part}/")
        animal, _, rest = inside.partition("/" if "/" in inside else "_")
        label = SPELLINGS.get(animal.casefold())
        if label is None:
            unlabeled.append(name)
        else:
            rows.append((label, natural_order(rest), name))
    refuse_unlabeled(root, unlabeled, len(rows) + len(unlabeled))
    listing = sorted_listing(rows, broken)
    images, listing = read_files(root, listing, read_image, threads, "decoding")
    shape = (-1, ANIMAL_SIZE, ANIMAL_SIZE, 3)
    return np.array(images, dtype=np.uint8).reshape(shape), listing


def read_image(path: Path) -> np.ndarray:
    """uint8 [64, 64, 3]. Raises whatever Pillow raises."""
    return scaled(path, Frame(ANIMAL_SIZE, ANIMAL_SIZE, square=True)).numpy()


def refuse_unlabeled(root: Path, unlabeled: list[str], count: int) -> None:
    """Raise InputError if any of `count` images has no label of an animal."""
    if unlabeled:
        raise InputError(
            f"{root}: {len(unlabeled)} of {count} images have no animal's name and no label 0 to "
            f"{len(ANIMALS) - 1}: {first_ten(unlabeled)}; rename or remove them; {OWN_PHOTOS}"
        )


def find_binaries(root: Path) -> list[str]:
    """The names of the training binaries. Raises InputError where the data is in no known form."""
    content = [entry.name for entry in entries(root)]
    names = [name for name in content if re.fullmatch(r"data_batch_[0-9]+\.bin", name)]
    names = names or [name for name in content if name == "training_batch.bin"]
    if not names or "test_batch.bin" not in content:
        raise InputError(
            f"{root}: no Animal-10N: expected folders training/ and testing/, or data_batch_1.bin "
            f"and test_batch.bin; found {first_ten(content) or 'nothing'}; {OWN_PHOTOS}"
        )
    return names


def read_binaries(root: Path, names: Sequence[str]) -> tuple[np.ndarray, Listing]:
    """Images uint8 [n, 64, 64, 3] and Listing of binaries, by ascending label and id.

    Raises InputError.
    """
    parts = [np.fromfile(root / name, RECORD) for name in names]
    files = []
    for name, part in zip(names, parts, strict=True):
        length = (root / name).stat().st_size
        if not length or length % RECORD.itemsize:
            raise InputError(
                f"{root / name}: {length} bytes, expected a multiple of {RECORD.itemsize}, the "
                "length of a record; fetch it again"
            )
        files += [f"{name}:{i}" for i in range(len(part))]
    records = np.concatenate(parts)
    labels = records["label"].astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(ANIMALS)))
    refuse_unlabeled(root, [f"{files[i]} ({labels[i]})" for i in outside], len(labels))
    order = np.lexsort((records["id"], labels))
    images = np.ascontiguousarray(records["pixels"][order].transpose(0, 2, 3, 1))
    return images, Listing([files[i] for i in order], labels[order])


class animal_dataloader(MemoryLoader):
    """Animal-10N; `.run` is described in `smr.data.loader.Loader`.

    Args:
        root: the data's folder.
        num_workers: threads that decode images.
        paths: not used; an argument of DivideMix's loaders.
        skip_broken: exclude files that are no images instead of refusing them.
        noise_file: a file of labels instead of the dataset's own, or "".
        options: device, channels_last and log, as of `Loader`.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        num_workers: int,
        paths: Sequence[str] = (),
        skip_broken: bool = False,
        seed: int = 123,
        noise_file: str | Path = "",
        **options,
    ):
        data = read_animal10n(Path(root), num_workers, skip_broken)
        if noise_file:
            labels = read_label_list(noise_file, len(data.train_labels), len(ANIMALS))
            data = replace(with_labels(data, labels), labels_in_paths=False)
        super().__init__(data, ANIMAL_VIEWS, batch_size, seed, **options)

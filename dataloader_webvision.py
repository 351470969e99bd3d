"""WebVision 1.0's first classes, and ImageNet's photos of the same.

loader = webvision_dataloader("./data/WebVision1.0", "./data/imagenet/val", 50, 32, 8)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from smr.data.decoding import check_images as checked
from smr.data.image_file_dataset import (
    IMAGENET_VIEWS,
    Frame,
    ImageFileLoader,
    ImageFiles,
    scaled,
)
from smr.data.image_folder import (
    Listing,
    class_notes,
    entries,
    first_ten,
    names_and_labels,
    read_lines,
    refuse_broken,
)
from smr.data.loader import DatasetInfo
from smr.data.noise_file import relabeled
from smr.errors import InputError

WHERE = (
    "WebVision 1.0 is on the dataset page (2017) of ETH Zurich's WebVision: unpack info/, the "
    "validation images and google_resized_256.tar, the resized Google images that the papers used"
)
# Of the resized archive, which the papers used, and of the original one.
VALIDATION_FOLDERS = ("val_images_256", "val_images")


def listed(path: Path, num_class: int, prefix: str = "") -> Listing:
    """The photos of a list whose label is below `num_class`, in its order. Raises InputError."""
    rows = [(name, label) for name, label in names_and_labels(path, WHERE) if label < num_class]
    files, labels = [prefix + name for name, _ in rows], [label for _, label in rows]
    if absent := sorted(set(range(num_class)) - set(labels)):
        raise InputError(
            f"{path}: lists no photo of class {absent[0]}; --num_class {num_class} needs "
            f"{len(absent)} classes more"
        )
    return Listing(files, np.array(labels, dtype=np.int64))


def read_webvision(root: Path, num_class: int) -> tuple[Listing, Listing]:
    """The training and the validation photos, relative to `root`. Raises InputError."""
    train = listed(root / "info" / "train_filelist_google.txt", num_class)
    folder = next((name for name in VALIDATION_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise InputError(f"{root / VALIDATION_FOLDERS[0]}: there is no such folder; {WHERE}")
    return train, listed(root / "info" / "val_filelist.txt", num_class, f"{folder}/")


def read_classes(root: Path, num_class: int) -> list[tuple[str, str]]:
    """(synset, name) of each class, with its synset where another has the name.

    Raises InputError.
    """
    path = root / "info" / "synsets.txt"
    lines = [line.split(maxsplit=1) for line in read_lines(path, WHERE) if line.strip()]
    if len(lines) < num_class:
        raise InputError(f"{path}: {len(lines)} classes, expected {num_class}; {WHERE}")
    classes = [
        (synset, names[0].split(",")[0] if names else synset)
        for synset, *names in lines[:num_class]
    ]
    times = Counter(name for _, name in classes)
    return [
        (synset, name if times[name] == 1 else f"{name} ({synset})") for synset, name in classes
    ]


def read_imagenet(root: Path, synsets: list[str]) -> Listing:
    """ImageNet's photos of these classes, in folders named by synset or by class number.

    Raises InputError.
    """
    present = {entry.name for entry in entries(root)}
    numbers = [str(label) for label in range(len(synsets))]
    folders = synsets if synsets[0] in present else numbers
    expected = (
        "expected ImageNet's validation images (ILSVRC2012) in folders named by synset, such as "
        f"{synsets[0]}, or by class number, 0, 1, …"
    )
    if absent := [name for name in folders if name not in present]:
        raise InputError(f"{root}: lacks the class folders {first_ten(absent)}; {expected}")
    rows = [
        (f"{folder}/{entry.name}", label)
        for label, folder in enumerate(folders)
        for entry in entries(root / folder)
    ]
    if not rows:
        raise InputError(f"{root}: the class folders are empty; {expected}")
    return Listing([name for name, _ in rows], np.array([label for _, label in rows]))


class webvision_dataloader(ImageFileLoader):
    """Mini WebVision; `.run` is described in `smr.data.loader.Loader`.

    Args:
        root, imagenet: the data's folders; without `imagenet`, "", there is one test set.
        num_class: how many of WebVision's classes, the first ones.
        num_workers: threads that decode.
        frame: how photos become images.
        check_images: decode all photos first, instead of reading their headers alone.
        noise_file: a file of labels instead of the dataset's own, or "".
    The others are those of ImageFileLoader.
    """

    def __init__(
        self,
        root: str | Path,
        imagenet: str | Path,
        num_class: int,
        batch_size: int,
        num_workers: int,
        frame: Frame = Frame(320, 299),  # noqa: B008, it is frozen
        check_images: bool = False,
        noise_file: str | Path = "",
        skip_broken: bool = False,
        seed: int = 123,
        **options,
    ):
        decode = partial(scaled, frame=frame) if check_images else None
        check = partial(checked, threads=num_workers, decode=decode)
        root, imagenet, tests = Path(root), imagenet and Path(imagenet), {}
        synsets, names = zip(*read_classes(root, num_class), strict=True)
        train, val = (check(root, part) for part in read_webvision(root, num_class))
        notes = refuse_broken(root, train, val, skip_broken=skip_broken)
        train, dropped = relabeled(train, noise_file, num_class)
        notes += train.notes + val.notes + class_notes(root, train, val, names)
        tests["test"] = ImageFiles(root, val.files, frame), val.labels
        if imagenet:
            photos = check(imagenet, read_imagenet(imagenet, synsets))
            notes += refuse_broken(imagenet, photos, skip_broken=skip_broken) + photos.notes
            tests["imagenet"] = ImageFiles(imagenet, photos.files, frame), photos.labels
        else:
            notes.append("no ImageNet: WebVision's validation images are the only test set")
        super().__init__(
            ImageFiles(root, train.files, frame),
            train.labels,
            tests,
            IMAGENET_VIEWS,
            DatasetInfo(list(names), data_notes=notes, dropped_images=dropped),
            batch_size=batch_size,
            seed=seed,
            workers=num_workers,
            skip_broken=skip_broken,
            **options,
        )

"""WebVision 1.0's first classes, and ImageNet's photos of the same.

loader = webvision_dataloader("./data/WebVision1.0", "./data/imagenet/val", 50, 32, 8)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

from pathlib import Path

import numpy as np

from smr.data.image_file_dataset import IMAGENET_VIEWS, Frame, ImageFileLoader
from smr.data.image_folder import Listing, entries, first_ten, names_and_labels, read_lines
from smr.data.loader import DatasetInfo
from smr.errors import InputError

WHERE = (
    "WebVision 1.0 is on the dataset page (2017) of ETH Zurich's WebVision: unpack info/, the "
    "validation images and google_resized_256.tar, the resized Google images that the papers used"
)
# Of the resized archive, which the papers used, and of the original one.
VALIDATION_FOLDERS = ("val_images_256", "val_images")


def listed(root: Path, name: str, num_class: int, prefix: str = "") -> Listing:
    """The photos of a list whose label is below `num_class`, in its order. Raises InputError."""
    path = root / "info" / name
    rows = [(name, label) for name, label in names_and_labels(path, WHERE) if label < num_class]
    labels = np.array([label for _, label in rows], dtype=np.int64)
    if absent := sorted(set(range(num_class)) - set(labels.tolist())):
        raise InputError(
            f"{path}: lists no photo of {len(absent)} classes, such as {absent[0]}, of --num_class "
            f"{num_class}"
        )
    return Listing(root, [prefix + name for name, _ in rows], labels)


def read_webvision(root: Path, num_class: int) -> tuple[Listing, Listing]:
    """The training and the validation photos, relative to `root`. Raises InputError."""
    train = listed(root, "train_filelist_google.txt", num_class)
    folder = next((name for name in VALIDATION_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise InputError(f"{root / VALIDATION_FOLDERS[0]}: there is no such folder; {WHERE}")
    return train, listed(root, "val_filelist.txt", num_class, f"{folder}/")


def read_classes(root: Path, num_class: int) -> list[tuple[str, str]]:
    """(synset, name) of each class, with its synset where another has the name.

    Raises InputError.
    """
    path = root / "info" / "synsets.txt"
    lines = [line.split(maxsplit=1) for line in read_lines(path, WHERE)][:num_class]
    if len(lines) < num_class:
        raise InputError(f"{path}: {len(lines)} classes, expected {num_class}; {WHERE}")
    synsets, names = [line[0] for line in lines], [line[-1].split(",")[0] for line in lines]
    return [
        (synset, name if names.count(name) == 1 else f"{name} ({synset})")
        for synset, name in zip(synsets, names, strict=True)
    ]


def read_imagenet(root: Path, synsets: list[str]) -> Listing:
    """ImageNet's photos of these classes, in folders named by synset or by class number.

    Raises InputError.
    """
    present = {entry.name for entry in entries(root)}
    folders = synsets if synsets[0] in present else [str(label) for label in range(len(synsets))]
    photos = [entries(root / folder) if folder in present else [] for folder in folders]
    if absent := [folder for folder, inside in zip(folders, photos, strict=True) if not inside]:
        raise InputError(
            f"{root}: no photo in class folders {first_ten(absent)}; expected ImageNet's "
            "validation images (ILSVRC2012) in folders named by synset, such as "
            f"{synsets[0]}, or by class number, 0, 1, …"
        )
    files = [Path(entry).relative_to(root).as_posix() for inside in photos for entry in inside]
    labels = np.repeat(np.arange(len(photos)), [len(inside) for inside in photos])
    return Listing(root, files, labels)


class webvision_dataloader(ImageFileLoader):
    """Mini WebVision; `.run` is described in `smr.data.loader.Loader`.

    Args: root, imagenet, the data's folders; without `imagenet`, "", there is one test set;
    num_class, how many of WebVision's classes, the first ones. The others are those of
    ImageFileLoader.
    """

    def __init__(
        self,
        root: str | Path,
        imagenet: str | Path,
        num_class: int,
        batch_size: int,
        num_workers: int,
        frame: Frame = Frame(320, 299),  # noqa: B008, it is frozen
        **options,
    ):
        root, imagenet = Path(root), imagenet and Path(imagenet)
        synsets, names = zip(*read_classes(root, num_class), strict=True)
        info = DatasetInfo(list(names))
        train, val = read_webvision(root, num_class)
        tests = {"test": val}
        if imagenet:
            tests["imagenet"] = read_imagenet(imagenet, synsets)
        else:
            note = "no ImageNet: WebVision's validation images are the only test set"
            info.data_notes.append(note)
        options |= {"batch_size": batch_size, "num_workers": num_workers}
        super().__init__(train, tests, IMAGENET_VIEWS, frame, info, **options)

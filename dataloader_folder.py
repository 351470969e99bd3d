"""Anyone's own photos: a folder of class folders (method 1).

loader = folder_dataloader("./photos", 32, 4, Frame(146, 128, square=True), memory=2**34)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from smr.data.decoding import checked_images, read_images
from smr.data.image_file_dataset import IMAGENET_VIEWS, Frame, Photos, StreamLoader, scaled
from smr.data.image_folder import (
    TESTING,
    TRAINING,
    Listing,
    class_names,
    class_notes,
    find_part,
    held_out,
    list_class_folders,
    refuse_broken,
)
from smr.data.loader import ImageData, NoisyLoader
from smr.logging.console import Terminal

# Share of each class that is the test set where there is no other.
VAL_FRACTION = 0.1
# Up to this side images may be held in memory, in a quarter of it at most.
SMALL, SHARE_OF_MEMORY = 96, 1 / 4


@dataclass(frozen=True)
class PhotoFolder:
    """What `list_folder` found: both parts' photos, relative to `root`, and notes for the log."""

    root: Path
    class_names: list[str]
    train: Listing
    test: Listing
    test_labels_are_noisy: bool
    notes: list[str]

    def left_out(self, skip_broken: bool) -> list[str]:
        """Notes on files that are no images, and on the classes. Raises InputError."""
        left_out = refuse_broken(self.root, self.train, self.test, skip_broken=skip_broken)
        return left_out + class_notes(self.root, self.train, self.test, self.class_names)


def list_folder(
    root: Path,
    val_fraction: float | None,
    seed: int,
    look: Callable[[Listing], Listing] = lambda listing: listing,
) -> PhotoFolder:
    """The photos of root/training/<class>/ or root/<class>/, and of root/testing/<class>/.

    Without the latter `val_fraction` of each class, None for the usual one, is held out by `seed`.
    Args: look gives the Listing of those files that are images. Raises InputError.
    """
    classes = class_names(root)
    labels = {name: label for label, name in enumerate(classes)}
    part = find_part(root, TRAINING)
    test_part = find_part(root, TESTING) if part else None
    parts = [part or ""] + ([test_part] if test_part else [])
    places = " and ".join(f"{part}/<class>/".lstrip("/") for part in parts)
    notes = [f"form: {places}, {len(classes)} classes"]
    train, *test = (look(list_class_folders(root, part, labels)) for part in parts)
    if test:
        if val_fraction is not None:
            notes.append(f"--val_fraction holds nothing out: {test_part}/ has the test images")
        return PhotoFolder(root, classes, train, test[0], False, notes)
    chosen = held_out(train.labels, val_fraction or VAL_FRACTION, seed)
    notes.append(
        f"no testing/: {chosen.sum()} training images are held out for the test, and not judged "
        "(another --seed holds out others); their labels are noisy too, so that test accuracy "
        "counts agreement with wrong labels as well"
    )
    test = replace(train.only(chosen), broken={})
    return PhotoFolder(root, classes, train.only(~chosen), test, True, notes)


def held_in_memory(found: PhotoFolder, frame: Frame, threads: int, skip_broken: bool) -> ImageData:
    """The photos as they are before a window is cut, `frame` a square one. Raises InputError."""
    read = partial(scaled, frame=frame)
    (train_images, train), (test_images, test) = (
        read_images(found.root, part, frame.resize, threads, Terminal(), read)
        for part in (found.train, found.test)
    )
    notes = found.notes + replace(found, train=train, test=test).left_out(skip_broken)
    return ImageData(
        *(train_images, train.labels, test_images, test.labels, found.class_names),
        files=train.files,
        test_labels_are_noisy=found.test_labels_are_noisy,
        notes=notes,
    )


def folder_dataloader(
    root: str | Path,
    batch_size: int,
    num_workers: int,
    frame: Frame,
    memory: int,
    val_fraction: float | None = None,
    check_images: bool = False,
    skip_broken: bool = False,
    seed: int = 123,
    **options,
) -> NoisyLoader | StreamLoader:
    """A folder's photos; `.run` is described in `smr.data.loader.Loader`.

    Small ones stay in memory where `memory`, in bytes, is plenty, else they stream. The views are
    the same: windows of the middle square. Args: frame, square; check_images and num_workers, see
    webvision_dataloader; val_fraction, see list_folder. Raises InputError.
    """
    root = Path(root)
    look = partial(checked_images, root, whole=check_images, threads=num_workers)
    found = list_folder(root, val_fraction, seed, look)
    count = len(found.train.files) + len(found.test.files)
    if frame.crop <= SMALL and 3 * count * frame.resize**2 <= SHARE_OF_MEMORY * memory:
        found.notes.append("the photos are held in memory")
        data = held_in_memory(found, frame, num_workers, skip_broken)
        views = replace(IMAGENET_VIEWS, window=frame.crop)
        loader = NoisyLoader(data, views, batch_size, seed, **options)
    else:
        found.notes.append("the photos are decoded from disk as they are needed")
        train, test = (Photos(root, part.files, frame) for part in (found.train, found.test))
        loader = StreamLoader(
            *(train, found.train.labels, {"test": (test, found.test.labels)}, IMAGENET_VIEWS),
            *(found.class_names, batch_size, seed),
            workers=num_workers,
            skip_broken=skip_broken,
            facts={
                "data_notes": found.notes + found.left_out(skip_broken),
                "test_labels_are_noisy": found.test_labels_are_noisy,
            },
            **options,
        )
    loader.facts["labels_in_paths"] = True
    return loader

"""Anyone's own photos: a folder of class folders, or images with a CSV file of labels.

loader = folder_dataloader("./photos", 32, num_workers=4, frame=Frame(146, 128, square=True))
for images, noisy_labels, index in loader.run("warmup"): ...
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from smr.data.decoding import check_images as checked
from smr.data.duplicates import duplicate_notes, find_duplicates
from smr.data.folder_parts import find_parts
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
    list_class_folders,
    refuse_broken,
    validation_split,
)
from smr.data.label_table import read_label_table
from smr.data.loader import DatasetInfo

# Share of each class that is the test set if there is no other.
VAL_FRACTION = 0.1


@dataclass(frozen=True)
class PhotoFolder:
    """The photos of both parts, relative to `root`, their classes and notes for the log."""

    root: Path
    class_names: list[str]
    train: Listing
    test: Listing
    test_labels_are_noisy: bool
    notes: list[str]
    labels_in_paths: bool = True


def list_folder(
    root: str | Path,
    val_fraction: float | None = None,
    seed: int = 123,
    labels_csv: str | Path | None = None,
    check=lambda listing: listing,
) -> PhotoFolder:
    """The photos of root/training/<class>/ or root/<class>/, and of root/testing/<class>/.

    With labels_csv those of the CSV file, anywhere in root. Without a test part `val_fraction` of
    each class, by default VAL_FRACTION, is held out by `seed`. Args: check, returns the Listing of
    those files that are images. Opens no image. Raises InputError.
    """
    root, test = Path(root), None
    if labels_csv:
        listing, classes = read_label_table(Path(labels_csv), root)
        train, notes = check(listing), []
    else:
        parts = find_parts(root)
        classes = parts.class_names
        labels = {name: label for label, name in enumerate(classes)}
        places = [parts.training] + ([parts.testing] if parts.testing else [])
        shown = " and ".join(f"{part}/<class>/".lstrip("/") for part in places)
        notes = [f"form: {shown}, {len(classes)} classes", *parts.notes]
        train, *others = (check(list_class_folders(root, part, labels)) for part in places)
        if others:
            (test,) = others
            if val_fraction is not None:
                notes.append(f"--val_fraction is not used: {parts.testing}/ has the test images")
    if from_training := test is None:
        chosen = validation_split(train.labels, val_fraction or VAL_FRACTION, seed)
        notes.append(
            f"no testing/: {chosen.sum()} training images are held out for the test and get no "
            "label-quality score (another --seed holds out others); their labels are noisy too: "
            "test accuracy is agreement with noisy labels"
        )
        test, train = replace(train.only(chosen), broken={}, notes=[]), train.only(~chosen)
    notes += train.notes + test.notes
    return PhotoFolder(root, classes, train, test, from_training, notes, not labels_csv)


def folder_dataloader(
    root: str | Path,
    batch_size: int,
    num_workers: int = 0,
    frame: Frame = Frame(146, 128, square=True),  # noqa: B008, it is frozen
    val_fraction: float | None = None,
    labels_csv: str | Path | None = None,
    check_images: bool = False,
    skip_broken: bool = False,
    seed: int = 123,
    **options,
) -> ImageFileLoader:
    """A folder's photos; `.run` is described in `smr.data.loader.Loader`.

    Args: num_workers, threads that decode; frame, how photos become images; val_fraction and
    labels_csv, see list_folder; check_images, decode all photos first instead of reading their
    headers alone. The others are those of ImageFileLoader. Raises InputError.
    """
    decode = partial(scaled, frame=frame) if check_images else None
    check = partial(checked, Path(root), threads=num_workers, decode=decode)
    folder = list_folder(root, val_fraction, seed, labels_csv, check)
    root, train, test, classes = folder.root, folder.train, folder.test, folder.class_names
    notes = folder.notes + refuse_broken(root, train, test, skip_broken=skip_broken)
    duplicates = find_duplicates(root, train, test, classes)
    info = DatasetInfo(
        classes,
        data_notes=notes + class_notes(root, train, test, classes) + duplicate_notes(duplicates),
        test_labels_are_noisy=folder.test_labels_are_noisy,
        labels_in_paths=folder.labels_in_paths,
        duplicates=duplicates,
    )
    return ImageFileLoader(
        ImageFiles(root, train.files, frame),
        train.labels,
        {"test": (ImageFiles(root, test.files, frame), test.labels)},
        IMAGENET_VIEWS,
        info,
        batch_size=batch_size,
        seed=seed,
        workers=num_workers,
        skip_broken=skip_broken,
        **options,
    )

"""Anyone's own photos: a folder of class folders, or images with a CSV file of labels.

loader = folder_dataloader("./photos", 32, num_workers=4, frame=Frame(146, 128, square=True))
for images, noisy_labels, index in loader.run("warmup"): ...
"""

from dataclasses import dataclass, replace
from pathlib import Path

from smr.data.duplicates import add_duplicates
from smr.data.folder_parts import find_parts
from smr.data.image_file_dataset import IMAGENET_VIEWS, Frame, ImageFileLoader
from smr.data.image_folder import Listing, list_class_folders, validation_split
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
) -> PhotoFolder:
    """The photos of root/training/<class>/ or root/<class>/, and of root/testing/<class>/.

    With labels_csv those of the CSV file, anywhere in root. Without a test part `val_fraction` of
    each class, by default VAL_FRACTION, is held out by `seed`. Opens no image. Raises InputError.
    """
    root, test, notes = Path(root), None, []
    if labels_csv:
        train, classes, notes = read_label_table(Path(labels_csv), root)
    else:
        parts = find_parts(root)
        classes = parts.class_names
        labels = {name: label for label, name in enumerate(classes)}
        form = f"{parts.training}/<class>/".lstrip("/")
        train = list_class_folders(root, parts.training, labels)
        if parts.testing:
            form += f" and {parts.testing}/<class>/"
            test = list_class_folders(root, parts.testing, labels)
        notes = [f"form: {form}, {len(classes)} classes", *parts.notes]
        if test and val_fraction is not None:
            notes.append(f"--val_fraction is not used: {parts.testing}/ has the test images")
    if from_training := test is None:
        chosen = validation_split(train.labels, val_fraction or VAL_FRACTION, seed)
        notes.append(
            f"no testing/: {chosen.sum()} training images are held out for the test and get no "
            "label-quality score (another --seed holds out others); their labels are noisy too: "
            "test accuracy is agreement with noisy labels"
        )
        test, train = replace(train.only(chosen), broken={}, notes=[]), train.only(~chosen)
    return PhotoFolder(root, classes, train, test, from_training, notes, not labels_csv)


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
    folder = list_folder(root, val_fraction, seed, labels_csv)
    info = DatasetInfo(
        folder.class_names,
        data_notes=folder.notes,
        test_labels_are_noisy=folder.test_labels_are_noisy,
        labels_in_paths=folder.labels_in_paths,
    )
    loader = ImageFileLoader(
        folder.root,
        folder.train,
        {"test": (folder.root, folder.test)},
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

"""A run's curves and figures in TensorBoard; those of a resumed run replace what it does again."""

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from smr.config import Config
from smr.data.loader import Loader
from smr.evaluate import Test
from smr.logging import figures
from smr.methods import TrainedEpoch
from smr.metrics import mean_of_networks

# TensorBoard's table of runs shows five columns at first: the first of these that a run has.
TABLE_COLUMNS = ("dataset", "method", "noise_mode", "r", "network", "image_size", "seed")
TABLE_METRICS = ("test/best_accuracy", "test/accuracy", "test/mean_of_last_ten", "test/f1")
# The first charts of TensorBoard's page, which sorts by tag; `net*` is the mean of both networks.
OVERVIEW = {
    "overview/accuracy": "test/accuracy",
    "overview/best_accuracy": "test/best_accuracy",
    "overview/auc": "split/net*/auc",
    "overview/precision": "split/net*/precision",
}
# Charts of both networks, on TensorBoard's page of custom scalars.
CHARTS = {
    "test": ("accuracy",),
    "split": ("auc", "precision", "recall", "labeled"),
    "train": ("loss", "loss_x", "loss_u", "refined_label_accuracy", "pseudo_label_accuracy"),
}


def open_writer(folder: Path, first_epoch: int) -> SummaryWriter:
    """A writer of a new event file, before which TensorBoard drops the epochs from the first on."""
    writer = SummaryWriter(str(folder), purge_step=first_epoch)
    charts = {
        name: ["Multiline", [f"^{part}/(net[12]/)?{name}$"]]
        for part, names in CHARTS.items()
        for name in names
    }
    writer.add_custom_scalars({"both networks": charts})
    return writer


def add_curves(writer: SummaryWriter, row: dict) -> None:
    """Add a row of metrics.jsonl without memory, which is no curve, and OVERVIEW's means."""
    means = {tag: mean_of_networks(row, name) for tag, name in OVERVIEW.items()}
    for tag, value in (row | means).items():
        if value is not None and "/" in tag and not tag.startswith("memory/"):
            writer.add_scalar(tag, value, row["epoch"])


def add_figures(
    writer: SummaryWriter, trained: TrainedEpoch, tests: dict[str, Test], data: Loader
) -> None:
    """Add the confusion matrices and, of each network that split the data, the scaled losses.

    Losses of clean and noisy labels are separate if the true labels are known.
    """
    epoch, pictures = trained.epoch, {}
    for name, test in tests.items():
        title = f"Confusion, {name} images, % of each label"
        pictures[f"{name}/confusion"] = figures.matrix(
            test.confusion, data.class_names, title, "label", "predicted"
        )
    for k, split in enumerate(trained.splits, start=1):
        is_clean = None if data.is_clean is None else data.is_clean[split.index]
        groups = {"losses": split.losses}
        if is_clean is not None:
            groups = {"losses_clean": split.losses[is_clean]}
            groups["losses_noisy"] = split.losses[~is_clean]
        for name, losses in groups.items():
            if len(losses):
                writer.add_histogram(f"split/net{k}/{name}", losses, epoch, bins=figures.BINS)
        title = f"Epoch {epoch}, network {k}: losses and GMM"
        pictures[f"split/net{k}/mixture"] = figures.loss_histogram(split, is_clean, title)
    add_pictures(writer, pictures, epoch)


def add_pictures(writer: SummaryWriter, pictures: dict[str, np.ndarray], epoch: int) -> None:
    """Add pictures uint8 [h, w, 3] by tag."""
    for tag, picture in pictures.items():
        writer.add_image(tag, picture, epoch, dataformats="HWC")


def add_run(writer: SummaryWriter, config: Config) -> None:
    """Add a finished run to the table of runs."""
    names = [name for name in TABLE_COLUMNS if getattr(config, name, None) not in (None, "")]
    columns = {name: getattr(config, name) for name in names[:5]}
    # Not `add_hparams`: it opens a second event file, and TensorBoard, which follows one file at a
    # time, would miss the rest of the first.
    for summary in hparams(columns, dict.fromkeys(TABLE_METRICS, 0.0)):
        writer.file_writer.add_summary(summary)

"""A run's curves and figures in TensorBoard; those of a resumed run replace what it does again."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from smr.config import Config
from smr.data.loader import Loader
from smr.evaluate import Test
from smr.logging import figures
from smr.methods import TrainedEpoch

# Epochs between figures, which are read less often than curves and cost more.
FIGURE_PERIOD = 10
# TensorBoard's table of runs shows five columns at first: the first of these that a run has.
TABLE_COLUMNS = ("dataset", "method", "noise_mode", "r", "network", "image_size", "seed")
TABLE_METRICS = ("test/best_accuracy", "test/accuracy", "test/mean_of_last_ten", "test/f1")
# The first charts of TensorBoard's page, which sorts by tag: the mean of these metrics.
OVERVIEW = {
    "overview/accuracy": ("test/accuracy",),
    "overview/best_accuracy": ("test/best_accuracy",),
    "overview/auc": ("split/net1/auc", "split/net2/auc"),
    "overview/precision": ("split/net1/precision", "split/net2/precision"),
}
# Charts of both networks, on TensorBoard's page of custom scalars.
CHARTS = {
    "test": ("accuracy",),
    "split": ("auc", "precision", "recall", "labeled"),
    "train": ("loss", "loss_x", "loss_u", "refined_label_accuracy", "pseudo_label_accuracy"),
}


class Board:
    """A run's event files. Every method but `close` raises OSError if the disk is full.

    Args: rows_written, how many rows of metrics.jsonl older event files hold.
    """

    def __init__(self, folder: Path, rows_written: int):
        self.folder, self.rows_written = folder, rows_written
        self.writer: SummaryWriter | None = None

    @contextmanager
    def writing(self) -> Iterator[SummaryWriter]:
        """The writer; a new one after one that failed, which would fail forever."""
        writer = self.writer
        if writer is None:
            # TensorBoard drops the steps from purge_step on that older event files hold.
            writer = SummaryWriter(str(self.folder), purge_step=self.rows_written)
            charts = {
                name: ["Multiline", [f"^{part}/(net[12]/)?{name}$"]]
                for part, names in CHARTS.items()
                for name in names
            }
            writer.add_custom_scalars({"both networks": charts})
        self.writer = None
        yield writer
        writer.flush()
        self.writer = writer

    def add_epoch(
        self,
        rows: list[dict],
        trained: TrainedEpoch,
        tests: dict[str, Test],
        last: int,
        data: Loader,
    ) -> None:
        """Add the rows of metrics.jsonl not written yet and, every tenth epoch, its figures."""
        epoch, is_clean = trained.epoch, data.is_clean
        with self.writing() as writer:
            for row in rows[self.rows_written :]:
                for tag, value in curves(row).items():
                    writer.add_scalar(tag, value, row["epoch"])
            if epoch % FIGURE_PERIOD == 0 or epoch == last:
                add_histograms(writer, trained, is_clean)
                pictures = figures.epoch_figures(trained, tests, is_clean, data.class_names)
                add_images(writer, pictures, epoch)
        self.rows_written = len(rows)

    def finish(self, config: Config, pictures: dict[str, np.ndarray]) -> None:
        """Add the run to the table of runs, and pictures uint8 [h, w, 3] at the last epoch."""
        names = [name for name in TABLE_COLUMNS if getattr(config, name, None) not in (None, "")]
        columns = {name: getattr(config, name) for name in names[:5]}
        with self.writing() as writer:
            # Not `add_hparams`: it opens a second event file, and TensorBoard, which follows
            # one file at a time, would miss the rest of the first.
            for summary in hparams(columns, dict.fromkeys(TABLE_METRICS, 0.0)):
                writer.file_writer.add_summary(summary)
            add_images(writer, pictures, self.rows_written - 1)

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()


def curves(row: dict) -> dict[str, float]:
    """A row of metrics.jsonl by tag, without memory, which is no curve; and OVERVIEW's means."""
    values = {tag: value for tag, value in row.items() if not tag.startswith("memory/")}
    for tag, metrics in OVERVIEW.items():
        if present := [row[metric] for metric in metrics if metric in row]:
            values[tag] = sum(present) / len(present)
    del values["epoch"], values["kind"]
    return values


def add_histograms(
    writer: SummaryWriter, trained: TrainedEpoch, is_clean: np.ndarray | None
) -> None:
    """Each network's scaled losses, those of clean and noisy labels separately if known."""
    for k, split in enumerate(trained.splits, start=1):
        groups = {"losses": split.losses}
        if is_clean is not None:
            clean = is_clean[split.index]
            groups = {"losses_clean": split.losses[clean], "losses_noisy": split.losses[~clean]}
        for name, losses in groups.items():
            if len(losses):
                tag = f"split/net{k}/{name}"
                writer.add_histogram(tag, losses, trained.epoch, bins=figures.BINS)


def add_images(writer: SummaryWriter, pictures: dict[str, np.ndarray], epoch: int) -> None:
    """Add pictures uint8 [h, w, 3] by tag."""
    for tag, picture in pictures.items():
        writer.add_image(tag, picture, epoch, dataformats="HWC")

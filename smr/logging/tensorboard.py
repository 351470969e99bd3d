"""A run's curves and figures in TensorBoard; those of a resumed run replace what it does again."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

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
SPLIT_CHARTS = ("auc", "precision", "recall", "labeled")
TRAIN_CHARTS = ("loss", "loss_x", "loss_u", "refined_label_accuracy", "pseudo_label_accuracy")
CHARTS = {"accuracy": ["test/accuracy", "test/net1/accuracy", "test/net2/accuracy"]}
CHARTS |= {name: [f"split/net{k}/{name}" for k in (1, 2)] for name in SPLIT_CHARTS}
CHARTS |= {name: [f"train/net{k}/{name}" for k in (1, 2)] for name in TRAIN_CHARTS}


class Board:
    """A run's event files. Every method but `close` raises OSError if the disk is full.

    Args: rows_written, how many rows of metrics.jsonl older event files hold.
    """

    def __init__(self, folder: Path, rows_written: int):
        self.folder = folder
        self.rows_written = rows_written
        self.writer: SummaryWriter | None = None

    @contextmanager
    def writing(self) -> Iterator[SummaryWriter]:
        """The writer; a new one after one that failed, which would fail forever."""
        writer = self.writer
        if writer is None:
            # TensorBoard drops the steps from purge_step on that older event files hold.
            writer = SummaryWriter(str(self.folder), purge_step=self.rows_written)
            charts = {
                name: ["Multiline", [f"^{tag}$" for tag in tags]] for name, tags in CHARTS.items()
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
        last_epoch: int,
        loader: Loader,
    ) -> None:
        """Add the rows of metrics.jsonl not written yet and, every tenth epoch, its figures."""
        with self.writing() as writer:
            for row in rows[self.rows_written :]:
                for tag, value in curves(row).items():
                    writer.add_scalar(tag, value, row["epoch"])
            if trained.epoch % FIGURE_PERIOD == 0 or trained.epoch == last_epoch:
                add_histograms(writer, trained, loader.is_clean)
                add_images(
                    writer,
                    figures.epoch_figures(trained, tests, loader.is_clean, loader.class_names),
                    trained.epoch,
                )
        self.rows_written = len(rows)

    def finish(self, config, pictures: dict[str, np.ndarray]) -> None:
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
    values = {
        tag: value
        for tag, value in row.items()
        if tag not in ("epoch", "kind") and not tag.startswith("memory/")
    }
    for tag, metrics in OVERVIEW.items():
        present = [row[metric] for metric in metrics if metric in row]
        if present:
            values[tag] = sum(present) / len(present)
    return values


def add_histograms(
    writer: SummaryWriter, trained: TrainedEpoch, is_clean: np.ndarray | None
) -> None:
    """Each network's scaled losses, those of clean and noisy labels separately if known."""
    for k, split in enumerate(trained.splits, start=1):
        groups = {"losses": np.ones(len(split.losses), dtype=bool)}
        if is_clean is not None:
            clean = is_clean[split.index]
            groups = {"losses_clean": clean, "losses_noisy": ~clean}
        for name, chosen in groups.items():
            if chosen.any():
                tag, losses = f"split/net{k}/{name}", split.losses[chosen]
                writer.add_histogram(tag, losses, trained.epoch, bins=figures.BINS)


def add_images(writer: SummaryWriter, pictures: dict[str, np.ndarray], epoch: int) -> None:
    """Add pictures uint8 [h, w, 3] by tag."""
    for tag, picture in pictures.items():
        writer.add_image(tag, picture, epoch, dataformats="HWC")

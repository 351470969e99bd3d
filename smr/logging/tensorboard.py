"""A run's record in TensorBoard; a resume supersedes what is to come, a full disk ends nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from smr.data.loader import Loader
from smr.logging import figures as pictures
from smr.method import EpochResult
from smr.recipe import Recipe

# Epochs between pictures, which are read less often than curves and cost more.
PICTURE_PERIOD = 10
# TensorBoard's table of runs shows five columns unasked: the first of these that a run has. The
# rest of what tells runs apart is in their names.
TABLE_COLUMNS = ("dataset", "method", "noise_mode", "r", "network", "image_size", "seed")
TABLE_METRICS = ("test/best_accuracy", "test/accuracy", "test/mean_of_last_ten", "test/f1")
# The first charts of TensorBoard's page, which sorts by tag: the mean of these metrics.
OVERVIEW = {
    "overview/accuracy": ("test/accuracy",),
    "overview/best_accuracy": ("test/best_accuracy",),
    "overview/auc": ("split/net1/auc", "split/net2/auc"),
    "overview/precision": ("split/net1/precision", "split/net2/precision"),
}
# Charts that the two networks share, on TensorBoard's page of custom scalars.
SHARED = {
    "accuracy": ["test/accuracy", "test/net1/accuracy", "test/net2/accuracy"],
    **{
        name: [f"{group}/net1/{name}", f"{group}/net2/{name}"]
        for group, names in (
            ("split", ("auc", "precision", "recall", "labeled")),
            (
                "train",
                ("loss", "loss_x", "loss_u", "refined_label_accuracy", "pseudo_label_accuracy"),
            ),
        )
        for name in names
    },
}


class Board:
    """Events of a run. Every method but `close` raises OSError where the disk does not take them.

    Args: rows_there, of metrics.jsonl, that earlier files of events hold.
    """

    def __init__(self, folder: Path, rows_there: int):
        self.folder = folder
        self.rows_there = rows_there
        self.writer: SummaryWriter | None = None

    @contextmanager
    def writing(self) -> Iterator[SummaryWriter]:
        """The writer. One that failed once fails for ever, so then there is another next time."""
        writer = self.writer
        if writer is None:
            # A file of events supersedes what older ones hold of the rows that are not there.
            writer = SummaryWriter(str(self.folder), purge_step=self.rows_there)
            charts = {
                name: ["Multiline", [f"^{tag}$" for tag in tags]] for name, tags in SHARED.items()
            }
            writer.add_custom_scalars({"both networks": charts})
        self.writer = None
        yield writer
        writer.flush()
        self.writer = writer

    def add_epoch(
        self, rows: list[dict], result: EpochResult, recipe: Recipe, loader: Loader
    ) -> None:
        """Add the rows of metrics.jsonl that are not there, now and then an epoch's pictures."""
        with self.writing() as writer:
            for row in rows[self.rows_there :]:
                for tag, value in curves(row).items():
                    writer.add_scalar(tag, value, row["epoch"])
            if result.epoch % PICTURE_PERIOD == 0 or result.epoch == recipe.num_epochs:
                add_histograms(writer, result, loader.is_clean)
                drawn = pictures.epoch_pictures(result, loader.is_clean, loader.class_names)
                add_pictures(writer, drawn, result.epoch)
        self.rows_there = len(rows)

    def finish(self, config: dict, drawn: dict[str, np.ndarray]) -> None:
        """Add the run's line in the table of runs, and pictures uint8 [h, w, 3] of its end.

        These stand at the last epoch, beside its own.
        """
        given = {name: config[name] for name in TABLE_COLUMNS if name in config}
        given = dict(list(given.items())[:5])
        with self.writing() as writer:
            # Not `add_hparams`: it opens a second file of events, and TensorBoard, which follows
            # one file at a time, would miss what is still to come in the first.
            for summary in hparams(given, dict.fromkeys(TABLE_METRICS, 0.0)):
                writer.file_writer.add_summary(summary)
            add_pictures(writer, drawn, self.rows_there - 1)

    def close(self) -> None:
        """Close the file of events."""
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()


def curves(row: dict) -> dict[str, float]:
    """A row of metrics.jsonl by tag, but for memory, which is no curve; and OVERVIEW's means."""
    shown = {
        tag: value
        for tag, value in row.items()
        if tag not in ("epoch", "kind") and not tag.startswith("memory/")
    }
    for tag, metrics in OVERVIEW.items():
        values = [row[metric] for metric in metrics if metric in row]
        if values:
            shown[tag] = sum(values) / len(values)
    return shown


def add_histograms(writer: SummaryWriter, result: EpochResult, is_clean: np.ndarray | None) -> None:
    """Each network's scaled losses, those of right and of wrong labels apart where known."""
    for k, split in enumerate(result.splits or (), start=1):
        groups = {"losses": np.ones(len(split.losses), dtype=bool)}
        if is_clean is not None:
            right = is_clean[split.index]
            groups = {"losses_clean": right, "losses_noisy": ~right}
        for name, chosen in groups.items():
            if chosen.any():
                tag, losses = f"split/net{k}/{name}", split.losses[chosen]
                writer.add_histogram(tag, losses, result.epoch, bins=pictures.BINS)


def add_pictures(writer: SummaryWriter, drawn: dict[str, np.ndarray], epoch: int) -> None:
    """Pictures uint8 [h, w, 3] by tag."""
    for tag, picture in drawn.items():
        writer.add_image(tag, picture, epoch, dataformats="HWC")

"""A run's record in TensorBoard; a resume supersedes what is to come, a full disk ends nothing."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from support import pictures

# Epochs between pictures, which are read less often than curves and cost more.
PICTURE_PERIOD = 10
# TensorBoard's table of runs: the columns that it shows unasked, and the figures to sort by.
TABLE_COLUMNS = ("dataset", "method", "noise_mode", "r", "seed")
TABLE_METRICS = {
    "test/best_accuracy": "best accuracy %",
    "test/accuracy": "last accuracy %",
    "test/mean_of_last_ten": "mean of last ten %",
    "test/f1": "F1 %",
    "time/seconds": "seconds of the last epoch",
}


class Board:
    """Events of a run. Every method but `close` raises OSError where the disk does not take them.

    Args: rows_there, of metrics.jsonl, that earlier files of events hold.
    """

    def __init__(self, folder: Path, rows_there: int):
        self.folder = folder
        self.rows_there = rows_there
        self.writer: SummaryWriter | None = None
        self.thread_errors = threading.excepthook
        threading.excepthook = self.ignore_full_disk

    def ignore_full_disk(self, error) -> None:
        """Print no traceback of TensorBoard's thread: `flush` raises its OSError again."""
        if not issubclass(error.exc_type, OSError):
            self.thread_errors(error)

    @contextmanager
    def writing(self) -> Iterator[SummaryWriter]:
        """The writer. One that failed once fails for ever, so then there is another next time."""
        # A file of events supersedes what older ones hold of the rows that are not there.
        writer = self.writer or SummaryWriter(str(self.folder), purge_step=self.rows_there)
        self.writer = None
        yield writer
        writer.flush()
        self.writer = writer

    def add_epoch(self, rows: list[dict], result, is_clean, class_names, last_epoch: int) -> None:
        """Add the rows that are not there, and now and then an epoch's histograms and pictures.

        Args: rows of metrics.jsonl so far; is_clean and class_names as in `experiment.Run`.
        """
        with self.writing() as writer:
            for row in rows[self.rows_there :]:
                for tag in row.keys() - {"epoch", "kind"}:
                    writer.add_scalar(tag, row[tag], row["epoch"])
            if result.epoch % PICTURE_PERIOD == 0 or result.epoch == last_epoch:
                add_histograms(writer, result, is_clean)
                drawn = pictures.epoch_pictures(result, is_clean, class_names)
                add_pictures(writer, drawn, result.epoch)
        self.rows_there = len(rows)

    def add_to_table(self, config: dict) -> None:
        """The run's line in TensorBoard's table of runs: what it was given and what came of it."""
        simple = (int, float, str, bool)
        given = {k: v if isinstance(v, simple) else str(v) for k, v in config.items()}
        # The table shows five columns unasked: those that are said to differ between runs.
        columns = [api_pb2.HParamInfo(name=name, differs=name in TABLE_COLUMNS) for name in given]
        metrics = [
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
            for tag, name in TABLE_METRICS.items()
        ]
        table = api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics)
        described = metadata.create_summary_metadata(HParamsPluginData(experiment=table))
        value = Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=described)
        _, *session = hparams(given, {})
        # Not `add_hparams`: it opens a second file of events, and TensorBoard, which follows one
        # file at a time, would miss what is still to come in the first.
        with self.writing() as writer:
            for summary in (Summary(value=[value]), *session):
                writer.file_writer.add_summary(summary)

    def add_end_pictures(self, drawn: dict[str, np.ndarray]) -> None:
        """Pictures uint8 [h, w, 3] of the end, a step later, where a resume supersedes them."""
        with self.writing() as writer:
            add_pictures(writer, drawn, self.rows_there)

    def close(self) -> None:
        """Close the file of events; threads report errors as they did before."""
        threading.excepthook = self.thread_errors
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()


def add_histograms(writer: SummaryWriter, result, is_clean: np.ndarray | None) -> None:
    """Each network's scaled losses, those of right and of wrong labels apart where known."""
    for k, split in enumerate(result.splits or (), start=1):
        groups = {"losses": np.ones(len(split.losses), dtype=bool)}
        if is_clean is not None:
            groups = {"losses_right": is_clean, "losses_wrong": ~is_clean}
        for name, chosen in groups.items():
            if chosen.any():
                tag, losses = f"split/net{k}/{name}", split.losses[chosen]
                writer.add_histogram(tag, losses, result.epoch, bins=pictures.BINS)


def add_pictures(writer: SummaryWriter, drawn: dict[str, np.ndarray], epoch: int) -> None:
    """Pictures uint8 [h, w, 3] by tag."""
    for tag, picture in drawn.items():
        writer.add_image(tag, picture, epoch, dataformats="HWC")

"""A run's metrics, epoch by epoch: metrics.jsonl, and what is written from its rows.

acc.txt and stats.txt have the form of the published logs.
"""

import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from smr.config import Config
from smr.data.loader import Loader
from smr.evaluate import Test
from smr.files import write_text
from smr.logging import tensorboard
from smr.logging.console import RunLog
from smr.methods import TrainedEpoch
from smr.metrics import statistics_line

# Epochs between TensorBoard's figures, which are read less often than curves and cost more.
FIGURE_PERIOD = 10


def stats_lines(row: dict) -> str:
    """The lines of `stats.txt` for an epoch that split the data, one for each network."""
    lines = ""
    for network in (1, 2):
        start = f"split/net{network}/"
        if split := {k.removeprefix(start): v for k, v in row.items() if k.startswith(start)}:
            lines += f"Epoch:{row['epoch']}   Network:{network}   {statistics_line(split)}\n"
    return lines


def accuracy_line(row: dict, test_titles: dict[str, str]) -> str:
    """An epoch's line of `acc.txt`, in the published form for one test set or several."""
    if not test_titles:
        return f"Epoch:{row['epoch']}   Accuracy:{row['test/accuracy']:.2f}\n"
    words = [f"Epoch:{row['epoch']}"]
    for name, title in test_titles.items():
        if f"{name}/accuracy" in row:
            top5 = f" ({row[f'{name}/top5']:.2f}%)" if f"{name}/top5" in row else ""
            words.append(f"{title} Acc: {row[f'{name}/accuracy']:.2f}%{top5}")
    return " \t ".join(words) + "\n"


def first_best(rows: list[dict], name: str) -> int:
    """The epoch in which a metric is highest, the first of equals."""
    return int(np.argmax([row[name] for row in rows]))


class RunRecord:
    """A run's folder, its log and its metrics.

    Args: rows, those of metrics.jsonl that the run resumes from; later ones in the files are
    dropped. Raises OSError.
    """

    def __init__(self, folder: Path, config: Config, loader: Loader, rows: list[dict]):
        self.folder, self.config, self.loader, self.rows = folder, config, loader, rows
        self.log = RunLog(config, loader.is_clean is not None, loader.test_sets)
        self.writer: SummaryWriter | None = None  # TensorBoard's
        self.epochs_written = len(rows)  # to TensorBoard
        self.write_files()

    @property
    def best_epochs(self) -> tuple[int, int]:
        """Each network's best epoch, the first of equals.

        By the test accuracy, or by each network's own on the test set `config.SELECT_ON`.
        """
        if not (test_set := self.config.SELECT_ON):
            return (first_best(self.rows, "test/accuracy"),) * 2
        first, second = (first_best(self.rows, f"{test_set}/net{k}/accuracy") for k in (1, 2))
        return first, second

    def write_files(self) -> None:
        """Write each text file anew, so that no line is ever incomplete, missing or doubled."""
        rows, titles = self.rows, self.config.TEST_TITLES
        lines = {
            "metrics.jsonl": [json.dumps(row) + "\n" for row in rows],
            "acc.txt": [accuracy_line(row, titles) for row in rows],
            "stats.txt": [stats_lines(row) for row in rows],
        }
        for name, content in lines.items():
            write_text(self.folder / name, "".join(content))

    def header(self) -> None:
        """Print the headings of the epochs' lines; the first epoch starts here."""
        self.log.header()

    def add(self, trained: TrainedEpoch, tests: dict[str, Test], memory: dict[str, float]) -> None:
        """Add an epoch, with these `memory/` metrics, to the log, the files and TensorBoard.

        `time/seconds` is the wall time since the epoch before was added.
        """
        metrics = dict(trained.metrics)
        for test_set, test in tests.items():
            metrics |= {f"{test_set}/{name}": value for name, value in test.figures.items()}
        metrics |= memory | {"time/seconds": time.monotonic() - self.log.started}
        accuracies = [row["test/accuracy"] for row in (*self.rows, metrics)]
        metrics["test/best_accuracy"] = max(accuracies)
        metrics["test/mean_of_last_ten"] = float(np.mean(accuracies[-10:]))
        self.rows.append({"epoch": trained.epoch, "kind": trained.kind} | metrics)
        self.log.summary(trained.epoch, trained.kind, metrics)
        try:
            self.write_files()
            writer = self.event_writer()
            for row in self.rows[self.epochs_written :]:
                tensorboard.add_curves(writer, row)
            if trained.epoch % FIGURE_PERIOD == 0 or trained.epoch == self.config.last_epoch:
                tensorboard.add_figures(writer, trained, tests, self.loader)
            writer.flush()
            self.epochs_written = len(self.rows)
        except OSError as error:  # the next epoch writes this one's figures too
            self.writer = None  # one that failed would fail forever
            self.log.line(f"the metrics were not written ({error.strerror}); the run continues")

    def event_writer(self) -> SummaryWriter:
        """TensorBoard's writer, opened when it is first needed. Raises OSError."""
        self.writer = self.writer or tensorboard.open_writer(self.folder, self.epochs_written)
        return self.writer

    def finish(self, pictures: dict[str, np.ndarray], selected: float | None = None) -> None:
        """Log the final figures and, with these pictures by tag, add them to TensorBoard.

        Args: selected, the test accuracy of the networks that were selected on another test set.
        """
        line, last, best = self.log.line, self.rows[-1], first_best(self.rows, "test/accuracy")
        line(
            f"best accuracy {last['test/best_accuracy']:.2f} % (epoch {best}), last "
            f"{last['test/accuracy']:.2f} %, mean of the last {min(10, len(self.rows))} epochs "
            f"{last['test/mean_of_last_ten']:.2f} %"
        )
        if selected is not None:
            epochs = " and ".join(map(str, self.best_epochs))
            line(
                f"selected by {self.config.SELECT_ON} accuracy: networks of epochs {epochs}, test "
                f"accuracy {selected:.2f} %"
            )
        try:
            tensorboard.add_run(self.event_writer(), self.config)
            tensorboard.add_pictures(self.event_writer(), pictures, last["epoch"])
        except OSError as error:
            line(f"TensorBoard's figures were not written ({error.strerror})")

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl but an incomplete last one; [] without a file."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(row) for row in rows if row.endswith("\n")]

"""A run's metrics, epoch by epoch: metrics.jsonl, and what is written from its rows.

acc.txt and stats.txt have the form of the published logs.
"""

import json
import time
from pathlib import Path

import numpy as np

from smr.config import Config
from smr.data.loader import Loader
from smr.evaluate import Test
from smr.files import write_text
from smr.logging.console import RunLog
from smr.logging.tensorboard import Board
from smr.methods import TrainedEpoch
from smr.metrics import statistics_line


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


def memory_line(row: dict) -> str:
    """The line on a run's peak memory."""
    peaks = {place: row.get(f"memory/{place}_gib") for place in ("host", "device")}
    words = [f"{peak:.2f} GiB on the {place}" for place, peak in peaks.items() if peak is not None]
    return "peak memory: " + ", ".join(words)


class RunRecord:
    """A run's folder, its log and its metrics.

    Args: rows, those of metrics.jsonl that the run resumes from; later ones in the files are
    dropped. Raises OSError.
    """

    def __init__(self, folder: Path, config: Config, loader: Loader, rows: list[dict]):
        self.folder, self.config, self.loader, self.rows = folder, config, loader, rows
        self.log = RunLog(config, loader.is_clean is not None, loader.test_sets)
        self.board = Board(folder, len(rows))
        self.epoch_ended = time.monotonic()
        self.write_files()

    @property
    def accuracies(self) -> list[float]:
        """Each epoch's test accuracy."""
        return [row["test/accuracy"] for row in self.rows]

    @property
    def best_epochs(self) -> tuple[int, int]:
        """Each network's best epoch, the first of equals.

        By the test accuracy, or by each network's own on the test set `config.SELECT_ON`.
        """
        names = ["test/accuracy"] * 2
        if self.config.SELECT_ON:
            names = [f"{self.config.SELECT_ON}/net{k}/accuracy" for k in (1, 2)]
        first, second = (int(np.argmax([row[name] for row in self.rows])) for name in names)
        return first, second

    def write_files(self) -> None:
        """Write each text file anew, so that no line is ever incomplete, missing or doubled."""
        titles = self.config.TEST_TITLES
        contents = {
            "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in self.rows),
            "acc.txt": "".join(accuracy_line(row, titles) for row in self.rows),
            "stats.txt": "".join(map(stats_lines, self.rows)),
        }
        for name, content in contents.items():
            write_text(self.folder / name, content)

    def header(self) -> None:
        """Print the headings of the epochs' lines; the first epoch starts here."""
        self.epoch_ended = time.monotonic()
        self.log.header()

    def add(self, trained: TrainedEpoch, tests: dict[str, Test], memory: dict[str, float]) -> None:
        """Add an epoch, with these `memory/` metrics, to the log, the files and TensorBoard.

        `time/seconds` is the wall time since the epoch before was added.
        """
        now = time.monotonic()
        metrics = dict(trained.metrics)
        for test_set, test in tests.items():
            metrics |= {f"{test_set}/{name}": value for name, value in test.figures.items()}
        metrics |= memory | {"time/seconds": now - self.epoch_ended}
        self.epoch_ended = now
        accuracies = [*self.accuracies, metrics["test/accuracy"]]
        metrics["test/best_accuracy"] = max(accuracies)
        metrics["test/mean_of_last_ten"] = float(np.mean(accuracies[-10:]))
        self.rows.append({"epoch": trained.epoch, "kind": trained.kind} | metrics)
        self.log.summary(trained.epoch, trained.kind, metrics)
        try:
            self.write_files()
            self.board.add_epoch(self.rows, trained, tests, self.config.last_epoch, self.loader)
        except OSError as error:  # the next epoch writes this one's figures too
            self.log.line(f"the metrics were not written ({error.strerror}); the run continues")

    def finish(self, pictures: dict[str, np.ndarray], selected: float | None = None) -> None:
        """Log the final figures and, with these pictures by tag, add them to TensorBoard.

        Args: selected, the test accuracy of the networks that were selected on another test set.
        """
        accuracies, last_ten = self.accuracies, self.accuracies[-10:]
        line = self.log.line
        line(memory_line(self.rows[-1]))
        line(
            f"best accuracy {max(accuracies):.2f} % (epoch {int(np.argmax(accuracies))}), last "
            f"{accuracies[-1]:.2f} %, mean of the last {len(last_ten)} epochs "
            f"{np.mean(last_ten):.2f} %"
        )
        if selected is not None:
            epochs = " and ".join(map(str, self.best_epochs))
            line(
                f"selected by {self.config.SELECT_ON} accuracy: networks of epochs {epochs}, test "
                f"accuracy {selected:.2f} %"
            )
        try:
            self.board.finish(self.config, pictures)
        except OSError as error:
            self.log.line(f"TensorBoard's figures were not written ({error.strerror})")
        names = "label_issues.png, transitions.png, config.json, metrics.jsonl, acc.txt, best.pt"
        line(f"in {self.folder}: {names}, last.pt")
        if self.loader.info.labels_in_paths:
            decide, file = "edit the classes in labels.csv", f"{self.folder}/labels.csv"
            if self.config.review:
                decide, file = "decide in labels.html and save", "corrections.csv"
            line(
                f"next: {decide}; python correct_labels.py {self.folder} {file} moves the photos; "
                f"python predict.py {self.folder}/best.pt PHOTOS classifies other photos"
            )
        runs = self.folder.parent
        line(
            f"next: tensorboard --logdir {runs} shows curves; python compare_runs.py {runs} makes "
            "a table; the same command with --resume and a larger --num_epochs trains on"
        )

    def close(self) -> None:
        """Close the event file."""
        self.board.close()


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl but an incomplete last one; [] without a file."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(row) for row in rows if row.endswith("\n")]

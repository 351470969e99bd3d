"""A run's figures on disk: metrics.jsonl, acc.txt, stats.txt and TensorBoard, epoch by epoch."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from smr.data.loader import Loader
from smr.files import write_text
from smr.gmm_split import statistics_line
from smr.logging.console import Log
from smr.logging.tensorboard import Board
from smr.method import EpochResult
from smr.recipe import Recipe


def run_name(config: dict, with_method: bool = True) -> str:
    """<dataset>_<r>_<noise_mode>_<method>_seed<seed>[_<id>], r exact; once without the method."""
    noise = f"{config['r']!r}_{config['noise_mode']}_" if "noise_mode" in config else ""
    method = f"{config['method']}_" if with_method else ""
    name = f"{config['dataset']}_{noise}{method}seed{config['seed']}"
    return f"{name}_{config['id']}" if config["id"] else name


def stats_lines(epoch: int, metrics: dict) -> str:
    """The lines of `stats.txt` for an epoch that split the data: one for each network."""
    lines = ""
    for network in (1, 2):
        start = f"split/net{network}/"
        found = {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}
        if found:
            lines += f"Epoch:{epoch}   Network:{network}   {statistics_line(found)}\n"
    return lines


def accuracy_line(row: dict, config: dict) -> str:
    """An epoch's line of `acc.txt`, in the published form: of one test set, or of several."""
    titles = config.get("test_titles", {})
    if not titles:
        return f"Epoch:{row['epoch']}   Accuracy:{row['test/accuracy']:.2f}\n"
    accuracies = [
        f"{title} Acc: {row[f'{name}/accuracy']:.2f}%"
        + (f" ({row[f'{name}/top5']:.2f}%)" if f"{name}/top5" in row else "")
        for name, title in titles.items()
        if f"{name}/accuracy" in row
    ]
    return " \t ".join([f"Epoch:{row['epoch']}", *accuracies]) + "\n"


def memory_line(metrics: dict) -> str:
    """The line at a run's end on the most memory that it held."""
    held = [
        f"{metrics[f'memory/{place}_gib']:.2f} GiB on the {place}"
        for place in ("host", "device")
        if f"memory/{place}_gib" in metrics
    ]
    return "most memory held: " + ", ".join(held)


class Record:
    """A run's folder, its log and its figures.

    Args: rows, those of metrics.jsonl so far. What the folder's files hold beyond them is dropped.
    Raises OSError.
    """

    def __init__(self, folder: Path, config: dict, recipe: Recipe, loader: Loader, rows: list):
        self.folder = folder
        self.config = config
        self.recipe = recipe
        self.loader = loader
        self.log = Log(config, recipe, loader.is_clean is not None, loader.test_sets)
        self.rows = rows
        self.board = Board(folder, len(rows))
        self.epoch_ended = time.monotonic()
        self.write_texts()

    @property
    def scores(self) -> list[float]:
        """Each epoch's test accuracy, by which the best is chosen."""
        return [row["test/accuracy"] for row in self.rows]

    @property
    def best_epochs(self) -> tuple[int, int]:
        """Each network's best epoch, the first of equals.

        Both have the same, unless the recipe selects each by its own accuracy on a test set.
        """
        names = ["test/accuracy"] * 2
        if self.recipe.select_on:
            names = [f"{self.recipe.select_on}/net{k}/accuracy" for k in (1, 2)]
        first, second = (int(np.argmax([row[name] for row in self.rows])) for name in names)
        return first, second

    def write_texts(self) -> None:
        """Write the text files anew, so that none ever has a line cut off, lost or doubled."""
        contents = {
            "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in self.rows),
            "acc.txt": "".join(accuracy_line(row, self.config) for row in self.rows),
            "stats.txt": "".join(stats_lines(row["epoch"], row) for row in self.rows),
        }
        for name, content in contents.items():
            write_text(self.folder / name, content)

    def begin(self) -> None:
        """Head the epochs' lines; from here on time counts."""
        self.epoch_ended = time.monotonic()
        self.log.begin()

    def add(self, result: EpochResult, memory: dict[str, float]) -> None:
        """Add an epoch, with these figures of memory, to log, text files and TensorBoard.

        `time/seconds` is the wall time since the epoch before was added: what was done with that
        one, such as copying it to be saved, is in it.
        """
        now = time.monotonic()
        metrics = result.metrics | memory | {"time/seconds": now - self.epoch_ended}
        self.epoch_ended = now
        scores = [*self.scores, metrics["test/accuracy"]]
        metrics["test/best_accuracy"] = max(scores)
        metrics["test/mean_of_last_ten"] = float(np.mean(scores[-10:]))
        self.rows.append({"epoch": result.epoch, "kind": result.kind} | metrics)
        self.log.summary(result.epoch, result.kind, metrics)
        with self.going_on():
            self.write_texts()
            self.board.add_epoch(self.rows, result, self.recipe, self.loader)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Say what a full disk does not take; the next epoch writes it with its own."""
        try:
            yield
        except OSError as error:
            self.log.line(f"the records were not written ({error.strerror}); the run goes on")

    def finish(self, drawn: dict[str, np.ndarray]) -> None:
        """Name the final figures, in the log and, with these pictures by tag, in TensorBoard."""
        scores, last_ten = self.scores, self.scores[-10:]
        self.log.line(memory_line(self.rows[-1]))
        self.log.line(
            f"best accuracy {max(scores):.2f} % (epoch {int(np.argmax(scores))}), "
            f"last {scores[-1]:.2f} %, "
            f"mean of the last {len(last_ten)} epochs {np.mean(last_ten):.2f} %"
        )
        with self.going_on():
            self.board.finish(self.config, drawn)
        runs = self.folder.parent
        files = (
            "label_issues.png, transitions.png, config.json, metrics.jsonl, acc.txt, best.pt, "
            "last.pt"
        )
        self.log.line(f"in {self.folder}: {files}")
        if self.loader.facts.get("labels_in_paths"):
            decide, decided = "decide in labels.html and save", "corrections.csv"
            if not self.config["review"]:
                decide, decided = "put right classes into labels.csv", f"{self.folder}/labels.csv"
            self.log.line(
                f"next: {decide}; python correct_labels.py {self.folder} {decided} moves the "
                f"photos; python predict.py {self.folder}/best.pt PHOTOS classifies others"
            )
        self.log.line(
            f"next: tensorboard --logdir {runs} shows curves; python compare_runs.py {runs} makes "
            "a table; the same command with --resume and a larger --num_epochs goes on"
        )


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, without a last one that was cut off; [] without a file."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(row) for row in rows if row.endswith("\n")]

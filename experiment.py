"""What a run leaves behind and shows: log lines, text files, metrics and TensorBoard."""

import json
import platform
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sklearn
import torch

from batches import statistics_line
from support.board import Board
from support.files import replacing

# Seconds between progress lines where the output is not a terminal, and on one.
PLAIN_PERIOD, TERMINAL_PERIOD = 30.0, 0.2
# The summary line's columns: heading, width, format, and the metric or the metrics averaged.
COLUMNS = (
    ("lr", 8, ".4g", ("train/learning_rate",)),
    ("Lx", 8, ".4f", ("train/net1/loss_x", "train/net2/loss_x")),
    ("Lu", 8, ".5f", ("train/net1/loss_u", "train/net2/loss_u")),
    ("w(Lu)", 6, ".2f", ("train/net1/lambda_u", "train/net2/lambda_u")),
    ("labelled", 8, ".0f", ("split/net1/labelled", "split/net2/labelled")),
    ("AUC", 6, ".3f", ("split/net1/auc", "split/net2/auc")),
    ("prec", 6, ".3f", ("split/net1/precision", "split/net2/precision")),
    ("test%", 6, ".2f", ("test/accuracy",)),
    ("best%", 6, ".2f", ("test/best_accuracy",)),
    ("seconds", 8, ".1f", ("time/seconds",)),
)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; the loader and the mixture take the seed themselves."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # importing it takes as long as torch itself
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def run_name(config: dict) -> str:
    """<dataset>_<r>_<noise_mode>_seed<seed>[_<id>], r exact."""
    noise = f"{config['r']!r}_{config['noise_mode']}_" if "noise_mode" in config else ""
    name = f"{config['dataset']}_{noise}seed{config['seed']}"
    return f"{name}_{config['id']}" if config["id"] else name


def title(config: dict) -> str:
    """The published beginning of a progress line: `cifar10:0.5-sym`."""
    noise = f":{config['r']!r}-{config['noise_mode']}" if "noise_mode" in config else ""
    return config["dataset"] + noise


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; raised at the end of the step in which it did."""

    def __init__(self, signal_number: int):
        self.signal_number = signal_number


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a flag; a second one stops the process at once."""

    def __init__(self):
        self.received: int | None = None

    def __enter__(self):
        self.before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        self.received = number
        for each in self.before:
            signal.signal(each, signal.SIG_DFL)

    def raise_if_any(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)


class Log:
    """Lines for a reader: a progress line kept in place on a terminal, plain lines elsewhere."""

    def __init__(self, config: dict, kinds: list[str]):
        self.title = title(config)
        self.kinds = kinds  # of every epoch, to foretell the time left
        self.terminal = sys.stdout.isatty()
        self.noted: set[str] = set()
        self.last_shown = time.monotonic()
        self.pass_started = self.last_shown
        self.images = 0
        self.seconds: dict[str, float] = {}

    def line(self, text: str) -> None:
        """Print a line of its own."""
        self.show(("\r\x1b[K" if self.terminal else "") + text + "\n")

    def show(self, text: str) -> None:
        """Print, where somebody reads: a closed pipe or a log on a full disk stops no run."""
        with suppress(OSError):
            print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """Print a line once a run."""
        if text not in self.noted:
            self.noted.add(text)
            self.line(f"note: {text}")

    def progress(self, epoch, kind, network, step, steps, meter) -> None:
        """Show where training is; the arguments are those of `smr.train`'s `progress`."""
        now = time.monotonic()
        if step == 1:
            # The first step's share of the time is not known, so the rate leaves it out.
            self.pass_started, self.images = now, meter.images
        period = TERMINAL_PERIOD if self.terminal else PLAIN_PERIOD
        if now - self.last_shown < period or step == 1:
            return
        self.last_shown = now
        # A plain line is rare enough to wait for the device.
        glanced = meter.glance(wait=not self.terminal)
        figures = "  ".join(f"{name} {value:.4f}" for name, value in glanced.items())
        rate = (meter.images - self.images) / (now - self.pass_started)
        text = (
            f"{self.title} | Epoch [{epoch:3d}/{self.kinds_last:3d}] Iter[{step:3d}/{steps:3d}]  "
            f"{kind}, net {network}  {figures}  {rate:.0f} images/s{self.time_left(epoch)}"
        )
        if self.terminal:
            columns = shutil.get_terminal_size().columns
            self.show("\r\x1b[K" + text[: columns - 1])
        else:
            self.show(text + "\n")

    @property
    def kinds_last(self) -> int:
        return len(self.kinds) - 1

    def time_left(self, epoch: int) -> str:
        """', 1:02:03 left' from the latest epoch of each kind; '>' while a kind is unknown."""
        remaining = self.kinds[epoch:]
        known = [self.seconds[kind] for kind in remaining if kind in self.seconds]
        if not known:
            return ""
        return f", {'>' if len(known) < len(remaining) else ''}{duration(sum(known))} left"

    def heading(self, columns) -> None:
        """The summary lines' heading."""
        names = "".join(f"{name:>{width + 1}}" for name, width, _, _ in columns)
        self.line(f"{'epoch':>5} {'kind':<15}{names}")

    def summary(self, columns, epoch: int, kind: str, metrics: dict) -> None:
        """One line an epoch; '-' for a figure that this epoch has not."""
        self.seconds[kind] = metrics["time/seconds"]
        text = f"{epoch:>5} {kind:<15}"
        for _, width, form, keys in columns:
            values = [metrics[key] for key in keys if key in metrics]
            shown = format(sum(values) / len(values), form) if values else "-"
            text += f"{shown:>{width + 1}}"
        self.line(text)


def stats_lines(epoch: int, metrics: dict) -> str:
    """The lines of `stats.txt` for an epoch that split the data: one for each network."""
    lines = ""
    for network in (1, 2):
        start = f"split/net{network}/"
        found = {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}
        if found:
            lines += f"Epoch:{epoch}   Network:{network}   {statistics_line(found)}\n"
    return lines


def accuracy_line(epoch: int, metrics: dict) -> str:
    """The line of `acc.txt`."""
    return f"Epoch:{epoch}   Accuracy:{metrics['test/accuracy']:.2f}\n"


def memory_line(metrics: dict) -> str:
    """The line at a run's end on the most memory that it held."""
    held = [
        f"{metrics[f'memory/{place}_gib']:.2f} GiB on the {place}"
        for place in ("host", "device")
        if f"memory/{place}_gib" in metrics
    ]
    return "most memory held: " + ", ".join(held)


class Run:
    """A run's folder, log and records.

    Args: kinds of every epoch; is_clean, bool [n], which training labels are right, None where
    nobody knows; names of the classes.
    """

    def __init__(
        self,
        folder: Path,
        config: dict,
        kinds: list[str],
        is_clean: np.ndarray | None,
        class_names: list[str],
    ):
        self.folder = folder
        self.config = config
        self.is_clean = is_clean
        self.class_names = class_names
        self.log = Log(config, kinds)
        truth_only = {"AUC", "prec"}
        self.columns = [c for c in COLUMNS if is_clean is not None or c[0] not in truth_only]
        self.rows: list[dict] = []  # of metrics.jsonl
        self.accuracies: list[float] = []
        self.interrupts = Interrupts()

    def open_records(self, rows: list[dict]) -> None:
        """Open the records with the rows of a checkpoint; what they hold beyond is dropped.

        Raises OSError.
        """
        self.rows[:] = rows
        self.accuracies = [row["test/accuracy"] for row in rows]
        self.board = Board(self.folder, len(rows))
        self.write_texts()

    def write_texts(self) -> None:
        """Write the text files anew, so that none ever has a line cut off, lost or doubled."""
        contents = {
            "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in self.rows),
            "acc.txt": "".join(accuracy_line(row["epoch"], row) for row in self.rows),
            "stats.txt": "".join(stats_lines(row["epoch"], row) for row in self.rows),
        }
        for name, content in contents.items():
            replace_text(self.folder / name, content)

    def progress(self, *step) -> None:
        """The hook after each step: show it, and stop there if a signal has come."""
        self.log.progress(*step)
        self.interrupts.raise_if_any()

    def record(self, result) -> None:
        """Add a `smr.EpochResult` to log, text files and TensorBoard."""
        metrics = result.metrics
        self.accuracies.append(metrics["test/accuracy"])
        metrics["test/best_accuracy"] = max(self.accuracies)
        metrics["test/mean_of_last_ten"] = float(np.mean(self.accuracies[-10:]))
        self.rows.append({"epoch": result.epoch, "kind": result.kind} | metrics)
        self.log.summary(self.columns, result.epoch, result.kind, metrics)
        if result.epoch == self.log.kinds_last:
            self.log.line(memory_line(metrics))
        with self.going_on():
            self.write_texts()
            self.board.add_epoch(
                self.rows, result, self.is_clean, self.class_names, self.log.kinds_last
            )

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Say what a full disk does not take; the next epoch writes it with its own."""
        try:
            yield
        except OSError as error:
            self.log.line(f"the records were not written ({error.strerror}); the run goes on")

    @property
    def best_is_newest(self) -> bool:
        """Whether the newest epoch is better than all before it."""
        *before, newest = self.accuracies
        return newest > max(before, default=-1.0)

    def finish(self) -> None:
        """Name the final figures, in the log and in TensorBoard's table of runs."""
        with self.going_on():
            self.board.add_to_table(self.config)
        last_ten = self.accuracies[-10:]
        self.log.line(
            f"best accuracy {max(self.accuracies):.2f} % "
            f"(epoch {int(np.argmax(self.accuracies))}), last {self.accuracies[-1]:.2f} %, "
            f"mean of the last {len(last_ten)} epochs {np.mean(last_ten):.2f} %"
        )
        self.log.line(f"results in {self.folder}")


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, without a last one that was cut off; [] without a file."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(row) for row in rows if row.endswith("\n")]


def replace_json(path: Path, content: dict) -> None:
    """`replace_text` of indented JSON."""
    replace_text(path, json.dumps(content, indent=2, default=str) + "\n")


def replace_text(path: Path, content: str) -> None:
    """`files.replacing` with a small text."""
    with replacing(path) as file:
        file.write(content.encode())

"""What a run prints: its first lines, progress, one line per epoch, and the time left."""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from smr import distributed
from smr.metrics import Meter, mean_of_networks

# Seconds between progress lines on a terminal, and in a file or a pipe.
TERMINAL_PERIOD, PLAIN_PERIOD = 1.0, 30.0
# The columns of an epoch's line: heading, width, format, and the metric (`mean_of_networks`).
COLUMNS = (
    ("lr", 8, ".4g", "train/learning_rate"),
    ("Lx", 8, ".4f", "train/net*/loss_x"),
    ("Lu", 8, ".5f", "train/net*/loss_u"),
    ("w(Lu)", 6, ".2f", "train/net*/lambda_u"),
    ("labeled", 7, ".0f", "split/net*/labeled"),
    ("AUC", 6, ".3f", "split/net*/auc"),
    ("prec", 6, ".3f", "split/net*/precision"),
)
LAST_COLUMNS = (("best%", 6, ".2f", "test/best_accuracy"), ("seconds", 8, ".1f", "time/seconds"))


def show(text: str) -> None:
    """Write to standard output at once; nothing if the pipe is closed or the disk is full."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # Python flushes once more when it exits, and would report the closed pipe then.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        pass


class Terminal:
    """Lines on standard output: a terminal, a file or a pipe. Only rank 0 prints."""

    def __init__(self):
        self.in_place = sys.stdout.isatty()
        self.period = TERMINAL_PERIOD if self.in_place else PLAIN_PERIOD
        self.last_shown = time.monotonic()

    def line(self, text: str) -> None:
        """Print a line."""
        if distributed.is_rank_zero():
            show(("\r\x1b[K" if self.in_place else "") + text + "\n")

    def due(self) -> bool:
        """Return whether it is time for the next progress line, which the caller then prints."""
        is_due = time.monotonic() - self.last_shown >= self.period
        if is_due:
            self.last_shown = time.monotonic()
        return is_due

    def progress(self, text: str) -> None:
        """Print a progress line; on a terminal it replaces the last one and is cut to the width."""
        if not self.in_place:
            self.line(text)
        elif distributed.is_rank_zero():
            show("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])


def title(config) -> str:
    """The published beginning of a progress line, such as `cifar10:0.5-sym`."""
    noise_mode = getattr(config, "noise_mode", None)
    return f"{config.dataset}:{config.r!r}-{noise_mode}" if noise_mode else config.dataset


def duration(seconds: float) -> str:
    """h:mm:ss, after a day '1 day, h:mm:ss'."""
    return str(timedelta(seconds=round(seconds)))


class RunLog:
    """A run's lines.

    Args: truth_known, whether the true labels are. Columns that no epoch can fill are left out.
    """

    def __init__(self, config, truth_known: bool, test_sets: Sequence[str]):
        self.title, self.last_epoch, self.terminal = title(config), config.last_epoch, Terminal()
        self.line = self.terminal.line
        self.seconds: list[tuple[str, float]] = []  # kind and wall time of past epochs
        self.notes: set[str] = set()
        self.unused = () if getattr(config, "lambda_u", 0) else ("loss_u", "lambda_u")
        without = self.unused if truth_known else (*self.unused, "auc", "precision")
        # A method with a clean probability threshold splits the training set.
        columns = COLUMNS if hasattr(config, "p_threshold") else COLUMNS[:1]
        self.columns = [each for each in columns if each[3].split("/")[-1] not in without]
        for name in test_sets:
            self.columns.append((f"{name}%", max(6, len(name) + 1), ".2f", f"{name}/accuracy"))
            if getattr(config, "top5", False):
                self.columns.append((f"{name}5%", max(6, len(name) + 2), ".2f", f"{name}/top5"))
        self.columns += LAST_COLUMNS

    def note(self, text: str) -> None:
        """Print a note, once per run."""
        if text not in self.notes:
            self.notes.add(text)
            self.line(f"note: {text}")

    def header(self) -> None:
        """Print the headings of the epochs' lines; the first epoch starts here."""
        self.started = time.monotonic()
        names = "".join(f"{name:>{width + 1}}" for name, width, *_ in self.columns)
        self.line(f"{'epoch':>5} {'kind':<15}{names}")

    def progress(
        self, epoch: int, kind: str, network: int, step: int, steps: int, meter: Meter
    ) -> None:
        """Print a progress line if one is due. Called after each training step, step from 1."""
        if not self.terminal.due():
            return
        means = {name: mean for name, mean in meter.means().items() if name not in self.unused}
        figures = "  ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        rate = distributed.world_size() * meter.images / (time.perf_counter() - meter.started)
        left = self.time_left(epoch, kind, (network - 1 + step / steps) / 2)
        self.terminal.progress(
            f"{self.title} | Epoch [{epoch:3d}/{self.last_epoch:3d}] Iter[{step:3d}/{steps:3d}]  "
            f"{kind}, net {network}  {figures}  {rate:.0f} images/s{left}"
        )

    def time_left(self, epoch: int, kind: str, share: float) -> str:
        """The words on the time left when this share of an epoch is done.

        By the mean of past epochs, without those of warm-up once there are others: they are
        shorter. In this process's first epoch, by the share done.
        """
        others = [seconds for kind, seconds in self.seconds if kind != "warm-up"]
        past = others or [seconds for _, seconds in self.seconds]
        past = past or [(time.monotonic() - self.started) / share]
        left = duration((self.last_epoch + 1 - epoch - share) * statistics.fmean(past))
        at_least = "at least " if kind == "warm-up" else ""
        return f", {at_least}{left} left"

    def summary(self, epoch: int, kind: str, metrics: dict) -> None:
        """Print an epoch's line, with '-' for a figure that it does not have; the next starts."""
        self.started = time.monotonic()
        self.seconds.append((kind, metrics["time/seconds"]))
        text = f"{epoch:>5} {kind:<15}"
        for _, width, form, name in self.columns:
            mean = mean_of_networks(metrics, name)
            text += f"{'-' if mean is None else format(mean, form):>{width + 1}}"
        self.line(text)

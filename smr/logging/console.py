"""What a reader sees while a run goes on: its first lines, progress, a line an epoch, time left."""

import time
from collections.abc import Iterator, Sequence

from smr import distributed
from smr.logging.terminal import PLAIN_PERIOD, Terminal
from smr.metrics import Meter
from smr.recipe import SEMI_SUPERVISED, Recipe, kind_of_epoch

# The summary line's columns: heading, width, format, and the metric or the metrics averaged.
COLUMNS = (
    ("lr", 8, ".4g", ("train/learning_rate",)),
    ("Lx", 8, ".4f", ("train/net1/loss_x", "train/net2/loss_x")),
    ("Lu", 8, ".5f", ("train/net1/loss_u", "train/net2/loss_u")),
    ("w(Lu)", 6, ".2f", ("train/net1/lambda_u", "train/net2/lambda_u")),
    ("labeled", 8, ".0f", ("split/net1/labeled", "split/net2/labeled")),
    ("AUC", 6, ".3f", ("split/net1/auc", "split/net2/auc")),
    ("prec", 6, ".3f", ("split/net1/precision", "split/net2/precision")),
    ("best%", 6, ".2f", ("test/best_accuracy",)),
    ("seconds", 8, ".1f", ("time/seconds",)),
)
OF_SPLITS = {"Lx", "Lu", "w(Lu)", "labeled", "AUC", "prec"}
# The share of the labels that a mixture labels, before one is seen: what is right at sym 0.5.
USUAL_LABELLED_SHARE = 0.55


def title(config: dict) -> str:
    """The published beginning of a progress line: `cifar10:0.5-sym`."""
    noise = f":{config['r']!r}-{config['noise_mode']}" if "noise_mode" in config else ""
    return config["dataset"] + noise


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def test_columns(recipe: Recipe, test_sets: Sequence[str]) -> Iterator[tuple]:
    """The columns of each test set: its accuracy and, where it is taken, that of five guesses."""
    for name in test_sets:
        yield f"{name}%", max(6, len(name) + 1), ".2f", (f"{name}/accuracy",)
        if recipe.top5:
            yield f"{name}5%", max(6, len(name) + 2), ".2f", (f"{name}/top5",)


def columns_of(recipe: Recipe, truth_known: bool, test_sets: Sequence[str]) -> list[tuple]:
    """Those of COLUMNS that a run has figures for, and those of its test sets."""
    missing = set()
    if recipe.method == "ce":
        missing |= OF_SPLITS
    if recipe.lambda_u == 0:
        missing |= {"Lu", "w(Lu)"}
    if not truth_known:
        missing |= {"AUC", "prec"}
    *shown, best, seconds = [column for column in COLUMNS if column[0] not in missing]
    return [*shown, *test_columns(recipe, test_sets), best, seconds]


def kind_costs(recipe: Recipe) -> dict[str, float]:
    """Kind of epoch → forward passes an image: a backward pass counts as two (method 5)."""
    mixed = 2 if recipe.labeled_rows_only else 4
    kinds = {kind_of_epoch(epoch, recipe) for epoch in range(recipe.num_epochs + 1)}
    # Both networks score all images; for each labeled one the trained network sees four views,
    # its peer two, and the mixed rows cost a step.
    semi_supervised = 2 + 2 * USUAL_LABELLED_SHARE * (4 + 2 + 3 * mixed)
    return {kind: semi_supervised if kind == SEMI_SUPERVISED else 2 * 3 for kind in kinds}


class TimeLeft:
    """How long the epochs to come will take, from those of this process.

    A kind of epoch that was not seen yet is taken to last as long as its cost says beside the rest.
    """

    def __init__(self, recipe: Recipe):
        self.kinds = [kind_of_epoch(epoch, recipe) for epoch in range(recipe.num_epochs + 1)]
        self.costs = kind_costs(recipe)
        self.began: tuple[float, float] | None = None  # the time, and the passes done by then
        self.seen: dict[str, float] = {}  # kind → seconds of its latest epoch

    def epoch_done(self, kind: str, seconds: float) -> None:
        """Note an epoch's wall time."""
        self.seen[kind] = seconds

    def step_done(self, epoch: int, share: float) -> None:
        """Time counts from the first step on: that one may compile, and is no measure of others."""
        if self.began is None:
            self.began = time.monotonic(), self.passes(epoch, share)

    def passes(self, epoch: int, share: float) -> float:
        """Forward passes an image of the run, until this share of an epoch is done."""
        done = sum(self.costs[kind] for kind in self.kinds[:epoch])
        return done + share * self.costs[self.kinds[epoch]]

    def seconds(self, epoch: int, share: float) -> float | None:
        """Of the rest of the run, of whose present `epoch` this share is done; None at first."""
        began, before = self.began
        elapsed = time.monotonic() - began
        if elapsed < PLAIN_PERIOD:
            return None
        rate = elapsed / (self.passes(epoch, share) - before)
        to_come = [self.seen.get(kind, self.costs[kind] * rate) for kind in self.kinds[epoch:]]
        return sum(to_come) - share * to_come[0]


class Log:
    """A run's lines."""

    def __init__(self, config: dict, recipe: Recipe, truth_known: bool, test_sets: Sequence[str]):
        self.title = title(config)
        self.last_epoch = recipe.num_epochs
        self.recipe = recipe
        self.columns = columns_of(recipe, truth_known, test_sets)
        self.console = Terminal()
        self.noted: set[str] = set()

    def line(self, text: str) -> None:
        """Print a line of its own."""
        self.console.line(text)

    def note(self, text: str) -> None:
        """Print a line once a run."""
        if text not in self.noted:
            self.noted.add(text)
            self.line(f"note: {text}")

    def begin(self) -> None:
        """The summary lines' heading."""
        self.time_left = TimeLeft(self.recipe)
        names = "".join(f"{name:>{width + 1}}" for name, width, _, _ in self.columns)
        self.line(f"{'epoch':>5} {'kind':<15}{names}")

    def progress(
        self, epoch: int, kind: str, network: int, step: int, steps: int, meter: Meter
    ) -> None:
        """Show where training is; the arguments are those of `smr.train`'s `progress`."""
        share = (network - 1 + step / steps) / 2
        self.time_left.step_done(epoch, share)
        if not self.console.due():
            return
        unused = ("loss_u", "lambda_u") if self.recipe.lambda_u == 0 else ()
        figures = "  ".join(
            f"{name} {value:.4f}" for name, value in meter.means().items() if name not in unused
        )
        rate = distributed.world_size() * meter.images / (time.perf_counter() - meter.started)
        left = self.time_left.seconds(epoch, share)
        self.console.progress(
            f"{self.title} | Epoch [{epoch:3d}/{self.last_epoch:3d}] Iter[{step:3d}/{steps:3d}]  "
            f"{kind}, net {network}  {figures}  {rate:.0f} images/s"
            + (f", {duration(left)} left" if left is not None else "")
        )

    def summary(self, epoch: int, kind: str, metrics: dict) -> None:
        """One line an epoch; '-' for a figure that this epoch has not."""
        self.time_left.epoch_done(kind, metrics["time/seconds"])
        text = f"{epoch:>5} {kind:<15}"
        for _, width, form, keys in self.columns:
            values = [metrics[key] for key in keys if key in metrics]
            shown = format(sum(values) / len(values), form) if values else "-"
            text += f"{shown:>{width + 1}}"
        self.line(text)

"""Compare runs: one Markdown table, a row for each data set, noise, method and settings.

    python compare_runs.py checkpoint

Takes run folders, or folders of them. Accuracies are those of the test images in per cent, mean ±
standard deviation over the seeds, beside the published figures of the cell (docs/method.md,
section 7); best is the highest of all epochs, Clothing1M's that of the networks that it selected by
validation. What rows of one cell differ in stands behind their method. A run that is unfinished,
or of a seed that its row has already, is named below the table and is not averaged in.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloader_cifar import HUMAN_LABELS
from smr.errors import InputError
from smr.logging.console import duration
from smr.logging.metrics_file import read_metrics
from smr.run.options import FREE, OLDER, SPEED, Parser, one_line_errors, shown

HEADINGS = (
    *("data set", "noise", "method", "num_epochs", "seeds"),
    *("best %", "last %", "last ten %", "time", "published best / last %"),
)
# What may differ between the runs of a row: it changes no figure beyond rounding, or follows from
# the seed.
NO_SETTINGS = {
    *FREE,
    *("seed", *SPEED, "ranks", "noise_file"),
    *("noise_sha256", "noise_rate", "selected_accuracy", "ended", "versions", "hardware"),
} - {"num_epochs"}
# Method 7: what papers report for a cell, by the method that reports it; on sets of 50,000 images.
PUBLISHED_IMAGES = 50_000
PUBLISHED = {
    ("cifar10", "sym 0.2"): {"dividemix": "96.1 / 95.7"},
    ("cifar10", "sym 0.5"): {"dividemix": "94.6 / 94.4", "smr": "about 96.1"},
    ("cifar10", "sym 0.8"): {"dividemix": "93.2 / 92.9"},
    ("cifar10", "sym 0.9"): {"dividemix": "76.0 / 75.4"},
    ("cifar10", "asym 0.4"): {"dividemix": "93.4 / 92.1", "smr": "about 93.9"},
    ("cifar10", "human worst"): {"dividemix": "92.56"},
    ("cifar100", "sym 0.2"): {"dividemix": "77.3"},
    ("cifar100", "sym 0.5"): {"dividemix": "74.6"},
    ("cifar100", "sym 0.8"): {"dividemix": "60.2"},
    ("cifar100", "sym 0.9"): {"dividemix": "31.5"},
    ("webvision", "real"): {"dividemix": "77.32", "smr": "about 78.0"},
    ("clothing1M", "real"): {"dividemix": "74.76"},
    ("animal10N", "real"): {
        "ce": "79.4",
        "SELFIE": "81.8",
        "PLC": "83.4",
        "Nested Co-teaching": "84.1",
        "C2MT": "85.9",
    },
}


@dataclass(frozen=True)
class FinishedRun:
    """A run that went to its last epoch: test accuracies in per cent by epoch, time in seconds.

    `cell` is data set, noise and method; `settings` all else, besides the seed, that its accuracy
    depends on.
    """

    folder: Path
    config: dict
    cell: tuple[str, str, str]
    settings: dict
    accuracies: list[float]
    seconds: float

    @property
    def best(self) -> float:
        """That of the networks that the run selected by other images, else the highest."""
        return self.config.get("selected_accuracy", max(self.accuracies))

    @property
    def row(self) -> tuple[str, ...]:
        """What the runs of one row share."""
        return *self.cell, json.dumps(self.settings, sort_keys=True)


def noise(config: dict) -> str:
    """`sym 0.5`, `human worst`, the name of a file of labels, or `real` where none was injected."""
    mode = config.get("noise_mode")
    if mode in HUMAN_LABELS:
        return f"human {mode}"
    if config.get("noise_file"):
        return f"labels of {Path(config['noise_file']).name}"
    return "real" if mode is None else f"{mode} {config['r']:g}"


def method(config: dict) -> str:
    """The method, with its switches that are not its own in method 6, and method 11's views."""
    name, warmup_loss = config["method"], config["warmup_loss"]
    own_loss = "mixup" if name == "smr" else "ce"
    text = name if warmup_loss == own_loss else f"{name}, {warmup_loss} warm-up"
    if name == "smr" and not config["recalibrate_every"]:
        text += ", no recalibration"
    if name == "dividemix" and config["recalibrate_every"]:
        text += ", recalibration"
    return f"{text}, strong views" if config["augment"] == "strong" else text


def read_run(folder: Path) -> FinishedRun | str:
    """The run of a folder, or in words why it cannot be averaged."""
    try:
        config = OLDER | json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows = read_metrics(folder)
        epochs = [row["epoch"] for row in rows]
        if epochs != list(range(config["num_epochs"] + 1)):
            reached = f"epoch {epochs[-1]}" if epochs else "no epoch"
            return f"unfinished, {reached} of {config['num_epochs']}"
        return FinishedRun(
            folder,
            config,
            (config["dataset"], noise(config), method(config)),
            {key: value for key, value in config.items() if key not in NO_SETTINGS},
            [row["test/accuracy"] for row in rows],
            sum(row["time/seconds"] for row in rows),
        )
    except OSError:
        return "holds no run: config.json is not there"
    except (ValueError, KeyError, TypeError) as error:
        return f"its files are damaged ({error!r})"


def one_a_seed(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """The first run of each seed, and a note on each other."""
    kept: dict[int, FinishedRun] = {}
    notes = []
    for run in runs:
        first = kept.setdefault(run.config["seed"], run)
        if first is not run:
            notes.append(f"{run.folder}: seed {run.config['seed']} again, as in {first.folder}")
    return list(kept.values()), notes


def differing(run: FinishedRun, cell: Sequence[FinishedRun]) -> str:
    """The run's settings in which the rows of its cell differ, in words; '' where they agree."""
    keys = sorted({key for other in cell for key in other.settings})
    return ", ".join(
        f"{key} {shown(key, run.settings.get(key))}"
        for key in keys
        if any(other.settings.get(key) != run.settings.get(key) for other in cell)
    )


def mixed(runs: Sequence[FinishedRun]) -> list[str]:
    """A note where the runs of a row had different numbers of processes (docs/reproduce.md)."""
    numbers = sorted({run.config.get("ranks", 1) for run in runs})
    if len(numbers) == 1:
        return []
    counts = " and ".join(map(str, numbers))
    return [f"{', '.join(runs[0].cell)}: runs of {counts} processes, which differ within noise"]


def listed(heading: str, notes: Sequence[str]) -> str:
    """The notes below a heading; '' without any."""
    return f"\n{heading}:\n\n" + "".join(f"- {note}\n" for note in notes) if notes else ""


def mean_and_deviation(values: Sequence[float]) -> str:
    """`mean ± standard deviation` of the sample; the mean alone of one value."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def published(cell: tuple[str, str, str], train_images: int) -> str:
    """The published figure of the cell's method, else those of other methods by name.

    None for a part of the training set.
    """
    dataset, noise, method = cell
    if train_images < PUBLISHED_IMAGES:
        return "–"
    figures = PUBLISHED.get((dataset, noise), {})
    if method in figures:
        return figures[method]
    return ", ".join(f"{name} {figure}" for name, figure in figures.items()) or "–"


def table_row(runs: Sequence[FinishedRun], note: str) -> tuple[str, ...]:
    """The cells of a row under HEADINGS; `note` stands behind the method."""
    dataset, noise, method = runs[0].cell
    last_tens = [statistics.mean(run.accuracies[-10:]) for run in runs]
    return (
        *(dataset, noise, f"{method} ({note})" if note else method),
        str(runs[0].config["num_epochs"]),
        str(len(runs)),
        mean_and_deviation([run.best for run in runs]),
        mean_and_deviation([run.accuracies[-1] for run in runs]),
        mean_and_deviation(last_tens),
        duration(statistics.mean(run.seconds for run in runs)),
        published(runs[0].cell, runs[0].config.get("train_images", PUBLISHED_IMAGES)),
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these lines' cells, the first one its headings."""
    heading, *rows = lines
    ruled = heading, ["---"] * len(heading), *rows
    return "".join(f"| {' | '.join(line)} |\n" for line in ruled)


def run_folders(paths: Sequence[Path]) -> Iterator[Path]:
    """The paths themselves, and in place of a folder of runs the runs that it holds."""
    for path in paths:
        runs = sorted(config.parent for config in path.glob("*/config.json"))
        yield from runs if runs and not (path / "config.json").exists() else [path]


def compare(paths: Sequence[Path]) -> str:
    """The table and the notes below it. Raises InputError where there is no finished run."""
    found = {folder: read_run(folder) for folder in run_folders(paths)}
    notes = [f"{folder}: {why}" for folder, why in found.items() if isinstance(why, str)]
    rows: dict[tuple[str, ...], list[FinishedRun]] = {}
    finished = [run for run in found.values() if isinstance(run, FinishedRun)]
    for run in finished:
        rows.setdefault(run.row, []).append(run)
    if not rows:
        raise InputError("no finished run: " + "; ".join(notes))
    lines, warnings = [HEADINGS], []
    for _, runs in sorted(rows.items()):
        kept, doubled = one_a_seed(runs)
        notes += doubled
        warnings += mixed(kept)
        cell = [run for run in finished if run.cell == kept[0].cell]
        lines.append(table_row(kept, differing(kept[0], cell)))
    return (
        markdown(lines) + listed("Averaged together", warnings) + listed("Not averaged in", notes)
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of them")
    args = parser.parse_args(argv)
    with one_line_errors("compare_runs.py"):
        print(compare(args.folders), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

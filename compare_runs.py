"""Compare runs: one Markdown table, a row for each data set, noise and method over all its seeds.

    python compare_runs.py checkpoint/*

Accuracies are those of the test images in per cent, mean ± standard deviation over the seeds,
beside the published figures of the cell (SPEC 7). A run that is unfinished, or whose settings are
not those of the row's other runs, is named below the table and is not averaged in.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batches import InputError
from dataloader_cifar import HUMAN_KEYS
from experiment import duration, read_metrics
from support.options import FREE, Parser, one_line_errors

HEADINGS = (
    "data set",
    "noise",
    "method",
    "num_epochs",
    "seeds",
    "best %",
    "last %",
    "last ten %",
    "time",
    "published best / last %",
)
# What may differ between the runs of a row: it changes no figure beyond rounding, or follows from
# the seed.
NO_SETTINGS = {
    *FREE,
    *("seed", "amp", "compile", "channels_last", "noise_file"),
    *("noise_sha256", "realised_noise_rate", "versions", "hardware"),
} - {"num_epochs"}
# SPEC 7: what papers report for a cell, by the method that reports it.
PUBLISHED = {
    ("cifar10", "sym 0.2"): {"dividemix": "96.1 / 95.7"},
    ("cifar10", "sym 0.5"): {"dividemix": "94.6 / 94.4", "smr": "about 96.1"},
    ("cifar10", "sym 0.8"): {"dividemix": "93.2 / 92.9"},
    ("cifar10", "sym 0.9"): {"dividemix": "76.0 / 75.4"},
    ("cifar10", "asym 0.4"): {"dividemix": "93.4 / 92.1", "smr": "about 93.9"},
    ("cifar100", "sym 0.2"): {"dividemix": "77.3"},
    ("cifar100", "sym 0.5"): {"dividemix": "74.6"},
    ("cifar100", "sym 0.8"): {"dividemix": "60.2"},
    ("cifar100", "sym 0.9"): {"dividemix": "31.5"},
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

    `cell` names its row: data set, noise, method. `settings` are all that its accuracy depends on
    besides the seed.
    """

    folder: Path
    config: dict
    cell: tuple[str, str, str]
    settings: str
    accuracies: list[float]
    seconds: float


def noise(config: dict) -> str:
    """`sym 0.5`, `human worst`, the name of a file of labels, or `real` where none was injected."""
    mode = config.get("noise_mode")
    if mode is None:
        return "real"
    if mode in HUMAN_KEYS:
        return f"human {mode}"
    if config.get("noise_file"):
        return f"labels of {Path(config['noise_file']).name}"
    return f"{mode} {config['r']:g}"


def method(config: dict) -> str:
    """The method, with the switches of SPEC 6 that are not its own."""
    name, warmup_loss = config["method"], config["warmup_loss"]
    own_loss = "mixup" if name == "smr" else "ce"
    text = name if warmup_loss == own_loss else f"{name}, {warmup_loss} warm-up"
    if name == "smr" and not config["recalibrate_every"]:
        text += ", no recalibration"
    if name == "dividemix" and config["recalibrate_every"]:
        text += ", recalibration"
    return text


def settings(config: dict) -> str:
    """All that a run's accuracy depends on besides its seed, comparable."""
    return json.dumps({k: v for k, v in config.items() if k not in NO_SETTINGS}, sort_keys=True)


def read_run(folder: Path) -> FinishedRun | str:
    """The run of a folder, or in words why it cannot be averaged."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows = read_metrics(folder)
        epochs = [row["epoch"] for row in rows]
        if epochs != list(range(config["num_epochs"] + 1)):
            reached = f"epoch {epochs[-1]}" if epochs else "no epoch"
            return f"unfinished, {reached} of {config['num_epochs']}"
        return FinishedRun(
            folder,
            config,
            (config["dataset"], noise(config), method(config)),
            settings(config),
            [row["test/accuracy"] for row in rows],
            sum(row["time/seconds"] for row in rows),
        )
    except OSError:
        return "holds no run: config.json is not there"
    except (ValueError, KeyError, TypeError) as error:
        return f"its files are damaged ({error!r})"


def agreeing(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Of a row's runs, one a seed with the settings that most have, and why the others are not."""
    votes = Counter(run.settings for run in runs).most_common()
    if len(votes) > 1 and votes[0][1] == votes[1][1]:
        other = next(run for run in runs if run.settings != runs[0].settings)
        mixed = ", ".join(str(run.folder) for run in runs)
        differing = difference(other.config, runs[0].config)
        return [], [f"{mixed}: mixed settings, no majority ({differing})"]
    kept: dict[int, FinishedRun] = {}
    notes = []
    usual = next(run.config for run in runs if run.settings == votes[0][0])
    for run in runs:
        seed = run.config["seed"]
        if run.settings != votes[0][0]:
            notes.append(f"{run.folder}: other settings ({difference(run.config, usual)})")
        elif seed in kept:
            notes.append(f"{run.folder}: seed {seed} again, as in {kept[seed].folder}")
        else:
            kept[seed] = run
    return list(kept.values()), notes


def difference(config: dict, usual: dict) -> str:
    """The settings of `config` that are not those of `usual`, in words."""
    return ", ".join(
        f"{key} {config.get(key)}, not {usual.get(key)}"
        for key in sorted(config.keys() | usual.keys())
        if key not in NO_SETTINGS and config.get(key) != usual.get(key)
    )


def mean_and_deviation(values: Sequence[float]) -> str:
    """`mean ± standard deviation` of the sample; the mean alone of one value."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def published(cell: tuple[str, str, str]) -> str:
    """The published figure of the cell's method, else those of other methods by name."""
    dataset, noise, method = cell
    figures = PUBLISHED.get((dataset, noise), {})
    if method in figures:
        return figures[method]
    return ", ".join(f"{name} {figure}" for name, figure in figures.items()) or "–"


def table_row(cell: tuple[str, str, str], runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    """The cells of a row under HEADINGS."""
    last_tens = [statistics.mean(run.accuracies[-10:]) for run in runs]
    return (
        *cell,
        str(runs[0].config["num_epochs"]),
        str(len(runs)),
        mean_and_deviation([max(run.accuracies) for run in runs]),
        mean_and_deviation([run.accuracies[-1] for run in runs]),
        mean_and_deviation(last_tens),
        duration(statistics.mean(run.seconds for run in runs)),
        published(cell),
    )


def compare(folders: Sequence[Path]) -> str:
    """The table and the notes below it. Raises InputError where no folder holds a finished run."""
    found = {folder: read_run(folder) for folder in folders}
    notes = [f"{folder}: {why}" for folder, why in found.items() if isinstance(why, str)]
    cells: dict[tuple[str, str, str], list[FinishedRun]] = {}
    for run in found.values():
        if isinstance(run, FinishedRun):
            cells.setdefault(run.cell, []).append(run)
    if not cells:
        raise InputError("no finished run: " + "; ".join(notes))
    rows = []
    for cell, runs in sorted(cells.items()):
        kept, reasons = agreeing(runs)
        notes += reasons
        rows += [table_row(cell, kept)] if kept else []
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + ("\nNot averaged in:\n\n" if notes else "") + "".join(f"- {n}\n" for n in notes)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders")
    with one_line_errors("compare_runs.py"):
        print(compare(parser.parse_args(argv).folders), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

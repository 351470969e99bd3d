"""Compare runs in a Markdown table: one row per dataset, noise, method and settings.

    python compare_runs.py checkpoint

Expects run folders, or folders of them. Accuracies are in per cent, mean ± standard deviation over
seeds, beside the published figures. docs/records.md, "Comparing runs", says which runs share a row.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloader_cifar import HUMAN_LABELS
from smr.errors import InputError
from smr.flags import DEVICE, FREE, Parser, flags_of, show_value
from smr.logging.console import duration, show
from smr.logging.metrics_file import read_metrics
from smr.run.command import command
from train_animal10N import AnimalConfig
from train_cifar import CifarConfig
from train_clothing1M import ClothingConfig
from train_folder import FolderConfig
from train_webvision import WebVisionConfig

HEADINGS = (
    *("dataset", "noise", "method", "num_epochs", "seeds"),
    *("best %", "last %", "last ten %", "time", "published best / last %"),
)
CONFIGS = (CifarConfig, AnimalConfig, FolderConfig, WebVisionConfig, ClothingConfig)
# Runs of a row may differ in these: they change accuracy by rounding alone, or follow from the
# seed or the data. The labels are compared by their checksum.
NO_SETTINGS = {
    name
    for config in CONFIGS
    for name, each in flags_of(config).items()
    if each.metadata["resume"] in (FREE, DEVICE)
} | {
    *("seed", "world_size", "noise_sha256", "noise_rate", "selected_accuracy", "ended"),
    *("versions", "hardware", "data_notes", "duplicates"),
}
# What papers report for a cell, by method, on training sets of 50,000 images.
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
    ("animal10N", "real"): {"ce": "79.4", "SELFIE": "81.8", "PLC": "83.4"}
    | {"Nested Co-teaching": "84.1", "C2MT": "85.9"},
}


@dataclass(frozen=True)
class FinishedRun:
    """A run that reached its last epoch.

    cell: dataset, noise and method; settings: all else but the seed that its accuracy depends on;
    accuracies: best, last and mean of the last ten, in per cent; seconds: of all epochs.
    """

    folder: Path
    config: dict
    cell: tuple[str, str, str]
    settings: dict
    accuracies: tuple[float, float, float]
    seconds: float


def noise_of(config: dict) -> str:
    """`sym 0.5`, `human worst`, `labels of FILE`, or `real` if no noise was injected."""
    mode = config.get("noise_mode")
    if mode in HUMAN_LABELS:
        return f"human {mode}"
    if config.get("noise_file"):
        return f"labels of {Path(config['noise_file']).name}"
    return f"{mode} {config['r']:g}" if mode else "real"


def method_of(config: dict) -> str:
    """The method with those of its parts that were switched on or off."""
    name, recalibrates = config["method"], bool(config.get("recalibrate_every"))
    own_loss = "mixup" if name == "smr" else "ce"
    warmup_loss = config.get("warmup_loss", own_loss)
    parts = {
        f"{warmup_loss} warm-up": warmup_loss != own_loss,
        "no recalibration": name == "smr" and not recalibrates,
        "recalibration": name == "dividemix" and recalibrates,
        "strong augmentation": config.get("augment") == "strong",
    }
    return ", ".join([name, *(part for part, switched in parts.items() if switched)])


def read_run(folder: Path) -> FinishedRun | str:
    """The run of a folder, or why it cannot be averaged."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows = read_metrics(folder)
        last = config["num_epochs"] + config.get("finetune_epochs", 0)
        if [row["epoch"] for row in rows] != list(range(last + 1)):
            return f"unfinished, epoch {rows[-1]['epoch'] if rows else '-'} of {last}"
        settings = {key: value for key, value in config.items() if key not in NO_SETTINGS}
        if config.get("noise_file"):
            settings["noise_sha256"] = config.get("noise_sha256", "")[:8]
        cell = (config["dataset"], noise_of(config), method_of(config))
        each = [row["test/accuracy"] for row in rows]
        # Of networks selected on other images, if there are, else the highest.
        best = config.get("selected_accuracy", max(each))
        accuracies = best, each[-1], statistics.mean(each[-10:])
        seconds = sum(row["time/seconds"] for row in rows)
        return FinishedRun(folder, config, cell, settings, accuracies, seconds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"not a run, or its files are damaged ({error!r})"


def share_noise_rates(runs: Sequence[FinishedRun]) -> None:
    """Give the runs of a cell whose noise rates agree within chance the same noise rate.

    Those of seeds on n labels have a standard deviation below 0.3/√n; a gap of 2/√n separates.
    """
    groups: dict[tuple, tuple[float, float]] = {}  # cell → lowest and highest rate of a group
    for run in sorted(runs, key=lambda run: run.config.get("noise_rate") or 0.0):
        rate = run.config.get("noise_rate") or 0.0
        lowest, highest = groups.get(run.cell, (rate, rate))
        if rate - highest > 2 / run.config.get("train_images", PUBLISHED_IMAGES) ** 0.5:
            lowest = rate
        groups[run.cell] = lowest, rate
        run.settings["noise_rate"] = round(lowest, 4)


def one_per_seed(row: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """The first run of each seed, and a note on each other one."""
    firsts, notes = {}, []
    for run in row:
        first = firsts.setdefault(run.config["seed"], run)
        if first is not run:
            note = f"{run.folder}: seed {run.config['seed']} as {first.folder}"
            same = run.config.get("noise_sha256") == first.config.get("noise_sha256")
            notes.append(note if same else f"{note}, with other training labels")
    return list(firsts.values()), notes


def differences(run: FinishedRun, cell: Sequence[FinishedRun]) -> str:
    """The run's settings in which the rows of its cell differ; '' if there are none."""
    keys = sorted({key for other in cell for key in other.settings})
    values = {key: [each.settings.get(key) for each in (run, *cell)] for key in keys}
    differing = [key for key in keys if any(value != values[key][0] for value in values[key])]
    return ", ".join(f"{key} {show_value(values[key][0])}" for key in differing)


def mean_and_deviation(values: Sequence[float], form: str = ".2f") -> str:
    """`mean ± standard deviation` of the sample; the mean of a single value."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):{form}}"


def published(run: FinishedRun) -> str:
    """The published figure of a run's cell, else other methods'.

    None for a part of the training set or a frozen backbone, which is another network.
    """
    *data, method = run.cell
    whole = run.config.get("train_images", PUBLISHED_IMAGES) >= PUBLISHED_IMAGES
    comparable = whole and not run.config.get("freeze_backbone")
    figures = PUBLISHED.get(tuple(data), {}) if comparable else {}
    others = ", ".join(f"{name} {figure}" for name, figure in figures.items())
    return figures.get(method) or others or "–"


def table_row(row: Sequence[FinishedRun], note: str) -> list[str]:
    """The table's cells under HEADINGS; `note` follows the method."""
    dataset, noise, method = row[0].cell
    cells = [dataset, noise, f"{method} ({note})" if note else method]
    cells += [str(row[0].config["num_epochs"]), str(len(row))]
    cells += map(mean_and_deviation, zip(*(run.accuracies for run in row), strict=True))
    return [*cells, duration(statistics.mean(run.seconds for run in row)), published(row[0])]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these lines of cells, the first one its headings."""
    heading, *rows = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, ["---"] * len(heading), *rows))


def run_folders(paths: Iterable[Path]) -> Iterator[Path]:
    """The paths, with a folder of runs replaced by its runs."""
    for path in paths:
        runs = sorted(config.parent for config in path.glob("*/config.json"))
        yield from runs if runs and not (path / "config.json").exists() else [path]


def compare(paths: Sequence[Path]) -> str:
    """The table and the notes below it. Raises InputError if there is no finished run."""
    runs = {folder: read_run(folder) for folder in run_folders(paths)}
    excluded = [f"{folder}: {why}" for folder, why in runs.items() if isinstance(why, str)]
    finished = [run for run in runs.values() if isinstance(run, FinishedRun)]
    if not finished:
        raise InputError("no finished run: " + "; ".join(excluded))
    share_noise_rates(finished)
    rows: dict[tuple, list[FinishedRun]] = {}
    for run in finished:
        key = *run.cell, json.dumps(run.settings, sort_keys=True)
        rows.setdefault(key, []).append(run)
    lines, warnings = [HEADINGS], []
    for _, row in sorted(rows.items()):
        row, repeated = one_per_seed(row)
        excluded += repeated
        sizes = sorted({run.config.get("world_size", 1) for run in row})
        if len(sizes) > 1:  # docs/reproduce.md
            words = f"{' and '.join(map(str, sizes))} processes, which differ within noise"
            warnings.append(f"{', '.join(row[0].cell)}: runs of {words}")
        cell = [run for run in finished if run.cell == row[0].cell]
        lines.append(table_row(row, differences(row[0], cell)))
    text = markdown(lines)
    for heading, notes in (("Averaged together", warnings), ("Not averaged in", excluded)):
        text += f"\n{heading}:\n\n" + "".join(f"- {note}\n" for note in notes) if notes else ""
    return text


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of them")
    args = parser.parse_args(argv)
    show(compare(args.folders))


if __name__ == "__main__":
    sys.exit(main())

"""One published cell on real CIFAR-10, from data to a row of the results table.

    python benchmarks/reproduce.py sym50 --data_path ./data/cifar-10-batches-py
    python benchmarks/reproduce.py sym50 --short --method dividemix
    python benchmarks/reproduce.py parity

The same command again goes on where a stopped run was. Flags that are not below are those of
train_cifar.py. Each cell, method, protocol and seed has a run folder of its own; its records are
copied to benchmarks/results/, whose table is written anew. `parity` trains three epochs in float32
without compilation and in the device's fast setting, and puts them side by side.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare_runs
import experiment
import train_cifar
from support import options

RESULTS = Path(__file__).resolve().parent / "results"
# SPEC 7; lambda_u and all else come from the recipe.
CELLS = {
    "sym20": ["--r", "0.2", "--noise_mode", "sym"],
    "sym50": ["--r", "0.5", "--noise_mode", "sym"],
    "sym80": ["--r", "0.8", "--noise_mode", "sym"],
    "sym90": ["--r", "0.9", "--noise_mode", "sym"],
    "asym40": ["--r", "0.4", "--noise_mode", "asym"],
    "worst": ["--noise_mode", "worst"],
}
# Where 300 epochs take too long: the learning rate falls at the same share of the run.
SHORT = ["--num_epochs", "100", "--lr_steps", "50:0.1"]
# Three epochs: one of warm-up, and two that split, guess and mix.
PARITY = ["--num_epochs", "2", "--warm_up", "1"]
PRECISIONS = {"float32": ["--amp", "off", "--compile", "off"], "fast": []}
RECORDS = ("metrics.jsonl", "acc.txt", "stats.txt")
# What config.json says of a machine's folders, which is nobody else's business.
PLACES = ("data_path", "output", "noise_file")


def main(argv: list[str] | None = None) -> int:
    """Run a cell, or parity; the exit status."""
    parser = options.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("cell", choices=(*CELLS, "parity"))
    parser.add_argument("--short", action="store_true", help="100 epochs, not 300")
    parser.add_argument("--method", choices=("smr", "dividemix", "ce"), default="smr")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args, flags = parser.parse_known_args(argv)
    if args.cell == "parity":
        return parity(flags, args.results / "parity")
    protocol = "short" if args.short else "full"
    return reproduce(
        [*CELLS[args.cell], "--method", args.method, "--id", f"{args.method}_{protocol}"]
        + (SHORT if args.short else [])
        + flags,
        args.results / protocol,
    )


def reproduce(flags: Sequence[str], results: Path) -> int:
    """Train or go on with the run of these flags; on success keep its records and the table."""
    status = train_cifar.main([*flags, "--resume"])
    if status == 0:
        keep_records(run_folder(flags), results)
        folders = sorted(path.parent for path in results.glob("*/config.json"))
        table = compare_runs.compare(folders)
        (results / "table.md").write_text(table, encoding="utf-8")
        print(table, end="")
    return status


def run_folder(flags: Sequence[str]) -> Path:
    """Where train_cifar.py keeps the run of these flags."""
    given = options.given_flags(train_cifar.new_parser().parse_args(flags))
    wanted = options.DEFAULTS | given
    device = options.find_device(wanted["device"], wanted["gpuid"])
    config = train_cifar.resolve(given, device)
    return Path(config["output"]) / experiment.run_name(config)


def keep_records(run: Path, results: Path) -> None:
    """Copy what a run's figures rest on to a folder of its name, without the machine's paths."""
    kept = results / run.name
    kept.mkdir(parents=True, exist_ok=True)
    for name in RECORDS:
        shutil.copyfile(run / name, kept / name)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config |= {place: Path(config[place]).name for place in PLACES if config.get(place)}
    experiment.replace_json(kept / "config.json", config)


def parity(flags: Sequence[str], results: Path) -> int:
    """The three epochs in both settings, same seed, and their figures side by side."""
    found = {}
    for name, precision in PRECISIONS.items():
        given = [*CELLS["sym50"], *PARITY, *precision, "--id", f"parity_{name}", *flags]
        status = train_cifar.main([*given, "--resume"])
        if status != 0:
            return status
        keep_records(run_folder(given), results)
        found[name] = experiment.read_metrics(run_folder(given))
    table = side_by_side(found)
    (results / "table.md").write_text(table, encoding="utf-8")
    print(table, end="")
    return 0


def side_by_side(found: dict[str, list[dict]]) -> str:
    """A Markdown table: accuracy, losses, split and seconds of each epoch, a column a setting."""
    figures = {
        "test/accuracy": ".2f",
        "train/net1/loss": ".4f",
        "train/net2/loss": ".4f",
        "split/net1/auc": ".4f",
        "split/net2/auc": ".4f",
        "split/net1/labelled": ".0f",
        "split/net2/labelled": ".0f",
        "time/seconds": ".1f",
    }
    lines = [("epoch", "figure", *found), ("---",) * (2 + len(found))]
    for epochs in zip(*found.values(), strict=True):
        for name, form in figures.items():
            if name in epochs[0]:
                values = (format(metrics[name], form) for metrics in epochs)
                lines.append((str(epochs[0]["epoch"]), name, *values))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())

"""One published cell on real CIFAR-10, from data to a row of the results table.

    python benchmarks/reproduce.py sym50 --data_path ./data/cifar-10-batches-py
    python benchmarks/reproduce.py sym50 --short --method dividemix
    python benchmarks/reproduce.py sym50 --small --seed 1
    python benchmarks/reproduce.py parity

The same command again goes on where a stopped run was. Flags that are not below are those of
train_cifar.py. Each cell, method, protocol and seed has a run folder of its own; its records are
copied to benchmarks/results/, whose table is written anew. --small is a protocol for a CPU: 5,000
training images, all test images, a narrow network, 60 epochs. `parity` trains three epochs in
float32 without compilation and in the device's fast setting, and puts them side by side.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare_runs
import train_cifar
from smr.files import replace_json, replace_text
from smr.record.records import read_metrics, run_name
from smr.run import devices, options

RESULTS = Path(__file__).resolve().parent / "results"
# Method 7; lambda_u and all else come from the recipe.
CELLS = {
    "sym20": ["--r", "0.2", "--noise_mode", "sym"],
    "sym50": ["--r", "0.5", "--noise_mode", "sym"],
    "sym80": ["--r", "0.8", "--noise_mode", "sym"],
    "sym90": ["--r", "0.9", "--noise_mode", "sym"],
    "asym40": ["--r", "0.4", "--noise_mode", "asym"],
    "worst": ["--noise_mode", "worst"],
}
# What a protocol changes in the published recipe. Where 300 epochs take too long the learning rate
# falls at the same share of the run; the small one is about a thousandth of the work.
PROTOCOLS = {
    "full": [],
    "short": ["--num_epochs", "100", "--lr_steps", "50:0.1"],
    "small": [
        *("--train_images", "5000", "--width", "16", "--batch_size", "64", "--num_epochs", "60"),
        *("--lr_steps", "40:0.1", "--warm_up", "10", "--recalibrate_every", "15"),
    ],
}
# Three epochs: one of warm-up, and two that split, guess and mix.
PARITY = ["--num_epochs", "2", "--warm_up", "1"]
PRECISIONS = {"float32": ["--amp", "off", "--compile", "off"], "fast": []}
# What config.json says of a machine's folders, which is nobody else's business.
PLACES = ("data_path", "output", "noise_file")
DIGITS = 6  # of the figures kept


def main(argv: list[str] | None = None) -> int:
    """Run a cell, or parity; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("cell", choices=(*CELLS, "parity"))
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--short", action="store_true", help="100 epochs, not 300")
    length.add_argument("--small", action="store_true", help="the protocol for a CPU")
    parser.add_argument("--method", choices=("smr", "dividemix", "ce"), default="smr")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args, flags = parser.parse_known_args(argv)
    if args.cell == "parity":
        return parity(flags, args.results / "parity")
    protocol = "short" if args.short else "small" if args.small else "full"
    given = [*CELLS[args.cell], "--method", args.method, "--id", protocol]
    return reproduce([*given, *settings(protocol, args.method), *flags], args.results / protocol)


def settings(protocol: str, method: str) -> list[str]:
    """The protocol's flags, but for those that a baseline has not."""
    without = {"ce": ("--warm_up", "--recalibrate_every"), "dividemix": ("--recalibrate_every",)}
    flags = PROTOCOLS[protocol]
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [word for pair in pairs if pair[0] not in without.get(method, ()) for word in pair]


def reproduce(flags: Sequence[str], results: Path) -> int:
    """Train or go on with the run of these flags; on success keep its records and the table."""
    status = train_cifar.main([*flags, "--resume"])
    if status == 0:
        keep_records(run_folder(flags), results)
        folders = sorted(path.parent for path in results.glob("*/config.json"))
        table = compare_runs.compare(folders)
        replace_text(results / "table.md", table)
        print(table, end="")
    return status


def run_folder(flags: Sequence[str]) -> Path:
    """Where train_cifar.py keeps the run of these flags."""
    given = options.given_flags(train_cifar.new_parser().parse_args(flags))
    wanted = options.DEFAULTS | given
    device = devices.find_device(wanted["device"], wanted["gpuid"])
    config = train_cifar.resolve(given, device)
    return Path(config["output"]) / run_name(config)


def keep_records(run: Path, results: Path) -> None:
    """Copy what a run's figures rest on to a folder of its name, without the machine's paths."""
    kept = results / run.name
    kept.mkdir(parents=True, exist_ok=True)
    rows = [{name: rounded(value) for name, value in row.items()} for row in read_metrics(run)]
    replace_text(kept / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config |= {place: Path(config[place]).name for place in PLACES if config.get(place)}
    replace_json(kept / "config.json", config)


def rounded(value):
    """A number to the digits kept; anything else as it is."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def parity(flags: Sequence[str], results: Path) -> int:
    """The three epochs in both settings, same seed, and their figures side by side."""
    found = {}
    for name, precision in PRECISIONS.items():
        given = [*CELLS["sym50"], *PARITY, *precision, "--id", f"parity_{name}", *flags]
        status = train_cifar.main([*given, "--resume"])
        if status != 0:
            return status
        keep_records(run_folder(given), results)
        found[name] = read_metrics(run_folder(given))
    table = side_by_side(found)
    replace_text(results / "table.md", table)
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

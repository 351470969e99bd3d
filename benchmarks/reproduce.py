"""One published cell on real CIFAR-10, from data to a row of the results table.

    python benchmarks/reproduce.py sym50 --data_path ./data/cifar-10-batches-py
    python benchmarks/reproduce.py sym50 --small --method dividemix --seed 1
    python benchmarks/reproduce.py sym50 --small --recalibrate_every 0 --seed 1
    python benchmarks/reproduce.py parity

The same command again goes on where a stopped run was. Flags that are not below are those of
train_cifar.py; what they change of the protocol stands at the end of the run's name. `--small` is
for a CPU: 5,000 training images, 60 epochs and a network a quarter as wide; `--amp bf16` is faster
where the CPU has matrix units for it, and very slow where it has none. A finished run's records
are kept in benchmarks/results/, whose table is written anew. `parity` trains three epochs in
float32 without compilation and in the device's fast setting, and puts them side by side.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare_runs
import train_cifar
from smr.files import write_json, write_text
from smr.logging.metrics_file import read_metrics, run_name
from smr.run import options
from smr.run import run as session

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
PROTOCOLS = {
    "full": [],
    # Where 300 epochs take too long: the learning rate falls at the same share of the run.
    "short": ["--num_epochs", "100", "--lr_steps", "50:0.1"],
    # A CPU's evening: the last epoch but one recalibrates, as in the published 300.
    "small": [
        *("--train_images", "5000", "--width", "16", "--batch_size", "64"),
        *("--num_epochs", "60", "--lr_steps", "40:0.1"),
    ],
}
# What `small` sets besides, of the methods that have it.
SMALL_PERIODS = {
    "smr": ["--warm_up", "10", "--recalibrate_every", "15"],
    "dividemix": ["--warm_up", "10"],
    "ce": [],
}
# Three epochs: one of warm-up, and two that split, guess and mix.
PARITY = ["--num_epochs", "2", "--warm_up", "1"]
PRECISIONS = {"float32": ["--amp", "off", "--compile", "off"], "fast": []}
# What parity shows of an epoch, by its format.
FIGURES = {
    ".2f": ["test/accuracy"],
    ".4f": ["train/net1/loss", "train/net2/loss", "split/net1/auc", "split/net2/auc"],
    ".0f": ["split/net1/labeled", "split/net2/labeled"],
    ".1f": ["time/seconds"],
}
# What config.json says of a machine's folders, which is nobody else's business.
PLACES = ("data_path", "output", "noise_file")


def main(argv: list[str] | None = None) -> int:
    """Run a cell, or parity; the exit status."""
    parser = options.Parser(__doc__)
    parser.add_argument("cell", choices=(*CELLS, "parity"))
    protocol = parser.add_mutually_exclusive_group()
    protocol.add_argument("--short", action="store_true", help="100 epochs, not 300")
    protocol.add_argument("--small", action="store_true", help="5,000 images, 60 epochs, width 16")
    parser.add_argument("--method", choices=tuple(SMALL_PERIODS), default="smr")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args, flags = parser.parse_known_args(argv)
    if args.cell == "parity":
        return parity(flags, args.results / "parity")
    name = "small" if args.small else "short" if args.short else "full"
    given = [*CELLS[args.cell], "--method", args.method, *PROTOCOLS[name]]
    given += SMALL_PERIODS[args.method] if args.small else []
    given += ["--id", name + variant(flags)]
    return reproduce([*given, *flags], args.results / name)


def variant(flags: Sequence[str]) -> str:
    """What these flags change of a protocol, as the end of a run's name."""
    unchanging = {*options.FREE, *options.SPEED, "seed"}
    given = options.given_flags(train_cifar.new_parser().parse_args(flags))
    words = (f"_{k}-{options.shown(k, v)}" for k, v in given.items() if k not in unchanging)
    return re.sub(r"[^\w.+-]", "-", "".join(words))


def reproduce(flags: Sequence[str], results: Path) -> int:
    """Train or go on with the run of these flags; on success keep its records and the table."""
    status = train_cifar.main([*flags, "--resume"])
    if status == 0:
        keep_records(run_folder(flags), results)
        table = compare_runs.compare([results]).replace(f"{results}{os.sep}", "")
        write_text(results / "table.md", table)
        print(table, end="")
    return status


def run_folder(flags: Sequence[str]) -> Path:
    """Where train_cifar.py keeps the run of these flags."""
    given = options.given_flags(train_cifar.new_parser().parse_args(flags))
    config = train_cifar.resolve(given, session.device_of(given))
    return Path(config["output"]) / run_name(config)


def keep_records(run: Path, results: Path) -> None:
    """Keep what a run's figures rest on, to six digits, without the machine's paths."""
    kept = results / run.name
    kept.mkdir(parents=True, exist_ok=True)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config |= {place: Path(config[place]).name for place in PLACES if config.get(place)}
    write_json(kept / "config.json", config)
    rows = [
        {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        for row in read_metrics(run)
    ]
    write_text(kept / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


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
    write_text(results / "table.md", table)
    print(table, end="")
    return 0


def side_by_side(found: dict[str, list[dict]]) -> str:
    """A Markdown table: FIGURES of each epoch, a column a setting."""
    lines = [("epoch", "figure", *found)]
    for epochs in zip(*found.values(), strict=True):
        for form, names in FIGURES.items():
            for name in names:
                if name in epochs[0]:
                    values = (format(metrics[name], form) for metrics in epochs)
                    lines.append((str(epochs[0]["epoch"]), name, *values))
    return compare_runs.markdown(lines)


if __name__ == "__main__":
    sys.exit(main())

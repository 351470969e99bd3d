"""Train a published cell on real CIFAR-10, from the data to a row of the results table.

    python benchmarks/reproduce.py sym50 --data_path ./data/cifar-10-batches-py
    python benchmarks/reproduce.py sym50 --small --method dividemix --seed 1
    python benchmarks/reproduce.py sym50 --small --recalibrate_every 0 --seed 1
    python benchmarks/reproduce.py sym50 --frozen --weights lite0.pth --seed 1

The same command resumes an interrupted run. Flags that are not listed below are those of
train_cifar.py; those that change the protocol become the end of the run's name. `--small` is for a
CPU: 5,000 training images, 60 epochs and a network of width 16; `--amp bf16` is faster on a CPU
with bf16 matrix units, and very slow on others. The metrics of a finished run are copied to
benchmarks/results/, and the table there is updated. `--frozen` trains two heads on features of
all 50,000 images (benchmarks/frozen_cifar.py) and adds a line to benchmarks/results/frozen.jsonl;
with `--method baselines` those of cleanlab and of neighbors.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import frozen_cifar
from frozen_cifar import FrozenCifarConfig

import compare_runs
import train_cifar
from smr.config import configure
from smr.files import write_json, write_text
from smr.flags import DEVICE, FREE, Parser, flags_of, parse, show_value
from smr.logging.console import show
from smr.logging.metrics_file import read_metrics
from smr.methods import METHODS
from smr.run.command import command
from smr.run.run_dir import run_name
from train_cifar import CifarConfig

# Of --frozen: no method, but cleanlab and votes of neighbors.
BASELINES = "baselines"
RESULTS = Path(__file__).resolve().parent / "results"
# lambda_u and all other hyperparameters are train_cifar.py's own for the cell.
CELLS = {
    "sym20": ["--r", "0.2", "--noise_mode", "sym"],
    "sym50": ["--r", "0.5", "--noise_mode", "sym"],
    "sym80": ["--r", "0.8", "--noise_mode", "sym"],
    "sym90": ["--r", "0.9", "--noise_mode", "sym"],
    "asym40": ["--r", "0.4", "--noise_mode", "asym"],
    "aggre": ["--noise_mode", "aggre"],
    "rand1": ["--noise_mode", "rand1"],
    "worst": ["--noise_mode", "worst"],
}
PROTOCOLS = {
    "full": [],
    # A third of the epochs; the learning rate falls at the same share of the run.
    "short": ["--num_epochs", "100", "--lr_steps", "50:0.1"],
    # An hour or two on a CPU; the last epoch but one recalibrates, as in the published 300.
    "small": [
        *("--train_images", "5000", "--width", "16", "--batch_size", "64"),
        *("--num_epochs", "60", "--lr_steps", "40:0.1"),
    ],
}
# What `small` sets for the methods that have it.
SMALL_PERIODS = {
    "smr": ["--warm_up", "10", "--recalibrate_every", "15"],
    "dividemix": ["--warm_up", "10"],
    "ce": [],
}
# Of these paths in config.json only the last part is copied.
PATHS = ("data_path", "output", "noise_file", "weights")


@command
def main(argv: list[str] | None = None) -> int:
    """Run a cell; returns the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("cell", choices=tuple(CELLS))
    protocol = parser.add_mutually_exclusive_group()
    protocol.add_argument("--short", action="store_true", help="100 epochs, not 300")
    protocol.add_argument("--small", action="store_true", help="5,000 images, 60 epochs, width 16")
    protocol.add_argument("--frozen", action="store_true", help="heads on frozen features")
    parser.add_argument("--method", choices=(*METHODS, BASELINES), default="smr")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args, flags = parser.parse_known_args(argv)
    if args.frozen:
        flags = [*CELLS[args.cell], "--id", "frozen" + variant(flags, FrozenCifarConfig), *flags]
        return reproduce_frozen(args.cell, args.method, flags, args.results / "frozen.jsonl")
    name = "small" if args.small else "short" if args.short else "full"
    cell = [*CELLS[args.cell], "--method", args.method, *PROTOCOLS[name]]
    cell += SMALL_PERIODS.get(args.method, []) if args.small else []
    return reproduce([*cell, "--id", name + variant(flags), *flags], args.results / name)


def variant(flags: Sequence[str], config_class: type[CifarConfig] = CifarConfig) -> str:
    """What these flags change of a protocol, as the end of a run's name."""
    changes, _ = parse(config_class, "", list(flags))
    rules = {name: each.metadata["resume"] for name, each in flags_of(config_class).items()}
    words = (
        f"_{name}-{show_value(value)}"
        for name, value in changes.items()
        if name not in ("seed", "num_epochs", "weights") and rules.get(name) not in (FREE, DEVICE)
    )
    return re.sub(r"[^\w.+-]", "-", "".join(words))


def run_folder(flags: Sequence[str], config_class: type[CifarConfig] = CifarConfig) -> Path:
    """The folder of the run that a script starts with these flags."""
    given, _ = parse(config_class, "", list(flags))
    config = configure(config_class, **given)
    return Path(config.output) / run_name(config)


def reproduce(flags: Sequence[str], results: Path) -> int:
    """Start or resume the run of these flags; if it finishes, copy its metrics and make the table.

    Returns the exit status.
    """
    status = train_cifar.main([*flags, "--resume"])
    if status == 0:
        copy_metrics(run_folder(flags), results)
        table = compare_runs.compare([results]).replace(f"{results}{os.sep}", "")
        write_text(results / "table.md", table)
        show(table)
    return status


def reproduce_frozen(cell: str, method: str, flags: Sequence[str], results: Path) -> int:
    """Start or resume a run of two heads, or the baselines; adds lines to the results.

    Returns the exit status.
    """
    if method == BASELINES:
        lines = frozen_cifar.baselines([*flags, "--method", "ce", "--id", BASELINES])
    else:
        flags = [*flags, "--method", method]
        status = frozen_cifar.main([*flags, "--resume"])
        if status != 0:
            return status
        lines = [frozen_cifar.line_of(run_folder(flags, FrozenCifarConfig))]
    for line in lines:
        frozen_cifar.record({"cell": cell} | line, results)
        show(json.dumps(line))
    return 0


def copy_metrics(folder: Path, results: Path) -> None:
    """Copy config.json and metrics.jsonl, to six digits, without the machine's paths."""
    copy = results / folder.name
    copy.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {name: Path(config[name]).name for name in PATHS if config.get(name)}
    write_json(copy / "config.json", config)
    rows = [
        {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        for row in read_metrics(folder)
    ]
    write_text(copy / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

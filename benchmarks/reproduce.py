"""One published cell on real CIFAR-10, from data to a row of the results table.

    python benchmarks/reproduce.py sym50 --data_path ./data/cifar-10-batches-py
    python benchmarks/reproduce.py sym50 --small --method dividemix --seed 1
    python benchmarks/reproduce.py sym50 --small --warmup_loss ce --seed 1
    python benchmarks/reproduce.py parity

The same command again goes on where a stopped run was. Flags that are not below are those of
train_cifar.py; what they change of the protocol stands in the run's name. `--small` is for a CPU:
5,000 training images, 60 epochs, a network a quarter as wide; `--amp bf16` takes a third of the
time where the CPU has matrix units for it. The records of a finished run are kept under
benchmarks/results/, whose table is written anew. `parity` trains three epochs in float32 without
compilation and in the device's fast setting, and puts them side by side.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


RESULTS = Path(__file__).resolve().parent / "results"
# Method 7; lambda_u and all else come from the recipe.
CELLS = {f"sym{r}": ["--r", f"0.{r // 10}", "--noise_mode", "sym"] for r in (20, 50, 80, 90)}
CELLS["asym40"] = ["--r", "0.4", "--noise_mode", "asym"]
CELLS["worst"] = ["--noise_mode", "worst"]
SMALL = [
    "--train_images",
    "5000",
    "--width",
    "16",
    "--batch_size",
    "64",
    "--num_epochs",
    "60",
    "--lr_steps",
    "40:0.1",
]
PROTOCOLS = {
    "full": [],
    # Where 300 epochs take too long: the learning rate falls at the same share of the run.
    "short": ["--num_epochs", "100", "--lr_steps", "50:0.1"],
    "small": SMALL,
}
# The periods of `small`, for the methods that have them.
PERIODS = {
    "smr": ["--warm_up", "10", "--recalibrate_every", "15"],
    "dividemix": ["--warm_up", "10"],
    "ce": [],
}
# Three epochs: one of warm-up, and two that split, guess and mix.
PARITY = ["--num_epochs", "2", "--warm_up", "1"]
PRECISIONS = {"float32": ["--amp", "off", "--compile", "off"], "fast": []}
# Figures that parity shows of each epoch, and their format.
SHOWN = {"test/accuracy": ".2f", "time/seconds": ".1f"} | {
    f"{figure.format(k)}": form
    for figure, form in (
        ("train/net{}/loss", ".4f"),
        ("split/net{}/auc", ".4f"),
        ("split/net{}/labelled", ".0f"),
    )
    for k in (1, 2)
}

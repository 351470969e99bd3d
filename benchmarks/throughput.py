"""How fast the data path, each step and an epoch run here, against plain implementations.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py --quick
    python benchmarks/throughput.py --compile on --profile

Images are random bytes in CIFAR-10's shape: nothing is read. On a CUDA card the settings are those
of training there, bf16 and compiled; the epoch then has CIFAR-10's full size. Every turn of every
contender is a process of its own, plain's as any program's, ours as our scripts'; turns go A B A B,
so that a slow moment slows all, and a ratio is the median over the pairs.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pieces
from contenders import COMPILED, EAGER, PLAIN, time_steps

from PreResNet import ResNet18
from smr.logging.metrics_file import memory_line
from smr.run import devices, options

# What a process of its own finds, by the name that --part gives it.
PARTS = {"ceilings": pieces.ceilings, "data": pieces.data_path, "epoch": pieces.epoch}
PARTS |= {name: partial(time_steps, name) for name in (PLAIN, EAGER, COMPILED)}
# Step → images in units of B, and passes over B: a forward pass is 1, a backward pass 2; the peer
# sees both views, the trained network four.
STEPS = {"scoring": (1, 1), "warm-up": (2, 2 * 3), "semi-supervised": (4, 2 + 4 + 4 * 3)}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, with what the device and --quick change filled in."""
    parser = options.Parser(__doc__)
    add, whole = parser.add_argument, options.number(int, 1)
    add("--quick", action="store_true", help="under two minutes on two CPU cores")
    add("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto")
    add("--batch_size", type=whole, help="B (default: 128; quick, on a CPU: 16)")
    add("--width", type=whole, default=64, help="of PreAct-ResNet-18 (default: 64)")
    add("--rounds", type=whole, help="turns of each contender (default: 5; quick: 3)")
    add("--images", type=whole, help="in the epoch (default: cuda 50000, else 4B; quick: 2B)")
    add("--amp", choices=("off", "bf16"), help="default: as in training on the device")
    add("--compile", choices=("off", "on"), help="default: as in training on the device")
    add("--only", choices=("data", "steps", "epoch"), help="one of the three parts")
    add("--profile", action="store_true", help="the five costliest operations of a step")
    about = "count CPU seconds, not the wall's: for a machine that others share"
    add("--cpu_time", action="store_true", help=about)
    add("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.device = devices.find_device(args.device, 0)
    usual, on_cuda = options.speed_of(args.device), args.device.type == "cuda"
    args.amp = args.amp == "bf16" if args.amp else usual["amp"]
    args.compile = args.compile == "on" if args.compile else usual["compile"]
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.batch_size = args.batch_size or (16 if args.quick and not on_cuda else 128)
    args.images = args.images or (50_000 if on_cuda else args.batch_size * (4 - 2 * args.quick))
    return args


def measured(part: str, argv: list[str]) -> dict:
    """What a process of its own finds of a part: no other has its memory and its settings."""
    command = [sys.executable, __file__, *argv, "--part", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"throughput.py: '{part}' ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def show_table(*rows: tuple[str, ...]) -> None:
    """Print a Markdown table, its first row the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    print()
    for row in (rows[0], rule, *rows[1:]):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"| {' | '.join(cells)} |")


def median_ratio(seconds: list[float], of: list[float]) -> float:
    """The median over the pairs of turns."""
    return statistics.median(a / b for a, b in zip(seconds, of, strict=True))


def image_flops(width: int) -> int:
    """FLOPs of one image's forward pass, those of convolutions and the linear layer."""
    network = ResNet18(10, width).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def show_data(found: dict) -> None:
    """Train views a second, ours and the ordinary way."""
    rows = [("train views of 32x32, batches of 128", "images/s", "times as fast")]
    ordinary = found["seconds"]["PIL, DataLoader"]
    for name, seconds in found["seconds"].items():
        rate, ratio = found["images"] / min(seconds), median_ratio(ordinary, seconds)
        rows.append((name, f"{rate:,.0f}", f"{ratio:.1f}"))
    show_table(*rows)


def show_steps(turns: dict[str, list[dict]], args: argparse.Namespace, rates: dict) -> None:
    """Each step of each contender beside plain's, and its share of the machine's matrix rate."""
    settings = f"B = {args.batch_size}, width {args.width}, amp {'bf16' if args.amp else 'off'}"
    columns = ("seconds", "of plain", "images/s", "of the matrix rate", "first call, s")
    rows, flops = [(f"step, {settings}", *columns)], image_flops(args.width)
    for step, (images, passes) in STEPS.items():
        seconds = {name: [turn[step]["seconds"] for turn in own] for name, own in turns.items()}
        for name, own in seconds.items():
            best, ceiling = min(own), "bf16" if args.amp and name != PLAIN else "float32"
            share = flops * passes * args.batch_size / best / rates[ceiling]
            row = f"{step}, {name}", f"{best:.4f}", f"{median_ratio(own, seconds[PLAIN]):.2f}"
            row += f"{images * args.batch_size / best:,.0f}", f"{100 * share:.0f} % of {ceiling}"
            rows.append((*row, f"{turns[name][0][step]['first']:.2f}"))
    show_table(*rows)
    for name, own in turns.items():
        print(f"{name}: {memory_line(own[0]['memory'])}")
    newest = list(turns)[-1]
    for step in STEPS if args.profile else ():
        shares = ((row, f"{share:.1f} %") for row, share in turns[newest][0][step]["costliest"])
        show_table((f"{step}, {newest}", "share"), *shares)


def show_epoch(found: dict, images: int) -> None:
    """A semi-supervised epoch by stage, and the mixture at full size."""
    total = sum(found["stages"].values())
    rows = found["stages"] | {"whole epoch": total, "the views, within training": found["views"]}
    shares = ((row, f"{s:.3f}", f"{100 * s / total:.1f} %") for row, s in rows.items())
    show_table((f"semi-supervised epoch, {images} images", "seconds", "share"), *shares)
    print(memory_line(found["memory"]))
    print(f"mixture fitted to 50,000 losses: {found['mixture']:.2f} s for each network")


def processor() -> str:
    """The CPU's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show_machine(args: argparse.Namespace, rates: dict[str, float]) -> None:
    """What the figures below depend on."""
    print("  ".join(f"{name} {version}" for name, version in devices.versions().items()))
    print(f"{devices.hardware(args.device)}, {processor()}")
    print("seconds are " + ("CPU seconds of the process" if args.cpu_time else "wall seconds"))
    products = [f"{rates[name] / 1e9:,.0f} GFLOP/s in {name}" for name in rates if name != "memory"]
    print(
        f"measured ceilings: matrix product {', '.join(products)}; "
        f"memory {rates['memory'] / 1e9:,.0f} GB/s (copied: read and written)"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure and print; with --part, one part as JSON."""
    argv = sys.argv[1:] if argv is None else argv
    with options.one_line_errors("throughput.py"):
        args = parse(argv)
        if args.part:
            print(json.dumps(PARTS[args.part](args)))
            return 0
    rates = measured("ceilings", argv)
    show_machine(args, rates)
    if args.only in (None, "data"):
        show_data(measured("data", argv))
    if args.only in (None, "steps"):
        turns = {name: [] for name in (PLAIN, EAGER, *([COMPILED] if args.compile else []))}
        for _ in range(args.rounds):
            for name, own in turns.items():
                own.append(measured(name, argv))
        show_steps(turns, args, rates)
    if args.only in (None, "epoch"):
        show_epoch(measured("epoch", argv), args.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())

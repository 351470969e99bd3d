"""What a CUDA card makes of training, in its first ten minutes: what waits, what costs, what pays.

    python benchmarks/first_ten_minutes.py --output card.jsonl
    python benchmarks/first_ten_minutes.py --only convolutions

Each finding is a JSON line, printed and added to the file as soon as it is there. A part that fails
leaves a line with its error, and the next one begins. On a CPU everything is tiny: it shows that
the script runs.
"""

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pieces
from contenders import SCRIPT, Clock, Given, Watched, config_of, occupancy, our_steps
from smr.recipe import recipe_of
from smr.run.saving import Saver, copied

import smr.training as passes
from smr import method
from smr.run import checkpoints, devices, options
from smr.run import run as session

FULL = {"batch_size": 128, "width": 64, "images": 50_000, "steps": 50}
FULL |= {"rows": (128, 256, 512), "scored": (128, 512, 1000, 2048)}
TINY = {"batch_size": 4, "width": 2, "images": 48, "steps": 3, "rows": (4,), "scored": (4, 8)}


def machine(args: argparse.Namespace) -> Iterator[dict]:
    """Versions, the device, and what the compiler needs."""
    gcc, header = shutil.which("gcc"), Path(sysconfig.get_path("include"), "Python.h")
    said = subprocess.run([gcc, "--version"], capture_output=True, text=True) if gcc else None
    yield devices.versions() | {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": devices.hardware(args.device),
        "gcc": said and said.stdout.splitlines()[0],
        "Python.h": header.is_file(),
        "compile": args.compile,
    }


def waits(args: argparse.Namespace) -> Iterator[dict]:
    """Five steps of each kind, where whatever waits for the card is an error."""

    def tell(step: int, steps: int) -> None:
        if args.device.type == "cuda":  # the first step may: what it needs is made then
            torch.cuda.set_sync_debug_mode("error" if 0 < step < steps else "default")

    for name, run in our_steps(args, False, partial(Watched, tell)).items():
        try:
            run(6)
            yield {"step": name, "waits": None}
        except RuntimeError as error:
            yield {"step": name, "waits": str(error)}
        finally:
            tell(0, 0)


def compilation(args: argparse.Namespace) -> Iterator[dict]:
    """Seconds of the first pass of each kind, which compiles its graph, and graphs so far."""
    config, clock = config_of(args, args.compile), Clock(args)
    counters.clear()
    network = session.make_pair(SCRIPT, config, args.device).networks[0]

    def run(rows: int, train: bool, gradients: bool) -> None:
        images = torch.randn(rows, 3, 32, 32, device=args.device)
        images = images.to(memory_format=torch.channels_last)
        network.train(train)
        with torch.set_grad_enabled(gradients), passes.autocast(args.device, args.amp):
            loss = network(images).float().square().mean()
        if gradients:
            loss.backward()

    b = args.batch_size
    for name, *kind in (
        ("scoring", 1000, False, False),
        ("views", b, True, False),
        ("the peer's views", 2 * b, False, False),
        ("warm-up", 2 * b, True, True),
        ("mixed", 4 * b, True, True),
    ):
        seconds = [clock.seconds(partial(run, *kind)) for _ in range(2)]
        graphs = counters["stats"]["unique_graphs"]
        yield {"pass": name, "first_s": seconds[0], "second_s": seconds[1], "graphs": graphs}


def steps(args: argparse.Namespace) -> Iterator[dict]:
    """Milliseconds a step: the host's to issue it, and the device's.

    The host waits where the card's queue is full: the least time between two steps is its own.
    """
    marks: list[float] = []
    tell = partial(Watched, lambda *_: marks.append(time.perf_counter()))
    clock = Clock(args)
    for name, run in our_steps(args, args.compile, tell).items():
        run(3)
        marks.clear()
        seconds = clock.seconds(partial(run, args.steps))
        yield {
            "step": name,
            "host_ms": 1e3 * (marks[-1] - marks[0]) / args.steps,
            "host_least_ms": 1e3 * float(np.diff(marks).min()),
            "device_ms": 1e3 * seconds / args.steps,
        }


def cuda_graphs(args: argparse.Namespace) -> Iterator[dict]:
    """The same steps, each graph of the compiler's a CUDA graph."""
    torch.compiler.reset()
    with mock.patch("torch.compile", partial(torch.compile, mode="reduce-overhead")):
        yield from steps(args)
    torch.compiler.reset()


def profile(args: argparse.Namespace) -> Iterator[dict]:
    """Of five steps: what was launched on the card, and the share of time in which it idled."""
    for name, run in our_steps(args, args.compile).items():
        run(3)
        yield {"step": name} | occupancy(partial(run, 5), args.device)


def scoring(args: argparse.Namespace) -> Iterator[dict]:
    """Images scored in a second, by the batch."""
    config, clock = config_of(args), Clock(args)
    network = session.make_pair(SCRIPT, config, args.device).networks[0]
    if args.compile:
        torch.compiler.reset()
        devices.compile_network(network, args.scored)
    for rows in args.scored:
        images = torch.randn(rows, 3, 32, 32, device=args.device)
        index = torch.arange(rows, device=args.device)
        batches = Given(
            clock.calls, images.to(memory_format=torch.channels_last), index % 10, index
        )
        score = partial(passes.sample_losses, network, batches, args.amp)
        score()
        yield {"rows": rows, "images_per_s": rows * clock.calls / clock.seconds(score)}


def epochs(args: argparse.Namespace) -> Iterator[dict]:
    """Semi-supervised epochs by stage, with sym 0.5's labeled share; the first one compiles."""
    config = config_of(args, args.compile) | {"num_epochs": 2, "warm_up": 0}
    recipe, loader = recipe_of(config), pieces.new_loader(args.images, args.batch_size, args.device)
    pair, gmm_split = session.make_pair(SCRIPT, config, args.device), method.gmm_split
    chosen = np.random.default_rng(0).random(args.images) < pieces.LABELLED_SHARE

    def divided(*given):
        clean = np.where(chosen, 0.9, 0.1)
        return replace(gmm_split(*given), labeled=chosen, probability=clean)

    with (
        TemporaryDirectory() as folder,
        mock.patch.object(method, "gmm_split", divided),
        pieces.stopwatches(method, "co_divide", "train_network", "test") as spent,
        Saver(print) as saver,
    ):
        started = time.perf_counter()
        for result in method.train(pair, loader, recipe):
            trained = time.perf_counter()
            saver.wait()
            parts = pair, loader, config, "", [], result.epoch
            state = copied(checkpoints.training_state(SCRIPT.name, *parts))
            saver.start(partial(checkpoints.keep, state, Path(folder), (-1, -1), last=True))
            now = time.perf_counter()
            yield {"epoch": result.epoch, "wall": now - started, **spent, "saving": now - trained}
            spent.clear()
            started = now
        saver.wait()
        yield {"writing a checkpoint, beside": time.perf_counter() - started}
        yield devices.peak_memory(args.device)


PARTS = {
    **{"machine": machine, "waits": waits, "convolutions": pieces.convolutions},
    **{"compilation": compilation, "steps": steps, "profile": profile, "scoring": scoring},
    **{"cuda graphs": cuda_graphs, "epochs": epochs},
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the device's sizes and settings of speed."""
    parser = options.Parser(__doc__)
    add, about = parser.add_argument, "lines are added (default: %(default)s)"
    add("--output", type=Path, default=Path("first_ten_minutes.jsonl"), help=about)
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--only", choices=PARTS, help="one part")
    args = parser.parse_args(argv)
    args.device, args.cpu_time = devices.find_device(args.device, 0), False
    sizes = FULL if args.device.type == "cuda" else TINY
    vars(args).update(options.speed_of(args.device) | sizes)
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure part by part; the exit status: 1 where a part failed."""
    with options.one_line_errors("first_ten_minutes.py"):
        args = parse(argv)
    failed = False

    def write(finding: dict) -> None:
        line = json.dumps(finding)
        print(line, flush=True)
        with open(args.output, "a") as file:
            file.write(line + "\n")

    for name in [args.only] if args.only else PARTS:
        started = time.perf_counter()
        try:
            for finding in PARTS[name](args):
                write({"part": name} | finding)
            write({"part": name, "seconds": time.perf_counter() - started})
        except Exception as error:  # whatever it is, the parts after it have more to tell
            failed = True
            write({"part": name, "error": f"{type(error).__name__}: {error}"})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What a GPU makes of training, in its first ten minutes: what waits, what costs, what helps.

    python benchmarks/first_ten_minutes.py --output gpu.jsonl
    python benchmarks/first_ten_minutes.py --only convolutions

Each finding is a JSON line, printed and added to the file at once. A part that fails leaves a line
with its error, and the next part starts. Training is `train_cifar.py` itself, on images made here.
On a CPU all sizes are tiny: this only shows that the script runs.
"""

import argparse
import collections
import contextlib
import itertools
import json
import pickle
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_cifar
from PreResNet import ResNet18
from smr import devices
from smr.flags import Parser
from smr.logging.console import RunLog
from smr.logging.metrics_file import read_metrics
from smr.run.command import command

# Batch size, width, training images, images of a short run, rows of a convolution and in scoring.
GPU = {"batch_size": 128, "width": 64, "images": 50_000, "short": 12_800}
GPU |= {"rows": (128, 256, 512), "scored": (128, 512, 1000, 2048), "repeats": 20}
CPU = {"batch_size": 8, "width": 2, "images": 110, "short": 110}
CPU |= {"rows": (4,), "scored": (4, 8), "repeats": 1}
# Of a pass's steps: the first of those that are timed, and how many are profiled.
FIRST_TIMED, PROFILED = 2, 5


def write_cifar10(folder: Path, images: int) -> None:
    """Write images of a class's color and noise, in the layout of CIFAR-10's Python files."""
    source = np.random.default_rng(0)
    labels = np.arange(images // 5) % 10
    colors = source.integers(64, 192, (10, 3, 1))[labels]
    contents = {"batches.meta": {b"label_names": [b"class%d" % i for i in range(10)]}}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = (colors + source.integers(-64, 64, (len(labels), 3, 1024))).astype(np.uint8)
        contents[name] = {b"data": data.reshape(-1, 3072), b"labels": labels.tolist()}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def train(args: argparse.Namespace, *flags, progress=lambda *_: None) -> list[dict]:
    """Run train_cifar.py with sym 0.5; its rows of metrics.jsonl.

    Args: progress is called after each step with the arguments of `RunLog.progress`.
    """
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        write_cifar10(Path(folder), args.images)
        output = Path(folder) / "runs"
        argv = ["--data_path", folder, "--output", output, "--device", args.device.type, *flags]
        argv += ["--batch_size", args.batch_size, "--width", args.width, "--review", 0]
        with mock.patch.object(RunLog, "progress", lambda _, *place: progress(*place)):
            status = train_cifar.main([str(word) for word in argv])
        if status:
            raise RuntimeError(f"train_cifar.py: exit status {status}")
        return read_metrics(next(output.iterdir()))


def synchronize(args: argparse.Namespace) -> None:
    """Wait for the GPU."""
    if args.device.type != "cpu":
        torch.accelerator.synchronize(args.device)


def milliseconds(args: argparse.Namespace, call: Callable) -> float:
    """Of a call: the mean over `repeats` calls between two waits, after one that is not timed."""
    call()
    synchronize(args)
    started = time.perf_counter()
    for _ in range(args.repeats):
        call()
    synchronize(args)
    return 1e3 * (time.perf_counter() - started) / args.repeats


def machine(args: argparse.Namespace) -> Iterator[dict]:
    """Versions, the device, and whether it can compile."""
    yield devices.versions() | {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": devices.hardware(args.device),
        "can_compile": devices.can_compile(args.device),
    }


def waits(args: argparse.Namespace) -> Iterator[dict]:
    """The lines of code that wait for the GPU in a warm-up and a semi-supervised epoch.

    A line that waits in every step appears about as often as there are steps.
    """
    steps, on_gpu = [], args.device.type == "cuda"
    flags = ("--num_epochs", 1, "--warm_up", 1, "--compile", "off", "--train_images", args.short)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        train(args, *flags, progress=lambda *place: steps.append(place))
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    lines = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)]
    yield {"steps": len(steps), "waits": dict(collections.Counter(lines).most_common())}


def distinct_convolutions(network: nn.Module) -> list[tuple[nn.Conv2d, int]]:
    """The convolutions that differ, each with the side of its input images."""
    layers = {}

    def note(conv: nn.Conv2d, inputs: tuple[Tensor], _) -> None:
        key = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride
        layers.setdefault((*key, inputs[0].shape[2]), (conv, inputs[0].shape[2]))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return list(layers.values())


def convolutions(args: argparse.Namespace) -> Iterator[dict]:
    """Each convolution forward and back, by rows and cudnn.benchmark; the stem also padded to 8."""
    layers = distinct_convolutions(ResNet18(10, args.width))
    stem, side = layers[0]
    layers.append((nn.Conv2d(8, stem.out_channels, 3, padding=1, bias=False), side))
    layout = {"device": args.device, "memory_format": torch.channels_last, "dtype": args.dtype}
    for (conv, side), rows, search in itertools.product(layers, args.rows, (False, True)):
        torch.backends.cudnn.benchmark = search
        weight = conv.weight.detach().to(**layout)
        images = torch.randn(rows, conv.in_channels, side, side).to(**layout)
        forward = partial(F.conv2d, images, weight, None, conv.stride, conv.padding)
        tensors = torch.ones_like(forward()), images, weight, None, conv.stride, conv.padding
        back = partial(torch.ops.aten.convolution_backward, *tensors, (1, 1), False, (0, 0), 1)
        yield {
            "convolution": f"{conv.in_channels} to {conv.out_channels} at {side}",
            **{"kernel": conv.kernel_size[0], "stride": conv.stride[0], "rows": rows},
            "benchmark": search,
            "forward_ms": milliseconds(args, forward),
            "of_images_ms": milliseconds(args, partial(back, (True, False, False))),
            "of_weights_ms": milliseconds(args, partial(back, (False, True, False))),
        }
    torch.backends.cudnn.benchmark = False


def scoring(args: argparse.Namespace) -> Iterator[dict]:
    """Images scored per second by a network, by the batch."""
    network = ResNet18(10, args.width).eval().to(args.device, memory_format=torch.channels_last)
    settings = (False, True) if args.compile else (False,)
    for compiled, rows in itertools.product(settings, args.scored):
        forward = torch.compile(network) if compiled else network
        images = torch.randn(rows, 3, 32, 32, device=args.device)
        images = images.to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(args.device.type, args.dtype, args.amp):
            per_call = milliseconds(args, partial(forward, images))
        yield {"rows": rows, "compiled": compiled, "images_per_s": 1e3 * rows / per_call}


class StepTimer:
    """Times the steps of the first network in each pass, and profiles some of the second's."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.marks, self.profiles = args, collections.defaultdict(list), {}

    def __call__(self, epoch: int, kind: str, network: int, step: int, steps: int, _meter) -> None:
        profiles = self.args.device.type == "cuda" and steps >= FIRST_TIMED + PROFILED
        if network == 1:
            if step in (FIRST_TIMED, steps):
                synchronize(self.args)
            self.marks[kind, epoch].append(time.perf_counter())
        elif step == FIRST_TIMED and profiles:
            synchronize(self.args)
            self.profile = torch.profiler.profile()
            self.profile.start()
        elif step == FIRST_TIMED + PROFILED and profiles:
            synchronize(self.args)
            self.profile.stop()
            self.profiles[kind] = occupancy(self.profile.events())

    def findings(self) -> Iterator[dict]:
        """Milliseconds per step of each kind's last epoch: the host's to issue it, the device's.

        The host waits if the GPU's queue is full: the least time between two steps is its own.
        """
        for kind, marks in {kind: marks for (kind, _), marks in self.marks.items()}.items():
            between = 1e3 * np.diff(marks[FIRST_TIMED - 1 :])
            if len(between) > 1:
                host = {"host_ms": between[:-1].mean(), "host_least_ms": between[:-1].min()}
                timed = {"step": kind, "steps": len(between), "device_ms": between.mean()}
                yield timed | host | self.profiles.get(kind, {})


def occupancy(events) -> dict:
    """What profiled steps have the GPU do: launches per step, and the share of time it idles."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )
    if not spans:
        return {"launches": 0, "idle_share": None}
    (first, last), idle = spans[0], 0.0
    for start, end in spans:
        idle, last = idle + max(0.0, start - last), max(last, end)
    return {"launches": len(spans) / PROFILED, "idle_share": idle / (last - first)}


def epoch_times(rows: list[dict]) -> Iterator[dict]:
    """Seconds of each epoch, and how many labels were labeled; first ones of a kind compile."""
    names = re.compile("epoch|kind|time/(train_)?seconds|split/net./labeled|memory/.*")
    for row in rows:
        yield {name: value for name, value in row.items() if names.fullmatch(name)}


def steps(args: argparse.Namespace, *flags) -> Iterator[dict]:
    """Two epochs of warm-up and two semi-supervised ones on few images: their steps and seconds."""
    counters.clear()
    timer = StepTimer(args)
    flags = ("--num_epochs", 3, "--warm_up", 2, "--train_images", args.short, *flags)
    rows = train(args, *flags, progress=timer)
    yield from timer.findings()
    yield from epoch_times(rows)
    yield {"graphs": counters["stats"]["unique_graphs"]}


def cuda_graphs(args: argparse.Namespace) -> Iterator[dict]:
    """The same, with each compiled graph as a CUDA graph."""
    torch.compiler.reset()
    with mock.patch("torch.compile", partial(torch.compile, mode="reduce-overhead")):
        yield from steps(args)
    torch.compiler.reset()


def epochs(args: argparse.Namespace) -> Iterator[dict]:
    """Whole epochs of CIFAR-10's size, in the device's own settings, with their checkpoints."""
    yield from epoch_times(train(args, "--num_epochs", 3, "--warm_up", 1))


PARTS = {"machine": machine, "waits": waits, "convolutions": convolutions, "scoring": scoring}
PARTS |= {"eager steps": lambda args: steps(args, "--compile", "off"), "steps": steps}
PARTS |= {"cuda graphs": cuda_graphs, "epochs": epochs}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the device's sizes and defaults."""
    parser = Parser(__doc__)
    output = Path("first_ten_minutes.jsonl")
    parser.add_argument("--output", type=Path, default=output, metavar="FILE", help="adds to it")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--only", choices=PARTS, help="one part")
    args = parser.parse_args(argv)
    args.device = devices.find_device(args.device, 0)
    args.amp = args.compile = args.device.type == "cuda"
    args.dtype = torch.bfloat16 if args.amp else torch.float32
    vars(args).update(GPU if args.amp else CPU)
    return args


@command
def main(argv: list[str] | None = None) -> int:
    """Measure part by part; returns the exit status, 1 if a part failed."""
    args = parse(argv)
    failed = False

    def write(finding: dict) -> None:
        line = json.dumps(finding)
        print(line, flush=True)
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    for name in [args.only] if args.only else PARTS:
        started = time.perf_counter()
        try:
            for finding in PARTS[name](args):
                write({"part": name} | finding)
            write({"part": name, "seconds": time.perf_counter() - started})
        except (Exception, SystemExit) as error:  # the parts after it have more to measure
            failed = True
            write({"part": name, "error": f"{type(error).__name__}: {error}"})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

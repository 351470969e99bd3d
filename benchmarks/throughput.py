"""How fast the data path, each step and an epoch run here, against plain implementations.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py --quick
    python benchmarks/throughput.py --compile on --profile

Images are random bytes in CIFAR-10's shape: nothing is read. On a CUDA card the settings are those
of training there, bf16 and compiled; the epoch then has CIFAR-10's full size. The steps of
each implementation run in a process of its own, in turns: plain's as any program's, ours as our
scripts'.
"""

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contenders import CLASSES, Clock, Contender, new_pair, recipe_of

import experiment
import smr
from batches import ImageData, NoisyLoader
from dataloader_cifar import DATASETS
from PreResNet import ResNet18
from support import memory, options, session

LABELLED_SHARE = 0.55  # of sym 0.5: half of the labels stay, and a tenth of the others comes back


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with what --quick changes filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, whole = parser.add_argument, partial(options.number, int, 1)
    add("--quick", action="store_true", help="under two minutes on two CPU cores")
    add("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto")
    add("--batch_size", type=whole(), help="B (default 128; quick: 16)")
    add("--width", type=whole(), default=64, help="of PreAct-ResNet-18 (default 64)")
    add("--rounds", type=whole(), help="measurements of each step (default 5; quick: 2)")
    add("--images", type=whole(), help="in the epoch (default: cuda 50000, cpu 4B; quick: 2B)")
    add("--amp", choices=("off", "bf16"), help="default: as in training on the device")
    add("--compile", choices=("off", "on"), help="default: as in training on the device")
    add("--only", choices=("data", "steps", "epoch"), help="one of the three parts")
    add("--profile", action="store_true", help="the five costliest operations of a step")
    add(
        "--cpu_time",
        action="store_true",
        help="count the process's CPU seconds, not the wall's: for a machine that others share",
    )
    args = parser.parse_args(argv)
    args.device = options.find_device(args.device, 0)
    resolved = options.resolve({}, {}, args.device)
    on_cuda = args.device.type == "cuda"
    args.amp = args.amp or resolved["amp"]
    args.compile = args.compile or resolved["compile"]
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.batch_size = args.batch_size or (16 if args.quick and not on_cuda else 128)
    if not args.images:
        args.images = 50_000 if on_cuda else args.batch_size * (2 if args.quick else 4)
    return args


def in_turns(timers: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each timer finds in each round: A B C A B C, so that a slow moment slows all."""
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            found[name].append(timer())
    return found


def ceilings(clock: Clock, device: torch.device) -> dict[str, float]:
    """Measured matrix rates in float32 and bf16, FLOP/s, and the memory's rate, bytes/s."""
    size, repeats = (8192, 20) if device.type == "cuda" else (2048, 10)
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        multiply = partial(torch.matmul, a, b, out=torch.empty_like(a))
        seconds = min(clock.seconds(multiply) for _ in range(repeats))
        rates[name] = 2 * size**3 / seconds
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    seconds = min(clock.seconds(lambda: target.copy_(source)) for _ in range(repeats))
    rates["memory"] = 2 * source.nbytes / seconds
    return rates


def new_loader(images: int, batch_size: int, device: torch.device, channels_last: bool):
    """A NoisyLoader over random bytes; a fifth as many test images."""
    draw = np.random.default_rng(0)
    train, test = (
        (
            draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            draw.integers(0, CLASSES, count),
        )
        for count in (images, max(images // 5, 1))
    )
    spec = DATASETS["cifar10"]
    data = ImageData(*train, *test, [str(k) for k in range(CLASSES)])
    shape = spec.mean, spec.std, spec.augmentation
    return NoisyLoader(data, *shape, batch_size, 0, device, channels_last, None)


class PilImages(Dataset):
    """The ordinary way to the same batches: PIL and torchvision, image by image."""

    def __init__(self, images: np.ndarray):
        spec = DATASETS["cifar10"]
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(spec.mean, spec.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.images[i])), 0


def count(batches: Iterable) -> None:
    """Go through the batches and do nothing with them."""
    for _ in batches:
        pass


def measure_data(args: argparse.Namespace, clock: Clock) -> None:
    """Train views a second, ours and the ordinary way."""
    images = 2_000 if args.quick else 10_000
    loader = new_loader(images, 64, args.device, channels_last=True)
    ordinary = DataLoader(PilImages(loader.data.train_images), batch_size=128, shuffle=True)
    timers = {
        "PIL, DataLoader": lambda: clock.seconds(lambda: count(ordinary)),
        "ours": lambda: clock.seconds(lambda: count(loader.run("warmup"))),
    }
    found = in_turns(timers, args.rounds)
    print("\ndata path, train views of 32x32 in batches of 128   images/s    times as fast")
    slowest = found["PIL, DataLoader"]
    for name, seconds in found.items():
        ratio = statistics.median(a / b for a, b in zip(slowest, seconds, strict=True))
        print(f"{name:<50}{images / min(seconds):>11,.0f}{ratio:>17.1f}")


def image_flops(args: argparse.Namespace) -> int:
    """FLOPs of one image's forward pass, those of convolutions and the linear layer."""
    network = ResNet18(CLASSES, args.width).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def measure_steps(args: argparse.Namespace, rates: dict[str, float]) -> None:
    """Seconds of each step, plain and ours, and the share of the machine's matrix rate."""
    names = ["plain", "ours, eager"] + (["ours, compiled"] if args.compile == "on" else [])
    contenders = {name: Contender(name, args) for name in names}
    # A forward pass is 1, a backward pass 2; both views of the peer, four of the trained network.
    passes = {"scoring": 1, "warm-up": 2 * 3, "semi-supervised": 2 + 4 + 4 * 3}
    flops, our_rate = image_flops(args), rates["bf16" if args.amp == "bf16" else "float32"]
    print(
        f"\nstep, B = {args.batch_size}, width {args.width}, amp {args.amp}"
        "            seconds    of plain    images/s    of the matrix rate"
    )
    for step, factor in passes.items():
        started = {name: each.first_call(step) for name, each in contenders.items()}
        timers = {name: partial(each.seconds, step) for name, each in contenders.items()}
        found = in_turns(timers, args.rounds)
        images = args.batch_size * {"scoring": 1, "warm-up": 2, "semi-supervised": 4}[step]
        for name, seconds in found.items():
            best = min(seconds)
            of_plain = statistics.median(
                a / b for a, b in zip(seconds, found["plain"], strict=True)
            )
            ceiling = rates["float32"] if name == "plain" else our_rate
            share = flops * factor * args.batch_size / best / ceiling
            print(
                f"{step + ', ' + name:<37}{best:>12.4f}{of_plain:>12.2f}{images / best:>12,.0f}"
                f"{100 * share:>20.0f} %"
            )
        if args.compile == "on":
            print(f"  (first call, the compiler's start: {started['ours, compiled']:.0f} s)")
        if args.profile:
            print("\n".join(contenders[name].profile(step)))
    for name, each in contenders.items():
        print(f"{name}: {memory_text(each.finish())}")


def memory_text(peaks: dict[str, float]) -> str:
    """A run's line on its memory, from `memory.peak_memory`."""
    return experiment.memory_line({f"memory/{name}": gib for name, gib in peaks.items()})


def measure_epoch(args: argparse.Namespace, clock: Clock) -> None:
    """A semi-supervised epoch by stage, as `smr.train` goes through it."""
    session.prepare_process(args.device, args.amp)
    loader = new_loader(args.images, args.batch_size, args.device, channels_last=True)
    recipe = recipe_of(args)
    pair = new_pair(args, True, args.compile == "on")
    chosen = np.random.default_rng(0).random(args.images) < LABELLED_SHARE
    probability = np.where(chosen, 0.9, 0.1)

    def train(k: int) -> None:
        batches = loader.run("train", chosen, probability)
        networks = pair.networks[k], pair.networks[1 - k]
        smr.semi_supervised_epoch(*networks, pair.optimisers[k], *batches, 40, recipe)

    def serve() -> None:
        labelled, unlabelled = loader.run("train", chosen, probability)
        stream = smr.endless(unlabelled)
        for _ in labelled:
            next(stream)

    losses = np.random.default_rng(0).random(args.images)
    stages = {
        "scoring both networks": lambda: [
            smr.sample_losses(network, loader.run("eval_train"), recipe.amp)
            for network in pair.networks
        ],
        "fitting both mixtures": lambda: [
            smr.clean_probability(losses, smr.fit_mixture(losses, k)) for k in (0, 1)
        ],
        "training both networks": lambda: [train(k) for k in (0, 1)],
        "test": lambda: smr.test(pair.networks, loader.run("test"), recipe.amp),
    }
    if args.device.type == "cuda" or args.compile == "on":
        for stage in stages.values():  # the compiler's start, and the card's
            stage()
    found = {name: clock.seconds(stage) for name, stage in stages.items()}
    total = sum(found.values())
    rows = found | {"whole epoch": total}
    rows["the views, within training"] = 2 * clock.seconds(serve)
    print(f"\nsemi-supervised epoch, {args.images} images       seconds    share")
    for name, seconds in rows.items():
        print(f"{name:<42}{seconds:>12.3f}{100 * seconds / total:>7.1f} %")
    print(memory_text(memory.peak_memory(args.device)))


def measure_large_pieces(clock: Clock) -> None:
    """What an epoch on all of CIFAR-10 pays apart from its steps."""
    losses = np.random.default_rng(0).random(50_000) ** 2
    fit = clock.seconds(lambda: smr.clean_probability(losses, smr.fit_mixture(losses, 0)))
    print(f"\nmixture fitted to 50,000 losses: {fit:.2f} s for each network")


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    args = parse(argv)
    clock = Clock(args.device, args.cpu_time)
    versions = "  ".join(f"{name} {version}" for name, version in experiment.versions().items())
    print(f"{versions}\n{experiment.hardware(args.device)}, {processor()}")
    print("seconds are " + ("CPU seconds of the process" if args.cpu_time else "wall seconds"))
    rates = ceilings(clock, args.device)
    print(
        f"measured ceilings: float32 {rates['float32'] / 1e9:,.0f} GFLOP/s, bf16 "
        f"{rates['bf16'] / 1e9:,.0f} GFLOP/s (matrix product), memory {rates['memory'] / 1e9:,.0f} "
        "GB/s (copy, read and written)"
    )
    if args.only in (None, "data"):
        measure_data(args, clock)
    if args.only in (None, "steps"):
        measure_steps(args, rates)
    if args.only in (None, "epoch"):
        measure_epoch(args, clock)
        measure_large_pieces(clock)
    return 0


def processor() -> str:
    """The CPU's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())

"""How fast the data path, each step and an epoch run here, against plain implementations.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py --quick
    python benchmarks/throughput.py --compile on --profile

Images are random bytes in CIFAR-10's shape: nothing is read. On a CUDA card the settings are those
of training there, bf16 and compiled; the epoch then has CIFAR-10's full size.
"""

import argparse
import platform
import statistics
import sys
import time
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

import plain

import experiment
import smr
from batches import ImageData, NoisyLoader
from dataloader_cifar import DATASETS
from PreResNet import ResNet18
from support import meters, options, session
from support.scoring import scorer

CLASSES = 10
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


class Clock:
    """Seconds of calls on a device: the wall's, or the process's CPU seconds."""

    def __init__(self, device: torch.device, cpu_time: bool):
        self.device = device
        self.now = time.process_time if cpu_time else time.perf_counter

    def seconds(self, call: Callable) -> float:
        """Of one call, the device's work included."""
        self._wait()
        started = self.now()
        call()
        self._wait()
        return self.now() - started

    def interleaved(self, calls: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
        """Seconds of each call in each round: A B C A B C, so that a slow moment slows all."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append(self.seconds(call))
        return found

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def ceilings(clock: Clock, device: torch.device) -> dict[str, float]:
    """Measured matrix rates in float32 and bf16, FLOP/s, and the memory's rate, bytes/s."""
    size, repeats = (8192, 20) if device.type == "cuda" else (2048, 3)
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        multiply = partial(torch.matmul, a, b)
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
    found = clock.interleaved(
        {
            "PIL, DataLoader": lambda: count(ordinary),
            "ours": lambda: count(loader.run("warmup")),
        },
        args.rounds,
    )
    print("\ndata path, train views of 32x32 in batches of 128   images/s    times as fast")
    slowest = found["PIL, DataLoader"]
    for name, seconds in found.items():
        ratio = statistics.median(a / b for a, b in zip(slowest, seconds, strict=True))
        print(f"{name:<50}{images / min(seconds):>11,.0f}{ratio:>17.1f}")


def new_pair(args: argparse.Namespace, ours: bool, compiled: bool = False) -> smr.Pair:
    """Two networks as training makes them, or, if not `ours`, in NCHW with torch's plain SGD."""
    torch.manual_seed(0)
    pair = smr.new_pair(partial(ResNet18, CLASSES, args.width), recipe_of(args), args.device, ours)
    if not ours:
        pair.optimisers = [plain.new_optimiser(network) for network in pair.networks]
    if compiled:
        for network in pair.networks:
            session.compile_for(network, [factor * args.batch_size for factor in (1, 2, 4)])
    return pair


def recipe_of(args: argparse.Namespace) -> smr.Recipe:
    """CIFAR-10's recipe at sym 0.5."""
    return smr.Recipe(
        method="smr",
        num_epochs=300,
        batch_size=args.batch_size,
        lr=0.02,
        lr_steps=((150, 0.1),),
        weight_decay=5e-4,
        warm_up=10,
        warmup_loss="mixup",
        recalibrate_every=30,
        alpha=4.0,
        T=0.5,
        p_threshold=0.5,
        lambda_u=25.0,
        r=0.5,
        seed=0,
        amp=args.amp == "bf16",
    )


class Given:
    """An epoch of one given batch: what the epoch functions of `smr` need to make one step."""

    def __init__(self, *batch):
        self.batch = batch
        self.batch_size = len(batch[0])
        self.dataset = range(len(batch[0]))

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        yield self.batch


def given_views(args: argparse.Namespace, ours: bool) -> dict[str, torch.Tensor]:
    """Random views x1, x2, u1, u2 [B, 3, 32, 32], and labels and clean probabilities [B]."""
    source = torch.Generator().manual_seed(0)
    form = torch.channels_last if ours else torch.contiguous_format
    shape = args.batch_size, 3, 32, 32
    views = {
        name: torch.randn(shape, generator=source).to(args.device, memory_format=form)
        for name in ("x1", "x2", "u1", "u2")
    }
    labels = torch.randint(CLASSES, (args.batch_size,), generator=source).to(args.device)
    probability = torch.rand(args.batch_size, generator=source).to(args.device)
    return views | {"labels": labels, "probability": probability}


def our_steps(args: argparse.Namespace, compiled: bool) -> dict[str, Callable]:
    """Each step through the epoch functions that training calls, on one given batch."""
    pair, recipe, given = new_pair(args, True, compiled), recipe_of(args), given_views(args, True)
    (network, peer), optimiser = pair.networks, pair.optimisers[0]
    both = torch.cat([given["x1"], given["u1"]])
    labels = torch.cat([given["labels"]] * 2)
    warm_up = Given(both, labels, torch.arange(len(both), device=args.device))
    labelled = Given(*(given[name] for name in ("x1", "x2", "labels", "probability")))
    unlabelled = Given(given["u1"], given["u2"])
    # Scoring folds once a pass, which a pass of one batch would overstate.
    score = scorer(network)
    scored = partial(scoring_step, score, given["x1"], given["labels"], recipe.amp)
    return {
        "scoring": scored,
        "warm-up": partial(smr.warm_up_epoch, network, optimiser, warm_up, recipe),
        "semi-supervised": partial(
            smr.semi_supervised_epoch, network, peer, optimiser, labelled, unlabelled, 40, recipe
        ),
    }


@torch.no_grad()
def scoring_step(score, images, labels, amp: bool) -> torch.Tensor:
    """One step of `smr.sample_losses`."""
    score.eval()
    with smr.autocast(images.device, amp):
        logits = score(images)
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def plain_steps(args: argparse.Namespace) -> dict[str, Callable]:
    """The same steps of `plain`."""
    pair, given = new_pair(args, ours=False), given_views(args, ours=False)
    (network, peer), optimiser = pair.networks, pair.optimisers[0]
    both = torch.cat([given["x1"], given["u1"]])
    labels = torch.cat([given["labels"]] * 2)
    labelled = [given[name] for name in ("x1", "x2", "labels", "probability")]
    two, four = (torch.randperm(factor * args.batch_size, device=args.device) for factor in (2, 4))
    unlabelled = given["u1"], given["u2"]
    return {
        "scoring": partial(plain.scoring_step, network, given["x1"], given["labels"]),
        "warm-up": partial(plain.warm_up_step, network, optimiser, both, labels, 0.7, two),
        "semi-supervised": partial(
            plain.semi_supervised_step,
            *(network, peer, optimiser, labelled, unlabelled, 0.7, four, 25.0),
        ),
    }


def image_flops(args: argparse.Namespace) -> int:
    """FLOPs of one image's forward pass, those of convolutions and the linear layer."""
    network = ResNet18(CLASSES, args.width).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def measure_steps(args: argparse.Namespace, clock: Clock, rates: dict[str, float]) -> None:
    """Seconds of each step, plain and ours, and the share of the machine's matrix rate."""
    contenders = {"plain": plain_steps(args), "ours, eager": our_steps(args, False)}
    if args.compile == "on":
        contenders["ours, compiled"] = our_steps(args, True)
    # A forward pass is 1, a backward pass 2; both views of the peer, four of the trained network.
    passes = {"scoring": 1, "warm-up": 2 * 3, "semi-supervised": 2 + 4 + 4 * 3}
    flops, our_rate = image_flops(args), rates["bf16" if args.amp == "bf16" else "float32"]
    print(
        f"\nstep, B = {args.batch_size}, width {args.width}, amp {args.amp}"
        "            seconds    of plain    images/s    of the matrix rate"
    )
    for step, factor in passes.items():
        calls = {name: steps[step] for name, steps in contenders.items()}
        started = {name: clock.seconds(call) for name, call in calls.items()}
        found = clock.interleaved(calls, args.rounds)
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
            print_profile(calls[name], args.device)


def print_profile(step: Callable, device: torch.device) -> None:
    """The five operations with the largest share of a step's own time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    kind = "device" if device.type == "cuda" else "cpu"
    rows = profile.key_averages()
    own = {row.key: getattr(row, f"self_{kind}_time_total") for row in rows}
    total = sum(own.values())
    for name in sorted(own, key=own.get, reverse=True)[:5]:
        print(f"    {100 * own[name] / total:5.1f} %  {name}")


def measure_epoch(args: argparse.Namespace, clock: Clock) -> None:
    """A semi-supervised epoch by stage, as `smr.train` goes through it."""
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
    peaks = {f"memory/{name}": gib for name, gib in meters.peak_memory(args.device).items()}
    print(experiment.memory_line(peaks))


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
        measure_steps(args, clock, rates)
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

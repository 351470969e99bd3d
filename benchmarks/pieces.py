"""What benchmarks time besides steps: ceilings, the data path, convolutions, an epoch's stages."""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from contenders import SCRIPT, Clock, config_of
from PIL import Image
from smr.recipe import recipe_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import smr
import train_cifar
from dataloader_cifar import VIEWS
from smr.data.memory_dataset import ImageData, MemoryLoader
from smr.run import devices
from smr.run import run as session
from smr.training import endless

LABELLED_SHARE = 0.55  # of sym 0.5: half of the labels stay, and a tenth of the others comes back


def ceilings(args: argparse.Namespace) -> dict[str, float]:
    """Measured matrix rates, FLOP/s, and the memory's rate, bytes/s.

    That in bf16 only where it is used: a CPU without units for it takes minutes for one product.
    """
    clock, device = Clock(args), args.device
    size, floats = (2048, 2**26) if device.type == "cpu" else (8192, 2**28)

    def best(call) -> float:
        def calls() -> None:
            for _ in range(clock.calls):
                call()

        return min(clock.seconds(calls) for _ in range(10)) / clock.calls

    rates, types = {}, {"float32": torch.float32} | ({"bf16": torch.bfloat16} if args.amp else {})
    for name, dtype in types.items():
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * size**3 / best(partial(torch.matmul, a, b, out=torch.empty_like(a)))
    source = torch.ones(floats, device=device)
    rates["memory"] = 2 * source.nbytes / best(partial(torch.empty_like(source).copy_, source))
    return rates


def new_loader(images: int, batch_size: int, device: torch.device) -> MemoryLoader:
    """A loader over random bytes; a fifth as many test images."""
    draw = np.random.default_rng(0)
    train, test = (
        (draw.integers(0, 256, (n, 32, 32, 3), np.uint8), draw.integers(0, 10, n))
        for n in (images, max(images // 5, 1))
    )
    data = ImageData(*train, *test, list("0123456789"))
    return MemoryLoader(data, VIEWS["cifar10"], batch_size, 0, device, channels_last=True)


class PilImages(Dataset):
    """The ordinary way to the same views: PIL and torchvision, image by image."""

    def __init__(self, images: np.ndarray):
        views, self.images = VIEWS["cifar10"], images
        crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
        scaled = transforms.ToTensor(), transforms.Normalize(views.mean, views.std)
        self.transform = transforms.Compose([crop, flip, *scaled])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.images[i])), 0


def go_through(batches: Iterable) -> None:
    """Take every batch and do nothing with it."""
    for _ in batches:
        pass


def data_path(args: argparse.Namespace) -> dict:
    """Seconds of a pass over train views in batches of 128, the ordinary way and ours, in turns."""
    images = 2_000 if args.quick else 10_000
    loader = new_loader(images, 64, args.device)
    pil = PilImages(loader.thumbnails(np.arange(images)))
    passes = {"PIL, DataLoader": DataLoader(pil, 128, shuffle=True), "ours": loader.run("warmup")}
    clock, seconds = Clock(args), {name: [] for name in passes}
    for _ in range(args.rounds):
        for name, batches in passes.items():
            seconds[name].append(clock.seconds(partial(go_through, batches)))
    return {"images": images, "seconds": seconds}


def epoch(args: argparse.Namespace) -> dict:
    """Seconds of a semi-supervised epoch's stages, as `smr.train` goes through them."""
    loader, clock = new_loader(args.images, args.batch_size, args.device), Clock(args)
    config = config_of(args, args.compile)
    recipe, pair = recipe_of(config), session.make_pair(SCRIPT, config, args.device)
    draw = np.random.default_rng(0)
    chosen, losses = draw.random(args.images) < LABELLED_SHARE, draw.random(args.images)
    split = partial(loader.run, "train", chosen, np.where(chosen, 0.9, 0.1))

    def score() -> None:
        for network in pair.networks:
            smr.sample_losses(network, loader.run("eval_train"), recipe.amp)

    def fit(losses: np.ndarray) -> np.ndarray:
        return smr.clean_probability(losses, smr.fit_gmm(losses, 0))

    def train() -> None:
        for k, optimizer in enumerate(pair.optimizers):
            networks = pair.networks[k], pair.networks[1 - k]
            smr.semi_supervised_epoch(*networks, optimizer, *split(), 40, recipe)

    def views() -> None:
        for _ in pair.networks:
            labeled, unlabeled = split()
            go_through(zip(labeled, endless(unlabeled), strict=False))

    stages = {
        "scoring both networks": score,
        "fitting both mixtures": lambda: [fit(losses) for _ in pair.networks],
        "training both networks": train,
        "test": lambda: smr.test(pair.networks, loader.run("test"), recipe),
    }
    if clock.calls > 1 or args.compile:
        for stage in stages.values():  # the compiler's start, and the card's
            stage()
    return {
        "stages": {name: clock.seconds(stage) for name, stage in stages.items()},
        "views": clock.seconds(views),
        "mixture": clock.seconds(partial(fit, draw.random(50_000) ** 2)),
        "memory": devices.peak_memory(args.device),
    }


def distinct_convolutions(network: nn.Module) -> list[tuple[nn.Conv2d, int]]:
    """PreAct-ResNet's convolutions that differ, each with the side of the images it takes."""
    found = {}

    def note(conv: nn.Conv2d, inputs: tuple[Tensor], _) -> None:
        key = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride
        found.setdefault((*key, inputs[0].shape[2]), (conv, inputs[0].shape[2]))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return list(found.values())


def convolutions(args: argparse.Namespace) -> Iterator[dict]:
    """Each convolution forward and back, by rows and cudnn.benchmark; the stem also padded to 8."""
    layers = distinct_convolutions(train_cifar.build_network(config_of(args)))
    (stem, side), clock = layers[0], Clock(args)
    layers.append((nn.Conv2d(8, stem.out_channels, 3, padding=1, bias=False), side))
    layout = {"device": args.device, "memory_format": torch.channels_last}
    layout["dtype"] = torch.bfloat16 if args.amp else torch.float32
    for conv, side in layers:
        weight = conv.weight.detach().to(**layout)
        for rows in args.rows:
            images = torch.randn(rows, conv.in_channels, side, side).to(**layout)
            for benchmark in (False, True):
                torch.backends.cudnn.benchmark = benchmark
                forward = partial(F.conv2d, images, weight, None, conv.stride, conv.padding)
                given = torch.ones_like(forward()), images, weight, None, conv.stride, conv.padding
                back = partial(torch.ops.aten.convolution_backward, *given)
                back = partial(back, (1, 1), False, (0, 0), 1)
                calls = {
                    "forward": forward,
                    "of_images": partial(back, (True, False, False)),
                    "of_weights": partial(back, (False, True, False)),
                }
                yield {
                    "convolution": f"{conv.in_channels} to {conv.out_channels} at {side}",
                    **{"kernel": conv.kernel_size[0], "stride": conv.stride[0], "rows": rows},
                    "benchmark": benchmark,
                } | {f"{name}_ms": milliseconds(call, clock) for name, call in calls.items()}
    torch.backends.cudnn.benchmark = False


def milliseconds(call: Callable, clock: Clock) -> float:
    """Of a call, a mean over those between two waits; after one that is not timed."""
    call()
    return 1e3 * clock.seconds(lambda: [call() for _ in range(clock.calls)]) / clock.calls


@contextmanager
def stopwatches(room: ModuleType, *names: str) -> Iterator[dict[str, float]]:
    """Adds up the seconds in each of a room's functions, by name."""
    spent: dict[str, float] = defaultdict(float)

    def timed(function: Callable, name: str, *given):
        started = time.perf_counter()
        try:
            return function(*given)
        finally:
            spent[name] += time.perf_counter() - started

    with ExitStack() as stack:
        for name in names:
            watched = partial(timed, getattr(room, name), name)
            stack.enter_context(mock.patch.object(room, name, watched))
        yield spent

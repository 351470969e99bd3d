"""The steps that benchmarks time: plain's, and ours through the functions that training calls."""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import plain
import torch
from smr.recipe import recipe_of
from torch import Tensor
from torch.autograd import DeviceType

import smr
import train_cifar
from smr.run import devices
from smr.run import run as session

PLAIN, EAGER, COMPILED = "plain", "ours, eager", "ours, compiled"
STEPS_PER_TURN = 20
SCRIPT = session.Script(
    "throughput.py", train_cifar.resolve, train_cifar.make_loader, train_cifar.build_network
)


class Clock:
    """Seconds of calls on a device: the wall's, or the process's CPU seconds."""

    def __init__(self, args: argparse.Namespace):
        self.device = args.device
        self.now = time.process_time if args.cpu_time else time.perf_counter
        # Where steps queue up on a card, one alone between two waits would be its latency.
        self.calls = 1 if self.device.type == "cpu" else STEPS_PER_TURN

    def seconds(self, call: Callable) -> float:
        """Of one call, the device's work included."""
        self._wait()
        started = self.now()
        call()
        self._wait()
        return self.now() - started

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


class Given:
    """An epoch of the same batch again and again: what the functions of `smr` ask of batches."""

    def __init__(self, steps: int, *batch: Tensor):
        self.steps = steps
        self.batch = batch
        self.batch_size = len(batch[0])
        self.dataset = range(steps * self.batch_size)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter([self.batch] * self.steps)


class Watched(Given):
    """`Given` batches that tell (step from 0, steps) before each step, and after the last."""

    def __init__(self, tell: Callable[[int, int], None], steps: int, *batch: Tensor):
        super().__init__(steps, *batch)
        self.tell = tell

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for step in range(self.steps):
            self.tell(step, self.steps)
            yield self.batch
        self.tell(self.steps, self.steps)


def config_of(args: argparse.Namespace, compiled: bool = False) -> dict:
    """CIFAR-10's configuration at sym 0.5, as training resolves it."""
    given = {name: getattr(args, name) for name in ("batch_size", "width", "amp")}
    return train_cifar.resolve(given | {"compile": compiled}, args.device)


def given_batch(args: argparse.Namespace, form: torch.memory_format) -> list[Tensor]:
    """Random views x1, x2, u1, u2 [B, 3, 32, 32], labels and clean probabilities [B]."""
    source, count = torch.Generator().manual_seed(0), args.batch_size
    views = [torch.randn(count, 3, 32, 32, generator=source) for _ in range(4)]
    labels = torch.randint(10, (count,), generator=source).to(args.device)
    probability = torch.rand(count, generator=source).to(args.device)
    return [*(view.to(args.device, memory_format=form) for view in views), labels, probability]


def our_steps(
    args: argparse.Namespace, compiled: bool, given: Callable[..., Given] = Given
) -> dict[str, Callable[[int], object]]:
    """Each step, as often as is asked, in an epoch of the function that training calls.

    Args: given makes the batches that set the number of steps.
    """
    config = config_of(args, compiled)
    torch.manual_seed(0)
    recipe, pair = recipe_of(config), session.make_pair(SCRIPT, config, args.device)
    (network, peer), optimizer = pair.networks, pair.optimizers[0]
    x1, x2, u1, u2, labels, w = given_batch(args, torch.channels_last)
    both, twice = torch.cat([x1, u1]), torch.cat([labels, labels])
    index = torch.arange(len(both), device=args.device)

    def score(steps: int):
        batches = given(steps, x1, labels, index[: len(x1)])
        return smr.sample_losses(network, batches, recipe.amp)

    def warm_up(steps: int):
        return smr.warm_up_epoch(network, optimizer, given(steps, both, twice, index), recipe)

    def semi_supervised(steps: int):
        batches = given(steps, x1, x2, labels, w), Given(steps, u1, u2)
        return smr.semi_supervised_epoch(network, peer, optimizer, *batches, 40, recipe)

    return {"scoring": score, "warm-up": warm_up, "semi-supervised": semi_supervised}


def plain_steps(args: argparse.Namespace) -> dict[str, Callable[[int], object]]:
    """The same steps of `plain`, whose float32 is float32 on a card too."""
    torch.backends.cudnn.allow_tf32 = False  # torch's default rounds convolutions to ten bits
    config = config_of(args)
    torch.manual_seed(0)
    network, peer = (train_cifar.build_network(config).to(args.device) for _ in range(2))
    optimizer = plain.new_optimizer(network)
    x1, x2, u1, u2, labels, w = given_batch(args, torch.contiguous_format)
    both, twice = torch.cat([x1, u1]), torch.cat([labels, labels])
    two, four = (torch.randperm(rows * len(x1), device=args.device) for rows in (2, 4))
    batches = (x1, x2, labels, w), (u1, u2)

    def again(step: Callable, *given) -> Callable[[int], object]:
        return lambda steps: [step(*given) for _ in range(steps)]

    semi_supervised = partial(plain.semi_supervised_step, network, peer, optimizer, *batches)
    return {
        "scoring": again(plain.scoring_step, network, x1, labels),
        "warm-up": again(plain.warm_up_step, network, optimizer, both, twice, 0.7, two),
        "semi-supervised": again(semi_supervised, 0.7, four, 25.0),
    }


def time_steps(name: str, args: argparse.Namespace) -> dict:
    """A contender's turn: seconds of each step's first call and of a later step; its memory."""
    steps = plain_steps(args) if name == PLAIN else our_steps(args, name == COMPILED)
    clock, turn = Clock(args), {}
    for step, run in steps.items():
        first = clock.seconds(partial(run, 1))
        if clock.calls > 1:
            run(clock.calls)  # the card's own start
        seconds = clock.seconds(partial(run, clock.calls)) / clock.calls
        turn[step] = {"first": first, "seconds": seconds}
        if args.profile:
            turn[step]["costliest"] = costliest(partial(run, 1), args.device)
    return turn | {"memory": devices.peak_memory(args.device)}


def profiled(call: Callable, device: torch.device) -> torch.profiler.profile:
    """The profile of a call, with the card's part where the device is one."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return profile


def costliest(step: Callable, device: torch.device) -> list[tuple[str, float]]:
    """The five operations with the largest share of a step's own time: names and per cent."""
    column = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    own = {row.key: getattr(row, column) for row in profiled(step, device).key_averages()}
    largest = sorted(own, key=own.get, reverse=True)[:5]
    return [(name, 100 * own[name] / sum(own.values())) for name in largest]


def occupancy(call: Callable, device: torch.device) -> dict:
    """What a call has a card do: how much is launched, and the share of its time it idles."""
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in profiled(call, device).events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return {"launches": len(kernels), "idle_share": idle_share(kernels)}


def idle_share(spans: list[tuple[float, float]]) -> float | None:
    """The share of the time from the first start to the last end that no span covers."""
    if not spans:
        return None
    (first, last), idle = min(spans), 0.0
    for start, end in sorted(spans):
        idle, last = idle + max(0.0, start - last), max(last, end)
    return idle / (last - first)

"""The contenders of `throughput.py`: each implementation's steps, in a process of its own."""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection

import plain
import torch

import smr
from PreResNet import ResNet18
from support import memory, session
from support.scoring import scorer

CLASSES = 10


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

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Contender:
    """One implementation's steps in a process of its own: no other has its memory and settings."""

    def __init__(self, name: str, args: argparse.Namespace):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, args), daemon=True)
        self.process.start()
        theirs.close()

    def seconds(self, step: str) -> float:
        """Of one step, the second of two: the others' turns have cooled caches and freed pages."""
        self._ask("seconds", step)
        return self._ask("seconds", step)

    def first_call(self, step: str) -> float:
        """Seconds of a step as it is, a compiler's start included."""
        return self._ask("seconds", step)

    def profile(self, step: str) -> list[str]:
        """Lines on a step's costliest operations."""
        return self._ask("profile", step)

    def finish(self) -> dict[str, float]:
        """End the process; `memory.peak_memory` of it."""
        peaks = self._ask("peak_memory", None)
        self.connection.close()
        self.process.join()
        return peaks

    def _ask(self, *question):
        self.connection.send(question)
        return self.connection.recv()


def serve(connection: Connection, name: str, args: argparse.Namespace) -> None:
    """A contender's process: answer questions about its steps until the other side closes."""
    if name == "plain":
        steps = plain_steps(args)
    else:
        session.prepare_process(args.device, args.amp)
        steps = our_steps(args, compiled=name == "ours, compiled")
    clock = Clock(args.device, args.cpu_time)
    answers = {
        "seconds": lambda step: clock.seconds(steps[step]),
        "profile": lambda step: profile_lines(steps[step], args.device),
        "peak_memory": lambda _: memory.peak_memory(args.device),
    }
    with suppress(EOFError):
        while True:
            question, step = connection.recv()
            connection.send(answers[question](step))


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


def profile_lines(step: Callable, device: torch.device) -> list[str]:
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
    largest = sorted(own, key=own.get, reverse=True)[:5]
    return [f"    {100 * own[name] / total:5.1f} %  {name}" for name in largest]

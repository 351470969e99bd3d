"""Short runs on digits: in this process, or in others forked from one that has torch imported."""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_cifar
from smr.methods import METHODS

SHORT_RUN = (
    *("--dataset", "digits", "--train_images", "200", "--width", "2", "--batch_size", "32"),
    *("--num_epochs", "5", "--warm_up", "1", "--recalibrate_every", "3", "--review", "0"),
)
# What takes a process seconds to import; the optimizers import torch's compiler.
PRELOADED = ["train_cifar", "torch._dynamo"]
RUN_NAME = "digits_0.5_sym_smr_seed123"
KINDS = [
    *("warm-up", "semi-supervised", "recalibration"),
    *("semi-supervised", "semi-supervised", "recalibration"),
]


def run_short(output: Path, *flags: str) -> int:
    """A short run in this process; its exit status."""
    return train_cifar.main([*SHORT_RUN, "--output", str(output), *flags])


@contextmanager
def at_step(epoch: int, network: int, step: int, call: Callable[[], None]) -> Iterator[None]:
    """Call this after a training step of runs of --method smr."""

    class Watched(METHODS["smr"]):
        def for_each_network(self, this_epoch, train_network):
            def train(k, progress):
                def watched(this_step, *rest):
                    progress(this_step, *rest)
                    if (this_epoch, k + 1, this_step) == (epoch, network, step):
                        call()

                return train_network(k, watched)

            return super().for_each_network(this_epoch, train)

    with mock.patch.dict(METHODS, {"smr": Watched}):
        yield


@contextmanager
def watched_disk(before=lambda path: None, after=lambda path: None) -> Iterator[None]:
    """Call these with the path of each file before and after an atomic write puts it there."""
    replace = os.replace

    def watched(source, target):
        before(Path(target))
        replace(source, target)
        after(Path(target))

    with mock.patch("os.replace", watched):
        yield


def start(output: Path, *flags: str) -> multiprocessing.Process:
    """Start a short run; its output is added to `output`/log.txt."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    output.mkdir(exist_ok=True)
    argv = [*SHORT_RUN, "--output", str(output), *flags]
    process = context.Process(target=run_main, args=(argv, output / "log.txt"))
    process.start()
    return process


def run_main(argv: list[str], log: Path) -> None:
    """What the process runs."""
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    torch.set_num_threads(1)
    sys.exit(train_cifar.main(argv))


def finish(process: multiprocessing.Process, seconds: float = 120) -> int:
    """Wait for the process; its exit status, as a shell gives it."""
    process.join(seconds)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode


def metrics_of(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rows_of(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without what a clock or a memory gauge says."""
    return without_times(metrics_of(folder))


def without_times(rows: list[dict]) -> list[dict]:
    """The rows without what a clock or a memory gauge says."""
    return [{k: v for k, v in row.items() if is_number_of_the_run(k)} for row in rows]


def is_number_of_the_run(name: str) -> bool:
    return not name.startswith(("time/", "memory/"))


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) of every curve."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if is_number_of_the_run(tag)]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def assert_same(found, expected, where: str = "") -> None:
    """Bit for bit, tensors and arrays too."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}/{i}")
    elif isinstance(expected, (torch.Tensor, np.ndarray)):
        assert found.shape == expected.shape and bool((found == expected).all()), where
    else:
        assert found == expected, where


def assert_same_run(found: Path, expected: Path, events: bool = True) -> None:
    """Everything that two runs leave behind is the same, but for times.

    Args: events, TensorBoard's too, whose files of one process and one second are in no order.
    """
    assert rows_of(found) == rows_of(expected)
    known = (expected / "noisy_labels.json").exists()  # where the true labels are
    for name in ("acc.txt", "stats.txt", "labels.csv", *(["noisy_labels.json"] if known else [])):
        assert (found / name).read_text() == (expected / name).read_text(), name
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (found, expected))
        for state in (one, other):
            state.pop("rows", None)
            for flag in ("output", "save_every", "num_epochs", "num_workers"):
                state["config"].pop(flag, None)
        assert_same(one, other, name)
    assert not events or events_of(found) == events_of(expected)

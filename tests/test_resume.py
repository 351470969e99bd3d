"""A run that is killed, stopped or extended resumes bit-exactly."""

import copy
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import TinyNet, generator, tiny_config, tiny_loader, tiny_pair
from runs import (
    KINDS,
    RUN_NAME,
    assert_same_run,
    at_step,
    events_of,
    finish,
    rows_of,
    run_short,
    start,
    watched_disk,
)
from torch import nn
from torch.optim import SGD
from torch.testing import assert_close

import smr
import train_cifar
from smr.run import checkpoints
from smr.training import MOMENTUM

LAST = len(KINDS) - 1


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run without an interruption, and the seconds that it took."""
    output = tmp_path_factory.mktemp("uninterrupted")
    started = time.monotonic()
    assert run_short(output) == 0
    return output / RUN_NAME, time.monotonic() - started


def epochs_shown(log: str) -> list[int]:
    """Numbers of the epochs whose summary lines stand in a log."""
    return [int(n) for n in re.findall(r"^ +(\d+) (?:warm|semi|recal)", log, re.M)]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_without_a_stop(reference, tmp_path):
    folder, seconds = reference
    moments, numbers = random.Random(0), [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
    log = tmp_path / "log.txt"
    for number in numbers:
        process = start(tmp_path, "--resume")
        process.join(moments.uniform(0.1, seconds / 3))
        assert process.exitcode is None, "it finished before it was hit"
        os.kill(process.pid, number)
        # SIGTERM before main() runs ends the process as it does any other.
        assert finish(process) == 128 + number, log.read_text()
    assert finish(start(tmp_path, "--resume")) == 0, log.read_text()
    assert_same_run(tmp_path / RUN_NAME, folder)
    assert not list((tmp_path / RUN_NAME).glob(".*.new"))


class Stopped(BaseException):
    """Ends a run in this process as abruptly as a signal."""


def stopping_after(name: str, times: int):
    """Have the run stop once a file of this name has been written so many times."""
    left = [times]

    def stop(path):
        left[0] -= path.name == name
        if not left[0]:
            raise Stopped

    return watched_disk(after=stop)


def test_a_run_stopped_after_any_of_its_files_ends_as_one_without_a_stop(reference, tmp_path):
    # A start writes the earlier epochs' files anew, so that metrics.jsonl counts from 1 there.
    for name, times, epoch in (
        ("noisy_labels.json", 1, None),
        ("metrics.jsonl", 2, -1),
        ("best.pt", 1, -1),
        ("last.pt", 2, 0),
        ("stats.txt", 3, 1),
        ("last.pt", 3, 4),
        ("labels.json", 1, LAST),
    ):
        with pytest.raises(Stopped), stopping_after(name, times):
            run_short(tmp_path, "--resume")
        last = tmp_path / RUN_NAME / "last.pt"
        assert epoch == (checkpoints.load(last)["epoch"] if last.exists() else None), name
    assert run_short(tmp_path, "--resume") == 0
    assert_same_run(tmp_path / RUN_NAME, reference[0], events=False)


@pytest.mark.parametrize(
    ("signal_name", "save_every", "stopped", "again"),
    [("SIGTERM", 1, 4, [4, 5]), ("SIGINT", 4, 3, [0, 1, 2, 3, 4, 5])],
)
def test_a_stopped_run_goes_on_from_its_last_checkpoint(
    reference, tmp_path, capsys, signal_name, save_every, stopped, again
):
    number, handler = signal.Signals[signal_name], signal.getsignal(signal.SIGTERM)
    flags = ("--save_every", str(save_every))
    with at_step(stopped, 2, 1, lambda: signal.raise_signal(number)):
        assert run_short(tmp_path, *flags) == 128 + number
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and signal_name in said.err and "--resume" in said.err
    assert epochs_shown(said.out) == list(range(stopped))
    assert [row["epoch"] for row in rows_of(tmp_path / RUN_NAME)] == list(range(stopped))
    assert run_short(tmp_path, *flags, "--resume") == 0
    said = capsys.readouterr().out
    assert epochs_shown(said) == again
    assert (f"resumed after epoch {again[0] - 1}" in said) == bool(again[0])
    assert_same_run(tmp_path / RUN_NAME, reference[0])
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_uninterrupted_run_leaves_one_line_and_one_point_an_epoch(reference):
    folder, _ = reference
    rows = rows_of(folder)
    assert [(row["epoch"], row["kind"]) for row in rows] == list(enumerate(KINDS))
    assert len((folder / "acc.txt").read_text().splitlines()) == len(KINDS)
    curves = events_of(folder)
    for tag in ("test/accuracy", "train/net2/loss", "test/best_accuracy"):
        assert curves[tag] == [(row["epoch"], pytest.approx(row[tag])) for row in rows]


def test_a_checkpoint_loads_with_weights_only_and_holds_the_last_epoch(reference):
    folder, _ = reference
    last = torch.load(folder / "last.pt", weights_only=True)
    best = torch.load(folder / "best.pt", weights_only=True)
    accuracies = [row["test/accuracy"] for row in rows_of(folder)]
    assert last["epoch"] == LAST and last["accuracy"] == accuracies[-1]
    assert best["accuracy"] == max(accuracies)
    assert best["epoch"] == accuracies.index(max(accuracies))
    assert set(best) == {
        *("script", "epoch", "config", "device", "data_sha256", "networks", "accuracy", "images"),
        "world_size",
    }
    assert best["script"] == "train_cifar.py"


def test_evaluate_gives_the_stored_accuracy_of_a_checkpoint_or_of_a_folder_s_last(
    reference, tmp_path, capsys
):
    folder = Path(shutil.copytree(reference[0], tmp_path / RUN_NAME))  # for labels.csv is written
    for path, name in ((folder / "best.pt", "best.pt"), (folder, "last.pt")):
        state = torch.load(folder / name, weights_only=True)
        assert train_cifar.main(["--evaluate", str(path)]) == 0
        said, accuracy = capsys.readouterr().out, f"{state['accuracy']:.2f} %"
        begin = (
            f"{folder / name}, epoch {state['epoch']}: test accuracy {accuracy} (stored {accuracy})"
        )
        assert said.startswith(begin)
        row = rows_of(folder)[state["epoch"]]
        assert (
            f"network 1 {row['test/net1/accuracy']:.2f} %, "
            f"network 2 {row['test/net2/accuracy']:.2f} %; "
            f"macro precision {row['test/precision']:.2f} %, recall {row['test/recall']:.2f} %, "
            f"F1 {row['test/f1']:.2f} %\n"
        ) in said
    assert (folder / "labels.csv").read_text() == (reference[0] / "labels.csv").read_text()


def test_a_run_that_is_resumed_with_more_epochs_is_the_longer_run(reference, tmp_path):
    assert run_short(tmp_path, "--num_epochs", "1") == 0
    folder = tmp_path / RUN_NAME
    assert train_cifar.main(["--resume", str(folder), "--num_epochs", str(LAST)]) == 0
    assert_same_run(folder, reference[0])


def test_resuming_a_finished_run_trains_no_more_and_changes_none_of_its_results(
    reference, tmp_path, capsys
):
    folder = Path(shutil.copytree(reference[0], tmp_path / RUN_NAME))
    assert run_short(tmp_path, "--resume") == 0
    assert epochs_shown(capsys.readouterr().out) == []
    assert_same_run(folder, reference[0])


def test_a_run_stopped_while_it_writes_its_label_issues_writes_them_when_it_is_resumed(
    tmp_path, capsys
):
    page = ("--num_epochs", "1", "--review", "3")

    def interrupt(path):
        if path.name == "labels.html":
            raise KeyboardInterrupt

    with watched_disk(interrupt):
        assert run_short(tmp_path, *page) == 128 + signal.SIGINT
    folder = tmp_path / RUN_NAME
    assert (folder / "labels.csv").exists() and not (folder / "labels.html").exists()
    capsys.readouterr()
    assert run_short(tmp_path, *page, "--resume") == 0
    assert "complete" not in capsys.readouterr().out and (folder / "labels.html").exists()
    assert run_short(tmp_path, *page, "--resume") == 0
    assert "complete at epoch 1" in capsys.readouterr().out


# --- momentum in the other memory format ---


class TwoConvolutions(TinyNet):
    """TinyNet with a second convolution, whose weights lie otherwise in either format too."""

    def __init__(self):
        super().__init__()
        second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.conv = nn.Sequential(self.conv, nn.ReLU(), second)


def steps(network: nn.Module, optimizer: SGD, numbers: range) -> None:
    """Training steps on the batches of these numbers."""
    network.train()
    for number in numbers:
        images = torch.randn(8, 3, 8, 8, generator=generator(number))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), torch.arange(8) % 10).backward()
        optimizer.step()


def saved_and_resumed(channels_last: bool) -> tuple[smr.Config, list[smr.Pair]]:
    """A pair in this memory format, and one in the other."""
    pairs = []
    for each in (channels_last, not channels_last):
        torch.manual_seed(1)
        pairs.append(tiny_pair(tiny_config(lr=0.05, channels_last=each), TwoConvolutions))
    return tiny_config(lr=0.05), pairs


def after_unfused_sgd(network: nn.Module, config: smr.Config, numbers: range) -> nn.Module:
    """A copy of the network in NCHW after these steps of plain SGD."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    sgd = {"lr": config.lr, "momentum": MOMENTUM, "weight_decay": config.weight_decay}
    steps(network, SGD(network.parameters(), **sgd, foreach=False, fused=False), numbers)
    return network


@pytest.mark.parametrize("channels_last", [True, False], ids=["to NCHW", "to channels_last"])
def test_momentum_resumed_in_the_other_memory_format_moves_weights_as_unfused_sgd(
    tmp_path, channels_last
):
    loader, path = tiny_loader(), tmp_path / "last.pt"
    config, (saved, resumed) = saved_and_resumed(channels_last)
    expected = [after_unfused_sgd(network, config, range(4)) for network in saved.networks]
    for network, optimizer in zip(saved.networks, saved.optimizers, strict=True):
        steps(network, optimizer, range(2))
    method = smr.new_method(config, saved, loader)
    state = checkpoints.training_state(
        "train_cifar.py", -1, config, loader, saved, method, data_sha256="labels", rows=[]
    )
    checkpoints.save(state, path)
    state = checkpoints.load_training_state(path)
    checkpoints.restore(state, resumed, method, loader, "labels", path)
    for k, (network, optimizer) in enumerate(
        zip(resumed.networks, resumed.optimizers, strict=True)
    ):
        assert optimizer.param_groups[0]["fused"]
        weight = network.conv[2].weight
        assert weight.is_contiguous() == channels_last
        steps(network, optimizer, range(2, 4))
        for name, tensor in network.state_dict().items():
            assert_close(tensor, expected[k].state_dict()[name], rtol=1e-4, atol=1e-6)

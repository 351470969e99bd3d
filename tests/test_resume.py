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
from helpers import TinyNet, generator, stand_in_run, tiny_config, tiny_loader, tiny_pair
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

import train_cifar
from smr.logging.metrics_file import read_metrics
from smr.run import checkpoints
from smr.training import MOMENTUM

LAST = len(KINDS) - 1


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run without an interruption."""
    output = tmp_path_factory.mktemp("uninterrupted")
    assert run_short(output) == 0
    return output / RUN_NAME


def epochs_shown(log: str) -> list[int]:
    """Numbers of the epochs whose summary lines stand in a log."""
    return [int(n) for n in re.findall(r"^ +(\d+) (?:warm|semi|recal)", log, re.M)]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_without_a_stop(reference, tmp_path):
    moments, folder, log = random.Random(0), tmp_path / RUN_NAME, tmp_path / "log.txt"
    for number, epochs in ((signal.SIGKILL, 0), (signal.SIGTERM, 1), (signal.SIGKILL, 3)):
        process = start(tmp_path, "--resume")
        while process.is_alive() and len(read_metrics(folder)) < epochs:
            time.sleep(0.01)
        process.join(moments.uniform(0, 0.2))
        assert process.exitcode is None, "it finished before it was hit"
        os.kill(process.pid, number)
        # SIGTERM before main() runs ends the process as it does any other.
        assert finish(process) == 128 + number, log.read_text()
    assert finish(start(tmp_path, "--resume")) == 0, log.read_text()
    assert_same_run(folder, reference)
    assert not list(folder.glob(".*.new"))


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
    assert_same_run(tmp_path / RUN_NAME, reference, events=False)


@pytest.mark.parametrize(
    ("signal_name", "save_every", "stopped", "again"),
    [("SIGTERM", 1, 4, [4, 5]), ("SIGINT", 4, 3, [0, 1, 2, 3, 4, 5])],
)
def test_a_stopped_run_resumes_from_its_last_checkpoint(
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
    assert_same_run(tmp_path / RUN_NAME, reference)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_an_uninterrupted_run_leaves_one_line_and_one_point_an_epoch(reference):
    rows = rows_of(reference)
    assert [(row["epoch"], row["kind"]) for row in rows] == list(enumerate(KINDS))
    assert len((reference / "acc.txt").read_text().splitlines()) == len(KINDS)
    curves = events_of(reference)
    for tag in ("test/accuracy", "train/net2/loss", "test/best_accuracy"):
        assert curves[tag] == [(row["epoch"], pytest.approx(row[tag])) for row in rows]


def test_a_checkpoint_loads_with_weights_only_and_holds_the_last_epoch(reference):
    last = torch.load(reference / "last.pt", weights_only=True)
    best = torch.load(reference / "best.pt", weights_only=True)
    accuracies = [row["test/accuracy"] for row in rows_of(reference)]
    assert last["epoch"] == LAST and last["accuracy"] == accuracies[-1]
    assert best["accuracy"] == max(accuracies)
    assert best["epoch"] == accuracies.index(max(accuracies))
    assert set(best) == {
        *("script", "epoch", "config", "device", "data_sha256", "networks", "accuracy", "images"),
        "world_size",
    }
    assert best["script"] == "train_cifar.py"


def test_evaluate_prints_the_stored_accuracy_of_a_checkpoint_or_of_a_folder_s_last(
    reference, tmp_path, capsys
):
    folder = Path(shutil.copytree(reference, tmp_path / RUN_NAME))  # for labels.csv is written
    for path, name in ((folder / "best.pt", "best.pt"), (folder, "last.pt")):
        state = torch.load(folder / name, weights_only=True)
        assert train_cifar.main(["--evaluate", str(path)]) == 0
        accuracy, row = f"{state['accuracy']:.2f} %", rows_of(folder)[state["epoch"]]
        assert capsys.readouterr().out.startswith(
            f"{folder / name}, epoch {state['epoch']}: test accuracy {accuracy} (stored "
            f"{accuracy}), network 1 {row['test/net1/accuracy']:.2f} %, "
            f"network 2 {row['test/net2/accuracy']:.2f} %; "
            f"macro precision {row['test/precision']:.2f} %, recall {row['test/recall']:.2f} %, "
            f"F1 {row['test/f1']:.2f} %\n"
        )
    assert (folder / "labels.csv").read_text() == (reference / "labels.csv").read_text()


def test_a_run_resumed_with_more_epochs_is_the_longer_run_and_once_finished_trains_no_more(
    reference, tmp_path, capsys
):
    assert run_short(tmp_path, "--num_epochs", "1") == 0
    folder = tmp_path / RUN_NAME
    assert train_cifar.main(["--resume", str(folder), "--num_epochs", str(LAST)]) == 0
    capsys.readouterr()
    assert run_short(tmp_path, "--resume") == 0
    said = capsys.readouterr().out
    assert epochs_shown(said) == [] and f"complete at epoch {LAST}" in said
    assert_same_run(folder, reference)


def test_a_run_stopped_while_it_writes_its_label_issues_writes_them_when_it_is_resumed(
    tmp_path, capsys
):
    page, folder = ("--num_epochs", "0", "--review", "3"), tmp_path / RUN_NAME

    def interrupt(path):
        if path.name == "labels.html":
            raise KeyboardInterrupt

    with watched_disk(interrupt):
        assert run_short(tmp_path, *page) == 128 + signal.SIGINT
    assert (folder / "labels.csv").exists() and not (folder / "labels.html").exists()
    capsys.readouterr()
    assert run_short(tmp_path, *page, "--resume") == 0
    assert "complete" not in capsys.readouterr().out and (folder / "labels.html").exists()


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


@pytest.mark.parametrize("channels_last", [True, False], ids=["to NCHW", "to channels_last"])
def test_momentum_resumed_in_the_other_memory_format_moves_weights_as_unfused_sgd(
    tmp_path, channels_last
):
    loader, path, config = tiny_loader(), tmp_path / "last.pt", tiny_config(lr=0.05)
    saved, resumed = (
        tiny_pair(tiny_config(lr=0.05, channels_last=each), TwoConvolutions)
        for each in (channels_last, not channels_last)
    )
    expected = [
        copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        for network in saved.networks
    ]
    for k in (0, 1):
        sgd = {"lr": config.lr, "momentum": MOMENTUM, "weight_decay": config.weight_decay}
        plain = SGD(expected[k].parameters(), **sgd, foreach=False, fused=False)
        steps(expected[k], plain, range(4))
        steps(saved.networks[k], saved.optimizers[k], range(2))
    runs = [stand_in_run("", config, loader, pair) for pair in (saved, resumed)]
    checkpoints.save(checkpoints.training_state(runs[0], -1), path)
    checkpoints.restore(runs[1], checkpoints.load(path, training=True), path)
    for k in (0, 1):
        network, optimizer = resumed.networks[k], resumed.optimizers[k]
        assert optimizer.param_groups[0]["fused"]
        assert network.conv[2].weight.is_contiguous() == channels_last
        steps(network, optimizer, range(2, 4))
        for name, tensor in network.state_dict().items():
            assert_close(tensor, expected[k].state_dict()[name], rtol=1e-4, atol=1e-6)

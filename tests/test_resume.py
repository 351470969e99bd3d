"""A run that is killed, stopped or extended goes on as if nothing had happened, bit for bit."""

import os
import random
import re
import shutil
import signal
import time

import pytest
import torch
from runs import (
    RUN_NAME,
    SHORT_RUN,
    assert_same_run,
    events_of,
    finish,
    rows_of,
    start,
)

import train_cifar

KILLS, STOPS = 10, 4


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nothing disturbed, and the seconds that it took."""
    output = tmp_path_factory.mktemp("straight")
    started = time.monotonic()
    assert finish(start(output)) == 0, (output / "log.txt").read_text()
    return output / RUN_NAME, time.monotonic() - started


def disturb(output, signal_number, times: int, seconds: float, *flags: str) -> list[int]:
    """Send a signal to short runs, each resuming the one before, then let the last one finish.

    Returns the exit statuses of those that were hit.
    """
    moments = random.Random(0)
    statuses = []
    while len(statuses) < times:
        process = start(output, "--resume", *flags)
        process.join(moments.uniform(0.1, seconds / 3))
        if process.exitcode is None:
            os.kill(process.pid, signal_number)
        status = finish(process)
        if status:
            statuses.append(status)
        else:  # it had finished: on to another run
            output = output.with_name(output.name + "x")
    assert finish(start(output, "--resume", *flags)) == 0, (output / "log.txt").read_text()
    return statuses


def disturbed_folders(tmp_path):
    return [folder / RUN_NAME for folder in sorted(tmp_path.iterdir())]


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_as_the_straight_one(straight, tmp_path):
    folder, seconds = straight
    statuses = disturb(tmp_path / "killed", signal.SIGKILL, KILLS, seconds)
    assert statuses == [128 + signal.SIGKILL] * KILLS
    for disturbed in disturbed_folders(tmp_path):
        assert_same_run(disturbed, folder)


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_loses_no_epoch_and_ends_as_the_straight_one(straight, tmp_path):
    folder, seconds = straight
    flags = ("--save_every", "4")  # so that the epochs between are held in memory alone
    statuses = disturb(tmp_path / "stopped", signal.SIGTERM, STOPS, seconds, *flags)
    assert statuses == [128 + signal.SIGTERM] * STOPS
    for disturbed in disturbed_folders(tmp_path):
        assert_same_run(disturbed, folder)
        log = (disturbed.parent / "log.txt").read_text()
        epochs = [int(n) for n in re.findall(r"^ +(\d+) (?:warm|semi|recal)", log, re.M)]
        assert epochs == list(range(6)), "an epoch that had ended was done again"


def test_a_straight_run_leaves_one_line_and_one_point_an_epoch(straight):
    folder, _ = straight
    assert [row["epoch"] for row in rows_of(folder)] == list(range(6))
    assert len((folder / "acc.txt").read_text().splitlines()) == 6
    curves = events_of(folder)
    assert [step for step, _ in curves["test/accuracy"]] == list(range(6))


def test_a_checkpoint_loads_with_weights_only_and_holds_the_last_epoch(straight):
    folder, _ = straight
    last = torch.load(folder / "last.pt", weights_only=True)
    best = torch.load(folder / "best.pt", weights_only=True)
    accuracies = [row["test/accuracy"] for row in rows_of(folder)]
    assert last["epoch"] == 5 and last["accuracy"] == accuracies[-1]
    assert best["accuracy"] == max(accuracies) == accuracies[best["epoch"]]
    assert set(best) == {"epoch", "config", "device", "noise_sha256", "networks", "accuracy"}


def run(*flags: str) -> int:
    """A short run in this process; its exit status."""
    return train_cifar.main([*SHORT_RUN, *flags])


def test_evaluate_gives_the_stored_accuracy(straight, tmp_path, capsys):
    for name in ("last.pt", "best.pt"):
        shutil.copy(straight[0] / name, tmp_path)  # beside it labels.csv is written
        accuracy = torch.load(tmp_path / name, weights_only=True)["accuracy"]
        assert train_cifar.main(["--evaluate", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        assert f"accuracy {accuracy:.2f} % (stored {accuracy:.2f} %)" in said


def test_a_run_that_is_resumed_with_more_epochs_is_the_longer_run(straight, tmp_path):
    output = ("--output", str(tmp_path))
    assert run(*output, "--num_epochs", "1") == 0
    assert run("--resume", str(tmp_path / RUN_NAME), "--num_epochs", "5") == 0
    assert rows_of(tmp_path / RUN_NAME) == rows_of(straight[0])
    labels = [folder / "labels.csv" for folder in (tmp_path / RUN_NAME, straight[0])]
    assert labels[0].read_text() == labels[1].read_text()

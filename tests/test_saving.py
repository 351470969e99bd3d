"""Checkpoints are written while training goes on: what they hold, and what waits for them."""

import errno
import io
import os
import signal
import threading
import time
import weakref
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from runs import RUN_NAME, assert_same, rows_of, run_short, without_times
from smr.run.saving import Saver, copied
from test_resume import stop_in_epoch

from smr.logging.console import RunLog
from smr.run import checkpoints
from smr.run import run as session

PATIENCE = 20


def test_a_copy_keeps_what_training_then_changes_in_place():
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    history, rows = [(torch.arange(3), torch.rand(3))], [{"epoch": 0}]
    state = {"networks": [{"w": weight}], "histories": [history], "rows": rows, "random": (1, "a")}
    wanted = torch.clone(weight)
    found = copied(state)
    assert_same(found, state)
    weight.zero_()
    rows.append({"epoch": 1})
    assert torch.equal(found["networks"][0]["w"], wanted)
    assert found["networks"][0]["w"].is_contiguous(memory_format=torch.channels_last)
    assert found["rows"] == [{"epoch": 0}]


def test_work_goes_on_beside_and_its_lines_are_told_where_it_is_waited_for():
    may_end, told = threading.Event(), []

    def work() -> list[str]:
        assert may_end.wait(PATIENCE)
        return ["a", "b"]

    with Saver(told.append) as saver:
        saver.wait()  # for nothing
        saver.start(work)
        assert told == []
        may_end.set()
        saver.wait()
        assert told == ["a", "b"]
        saver.wait()
        saver.start(lambda: ["c"])
    assert told == ["a", "b", "c"]


def test_what_fails_is_raised_where_it_is_waited_for():
    with pytest.raises(ZeroDivisionError), Saver(print) as saver:
        saver.start(lambda: 1 / 0)


def test_an_interrupted_run_waits_for_its_last_work():
    done, interrupted = [], threading.Event()

    def work() -> list[str]:
        assert interrupted.wait(PATIENCE)
        done.append(1)
        return []

    with pytest.raises(KeyboardInterrupt), Saver(print) as saver:
        saver.start(work)
        threading.Timer(0.1, interrupted.set).start()
        raise KeyboardInterrupt
    assert done == [1]


def on_save_of(monkeypatch, epoch: int, call) -> None:
    """Call this before last.pt of the epoch is written."""
    save = checkpoints.save

    def saving(state, path):
        if path.name == "last.pt" and state["epoch"] == epoch:
            call()
        save(state, path)

    monkeypatch.setattr(checkpoints, "save", saving)


def test_a_checkpoint_is_written_while_the_next_epoch_trains_and_is_of_its_own_epoch(
    tmp_path, monkeypatch
):
    assert run_short(tmp_path / "first", "--num_epochs", "1") == 0
    wanted = torch.load(tmp_path / "first" / RUN_NAME / "last.pt", weights_only=True)
    trained, found = threading.Event(), {}

    def progress(_, epoch, kind, network, step, *__):
        if (epoch, network, step) == (2, 2, 4):
            trained.set()

    def reading(state, path):
        save(state, path)
        if path.name == "last.pt" and state["epoch"] == 1:
            found["last"] = torch.load(path, weights_only=True)

    save = checkpoints.save
    monkeypatch.setattr(RunLog, "progress", progress)
    monkeypatch.setattr(checkpoints, "save", reading)
    on_save_of(monkeypatch, 1, lambda: found.setdefault("waited", trained.wait(PATIENCE)))
    assert run_short(tmp_path / "second", "--num_epochs", "2") == 0
    assert found["waited"], "the next epoch waits for the file"
    for part in ("networks", "optimizers", "histories", "random"):
        assert_same(found["last"][part], wanted[part], part)
    assert without_times(found["last"]["rows"]) == without_times(wanted["rows"])


def test_best_is_written_before_last_and_one_file_at_a_time(tmp_path, monkeypatch):
    written, save = [], checkpoints.save

    def noting(state, path):
        written.append(("begin", path.name, state["epoch"]))
        save(state, path)
        written.append(("end", path.name, state["epoch"]))

    monkeypatch.setattr(checkpoints, "save", noting)
    assert run_short(tmp_path, "--save_every", "2") == 0
    accuracies = [row["test/accuracy"] for row in rows_of(tmp_path / RUN_NAME)]
    files = [("last.pt", -1)]
    for epoch, accuracy in enumerate(accuracies):
        files += [("best.pt", epoch)] if accuracy > max(accuracies[:epoch], default=-1) else []
        files += [("last.pt", epoch)] if epoch in (1, 3, 5) else []
    assert written == [(when, *file) for file in files for when in ("begin", "end")]


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_has_the_checkpoint_that_was_being_written(
    tmp_path, monkeypatch, signal_name
):
    number, leave, stopped = signal.Signals[signal_name], Saver.__exit__, threading.Event()
    monkeypatch.setattr(Saver, "__exit__", lambda *given: (stopped.set(), leave(*given))[1])
    on_save_of(monkeypatch, 2, lambda: stopped.wait(PATIENCE))
    with pytest.MonkeyPatch.context() as patch:
        stop_in_epoch(patch, 3, number)
        assert run_short(tmp_path) == 128 + number
    assert checkpoints.load(tmp_path / RUN_NAME / "last.pt")["epoch"] == 2


def test_one_copy_of_the_state_is_held_at_the_most(tmp_path, monkeypatch):
    held, alive, next_copied = [], [], threading.Event()

    def counting(state):
        for _ in range(30):  # the thread lets go of a copy a moment after it is done
            if not any(copy() is not None for copy in held):
                break
            time.sleep(0.01)
        alive.append(sum(copy() is not None for copy in held))
        copy = copied(state)
        held.append(weakref.ref(copy["networks"][0]["linear.weight"]))
        if state["epoch"] == 2:
            next_copied.set()
        return copy

    monkeypatch.setattr(session, "copied", counting)
    on_save_of(monkeypatch, 1, lambda: next_copied.wait(1))  # a slow disk, which is waited for
    assert run_short(tmp_path) == 0
    assert alive == [0] * 6


class SmallDisk(io.RawIOBase):
    """A file that takes so many bytes."""

    def __init__(self, room: int):
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def test_a_disk_that_is_full_at_whatever_byte_is_an_os_error(tmp_path, monkeypatch):
    state = {"networks": [torch.randn(5000) for _ in range(3)]}
    with open(tmp_path / "whole", "wb") as file:
        torch.save(state, file)
    size = (tmp_path / "whole").stat().st_size

    @contextmanager
    def on_a_disk_with(room: int, _path):
        with io.BufferedWriter(SmallDisk(room)) as file:
            yield file
            file.flush()

    for room in (*range(0, size, size // 40), size - 1, size):
        monkeypatch.setattr(checkpoints, "replacing", partial(on_a_disk_with, room))
        too_small = pytest.raises(OSError, match="No space left on device")
        with too_small if room < size else nullcontext():
            checkpoints.save(state, tmp_path / "last.pt")

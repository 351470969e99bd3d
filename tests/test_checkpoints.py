"""Checkpoints are written while training continues: what they hold, and what waits for them."""

import errno
import io
import os
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from runs import RUN_NAME, assert_same, at_step, rows_of, run_short, watched_disk, without_times

from smr.methods import METHODS, SMR
from smr.run import checkpoints
from smr.run.checkpoints import BackgroundWriter, copied

PATIENCE = 20


def test_a_copy_keeps_what_training_then_changes_in_place():
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    history, rows = [(torch.arange(3), torch.rand(3))], [{"epoch": 0}]
    state = {"networks": [{"w": weight}], "method": [history], "rows": rows, "random": (1, "a")}
    expected = torch.clone(weight)
    copy = copied(state)
    assert_same(copy, state)
    weight.zero_()
    rows.append({"epoch": 1})
    assert torch.equal(copy["networks"][0]["w"], expected)
    assert copy["networks"][0]["w"].is_contiguous(memory_format=torch.channels_last)
    assert copy["rows"] == [{"epoch": 0}]


# --- the thread that writes ---


@contextmanager
def writer(note):
    thread = BackgroundWriter(note)
    try:
        yield thread
    finally:
        thread.close()


def test_training_continues_during_a_write_and_its_notes_come_with_the_next_wait():
    may_end, notes = threading.Event(), []

    def write() -> list[str]:
        assert may_end.wait(PATIENCE)
        return ["a", "b"]

    with writer(notes.append) as thread:
        thread.wait()  # for nothing
        thread.start(write)
        assert notes == []
        may_end.set()
        thread.wait()
        assert notes == ["a", "b"]
        thread.wait()
        thread.start(lambda: ["c"])
    assert notes == ["a", "b", "c"]


def test_a_write_that_fails_raises_at_the_next_wait():
    with pytest.raises(ZeroDivisionError), writer(print) as thread:
        thread.start(lambda: 1 / 0)


def test_an_interrupted_run_waits_for_its_last_write():
    done, interrupted = [], threading.Event()

    def write() -> list[str]:
        assert interrupted.wait(PATIENCE)
        done.append(1)
        return []

    with pytest.raises(KeyboardInterrupt), writer(print) as thread:
        thread.start(write)
        threading.Timer(0.1, interrupted.set).start()
        raise KeyboardInterrupt
    assert done == [1]


# --- whole runs ---


class Disk:
    """Calls `before` and `after` with each checkpoint's name and epoch as it is put in place."""

    def __init__(self, before=lambda *_: None, after=lambda *_: None):
        self.calls = {"before": before, "after": after}

    def __enter__(self):
        self.patch = watched_disk(
            **{when: lambda path, when=when: self.call(when, path) for when in self.calls}
        )
        self.patch.__enter__()

    def __exit__(self, *error):
        self.patch.__exit__(*error)

    def call(self, when, path):
        if path.suffix == ".pt":
            written = path if when == "after" else path.with_name(f".{path.name}.new")
            self.calls[when](path.name, torch.load(written, weights_only=True))


def test_a_checkpoint_is_written_while_the_next_epoch_trains_and_is_of_its_own_epoch(tmp_path):
    assert run_short(tmp_path / "first", "--num_epochs", "1") == 0
    expected = torch.load(tmp_path / "first" / RUN_NAME / "last.pt", weights_only=True)
    trained, seen, events = threading.Event(), {}, []

    def before(name, state):
        events.append("write")
        if (name, state["epoch"]) == ("last.pt", 1):
            seen["continued"] = trained.wait(PATIENCE)
            time.sleep(0.5)  # the next epoch ends, and waits for the file

    def after(name, state):
        events.append("written")
        if (name, state["epoch"]) == ("last.pt", 1):
            seen["last"] = state

    class Copied(SMR):
        def state_dict(self):
            events.append("copy")
            return super().state_dict()

    copies = mock.patch.dict(METHODS, {"smr": Copied})
    with copies, Disk(before, after), at_step(2, 2, 4, trained.set):
        assert run_short(tmp_path / "second", "--num_epochs", "2") == 0
    assert seen["continued"], "the next epoch waits for the file"
    # One copy of the state is in memory at most.
    assert events.count("copy") == 4 and "write copy" not in " ".join(events)
    for part in ("networks", "optimizers", "method", "random"):
        assert_same(seen["last"][part], expected[part], part)
    assert without_times(seen["last"]["rows"]) == without_times(expected["rows"])


def test_best_is_written_before_last_and_one_file_at_a_time(tmp_path):
    written = []
    disk = Disk(
        lambda name, state: written.append(("begin", name, state["epoch"])),
        lambda name, state: written.append(("end", name, state["epoch"])),
    )
    with disk:
        assert run_short(tmp_path, "--save_every", "2") == 0
    rows, files = rows_of(tmp_path / RUN_NAME), [("last.pt", -1)]
    for epoch, row in enumerate(rows):
        earlier = rows[:epoch]
        best = row["test/accuracy"] > max((r["test/accuracy"] for r in earlier), default=-1)
        files += [("best.pt", epoch)] if best else []
        files += [("last.pt", epoch)] if epoch in (1, 3, 5) else []
    assert written == [(when, *file) for file in files for when in ("begin", "end")]


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_run_that_is_stopped_keeps_the_checkpoint_that_was_being_written(tmp_path, signal_name):
    number, stopped = signal.Signals[signal_name], threading.Event()

    def before(name, state):
        if (name, state["epoch"]) == ("last.pt", 2):
            stopped.wait(PATIENCE)

    def stop():
        threading.Timer(0.2, stopped.set).start()
        signal.raise_signal(number)

    with Disk(before), at_step(3, 2, 1, stop):
        assert run_short(tmp_path) == 128 + number
    assert checkpoints.load(tmp_path / RUN_NAME / "last.pt")["epoch"] == 2


# --- a full disk ---


class SmallDisk(io.RawIOBase):
    """A file that takes so many bytes."""

    def __init__(self, room: int):
        self.room = room

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def test_a_disk_that_is_full_at_whatever_byte_is_an_os_error_and_keeps_the_older_file(tmp_path):
    state = {"networks": [torch.randn(5000) for _ in range(3)]}
    path = tmp_path / "last.pt"
    checkpoints.save(state, path)
    older, size = path.read_bytes(), path.stat().st_size
    for room in (*range(0, size, size // 40), size - 1, size):

        def small(name, mode, room=room, **_):
            file = io.BufferedWriter(SmallDisk(room))
            file.raw.descriptor = os.open(name, os.O_CREAT | os.O_WRONLY)
            return file

        too_small = pytest.raises(OSError, match="No space left on device")
        with mock.patch("builtins.open", small), too_small if room < size else nullcontext():
            checkpoints.save(state, path)
        assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]
        assert room == size or path.read_bytes() == older

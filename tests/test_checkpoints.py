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

PATIENCE = 20


def test_a_copy_keeps_what_training_then_changes_in_place():
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    history, rows = [(torch.arange(3), torch.rand(3))], [{"epoch": 0}]
    state = {"networks": [{"w": weight}], "method": [history], "rows": rows, "random": (1, "a")}
    expected = torch.clone(weight)
    copy = checkpoints.copied(state)
    assert_same(copy, state)
    weight.zero_()
    rows.append({"epoch": 1})
    assert torch.equal(copy["networks"][0]["w"], expected)
    assert copy["networks"][0]["w"].is_contiguous(memory_format=torch.channels_last)
    assert copy["rows"] == [{"epoch": 0}]


@contextmanager
def checkpoints_watched(before=lambda *_: None, after=lambda *_: None):
    """Call these with each checkpoint's name and epoch, before and after it is put in place."""

    def with_epoch(call, place):
        def watched(path):
            if path.suffix == ".pt":
                call(path.name, torch.load(place(path), weights_only=True)["epoch"])

        return watched

    new = with_epoch(before, lambda path: path.with_name(f".{path.name}.new"))
    with watched_disk(new, with_epoch(after, lambda path: path)):
        yield


def test_a_checkpoint_is_written_while_the_next_epoch_trains_and_is_of_its_own_epoch(tmp_path):
    assert run_short(tmp_path / "first", "--num_epochs", "1") == 0
    expected = torch.load(tmp_path / "first" / RUN_NAME / "last.pt", weights_only=True)
    trained, continued, copies, last = threading.Event(), [], [], {}

    def before(name, epoch):
        copies.append("write")
        if (name, epoch) == ("last.pt", 1):
            continued.append(trained.wait(PATIENCE))
            time.sleep(0.5)  # the next epoch ends, and waits for the file

    def after(name, epoch):
        copies.append("written")
        if (name, epoch) == ("last.pt", 1):
            last.update(torch.load(tmp_path / "second" / RUN_NAME / name, weights_only=True))

    class Copied(SMR):
        def state_dict(self):
            copies.append("copy")
            return super().state_dict()

    watched = checkpoints_watched(before, after)
    with mock.patch.dict(METHODS, {"smr": Copied}), watched, at_step(2, 2, 4, trained.set):
        assert run_short(tmp_path / "second", "--num_epochs", "2") == 0
    assert continued == [True], "the next epoch waits for the file"
    # One copy of the state is in memory at most.
    assert copies.count("copy") == 4 and "write copy" not in " ".join(copies)
    for part in ("networks", "optimizers", "method", "random"):
        assert_same(last[part], expected[part], part)
    assert without_times(last["rows"]) == without_times(expected["rows"])


def test_best_is_written_before_last_and_one_file_at_a_time(tmp_path):
    written = []
    with checkpoints_watched(
        lambda *file: written.append(("begin", *file)), lambda *file: written.append(("end", *file))
    ):
        assert run_short(tmp_path, "--save_every", "2", "--num_epochs", "3") == 0
    best, files = -1.0, [("last.pt", -1)]
    for epoch, row in enumerate(rows_of(tmp_path / RUN_NAME)):
        files += [("best.pt", epoch)] if row["test/accuracy"] > best else []
        files += [("last.pt", epoch)] if epoch in (1, 3) else []
        best = max(best, row["test/accuracy"])
    assert written == [(when, *file) for file in files for when in ("begin", "end")]


def test_a_run_that_is_stopped_keeps_the_checkpoint_that_was_being_written(tmp_path):
    stopped = threading.Event()

    def before(name, epoch):
        if (name, epoch) == ("last.pt", 0):
            assert stopped.wait(PATIENCE)

    def stop():
        threading.Timer(0.2, stopped.set).start()
        signal.raise_signal(signal.SIGTERM)

    with checkpoints_watched(before), at_step(1, 2, 1, stop):
        assert run_short(tmp_path) == 128 + signal.SIGTERM
    assert checkpoints.load(tmp_path / RUN_NAME / "last.pt")["epoch"] == 0


# --- a full disk ---


class SmallDisk(io.RawIOBase):
    """A file that takes so many bytes."""

    def __init__(self, space: int, descriptor: int):
        self.space, self.descriptor = space, descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def write(self, data) -> int:
        self.space -= len(data)
        if self.space < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def test_a_disk_that_is_full_at_whatever_byte_is_an_os_error_and_keeps_the_older_file(tmp_path):
    state = {"networks": [torch.randn(5000) for _ in range(3)]}
    path = tmp_path / "last.pt"
    checkpoints.save(state, path)
    older, size = path.read_bytes(), path.stat().st_size
    for space in (*range(0, size, size // 40), size - 1, size):

        def small(name, mode, space=space):
            descriptor = os.open(name, os.O_CREAT | os.O_WRONLY)
            return io.BufferedWriter(SmallDisk(space, descriptor))

        too_small = pytest.raises(OSError, match="No space left on device")
        with mock.patch("builtins.open", small), too_small if space < size else nullcontext():
            checkpoints.save(state, path)
        assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]
        assert space == size or path.read_bytes() == older

"""Checkpoints written while training goes on: what they hold is copied, and a thread writes it."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


def copied(state: dict) -> dict:
    """The state as it is now, its tensors in host memory: training changes the others in place.

    Tensors of a CUDA card are copied into pinned memory, all of them before the card is waited for.
    """
    copy = _copied(state)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copy


def _copied(value):
    if isinstance(value, Tensor):
        host = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return host.copy_(value, non_blocking=value.is_cuda)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(one) for one in value)
    return value


class Saver:
    """Does one piece of work at a time in a thread of its own. To leave it is to wait for the last.

    A work's lines are given to `report`, and its exception is raised, where it is waited for.
    """

    def __init__(self, report: Callable[[str], None]):
        self.report = report
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[Iterable[str]] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_) -> None:
        with self.thread:  # which waits even where a signal ends the next line
            self.wait()

    def start(self, work: Callable[[], Iterable[str]]) -> None:
        """Have the thread do this, which gives lines to report; see `wait`."""
        self.pending = self.thread.submit(work)

    def wait(self) -> None:
        """Wait for the work that was started last."""
        if self.pending:
            for line in self.pending.result():
                self.report(line)
        self.pending = None

"""Memory of the process: what it keeps for the next tensor, what it frees, its peak."""

import ctypes
import gc
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers import REPOSITORY, script_environment
from runs import RUN_NAME, at_step, run_short

import train_cifar
from smr import devices

CPU = torch.device("cpu")
FAULTS_OF_TENSORS = """
import resource, torch
from smr import devices

def faults_of_later_tensors(earlier):
    for count in (earlier, 2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            torch.ones(2**26, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults_of_later_tensors(1)
devices.prepare_process(torch.device("cpu"), amp=False)
print(plain, faults_of_later_tensors(12))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's own setting")
def test_a_training_process_keeps_freed_memory_for_the_next_tensor():
    # Pages that the system hands out for two tensors of 64 MiB after others were freed: twelve,
    # since glibc before 2.38 takes a few until an aligned one fits where another was.
    command = [sys.executable, "-c", FAULTS_OF_TENSORS]
    found = subprocess.run(
        command, cwd=REPOSITORY, env=script_environment(), capture_output=True, check=True
    )
    plain, prepared = map(int, found.stdout.split())
    pages = 2 * 2**26 // resource.getpagesize()
    assert prepared < pages / 2
    # Huge pages, where a system gives them unasked, are few as it is.
    assert plain > pages * 0.9 or huge_pages()


def huge_pages() -> bool:
    """Whether the system backs memory with huge pages without being asked."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.is_file() and "[always]" in path.read_text()


def test_a_resumed_run_keeps_no_checkpoint_in_memory_while_it_trains(tmp_path):
    """The networks and the optimizers hold what was read: its own tensors are gone."""
    tensors, alive, load = [], [], torch.load

    def watched_load(*args, **options):
        state = load(*args, **options)
        for k in (0, 1):
            momenta = [s["momentum_buffer"] for s in state["optimizers"][k]["state"].values()]
            tensors.extend(map(weakref.ref, [*state["networks"][k].values(), *momenta]))
        return state

    def count():
        gc.collect()
        alive.append(sum(tensor() is not None for tensor in tensors))

    assert run_short(tmp_path, "--num_epochs", "0") == 0
    with mock.patch("torch.load", watched_load), at_step(1, 1, 1, count):
        assert run_short(tmp_path, "--num_epochs", "1", "--resume") == 0
    assert alive == [0] and len(tensors) > 100


def test_training_and_evaluate_each_prepare_the_process_once(tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: prepared.append(1))
    assert run_short(tmp_path, "--num_epochs", "0") == 0
    assert prepared == [1]
    assert train_cifar.main(["--evaluate", str(tmp_path / RUN_NAME)]) == 0
    assert prepared == [1, 1]


def test_peaks_of_memory_are_in_gib(monkeypatch):
    found = devices.peak_memory(CPU)
    assert found.keys() == {"memory/host_gib"}
    kib = 2**10 if sys.platform == "darwin" else 1  # what getrusage counts in
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kib / 2**20
    assert found["memory/host_gib"] == pytest.approx(held, rel=0.01)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**29)
    assert devices.peak_memory(torch.device("cuda"))["memory/device_gib"] == 1.5

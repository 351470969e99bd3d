"""What the process holds in memory, and what it keeps for the next tensor."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, TinyNet, script_environment
from runs import run_short

import train_cifar
from smr.run import checkpoints, devices
from smr.run import run as session
from smr.training import optimize

CPU = torch.device("cpu")
FAULTS_OF_TENSORS = """
import resource, torch
from smr.run import devices

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


def test_a_step_frees_its_gradients():
    network = TinyNet()
    weight, bias = network.linear.weight, network.linear.bias
    wanted = weight.detach() - 0.1 * 3
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    optimize(3 * weight.sum() + bias.sum(), optimizer)
    assert torch.allclose(weight, wanted)
    assert weight.grad is bias.grad is None


def test_every_use_of_the_networks_prepares_the_process_and_none_keeps_a_checkpoint(
    monkeypatch, tmp_path
):
    prepared, states, held = [], [], []
    load, train = checkpoints.load_training_state, session.train

    def loading(path):
        states.append(load(path))
        return states[-1]

    def training(*arguments):
        held.append(len(states[-1]) if states else None)
        return train(*arguments)

    monkeypatch.setattr(devices, "keep_freed_memory", lambda: prepared.append(1))
    monkeypatch.setattr(checkpoints, "load_training_state", loading)
    monkeypatch.setattr(session, "train", training)
    assert run_short(tmp_path, "--num_epochs", "0") == 0
    assert run_short(tmp_path, "--num_epochs", "1", "--resume") == 0
    assert held == [None, 0]
    assert len(prepared) == 2
    assert train_cifar.main(["--evaluate", str(next(tmp_path.rglob("last.pt")))]) == 0
    assert len(prepared) == 3


def test_peaks_of_memory_are_in_gib(monkeypatch):
    found = devices.peak_memory(CPU)
    assert found.keys() == {"memory/host_gib"}
    kib = 2**10 if sys.platform == "darwin" else 1  # what getrusage counts in
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kib / 2**20
    assert found["memory/host_gib"] == pytest.approx(held, rel=0.01)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**29)
    assert devices.peak_memory(torch.device("cuda"))["memory/device_gib"] == 1.5

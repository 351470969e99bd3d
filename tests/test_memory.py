"""What the process holds in memory, and what it keeps for the next tensor."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, TinyNet, script_environment, tiny_loader, tiny_pair, tiny_recipe
from runs import SHORT_RUN

import smr
import train_cifar
from support import checkpoints, memory, session

CPU = torch.device("cpu")
FAULTS_OF_TENSORS = """
import resource, sys, torch
from support import session
if sys.argv[1] == "prepared":
    session.prepare_process(torch.device("cpu"), "off")
for count in (12, 4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(2**26, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_later_tensors(process: str) -> int:
    """Pages that the system hands out for four tensors of 64 MiB where twelve were freed before."""
    command = [sys.executable, "-c", FAULTS_OF_TENSORS, process]
    found = subprocess.run(
        command, cwd=REPOSITORY, env=script_environment(), capture_output=True, check=True
    )
    return int(found.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's own setting")
def test_a_training_process_keeps_freed_memory_for_the_next_tensor():
    pages = 4 * 2**26 // resource.getpagesize()
    # glibc before 2.38 takes a few tensors until an aligned one fits where another was.
    assert faults_of_later_tensors("prepared") < pages / 2
    # Huge pages, where a system gives them unasked, are few as it is.
    assert faults_of_later_tensors("plain") > pages * 0.9 or huge_pages()


def huge_pages() -> bool:
    """Whether the system backs memory with huge pages without being asked."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.is_file() and "[always]" in path.read_text()


def test_both_uses_of_the_networks_prepare_the_process(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(session, "keep_freed_memory", lambda: calls.append(1))
    flags = [*SHORT_RUN, "--output", str(tmp_path), "--num_epochs", "0"]
    assert train_cifar.main(flags) == 0
    assert len(calls) == 1
    assert train_cifar.main(["--evaluate", str(next(tmp_path.rglob("last.pt")))]) == 0
    assert len(calls) == 2


def test_a_step_frees_its_gradients():
    network = TinyNet()
    weight, bias = network.linear.weight, network.linear.bias
    wanted = weight.detach() - 0.1 * 3
    optimiser = torch.optim.SGD([weight, bias], lr=0.1)
    smr.optimise(3 * weight.sum() + bias.sum(), optimiser)
    assert torch.allclose(weight, wanted)
    assert weight.grad is bias.grad is None


def test_padded_images_are_held_once():
    loader = tiny_loader()
    padded, given = loader.train_images.padded, loader.data.train_images
    assert given.shape == (40, 8, 8, 3)
    first_inner_pixel = padded[0, 1, 1].data_ptr()
    assert given.ctypes.data == first_inner_pixel
    assert np.array_equal(given, padded[:, 1:-1, 1:-1].numpy())


def test_a_resumed_run_lets_go_of_its_checkpoint(monkeypatch, tmp_path):
    states, held = [], []
    load, train = checkpoints.load_training_state, smr.train

    def loading(path):
        states.append(load(path))
        return states[-1]

    def training(*arguments):
        held.append(len(states[-1]) if states else None)
        return train(*arguments)

    monkeypatch.setattr(checkpoints, "load_training_state", loading)
    monkeypatch.setattr(smr, "train", training)
    flags = [*SHORT_RUN, "--output", str(tmp_path)]
    assert train_cifar.main([*flags, "--num_epochs", "0"]) == 0
    assert train_cifar.main([*flags, "--num_epochs", "1", "--resume"]) == 0
    assert held == [None, 0]


@pytest.mark.parametrize(
    ("seconds_of_a_step", "sizes"),
    [(0.001, [32, 32, 64, 64, 100, 100]), (0.06, [32, 32]), (0.03, [32, 32, 64, 64])],
)
def test_the_time_to_come_is_foretold_from_a_step_large_enough(
    seconds_of_a_step, sizes, monkeypatch
):
    recipe, loader = tiny_recipe(batch_size=50), tiny_loader(n=200, batch_size=50)
    pair, clock, seen = tiny_pair(recipe), [0.0], []
    loss = smr.cross_entropy_loss

    def measured_loss(network, images, labels, penalised):
        seen.append(len(images))
        clock[0] += seconds_of_a_step * len(images) / 16
        return loss(network, images, labels, penalised)

    monkeypatch.setattr(smr, "cross_entropy_loss", measured_loss)
    monkeypatch.setattr(session.time, "perf_counter", lambda: clock[0])
    before = pair.networks[0].linear.weight.clone()
    line = session.foretell(pair, loader, recipe, [smr.WARM_UP, smr.SEMI_SUPERVISED])
    assert seen == sizes
    # Warm-up: 6 x 200 passes; semi-supervised: 2 x 200 and, of 190 right labels, 36 each; tests 80.
    passes = 6 * 200 + 2 * 200 + 36 * 190 + 80
    wanted = round(passes * seconds_of_a_step / 16 / 3)
    assert line.startswith(f"expect about 0:00:{wanted:02} on this CPU")
    assert torch.equal(pair.networks[0].linear.weight, before)


def test_peaks_of_memory_are_in_gib():
    held = memory.peak_memory(CPU)
    assert held.keys() == {"host_gib"}
    assert 0.1 < held["host_gib"] < 64

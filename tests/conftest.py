"""Fixtures: tiny CIFAR folders, and one thread, which is fastest on networks this small."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_cifar


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeds():
    """Same draws in each test, in whatever order they run."""
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def cifar10_folder(tmp_path):
    """100 training and 40 test images in CIFAR-10's layout; the folder of the files."""
    return write_cifar(tmp_path / "data", "cifar10")


@pytest.fixture
def cifar100_folder(tmp_path):
    """200 training and 100 test images in CIFAR-100's layout; the folder of the files."""
    return write_cifar(tmp_path / "data", "cifar100", 200, 100)


class Clock:
    """A clock that stands still until somebody moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """The folder of a short run on digits with every kind of epoch of SMR."""
    import train_cifar

    torch.manual_seed(0)
    output = tmp_path_factory.mktemp("run")
    flags = (
        "--dataset digits --train_images 400 --width 2 --batch_size 256 --num_epochs 4 --warm_up 1"
    )
    flags = [*flags.split(), "--recalibrate_every", "4", "--output", str(output)]
    assert train_cifar.main(flags) == 0
    (folder,) = output.iterdir()
    return folder

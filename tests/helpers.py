"""What the tests share: tiny data in the official layout, small networks, scripts as users run."""

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.testing._internal.distributed.fake_pg import FakeStore

import smr
from smr.data.augment import Views
from smr.data.memory_dataset import ImageData, MemoryLoader
from smr.flags import parse
from smr.label_issues import report
from smr.label_issues.scores import LabelIssues

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCE = Path(__file__).resolve().parent / "reference"


class Python2Pickler(pickle._Pickler):
    """Writes every string as Python 2 did, which is how CIFAR's archives hold them."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_python2_string(self, text):
        raw = text.encode() if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)

    dispatch[str] = dispatch[bytes] = save_python2_string


def write_python2_pickle(path: Path, content: dict) -> None:
    """Write `content` as a Python 2 pickle; its arrays name NumPy as it was then."""
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))


def cifar_rows(labels: np.ndarray, seed: int) -> np.ndarray:
    """uint8 [n, 3072], noise around a color and a brightness gradient that tell the class."""
    source = np.random.default_rng(seed)
    colors = np.random.default_rng(0).integers(40, 216, (100, 3, 1, 1))
    slopes = np.random.default_rng(1).integers(-3, 4, (100, 1, 1, 1)) * np.arange(-16, 16)
    images = colors[labels] + slopes[labels] + source.normal(0, 15, (len(labels), 3, 32, 32))
    return images.clip(0, 255).astype(np.uint8).reshape(len(labels), 3072)


def write_cifar(
    root: Path, dataset: str = "cifar10", train_images: int = 100, test_images: int = 40
) -> Path:
    """Write a small CIFAR-10 or CIFAR-100 in its official layout under `root`; its folder.

    Image i has label i % classes. `train_images` of CIFAR-10 is a multiple of 5.
    """
    classes, name = (10, "10-batches-py") if dataset == "cifar10" else (100, "100-python")
    folder = Path(root) / f"cifar-{name}"
    folder.mkdir(parents=True)
    train, test = (np.arange(n) % classes for n in (train_images, test_images))
    rows, test_rows = cifar_rows(train, seed=2), cifar_rows(test, seed=3)
    if dataset == "cifar10":
        for i, part in enumerate(np.split(np.arange(train_images), 5), start=1):
            content = {"data": rows[part], "labels": train[part].tolist()}
            write_python2_pickle(folder / f"data_batch_{i}", content)
        write_python2_pickle(folder / "test_batch", {"data": test_rows, "labels": test.tolist()})
        names = [f"class{label}" for label in range(10)]
        write_python2_pickle(folder / "batches.meta", {"label_names": names})
    else:
        for name, data, labels in (("train", rows, train), ("test", test_rows, test)):
            coarse = (labels // 5).tolist()
            content = {"data": data, "fine_labels": labels.tolist(), "coarse_labels": coarse}
            write_python2_pickle(folder / name, content)
        names = [f"fine{label}" for label in range(100)]
        write_python2_pickle(folder / "meta", {"fine_label_names": names})
    return folder


class TinyNet(nn.Module):
    """The small network of the golden steps: conv, BN, ReLU, mean over the image, linear."""

    def __init__(self, num_classes: int = 10, width: int = 6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn(self.conv(images))).mean((2, 3)))


def bright_images(labels: np.ndarray, size: int = 8) -> np.ndarray:
    """uint8 [n, size, size, 3], random but as bright as the class is high."""
    noise = np.random.default_rng(len(labels)).integers(0, 60, (len(labels), size, size, 3))
    return (18 * labels[:, None, None, None] + noise).astype(np.uint8)


def tiny_loader(
    n: int = 40, batch_size: int = 8, wrong: int = 10, size: int = 8, log=None
) -> MemoryLoader:
    """Image i has class i % 10; the first `wrong` images are given the class after theirs."""
    clean = np.arange(n) % 10
    given = np.where(np.arange(n) < wrong, (clean + 1) % 10, clean)
    test = np.arange(20) % 10
    data = ImageData(
        bright_images(clean, size),
        given,
        bright_images(test, size),
        test,
        list("0123456789"),
        clean,
    )
    views = Views(mean=(0.4,) * 3, std=(0.3,) * 3, padding=1, flip=True)
    return MemoryLoader(data, views, batch_size, seed=0, log=log)


@dataclass
class TinyConfig(smr.Config):
    """CIFAR-10's proportions, small enough for a test."""

    dataset: str = smr.flag("the only one", default="tiny")

    HYPERPARAMETERS: ClassVar = {
        "tiny": {
            "num_epochs": 4,
            "batch_size": 8,
            "lr": 0.02,
            "lr_steps": (),
            "weight_decay": 5e-4,
            "warm_up": 1,
            "recalibrate_every": 3,
            "channels_last": False,
        }
    }
    r: ClassVar = 0.5


# What a script fixes for its dataset, and no flag changes.
OF_THE_SCRIPT = ("r", "entropy_penalty", "labeled_rows_only", "top5")


def tiny_config(**changes) -> smr.Config:
    """TinyConfig with these flags, or values of `OF_THE_SCRIPT`."""
    fixed = {name: changes.pop(name) for name in OF_THE_SCRIPT if name in changes}
    script = type("TinyConfig", (TinyConfig,), fixed)
    return smr.configure(script, **{"seed": 1, "device": "cpu"} | changes)


def config_of(script: type[smr.Config], *argv: str) -> smr.Config:
    """The configuration of a script's command line, on a CPU."""
    given, _ = parse(script, "", list(argv))
    return smr.configure(script, **{"device": "cpu"} | given)


def tiny_pair(config: smr.Config, build_network=TinyNet) -> smr.Pair:
    """Two untrained networks with their optimizers."""
    return smr.new_pair(build_network, config, "cpu")


def train(
    pair: smr.Pair, loader, config: smr.Config, first_epoch: int = 0, log=None
) -> Iterator[smr.TrainedEpoch]:
    """The epochs of a run, trained as a script does."""
    method = smr.new_method(config, pair, loader, log)
    for epoch in range(first_epoch, config.num_epochs + 1):
        yield method.train_epoch(epoch)


class Log:
    """A method's log that keeps its notes, and (epoch, kind, network, step, steps) of each step."""

    def __init__(self):
        self.notes, self.steps = [], []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, *place) -> None:
        self.steps.append(place[:5])


class Spy:
    """A loader that records the calls of `run`."""

    def __init__(self, loader):
        self.loader, self.calls = loader, []

    def run(self, mode, *arguments, **options):
        self.calls.append((mode, *arguments))
        return self.loader.run(mode, *arguments, **options)

    def __getattr__(self, name):
        return getattr(self.loader, name)


@contextmanager
def fake_rank(rank: int, world_size: int = 2) -> Iterator[None]:
    """This process is a rank of several, of which the others only pretend."""
    init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        destroy_process_group()


def plain_images(loader, mode: str = "eval_train") -> Tensor:
    """All images of a mode, not augmented."""
    return torch.cat([images for images, *_ in loader.run(mode)])


def state_copy(network: nn.Module) -> dict[str, Tensor]:
    """The network's state as it is now."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def script_environment() -> dict[str, str]:
    """The environment of a script under test: one thread, no GPU."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_script(name: str, *arguments, cwd: Path, timeout: float = 120):
    """Run a training script as a user does; the CompletedProcess with text output."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / name), *map(str, arguments)],
        cwd=cwd,
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def generator(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def stand_in_run(script: str, config: smr.Config, loader, pair: smr.Pair, rows=()):
    """What a checkpoint is of: a `Run` without its command line and folder."""
    method = smr.new_method(config, pair, loader)
    parts = {"script": script, "config": config, "loader": loader, "pair": pair, "method": method}
    return SimpleNamespace(**parts, data_sha256="labels", rows=list(rows))


def refused(main, capsys, *arguments) -> str:
    """The one line with which a script's main refuses these arguments."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.count("\n") == 1, text
    return text


def finish_by_hand(
    loader, folder: Path, root, suggested: dict[int, int], dataset: str = "folder"
) -> Path:
    """Write what a run leaves in its folder that suggests these classes: position → class."""
    folder.mkdir(parents=True, exist_ok=True)
    given, classes = loader.noisy_labels.numpy(), len(loader.class_names)
    probability = np.eye(classes, dtype=np.float32)[given] * 0.8 + 0.02
    p_clean = np.full((2, len(given)), 0.9)
    for rank, (row, label) in enumerate(suggested.items()):
        probability[row] = 0.02
        probability[row, label] = 0.9
        p_clean[:, row] = 0.1 * rank  # the first has the lowest quality
    issues = LabelIssues(np.arange(len(given)), given, probability, p_clean)
    report.write_list(issues, loader, folder, root)
    config = {"dataset": dataset, "data_path": str(root), "class_names": loader.class_names}
    (folder / "config.json").write_text(json.dumps(config | asdict(loader.info)))
    return folder

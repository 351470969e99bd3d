"""Damaged files are taken or refused in one line: no traceback, hang or executed code."""

import io
import json
import random
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import stand_in_run, write_cifar
from photos import write_animals

import smr
import train_cifar
from dataloader_animal10N import read_animal10n
from smr.config import resumed
from smr.data.cifar_files import read_cifar
from smr.data.noise_file import read_label_list
from smr.errors import InputError
from smr.run import checkpoints
from smr.training import optimizer_step

SECONDS_A_CASE = 5

PIECES = (
    *(b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"r\xff\xff\xff\xff", b"]" * 500, b"a" * 50),
    *(b"cposix\nsystem\nX\x04\x00\x00\x00exit\x85R", b"X\xff\xff\xff\x7f", b"(" * 50),
)


def flip(raw: bytearray, draw: random.Random) -> None:
    """Bytes anywhere, or near an end, where the structure is."""
    places = draw.choice((range(len(raw)), range(len(raw))[:300], range(len(raw))[-300:]))
    for _ in range(draw.choice((1, 1, 2, 8))):
        raw[draw.choice(places)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))


def cut(raw: bytearray, draw: random.Random) -> None:
    start = draw.choice((draw.randrange(len(raw)), draw.randrange(min(len(raw), 100))))
    if draw.random() < 0.5:
        del raw[start:]
    else:
        del raw[start : start + draw.choice((1, 4, 100, 5000))]


def splice(raw: bytearray, draw: random.Random) -> None:
    start, end = sorted(draw.randrange(len(raw) + 1) for _ in range(2))
    place = draw.randrange(len(raw) + 1)
    raw[place:place] = raw[start : min(end, start + 2000)]


def plant(raw: bytearray, draw: random.Random) -> None:
    """Numbers and operations that ask for much."""
    piece = draw.choice(PIECES)
    place = draw.randrange(len(raw) + 1)
    raw[place : place + draw.choice((0, len(piece)))] = piece


MUTATIONS = (flip, flip, flip, cut, splice, plant)


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """The bytes, damaged."""
    changed = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if changed:
            draw.choice(MUTATIONS)(changed, draw)
    return bytes(changed)


def repacked(raw: bytes, draw: random.Random) -> bytes:
    """An archive with a damaged pickle under a right checksum."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, mutated(part, draw) if name.endswith("data.pkl") else part)
    return out.getvalue()


def small_run(folder: Path):
    """A checkpoint of a tiny run on digits, and what resumes a run from such a file."""
    flags = {"dataset": "digits", "width": 1, "device": "cpu", "warm_up": 0, "channels_last": False}
    config = smr.configure(train_cifar.CifarConfig, **flags)
    loader = train_cifar.make_loader(config, torch.device("cpu"))
    pair = smr.new_pair(lambda: train_cifar.build_network(config), config, "cpu")
    rows = [{"epoch": 0, "kind": "warm-up", "test/accuracy": 10.0}]
    run = stand_in_run("train_cifar.py", config, loader, pair, rows)
    images, *_ = next(iter(loader.run("eval_train")))
    for network, optimizer in zip(pair.networks, pair.optimizers, strict=True):
        optimizer_step(network(images[:4]).sum() / 1000, optimizer)
    run.method.co_divide()
    checkpoints.save(checkpoints.training_state(run, 0), folder / "last.pt")

    def resume(path: Path) -> None:
        state = checkpoints.load(path, training=True)
        with checkpoints.fitting(path, "its configuration does not fit"):
            resumed(train_cifar.CifarConfig, state, {}, str(path))
        checkpoints.restore(run, state, path)

    return folder / "last.pt", resume


@pytest.fixture
def targets(tmp_path):
    """Name → (valid file, what reads it, how it is damaged, how often)."""
    cifar10 = write_cifar(tmp_path / "ten", "cifar10", 10, 4)
    cifar100 = write_cifar(tmp_path / "hundred", "cifar100", 10, 4)
    animals = write_animals(tmp_path, "binary", 6, 4)
    clean = np.arange(50) % 10
    noise = tmp_path / "noise.json"
    noise.write_text(json.dumps(clean.tolist()))
    human = tmp_path / "CIFAR-10_human.pt"
    torch.save({"clean_label": clean, "worse_label": clean[::-1].copy()}, human)
    (tmp_path / "run").mkdir()
    last, resume = small_run(tmp_path / "run")

    def read_ten(_):
        read_cifar(cifar10, "cifar10")

    def read_human(path):
        read_label_list(path, 50, 10, column="worse_label", clean=clean)

    return {
        "cifar10": (cifar10 / "data_batch_3", read_ten, mutated, 100),
        "cifar100": (cifar100 / "train", lambda _: read_cifar(cifar100, "cifar100"), mutated, 40),
        "names": (cifar10 / "batches.meta", read_ten, mutated, 40),
        "json": (noise, lambda path: read_label_list(path, 50, 10), mutated, 40),
        "human": (human, read_human, mutated, 60),
        "human repacked": (human, read_human, repacked, 80),
        "animals": (
            animals / "data_batch_1.bin",
            lambda _: read_animal10n(animals, 1, False),
            mutated,
            40,
        ),
        "checkpoint": (last, resume, mutated, 60),
        "checkpoint repacked": (last, resume, repacked, 140),
    }


@pytest.mark.slow
def test_six_hundred_damaged_files_end_in_success_or_one_clear_line(targets, tmp_path):
    draw, present = random.Random(5), {*tmp_path.rglob("*")}
    for name, (path, read, damage, cases) in targets.items():
        valid, refused = path.read_bytes(), 0
        read(path)  # which it takes, undamaged
        for case in range(cases):
            path.write_bytes(damage(valid, draw))
            started = time.monotonic()
            try:
                read(path)
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, (name, case)
                assert str(path.name) in str(error) or str(path.parent) in str(error), str(error)
                refused += 1
            assert time.monotonic() - started < SECONDS_A_CASE, (name, case)
        path.write_bytes(valid)
        assert {*tmp_path.rglob("*")} == present, name
        assert refused, name

"""predict.py and smr.load: photos get the run's probabilities, also by the exported program."""

import csv
import json
import os
import resource
import sys
from functools import partial

import helpers
import numpy as np
import pytest
import torch
from helpers import stand_in_run, tiny_config, tiny_pair
from photos import write_photos
from PIL import Image

import predict
import smr
from dataloader_cifar import cifar_dataloader
from dataloader_folder import folder_dataloader
from smr import networks
from smr.data.image_file_dataset import Frame
from smr.run import checkpoints

CLASSES = {"2": 3, "10": 3, "Bär, <b>": 2}  # in natural order, which is not that of strings


def save_checkpoint(path, loader, **flags):
    """A run's checkpoint whose networks are random, but no one class; the networks."""
    flags = {"num_class": len(loader.class_names), "width": 2, "network": networks.PREACT} | flags
    config = tiny_config()
    untrained = flags["network"], flags["num_class"], flags["width"]
    pair = tiny_pair(config, lambda: networks.untrained(*untrained))
    for network in pair.networks:
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
            if isinstance(module, torch.nn.Linear):
                module.weight.data.mul_(8)
    state = checkpoints.training_state(stand_in_run("train_folder.py", config, loader, pair), 0)
    state["config"] |= flags
    checkpoints.save(state, path)
    return pair.networks


@pytest.fixture
def photos(tmp_path):
    """Photos of three classes that look like noise, in a folder of the training script's form."""
    root = write_photos(tmp_path / "photos", CLASSES)
    return write_photos(root, dict.fromkeys(CLASSES, 2), "testing")


@pytest.fixture
def loader(photos):
    return folder_dataloader(photos, 4, 1, Frame(37, 32, square=True))


@pytest.fixture
def checkpoint(loader, tmp_path):
    save_checkpoint(tmp_path / "best.pt", loader)
    return tmp_path / "best.pt"


def seen_in_training(loader, trained) -> torch.Tensor:
    """The probabilities of the training images, as a run judges them."""
    batches = smr.predict_batches(trained, loader.run("whole"), amp=False)
    return torch.softmax(torch.cat([logits.mean(dim=0) for logits, _, _ in batches]), dim=1)


def call(*arguments) -> int:
    return predict.main([str(argument) for argument in arguments])


refused = partial(helpers.refused, predict.main)


def read_table(path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_photos_get_the_probabilities_that_a_run_with_any_network_gave_them(
    loader, photos, tmp_path
):
    path = tmp_path / "best.pt"
    expected = seen_in_training(loader, save_checkpoint(path, loader, network="resnet18"))
    model = smr.load(path)
    images = np.stack([model.read(photos / file) for file in loader.files])
    with torch.no_grad():
        probabilities = model(torch.from_numpy(images))
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=1e-5)
    assert probabilities.std(dim=0).min() > 1e-4  # another image, another answer
    assert model.classes == ["2", "10", "Bär, <b>"]


def test_digits_are_seen_at_their_own_size_and_normalization(tmp_path):
    loader = cifar_dataloader("digits", 0.5, "sym", 64, 0, "", None)
    expected = seen_in_training(loader, save_checkpoint(tmp_path / "best.pt", loader))
    Image.fromarray(loader.thumbnails(np.array([5]))[0]).save(tmp_path / "5.png")
    model = smr.load(tmp_path / "best.pt")
    with torch.no_grad():
        found = model(torch.from_numpy(model.read(tmp_path / "5.png"))[None])
    torch.testing.assert_close(found, expected[5:6], atol=1e-5, rtol=1e-5)


def test_the_table_has_the_two_likeliest_classes_of_each_photo_in_order(
    loader, photos, checkpoint, tmp_path
):
    expected = seen_in_training(loader, smr.load(checkpoint).networks)
    output = tmp_path / "p.csv"
    assert call(checkpoint, photos / "training", "--output", output, "--batch_size", 3) == 0
    rows = {row["file"]: row for row in read_table(output)}
    files = [f"{name}/{i}.png" for name, count in CLASSES.items() for i in range(count)]
    assert list(rows) == [str(photos / "training" / file) for file in files]
    for file, p in zip(loader.files, expected, strict=True):
        row, top = rows[str(photos / file)], p.topk(2)
        names = [loader.class_names[label] for label in top.indices]
        assert [row["predicted"], row["second"]] == names
        values = [float(row["probability"]), float(row["p_second"])]
        assert values == pytest.approx(top.values.tolist(), abs=1e-5)


def test_the_exported_program_needs_none_of_this_code_and_gives_the_same(
    loader, photos, checkpoint, tmp_path
):
    program, names = tmp_path / "model.pt2", {"classes.json": ""}
    call(checkpoint, "--export", program)
    loaded = torch.export.load(program, extra_files=names).module()
    assert json.loads(names["classes.json"]) == ["2", "10", "Bär, <b>"]
    operators = [node.target for node in loaded.graph.nodes if node.op == "call_function"]
    assert {str(each).split(".")[0] for each in operators} == {"aten"}
    model = smr.load(checkpoint)
    batch = torch.from_numpy(np.stack([model.read(photos / file) for file in loader.files]))
    expected = seen_in_training(loader, model.networks)
    torch.testing.assert_close(loaded(batch), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded(batch[:1]), expected[:1], atol=1e-5, rtol=1e-5)


def test_linked_folders_are_searched_and_what_is_no_image_is_left_out_and_named(
    photos, checkpoint, tmp_path, capsys
):
    folder = tmp_path / "mixed"
    (folder / ".hidden").mkdir(parents=True)
    for name in ("notes.txt", ".hidden/x.png"):  # hidden files are not looked at
        (folder / name).write_text("no image")
    Image.new("LA", (50, 20)).save(folder / "gray.webp", lossless=True)
    (folder / "linked").symlink_to(photos / "testing" / "2")
    (folder / "again").symlink_to(photos / "testing" / "2")  # no loop
    (folder / "loop").symlink_to(folder)
    (folder / "dangling.png").symlink_to("missing.png")
    assert call(checkpoint, folder, "--output", tmp_path / "p.csv") == 0
    names = ["again/0.png", "again/1.png", "gray.webp", "linked/0.png", "linked/1.png"]
    files = [row["file"] for row in read_table(tmp_path / "p.csv")]
    assert files == [str(folder / name) for name in names]
    said = capsys.readouterr().err
    assert "3 of 8 files cannot be read as images" in said
    assert f"{folder / 'loop'} (a link to a folder that it lies in)" in said
    assert f"{folder / 'dangling.png'} (no file)" in said and f"{folder / 'notes.txt'} (" in said


def test_the_table_goes_to_a_file_or_standard_output_with_names_that_are_not_utf_8_escaped(
    photos, checkpoint, tmp_path, capsys
):
    strange = photos / "testing" / "2" / os.fsdecode(b"b\xe4r.png")
    (photos / "testing/2/0.png").rename(strange)
    output = tmp_path / "p.csv"
    assert call(checkpoint, strange.parent, "--output", output) == 0
    files = [row["file"] for row in read_table(output)]
    assert [os.path.basename(file) for file in files] == ["1.png", r"b\udce4r.png"]
    capsys.readouterr()
    assert call(checkpoint.parent, strange.parent) == 0
    assert capsys.readouterr().out.encode(errors="surrogateescape").count(b"\n") == 3


def test_a_closed_pipe_ends_it_quietly(photos, checkpoint, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    assert call(checkpoint, photos) == 141
    sys.stdout.close()  # as Python does at its exit
    assert capsys.readouterr().err == ""


def test_a_full_disk_names_the_output_and_keeps_the_rows_so_far(
    photos, checkpoint, tmp_path, capsys
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = checkpoint, photos / "training", "--output", tmp_path / "p.csv", "--batch_size", 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))  # five rows
    try:
        said = refused(capsys, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"error: {tmp_path / 'p.csv'}: File too large" in said
    assert 3 <= len(read_table(tmp_path / "p.csv.part")) < 8 and not (tmp_path / "p.csv").exists()


def test_refusals_are_one_line(photos, checkpoint, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("mine")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((checkpoint,), "give PHOTOS, --export FILE"),
        ((checkpoint, tmp_path / "empty"), "empty: no file in it"),
        ((checkpoint, tmp_path / "missing.png"), "there is no such file or folder"),
        ((checkpoint, photos, "--output", tmp_path / "p.csv"), "exists already"),
        ((tmp_path / "p.csv", photos), "no checkpoint"),
        ((checkpoint, tmp_path / "p.csv"), "1 of 1 files cannot be read as images"),
    ):
        assert words in refused(capsys, *arguments)
    assert (tmp_path / "p.csv").read_text() == "mine"
    for flag in ("--output", "--export"):  # before the checkpoint is read
        missing = tmp_path / "missing" / "p.csv"
        said = refused(capsys, tmp_path / "no checkpoint", photos, flag, missing)
        assert f"there is no folder {missing.parent}" in said
    state = checkpoints.load(checkpoint)
    state["config"]["num_class"] = 4
    checkpoints.save(state, tmp_path / "other.pt")
    assert "holds another network" in refused(capsys, tmp_path / "other.pt", photos)

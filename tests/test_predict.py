"""predict.py and smr.load: photos get the run's probabilities, also by the exported program."""

import csv
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import tiny_config, tiny_pair
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
    method = smr.new_method(config, pair, loader)
    state = checkpoints.training_state(
        *("train_folder.py", 0, config, loader, pair, method), data_sha256="", rows=[]
    )
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


def refused(capsys, *arguments) -> str:
    """The one line of a refusal."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.count("\n") == 1, text
    return text


def read_table(path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("network", ["preact_resnet18", "resnet18"])
def test_photos_get_the_probabilities_that_the_run_gave_them(loader, photos, tmp_path, network):
    path = tmp_path / "best.pt"
    expected = seen_in_training(loader, save_checkpoint(path, loader, network=network))
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
    program, images, found = tmp_path / "model.pt2", tmp_path / "in.pt", tmp_path / "out.pt"
    call(checkpoint, photos / "training/2", "--export", program)
    model = smr.load(checkpoint)
    batch = torch.from_numpy(np.stack([model.read(photos / file) for file in loader.files]))
    torch.save(batch, images)
    code = (
        "import sys, json, torch\n"
        "_, program, images, found = sys.argv\n"
        "names = {'classes.json': ''}\n"
        "loaded = torch.export.load(program, extra_files=names).module()\n"
        "batch = torch.load(images)\n"
        "torch.save([loaded(batch), loaded(batch[:1])], found)\n"
        "print(json.loads(names['classes.json']), 'smr' in sys.modules)\n"
    )
    arguments = [sys.executable, "-c", code, program, images, found]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "['2', '10', 'Bär, <b>'] False\n", done.stderr
    expected = seen_in_training(loader, model.networks)
    whole, one = torch.load(found)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one, expected[:1], atol=1e-5, rtol=1e-5)


def test_without_output_the_table_goes_to_standard_output(photos, checkpoint, capsys):
    photo = photos / "testing" / "2" / "1.png"
    assert call(checkpoint.parent, photo) == 0
    header, row, *rest = capsys.readouterr().out.splitlines()
    assert header == "file,predicted,probability,second,p_second"
    assert row.startswith(str(photo)) and not rest


def test_what_is_no_image_is_left_out_and_named_and_hidden_files_are_not_looked_at(
    photos, checkpoint, tmp_path, capsys
):
    folder = photos / "testing" / "2"
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_text("no image")
    Image.new("LA", (50, 20)).save(folder / "gray.webp", lossless=True)
    assert call(checkpoint, folder, "--output", tmp_path / "p.csv") == 0
    assert "1 of 4 files cannot be read as images" in capsys.readouterr().err
    names = [os.path.basename(row["file"]) for row in read_table(tmp_path / "p.csv")]
    assert names == ["0.png", "1.png", "gray.webp"]


def test_the_output_is_checked_before_the_checkpoint_is_read(photos, tmp_path, capsys):
    for flag in ("--output", "--export"):
        missing = tmp_path / "missing" / "p.csv"
        said = refused(capsys, tmp_path / "no checkpoint", photos, flag, missing)
        assert f"{missing}: there is no folder {missing.parent}" in said


def test_linked_folders_are_searched_and_what_cannot_be_read_is_named(
    photos, checkpoint, tmp_path, capsys
):
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "linked").symlink_to(photos / "testing" / "2")
    (folder / "again").symlink_to(photos / "testing" / "2")  # no loop
    (folder / "loop").symlink_to(folder)
    (folder / "dangling.png").symlink_to("missing.png")
    assert call(checkpoint, folder, "--output", tmp_path / "p.csv") == 0
    names = [str(folder / part / f"{i}.png") for part in ("again", "linked") for i in range(2)]
    assert [row["file"] for row in read_table(tmp_path / "p.csv")] == names
    said = capsys.readouterr().err
    assert f"{folder / 'loop'} (a link to a folder that it lies in)" in said
    assert f"{folder / 'dangling.png'} (no file)" in said and "2 of 6 files" in said


def test_a_folder_that_cannot_be_read_is_named(photos, checkpoint, tmp_path, capsys, monkeypatch):
    closed, scandir = photos / "testing" / "10", os.scandir

    def refusing(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read every folder
    assert call(checkpoint, photos / "testing", "--output", tmp_path / "p.csv") == 0
    assert f"1 of 5 files cannot be read as images: {closed} (Perm" in capsys.readouterr().err


def test_a_name_that_is_not_utf_8_is_written_escaped(photos, checkpoint, tmp_path, capsys):
    strange = photos / "testing" / "2" / os.fsdecode(b"b\xe4r.png")
    (photos / "testing/2/0.png").rename(strange)
    output = tmp_path / "p.csv"
    for arguments in ((), ("--output", output)):
        assert call(checkpoint, strange.parent, *arguments) == 0
    files = [row["file"] for row in read_table(output)]
    assert [os.path.basename(file) for file in files] == ["1.png", r"b\udce4r.png"]


def test_a_closed_pipe_ends_it_quietly(photos, checkpoint, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    assert call(checkpoint, photos) == 141
    sys.stdout.close()  # as Python does at its exit
    assert capsys.readouterr().err == ""


def test_the_rows_so_far_are_kept_if_it_is_interrupted(photos, checkpoint, tmp_path, capsys):
    output = tmp_path / "p.csv"
    model, paths = smr.load(checkpoint), predict.files_of([photos / "training"])[0]
    written = []

    def stop(*_):  # at the second batch
        written.append(1)
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)

    model.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt), predict.table_file(output) as file:
        predict.predict(model, paths, 3, file, {})
    rows = read_table(tmp_path / "p.csv.part")
    assert [row["file"] for row in rows] == paths[:3]
    assert not output.exists()


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
    assert f"error: {tmp_path / 'p.csv'}: File too large; the rows so far are in " in said
    assert 3 <= len(read_table(tmp_path / "p.csv.part")) < 8 and not (tmp_path / "p.csv").exists()


def test_refusals_are_one_line(photos, checkpoint, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("mine")
    for arguments, words in (
        ((checkpoint,), "give PHOTOS, --export FILE"),
        ((checkpoint, tmp_path / "missing.png"), "there is no such file or folder"),
        ((checkpoint, photos, "--output", tmp_path / "p.csv"), "exists already"),
        ((tmp_path / "p.csv", photos), "no checkpoint"),
        ((checkpoint, tmp_path / "p.csv"), "1 of 1 files cannot be read as images"),
    ):
        assert words in refused(capsys, *arguments)
    assert (tmp_path / "p.csv").read_text() == "mine"
    state = checkpoints.load(checkpoint)
    state["config"]["num_class"] = 4
    checkpoints.save(state, tmp_path / "other.pt")
    assert "holds another network" in refused(capsys, tmp_path / "other.pt", photos)

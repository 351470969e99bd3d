"""A folder of class folders: anyone's own photos, of any size and number of classes."""

import csv
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import config_of
from photos import write_photos
from PIL import Image

import train_folder
from dataloader_folder import folder_dataloader
from smr.data.image_file_dataset import IMAGENET_VIEWS, Frame
from smr.data.image_folder import natural_order
from smr.data.image_folder import validation_split as held_out
from smr.errors import InputError
from train_folder import FolderConfig

TINY = (
    *("--batch_size", "8", "--image_size", "32", "--network", "preact_resnet18", "--width", "2"),
    *("--pretrained", "off"),
    *("--num_epochs", "2", "--warm_up", "1", "--recalibrate_every", "2"),
)
COUNTS = {"apple": 12, "pear tree": 8, "плум": 5}


def read(root, size=32, val_fraction=0.2, seed=1, skip_broken=False):
    options = {"val_fraction": val_fraction, "skip_broken": skip_broken, "seed": seed}
    loader = folder_dataloader(root, 8, 2, Frame(size, size, square=True), **options)
    return SimpleNamespace(
        class_names=loader.class_names,
        files=loader.files,
        notes=loader.info.data_notes,
        test_labels_are_noisy=loader.info.test_labels_are_noisy,
        clean_labels=loader.clean_labels,
        train_images=loader.thumbnails(np.arange(len(loader.files))),
        train_labels=loader.noisy_labels.numpy(),
        test_labels=loader.tests["test"][1].numpy(),
    )


def refusal(root, **options) -> str:
    """The message of the InputError that reading the folder raises."""
    with pytest.raises(InputError) as caught:
        read(root, **options)
    return str(caught.value)


def nearly_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Within the two levels by which torch's filter and Pillow's round apart."""
    return np.abs(one.astype(int) - other).max() <= 2


@pytest.fixture
def photos(tmp_path):
    """A folder of three classes without test images."""
    return write_photos(tmp_path / "my photos", COUNTS)


def test_names_are_sorted_as_people_count():
    names = ["10.jpg", "2.jpg", "a10", "a9b", "a9", "B"]
    assert sorted(names, key=natural_order) == ["2.jpg", "10.jpg", "B", "a9", "a9b", "a10"]


def test_classes_are_the_folders_and_files_are_named(photos):
    write_photos(photos, {"apple": 3, "плум": 2}, "testing")
    data = read(photos)
    assert data.class_names == ["apple", "pear tree", "плум"]
    assert data.train_labels.tolist() == [0] * 12 + [1] * 8 + [2] * 5
    assert data.test_labels.tolist() == [0] * 3 + [2] * 2
    assert data.files[:3] == [f"training/apple/{i}.png" for i in range(3)]
    assert data.files[11] == "training/apple/11.png"
    assert not data.test_labels_are_noisy and data.clean_labels is None
    pixels = np.asarray(
        Image.open(photos / data.files[20]).crop((5, 0, 45, 40)).resize((32, 32), 2)
    )
    assert nearly_equal(data.train_images[20], pixels)


def test_images_of_any_size_and_format_become_squares(photos):
    for i, (shape, suffix) in enumerate([((9, 200, 3), "png"), ((300, 80, 3), "jpg")]):
        pixels = np.full(shape, 200, np.uint8)
        Image.fromarray(pixels).save(photos / "training" / "apple" / f"x{i}.{suffix}")
    Image.new("CMYK", (70, 90)).save(photos / "training" / "apple" / "x2.tiff")
    data = read(photos, size=48)
    assert data.train_images.shape[1:] == (48, 48, 3)
    assert len(data.train_labels) + len(data.test_labels) == 28


def test_without_testing_a_share_of_each_class_is_held_out_and_said_to_be_noisy(photos):
    data = read(photos, val_fraction=0.25)
    assert np.bincount(data.train_labels).tolist() == [9, 6, 4]
    assert np.bincount(data.test_labels).tolist() == [3, 2, 1]
    assert data.test_labels_are_noisy
    assert "6 training images are held out" in data.notes[1] and "noisy too" in data.notes[1]
    images = [
        Image.open(photos / name).crop((5, 0, 45, 40)).resize((32, 32), 2) for name in data.files
    ]
    assert nearly_equal(data.train_images, np.stack(images))


def test_what_is_held_out_depends_on_the_seed_alone(photos):
    first, again, other = (read(photos, seed=seed).files for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == len(other)


def test_a_lone_image_of_a_class_is_trained_on(tmp_path):
    data = read(write_photos(tmp_path, {"many": 9, "one": 1}))
    assert data.train_labels.tolist().count(1) == 1
    assert data.test_labels.tolist() == [0, 0]


def test_where_nothing_can_be_held_out_testing_is_asked_for(tmp_path):
    assert "make a folder testing/" in refusal(write_photos(tmp_path, {"one": 1, "two": 1}))


@pytest.mark.parametrize(("count", "fraction", "held"), [(2, 0.1, 1), (3, 0.5, 2), (100, 0.1, 10)])
def test_at_least_one_image_of_a_class_stays_on_either_side(tmp_path, count, fraction, held):
    data = read(write_photos(tmp_path, {"a": count, "b": 2}, shape=(4, 4)), val_fraction=fraction)
    assert np.bincount(data.test_labels).tolist() == [held, 1]
    assert np.bincount(data.train_labels).tolist() == [count - held, 1]


def test_junk_and_empty_folders_are_no_classes_and_noted(photos):
    (photos / "training" / "quince").mkdir()
    (photos / "training" / "__MACOSX").mkdir()
    (photos / "training" / "__MACOSX" / "._1.png").touch()
    (photos / "training" / "apple" / "@eaDir").mkdir()
    shutil.copy(photos / "training/apple/1.png", photos / "training/apple/@eaDir/SYNO_M.png")
    (photos / "training" / "apple" / "Thumbs.db").touch()
    data = read(photos)
    assert data.class_names == ["apple", "pear tree", "плум"]
    assert len(data.files) + len(data.test_labels) == 25
    assert "empty folders: training/quince/" in data.notes
    assert "ignored: __MACOSX, @eaDir, Thumbs.db" in data.notes


def test_a_test_class_that_training_lacks_is_refused(photos):
    write_photos(photos, {"aple": 3}, "testing")
    message = refusal(photos)
    assert message.startswith(f"{photos / 'testing' / 'aple'}: no class has this name, only apple")


def test_what_is_no_image_is_named_and_left_out_on_request(photos):
    (photos / "training" / "apple" / "list.txt").write_text("no picture")
    (photos / "training" / "labels.csv").write_text("no picture")
    (photos / "training" / "apple" / "gone.png").symlink_to(photos / "nowhere")
    message = refusal(photos)
    assert "3 of 28 files cannot be read as images" in message
    assert "training/apple/gone.png (no file)" in message
    assert "training/labels.csv (in no class folder)" in message
    assert "training/apple/list.txt (no image)" in message
    data = read(photos, skip_broken=True)
    assert len(data.train_labels) + len(data.test_labels) == 25


def test_names_are_refused_for_control_characters_and_broken_bytes_alone(photos):
    apple = photos / "training" / "apple"
    shutil.copy(apple / "1.png", apple / os.fsdecode(b"caf\xe9.png"))
    shutil.copy(apple / "1.png", apple / "a\nb.png")
    for name in ("Screenshot 9.41\u202fAM", "no\xa0break", "zero\u200dwidth"):
        shutil.copy(apple / "2.png", apple / f"{name}.png")
    message = refusal(photos)
    assert "2 of 30 files" in message and "caf\\udce9.png (its name is not readable)" in message
    assert "a\\nb.png (its name is not readable)" in message and "\n" not in message
    data = read(photos, skip_broken=True)
    assert len(data.files) + len(data.test_labels) == 28


def test_a_folder_without_class_folders_is_refused_with_what_it_holds(tmp_path):
    root = tmp_path / "photos"
    assert refusal(root) == f"{root}: cannot be read: No such file or directory"
    root.mkdir()
    assert refusal(root).startswith(f"{root}: no class folders; expected {root}/<class>/<images>")
    assert refusal(root).endswith("found nothing")
    (root / "1.png").touch()
    assert refusal(root).endswith("found 1.png")


def test_one_part_of_a_set_is_refused_for_the_folder_above_it(photos):
    shutil.copytree(photos / "training", photos / "testing", dirs_exist_ok=True)
    for part in ("training", "testing"):
        assert refusal(photos / part).startswith(
            f"{photos / part}: give the folder above it, which holds {part}/ and "
        )


def test_a_single_class_is_refused(tmp_path):
    message = refusal(write_photos(tmp_path / "one", {"alone": 3}))
    assert "only the class 'alone'" in message and "found alone" in message
    wrapped = write_photos(tmp_path / "wrapped", {"cat": 1, "dog": 1}, "images", shape=(4, 4))
    (wrapped / "train.csv").touch()
    message = refusal(wrapped)
    assert f"give {wrapped / 'images'}, which holds cat, dog" in message
    assert f"--labels {wrapped / 'train.csv'}" in message


def test_a_training_view_is_a_window_of_the_image_and_scoring_sees_its_middle(photos):
    loader = folder_dataloader(photos, 8, 1, Frame(38, 32, square=True))
    whole = folder_dataloader(photos, 8, 1, Frame(38, 38, square=True))
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_VIEWS.mean, IMAGENET_VIEWS.std))
    images, _, index = next(iter(loader.run("eval_train")))
    stored = torch.from_numpy(whole.thumbnails(index.numpy())).permute(0, 3, 1, 2) / 255
    assert stored.shape[2:] == (38, 38)
    assert torch.allclose(images, ((stored - mean) / std)[:, :, 3:35, 3:35], atol=1e-5)
    images, _, index = next(iter(loader.run("warmup")))
    stored = torch.from_numpy(whole.thumbnails(index.numpy())).permute(0, 3, 1, 2) / 255
    for image, whole in zip(images, (stored - mean) / std, strict=True):
        windows = whole.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        differences = [
            (view - image).abs().amax((1, 2, 3)).min() for view in (windows, windows.flip(3))
        ]
        assert min(differences) < 1e-5


def test_the_number_of_classes_is_that_of_the_folders(photos):
    arguments = (FolderConfig, "--data_path", str(photos))
    config = config_of(*arguments)
    assert config.num_class == 3
    assert (config.image_size, config.network) == (128, "resnet18")
    with pytest.raises(InputError, match=re.escape(f"--num_class 4: {photos} has 3 classes")):
        config_of(*arguments, "--num_class", "4")


def test_a_folder_needs_a_path():
    with pytest.raises(InputError, match="--data_path DIR"):
        config_of(FolderConfig)


@pytest.mark.parametrize(
    ("flag", "value"), [("--image_size", "31"), ("--val_fraction", "0"), ("--val_fraction", "0.6")]
)
def test_values_out_of_range_are_refused(flag, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_folder.main([flag, value])
    assert stopped.value.code == 2
    assert flag in capsys.readouterr().err


def test_a_badly_labeled_collection_becomes_a_run(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (photos / "training" / "apple" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    command = ["--data_path", "my photos", "--skip_broken", *TINY]
    assert train_folder.main(command) == 0
    log = capsys.readouterr().out
    assert "22 training and 3 test images of 32x32, 3 classes" in log
    assert "classes: apple, pear tree, плум" in log
    assert (
        "data: left out 1 of 26 files, which cannot be read as images: training/apple/broken.png"
        in log
    )
    assert "labels are noisy too" in log
    folder = tmp_path / "checkpoint" / "folder_smr_seed123"
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert facts["class_names"] == ["apple", "pear tree", "плум"]
    assert facts["test_labels_are_noisy"] is True
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 22
    assert rows[-1]["file"].startswith("training/плум/") and rows[-1]["given_name"] == "плум"
    assert train_folder.main([*command, "--resume"]) == 0
    assert "complete at epoch 2" in capsys.readouterr().out


def test_a_share_of_each_class_s_images_is_held_out():
    labels = np.repeat([0, 1, 2], [10, 20, 1])
    chosen = held_out(labels, 0.3, seed=5)
    assert np.bincount(labels[chosen], minlength=3).tolist() == [3, 6, 0]
    assert not np.array_equal(chosen, held_out(labels, 0.3, seed=6))

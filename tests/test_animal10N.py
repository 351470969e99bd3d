"""Animal-10N: its three forms, its loader, and train_animal10N.py."""

import io
import json
import re

import numpy as np
import pytest
import torch
from helpers import refused
from photos import animals, records, write_animals, write_png
from runs import rows_of

import smr
import train_animal10N
from dataloader_animal10N import ANIMALS, animal_dataloader, read_animal10n
from smr.errors import InputError
from smr.run.run_dir import run_name
from train_animal10N import AnimalConfig
from vgg import vgg19_bn

BLACK = np.zeros((64, 64, 3), np.uint8)


def read(folder, skip_broken=False):
    return read_animal10n(folder, 2, skip_broken)


def refusal(folder, skip_broken=False) -> str:
    """The message of the InputError that reading the folder raises."""
    with pytest.raises(InputError) as caught:
        read(folder, skip_broken)
    return str(caught.value)


def in_order(count, seed):
    """`photos.animals` in ascending order of label and id."""
    images, labels, ids = animals(count, seed)
    order = np.lexsort((ids, labels))
    return images[order], labels[order], ids[order]


# --- reading ---


@pytest.mark.parametrize(
    ("form", "first", "note"),
    [
        ("names", "training/0_{}.png", "training/ and testing/"),
        ("classes", "training/cat/{}.png", "training/ and testing/"),
        ("binary", "data_batch_1.bin:{}", "data_batch_1.bin and test_batch.bin"),
    ],
)
def test_each_form_has_the_same_images_labels_and_order(tmp_path, form, first, note):
    folder = write_animals(tmp_path, form)
    if form == "classes":  # hidden files are ignored, and a folder may be a number
        (folder / "training" / ".DS_Store").write_text("hidden")
        (folder / "training" / "cat" / ".directory").write_text("hidden")
        (folder / "training" / "lynx").rename(folder / "training" / "1")
    data = read(folder)
    for images, labels, part in (
        (data.train_images, data.train_labels, in_order(30, 1)),
        (data.test_images, data.test_labels, in_order(20, 2)),
    ):
        assert np.array_equal(images, part[0])
        assert labels.dtype == np.int64
        assert np.array_equal(labels, part[1])
    assert data.class_names == list(ANIMALS)
    assert data.clean_labels is None
    _, labels, ids = animals(30, 1)
    record = np.lexsort((ids, labels))[0]
    assert data.files[0] == first.format(record if form == "binary" else ids[record])
    assert len(data.files) == 30 and note in data.notes[0]


def test_binaries_may_come_in_several_files_or_under_the_other_name(tmp_path):
    images, labels, ids = animals(30, 1)
    folder = write_animals(tmp_path, "binary")
    (folder / "data_batch_1.bin").write_bytes(records(images[:20], labels[:20], ids[:20]))
    (folder / "data_batch_2.bin").write_bytes(records(images[20:], labels[20:], ids[20:]))
    assert np.array_equal(read(folder).train_images, in_order(30, 1)[0])
    for name in ("data_batch_1.bin", "data_batch_2.bin"):
        (folder / name).unlink()
    (folder / "training_batch.bin").write_bytes(records(images, labels, ids))
    assert np.array_equal(read(folder).train_images, in_order(30, 1)[0])


def test_a_binary_of_a_wrong_length_or_with_a_label_outside_the_classes_is_refused(tmp_path):
    folder = write_animals(tmp_path, "binary")
    whole = (folder / "test_batch.bin").read_bytes()
    for length in (0, 1, 12_295, 12_297):
        (folder / "test_batch.bin").write_bytes(bytes(length))
        message = refusal(folder)
        assert f"test_batch.bin: {length} bytes" in message and "12296" in message
    (folder / "test_batch.bin").write_bytes(whole)
    images, labels, ids = animals(30, 1)
    for label in (10, -1, 2**31 - 1):
        labels[7] = label
        (folder / "data_batch_1.bin").write_bytes(records(images, labels, ids))
        message = refusal(folder)
        assert message.startswith(f"{folder}: 1 of 30 ")
        assert f"data_batch_1.bin:7 ({label})" in message


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("names", "training/10_5.png"),
        ("names", "training/a.png"),
        ("classes", "testing/horse/1.png"),
    ],
)
def test_a_file_without_a_label_of_the_classes_is_refused_even_with_skip_broken(
    tmp_path, form, file
):
    folder = write_animals(tmp_path, form)
    write_png(folder / file, BLACK)
    message = refusal(folder, skip_broken=True)
    assert " 1 of " in message and f" {file};" in message
    assert message.endswith("train_folder.py")


def test_files_that_are_no_images_are_named_counted_and_excluded_only_on_request(tmp_path):
    folder = write_animals(tmp_path, "names")
    for i in range(11):
        (folder / "training" / f"3_9{i:03}.jpg").write_text("no picture")
    message = refusal(folder)
    assert "11 of 61 files" in message and "--skip_broken" in message
    assert "training/3_9009.jpg (no image), …" in message
    assert "3_9010" not in message
    data = read(folder, skip_broken=True)
    assert np.array_equal(data.train_images, in_order(30, 1)[0])
    assert np.array_equal(data.train_labels, in_order(30, 1)[1])
    assert "11 of 61 files" in data.notes[1]
    assert "training/3_9009.jpg (no image), …" in data.notes[1]


def test_an_empty_class_is_noted(tmp_path):
    folder = write_animals(tmp_path, "classes")
    for path in (folder / "training" / "hamster").iterdir():
        path.unlink()
    data = read(folder)
    assert len(data.train_labels) == 27 and 8 not in data.train_labels
    assert data.notes[1].endswith(": hamster")


def test_missing_data_is_refused_with_what_is_there(tmp_path):
    assert refusal(tmp_path / "none").startswith(f"{tmp_path / 'none'}: cannot be read")
    (tmp_path / "data_batch_1.bin").touch()
    (tmp_path / "letter.txt").touch()
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: no Animal-10N")
    assert "data_batch_1.bin, letter.txt;" in message and message.endswith("train_folder.py")
    folder = write_animals(tmp_path, "classes", test=0)
    assert "testing: cannot be read: No such file or directory" in refusal(folder)
    (folder / "testing").mkdir()
    assert refusal(folder) == f"{folder}: no test image"


# --- loader ---


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    """30 training and 20 test images; not to be changed."""
    return write_animals(tmp_path_factory.mktemp("animals"), "binary")


def test_dividemix_s_calls_serve_every_mode(binaries):
    log = io.StringIO()
    loader = animal_dataloader(str(binaries), 8, 4, ["some", "paths"], log=log)
    images, labels, index = next(iter(loader.run("warmup")))
    assert images.shape == (16, 3, 64, 64)
    assert torch.equal(labels, torch.from_numpy(in_order(30, 1)[1])[index])
    labeled, unlabeled = loader.run("train", np.arange(30) < 20, np.linspace(0, 1, 30))
    assert len(labeled.dataset) == 20 and len(unlabeled.dataset) == 10
    assert [len(batch) for batch in (next(iter(labeled)), next(iter(unlabeled)))] == [4, 2]
    test = torch.cat([labels for _, labels, _ in loader.run("test")])
    assert np.array_equal(test, in_order(20, 2)[1])
    # The constants are the published ones, and the true labels are unknown.
    assert loader.info.mean == (0.6959, 0.6537, 0.6371)
    assert loader.info.std == (0.3113, 0.3192, 0.3214)
    assert loader.is_clean is None and loader.clean_labels is None
    assert log.getvalue() == "Number of labeled samples:20   Number of unlabeled samples:10\n"


# --- network and configuration ---


def test_vgg_has_torchvisions_names_and_a_fresh_last_layer():
    from torchvision import models

    with torch.device("meta"):
        ours, theirs = vgg19_bn(7).state_dict(), models.vgg19_bn(weights=None).state_dict()
    last = {"classifier.6.weight": (7, 4096), "classifier.6.bias": (7,)}
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.items()} | last
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == expected


def configured(**flags) -> smr.Config:
    return smr.configure(AnimalConfig, device="cpu", **flags)


PUBLISHED_COMMAND = {
    **{"num_epochs": 200, "lambda_u": 0.0, "data_path": "./data/Animal-10N"},
    **{"dataset": "animal10N", "num_class": 10},
}


@pytest.mark.parametrize("flags", [PUBLISHED_COMMAND, {}])
def test_the_hyperparameters_are_the_published_ones(flags):
    config = configured(**flags)
    assert (config.batch_size, config.lr, config.weight_decay) == (128, 0.01, 1e-3)
    assert config.lr_steps == ((140, 0.01),)
    assert (config.num_epochs, config.warm_up, config.recalibrate_every) == (200, 30, 15)
    assert (config.alpha, config.T, config.p_threshold, config.lambda_u) == (4, 0.5, 0.5, 0)
    assert config.labeled_rows_only and not config.entropy_penalty and config.r == 0
    assert (config.network, config.pretrained, config.freeze_backbone) == ("vgg19_bn", False, None)
    assert (config.image_size, config.num_class) == (64, 10)
    assert run_name(config) == "animal10N_smr_seed123"
    assert not configured(lambda_u=25.0).labeled_rows_only


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_class": 9}, "--num_class 9: Animal-10N has 10 classes"),
        ({"image_size": 32}, "--image_size: "),
        ({"resize": 80}, "--resize: "),
        ({"val_fraction": 0.2}, "--val_fraction: there is no such flag"),
        ({"width": 16}, "--width: only with --network preact_resnet18"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        configured(**flags)


@pytest.mark.parametrize(
    ("path", "shown"), [((), "PHOTOS"), (("--data_path", "my photos"), "'my photos'")]
)
def test_a_photo_folder_is_answered_with_its_script(path, shown, capsys):
    line = refused(train_animal10N.main, capsys, "--dataset", "folder", *path)
    assert line.startswith("train_animal10N.py: error: --dataset folder: ")
    assert line.endswith(f"python train_folder.py --data_path {shown}\n")


# --- a run ---


def test_a_run_has_no_figures_that_only_the_true_labels_could_tell(tmp_path, capsys):
    folder = write_animals(tmp_path, "binary", 16, 4)
    flags = (
        "--network preact_resnet18 --width 2 --batch_size 8 --review 0 --num_workers 1 "
        "--num_epochs 2 --warm_up 1 --recalibrate_every 3"
    )
    paths = ("--data_path", str(folder), "--output", str(tmp_path))
    assert train_animal10N.main([*paths, *flags.split()]) == 0
    folder = tmp_path / "animal10N_smr_seed123"
    rows = rows_of(folder)
    assert [row["kind"] for row in rows] == ["warm-up", "semi-supervised", "recalibration"]
    assert {"test/accuracy", "test/net1/accuracy", "test/net2/accuracy"} <= rows[0].keys()
    heading = next(line for line in capsys.readouterr().out.splitlines() if "epoch kind" in line)
    names = ["epoch", "kind", "lr", "Lx", "labeled", "test%", "best%", "seconds"]
    assert heading.split() == names
    stats = (folder / "stats.txt").read_text()
    assert "Number of labeled samples" in stats and "AUC" not in stats and "clean" not in stats
    of_true_labels = {"auc", "precision", "recall", "labeled_clean", "refined_label_accuracy"}
    for row in rows:
        names = {name.rsplit("/")[-1] for name in row if not name.startswith("test/")}
        assert not of_true_labels & names
    described = json.loads((folder / "config.json").read_text())
    assert described["noise_rate"] is None
    assert described["test_labels_are_noisy"] is False

"""WebVision and ImageNet in their usual layouts, and train_webvision.py."""

import csv
import re
import sys

import numpy as np
import pytest
import torch
from photo_sets import write_imagenet, write_webvision
from PIL import Image
from runs import rows_of
from test_image_file_dataset import slowly

import smr
import train_webvision
from dataloader_webvision import read_classes, read_imagenet, read_webvision, webvision_dataloader
from smr.data.image_file_dataset import Frame
from smr.errors import InputError
from train_webvision import HYPERPARAMETERS, WebVisionConfig

TINY = (
    *("--num_class", "6", "--network", "preact_resnet18", "--width", "2", "--image_size", "32"),
    *("--resize", "40", "--batch_size", "16", "--num_epochs", "1", "--num_workers", "0"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six classes of eight training and three validation photos, and those of a seventh."""
    return write_webvision(tmp_path_factory.mktemp("webvision"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.mark.parametrize("folder", ["val_images_256", "val_images"])
def test_rows_of_other_classes_are_ignored_and_the_rest_keeps_its_order(tmp_path, folder):
    write_webvision(tmp_path, classes=3, train=8, val=3, folder=folder)
    train, val = read_webvision(tmp_path, 2)
    assert train.labels.tolist() == [i // 8 for i in range(16)]
    assert train.files[9] == "google/q0001/photo 1.jpg"
    assert (len(val.files), val.files[4]) == (6, f"{folder}/val01000001.jpg") and val.labels[4] == 1


@pytest.mark.parametrize("named_by", ["synset", "number"])
def test_imagenet_s_folders_have_either_name(tmp_path, named_by):
    write_imagenet(tmp_path, named_by, classes=3)
    photos = read_imagenet(tmp_path, ["n1000", "n1001", "n1002"])
    assert photos.labels.tolist() == [0, 0, 1, 1, 2, 2]
    folder = "n1001" if named_by == "synset" else "1"
    assert photos.files[2] == f"{folder}/ILSVRC2012_val_00000000.JPEG"


def test_both_test_sets_are_those_of_the_slow_implementation(root, imagenet):
    frame = Frame(40, 32, random_resized=True)  # of training views alone
    loader = webvision_dataloader(root, imagenet, 6, 4, 0, frame=frame)
    assert loader.test_sets == ("test", "imagenet")
    assert (loader.class_names[2], loader.info.test_images) == ("thing 2", 30)
    for name, folder in (("test", root), ("imagenet", imagenet)):
        photos, labels = loader.tests[name]
        for images, test_labels, index in loader.run(name):
            assert torch.equal(test_labels, labels[index])
            for image, i in zip(images, index.tolist(), strict=True):
                expected = slowly(folder / photos.files[i], None, Frame(40, 32))
                assert (image - expected).abs().max() < 0.05, photos.files[i]


@pytest.mark.parametrize(
    "missing", ["info/train_filelist_google.txt", "info/synsets.txt", "val_images_256"]
)
def test_a_missing_file_or_folder_is_named_with_its_source(tmp_path, missing):
    write_webvision(tmp_path, classes=2, train=1, val=1)
    (tmp_path / missing).rename(tmp_path / "away")
    with pytest.raises(InputError) as caught:
        webvision_dataloader(tmp_path, "", 2, 4, 0)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / missing}: ") and "google_resized_256.tar" in message


def test_missing_photos_and_classes_are_named(tmp_path, root):
    write_webvision(tmp_path / "set", classes=2, train=1, val=1)
    (tmp_path / "set" / "google" / "q0001" / "photo 0.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 4 files .*q0001/photo 0.jpg \(No such file"):
        webvision_dataloader(tmp_path / "set", "", 2, 4, 0)
    with pytest.raises(InputError, match=r"synsets.txt: 7 classes, expected 9; WebVision"):
        webvision_dataloader(root, "", 9, 4, 0)
    (tmp_path / "set" / "info" / "val_filelist.txt").write_text("a.jpg 0\nb.jpg\n")
    with pytest.raises(InputError, match=r"val_filelist.txt: line 2 is 'b\.jpg'"):
        read_webvision(tmp_path / "set", 2)
    write_imagenet(tmp_path / "imagenet", classes=1)
    synsets = ["n1000", "n1001", "n1002"]
    with pytest.raises(InputError, match=r"imagenet: .* n1001, n1002; expected ImageNet's"):
        read_imagenet(tmp_path / "imagenet", synsets)
    for name in synsets:
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=r"empty: .*; expected ImageNet's"):
        read_imagenet(tmp_path / "empty", synsets)


def configured(**flags) -> smr.Config:
    """A configuration without timm, whose networks it need not have."""
    return smr.configure(WebVisionConfig, device="cpu", network="preact_resnet18", **flags)


def test_the_hyperparameters_are_those_of_the_papers():
    shared = {"batch_size": 32, "lr": 0.01, "weight_decay": 5e-4, "alpha": 0.5, "lambda_u": 0}
    shared |= {"warm_up": 1, "resize": 320, "num_class": 50, "T": 0.5, "p_threshold": 0.5}
    shared |= {"image_size": 299, "pretrained": False}
    shared |= {"labeled_rows_only": True, "entropy_penalty": False}
    for method, own in (
        ("smr", {"num_epochs": 120, "lr_steps": ((40, 0.1), (80, 0.01))}),
        ("smr", {"warmup_loss": "mixup", "recalibrate_every": 15}),
        ("dividemix", {"num_epochs": 80, "lr_steps": ((40, 0.1),)}),
        ("dividemix", {"warmup_loss": "ce", "recalibrate_every": 0}),
    ):
        config, expected = configured(method=method), shared | own
        assert {name: getattr(config, name) for name in expected} == expected
    assert HYPERPARAMETERS["webvision"]["network"] == "timm/inception_resnet_v2"


def widths_seen(batches) -> list[float]:
    """Pixels across that each view shows of a photo of 320, whose red is the place across."""
    reds = torch.cat([images[:, 0, 100:200].mean(dim=1) for images, *_ in batches])
    return (320 * 0.229 * (reds.amax(dim=1) - reds.amin(dim=1))).tolist()


@pytest.mark.parametrize("method", ["smr", "dividemix", "ce"])
def test_training_views_of_dividemix_alone_are_random_resized_crops(tmp_path, method):
    write_webvision(tmp_path, classes=2, train=6, val=1)
    write_imagenet(tmp_path / "imagenet", classes=2)
    red = np.broadcast_to(np.linspace(0, 255, 320), (320, 320))
    photo = Image.fromarray(np.stack([red, 0 * red, 0 * red], axis=2).astype(np.uint8))
    for path in (*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.JPEG")):
        photo.save(path, quality=100)
    paths = {"data_path": str(tmp_path), "imagenet_path": str(tmp_path / "imagenet")}
    config = configured(method=method, num_class=2, num_workers=0, **paths)
    loader = train_webvision.make_loader(config, torch.device("cpu"))
    assert loader.info.frame == [320, 299, False]
    for mode, count in (("eval_train", 12), ("test", 2), ("imagenet", 4)):
        assert widths_seen(loader.run(mode)) == pytest.approx([299] * count, abs=4)
    trained = widths_seen(loader.run("warmup"))
    if method != "dividemix":
        assert trained == pytest.approx([299] * 12, abs=4)
    else:
        assert min(trained) < 200 and max(trained) - min(trained) > 80


def test_classes_with_the_same_name_have_their_synsets_added(tmp_path):
    (tmp_path / "info").mkdir()
    lines = "n02012849 crane\nn02084071 dog, domestic dog\n\nn03126707 crane\n"
    (tmp_path / "info" / "synsets.txt").write_text(lines)
    names = [name for _, name in read_classes(tmp_path, 3)]
    assert names == ["crane (n02012849)", "dog", "crane (n03126707)"]


def test_without_timm_the_default_network_is_refused_with_what_to_install(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "timm", None)  # it cannot be imported
    with pytest.raises(SystemExit) as stopped:
        train_webvision.main(["--output", str(tmp_path)])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert "--network timm/inception_resnet_v2: " in line and "pip install timm" in line


def test_a_run_has_both_test_sets_with_top_5(root, imagenet, tmp_path, capsys):
    paths = ("--data_path", str(root), "--imagenet_path", str(imagenet), "--output", str(tmp_path))
    assert train_webvision.main([*paths, *TINY]) == 0
    log = capsys.readouterr().out
    assert "48 training and 30 test images of 32x32, 6 classes" in log
    assert re.search(r"test%\s+test5%\s+imagenet%\s+imagenet5%\s+best%", log)
    folder = tmp_path / "webvision_smr_seed123"
    rows = rows_of(folder)
    assert [row["kind"] for row in rows] == ["warm-up", "semi-supervised"]
    for row, line in zip(rows, (folder / "acc.txt").read_text().splitlines(), strict=True):
        web, image = (
            f"{row[f'{name}/accuracy']:.2f}% ({row[f'{name}/top5']:.2f}%)"
            for name in ("test", "imagenet")
        )
        assert line == f"Epoch:{row['epoch']} \t WebVision Acc: {web} \t ImageNet Acc: {image}"
        assert row["test/accuracy"] <= row["test/top5"] <= 100
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == read_webvision(root, 6)[0].files


def test_without_imagenet_there_is_one_test_set_and_a_note(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without data/imagenet/
    config = configured(data_path=str(root), num_class=6, num_workers=0)
    loader = train_webvision.make_loader(config, torch.device("cpu"))
    assert loader.test_sets == ("test",) and "no ImageNet: " in loader.info.data_notes[0]

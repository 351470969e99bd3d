"""WebVision and ImageNet in the layouts that people have, and train_webvision.py on them."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from photo_sets import write_imagenet, write_webvision
from PIL import Image
from runs import rows_of
from test_image_file_dataset import slowly

import train_webvision
from dataloader_webvision import read_classes, read_imagenet, read_webvision, webvision_dataloader
from smr.data.image_file_dataset import Frame
from smr.errors import InputError
from smr.run import options

TINY = (
    *("--num_class", "6", "--network", "preact_resnet18", "--width", "2", "--image_size", "32"),
    *("--resize", "40", "--batch_size", "16", "--recalibrate_every", "3", "--num_workers", "0"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six classes of eight training and three validation photos, and those of a seventh."""
    return write_webvision(tmp_path_factory.mktemp("webvision"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


def loader_of(root, imagenet, **options):
    return webvision_dataloader(root, imagenet, 6, 4, 0, **{"frame": Frame(40, 32)} | options)


def test_rows_beyond_the_classes_are_passed_over_and_the_others_keep_their_order(root):
    train, val = read_webvision(root, 6)
    assert (len(train.files), len(val.files)) == (48, 18)
    assert train.labels.tolist() == [i // 8 for i in range(48)]
    assert train.files[9] == "google/q0001/photo 1.jpg"
    assert val.files[4] == "val_images_256/val01000001.jpg" and val.labels[4] == 1


def test_the_original_archive_s_validation_folder_is_found_too(tmp_path):
    write_webvision(tmp_path, classes=2, train=1, val=1, folder="val_images")
    assert read_webvision(tmp_path, 2)[1].files[1] == "val_images/val01000000.jpg"


@pytest.mark.parametrize("named_by", ["synset", "number"])
def test_imagenet_s_folders_have_either_name(tmp_path, named_by):
    write_imagenet(tmp_path, named_by, classes=3)
    found = read_imagenet(tmp_path, ["n1000", "n1001", "n1002"])
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    folder = "n1001" if named_by == "synset" else "1"
    assert found.files[2] == f"{folder}/ILSVRC2012_val_00000000.JPEG"


@pytest.mark.parametrize("random_resized", [False, True])
def test_both_test_sets_are_the_slow_implementation_s_images(root, imagenet, random_resized):
    frame = Frame(40, 32, random_resized=random_resized)
    loader = loader_of(root, imagenet, frame=frame)
    assert loader.test_sets == ("test", "imagenet")
    assert (loader.class_names[2], loader.info.test_images) == ("thing 2", 30)
    for name, folder in (("test", root), ("imagenet", imagenet)):
        photos, labels = loader.tests[name]
        for images, given, index in loader.run(name):
            assert torch.equal(given, labels[index])
            for image, i in zip(images, index.tolist(), strict=True):
                wanted = slowly(folder / photos.files[i], None, Frame(40, 32))
                assert (image - wanted).abs().max() < 0.05, photos.files[i]


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("info/train_filelist_google.txt", "google_resized_256.tar"),
        ("info/synsets.txt", "there is no such file"),
        ("val_images_256", "there is no such folder"),
    ],
)
def test_what_is_missing_is_named_with_where_to_get_it(tmp_path, gone, words):
    write_webvision(tmp_path, classes=2, train=1, val=1)
    (tmp_path / gone).rename(tmp_path / "away")
    with pytest.raises(InputError) as caught:
        webvision_dataloader(tmp_path, "", 2, 4, 0)
    assert str(caught.value).startswith(f"{tmp_path / gone}: ") and words in str(caught.value)


def test_missing_photos_and_classes_are_named(tmp_path, root):
    write_webvision(tmp_path / "set", classes=2, train=1, val=1)
    (tmp_path / "set" / "google" / "q0001" / "photo 0.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 4 files .*q0001/photo 0.jpg \(No such file"):
        webvision_dataloader(tmp_path / "set", "", 2, 4, 0)
    with pytest.raises(
        InputError, match="lists no photo of class 7; --num_class 9 needs 2 classes more"
    ):
        read_webvision(root, 9)
    write_imagenet(tmp_path / "imagenet", classes=1)
    with pytest.raises(InputError, match="lacks the class folders n1001, n1002; expected"):
        read_imagenet(tmp_path / "imagenet", ["n1000", "n1001", "n1002"])
    (tmp_path / "set" / "info" / "val_filelist.txt").write_text("a.jpg 0\nb.jpg\n")
    with pytest.raises(InputError, match=r"line 2 is 'b\.jpg', expected a path and a label"):
        read_webvision(tmp_path / "set", 2)


def resolved(*arguments) -> dict:
    given = options.given_flags(train_webvision.new_parser().parse_args(arguments))
    return train_webvision.resolve(given, torch.device("cpu"))


def test_the_recipes_are_those_of_the_papers(monkeypatch):
    monkeypatch.setattr(train_webvision.photos, "settle", lambda config: None)
    smr, mix = resolved(), resolved("--method", "dividemix")
    shared = {"batch_size": 32, "lr": 0.01, "weight_decay": 5e-4, "alpha": 0.5, "lambda_u": 0}
    shared |= {"warm_up": 1, "resize": 320, "num_class": 50, "T": 0.5, "p_threshold": 0.5}
    shared |= {"network": "timm/inception_resnet_v2", "pretrained": False}
    for config, own in (
        (smr, {"num_epochs": 120, "lr_steps": ((40, 0.1), (80, 0.01)), "image_size": 299}),
        (smr, {"warmup_loss": "mixup", "recalibrate_every": 15}),
        (mix, {"num_epochs": 80, "lr_steps": ((40, 0.1),), "image_size": 299}),
        (mix, {"warmup_loss": "ce", "recalibrate_every": 0}),
    ):
        wanted = shared | own
        assert {name: config[name] for name in wanted} == wanted


@pytest.mark.parametrize("method", ["smr", "dividemix", "ce"])
def test_dividemix_alone_has_random_resized_crops_and_both_test_sets_the_same_frame(
    root, imagenet, method, monkeypatch
):
    flags = ("--data_path", str(root), "--imagenet_path", str(imagenet), "--num_class", "6")
    monkeypatch.setattr(train_webvision.photos, "settle", lambda config: None)
    config = resolved("--method", method, *flags, "--num_workers", "0")
    loader = train_webvision.make_loader(config, torch.device("cpu"))
    frame = Frame(320, 299, random_resized=method == "dividemix")
    assert loader.train_images.frame == frame
    assert [photos.frame for photos, _ in loader.tests.values()] == [frame] * 2
    assert loader.info.frame == [320, 299, False]


def widths_seen(batches) -> list[float]:
    """How many of 320 pixels across each view shows, of photos whose red is the place across."""
    reds = torch.cat([images[:, 0, 100:200].mean(dim=1) for images, *_ in batches])
    return (320 * 0.229 * (reds.amax(dim=1) - reds.amin(dim=1))).tolist()


@pytest.mark.parametrize("method", ["smr", "dividemix"])
def test_training_views_of_dividemix_alone_have_random_scales(tmp_path, method, monkeypatch):
    monkeypatch.setattr(train_webvision.photos, "settle", lambda config: None)
    write_webvision(tmp_path, classes=2, train=6, val=1)
    red = np.broadcast_to(np.linspace(0, 255, 320), (320, 320))
    photo = Image.fromarray(np.stack([red, 0 * red, 0 * red], axis=2).astype(np.uint8))
    for path in (*tmp_path.glob("google/*/*.jpg"), *tmp_path.glob("val_images_256/*.jpg")):
        photo.save(path, quality=100)
    flags = ("--data_path", str(tmp_path), "--num_class", "2", "--num_workers", "0")
    config = resolved("--method", method, "--imagenet_path", "", *flags)
    loader = train_webvision.make_loader(config, torch.device("cpu"))
    for mode in ("eval_train", "test"):
        assert widths_seen(loader.run(mode)) == pytest.approx(
            [299] * len(loader.run(mode).dataset), abs=4
        )
    trained = widths_seen(loader.run("warmup"))
    if method == "smr":
        assert trained == pytest.approx([299] * 12, abs=4)
    else:
        assert min(trained) < 200 and max(trained) - min(trained) > 80


def test_classes_of_one_name_are_told_apart_by_their_synsets(tmp_path):
    (tmp_path / "info").mkdir()
    lines = "n02012849 crane\nn02084071 dog, domestic dog\nn03126707 crane\n"
    (tmp_path / "info" / "synsets.txt").write_text(lines)
    names = [name for _, name in read_classes(tmp_path, 3)]
    assert names == ["crane (n02012849)", "dog", "crane (n03126707)"]


def test_empty_class_folders_of_imagenet_are_named(tmp_path):
    for synset in ("n1000", "n1001"):
        (tmp_path / synset).mkdir()
    with pytest.raises(InputError, match="the class folders are empty; expected ImageNet's"):
        read_imagenet(tmp_path, ["n1000", "n1001"])


def test_blank_lines_of_a_list_are_passed_over(tmp_path):
    write_webvision(tmp_path, classes=2, train=2, val=1)
    path = tmp_path / "info" / "train_filelist_google.txt"
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert len(read_webvision(tmp_path, 2)[0].files) == 4


def test_without_timm_the_default_network_says_how_to_get_it(capsys, tmp_path):
    pytest.importorskip("torchvision")
    try:
        import timm  # noqa: F401

        pytest.skip("timm is there")
    except ImportError:
        pass
    with pytest.raises(SystemExit) as stopped:
        train_webvision.main(["--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert "timm is not installed; pip install timm" in capsys.readouterr().err


def train(root, output, *flags) -> int:
    return train_webvision.main(["--data_path", str(root), "--output", str(output), *TINY, *flags])


def test_a_run_has_both_test_sets_with_top_5(root, imagenet, tmp_path, capsys):
    flags = ("--imagenet_path", str(imagenet))
    assert train(root, tmp_path / "whole", *flags, "--num_epochs", "3") == 0
    log = capsys.readouterr().out
    assert "48 training and 30 test images of 32x32, 6 classes" in log
    assert re.search(r"test%\s+test5%\s+imagenet%\s+imagenet5%\s+best%", log)
    folder = tmp_path / "whole" / "webvision_smr_seed123"
    rows = rows_of(folder)
    assert [row["kind"] for row in rows] == [
        *("warm-up", "semi-supervised", "recalibration", "semi-supervised")
    ]
    for row, line in zip(rows, (folder / "acc.txt").read_text().splitlines(), strict=True):
        web, image = (
            f"{row[f'{name}/accuracy']:.2f}% ({row[f'{name}/top5']:.2f}%)"
            for name in ("test", "imagenet")
        )
        assert line == f"Epoch:{row['epoch']} \t WebVision Acc: {web} \t ImageNet Acc: {image}"
        assert row["test/accuracy"] <= row["test/top5"] <= 100
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == read_webvision(root, 6)[0].files
    assert json.loads((folder / "config.json").read_text())["labeled_rows_only"] is True


def test_without_imagenet_the_run_goes_on_and_says_so(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(root, tmp_path, "--num_epochs", "0") == 0
    log = capsys.readouterr().out
    assert "no ImageNet: WebVision's validation images are the only test set" in log
    assert "imagenet%" not in log

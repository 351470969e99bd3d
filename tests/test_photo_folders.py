"""Labels of photos from a table, and train_folder.py."""

import csv
import json
import os
import re
import shutil
from urllib.parse import quote

import pytest
import torch
from helpers import refused
from photo_sets import write_photo
from photos import write_photos
from runs import assert_same_run

import smr
import train_folder
from dataloader_folder import folder_dataloader, list_folder
from smr.data.image_file_dataset import Frame
from smr.errors import InputError
from train_folder import FROZEN_FEW, WHOLE, FolderConfig, whole_hyperparameters

TABLES = {
    "ours": ("label,file\n", "{label},{path}\n"),
    "numbers": ("file;label\n", "{path};{number}\n"),
    "utf-16": ("file\tlabel\n", "{path}\t{label}\n"),
    "names alone": ("image_id,class\n", "{stem},{label}\n"),
    "fiftyone": ("filepath,tags,ground_truth.label\n", '/home/me/data/{path},"a,b",{label}\n'),
    "label studio": (
        "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at\n",
        "1,1,{label},2024,{number},/data/upload/3/0a1b2c3d-{name},2.5,2024\n",
    ),
    "local files": ("\ufeffimage,choice\n", "/data/local-files/?d=photos/{quoted},{label}\n"),
}


@pytest.mark.parametrize("form", TABLES)
def test_labels_are_read_from_a_table(tmp_path, form):
    write_photos(tmp_path, {"images/part 1": 5, "images/part2": 4}, "", shape=(4, 4))
    header, line = TABLES[form]
    text, numbers = header, {}
    for number in range(9):
        name = f"n\u2028{number}.png"  # a line separator, which ends no line of a CSV file
        part = ("part 1", "part2")[number >= 5]
        (tmp_path / f"images/{part}/{number if number < 5 else number - 5}.png").rename(
            tmp_path / f"images/{part}/{name}"
        )
        path = f"images/{part}/{name}"
        numbers[path] = number % 3
        fields = {"path": path, "name": name, "stem": name[:-4], "number": 10 * (number % 3)}
        text += line.format(
            label=("Käse", "apple 10", "apple 2")[number % 3], quoted=quote(path), **fields
        )
    (tmp_path / "t.csv").write_text(text, encoding="utf-16" if form == "utf-16" else "utf-8")
    loader = folder_dataloader(
        tmp_path, 4, frame=Frame(8, 8), labels_csv=tmp_path / "t.csv", val_fraction=0.3
    )
    names = loader.class_names
    assert names == (["0", "10", "20"] if form == "numbers" else ["Käse", "apple 2", "apple 10"])
    labels = dict(zip(loader.files, loader.noisy_labels.tolist(), strict=True))
    order = [0, 1, 2] if form == "numbers" else [0, 2, 1]
    assert labels.items() <= {path: order[number] for path, number in numbers.items()}.items()
    assert len(labels) + loader.info.test_images == 9 and not loader.info.labels_in_paths


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "columns a, b;"),
        ("file,label\nx/0.png,cat\n", "labels of 1 classes"),
        ("file,label\n7.png,cat\n8.png,dog\n", "none of its 2 files is in"),
        ("file,label\n0.png,cat\n1.png,dog\n", "'0.png' names 2 files: x/0.png, y/0.png"),
        ("file,label\nx/0.png,cat\nx/0.png,dog\n", "x/0.png has the labels cat and dog"),
        ('file,label\nx/0.png,"{""choices"": [""a""]}"\nx/1.png,b\n', "several labels"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, text, words):
    write_photos(tmp_path, {"x": 2, "y": 2}, "", shape=(4, 4))
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError) as refused:
        list_folder(tmp_path, labels_csv=tmp_path / "t.csv")
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_missing_and_unlabeled_files_of_a_table_are_named(tmp_path):
    write_photos(tmp_path, {"x": 9}, "", shape=(4, 4))
    rows = [f"x/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(7)]
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *rows, "x/gone.png,cat", "x/8.png,"]))
    train, _, info = list_folder(tmp_path, labels_csv=tmp_path / "t.csv")
    assert list(train.broken) == ["x/gone.png"]
    assert any(re.match(r"2 .* t\.csv: x/7\.png, x/8\.png$", note) for note in info.data_notes)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three classes of photos of several sizes and modes, without testing/."""
    root = tmp_path_factory.mktemp("folder") / "my photos"
    for label, (name, count) in enumerate({"apple": 14, "pear tree": 9, "плум": 5}.items()):
        for i in range(count):
            write_photo(root / name / f"photo {i}.jpg", label if i % 4 else (label + 1) % 3, i)
    return root


def configured(**flags) -> smr.Config:
    return smr.configure(FolderConfig, device="cpu", **flags)


def values_of(config: smr.Config, names) -> dict:
    return {name: getattr(config, name) for name in names}


@pytest.mark.parametrize(
    ("count", "epochs", "batch_size", "every"),
    [(8, 40, 8, 5), (60, 35, 8, 4), (200, 19, 8, 3), (500, 12, 16, 3), (2000, 6, 32, 3),
     (30_000, 4, 32, 3), (10**6, 4, 32, 3)],
)  # fmt: skip
def test_the_hyperparameters_of_whole_networks_suit_the_number_of_photos(
    count, epochs, batch_size, every
):
    values = whole_hyperparameters(count, None)
    names = ("num_epochs", "batch_size", "recalibrate_every")
    assert tuple(values[name] for name in names) == (epochs, batch_size, every)
    assert values["warm_up"] == 1 and values["lr_steps"] == ((-(-epochs // 2), 0.1),)


def test_with_pre_trained_weights_the_backbone_is_frozen_and_without_them_it_is_trained(
    mixed, tmp_path
):
    frozen, weights = {"freeze_backbone": True} | FROZEN_FEW, str(tmp_path / "weights.pt")
    whole = {"freeze_backbone": False} | WHOLE | {"num_epochs": 40, "batch_size": 8}
    for flags, expected in (
        ({}, frozen | {"pretrained": True, "network": "resnet18", "image_size": 128}),
        ({"pretrained": True}, frozen | {"num_class": 3}),
        ({}, {"num_workers": len(os.sched_getaffinity(0))}),
        ({"weights": weights}, frozen | {"pretrained": False}),
        ({"weights": weights, "pretrained": False}, frozen),
        ({"pretrained": False}, whole | {"network": "resnet18", "image_size": 128}),
        ({"freeze_backbone": False}, whole | {"pretrained": True}),
        ({"lr": 0.5, "warm_up": 2}, frozen | {"lr": 0.5, "warm_up": 2}),
    ):
        config = configured(data_path=str(mixed), **flags)
        assert values_of(config, expected) == expected, flags
    config.num_class = config.image_size = None  # as before the folder is listed
    on_gpu = config.hyperparameters(torch.device("cuda"))
    assert (on_gpu["image_size"], on_gpu["resize"]) == (224, 256)


@pytest.mark.parametrize(
    ("num_epochs", "half", "every"), [(0, 1, 3), (2, 1, 3), (5, 3, 3), (40, 20, 5)]
)
def test_learning_rate_and_recalibration_follow_the_epochs_of_the_flag(num_epochs, half, every):
    expected = {"num_epochs": num_epochs, "lr_steps": ((half, 0.1),), "recalibrate_every": every}
    assert whole_hyperparameters(28, num_epochs).items() >= expected.items()


def test_flags_go_before_the_hyperparameters_of_whole_networks(mixed):
    flags = {"num_epochs": 5, "lr_steps": ((1, 0.5),), "pretrained": False}
    config = configured(data_path=str(mixed), **flags)
    expected = flags | {"recalibrate_every": 3}
    assert values_of(config, expected) == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"image_size": 64, "resize": 63}, "--resize 63 is smaller than the crop"),
        ({"width": 8}, "--width: only with --network preact_resnet18"),
        ({"network": "resnet81"}, "--network resnet81: expected preact_resnet18"),
        ({"network": "vit_b_16"}, "vit_b_16 takes no images of 128x128"),
        ({"pretrained": False, "finetune_epochs": 1}, "--finetune_epochs: "),
        ({"noise_file": "labels.json"}, "--noise_file: .* --labels"),
        ({"num_class": 4}, "--num_class 4: .*my photos has 3 classes"),
        ({"data_path": ""}, "--data_path DIR is missing"),
    ],
)
def test_flags_that_do_not_fit_are_refused(mixed, flags, words):
    with pytest.raises(InputError, match=words):
        configured(**{"data_path": str(mixed)} | flags)


@pytest.mark.parametrize(
    ("flag", "value"), [("--image_size", "31"), ("--val_fraction", "0"), ("--val_fraction", "0.6")]
)
def test_values_out_of_range_are_refused(flag, value, capsys):
    line = refused(train_folder.main, capsys, flag, value)
    assert flag in line and f"'{value}'" in line


# --- runs of whole networks ---

SMALL = (
    *("--network", "squeezenet1_1", "--image_size", "32", "--pretrained", "off"),  # has dropout
    *("--recalibrate_every", "2", "--lr_steps", "1:0.1", "--num_workers", "0", "--review", "0"),
)


def train(root, output, *flags: str) -> int:
    return train_folder.main(["--data_path", str(root), "--output", str(output), *SMALL, *flags])


def rows_of_csv(folder) -> list[dict]:
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_has_the_label_issues_of_a_folder_and_a_resumed_one_ends_alike(
    mixed, tmp_path, monkeypatch, capsys
):
    shutil.copytree(mixed, tmp_path / "my photos")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos" / "pear tree" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    flags = ("--skip_broken", "--num_epochs", "1")
    assert train("my photos", "whole", *flags) == 0
    log = capsys.readouterr().out
    for words in (
        "25 training and 3 test images of 32x32, 3 classes",
        "classes: apple, pear tree, плум",
        "1 of 29 files, which cannot be read as images: pear tree/broken.png",
        "labels are noisy too",
        "hyperparameters for 25 photos: --num_epochs 1  --batch_size 8",
    ):
        assert words in log
    folder = tmp_path / "whole" / "folder_smr_seed123"
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert described["class_names"] == ["apple", "pear tree", "плум"]
    assert described["test_labels_are_noisy"] is True
    rows = rows_of_csv(folder)
    assert len(rows) == 25 and rows[-1]["given_name"] == "плум"
    assert rows[-1]["file"].startswith("плум/photo ")
    assert train("my photos", "parts", "--skip_broken", "--num_epochs", "0") == 0
    assert train("my photos", "parts", *flags, "--resume", "--num_workers", "2") == 0
    assert_same_run(tmp_path / "parts" / folder.name, folder)


def test_a_photo_that_breaks_later_is_refused_in_one_line_or_excluded(mixed, tmp_path, capsys):
    root = tmp_path / "photos"
    shutil.copytree(mixed, root)
    name = list_folder(root)[0].files[3]
    broken = root / name
    broken.write_bytes(broken.read_bytes()[:-400])  # its header is intact
    flags = ("--data_path", root, "--output", tmp_path, *SMALL, "--num_epochs", "0")
    line = refused(train_folder.main, capsys, *flags)
    assert f"{name}: cannot be decoded" in line and "--skip_broken" in line
    assert train(root, tmp_path, "--num_epochs", "0", "--resume", "--skip_broken") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert len(lines) == 1 and "cannot be decoded" in lines[0]
    assert len(rows_of_csv(tmp_path / "folder_smr_seed123")) == 24

"""Folders of photos as people have them: their forms, the recipe that suits them, their runs."""

import csv
import re

import numpy as np
import pytest
import torch
from photo_sets import write_photo
from photos import write_photos
from PIL import Image
from runs import assert_same_run

import train_animal10N
from dataloader_folder import folder_dataloader, list_folder
from smr.data.image_file_dataset import Frame, ImageFileLoader
from smr.data.loader import MemoryLoader
from smr.errors import InputError
from smr.run import options

CPU = torch.device("cpu")


def listed(root, val_fraction=None):
    return list_folder(root, val_fraction, seed=1)


def test_classes_lie_directly_in_the_folder(tmp_path):
    found = listed(write_photos(tmp_path, {"apple": 5, "плум": 3}, part=""))
    assert found.class_names == ["apple", "плум"]
    assert found.notes[0] == "form: <class>/, 2 classes"
    assert sorted(found.train.files + found.test.files) == sorted(
        [f"apple/{i}.png" for i in range(5)] + [f"плум/{i}.png" for i in range(3)]
    )


@pytest.mark.parametrize("names", [("training", "testing"), ("train", "test"), ("train", "val")])
def test_other_people_s_names_of_the_two_parts_are_known(tmp_path, names):
    for part in names:
        write_photos(tmp_path, {"a": 2, "b": 2}, part=part, shape=(4, 4))
    found = listed(tmp_path)
    assert found.class_names == ["a", "b"]
    assert found.train.files[0] == f"{names[0]}/a/0.png" and not found.test_labels_are_noisy
    assert found.test.files[-1] == f"{names[1]}/b/1.png"


def test_photos_of_trains_and_tests_are_classes(tmp_path):
    assert listed(write_photos(tmp_path, {"test": 2, "train": 2}, "")).class_names == [
        *("test", "train")
    ]


def test_folders_inside_a_class_folder_are_read_in_natural_order(tmp_path):
    write_photos(tmp_path, {"a/10": 1, "a/2/deep er": 2, "b": 1}, shape=(4, 4))
    write_photos(tmp_path, {"a": 1}, shape=(4, 4))
    write_photos(tmp_path, {"a": 1, "b": 1}, "testing", shape=(4, 4))
    found = listed(tmp_path)
    assert [name.removeprefix("training/") for name in found.train.files] == [
        *("a/0.png", "a/2/deep er/0.png", "a/2/deep er/1.png", "a/10/0.png", "b/0.png")
    ]
    assert found.train.labels.tolist() == [0, 0, 0, 0, 1] and not found.train.broken


def test_links_are_followed_but_never_in_a_circle(tmp_path):
    write_photos(tmp_path / "elsewhere", {"x": 2}, "", shape=(4, 4))
    write_photos(tmp_path / "photos", {"a": 2}, "", shape=(4, 4))
    (tmp_path / "photos" / "b").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "photos" / "a" / "again").symlink_to(tmp_path / "photos" / "a")
    found = listed(tmp_path / "photos")
    assert np.bincount([*found.train.labels, *found.test.labels]).tolist() == [2, 2]
    assert found.train.broken == {"a/again": "a link to a folder that it lies in"}


def test_a_class_that_is_spelt_otherwise_in_testing_is_the_same_class(tmp_path):
    write_photos(tmp_path, {"cat": 2, "Ma\u0308dchen": 2}, shape=(4, 4))
    write_photos(tmp_path, {"Cat": 1, "m\u00e4dchen": 1}, "testing", shape=(4, 4))
    found = listed(tmp_path)
    assert len(found.class_names) == 2
    names = {
        name.split("/")[1]: int(label)
        for name, label in zip(found.test.files, found.test.labels, strict=True)
    }
    assert names == {"Cat": found.class_names.index("cat"), "m\u00e4dchen": 1 - names["Cat"]}


def test_two_spellings_of_a_class_in_training_are_a_question(tmp_path):
    write_photos(tmp_path, {"cat": 1, "Cat": 1}, shape=(4, 4))
    with pytest.raises(InputError, match=r"are 'Cat' and 'cat' one class. Rename one of them"):
        listed(tmp_path)


def test_uneven_classes_are_noted_with_their_counts(tmp_path):
    write_photos(tmp_path, {"few": 2, "many": 22, "some": 5}, shape=(4, 4))
    write_photos(tmp_path, {"few": 1}, "testing", shape=(4, 4))
    (note,) = listed(tmp_path).left_out(skip_broken=False)
    assert note.startswith("classes are uneven, from 2 images of few to 22 of many: ")
    write_photos(tmp_path, {"few": 3}, shape=(4, 4))
    assert listed(tmp_path).left_out(skip_broken=False) == []


def test_val_fraction_beside_testing_is_noted(tmp_path):
    write_photos(tmp_path, {"a": 2, "b": 2}, shape=(4, 4))
    assert len(listed(tmp_path, 0.5).test.files) == 2 and len(listed(tmp_path).notes) == 2
    write_photos(tmp_path, {"a": 2}, "testing", shape=(4, 4))
    assert (
        "--val_fraction holds nothing out: testing/ has the test images"
        in listed(tmp_path, 0.5).notes
    )
    assert not any("--val_fraction" in note for note in listed(tmp_path).notes)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three classes of photos of several sizes and modes, without testing/."""
    root = tmp_path_factory.mktemp("folder") / "my photos"
    for label, (name, count) in enumerate({"apple": 14, "pear tree": 9, "плум": 5}.items()):
        for i in range(count):
            write_photo(root / name / f"photo {i}.jpg", label if i % 4 else (label + 1) % 3, i)
    return root


def loaders(root, image_size=32) -> tuple[MemoryLoader, ImageFileLoader]:
    """The same folder in memory and streamed."""
    frame = Frame(round(8 / 7 * image_size), image_size, square=True)
    held, streamed = (folder_dataloader(root, 4, 0, frame, memory) for memory in (2**30, 0))
    assert isinstance(held, MemoryLoader) and isinstance(streamed, ImageFileLoader)
    return held, streamed


def test_memory_and_stream_serve_the_same_images_and_windows(mixed):
    held, streamed = loaders(mixed)
    assert held.files == streamed.files and held.class_names == streamed.class_names
    assert torch.equal(held.noisy_labels, streamed.noisy_labels)
    assert "the photos are held in memory" in held.facts["data_notes"]
    assert "the photos are decoded from disk as they are needed" in streamed.facts["data_notes"]
    assert held.facts["image_size"] == streamed.facts["image_size"] == [32, 32]
    assert held.facts["frame"] == streamed.facts["frame"]
    passes = (loader.run("eval_train") for loader in (held, streamed))
    for one, other in zip(*(zip(*batches, strict=True) for batches in passes), strict=True):
        assert torch.equal(torch.cat(one), torch.cat(other))  # whatever the batches


def test_windows_in_memory_and_streamed_have_the_same_spread(tmp_path):
    # A pixel's color is its place, so that a view tells where it was cut.
    down, across = np.mgrid[:37, :37]
    pixels = np.stack([down, across, 0 * down], axis=2).astype(np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    spreads = []
    for loader in loaders(tmp_path):
        places, mirrored = [], []
        for _ in range(25):
            for images, _, _ in loader.run("warmup"):
                corner = images[:, :2, 0].amin(2) * torch.tensor([0.229, 0.224])
                places.append(((corner + torch.tensor([0.485, 0.456])) * 255).round().int())
                mirrored.append(images[:, 1, 0, 0] > images[:, 1, 0, -1])
        places = torch.cat(places)
        assert abs(torch.cat(mirrored).float().mean() - 0.5) < 0.05
        assert places.min() == 0 and places.max() == 5
        spreads.append(torch.stack([torch.bincount(places[:, k], minlength=6) for k in (0, 1)]))
    for counts in spreads:
        assert (counts / counts.sum(dim=1, keepdim=True) - 1 / 6).abs().max() < 0.05


def test_large_images_and_large_sets_stream(mixed):
    for frame, memory in (
        (Frame(112, 97, True), 2**40),
        (Frame(110, 96, True), 4 * 28 * 3 * 110**2 - 1),
    ):
        assert isinstance(folder_dataloader(mixed, 4, 0, frame, memory), ImageFileLoader)
    held = folder_dataloader(mixed, 4, 0, Frame(110, 96, True), 4 * 28 * 3 * 110**2)
    assert isinstance(held, MemoryLoader)


@pytest.mark.parametrize(
    ("count", "epochs", "batch_size", "every"),
    [(8, 40, 8, 5), (60, 35, 8, 4), (200, 19, 8, 3), (500, 12, 16, 3), (2000, 6, 32, 3),
     (30_000, 4, 32, 3), (10**6, 4, 32, 3)],
)  # fmt: skip
def test_the_recipe_suits_the_number_of_photos(count, epochs, batch_size, every):
    recipe = train_animal10N.recipe_for(count, CPU, None)
    assert (recipe["num_epochs"], recipe["batch_size"], recipe["recalibrate_every"]) == (
        *(epochs, batch_size, every),
    )
    assert recipe["warm_up"] == 1 and recipe["lr_steps"] == ((-(-epochs // 2), 0.1),)
    assert (recipe["image_size"], recipe["network"], recipe["pretrained"]) == (
        128,
        "resnet18",
        True,
    )
    on_card = train_animal10N.recipe_for(count, torch.device("cuda"), None)
    assert on_card["image_size"] == 224


@pytest.mark.parametrize(("given", "half", "every"), [(0, 1, 3), (2, 1, 3), (5, 3, 3), (40, 20, 5)])
def test_learning_rate_and_recalibration_follow_the_epochs_that_a_flag_gives(
    mixed, given, half, every
):
    flags = ["--dataset", "folder", "--data_path", str(mixed), "--num_epochs", str(given)]
    config = resolved(*flags)
    assert (config["num_epochs"], config["lr_steps"]) == (given, ((half, 0.1),))
    assert config["recalibrate_every"] == every
    config = resolved(*flags, "--lr_steps", "1:0.5", "--recalibrate_every", "7")
    assert (config["lr_steps"], config["recalibrate_every"]) == (((1, 0.5),), 7)


def resolved(*arguments) -> dict:
    given = options.given_flags(train_animal10N.new_parser().parse_args(arguments))
    return train_animal10N.resolve(given, CPU)


def test_animal10n_keeps_its_own_recipe():
    config = resolved()
    assert (config["network"], config["pretrained"], config["image_size"]) == (
        "vgg19_bn",
        False,
        64,
    )
    with pytest.raises(InputError, match="--resize: only with --dataset folder"):
        resolved("--resize", "80")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--image_size", "64", "--resize", "63"), "--resize 63 is smaller than the crop"),
        (("--width", "8"), "--width: only with --network preact_resnet18"),
        (("--network", "resnet81"), "--network resnet81: expected preact_resnet18"),
        (("--network", "vit_b_16"), "vit_b_16 takes no images of 128x128"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(mixed, flags, words):
    with pytest.raises(InputError, match=words):
        resolved("--dataset", "folder", "--data_path", str(mixed), *flags)


def test_contradictions_that_pass_are_told():
    config = {"method": "smr", "warm_up": 3, "num_epochs": 2, "lr_steps": ((2, 0.1), (5, 0.01))}
    assert options.contradictions(config | {"batch_size": 9}, 8) == [
        "the warm-up lasts as long as the run, to epoch 2: no labels are judged",
        "learning-rate steps at 5 are beyond the last epoch, 2",
        "a batch of 9 is larger than the set of 8 images",
    ]
    assert options.contradictions(config | {"batch_size": 8, "warm_up": 2, "lr_steps": ()}, 8) == []


def train(root, output, *flags) -> int:
    shared = ("--dataset", "folder", "--data_path", str(root), "--output", str(output))
    small = ("--network", "squeezenet1_1", "--pretrained", "off", "--num_workers", "0")
    return train_animal10N.main([*shared, *small, *flags])


def test_a_folder_becomes_a_list_and_a_resumed_run_ends_alike(mixed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_animal10N, "folder_dataloader", streaming(folder_dataloader))
    flags = ("--image_size", "40", "--recalibrate_every", "2", "--lr_steps", "1:0.1")
    assert train(mixed, tmp_path / "whole", *flags, "--num_epochs", "2") == 0
    log = capsys.readouterr().out
    assert "25 training and 3 test images of 40x40, 3 classes" in log
    assert "decoded from disk" in log
    assert re.search("recipe for so many photos, or the flags: --num_epochs 2  --batch_size 8", log)
    folder = tmp_path / "whole" / "folder_smr_seed123"
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25 and rows[-1]["file"].startswith("плум/photo ")
    assert train(mixed, tmp_path / "parts", *flags, "--num_epochs", "0") == 0
    parts = ("--num_epochs", "2", "--resume", "--num_workers", "2")
    assert train(mixed, tmp_path / "parts", *flags, *parts) == 0
    assert_same_run(tmp_path / "parts" / folder.name, folder)


def streaming(make):
    """The loader's maker with no memory to hold photos in."""
    return lambda *args, **options: make(*args, **options | {"memory": 0})


def test_a_photo_that_breaks_later_ends_the_run_in_a_line_or_is_left_out(mixed, tmp_path, capsys):
    root = tmp_path / "photos"
    for path in mixed.rglob("*.jpg"):
        (root / path.relative_to(mixed)).parent.mkdir(parents=True, exist_ok=True)
        (root / path.relative_to(mixed)).write_bytes(path.read_bytes())
    name = list_folder(root, None, 123).train.files[3]
    broken = root / name
    broken.write_bytes(broken.read_bytes()[:-400])  # its header is whole
    flags = ("--image_size", "97", "--num_epochs", "0")
    with pytest.raises(SystemExit) as stopped:
        train(root, tmp_path, *flags)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{name}: cannot be decoded" in told
    assert "--skip_broken" in told
    with pytest.raises(SystemExit):
        train(root, tmp_path, *flags, "--check_images", "--id", "checked")
    assert f"1 of 28 files cannot be read as images: {name}" in capsys.readouterr().err
    assert train(root, tmp_path, *flags, "--resume", "--skip_broken") == 0
    log = capsys.readouterr().out
    assert log.count("left out ") == 1
    with open(
        tmp_path / "folder_smr_seed123" / "labels.csv", encoding="utf-8-sig", newline=""
    ) as file:
        assert len(list(csv.DictReader(file))) == 24

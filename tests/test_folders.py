"""Photos in class folders: classes, labels, held-out images, refused files and views."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from photos import write_photos
from PIL import Image

from dataloader_folder import folder_dataloader, list_folder
from smr.data.image_file_dataset import IMAGENET_VIEWS, Frame
from smr.data.image_folder import natural_order
from smr.errors import InputError

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


def test_names_are_in_natural_order():
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


def test_without_testing_a_fraction_of_each_class_is_held_out_and_noted_as_noisy(photos):
    data = read(photos, val_fraction=0.25)
    assert np.bincount(data.train_labels).tolist() == [9, 6, 4]
    assert np.bincount(data.test_labels).tolist() == [3, 2, 1]
    assert data.test_labels_are_noisy
    assert "6 training images are held out" in data.notes[1] and "noisy too" in data.notes[1]
    images = [
        Image.open(photos / name).crop((5, 0, 45, 40)).resize((32, 32), 2) for name in data.files
    ]
    assert nearly_equal(data.train_images, np.stack(images))


def test_the_held_out_images_depend_on_the_seed_alone(photos):
    first, again, other = (read(photos, seed=seed).files for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == len(other)


def test_without_testing_a_class_needs_two_images(tmp_path):
    message = refusal(write_photos(tmp_path, {"one": 1, "two": 1}))
    assert "testing/" in message


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(2, 0.1, 1), (3, 0.5, 2), (10, 0.3, 3), (100, 0.1, 10)]
)
def test_both_parts_have_an_image_of_each_class_with_two(tmp_path, count, fraction, held_out):
    root = write_photos(tmp_path, {"a": count, "b": 2, "c": 1}, shape=(4, 4))
    data = read(root, val_fraction=fraction)
    assert np.bincount(data.test_labels, minlength=3).tolist() == [held_out, 1, 0]
    assert np.bincount(data.train_labels).tolist() == [count - held_out, 1, 1]


def test_junk_and_empty_folders_are_no_classes_and_noted(photos):
    (photos / "training" / "quince").mkdir()
    shutil.copytree(photos / "training/apple", photos / "training/@Recycle")
    (photos / "training" / "__MACOSX").mkdir()
    (photos / "training" / "__MACOSX" / "._1.png").touch()
    (photos / "training" / "apple" / "@eaDir").mkdir()
    shutil.copy(photos / "training/apple/1.png", photos / "training/apple/@eaDir/SYNO_M.png")
    (photos / "training" / "apple" / "Thumbs.db").touch()
    data = read(photos)
    assert data.class_names == ["apple", "pear tree", "плум"]
    assert len(data.files) + len(data.test_labels) == 25
    assert "empty folders: training/quince/" in data.notes
    assert "ignored: @Recycle, __MACOSX, @eaDir, Thumbs.db" in data.notes


def test_a_test_class_that_training_lacks_is_refused(photos):
    write_photos(photos, {"aple": 3}, "testing")
    assert refusal(photos).startswith(f"{photos / 'testing' / 'aple'}: ")


def test_a_file_that_is_no_image_is_named_and_excluded_on_request(photos):
    (photos / "training" / "apple" / "list.txt").write_text("no picture")
    (photos / "training" / "labels.csv").write_text("no picture")
    (photos / "training" / "apple" / "gone.png").symlink_to(photos / "nowhere")
    message = refusal(photos)
    assert "3 of 28 files" in message
    assert "training/apple/gone.png (no file)" in message
    assert "training/labels.csv (in no class folder)" in message
    assert "training/apple/list.txt (no image)" in message
    data = read(photos, skip_broken=True)
    assert len(data.train_labels) + len(data.test_labels) == 25


def test_only_names_with_control_characters_or_broken_bytes_are_refused(photos):
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


def test_a_folder_without_class_folders_is_refused_with_its_content(tmp_path):
    root = tmp_path / "photos"
    assert refusal(root).startswith(f"{root}: cannot be read")
    root.mkdir()
    assert refusal(root).startswith(f"{root}: no class folders; expected {root}/<class>/<images>")
    assert refusal(root).endswith(" nothing")
    (root / "1.png").touch()
    assert refusal(root).endswith(" 1.png")


def test_one_part_of_a_dataset_is_refused_with_the_folder_to_give(photos):
    shutil.copytree(photos / "training", photos / "testing", dirs_exist_ok=True)
    for part in ("training", "testing"):
        assert refusal(photos / part).startswith(f"{photos / part}: give the folder above it")


def test_a_single_class_is_refused(tmp_path):
    message = refusal(write_photos(tmp_path / "one", {"alone": 3}))
    assert "only the class 'alone'" in message
    wrapped = write_photos(tmp_path / "wrapped", {"cat": 1, "dog": 1}, "images", shape=(4, 4))
    (wrapped / "train.csv").touch()
    message = refusal(wrapped)
    assert f"give {wrapped / 'images'}, which holds cat, dog" in message
    assert f"--labels {wrapped / 'train.csv'}" in message


def test_folders_inside_a_class_folder_are_read_in_natural_order(tmp_path):
    write_photos(tmp_path, {"a/10": 1, "a/2/deep er": 2, "b": 1}, shape=(4, 4))
    write_photos(tmp_path, {"a": 1}, shape=(4, 4))
    write_photos(tmp_path, {"a": 1, "b": 1}, "testing", shape=(4, 4))
    train = list_folder(tmp_path).train
    assert [name.removeprefix("training/") for name in train.files] == [
        *("a/0.png", "a/2/deep er/0.png", "a/2/deep er/1.png", "a/10/0.png", "b/0.png")
    ]
    assert train.labels.tolist() == [0, 0, 0, 0, 1] and not train.broken


def test_links_are_followed_but_never_in_a_circle(tmp_path):
    write_photos(tmp_path / "elsewhere", {"x": 2}, "", shape=(4, 4))
    write_photos(tmp_path / "photos", {"a": 2}, "", shape=(4, 4))
    (tmp_path / "photos" / "b").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "photos" / "a" / "again").symlink_to(tmp_path / "photos" / "a")
    folder = list_folder(tmp_path / "photos")
    assert np.bincount([*folder.train.labels, *folder.test.labels]).tolist() == [2, 2]
    assert list(folder.train.broken) == ["a/again"]


def test_another_spelling_of_a_class_in_testing_is_the_same_class(tmp_path):
    write_photos(tmp_path, {"cat": 2, "Ma\u0308dchen": 2}, shape=(4, 4))
    write_photos(tmp_path, {"Cat": 1, "m\u00e4dchen": 1}, "testing", shape=(4, 4))
    folder = list_folder(tmp_path)
    assert len(folder.class_names) == 2
    names = {
        name.split("/")[1]: int(label)
        for name, label in zip(folder.test.files, folder.test.labels, strict=True)
    }
    assert names == {"Cat": folder.class_names.index("cat"), "m\u00e4dchen": 1 - names["Cat"]}


def test_two_spellings_of_a_class_in_training_are_refused(tmp_path):
    write_photos(tmp_path, {"cat": 1, "Cat": 1}, shape=(4, 4))
    with pytest.raises(InputError, match="'Cat' and 'cat'"):
        list_folder(tmp_path)


def test_uneven_classes_are_noted_with_their_counts(tmp_path):
    write_photos(tmp_path, {"few": 2, "many": 22, "some": 5}, shape=(4, 4))
    write_photos(tmp_path, {"few": 1}, "testing", shape=(4, 4))
    words = "from 2 images of few to 22 of many"
    assert any(words in note for note in read(tmp_path).notes)
    write_photos(tmp_path, {"few": 3}, shape=(4, 4))
    assert not any("22 of many" in note for note in read(tmp_path).notes)


def test_a_training_view_is_a_window_of_the_image_and_a_plain_one_its_center(photos):
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

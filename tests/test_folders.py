"""Photos in class folders: parts, classes, labels, held-out images, refused files and views."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from photos import write_photos
from PIL import Image

from dataloader_folder import folder_dataloader, list_folder
from smr.data.image_file_dataset import Frame
from smr.errors import InputError

COUNTS = {"apple": 12, "pear tree": 8, "плум": 5}


def read(root, size=32, **options):
    loader = folder_dataloader(
        root, 8, 2, Frame(size, size, square=True), **{"val_fraction": 0.2, "seed": 1} | options
    )
    return SimpleNamespace(
        class_names=loader.class_names,
        files=loader.files,
        notes=loader.info.data_notes,
        test_labels_are_noisy=loader.info.test_labels_are_noisy,
        clean_labels=loader.clean_labels,
        mean=loader.info.mean,
        std=loader.info.std,
        train_images=loader.thumbnails(np.arange(len(loader.files))),
        train_labels=loader.noisy_labels.numpy(),
        test_labels=loader.tests["test"][1].numpy(),
    )


def refusal(root, read=list_folder) -> str:
    """The message of the InputError that the folder raises."""
    with pytest.raises(InputError) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_tiny(root, names, part="", count=1):
    """Photos of 4x4 pixels in root/part/<name>/; root."""
    return write_photos(root, dict.fromkeys(names, count), part, shape=(4, 4))


def nearly_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Within the two levels by which torch's filter and Pillow's round apart."""
    return np.abs(one.astype(int) - other).max() <= 2


@pytest.fixture
def photos(tmp_path):
    """A folder of three classes without test images."""
    return write_photos(tmp_path / "my photos", COUNTS)


# --- parts ---


def test_class_folders_may_lie_directly_in_the_folder(tmp_path):
    train, test, info = list_folder(write_photos(tmp_path, {"apple": 2, "плум": 3}, part=""))
    assert info.class_names == ["apple", "плум"] and info.labels_in_paths
    assert "<class>/, 2 classes" in info.data_notes[0]
    files = ["apple/0.png", "apple/1.png", "плум/0.png", "плум/1.png", "плум/2.png"]
    assert sorted(train.files + test.files) == files


@pytest.mark.parametrize(
    "names",
    [
        *(("training", "testing"), ("train", "test"), ("train", "val"), ("Training", "Testing")),
        *(("TRAIN", "Valid"), ("train", "validation")),
    ],
)
def test_the_usual_names_of_the_two_parts_are_known(tmp_path, names):
    for part in names:
        write_tiny(tmp_path, "ab", part)
    train, test, info = list_folder(tmp_path, val_fraction=0.5)
    assert info.class_names == ["a", "b"] and not info.test_labels_are_noisy
    assert train.files == [f"{names[0]}/{name}/0.png" for name in "ab"]
    assert test.files == [f"{names[1]}/{name}/0.png" for name in "ab"]
    assert any("--val_fraction is not used" in note for note in info.data_notes)
    assert not any("--val_fraction" in note for note in list_folder(tmp_path)[2].data_notes)


def test_photos_beside_the_parts_are_refused_and_other_folders_noted(tmp_path):
    root = write_tiny(tmp_path / "a", ("2022", "2023"), "train", 2)
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").touch()
    (root / "train" / "empty").mkdir()
    write_tiny(root, ("2022", "2023"), "val")
    write_tiny(root, ("2022", "2023"), "test")
    _, test, info = list_folder(root)
    assert test.files == ["test/2022/0.png", "test/2023/0.png"]
    assert any(note.endswith(": notes/, val/, train/empty/") for note in info.data_notes)
    write_tiny(root, ("car", "bus"))
    assert "photos lie beside it: bus/, car/" in refusal(root)
    root = write_tiny(tmp_path / "b", "ab", "train")
    (root / "loose.jpg").touch()
    assert "photos lie beside it: loose.jpg" in refusal(root)
    root = write_tiny(write_tiny(tmp_path / "c", "ab", "train"), "ab", "Training")
    assert "photos lie beside it: train/" in refusal(root)


def test_folders_that_may_be_parts_are_refused_as_classes(tmp_path):
    for part in ("fold1", "fold2"):
        write_tiny(tmp_path / "a", ("cat", "dog"), part)
    assert "fold1/ and fold2/ both hold cat, dog: parts" in refusal(tmp_path / "a")
    for part in ("seg_train", "seg_test"):  # folders around folders, as archives unpack
        write_tiny(tmp_path / "b", ("cat", "dog"), f"{part}/{part}")
    assert "seg_test/ and seg_train/ both hold cat, dog: parts" in refusal(tmp_path / "b")
    write_tiny(tmp_path / "c", ("cat", "dog"), "Testing")
    assert "Testing/ holds class folders, but there is no training/" in refusal(tmp_path / "c")


def test_photos_of_trains_and_tests_are_classes(tmp_path):
    _, _, info = list_folder(write_tiny(tmp_path, ("test", "train"), count=2))
    assert info.class_names == ["test", "train"]


def test_dropped_is_a_class_unless_a_corrections_log_names_it(tmp_path):
    root = write_tiny(tmp_path, ("dropped", "kept", "other"), count=3)
    log = root / ".corrections_run.log"
    log.write_text('["kept/1.png", "dropped/1.png"]\n')  # which is another class
    assert list_folder(root)[2].class_names == ["dropped", "kept", "other"]
    log.write_text('["kept/1.png", "dropped/kept/1.png", null, null, true]\n')
    train, _, info = list_folder(root)
    assert info.class_names == ["kept", "other"] and len(train.files) == 4
    assert "folders that are not used: dropped/" in info.data_notes


# --- classes and files ---


def test_classes_are_the_folders_and_files_are_named(photos):
    write_photos(photos, {"apple": 3, "плум": 2}, "testing")
    data = read(photos)
    assert data.class_names == ["apple", "pear tree", "плум"]
    assert data.train_labels.tolist() == [0] * 12 + [1] * 8 + [2] * 5
    assert data.test_labels.tolist() == [0] * 3 + [2] * 2
    assert data.files[:3] == [f"training/apple/{i}.png" for i in range(3)]
    assert data.files[11] == "training/apple/11.png"
    assert not data.test_labels_are_noisy and data.clean_labels is None
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = [
        Image.open(photos / name).crop((5, 0, 45, 40)).resize((32, 32), 2) for name in data.files
    ]
    assert nearly_equal(data.train_images, np.stack(images))


def test_junk_and_empty_folders_are_no_classes(photos):
    training = photos / "training"
    (training / "quince").mkdir()
    shutil.copytree(training / "apple", training / "@Recycle")
    (training / "__MACOSX").mkdir()
    (training / "__MACOSX" / "._1.png").touch()
    (training / "apple" / "@eaDir").mkdir()
    shutil.copy(training / "apple/1.png", training / "apple/@eaDir/SYNO_M.png")
    (training / "apple" / "Thumbs.db").touch()
    data = read(photos)
    assert data.class_names == ["apple", "pear tree", "плум"]
    assert len(data.files) + len(data.test_labels) == 25
    assert "folders that are not used: training/quince/" in data.notes


def test_folders_inside_a_class_folder_are_read_in_natural_order(tmp_path):
    write_tiny(tmp_path, ("a", "a/10", "b"), "training")
    write_tiny(tmp_path, ("a/2/deep er",), "training", 2)
    write_tiny(tmp_path, "ab", "testing")
    train, _, _ = list_folder(tmp_path)
    assert [name.removeprefix("training/") for name in train.files] == [
        *("a/0.png", "a/2/deep er/0.png", "a/2/deep er/1.png", "a/10/0.png", "b/0.png")
    ]
    assert train.labels.tolist() == [0, 0, 0, 0, 1] and not train.broken


def test_links_are_followed_but_never_in_a_circle(tmp_path):
    write_tiny(tmp_path / "elsewhere", "x", count=2)
    root = write_tiny(tmp_path / "photos", "a", count=2)
    (root / "b").symlink_to(tmp_path / "elsewhere" / "x")
    (root / "a" / "again").symlink_to(root / "a")
    train, test, _ = list_folder(root)
    assert np.bincount([*train.labels, *test.labels]).tolist() == [2, 2]
    assert list(train.broken) == ["a/again"]


def test_another_spelling_of_a_class_is_the_same_class_and_refused_in_training(tmp_path):
    write_tiny(tmp_path, ("cat", "Ma\u0308dchen"), "training")
    write_tiny(tmp_path, ("Cat", "m\u00e4dchen"), "testing")
    _, test, info = list_folder(tmp_path)
    assert len(info.class_names) == 2
    labels = {
        name.split("/")[1]: label
        for name, label in zip(test.files, test.labels.tolist(), strict=True)
    }
    assert labels == {"Cat": info.class_names.index("cat"), "m\u00e4dchen": 1 - labels["Cat"]}
    write_tiny(tmp_path, ("Cat",), "training")
    assert "'Cat' and 'cat'" in refusal(tmp_path)


# --- refusals ---


def test_a_test_class_that_training_lacks_is_refused(photos):
    write_tiny(photos, ("aple",), "testing")
    assert refusal(photos).startswith(f"{photos / 'testing' / 'aple'}: ")


def test_a_file_that_is_no_image_is_named_and_excluded_on_request(photos):
    (photos / "training" / "apple" / "list.txt").write_text("no picture")
    (photos / "training" / "labels.csv").write_text("no picture")
    (photos / "training" / "apple" / "gone.png").symlink_to(photos / "nowhere")
    message = refusal(photos, read)
    assert "3 of 28 files" in message
    assert "training/apple/gone.png (no file)" in message
    assert "training/labels.csv (in no class folder)" in message
    assert "training/apple/list.txt (no image)" in message
    data = read(photos, skip_broken=True)
    assert len(data.train_labels) + len(data.test_labels) == 25


def test_only_names_with_control_characters_or_broken_bytes_are_refused(photos):
    apple = photos / "training" / "apple"
    for name in (
        *(os.fsdecode(b"caf\xe9"), "a\nb"),
        *("Screenshot 9.41\u202fAM", "no\xa0break", "zero\u200dwidth"),
    ):
        shutil.copy(apple / "1.png", apple / f"{name}.png")
    message = refusal(photos, read)
    assert "2 of 30 files" in message and "caf\\udce9.png (its name is not readable)" in message
    assert "a\\nb.png (its name is not readable)" in message
    data = read(photos, skip_broken=True)
    assert len(data.files) + len(data.test_labels) == 28


def test_a_folder_without_two_class_folders_is_refused_with_its_content(tmp_path):
    root = tmp_path / "photos"
    assert refusal(root).startswith(f"{root}: cannot be read")
    root.mkdir()
    assert refusal(root).startswith(f"{root}: no class folders; expected {root}/<class>/<images>")
    assert refusal(root).endswith(" nothing")
    (root / "1.png").touch()
    assert refusal(root).endswith(" 1.png")
    message = refusal(write_tiny(root, ("alone",)))
    assert "only the class 'alone'" in message and "--labels FILE.csv" in message


# --- the held-out part ---


def test_without_testing_a_fraction_of_each_class_is_held_out_and_noted_as_noisy(photos):
    data = read(photos, val_fraction=0.25)
    assert np.bincount(data.train_labels).tolist() == [9, 6, 4]
    assert np.bincount(data.test_labels).tolist() == [3, 2, 1]
    assert data.test_labels_are_noisy
    assert "6 training images are held out" in data.notes[1] and "noisy too" in data.notes[1]
    first, again, other = (list_folder(photos, seed=seed)[0].files for seed in (1, 1, 2))
    assert first == again != other and len(first) == len(other)


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(2, 0.1, 1), (3, 0.5, 2), (10, 0.3, 3), (100, 0.1, 10)]
)
def test_both_parts_have_an_image_of_each_class_with_two(tmp_path, count, fraction, held_out):
    root = write_photos(tmp_path, {"a": count, "b": 2, "c": 1}, shape=(4, 4))
    train, test, _ = list_folder(root, fraction)
    assert np.bincount(test.labels, minlength=3).tolist() == [held_out, 1, 0]
    assert np.bincount(train.labels).tolist() == [count - held_out, 1, 1]
    assert "testing/" in refusal(write_tiny(tmp_path / "b", ("one", "two")))


# --- duplicates ---


def test_identical_photos_in_two_classes_or_parts_are_named(tmp_path):
    root, frame = write_tiny(tmp_path, "ab", "training", 4), Frame(8, 8, square=True)
    write_photos(root, {"a": 2, "b": 2}, "testing", shape=(6, 6))
    assert folder_dataloader(root, 4, frame=frame).info.duplicates == []
    path = root / "training"
    shutil.copy(path / "a/0.png", path / "b/copy.png")
    shutil.copy(path / "a/1.png", path / "a/copy.png")  # in one class: no problem
    shutil.copy(path / "b/2.png", root / "testing/b/copy.png")
    same_size = (path / "a/3.png").read_bytes()
    (path / "b" / "size.png").write_bytes(same_size + b"1")
    (path / "a" / "size.png").write_bytes(same_size + b"2")
    info = folder_dataloader(root, 4, frame=frame).info
    assert sorted(info.duplicates) == [
        ["training/a/0.png", "training/b/copy.png", "in a and b"],
        ["training/b/2.png", "testing/b/copy.png", "in training and test"],
    ]
    assert any("training/a/0.png = training/b/copy.png" in note for note in info.data_notes)

"""Folders of photos as people have them: their forms, the recipe that suits them, their runs."""

import csv
import re
import shutil
from urllib.parse import quote

import numpy as np
import pytest
import torch
from photo_sets import write_photo
from photos import write_photos
from runs import assert_same_run

import train_animal10N
from dataloader_folder import folder_dataloader, list_folder
from smr.data.image_file_dataset import Frame
from smr.data.image_folder import class_notes
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


@pytest.mark.parametrize(
    "names",
    [
        ("training", "testing"),
        ("train", "test"),
        ("train", "val"),
        ("Training", "Testing"),
        ("TRAIN", "Valid"),
        ("train", "validation"),
    ],
)
def test_other_people_s_names_of_the_two_parts_are_known(tmp_path, names):
    for part in names:
        write_photos(tmp_path, {"a": 2, "b": 2}, part=part, shape=(4, 4))
    found = listed(tmp_path)
    assert found.class_names == ["a", "b"]
    assert found.train.files[0] == f"{names[0]}/a/0.png" and not found.test_labels_are_noisy
    assert found.test.files[-1] == f"{names[1]}/b/1.png"


def refusal(root, **options) -> str:
    with pytest.raises(InputError) as refused:
        list_folder(root, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_lies_beside_the_parts_is_refused_or_named(tmp_path):
    root = write_photos(tmp_path / "a", {"2022": 2, "2023": 2}, "train", shape=(4, 4))
    assert listed(root).class_names == ["2022", "2023"]
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").touch()
    write_photos(root, {"2022": 1, "2023": 1}, "val", shape=(4, 4))
    write_photos(root, {"2022": 1, "2023": 1}, "test", shape=(4, 4))
    found = listed(root)
    assert found.test.files == ["test/2022/0.png", "test/2023/0.png"]
    assert "folders that are not used: val/, notes/" in found.notes
    write_photos(root, {"car": 2, "bus": 2}, "", shape=(4, 4))
    assert "train/ is the training part, but photos lie beside it: bus/, car/" in refusal(root)
    root = write_photos(tmp_path / "b", {"a": 2, "b": 2}, "train", shape=(4, 4))
    (root / "loose.jpg").touch()
    assert "photos lie beside it: loose.jpg" in refusal(root)


def test_folders_that_may_be_parts_are_refused_as_classes(tmp_path):
    for part in ("fold1", "fold2"):
        write_photos(tmp_path / "a", {"cat": 1, "dog": 1}, part, shape=(4, 4))
    assert "fold1/ and fold2/ both hold cat, dog: parts" in refusal(tmp_path / "a")
    for part in ("seg_train", "seg_test"):  # folders around folders, as archives unpack
        write_photos(tmp_path / "d", {"cat": 1, "dog": 1}, f"{part}/{part}", shape=(4, 4))
    assert "seg_test/ and seg_train/ both hold cat, dog: parts" in refusal(tmp_path / "d")
    write_photos(tmp_path / "b", {"cat": 1, "dog": 1}, "Testing", shape=(4, 4))
    assert "Testing/ holds class folders, but there is no training/" in refusal(tmp_path / "b")
    for part in ("train", "Training"):
        write_photos(tmp_path / "c", {"cat": 1, "dog": 1}, part, shape=(4, 4))
    assert "are both training parts" in refusal(tmp_path / "c")


def test_dropped_is_a_class_unless_our_own_log_made_it(tmp_path):
    root = write_photos(tmp_path, {"dropped": 3, "kept": 3}, "", shape=(4, 4))
    write_photos(root, {"other": 3}, "", shape=(4, 4))
    assert listed(root).class_names == ["dropped", "kept", "other"]
    (root / ".corrections_run.log").write_text('["kept/1.png", "other/1.png"]\n')
    assert listed(root).class_names == ["dropped", "kept", "other"]
    (root / ".corrections_run.log").write_text('["kept/1.png", "dropped/kept/1.png"]\n')
    found = listed(root)
    assert found.class_names == ["kept", "other"] and len(found.train.files) == 4
    assert "dropped/ holds the photos that corrections dropped" in found.notes


def test_identical_photos_in_two_classes_or_parts_are_named(tmp_path):
    root = write_photos(tmp_path, {"a": 4, "b": 4}, shape=(4, 4))
    write_photos(root, {"a": 2, "b": 2}, "testing", shape=(6, 6))
    frame, path = Frame(8, 8, square=True), root / "training"
    assert folder_dataloader(root, 4, frame=frame).info.duplicates == []
    shutil.copy(path / "a/0.png", path / "b/copy.png")
    shutil.copy(path / "a/1.png", path / "a/copy.png")  # in one class: no problem
    shutil.copy(path / "b/2.png", root / "testing/b/copy.png")
    same_size = bytearray((path / "a/3.png").read_bytes())
    (path / "b" / "size.png").write_bytes(same_size + b"1")
    (path / "a" / "size.png").write_bytes(same_size + b"2")
    info = folder_dataloader(root, 4, frame=frame).info
    assert sorted(info.duplicates) == [
        ["training/a/0.png", "training/b/copy.png", "in a and b"],
        ["training/b/2.png", "testing/b/copy.png", "in training and test"],
    ]
    note = "2 pairs of identical photos: training/a/0.png = training/b/copy.png (in a and b)"
    assert any(line.startswith(note) for line in info.data_notes)


TABLES = {
    "ours": ("label,file\n", "{label},{path}\n"),
    "numbers": ("file;label\n", "{path};{number}\n"),
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
    text, wanted = header, {}
    for number in range(9):
        name = f"n {number}.png"
        part = ("part 1", "part2")[number >= 5]
        (tmp_path / f"images/{part}/{number if number < 5 else number - 5}.png").rename(
            tmp_path / f"images/{part}/{name}"
        )
        path = f"images/{part}/{name}"
        wanted[path] = number % 3
        fields = {"path": path, "name": name, "stem": name[:-4], "number": (number % 3) * 5}
        fields["number"] = 10 * (number % 3)
        text += line.format(
            label=("Käse", "apple 10", "apple 2")[number % 3], quoted=quote(path), **fields
        )
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    loader = folder_dataloader(
        tmp_path, 4, frame=Frame(8, 8), labels_csv=tmp_path / "t.csv", val_fraction=0.3
    )
    names = loader.class_names
    assert names == (["0", "10", "20"] if form == "numbers" else ["Käse", "apple 2", "apple 10"])
    labels = dict(zip(loader.files, loader.noisy_labels.tolist(), strict=True))
    order = [0, 1, 2] if form == "numbers" else [0, 2, 1]
    assert labels.items() <= {path: order[label] for path, label in wanted.items()}.items()
    assert len(labels) + loader.info.test_images == 9 and not loader.info.labels_in_paths


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "columns a, b; expected 'file' and 'label'"),
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
    assert words in refusal(tmp_path, labels_csv=tmp_path / "t.csv")


def test_missing_and_unlabeled_files_of_a_table_are_named(tmp_path):
    write_photos(tmp_path, {"x": 9}, "", shape=(4, 4))
    rows = [f"x/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(7)]
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *rows, "x/gone.png,cat", "x/8.png,"]))
    found = list_folder(tmp_path, labels_csv=tmp_path / "t.csv")
    assert found.train.broken == {"x/gone.png": "listed in t.csv, but not there"}
    assert "2 images without a label in t.csv: x/7.png, x/8.png" in found.notes


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
    (note,) = notes_of(listed(tmp_path))
    assert note.startswith("classes are uneven, from 2 images of few to 22 of many: ")
    write_photos(tmp_path, {"few": 3}, shape=(4, 4))
    assert notes_of(listed(tmp_path)) == []


def notes_of(folder) -> list[str]:
    return class_notes(folder.root, folder.train, folder.test, folder.class_names)


def test_val_fraction_beside_testing_is_noted(tmp_path):
    write_photos(tmp_path, {"a": 2, "b": 2}, shape=(4, 4))
    assert len(listed(tmp_path, 0.5).test.files) == 2 and len(listed(tmp_path).notes) == 2
    write_photos(tmp_path, {"a": 2}, "testing", shape=(4, 4))
    assert "--val_fraction is not used: testing/ has the test images" in listed(tmp_path, 0.5).notes
    assert not any("--val_fraction" in note for note in listed(tmp_path).notes)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three classes of photos of several sizes and modes, without testing/."""
    root = tmp_path_factory.mktemp("folder") / "my photos"
    for label, (name, count) in enumerate({"apple": 14, "pear tree": 9, "плум": 5}.items()):
        for i in range(count):
            write_photo(root / name / f"photo {i}.jpg", label if i % 4 else (label + 1) % 3, i)
    return root


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


def test_a_folder_becomes_a_list_and_a_resumed_run_ends_alike(mixed, tmp_path, capsys):
    flags = ("--image_size", "40", "--recalibrate_every", "2", "--lr_steps", "1:0.1")
    assert train(mixed, tmp_path / "whole", *flags, "--num_epochs", "2") == 0
    log = capsys.readouterr().out
    assert "25 training and 3 test images of 40x40, 3 classes" in log
    assert re.search("recipe for so many photos, or the flags: --num_epochs 2  --batch_size 8", log)
    folder = tmp_path / "whole" / "folder_smr_seed123"
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25 and rows[-1]["file"].startswith("плум/photo ")
    assert train(mixed, tmp_path / "parts", *flags, "--num_epochs", "0") == 0
    parts = ("--num_epochs", "2", "--resume", "--num_workers", "2")
    assert train(mixed, tmp_path / "parts", *flags, *parts) == 0
    assert_same_run(tmp_path / "parts" / folder.name, folder)


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

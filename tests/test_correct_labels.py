"""correct_labels.py as a user runs it: what moves, what is refused, and that all comes back."""

import csv
import json
import os
from functools import partial

import helpers
import numpy as np
import pytest
from helpers import finish_by_hand
from photo_sets import write_clothing, write_webvision
from photos import write_animals, write_photos

import correct_labels
from dataloader_animal10N import animal_dataloader
from dataloader_cifar import cifar_dataloader
from dataloader_clothing1M import clothing_dataloader
from dataloader_folder import folder_dataloader
from dataloader_webvision import webvision_dataloader
from smr.data.image_file_dataset import Frame

CLASSES = {"cat": 4, "dog": 4, "fox": 3}


def folder_run(photos, tmp_path, suggested) -> tuple:
    """A run on a folder of photos; its loader, opened anew by `again`."""
    again = partial(folder_dataloader, photos, 8, 1, Frame(37, 32, square=True))
    return finish_by_hand(again(), tmp_path / "run", photos, suggested), again


@pytest.fixture
def photos(tmp_path):
    """Eleven photos of three classes; of each class a file 0.png."""
    return write_photos(tmp_path / "photos", CLASSES)


@pytest.fixture
def run(photos, tmp_path):
    """A run's folder that suggests: cat/1 is a dog, dog/0 a fox, fox/2 a cat."""
    write_photos(photos, dict.fromkeys(CLASSES, 1), "testing")
    return folder_run(photos, tmp_path, {1: 1, 4: 2, 10: 0})[0]


def write_corrections(path, *rows: str):
    path.write_text("\n".join(["index,file,given,corrected,action", *rows, ""]), encoding="utf-8")
    return path


def corrections_of(run, names: dict[int, str]):
    """corrections.csv: position → the new class, "" to drop the image."""
    lists = json.loads((run / "labels.json").read_text())
    rows = []
    for index, name in names.items():
        place = lists["index"].index(index)
        file = lists["files"][place] if lists["files"] else ""
        given = lists["class_names"][lists["labels"][place]]
        rows.append(f'{index},"{file}",{given},{name},{"other" if name else "drop"}')
    return write_corrections(run / "c.csv", *rows)


@pytest.fixture
def corrections(tmp_path):
    """One of each kind; two files of one name go to fox/, which has a file of that name."""
    return write_corrections(
        tmp_path / "corrections.csv",
        "0,training/cat/0.png,cat,fox,other",
        "1,training/cat/1.png,cat,dog,take",
        "2,training/cat/2.png,cat,,drop",
        "4,training/dog/0.png,dog,fox,take",
        "10,training/fox/2.png,fox,fox,keep",
    )


def contents(root) -> dict[str, bytes | bool]:
    """The content of every file below a folder, and False for every folder."""
    return {
        str(path.relative_to(root)): path.is_file() and path.read_bytes()
        for path in root.rglob("*")
    }


def call(*arguments) -> int:
    return correct_labels.main([str(argument) for argument in arguments])


refused = partial(helpers.refused, correct_labels.main)

MOVED = {
    "training/cat/0.png": "training/fox/0_2.png",
    "training/cat/1.png": "training/dog/1_2.png",
    "training/cat/2.png": "dropped/cat/2.png",
    "training/dog/0.png": "training/fox/0_3.png",
}


def assert_moved(before, after) -> None:
    """Each file of MOVED is where it belongs, all others where they were."""
    files = {name: content for name, content in before.items() if content}
    expected = {MOVED.get(name, name): content for name, content in files.items()}
    log = ".corrections_run.log"
    assert {name: content for name, content in after.items() if content and name != log} == expected


def test_corrections_move_files_into_their_class_and_undo_puts_back_every_byte(
    run, photos, corrections, capsys
):
    before = contents(photos)
    assert call(run, corrections) == 0
    assert_moved(before, contents(photos))
    moved = contents(photos)
    capsys.readouterr()
    assert call(run, corrections) == 0  # again: nothing more
    assert contents(photos).keys() == moved.keys()
    assert "nothing to move in" in capsys.readouterr().out
    assert call(run, "--undo") == 0
    assert contents(photos) == before


def test_dry_run_says_what_would_move_and_does_nothing(run, photos, corrections, capsys):
    before = contents(photos)
    call(run, corrections, "--dry_run")
    output = capsys.readouterr().out
    assert all(f"{source} -> {target}\n" in output for source, target in MOVED.items())
    assert output.startswith("3 labels to change, 1 images to drop\n")
    assert "4 files would move" in output
    call(run, corrections)
    capsys.readouterr()
    moved = contents(photos)
    call(run, "--undo", "--dry_run")
    assert "training/fox/0_3.png -> training/dog/0.png\n" in capsys.readouterr().out
    assert contents(photos) == moved != before


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("done", range(4))
def test_a_half_finished_attempt_is_finished_or_undone(
    run, photos, corrections, monkeypatch, capsys, done, continues
):
    before, rename, calls = contents(photos), os.rename, []

    def full_disk(source, target):
        calls.append(source)
        if len(calls) > done:
            raise OSError(28, "No space left on device", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", full_disk)
    assert f"{done} of 4 files were moved" in refused(capsys, run, corrections)
    if not continues and done > 1:
        calls[:] = calls[:1] * (done - 1)  # the undoing, too, stops half way
        assert "the same command again continues" in refused(capsys, run, "--undo")
    monkeypatch.undo()
    if continues:
        assert call(run, corrections) == 0
        assert_moved(before, contents(photos))
    assert call(run, "--undo") == 0
    assert contents(photos) == before


def test_undo_overwrites_no_file_that_took_the_old_place(run, photos, corrections, capsys):
    call(run, corrections)
    (photos / "training/cat/1.png").write_bytes(b"new")
    moved = contents(photos)
    assert "training/cat/1.png: another file is there" in refused(capsys, run, "--undo")
    assert contents(photos) == moved


ROW = "1,training/cat/1.png,cat,dog,take"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROW, ROW], "row 3: a second row of index 1"),
        (["1,training/cat/1.png,cat,cow,other"], "row 2: 'cow': the run has no such class"),
        (["1,training/cat/1.png,dog,cat,take"], "row 2: given 'dog': the run's label was 'cat'"),
        (["1,training/cat/1.png,cat,dog,"], "action '': expected one of keep, take, other, drop"),
        (["99,training/cat/1.png,cat,dog,take"], "index '99': the run has no such training image"),
        (["1,../secret.png,cat,dog,take"], "'../secret.png': image 1 of the run is"),
        (["1,training/cat/1.png"], "action '': expected one of"),
    ],
)
def test_a_row_that_is_not_about_this_run_is_named_and_nothing_is_done(
    run, photos, tmp_path, capsys, rows, words
):
    before = contents(photos)
    path = write_corrections(tmp_path / "c.csv", "4,training/dog/0.png,dog,,drop", *rows)
    message = refused(capsys, run, path)
    assert words.replace("row 3", "row 4").replace("row 2", "row 3") in message
    assert contents(photos) == before


def test_a_file_that_changed_or_went_since_the_run_is_refused(run, photos, corrections, capsys):
    image = photos / "training/dog/0.png"
    content = image.read_bytes()
    image.write_bytes(content[:-1] + b"x")
    before = contents(photos)
    changed = "training/dog/0.png: moved or changed since the run"
    assert changed in refused(capsys, run, corrections)
    image.unlink()
    assert changed in refused(capsys, run, corrections)
    image.write_bytes(content)
    assert contents(photos).keys() == before.keys()
    photos.rename(photos.with_name("elsewhere"))
    assert "give the data's folder with --data_path" in refused(capsys, run, corrections)


def test_class_folders_that_lead_out_of_the_data_folder_are_refused(run, photos, tmp_path, capsys):
    outside = tmp_path / "outside"
    (photos / "training/fox").rename(outside)
    (photos / "training/fox").symlink_to(outside)
    assert "leads out of" in refused(capsys, run, corrections_of(run, {4: "fox"}))
    assert sorted(os.listdir(outside)) == ["0.png", "1.png", "2.png"]


def edited_list(run, changes: dict[int, tuple[str, str]]):
    """labels.csv, sorted by rank, with other cells: index → (given, given_name)."""
    header, *lines = (run / "labels.csv").read_text("utf-8-sig").splitlines()
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[2:4] = changes.get(int(row[0]), row[2:4])
    rows.sort(key=lambda row: int(row[11]))
    (run / "labels.csv").write_text("\n".join([header, *map(",".join, rows)]))
    return run / "labels.csv"


def test_a_list_edited_in_a_spreadsheet_by_number_or_by_name_is_taken(run, photos):
    path = edited_list(run, {1: ("0", "dog"), 4: ("2", "dog"), 10: ("0", "cat")})
    before = contents(photos)
    assert call(run, path) == 0
    after = contents(photos).keys()
    assert before.keys() - after == {f"training/{n}.png" for n in ("cat/1", "dog/0", "fox/2")}
    assert {f"training/{name}.png" for name in ("dog/1_2", "fox/0_2", "cat/2_2")} <= after


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (("3", "cat"), "class '3': expected 0 to 2"),
        (("", "cat"), "class '': expected 0 to 2"),
        (("0", "cow"), "'cow': the run has no such class"),
        (("1", "fox"), "class 1 and 'fox' are two classes"),
    ],
)
def test_an_edited_row_that_means_no_class_is_named(run, capsys, cells, words):
    message = refused(capsys, run, edited_list(run, {1: cells}))
    assert f"row 2: {words}" in message  # index 1 has rank 1


def test_a_list_in_another_encoding_says_how_to_save_it(run, capsys):
    (run / "labels.csv").write_bytes("index;file;given\n1;Bär.png;0\n".encode("cp1252"))
    assert "save it as 'CSV UTF-8'" in refused(capsys, run, run / "labels.csv")


def test_suggestions_of_the_run_s_own_list_are_accepted_by_rank_or_clean_probability(
    run, photos, capsys
):
    before = contents(photos)
    for flags, names in (
        (("--accept_below", 0.05), {"training/cat/1.png"}),
        (("--accept", 2), {"training/cat/1.png", "training/dog/0.png"}),
    ):
        assert call(run, *flags) == 0
        assert before.keys() - contents(photos).keys() == names
    assert "training/fox/0_2.png" in contents(photos)
    edited_list(run, {1: ("1", "cat")})
    assert "no labels.csv as the run wrote it" in refused(capsys, run, "--accept", 2)


@pytest.mark.parametrize(
    ("form", "old", "new"), [("names", "0_", "9_"), ("classes", "cat/", "guinea_pig/")]
)
def test_animal10n_s_files_get_the_new_label_in_their_name_or_their_class_s_folder(
    tmp_path, form, old, new
):
    root = write_animals(tmp_path, form)
    loader = animal_dataloader(root, 8, 1)
    finish_by_hand(loader, tmp_path / "run", root, {0: 9}, "animal10N")
    assert call(tmp_path / "run", "--accept", 1) == 0
    assert loader.files[0].startswith(f"training/{old}") and not (root / loader.files[0]).exists()
    assert (root / loader.files[0].replace(f"/{old}", f"/{new}")).exists()


def test_classes_without_a_folder_above_are_corrected_and_trained_on_again(tmp_path):
    photos = write_photos(tmp_path / "photos", CLASSES, part="")
    run, again = folder_run(photos, tmp_path, {})
    before, first = contents(photos), again()
    moved, dropped = first.files[0], first.files[1]
    assert moved.startswith("cat/") and dropped.startswith("cat/")
    assert call(run, corrections_of(run, {0: "fox", 1: ""})) == 0
    after = contents(photos)
    assert after[f"dropped/{dropped}"] == before[dropped]
    new = set(after) - set(before)
    assert [after[name] for name in new if name.startswith("fox/")] == [before[moved]]
    assert again().class_names == ["cat", "dog", "fox"]
    assert len(again().noisy_labels) == len(first.noisy_labels) - 1
    assert call(run, "--undo") == 0
    assert contents(photos) == before


def test_a_list_s_labels_are_not_those_of_the_folders_that_photos_lie_in(tmp_path):
    root = write_animals(tmp_path, "classes")
    loader = animal_dataloader(root, 8, 1)
    assert loader.info.labels_in_paths
    labels = loader.noisy_labels.tolist()
    (tmp_path / "list.json").write_text(json.dumps(labels[::-1]))
    listed = animal_dataloader(root, 8, 1, noise_file=tmp_path / "list.json")
    assert not listed.info.labels_in_paths


def test_a_photo_goes_to_its_class_s_own_folder_not_one_inside_another(tmp_path):
    photos = write_photos(tmp_path / "photos", {"2023": 3}, part="train/cat")
    write_photos(photos, {"dog": 3, "fox": 1}, part="train")
    write_photos(photos, {"cat": 1}, part="test")
    run, _ = folder_run(photos, tmp_path, {3: 0, 4: 2})
    assert call(run, "--accept", 2) == 0
    assert (photos / "train/cat/0.png").exists() and (photos / "train/fox/1.png").exists()


def write_binary(root):
    return write_animals(root, "binary")


def animals(root, noise_file=""):
    return animal_dataloader(root, 8, 1, noise_file=noise_file)


def webvision(root, noise_file=""):
    return webvision_dataloader(root, "", 3, 4, 0, Frame(40, 32), noise_file=noise_file)


def clothing(root, noise_file=""):
    return clothing_dataloader(root, 7, 0, 4, Frame(36, 32), noise_file=noise_file)


@pytest.mark.parametrize(
    ("dataset", "write", "loader_of"),
    [
        ("webvision", write_webvision, webvision),
        ("clothing1M", write_clothing, clothing),
        ("animal10N", write_binary, animals),
    ],
)
def test_photos_with_lists_stay_and_training_takes_the_new_list(
    tmp_path, dataset, write, loader_of
):
    root, run = write(tmp_path / "data"), tmp_path / "run"
    first = loader_of(root)
    before = contents(root)
    finish_by_hand(first, run, root, {1: 2, 4: 1}, dataset)
    assert call(run, "--accept", 1) == 0
    assert contents(root) == before
    given = first.noisy_labels.tolist()
    path = run / "corrected_labels.json"
    assert json.loads(path.read_text()) == [given[0], 2, *given[2:]]
    assert call(run, corrections_of(run, {0: "", 1: first.class_names[2]})) == 0
    second = loader_of(root, run / "corrected_labels_2.json")
    assert second.noisy_labels.tolist() == [2, *given[2:]]
    assert second.files == first.files[1:] and second.info.dropped_images == [0]
    assert "--noise_file drops 1 training images" in second.info.data_notes
    one, other = second.thumbnails(np.arange(9)), first.thumbnails(np.arange(1, 10))
    np.testing.assert_array_equal(one, other)


def digits(noise_file="") -> cifar_dataloader:
    return cifar_dataloader("digits", 0.5, "sym", 64, 0, "", None, noise_file, seed=1)


def test_digits_get_a_label_file_that_training_takes_and_a_second_round_keeps_its_drops(tmp_path):
    first, run = digits(), finish_by_hand(digits(), tmp_path / "1", "", {}, "digits")
    given = first.noisy_labels.tolist()
    wrong = (given[7] + 1) % 10
    assert call(run, corrections_of(run, {3: "", 7: str(wrong), 8: ""})) == 0
    second = digits(run / "corrected_labels.json")
    assert second.noisy_labels.tolist() == [*given[:3], *given[4:7], wrong, *given[9:]]
    assert second.info.dropped_images == [3, 8]
    kept = np.delete(np.arange(1437), [3, 8])
    np.testing.assert_array_equal(second.thumbnails(np.arange(1435)), first.thumbnails(kept))
    np.testing.assert_array_equal(second.clean_labels, first.clean_labels[kept])

    run = finish_by_hand(second, tmp_path / "2", "", {}, "digits")
    lists = json.loads((run / "labels.json").read_text())
    for name in ("index", "labels"):
        del lists[name][9]  # as if image 11 could not be decoded in the scoring pass
    (run / "labels.json").write_text(json.dumps(lists))
    (run / "corrected_labels.json").write_text("[]")  # stays
    assert call(run, corrections_of(run, {0: "", 4: "0"})) == 0
    assert (run / "corrected_labels.json").read_text() == "[]"
    found = json.loads((run / "corrected_labels_2.json").read_text())
    expected = [None, *given[1:3], None, given[4], 0, given[6], wrong, None, *given[9:]]
    assert found == [*expected[:11], None, *expected[12:]]


def test_a_folder_without_a_finished_run_and_two_ways_to_decide_are_refused(run, tmp_path, capsys):
    for _ in range(2):
        said = refused(capsys, tmp_path, "--accept", 1)
        assert "expected a run folder; --evaluate" in said
        (tmp_path / "config.json").write_text("{}")
    assert "give one of FILE" in refused(capsys, run)
    assert "give one of FILE" in refused(capsys, run, "--accept", 1, "--undo")


def test_relative_links_point_to_their_files_wherever_they_are_moved(run, photos, corrections):
    (photos / "pool").mkdir()
    (photos / "training/cat/.pool").mkdir()
    for name, link in (("cat/1", ".pool/a.png"), ("dog/0", "./../../pool/../pool/b.png")):
        photo = photos / f"training/{name}.png"
        photo.rename(photo.parent / link)
        photo.symlink_to(link)
    (photos / "pool/c.png").write_bytes((photos / "training/cat/2.png").read_bytes())
    (photos / "training/cat/2.png").unlink()
    (photos / "training/cat/2.png").symlink_to(photos / "pool/c.png")
    before = contents(photos)
    links = {path: os.readlink(path) for path in photos.rglob("*") if path.is_symlink()}
    assert call(run, corrections) == 0
    assert_moved(before, contents(photos))
    assert os.readlink(photos / "dropped/cat/2.png") == str(photos / "pool/c.png")
    assert call(run, "--undo") == 0
    assert contents(photos) == before
    assert {path: os.readlink(path) for path in links} == links


@pytest.mark.parametrize("part", ["", "train"])
def test_a_class_may_be_called_dropped(tmp_path, part):
    photos = write_photos(tmp_path / "photos", {"cat": 4, "dropped": 4}, part)
    run, again = folder_run(photos, tmp_path, {})
    assert again().class_names == ["cat", "dropped"]
    before, dropped = contents(photos), again().files[0]
    assert call(run, corrections_of(run, {0: ""})) == 0
    folder = photos / ("dropped" if part else "dropped_2")  # which no class has
    assert (folder / "cat" / dropped.split("/")[-1]).exists()
    assert again().class_names == ["cat", "dropped"]
    assert call(run, "--undo") == 0
    assert contents(photos) == before


@pytest.mark.parametrize("locked", ["training/dog", "training/fox", "."])
def test_a_read_only_folder_is_named_before_anything_moves(
    run, photos, monkeypatch, capsys, locked
):
    before = contents(photos)
    monkeypatch.setattr(os, "access", lambda path, mode: path != photos / locked)  # for root too
    said = refused(capsys, run, "--accept", 2)
    assert f"{photos / locked}: this folder is read-only" in said
    assert contents(photos) == before


def test_labels_from_a_csv_are_corrected_in_a_new_one(run, photos, tmp_path):
    files = json.loads((run / "labels.json").read_text())["files"]
    names = [name for name, count in CLASSES.items() for _ in range(count)]
    rows = [["7", name, f"/data/{file}"] for file, name in zip(files, names, strict=True)]
    rows = [["id", "choice", "image"], ["8", "cat", "testing/cat/0.png"], *rows]
    with open(tmp_path / "labels.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    config = json.loads((run / "config.json").read_text())
    config |= {"labels_csv": str(tmp_path / "labels.csv"), "labels_in_paths": False}
    (run / "config.json").write_text(json.dumps(config))
    before = contents(photos)
    assert call(run, corrections_of(run, {1: "dog", 2: ""})) == 0
    assert contents(photos) == before
    rows[3][1] = "dog"
    del rows[4]
    with open(run / "corrected_labels.csv", encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == rows

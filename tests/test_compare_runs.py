"""The table of runs: what is averaged, what is not and why, and the published figures."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
from helpers import REPOSITORY, run_script, script_environment

import compare_runs
from smr.errors import InputError

CONFIG = {
    "dataset": "cifar10",
    "noise_mode": "sym",
    "r": 0.5,
    "noise_file": "",
    "method": "smr",
    "warmup_loss": "mixup",
    "recalibrate_every": 30,
    "num_epochs": 11,
    "width": 64,
    "augment": "weak",
    "seed": 1,
    "id": "",
    "device": "cpu",
    "noise_sha256": "of seed 1",
}


@pytest.fixture
def write_run(tmp_path):
    """Writes a run folder of these accuracies; epoch i took i seconds."""

    def write(name: str, accuracies: list[float], **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG | changes))
        rows = [
            {"epoch": i, "test/accuracy": a, "time/seconds": i} for i, a in enumerate(accuracies)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return write


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_row_is_mean_and_deviation_over_seeds_beside_the_published_figure(write_run):
    first = write_run("a", [10.0, 96.0, *[90.0] * 9, 91.0], device="cuda", ended=True)
    second = write_run("b", [10.0, 94.0, *[91.0] * 9, 92.0], seed=2, noise_sha256="other")
    text = compare_runs.compare([first, second])
    assert rows_of(text) == [
        [
            *("cifar10", "sym 0.5", "smr", "11", "2"),
            "95.00 ± 1.41",  # of 96 and 94
            "91.50 ± 0.71",  # of 91 and 92
            "90.60 ± 0.71",  # of nine 90 and one 91, and of nine 91 and one 92
            "0:01:06",
            "about 96.1",
        ]
    ]
    assert "Not averaged" not in text


def test_a_single_seed_has_no_deviation(write_run):
    row = rows_of(compare_runs.compare([write_run("a", [50.0] * 12)]))[0]
    assert row[4:8] == ["1", "50.00", "50.00", "50.00"]


def test_rows_are_separate_by_dataset_noise_and_method(write_run):
    others = [
        {"dataset": "cifar100"},
        {"r": 0.2},
        {"noise_mode": "asym"},
        {"noise_mode": "worst", "r": 0.4021, "noise_file": "CIFAR-10_human.pt"},
        {"noise_file": "mine.json"},
        {"dataset": "animal10N", "noise_mode": None, "noise_file": "mine.json"},
        {"dataset": "animal10N", "noise_mode": None},
        {"method": "dividemix", "warmup_loss": "ce", "recalibrate_every": 0},
        {"method": "ce", "warmup_loss": "ce", "recalibrate_every": 0},
        {"warmup_loss": "ce"},
        {"recalibrate_every": 0},
    ]
    folders = [write_run(str(i), [50.0] * 12, **other) for i, other in enumerate(others)]
    rows = rows_of(compare_runs.compare(folders))
    assert sorted((row[0], row[1], row[2]) for row in rows) == sorted(
        [
            ("cifar100", "sym 0.5", "smr"),
            ("cifar10", "sym 0.2", "smr"),
            ("cifar10", "asym 0.5", "smr"),
            ("cifar10", "human worst", "smr"),
            ("cifar10", "labels of mine.json", "smr"),
            ("animal10N", "labels of mine.json", "smr"),
            ("animal10N", "real", "smr"),
            ("cifar10", "sym 0.5", "dividemix"),
            ("cifar10", "sym 0.5", "ce"),
            ("cifar10", "sym 0.5", "smr, ce warm-up"),
            ("cifar10", "sym 0.5", "smr, no recalibration"),
        ]
    )


def test_a_method_without_a_figure_of_its_own_stands_beside_those_of_others():
    published = partial(compare_runs.published, train_images=50_000)
    assert published(("cifar10", "sym 0.8", "smr")) == "dividemix 93.2 / 92.9"
    assert published(("cifar10", "sym 0.8", "dividemix")) == "93.2 / 92.9"
    assert published(("animal10N", "real", "ce")) == "79.4"
    assert published(("digits", "sym 0.8", "smr")) == "–"


def test_no_published_figure_stands_beside_a_part_of_the_training_set(write_run):
    assert rows_of(compare_runs.compare([write_run("a", [9.0] * 12)]))[0][-1] == "about 96.1"
    part = write_run("b", [9.0] * 12, train_images=5000)
    assert rows_of(compare_runs.compare([part]))[0][-1] == "–"


def test_an_unfinished_run_is_named_and_not_averaged_in(write_run):
    whole, part = write_run("a", [50.0] * 12), write_run("b", [90.0] * 5, seed=2)
    text = compare_runs.compare([whole, part])
    assert rows_of(text)[0][4:6] == ["1", "50.00"]
    assert f"- {part}: unfinished, epoch 4 of 11" in text


def test_a_run_that_lacks_an_epoch_in_between_is_unfinished(write_run):
    folder = write_run("a", [50.0] * 12)
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:3] + rows[4:]))
    with pytest.raises(InputError, match="unfinished"):
        compare_runs.compare([folder])


def test_runs_of_other_settings_make_a_row_of_their_own_which_says_what_differs(write_run):
    usual = [write_run(str(seed), [50.0] * 12, seed=seed) for seed in (1, 2)]
    other = write_run("other", [90.0] * 12, seed=3, width=32, lr_steps=[[40, 0.1]])
    apart = write_run("apart", [70.0] * 12, r=0.2, width=16)
    rows = rows_of(compare_runs.compare([other, *usual, apart]))
    assert sorted((row[1], row[2], row[4], row[5]) for row in rows) == [
        ("sym 0.2", "smr", "1", "70.00"),
        ("sym 0.5", "smr (lr_steps 40:0.1, width 32)", "1", "90.00"),
        ("sym 0.5", "smr (lr_steps None, width 64)", "2", "50.00 ± 0.00"),
    ]


def test_strong_augmentation_makes_a_row_of_its_own(write_run):
    weak = [write_run(f"weak{seed}", [50.0] * 12, seed=seed) for seed in (1, 2)]
    strong = write_run("strong", [60.0] * 12, augment="strong")
    rows = rows_of(compare_runs.compare([*weak, strong]))
    assert sorted((row[2], row[4], row[5]) for row in rows) == [
        ("smr", "2", "50.00 ± 0.00"),
        ("smr, strong augmentation", "1", "60.00"),
    ]


def test_runs_on_files_of_other_labels_are_not_averaged_and_the_rows_name_the_labels(write_run):
    """Every run writes its list as noisy_labels.json: the name tells nothing of the labels."""
    file = {"noise_file": "noisy_labels.json"}
    first = [
        write_run(f"a{seed}", [50.0] * 12, seed=seed, noise_sha256="a" * 64, **file)
        for seed in (1, 2)
    ]
    other = write_run("b", [90.0] * 12, seed=3, noise_sha256="b" * 64, **file)
    rows = rows_of(compare_runs.compare([*first, other]))
    assert sorted((row[2], row[4], row[5]) for row in rows) == [
        ("smr (noise_sha256 aaaaaaaa)", "2", "50.00 ± 0.00"),
        ("smr (noise_sha256 bbbbbbbb)", "1", "90.00"),
    ]


def test_seeds_of_generated_noise_share_a_row_unless_their_noise_rates_differ(write_run):
    rates = {1: 0.4474, 2: 0.4526, 3: 0.4544, 4: 0.5}
    runs = [
        write_run(str(seed), [50.0] * 12, seed=seed, noise_sha256=str(seed), noise_rate=rate)
        for seed, rate in rates.items()
    ]
    rows = rows_of(compare_runs.compare(runs))
    assert sorted((row[2], row[4]) for row in rows) == [
        ("smr (noise_rate 0.4474)", "3"),
        ("smr (noise_rate 0.5)", "1"),
    ]
    assert [row[2] for row in rows_of(compare_runs.compare(runs[:3]))] == ["smr"]


def test_a_folder_of_runs_stands_for_the_runs_in_it(write_run, tmp_path):
    folders = [write_run(str(seed), [50.0] * 12, seed=seed) for seed in (1, 2)]
    assert compare_runs.compare([tmp_path]) == compare_runs.compare(folders)


def test_a_seed_counts_once(write_run):
    first, again = write_run("a", [50.0] * 12), write_run("b", [90.0] * 12, id="b")
    text = compare_runs.compare([first, again])
    assert rows_of(text)[0][4:6] == ["1", "50.00"]
    assert f"- {again}: seed 1 as {first}\n" in text
    other = write_run("c", [90.0] * 12, id="c", noise_sha256="of other data")
    text = compare_runs.compare([first, other])
    assert rows_of(text)[0][4:6] == ["1", "50.00"]
    assert f"- {other}: seed 1 as {first}, with other training labels" in text


def test_folders_without_runs_and_damaged_ones_are_named(write_run, tmp_path):
    whole, bad = write_run("a", [50.0] * 12), write_run("b", [50.0] * 12)
    (bad / "config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    text = compare_runs.compare([whole, bad, tmp_path / "empty"])
    assert f"- {bad}: its files are damaged" in text
    assert f"- {tmp_path / 'empty'}: not a run: config.json is missing" in text


def test_the_script_prints_the_table(write_run, tmp_path):
    write_run("a", [50.0] * 12)
    done = run_script("compare_runs.py", "a", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("| dataset | noise | method |")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_of_any_encoding_and_a_closed_pipe_get_no_traceback(
    write_run, tmp_path, encoding
):
    for seed in (1, 2):
        write_run(f"Größe{seed}", [50.0] * 12, seed=seed)
    reading, writing = os.pipe()
    if encoding == "ascii":
        os.close(reading)  # as `| head` closes it
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "compare_runs.py"), "."],
        **{"cwd": tmp_path, "env": script_environment() | {"PYTHONIOENCODING": encoding}},
        **{"stdout": writing, "stderr": subprocess.PIPE, "timeout": 120},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    if encoding == "cp1252":
        with open(reading, encoding="cp1252") as output:
            assert "| 50.00 ± 0.00 |" in output.read()


def test_without_a_finished_run_the_script_says_so_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        compare_runs.main([str(tmp_path)])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no finished run" in error


def test_runs_of_other_numbers_of_processes_share_a_row_and_are_named(write_run):
    alone = write_run("a", [90.0] * 12)
    shared = [write_run(f"b{n}", [90.0] * 12, seed=n, world_size=n, sync_bn=True) for n in (2, 3)]
    text = compare_runs.compare([alone, *shared])
    assert [row[4] for row in rows_of(text)] == ["3"]
    assert "\nAveraged together:\n\n- cifar10, sym 0.5, smr: runs of 1 and 2 and 3 pro" in text
    assert "together" not in compare_runs.compare([alone])
    assert "together" not in compare_runs.compare(shared[:1])


def test_results_md_and_readme_show_the_table_of_the_kept_runs():
    table = compare_runs.compare([REPOSITORY / "benchmarks" / "results" / "small"])
    assert table in (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    names = {"ce": "cross-entropy", "dividemix": "DivideMix", "smr": "SMR"}
    for _, noise, method, _, _, *accuracies, _, _ in rows_of(table):
        if noise == "sym 0.5" and method in names:
            assert f"| {names[method]} | {' | '.join(accuracies)} |" in readme

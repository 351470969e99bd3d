"""The table of runs: what is averaged, what is not and why, and the published figures."""

import json

import pytest
from helpers import REPOSITORY, refused

import compare_runs

CONFIG = {
    **{"dataset": "cifar10", "noise_mode": "sym", "r": 0.5, "noise_file": "", "method": "smr"},
    **{"warmup_loss": "mixup", "recalibrate_every": 30, "num_epochs": 11, "width": 64, "id": ""},
    **{"augment": "weak", "seed": 1, "device": "cpu", "noise_sha256": "of seed 1"},
}


@pytest.fixture
def write_run(tmp_path):
    """Writes a run folder of these accuracies; epoch i took i seconds."""

    def write(name: str, accuracies: float | list[float], **changes):
        folder = tmp_path / name
        folder.mkdir()
        accuracies = accuracies if isinstance(accuracies, list) else [accuracies] * 12
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
    # Of 96 and 94; of 91 and 92; of nine 90 and one 91, and of nine 91 and one 92.
    accuracies = "95.00 ± 1.41 | 91.50 ± 0.71 | 90.60 ± 0.71"
    row = f"| cifar10 | sym 0.5 | smr | 11 | 2 | {accuracies} | 0:01:06 | about 96.1 |"
    assert text.splitlines()[2:] == [row]


def test_rows_are_separate_by_dataset_noise_and_method(write_run):
    worst = {"noise_mode": "worst", "r": 0.4021, "noise_file": "CIFAR-10_human.pt"}
    own_file, real = {"noise_file": "mine.json"}, {"dataset": "animal10N", "noise_mode": None}
    ce, never = {"warmup_loss": "ce"}, {"recalibrate_every": 0}
    expected = [
        ({"dataset": "cifar100"}, ("cifar100", "sym 0.5", "smr")),
        ({"r": 0.2}, ("cifar10", "sym 0.2", "smr")),
        ({"noise_mode": "asym"}, ("cifar10", "asym 0.5", "smr")),
        (worst, ("cifar10", "human worst", "smr")),
        (own_file, ("cifar10", "labels of mine.json", "smr")),
        (real | own_file, ("animal10N", "labels of mine.json", "smr")),
        (real, ("animal10N", "real", "smr")),
        ({"method": "dividemix"} | ce | never, ("cifar10", "sym 0.5", "dividemix")),
        ({"method": "ce"} | ce | never, ("cifar10", "sym 0.5", "ce")),
        (ce, ("cifar10", "sym 0.5", "smr, ce warm-up")),
        (never, ("cifar10", "sym 0.5", "smr, no recalibration")),
        ({"augment": "strong"}, ("cifar10", "sym 0.5", "smr, strong augmentation")),
    ]
    folders = [write_run(str(i), 50.0, **changes) for i, (changes, _) in enumerate(expected)]
    rows = rows_of(compare_runs.compare(folders))
    assert sorted(tuple(row[:3]) for row in rows) == sorted(cell for _, cell in expected)


def test_a_method_without_a_figure_of_its_own_stands_beside_those_of_others(write_run):
    plain = {"warmup_loss": "ce", "recalibrate_every": 0}
    runs = [
        ({"r": 0.8}, "dividemix 93.2 / 92.9"),
        ({"r": 0.8, "method": "dividemix"} | plain, "93.2 / 92.9"),
        ({"dataset": "animal10N", "noise_mode": None, "method": "ce"} | plain, "79.4"),
        ({"dataset": "digits"}, "–"),
        ({"train_images": 5000}, "–"),
        ({"freeze_backbone": True}, "–"),
    ]
    for i, (changes, published) in enumerate(runs):
        text = compare_runs.compare([write_run(str(i), 9.0, **changes)])
        assert rows_of(text)[0][-1] == published


def test_an_unfinished_run_is_named_and_not_averaged_in(write_run):
    whole, part = write_run("a", 50.0), write_run("b", [90.0] * 5, seed=2)
    text = compare_runs.compare([whole, part])
    assert rows_of(text)[0][4:8] == ["1", "50.00", "50.00", "50.00"]  # one has no deviation
    assert f"- {part}: unfinished, epoch 4 of 11" in text


def test_runs_of_other_settings_make_a_row_of_their_own_which_says_what_differs(write_run):
    usual = [write_run(str(seed), 50.0, seed=seed) for seed in (1, 2)]
    other = write_run("other", 90.0, seed=3, width=32, lr_steps=[[40, 0.1]])
    apart = write_run("apart", 70.0, r=0.2, width=16)
    rows = rows_of(compare_runs.compare([other, *usual, apart]))
    assert sorted((row[1], row[2], row[4], row[5]) for row in rows) == [
        ("sym 0.2", "smr", "1", "70.00"),
        ("sym 0.5", "smr (lr_steps 40:0.1, width 32)", "1", "90.00"),
        ("sym 0.5", "smr (lr_steps None, width 64)", "2", "50.00 ± 0.00"),
    ]


def test_runs_share_a_row_by_the_labels_of_a_file_or_by_the_rate_of_generated_noise(
    write_run, tmp_path
):
    """Every run writes its list as noisy_labels.json: the name tells nothing of the labels."""
    file = {"noise_file": "noisy_labels.json"}
    for seed, sha256 in enumerate((64 * "a", 64 * "a", 64 * "b")):
        write_run(f"file{seed}", 50.0, seed=seed, noise_sha256=sha256, **file)
    rated = [
        write_run(f"rate{seed}", 50.0, seed=seed, noise_sha256=str(seed), noise_rate=rate)
        for seed, rate in enumerate((0.4474, 0.4526, 0.457, 0.5))
    ]
    rows = rows_of(compare_runs.compare([tmp_path]))
    assert sorted((row[2], row[4]) for row in rows) == [
        ("smr (noise_rate 0.4474)", "3"),
        ("smr (noise_rate 0.5)", "1"),
        ("smr (noise_sha256 aaaaaaaa)", "2"),
        ("smr (noise_sha256 bbbbbbbb)", "1"),
    ]
    assert [row[2] for row in rows_of(compare_runs.compare(rated[:3]))] == ["smr"]


def test_a_seed_counts_once(write_run):
    first, again = write_run("a", 50.0), write_run("b", 90.0, id="b")
    other = write_run("c", 90.0, id="c", noise_sha256="of other data")
    text = compare_runs.compare([first, again, other])
    assert rows_of(text)[0][4:6] == ["1", "50.00"]
    assert f"- {again}: seed 1 as {first}\n" in text
    assert f"- {other}: seed 1 as {first}, with other training labels" in text


def test_a_folder_of_runs_stands_for_them_and_what_is_no_run_is_named(write_run, tmp_path):
    runs = [write_run("a", 50.0), write_run("b", 50.0, seed=2)]
    assert compare_runs.compare([tmp_path]) == compare_runs.compare(runs)
    (runs[1] / "config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    text = compare_runs.compare([*runs, tmp_path / "empty"])
    for folder in (runs[1], tmp_path / "empty"):
        assert f"- {folder}: not a run, or its files are damaged" in text


def test_the_script_prints_the_table_or_says_in_one_line_that_no_run_is_finished(
    write_run, tmp_path, capsys
):
    assert "no finished run" in refused(compare_runs.main, capsys, tmp_path)
    write_run("Größe 猫", 50.0)
    assert compare_runs.main([str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("| dataset | noise | method |") and "| 50.00 | 0:01:06 |" in table


def test_runs_of_other_numbers_of_processes_share_a_row_and_are_named(write_run):
    alone = write_run("a", 90.0)
    shared = [write_run(f"b{n}", 90.0, seed=n, world_size=n, sync_bn=True) for n in (2, 3)]
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

"""benchmarks/reproduce.py: a published cell's run, its metrics, its table."""

import csv
import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers import write_cifar

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from dataclasses import asdict

import label_errors
import reproduce

import train_cifar
from PreResNet import ResNet18
from smr.config import configure
from smr.flags import parse
from smr.logging.metrics_file import read_metrics
from smr.run.run_dir import run_name

TINY = ["--width", "2", "--warm_up", "1", "--batch_size", "32", "--device", "cpu"]


def tiny_flags(tmp_path: Path) -> list[str]:
    """Flags of a run of seconds on a folder of 100 images."""
    data = write_cifar(tmp_path / "data", "cifar10")
    return [*TINY, "--data_path", str(data), "--output", str(tmp_path / "runs")]


def command_of(*argv: str) -> list[str]:
    """The flags that train_cifar.py is called with."""
    with mock.patch.object(train_cifar, "main", return_value=1) as main:
        assert reproduce.main(argv) == 1
    return main.call_args.args[0]


def config_of(*argv: str):
    """The configuration of the run that a command line starts."""
    return configured(*command_of(*argv, "--device", "cpu"))


def configured(*flags: str):
    """The configuration that train_cifar.py makes of these flags."""
    return configure(train_cifar.CifarConfig, **parse(train_cifar.CifarConfig, "", list(flags))[0])


def test_a_cell_leaves_its_records_and_a_row(tmp_path, capsys):
    results = tmp_path / "results"
    damaged = results / "full" / "cut_off" / "config.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    flags = [*tiny_flags(tmp_path), "--num_epochs", "1", "--results", str(results)]
    assert reproduce.main(["asym40", *flags, "--seed", "7"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    folder = results / "full" / run.name
    assert run.name.startswith("cifar10_0.4_asym_smr_seed7_full")
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl"}
    config = json.loads((folder / "config.json").read_text())
    assert config["lambda_u"] == 0 and len(config["noise_sha256"]) == 64
    assert (config["data_path"], config["output"]) == ("cifar-10-batches-py", "runs")

    rows, kept = read_metrics(run), read_metrics(folder)
    assert kept == [
        {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        for row in rows
    ]
    assert kept != rows
    assert all(float(f"{v:.6g}") == v for row in kept for v in row.values() if v != row["kind"])

    table = (results / "full" / "table.md").read_text()
    assert table.splitlines()[2].startswith("| cifar10 | asym 0.4 | smr | 1 | 1 |")
    assert f"| {rows[1]['test/accuracy']:.2f} |" in table
    assert "about 93.9" not in table  # of the whole training set
    assert capsys.readouterr().out.endswith(table)
    assert "\n- cut_off: " in table
    for path in (results / "full" / "table.md", *folder.iterdir()):
        assert str(tmp_path) not in path.read_text()


def test_the_same_command_resumes_and_ends_at_once_when_done(tmp_path, capsys):
    flags = ["sym50", *tiny_flags(tmp_path), "--results", str(tmp_path / "results")]
    assert reproduce.main([*flags, "--num_epochs", "0"]) == 0
    assert reproduce.main([*flags, "--num_epochs", "1"]) == 0
    assert "resumed after epoch 0" in capsys.readouterr().out
    (kept,) = (tmp_path / "results" / "full").glob("cifar10_0.5_sym_*")
    assert [row["epoch"] for row in read_metrics(kept)] == [0, 1]
    assert reproduce.main([*flags, "--num_epochs", "1"]) == 0
    assert "complete at epoch 1" in capsys.readouterr().out


@pytest.fixture
def frozen_flags(tmp_path) -> list[str]:
    """Flags of a run of two heads on 100 images."""
    torch.save(ResNet18(10, 2).state_dict(), tmp_path / "weights.pt")
    return [
        *("--network", "preact_resnet18", "--width", "2", "--image_size", "40"),
        *("--weights", str(tmp_path / "weights.pt"), "--features", str(tmp_path / "features")),
        *("--data_path", str(write_cifar(tmp_path / "data", "cifar10")), "--device", "cpu"),
        *("--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results")),
        "--frozen",
    ]


def test_a_frozen_cell_shares_features_of_all_noises_and_resumes(tmp_path, frozen_flags, capsys):
    flags = [*frozen_flags, "--num_epochs", "2", "--warm_up", "1", "--batch_size", "32"]
    shared = tmp_path / "features"
    assert reproduce.main(["sym50", *flags]) == 0
    times = {path.name: path.stat().st_mtime_ns for path in shared.glob("*.npy")}
    assert times.keys() == {"train_0.npy", "train_1.npy", "train_2.npy", "test.npy"}
    assert reproduce.main(["asym40", *flags, "--seed", "2"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in shared.glob("*.npy")} == times
    assert reproduce.main(["sym50", *flags]) == 0
    assert "complete at epoch 2" in capsys.readouterr().out
    lines = label_errors.read_rows(tmp_path / "results" / "frozen.jsonl")
    assert [(line["cell"], line["method"], line["seed"]) for line in lines] == [
        ("asym40", "smr", 2),
        ("sym50", "smr", 123),
    ]
    (run,) = (tmp_path / "runs").glob("*_0.4_*")
    rows = read_metrics(run)
    accuracies = [row["test/accuracy"] for row in rows]
    line = lines[0]
    assert line["best"] == pytest.approx(max(accuracies), rel=1e-3)
    assert line["last"] == pytest.approx(accuracies[-1], rel=1e-3)
    assert line["last_ten"] == pytest.approx(sum(accuracies) / 3, rel=1e-3)
    precision = [rows[-1].get(f"split/net{k}/precision", 0) for k in (1, 2)]
    assert line["precision"] == pytest.approx(sum(precision) / 2, rel=1e-3)
    with open(run / "labels.csv", encoding="utf-8-sig") as file:
        labels = sorted(csv.DictReader(file), key=lambda row: int(row["rank"]))
    noisy = [row["given"] != row["true"] for row in labels]
    assert line["p100"] == pytest.approx(sum(noisy) / len(noisy), rel=1e-3)  # of 100 images
    assert line["p_noisy"] == pytest.approx(sum(noisy[: sum(noisy)]) / sum(noisy), rel=1e-3)
    assert 0 < line["ap"] < 1 and 0 <= line["f1"] < 1
    config = json.loads((run / "config.json").read_text())
    assert line["features"] == config["features_of"] and len(line["features"]["weights"]) == 64


def test_the_baselines_of_a_frozen_cell_are_those_of_its_labels(tmp_path, frozen_flags):
    pytest.importorskip("cleanlab")
    assert reproduce.main(["sym50", *frozen_flags, "--method", "baselines", "--seed", "3"]) == 0
    lines = label_errors.read_rows(tmp_path / "results" / "frozen.jsonl")
    methods = ["cleanlab, C = 1", "cleanlab, C tuned on truth", "votes"]
    assert [line["method"] for line in lines] == methods
    assert {line["seed"] for line in lines} == {3}
    assert lines[1]["ap"] >= lines[0]["ap"] > 0


@pytest.mark.parametrize("cell", reproduce.CELLS)
@pytest.mark.parametrize("protocol", ["full", "short", "small"])
@pytest.mark.parametrize("method", ["smr", "dividemix", "ce"])
def test_every_cell_is_the_published_recipe_but_for_what_its_protocol_says(
    cell, protocol, method, tmp_path
):
    labels = tmp_path / "CIFAR-10_human.pt"
    labels.touch()
    human = cell in train_cifar.data.HUMAN_LABELS
    file = ["--noise_file", str(labels)] if human else []
    config = config_of(cell, *([f"--{protocol}"] if protocol != "full" else []), *file,
                      "--method", method)  # fmt: skip
    noise = {"noise_mode": cell, "noise_file": str(labels)}
    if not human:
        noise = {"noise_mode": cell[:-2], "r": int(cell[-2:]) / 100}
    noise |= {"method": method, "device": "cpu"}
    flags = [word for k, v in noise.items() for word in (f"--{k}", str(v))]
    published = asdict(configured(*flags))
    changed = {k: v for k, v in asdict(config).items() if published.get(k) != v}
    expected = {"id": protocol}
    if protocol == "short":
        expected |= {"num_epochs": 100, "lr_steps": ((50, 0.1),)}
    if protocol == "small":
        expected |= {"train_images": 5000, "width": 16}
        expected |= {} if method == "dividemix" else {"batch_size": 64}  # which DivideMix has
        expected |= {"num_epochs": 60, "lr_steps": ((40, 0.1),)}
        expected |= {"recalibrate_every": 15} if method == "smr" else {}
    assert changed == expected
    assert getattr(config, "warm_up", 0) == (0 if method == "ce" else 10)
    assert getattr(config, "recalibrate_every", 0) == {"full": 30, "short": 30, "small": 15}[
        protocol
    ] * (method == "smr")


@pytest.mark.parametrize(
    ("flags", "ending"),
    [
        ([], "small"),
        (["--recalibrate_every", "0"], "small_recalibrate_every-0"),
        (["--warmup_loss", "ce"], "small_warmup_loss-ce"),
        (["--lr_steps", "20:0.1,40:0.01"], "small_lr_steps-20-0.1-40-0.01"),
        (["--id", "mine"], "mine"),
        (["--amp", "bf16", "--save_every", "5", "--data_path", "elsewhere"], "small"),
    ],
)
def test_flags_that_change_the_protocol_stand_in_the_run_s_name(flags, ending):
    config = config_of("sym50", "--small", "--seed", "3", *flags)
    assert run_name(config) == f"cifar10_0.5_sym_smr_seed3_{ending}"
    assert config.amp is ("bf16" in flags)


def test_the_middle_rows_of_the_ablation_change_one_part_each():
    without = config_of("sym50", "--small", "--recalibrate_every", "0")
    plain = config_of("sym50", "--small", "--warmup_loss", "ce")
    assert (without.warmup_loss, without.recalibrate_every) == ("mixup", 0)
    assert (plain.warmup_loss, plain.recalibrate_every) == ("ce", 15)


def test_refusals_are_one_line(capsys):
    for argv, words in (
        (["sym50", "--short", "--small"], "not allowed with"),
        (["sym50", "--sed", "1"], "--sed: there is no such flag"),
    ):
        with pytest.raises(SystemExit) as refused:
            reproduce.main(argv)
        shown = capsys.readouterr().err
        assert refused.value.code == 2 and words in shown and shown.count("\n") == 1

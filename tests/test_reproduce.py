"""benchmarks/reproduce.py: a published cell's run, its records, its table; parity."""

import json
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers import write_cifar

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import reproduce

import train_cifar
from smr.run.devices import can_compile

TINY = ["--width", "2", "--warm_up", "1", "--batch_size", "32", "--device", "cpu"]


def tiny_flags(tmp_path: Path) -> list[str]:
    """Flags of a run of seconds on a folder of 100 images."""
    data = write_cifar(tmp_path / "data", "cifar10")
    return [*TINY, "--data_path", str(data), "--output", str(tmp_path / "runs")]


def test_a_cell_leaves_its_records_and_a_row_beside_the_published_figure(tmp_path, capsys):
    results = tmp_path / "results"
    flags = [*tiny_flags(tmp_path), "--num_epochs", "1", "--results", str(results)]
    assert reproduce.main(["asym40", *flags]) == 0
    folder = results / "full" / "cifar10_0.4_asym_smr_seed123_full"
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl"}
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert json.loads((folder / "config.json").read_text())["lambda_u"] == 0
    table = (results / "full" / "table.md").read_text()
    assert table.splitlines()[2].startswith("| cifar10 | asym 0.4 | smr | 1 | 1 |")
    assert "about 93.9" in table
    assert capsys.readouterr().out.endswith(table)


def test_the_same_command_goes_on_and_ends_at_once_when_done(tmp_path, capsys):
    flags = ["sym50", *tiny_flags(tmp_path), "--results", str(tmp_path / "results")]
    assert reproduce.main([*flags, "--num_epochs", "0"]) == 0
    assert reproduce.main([*flags, "--num_epochs", "1"]) == 0
    assert "resumed after epoch 0" in capsys.readouterr().out
    kept = tmp_path / "results" / "full" / "cifar10_0.5_sym_smr_seed123_full" / "metrics.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(len(f"{row['train/net1/loss']:.10g}") <= 8 for row in rows), "six digits are kept"
    assert reproduce.main([*flags, "--num_epochs", "1"]) == 0
    assert "finished at epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize("cell", reproduce.CELLS)
@pytest.mark.parametrize("short", [[], ["--short"]])
def test_every_cell_is_the_published_recipe_but_for_what_short_says(cell, short, tmp_path):
    flags = []
    with mock.patch.object(reproduce, "reproduce", lambda given, _: flags.extend(given) or 0):
        assert reproduce.main([cell, *short]) == 0
    given = train_cifar.options.given_flags(train_cifar.new_parser().parse_args(flags))
    settings = {"r", "noise_mode", "method", "id"}
    assert given.keys() - {"num_epochs", "lr_steps"} <= settings
    if short:
        assert (given["num_epochs"], given["lr_steps"]) == (100, ((50, 0.1),))
    else:
        assert "num_epochs" not in given


@pytest.mark.parametrize("method", ["smr", "dividemix", "ce"])
def test_the_small_protocol_is_one_for_every_method_but_for_what_a_method_has_not(method):
    kept = []
    with mock.patch.object(reproduce, "reproduce", lambda *given: kept.extend(given) or 0):
        assert reproduce.main(["sym50", "--small", "--method", method, "--seed", "3"]) == 0
    flags, results = kept
    given = train_cifar.options.given_flags(train_cifar.new_parser().parse_args(flags))
    config = train_cifar.resolve(given, torch.device("cpu"))
    wanted = {
        "train_images": 5000, "width": 16, "batch_size": 64, "num_epochs": 60, "lr": 0.02,
        "lr_steps": ((40, 0.1),), "r": 0.5, "lambda_u": 25.0, "seed": 3, "id": "small",
    }  # fmt: skip
    assert {name: config[name] for name in wanted} == wanted
    own = {"smr": (10, 15), "dividemix": (10, 0), "ce": (0, 0)}
    assert (config["warm_up"], config["recalibrate_every"]) == own[method]
    assert results.name == "small"


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.slow
def test_parity_puts_float32_and_the_fast_setting_side_by_side(tmp_path, capsys):
    fast = {"fast": ["--amp", "bf16", "--compile", "on"]}
    uncompiled = mock.patch("torch.compile", partial(torch.compile, backend="eager"))
    with mock.patch.dict(reproduce.PRECISIONS, fast), uncompiled:
        flags = [*tiny_flags(tmp_path), "--results", str(tmp_path / "results")]
        assert reproduce.main(["parity", *flags]) == 0
    rows = (tmp_path / "results" / "parity" / "table.md").read_text().splitlines()
    assert rows[0] == "| epoch | figure | float32 | fast |"
    cells = [row.strip("| ").split(" | ") for row in rows[2:]]
    losses = [list(map(float, row[2:])) for row in cells if row[1] == "train/net1/loss"]
    assert [row[0] for row in cells if row[1] == "test/accuracy"] == ["0", "1", "2"]
    # Same seed: the first epoch differs by bf16's rounding, and differs.
    assert losses[0][0] != losses[0][1]
    assert losses[0][0] == pytest.approx(losses[0][1], rel=0.05)

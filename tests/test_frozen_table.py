"""benchmarks/frozen_table.py: the table, the comparisons and the picture of the frozen rows."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import frozen_table
import label_errors
from reproduce import RESULTS

DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"


def line(cell: str, method: str, seed: int, **figures) -> dict:
    """A line of frozen.jsonl."""
    return {"cell": cell, "method": method, "seed": seed, "best": 80.0, "last": 79.0} | figures


def test_the_committed_lines_give_the_committed_tables_and_picture():
    groups = frozen_table.grouped(label_errors.read_rows(RESULTS / "frozen.jsonl"))
    text = DOCUMENT.read_text(encoding="utf-8")
    assert frozen_table.table(groups) in text
    assert frozen_table.comparisons(groups) in text
    with Image.open(RESULTS / "frozen.png") as file:
        committed, drawn = np.asarray(file.convert("RGB")), np.asarray(frozen_table.draw(groups))
    assert committed.shape == drawn.shape
    # Within the axes: a system's font draws the text around them.
    for top in (frozen_table.TOP, frozen_table.TOP + frozen_table.HEIGHT + frozen_table.BELOW):
        within = np.s_[top // 2 : (top + frozen_table.HEIGHT) // 2, frozen_table.LEFT // 2 :]
        different = np.abs(committed[within].astype(int) - drawn[within]).max(axis=2) > 40
        assert different.mean() < 0.0002  # a dot that moves changes 0.0003


def test_a_row_of_the_table_is_the_mean_and_deviation_over_seeds():
    lines = [line("worst", "smr", seed, ap=ap) for seed, ap in ((1, 0.9), (2, 0.8), (3, 0.7))]
    lines.append(line("sym20", "cleanlab, C = 1", 1, ap=0.5, best=None))
    table = frozen_table.table(frozen_table.grouped(lines)).splitlines()
    first, second = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table[2:])
    assert first[:4] == ["sym20", "cleanlab, C = 1", "1", "–"]
    assert second[:4] == ["worst", "smr", "3", "80.00 ± 0.00"]
    assert second[6] == "0.800 ± 0.100"


def test_a_comparison_pairs_noise_and_seed():
    """Differences of smr and ce: 1 and 3 at sym20, -4 at worst; seed 2 of worst has no partner."""
    lines = [
        *(line("sym20", "smr", 1, last=71), line("sym20", "smr", 2, last=75)),
        *(line("sym20", "ce", 1, last=70), line("sym20", "ce", 2, last=72)),
        *(line("worst", "smr", 1, last=60), line("worst", "ce", 1, last=64)),
        line("worst", "smr", 2, last=99),
    ]
    table = frozen_table.comparisons(frozen_table.grouped(lines)).splitlines()
    # Means of the noises: 2 and -4. Their mean is -1, their standard deviation √18.
    assert "| smr – ce | last % | -1.00 ± 3.00 | 1 of 2 | 2 of 3 |" in table


def test_the_picture_has_a_dot_for_each_run(tmp_path):
    lines = [
        line("worst", "smr", 1, ap=0.8, last=60),
        line("sym20", "dividemix", 1, ap=0.6, last=90),
    ]
    results = tmp_path / "frozen.jsonl"
    results.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert frozen_table.main(["--results", str(results)]) == 0
    pixels = np.asarray(Image.open(tmp_path / "frozen.png").convert("RGB")).astype(int)
    top, height = frozen_table.TOP // 2, frozen_table.HEIGHT // 2
    places = {}
    for method in ("smr", "dividemix"):
        color = frozen_table.METHODS[method]
        rows, columns = np.where(np.abs(pixels[top : top + height] - color).max(axis=2) < 30)
        places[method] = rows.mean() / height, columns.mean() / pixels.shape[1]
    # sym20 is on the left with the higher accuracy: the scale is from 60 to 90.
    assert places["dividemix"][1] < 0.5 < places["smr"][1]
    assert places["dividemix"][0] < 0.2 and places["smr"][0] == pytest.approx(1, abs=0.1)

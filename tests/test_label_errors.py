"""benchmarks/label_errors.py: rows of every way, and the table of docs/labels.md."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import write_photos

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import label_errors

from PreResNet import ResNet18

DOCUMENT = Path(__file__).parents[1] / "docs" / "labels.md"


def test_the_committed_records_give_the_committed_table():
    rows = label_errors.read_rows(label_errors.RESULTS)
    assert label_errors.table(rows).strip() in DOCUMENT.read_text(encoding="utf-8")


def test_figures_are_of_the_ranking_and_the_rule():
    quality, issue = np.arange(200) / 200, np.arange(200) < 50
    found = label_errors.figures(issue, quality, np.arange(200) < 25)
    assert (found["ap"], found["p100"], found["f1"]) == (1.0, 0.5, pytest.approx(2 / 3))
    assert label_errors.figures(issue, -quality, issue)["ap"] < 0.25


def test_votes_are_the_share_of_the_label_among_the_nearest():
    x = torch.cat([torch.eye(2)[[0]].repeat(30, 1), torch.eye(2)[[1]].repeat(30, 1)])
    labels = np.repeat([0, 1], 30)
    labels[3] = 1
    _, quality, chosen = label_errors.votes(x, labels)
    assert quality.argmin() == 3 and quality[3] == 0
    assert chosen.tolist() == [i == 3 for i in range(60)]


def renamed(root: Path, turn: int) -> Path:
    """A folder of three classes with the true class in each name; `turn` photos in a wrong one."""
    names = ["a", "b", "c"]
    write_photos(root, dict.fromkeys(names, 7))
    write_photos(root, dict.fromkeys(names, 2), "testing")
    for k, name in enumerate(names):
        for i in range(7):
            folder = names[(k + 1) % 3] if i < turn else name
            target = root / "training" / folder / f"{100 * k + i}_{name}.png"
            (root / "training" / name / f"{i}.png").rename(target)
    return root


def test_folders_of_the_same_photos_share_features_and_give_a_row_a_way(tmp_path, monkeypatch):
    pytest.importorskip("cleanlab")
    pytest.importorskip("datasets")
    monkeypatch.setattr(label_errors, "GRID", (1.0,))
    torch.save(ResNet18(3).state_dict(), tmp_path / "weights.pt")
    folders = [renamed(tmp_path / f"photos_{name}", n) for name, n in (("few", 1), ("many", 2))]
    flags = ["--network", "preact_resnet18", "--weights", str(tmp_path / "weights.pt")]
    flags += ["--image_size", "32", "--seeds", "1", "--features", str(tmp_path / "features")]
    results = tmp_path / "rows.jsonl"
    assert label_errors.main([*map(str, folders), *flags, "--results", str(results)]) == 0
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["noise"] for row in rows] == ["few"] * 8 + ["many"] * 8
    assert {row["noise_rate"] for row in rows} == {round(1 / 7, 4), round(2 / 7, 4)}
    assert len(list((tmp_path / "features").glob("*.npy"))) == 4
    (folders[1] / "training" / "a" / "0_a.png").unlink(missing_ok=True)
    (folders[1] / "training" / "b" / "0_a.png").unlink(missing_ok=True)
    with pytest.raises(SystemExit):
        label_errors.main([*map(str, folders), *flags, "--results", str(results)])

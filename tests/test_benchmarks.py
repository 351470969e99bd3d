"""benchmarks/plot_results.py: every curve where it belongs; the committed picture."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import plot_results

BLUE, VERMILION, BLACK = (plot_results.COLORS[method] for method in ("smr", "dividemix", "ce"))


def write_run(folder: Path, method: str, seed: int, accuracies, split=None, noise="sym") -> None:
    """A finished run's metrics; `split` gives each epoch's (precision, recall) or None."""
    run = folder / f"{noise}_{method}_{seed}"
    run.mkdir(parents=True)
    config = {"dataset": "cifar10", "noise_mode": noise, "r": 0.5, "method": method, "seed": seed}
    config |= {"num_epochs": len(accuracies) - 1, "noise_file": ""}
    config |= {"warmup_loss": "mixup" if method == "smr" else "ce"}
    config |= {"recalibrate_every": 15 if method == "smr" else 0}
    (run / "config.json").write_text(json.dumps(config))
    rows = []
    for epoch, accuracy in enumerate(accuracies):
        rows.append({"epoch": epoch, "test/accuracy": accuracy, "time/seconds": 1.0})
        for k in (1, 2) if split and split[epoch] else ():
            precision, recall = split[epoch]
            # The two networks differ: their mean is plotted.
            rows[-1][f"split/net{k}/precision"] = precision + (0.1 if k == 1 else -0.1)
            rows[-1][f"split/net{k}/recall"] = recall
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def panel(picture, row: int, column: int, columns: int) -> np.ndarray:
    """The pixels within a panel's axes, int [h, w, 3]."""
    for at_row, at_column, box in plot_results.boxes(columns):
        if (at_row, at_column) == (row, column):
            left, top, right, bottom = (edge // 2 for edge in box)
            return np.asarray(picture).astype(int)[top : bottom - 2, left + 3 : right - 3]
    raise AssertionError("no such panel")


def heights(pixels: np.ndarray, color, x: float, within: int = 40) -> np.ndarray:
    """The rows, from the panel's top, that have this color at the share x of its width."""
    column = pixels[:, int(x * (pixels.shape[1] - 1))]
    return np.flatnonzero(np.abs(column - color).max(axis=1) < within)


def level(pixels: np.ndarray, color, x: float) -> float:
    """Where a line lies: the share of the panel's height, from its bottom."""
    found = heights(pixels, color, x)
    assert len(found), "no such line"
    return 1 - found.mean() / len(pixels)


def test_the_line_is_the_mean_of_the_seeds_and_the_band_their_range(tmp_path):
    for seed, accuracy in enumerate((20.0, 20.0, 80.0)):
        write_run(tmp_path, "smr", seed, [accuracy] * 5)
    pixels = panel(plot_results.draw(plot_results.read_runs(tmp_path)), 0, 0, 1)
    # From 20 to 80 the panel is all band: the mean, 40, is at a third of it.
    assert level(pixels, BLUE, 0.5) == pytest.approx(1 / 3, abs=0.01)
    column = pixels[:, pixels.shape[1] // 2]
    tint = np.round(np.array(BLUE) * 60 / 255 + 255 * 195 / 255)
    banded = np.abs(column - tint).max(axis=1) < 30
    assert banded.mean() > 0.85 and banded[2] and banded[-4]


def test_methods_cells_and_epochs_are_in_their_places(tmp_path):
    rising = [0.0, 25.0, 50.0, 75.0, 100.0]
    write_run(tmp_path, "ce", 1, rising)
    write_run(tmp_path, "dividemix", 1, [20.0] * 5)
    write_run(tmp_path, "smr", 1, [60.0] * 5)
    write_run(tmp_path, "smr", 1, [80.0] * 5, noise="worst")
    write_run(tmp_path, "smr", 1, [40.0] * 5, noise="asym")
    runs = plot_results.read_runs(tmp_path)
    assert [noise for _, noise in runs] == ["sym 0.5", "asym 0.5", "human worst"]
    picture = plot_results.draw(runs)
    assert picture.width == 1200
    sym, asym, worst = (panel(picture, 0, column, 3) for column in range(3))
    for x in (0.1, 0.4, 0.9):
        assert level(sym, BLUE, x) == pytest.approx(0.6, abs=0.01)
        assert level(sym, VERMILION, x) == pytest.approx(0.2, abs=0.01)
        assert level(sym, BLACK, x) == pytest.approx(x, abs=0.02)
        assert level(asym, BLUE, x) == pytest.approx(0.4, abs=0.01)
        assert level(worst, BLUE, x) == pytest.approx(0.8, abs=0.01)
        assert not len(heights(asym, VERMILION, x)) and not len(heights(worst, BLACK, x))


def test_the_split_is_the_mean_of_both_networks_in_epochs_that_have_one(tmp_path):
    # Warm-up, three splits, a recalibration, a split.
    split = [None, None, (0.5, 0.9), (0.5, 0.9), (0.5, 0.9), None, (0.5, 0.9)]
    write_run(tmp_path, "smr", 1, [50.0] * 7, split)
    write_run(tmp_path, "dividemix", 1, [50.0] * 7, [(0.2, 0.7), *[(0.3, 0.8)] * 5, (0.6, 1.0)])
    write_run(tmp_path, "ce", 1, [50.0] * 7)
    picture = plot_results.draw(plot_results.read_runs(tmp_path))
    precision, recall = panel(picture, 1, 0, 1), panel(picture, 2, 0, 1)
    # Their scales are from 0.2 to 0.6 and from 0.7 to 1.
    assert level(precision, BLUE, 0.6) == pytest.approx(0.75, abs=0.02)
    assert level(precision, VERMILION, 0.6) == pytest.approx(0.25, abs=0.02)
    assert level(recall, BLUE, 0.6) == pytest.approx(2 / 3, abs=0.02)
    assert level(recall, VERMILION, 0.6) == pytest.approx(1 / 3, abs=0.02)
    for pixels in (precision, recall):
        assert not len(heights(pixels, BLUE, 0.25)) and len(heights(pixels, BLUE, 0.85))
        assert not len(heights(pixels, BLACK, 0.6))


def test_ticks_are_round_and_enclose_the_values():
    for low, high, expected in (
        (0, 60, [0, 10, 20, 30, 40, 50, 60]),
        (12.0, 47.3, [10, 20, 30, 40, 50]),
        (0.71, 0.93, [0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
        (50.0, 50.0, [50, 50.01]),
    ):
        assert plot_results.ticks(low, high, 8).tolist() == pytest.approx(expected)


def test_command_line_writes_a_png_of_the_methods_colors_or_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        plot_results.main(["--results", str(tmp_path)])
    assert refused.value.code == 2 and "no finished run" in capsys.readouterr().err
    write_run(tmp_path, "smr", 1, [10.0, 20.0])
    write_run(tmp_path, "ce", 1, [1.0, 1.0])
    assert plot_results.main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    colors = plot_results.colors_of(plot_results.read_runs(tmp_path))
    assert list(colors) == ["smr", "ce"] and colors["smr"] == BLUE
    assert len({*plot_results.COLORS.values(), *plot_results.OTHER_COLORS}) == 8


def test_the_committed_picture_shows_the_committed_runs():
    runs = plot_results.read_runs(plot_results.RESULTS)
    drawn = plot_results.draw(runs)
    with Image.open(plot_results.RESULTS / "curves.png") as file:
        kept = file.convert("RGB")
    assert kept.size == drawn.size
    for row, column, _ in plot_results.boxes(len(runs)):
        difference = panel(kept, row, column, len(runs)) - panel(drawn, row, column, len(runs))
        # A seed more in one line changes three per cent of its panel; Pillow's versions, little.
        assert (np.abs(difference).max(axis=2) > 40).mean() < 0.002, (row, column)

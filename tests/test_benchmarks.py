"""benchmarks/: what is compared computes the same; turns, ratios, ceilings; every table; curves."""

import argparse
import copy
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import generator, tiny_recipe
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import contenders
import pieces
import plain
import plot_results
import throughput

import smr
from PreResNet import ResNet18

TINY = ["--quick", "--device", "cpu", "--amp", "off", "--width", "2", "--batch_size", "4"]
TINY += ["--images", "16", "--rounds", "1"]


@pytest.fixture
def networks():
    return [ResNet18(10, 2) for _ in range(2)]


def views(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 4, 3, 32, 32, generator=generator()))


def test_plain_forward_pass_is_the_network_s(networks):
    network, images = networks[0], views(1)[0]
    assert torch.allclose(plain.forward(network, images), network(images), atol=1e-5)
    network.eval()
    assert torch.allclose(plain.forward(network, images), network(images), atol=1e-5)


def test_plain_steps_go_down_the_same_loss_as_ours(networks):
    (network, peer), (x1, x2, u1, u2) = networks, views(4)
    labels, w = torch.arange(4), torch.tensor([0.1, 0.5, 0.9, 1.0])
    settings = plain.new_optimizer(network).param_groups[0]
    assert (settings["lr"], settings["momentum"], settings["weight_decay"]) == (0.02, 0.9, 5e-4)

    four, eight = torch.randperm(4), torch.randperm(16)
    ours = smr.mixup_loss(copy.deepcopy(network), x1, labels, 0.7, four)
    same = copy.deepcopy(network)
    found = plain.warm_up_step(same, plain.new_optimizer(same), x1, labels, 0.7, four)
    assert found.item() == pytest.approx(ours.item(), rel=1e-5)
    assert not torch.equal(same.conv1.weight, network.conv1.weight)

    labeled, unlabeled = (x1, x2, labels, w), (u1, u2)
    recipe, same = tiny_recipe(lambda_u=25.0), copy.deepcopy(network)
    peer.eval()
    ours = smr.mixmatch_loss(network, peer, labeled, unlabeled, 0.7, eight, 40, recipe)
    found = plain.semi_supervised_step(
        same, peer, plain.new_optimizer(same), labeled, unlabeled, 0.7, eight, 25.0
    )
    assert found.item() == pytest.approx(ours.loss.item(), rel=1e-5)


def test_the_timed_steps_train_as_often_as_asked_and_score_as_plain_does():
    args = throughput.parse(TINY)
    ours, theirs = contenders.our_steps(args, compiled=False), contenders.plain_steps(args)
    scores = ours["scoring"](3).losses
    assert torch.allclose(scores.sort()[0], torch.cat(theirs["scoring"](3)).sort()[0], atol=1e-4)
    assert ours["warm-up"](3)["images"] == 3 * 2 * 4
    assert ours["semi-supervised"](2)["images"] == 2 * 4 * 4
    assert len(theirs["warm-up"](3)) == 3 and len(theirs["semi-supervised"](2)) == 2


def test_plain_multiplies_in_whole_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    contenders.plain_steps(throughput.parse(TINY))
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize(
    ("device", "order"),
    [
        ("cuda", ["wait", 1, "wait", 20, "wait", 20, "wait"]),
        ("cpu", [1, 1]),
    ],
)
def test_a_card_is_waited_for_once_in_twenty_steps(monkeypatch, device, order):
    done, now = [], [0.0]

    def run(steps: int) -> None:
        done.append(steps)
        now[0] += 0.5 * steps

    monkeypatch.setattr(contenders, "plain_steps", lambda _: {"scoring": run})
    monkeypatch.setattr(contenders.devices, "peak_memory", lambda _: {"memory/host_gib": 1.0})
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: done.append("wait"))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    args = argparse.Namespace(device=torch.device(device), cpu_time=False, profile=False)
    turn = contenders.time_steps("plain", args)
    assert turn == {"scoring": {"first": 0.5, "seconds": 0.5}, "memory": {"memory/host_gib": 1.0}}
    assert done == order


def test_costliest_names_five_operations_the_largest_first():
    a = torch.randn(500, 500)

    def step() -> None:
        for _ in range(10):
            (a @ a).sum().sqrt().exp().neg()

    names, shares = zip(*contenders.costliest(step, a.device), strict=True)
    assert names[0] == "aten::mm" and len(names) == 5
    assert list(shares) == sorted(shares, reverse=True) and 50 < sum(shares) <= 100.01


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_ceilings_are_work_a_second_and_bf16_s_only_where_it_is_used(monkeypatch, amp):
    monkeypatch.setattr(contenders.Clock, "seconds", lambda self, call: 0.5)
    args = throughput.parse([*TINY, "--amp", amp])
    rates = pieces.ceilings(args)
    assert rates.pop("memory") == 2 * 4 * 2**26 / 0.5
    types = ["float32"] + ["bf16"] * (amp == "bf16")
    assert rates == dict.fromkeys(types, 2 * 2048**3 / 0.5)


def test_a_forward_pass_is_1_11_gflop():
    assert throughput.image_flops(64) / 1e9 == pytest.approx(1.11, abs=0.005)


def made_up_turns() -> dict[str, list[dict]]:
    """Three turns of two contenders: pairs' ratios of 0.5, 0.25 and 0.4."""
    found = {}
    for name, turns in {"plain": [2.0, 4.0, 10.0], "ours, eager": [1.0, 1.0, 4.0]}.items():
        found[name] = [
            {step: {"first": 3 * s, "seconds": s} for step in throughput.STEPS}
            | {"memory": {"memory/host_gib": s}}
            for s in turns
        ]
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_steps_table_holds_ratios_of_pairs_and_each_contender_s_ceiling(capsys, monkeypatch):
    monkeypatch.setattr(throughput, "image_flops", lambda width: 1e9)
    args = argparse.Namespace(batch_size=10, width=64, amp=True, profile=False)
    throughput.show_steps(made_up_turns(), args, {"float32": 1e10, "bf16": 1e11})
    shown = capsys.readouterr().out
    rows = {cells(line)[0]: cells(line)[1:] for line in shown.splitlines() if line[:1] == "|"}
    assert rows["scoring, plain"] == ["2.0000", "1.00", "5", "50 % of float32", "6.00"]
    # 4 views of 10 images in a second; 18 passes over 10 images at a bf16 rate of 100 images.
    assert rows["semi-supervised, ours, eager"] == ["1.0000", "0.40", "40", "180 % of bf16", "3.00"]
    assert rows["warm-up, ours, eager"][3] == "60 % of bf16"
    assert "plain: most memory held: 2.00 GiB on the host" in shown


def test_contenders_take_turns(monkeypatch, capsys):
    order = []

    def measured(part: str, argv: list[str]) -> dict:
        order.append(part)
        if part == "ceilings":
            return {"float32": 1e10, "memory": 1e9}
        return made_up_turns()[part][len(order) // 3]

    monkeypatch.setattr(throughput, "measured", measured)
    assert throughput.main([*TINY, "--only", "steps", "--rounds", "2"]) == 0
    assert order == ["ceilings", *["plain", "ours, eager"] * 2]
    assert "matrix product 10 GFLOP/s in float32; memory 1 GB/s" in capsys.readouterr().out


def test_a_part_in_a_process_of_its_own_gives_its_figures():
    turn = throughput.measured("ours, eager", [*TINY, "--profile"])
    assert list(turn) == [*throughput.STEPS, "memory"]
    for step in throughput.STEPS:
        assert turn[step]["first"] > 0 and turn[step]["seconds"] > 0
        assert len(turn[step]["costliest"]) == 5
    assert 0.1 < turn["memory"]["memory/host_gib"] < 4


def test_a_part_that_fails_ends_all(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3))
    with pytest.raises(SystemExit, match="'data' ended with status 3"):
        throughput.measured("data", TINY)


def test_data_and_epoch_tables(monkeypatch, capsys):
    def measured(part: str, argv: list[str]) -> dict:
        found = {"float32": 1e10, "memory": 1e9}
        return found if part == "ceilings" else throughput.PARTS[part](throughput.parse(argv))

    monkeypatch.setattr(throughput, "measured", measured)
    monkeypatch.setattr(throughput, "show_steps", lambda *_: None)
    assert throughput.main([*TINY, "--only", "data"]) == 0
    assert throughput.main([*TINY, "--only", "epoch"]) == 0
    shown = capsys.readouterr().out
    rows = {cells(line)[0]: cells(line)[1:] for line in shown.splitlines() if line[:1] == "|"}
    assert rows["PIL, DataLoader"][1] == "1.0" and float(rows["ours"][1]) > 2
    stages = ("scoring both networks", "fitting both mixtures", "training both networks", "test")
    seconds = {name: float(rows[name][0]) for name in (*stages, "whole epoch")}
    assert sum(seconds[name] for name in stages) == pytest.approx(seconds["whole epoch"], abs=0.003)
    assert rows["whole epoch"][1] == "100.0 %"
    assert float(rows["the views, within training"][0]) < seconds["training both networks"]
    assert re.search(r"mixture fitted to 50,000 losses: \d+\.\d", shown)
    assert "most memory held" in shown


# The picture of the small protocol's results.

BLUE, VERMILION, BLACK = (plot_results.COLORS[method] for method in ("smr", "dividemix", "ce"))


def write_run(folder: Path, method: str, seed: int, accuracies, split=None, noise="sym") -> None:
    """A finished run's records; `split` gives each epoch's (precision, recall) or None."""
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
            # The two networks differ: their mean is drawn.
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


def test_methods_cells_and_epochs_stand_in_their_places(tmp_path):
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


def test_the_split_is_the_mean_of_both_networks_where_there_was_one(tmp_path):
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


def test_ticks_are_round_and_hold_the_figures():
    assert plot_results.ticks(0, 60, 8).tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert plot_results.ticks(12.0, 47.3, 8).tolist() == [10, 20, 30, 40, 50]
    found = plot_results.ticks(0.71, 0.93, 8).tolist()
    assert found == pytest.approx([0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    assert plot_results.ticks(50.0, 50.0, 8).tolist() == pytest.approx([50, 50.01])


def test_colors_are_the_methods_own_and_no_two_the_same(tmp_path):
    write_run(tmp_path, "smr", 1, [1.0] * 2)
    write_run(tmp_path, "ce", 1, [1.0] * 2)
    colors = plot_results.colors_of(plot_results.read_runs(tmp_path))
    assert list(colors) == ["smr", "ce"] and colors["smr"] == BLUE
    assert len({*plot_results.COLORS.values(), *plot_results.OTHER_COLORS}) == 8


def test_command_line_writes_a_png_or_says_what_is_lacking(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        plot_results.main(["--results", str(tmp_path)])
    assert refused.value.code == 2 and "no finished run" in capsys.readouterr().err
    write_run(tmp_path, "smr", 1, [10.0, 20.0])
    assert plot_results.main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_kept_picture_shows_the_kept_runs():
    runs = plot_results.read_runs(plot_results.RESULTS)
    drawn = plot_results.draw(runs)
    with Image.open(plot_results.RESULTS / "curves.png") as file:
        kept = file.convert("RGB")
    assert kept.size == drawn.size
    for row, column, _ in plot_results.boxes(len(runs)):
        difference = panel(kept, row, column, len(runs)) - panel(drawn, row, column, len(runs))
        # A seed more in one line changes three per cent of its panel; Pillow's versions, little.
        assert (np.abs(difference).max(axis=2) > 40).mean() < 0.002, (row, column)

"""benchmarks/label_errors.py: its measures, its folds, a cell from data to table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, tiny_recipe, write_cifar
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import label_errors

from dataloader_cifar import cifar_dataloader
from smr.label_issues.scores import LabelIssues

TINY = ["--cells", "sym50", "--seeds", "1", "--width", "2", "--num_epochs", "1", "--warm_up", "1"]
TINY += ["--train_images", "200", "--batch_size", "32", "--device", "cpu"]


def test_a_margin_is_the_labels_value_above_the_best_other():
    values = torch.tensor([[1.0, 4.0, 3.0], [1.0, 4.0, 3.0]])
    assert label_errors.margin_of(values, torch.tensor([1, 0])).tolist() == [1.0, -3.0]


def test_scores_of_five_folds_are_cleanlabs():
    # cleanlab 2.9's get_label_quality_scores gives 0.75, 0.25, 0.6 (normalized_margin, which is
    # half of one plus the margin) and 0.7, 0.2, 0.5 (self_confidence) here.
    unseen = np.array([[0.7, 0.1, 0.2], [0.7, 0.2, 0.1], [0.5, 0.2, 0.3]])
    margin, confidence = label_errors.cross_validated(unseen, np.array([0, 1, 0])).values()
    assert (1 - margin) / 2 == pytest.approx([0.75, 0.25, 0.6])
    assert -confidence == pytest.approx([0.7, 0.2, 0.5])


def test_every_measure_is_larger_and_every_rule_true_for_the_label_that_is_wrong():
    probability = np.array([[0.9, 0.1], [0.9, 0.1]], np.float32)
    issues = LabelIssues(np.arange(2), np.array([0, 1]), probability, np.array([[0.8, 0.2]] * 2))
    aum, mean_share = np.array([2.0, -2.0]), np.array([0.9, 0.1])
    for name, score in label_errors.suspicions(issues, aum, mean_share).items():
        assert score[1] > score[0], name
    for name, chosen in label_errors.decisions(issues, aum).items():
        assert chosen.tolist() == [False, True], name


class Memory(nn.Module):
    """Gives each image that it was trained on class 0, any other class 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.known = set()

    def forward(self, images):
        keys = [tuple(image.flatten()[:300].tolist()) for image in images]
        if self.training:
            self.known.update(keys)
        new = torch.tensor([float(key not in self.known) for key in keys])
        return torch.stack([1 - new, new], dim=1) * 9 + self.weight


def test_out_of_sample_probabilities_are_by_networks_that_have_not_seen_the_image():
    loader = cifar_dataloader("digits", 0.5, "sym", 64, 0, "", None, seed=1)
    images = loader.train_images  # known again in training only where views are the images
    images.drawn = lambda rows, _, own: images.stored[rows[own]].flatten(2)
    loader.noisy_labels %= 2
    made, trained, n = [], [], len(loader.noisy_labels)

    def build():
        made.append(Memory())
        made[-1].register_forward_pre_hook(
            lambda network, args: trained.append(len(args[0])) if network.training else None
        )
        return made[-1]

    unseen = label_errors.out_of_sample(loader, tiny_recipe(), build, passes=8 * n)
    assert (unseen.argmax(axis=1) == 1).all()
    assert len(made) == 5
    assert sum(trained) == pytest.approx(8 * n, rel=0.01)


def test_a_finished_cell_is_a_line_that_is_not_run_again_and_a_column_of_the_table(
    tmp_path, capsys
):
    data, results = write_cifar(tmp_path, train_images=200), tmp_path / "results" / "cells.jsonl"
    argv = [*TINY, "--data_path", str(data), "--results", str(results)]
    argv += ["--noise_file", "CIFAR-10_human.pt"]  # is there for human cells
    assert label_errors.main(argv) == 0
    (line,) = label_errors.read_lines(results)
    assert (line["cell"], line["seed"], line["settings"]["width"]) == ("sym50", 1, "2")
    assert 0.3 < line["wrong"] < 0.6 and len(line["average_precision"]) == 8
    assert str(tmp_path) not in json.dumps(line)
    capsys.readouterr()
    assert label_errors.main(argv) == 0
    assert capsys.readouterr().out == "sym50 seed 1: is there\n"
    assert len(label_errors.read_lines(results)) == 1
    assert label_errors.main(["--table", "--results", str(results)]) == 0
    table = capsys.readouterr().out
    assert f"sym50, {100 * line['wrong']:.1f} % wrong (seeds 1)" in table
    assert (
        f"| area under the margin | {line['average_precision']['area under the margin']:.3f} |"
        in (table)
    )


def test_the_table_has_means_and_deviations_over_seeds_for_each_settings():
    def line(seed, figure, images):
        return {
            "cell": "worst",
            "seed": seed,
            "settings": {"train_images": images},
            "wrong": 0.4,
            "average_precision": {"a": figure},
            "looks_wrong": {"b": [figure, 0.5, 0.25]},
        }

    text = label_errors.tables([line(1, 0.5, "9"), line(2, 0.7, "9"), line(1, 0.1, "5")])
    assert "| a | 0.600 ± 0.141 |" in text and "| a | 0.100 |" in text
    assert "| b | 0.600 ± 0.141 / 0.500 ± 0.000 / 0.250 ± 0.000 |" in text
    assert text.count("worst, 40.0 % wrong (seeds 1, 2)") == 2


def test_an_unknown_cell_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        label_errors.main(["--cells", "sym55"])
    assert stopped.value.code == 2
    assert "invalid choice: 'sym55'" in capsys.readouterr().err


def test_labels_md_shows_the_table_of_the_kept_cells():
    text = label_errors.tables(label_errors.read_lines(label_errors.RESULTS))
    _, precision, rules = text.strip().split("\n\n")
    shown = (REPOSITORY / "docs" / "labels.md").read_text(encoding="utf-8")
    assert precision in shown and precision.count("\n") == 9  # a head and eight measures
    some = [line for line in rules.splitlines() if line.startswith("| another class")]
    assert len(some) == 4 and "\n".join(some) in shown

"""benchmarks/throughput.py: what it compares with computes the same; it prints every row."""

import copy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import generator, tiny_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import plain
import throughput

import smr
from PreResNet import ResNet18


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
    step = partial(plain.new_optimiser, copy.deepcopy(network))().param_groups[0]
    assert (step["lr"], step["momentum"], step["weight_decay"]) == (0.02, 0.9, 5e-4)

    four, eight = torch.randperm(4), torch.randperm(16)
    ours = smr.mixup_loss(copy.deepcopy(network), x1, labels, 0.7, four)
    same = copy.deepcopy(network)
    found = plain.warm_up_step(same, plain.new_optimiser(same), x1, labels, 0.7, four)
    assert found == pytest.approx(ours.item(), rel=1e-5)

    labelled, unlabelled = (x1, x2, labels, w), (u1, u2)
    recipe, same = tiny_recipe(lambda_u=25.0), copy.deepcopy(network)
    peer.eval()
    ours = smr.mixmatch_loss(network, peer, labelled, unlabelled, 0.7, eight, 40, recipe)
    found = plain.semi_supervised_step(
        same, peer, plain.new_optimiser(same), labelled, unlabelled, 0.7, eight, 25.0
    )
    assert found == pytest.approx(ours.loss.item(), rel=1e-5)


def test_table_has_a_row_for_each_path_step_and_stage(capsys):
    tiny = ["--width", "2", "--batch_size", "4", "--images", "16", "--rounds", "1"]
    assert throughput.main(["--quick", "--device", "cpu", "--cpu_time", *tiny]) == 0
    shown = capsys.readouterr().out
    for row in (
        "torch ", "measured ceilings", "PIL, DataLoader", "scoring, plain", "scoring, ours, eager",
        "warm-up, ours, eager", "semi-supervised, ours, eager", "training both networks",
        "whole epoch", "most memory held", "mixture fitted to 50,000 losses",
    ):  # fmt: skip
        assert row in shown

"""Mixup, targets, training steps, and one network's epochs (docs/method.md, 3, 5 and 6)."""

import copy
from unittest import mock

import numpy as np
import pytest
import torch
from golden import OneBatch
from helpers import TinyNet, generator, state_copy, tiny_config, tiny_loader, tiny_pair
from torch.testing import assert_close

import smr
from smr.training import (
    learning_rate,
    mixup_weights,
)


def test_learning_rate_takes_the_last_step_reached():
    config = tiny_config(lr=0.01, lr_steps=((140, 0.01), (80, 0.1)))
    rates = [learning_rate(epoch, config) for epoch in (79, 80, 139, 140)]
    assert rates == pytest.approx([0.01, 0.001, 0.001, 0.0001])
    assert learning_rate(999, tiny_config(lr=0.3)) == 0.3


def test_optimizers_are_sgd_of_the_configuration_each_with_its_own_network():
    pair = tiny_pair(tiny_config(lr=0.3, weight_decay=0.07))
    expected = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.07, "nesterov": False}
    for network, optimizer in zip(pair.networks, pair.optimizers, strict=True):
        (group,) = optimizer.param_groups
        assert {key: group[key] for key in expected} == expected
        assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    assert not torch.equal(*(network.conv.weight for network in pair.networks))


# --- mixup ---


def test_mixup_weight_is_the_larger_part_of_a_beta_draw():
    weights = mixup_weights(4.0, 20_000)
    assert weights.min() >= 0.5
    # Of Beta(4, 4): E max(l, 1-l) = 0.5 + E|l - 0.5| = 0.5 + 35/256.
    assert weights.mean() == pytest.approx(0.5 + 35 / 256, abs=0.003)


def test_mix_pairs_each_image_with_the_permuted_one():
    mixed = smr.mix(torch.arange(3.0)[:, None], 0.75, torch.tensor([2, 0, 1]))
    assert_close(mixed, torch.tensor([[0.5], [0.75], [1.75]]))


# --- targets and the semi-supervised step ---


# --- the semi-supervised epoch ---


class Watched(TinyNet):
    """Records each forward pass: its network, its mode, whether gradients flow, its images."""

    def __init__(self, name: str, passes: list):
        super().__init__()
        self.name, self.passes = name, passes

    def forward(self, images):
        mode = "train" if self.training else "eval"
        self.passes.append((self.name, mode, torch.is_grad_enabled(), images.detach().clone()))
        return super().forward(images)


def one_step(rows_x: int = 4, rows_u: int = 3) -> tuple[OneBatch, OneBatch]:
    """The labeled and the unlabeled batch of one step."""
    source = generator()
    x1, x2 = (torch.randn(rows_x, 3, 8, 8, generator=source) for _ in range(2))
    u1, u2 = (torch.randn(rows_u, 3, 8, 8, generator=source) for _ in range(2))
    labels, probability = torch.arange(rows_x), torch.rand(rows_x, generator=source)
    return OneBatch(x1, x2, labels, probability), OneBatch(u1, u2)


def mixmatch_epoch(pair, labeled, unlabeled, epoch=20, config=None, **more):
    config = config or tiny_config()
    return smr.mixmatch_epoch(
        *pair.networks, pair.optimizers[0], labeled, unlabeled, epoch, config, **more
    )


def test_a_step_passes_u1_u2_x1_x2_and_the_mixed_batch_in_this_order():
    passes: list = []
    names = iter(("network", "peer"))
    pair = tiny_pair(tiny_config(), lambda: Watched(next(names), passes))
    peer_before = state_copy(pair.networks[1])
    labeled, unlabeled = one_step()
    mixmatch_epoch(pair, labeled, unlabeled)

    own = [(mode, grad, images) for name, mode, grad, images in passes if name == "network"]
    (x1, x2, *_), (u1, u2) = labeled.batch, unlabeled.batch
    assert [(mode, grad) for mode, grad, _ in own] == [("train", False)] * 4 + [("train", True)]
    for (_, _, images), expected in zip(own, (u1, u2, x1, x2), strict=False):
        assert torch.equal(images, expected)
    assert len(own[4][2]) == 14

    peers = [each for each in passes if each[0] == "peer"]
    assert {(mode, grad) for _, mode, grad, _ in peers} == {("eval", False)}
    assert_close(torch.cat([images for *_, images in peers]), torch.cat([u1, u2]))
    for name, tensor in pair.networks[1].state_dict().items():
        assert torch.equal(tensor, peer_before[name])
    assert pair.networks[0].bn.num_batches_tracked == 5


@pytest.mark.parametrize(("images", "ramp_steps"), [(20, 3), (16, 3), (7, 1)])
def test_the_ramp_counts_whole_batches_and_one(images, ramp_steps):
    """steps = |labeled| // B + 1, even if that is one more than there are."""
    config = tiny_config(warm_up=10)
    batches = tiny_loader(n=30).run("train", np.arange(30) < images, np.ones(30))
    figures = mixmatch_epoch(tiny_pair(config), *batches, epoch=18, config=config)
    steps = -(-images // 8)
    mean_fraction = sum(step / ramp_steps for step in range(steps)) / steps
    assert figures["lambda_u"] == pytest.approx(25 * (8 + mean_fraction) / 16)


class Counted:
    """Batches that count how many of them each iteration served."""

    def __init__(self, batches):
        self.batches, self.served = batches, []

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.served.append(0)
        for batch in self.batches:
            self.served[-1] += 1
            yield batch


@pytest.mark.parametrize(
    ("images", "steps", "served"), [(32, 4, [1] * 4), (9, 2, [2]), (3, 1, [1])]
)
def test_the_labeled_set_sets_the_steps_and_the_unlabeled_one_restarts(images, steps, served):
    labeled, unlabeled = tiny_loader(n=40).run("train", np.arange(40) < images, np.ones(40))
    unlabeled, shown = Counted(unlabeled), []
    mixmatch_epoch(
        tiny_pair(tiny_config()),
        labeled,
        unlabeled,
        progress=lambda step, of, meter: shown.append((step, of)),
    )
    assert shown == [(step + 1, steps) for step in range(steps)]
    assert unlabeled.served == served


def test_targets_are_compared_with_the_true_labels_if_these_are_known():
    config = tiny_config()
    pair = tiny_pair(config)
    labeled, unlabeled = one_step(rows_x=9, rows_u=8)
    network, peer = (copy.deepcopy(network) for network in pair.networks)
    network.train(), peer.eval()
    pseudo = smr.pseudo_labels(network, peer, *unlabeled.batch, config.T).argmax(dim=1)
    refined = smr.refined_labels(network, *labeled.batch, config.T).argmax(dim=1)
    # True labels such that six of nine refined and two of eight pseudo-labels are correct.
    true_x = torch.where(torch.arange(9) < 6, refined, (refined + 1) % 10)
    true_u = torch.where(torch.arange(8) < 2, pseudo, (pseudo + 1) % 10)
    figures = mixmatch_epoch(
        pair, OneBatch(*labeled.batch, true_x), OneBatch(*unlabeled.batch, true_u)
    )
    assert figures["refined_label_accuracy"] == pytest.approx(100 * 6 / 9)
    assert figures["pseudo_label_accuracy"] == 25
    assert figures["images"] == 34
    unknown = mixmatch_epoch(tiny_pair(config), labeled, unlabeled)
    assert unknown.keys() == figures.keys() - {"refined_label_accuracy", "pseudo_label_accuracy"}


# --- supervised epochs ---


@pytest.mark.parametrize("epoch", [smr.mixup_epoch, smr.cross_entropy_epoch])
def test_supervised_passes_are_in_train_mode_and_move_the_weights_each_step(epoch):
    passes: list = []
    pair = tiny_pair(tiny_config(), lambda: Watched("network", passes))
    (network, _), (optimizer, _) = pair.networks, pair.optimizers
    weights, shown = [], []

    def progress(step, steps, meter):
        shown.append((step, steps, meter.steps, meter.images))
        weights.append(network.conv.weight.detach().clone())

    batches = tiny_loader().run("warmup")
    figures = epoch(network.eval(), optimizer, batches, tiny_config(), progress)
    assert [(mode, grad) for _, mode, grad, _ in passes] == [("train", True)] * 3
    assert network.bn.num_batches_tracked == 3
    assert shown == [(1, 3, 1, 16), (2, 3, 2, 32), (3, 3, 3, 40)]
    assert not weights[0].equal(weights[1]) and not weights[1].equal(weights[2])
    assert figures.keys() == {"loss", "images", "seconds"}
    assert figures["images"] == 40


def test_a_warm_up_mixes_each_batch_with_itself_by_its_own_weight():
    passes: list = []
    pair = tiny_pair(tiny_config(), lambda: Watched("network", passes))
    batches = list(tiny_loader().run("warmup"))
    orders = [torch.randperm(len(images)) for images, *_ in batches]
    draws = mock.patch("numpy.random.beta", lambda a, b, steps: np.array([0.9, 0.2, 0.6]))
    with draws, mock.patch("torch.randperm", side_effect=orders):
        smr.mixup_epoch(pair.networks[0], pair.optimizers[0], batches, tiny_config())
    for step, weight in enumerate((0.9, 0.8, 0.6)):
        (images, *_), (*_, mixed) = batches[step], passes[step]
        assert_close(mixed, weight * images + (1 - weight) * images[orders[step]])

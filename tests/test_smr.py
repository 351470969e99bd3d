"""The method part by part: phases, learning rate, scoring, targets, steps, test (method 3 to 6)."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TinyNet, generator, state_copy, tiny_loader, tiny_pair, tiny_recipe
from sklearn import metrics
from torch import nn
from torch.testing import assert_close

import smr
from smr import method
from smr.data import loader as loaders
from smr.gmm_split import min_max_scale
from smr.steps import mixup_weights
from train_cifar import RECIPES


def epochs_of(kind: str, **recipe) -> list[int]:
    recipe = tiny_recipe(**recipe)
    return [e for e in range(recipe.num_epochs + 1) if smr.kind_of_epoch(e, recipe) == kind]


@pytest.mark.parametrize(
    ("num_epochs", "warm_up", "k", "recalibrations"),
    [
        (300, 10, 30, [29, 59, 89, 119, 149, 179, 209, 239, 269, 299]),  # CIFAR-10
        (300, 30, 30, [59, 89, 119, 149, 179, 209, 239, 269, 299]),  # CIFAR-100
        (200, 30, 15, [44, 59, 74, 89, 104, 119, 134, 149, 164, 179, 194]),  # Animal-10N
        (30, 14, 15, [29]),  # epoch 14 is the first after the warm-up: not yet
        (30, 2, 0, []),
    ],
)
def test_phases_are_those_of_the_published_table(num_epochs, warm_up, k, recalibrations):
    recipe = {"num_epochs": num_epochs, "warm_up": warm_up, "recalibrate_every": k}
    assert epochs_of(smr.WARM_UP, **recipe) == list(range(warm_up))
    assert epochs_of(smr.RECALIBRATION, **recipe) == recalibrations
    semi_supervised = epochs_of(smr.SEMI_SUPERVISED, **recipe)
    assert semi_supervised[-1] == num_epochs
    assert sorted({*range(warm_up), *recalibrations, *semi_supervised}) == list(
        range(num_epochs + 1)
    )


def test_plain_cross_entropy_has_no_other_phase():
    assert epochs_of(smr.CROSS_ENTROPY, method="ce", warm_up=2) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_learning_rate_of_cifar_falls_to_a_tenth_at_150(dataset):
    recipe = tiny_recipe(**{key: RECIPES[dataset][key] for key in ("lr", "lr_steps")})
    rates = [smr.learning_rate(epoch, recipe) for epoch in (0, 149, 150, 300)]
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002])


def test_learning_rate_takes_the_last_step_reached():
    recipe = tiny_recipe(lr=0.01, lr_steps=((140, 0.01), (80, 0.1)))
    rates = [smr.learning_rate(epoch, recipe) for epoch in (79, 80, 139, 140)]
    assert rates == pytest.approx([0.01, 0.001, 0.001, 0.0001])
    assert smr.learning_rate(999, tiny_recipe(lr=0.3)) == 0.3


def test_mixup_weight_is_the_larger_share_of_a_beta_draw():
    weights = mixup_weights(4.0, 20_000)
    assert weights.min() >= 0.5
    # Of Beta(4, 4): E max(l, 1-l) = 0.5 + E|l - 0.5| = 0.5 + 35/256.
    assert weights.mean() == pytest.approx(0.5 + 35 / 256, abs=0.003)


def test_mix_pairs_each_image_with_the_permuted_one():
    values = torch.arange(3.0)[:, None]
    found = smr.mix(values, 0.75, torch.tensor([2, 0, 1]))
    assert_close(found, torch.tensor([[0.5], [0.75], [1.75]]))


def test_sample_losses_stand_in_ascending_order_and_leave_the_network_as_it_was(monkeypatch):
    monkeypatch.setattr(loaders, "SCORING_BATCH", 8)
    loader, network = tiny_loader(n=23), TinyNet().train()
    before = state_copy(network)
    found = smr.sample_losses(network, loader.run("eval_train"))
    assert not network.training
    images = loader.normalize(loader.train_images.plain(torch.arange(23)))
    expected = F.cross_entropy(network(images), loader.noisy_labels, reduction="none").detach()
    assert found.index.tolist() == list(range(23))
    assert_close(found.losses, expected)
    assert not found.losses.requires_grad
    mixed_up = [list(loader.run("eval_train"))[k] for k in (2, 0, 1)]
    for sample, index in ((mixed_up, range(23)), (mixed_up[:2], [*range(8), *range(16, 23)])):
        scores = smr.sample_losses(network, sample)
        assert scores.index.tolist() == [*index]
        assert_close(scores.losses, expected[[*index]])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_scoring_gives_each_network_s_own_logits_of_each_batch_in_eval_mode(monkeypatch):
    monkeypatch.setattr(loaders, "SCORING_BATCH", 8)
    loader, networks = tiny_loader(n=11), [TinyNet(), TinyNet()]
    for network in networks:
        network.train()
    served = list(smr.score(networks, loader.run("eval_train")))
    assert [logits.shape for logits, *_ in served] == [(2, 8, 10), (2, 3, 10)]
    images = loader.normalize(loader.train_images.plain(torch.arange(11)))
    for k, network in enumerate(networks):
        assert not network.training
        assert_close(torch.cat([logits[k] for logits, *_ in served]), network(images).detach())
    assert torch.cat([labels for _, labels, _ in served]).equal(loader.noisy_labels)
    assert torch.cat([index for *_, index in served]).tolist() == list(range(11))


def test_scoring_in_bf16_is_rounded_and_given_as_float32():
    loader, network = tiny_loader(n=8), TinyNet()
    (exact, *_), (rounded, *_) = (
        next(iter(smr.score([network], loader.run("eval_train"), amp))) for amp in (False, True)
    )
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.05
    (both, _), (plain, _) = (
        smr.test([network] * 2, loader.run("test"), tiny_recipe(amp=amp)) for amp in (True, False)
    )
    assert both.keys() == plain.keys()
    losses = [smr.sample_losses(network, loader.run("eval_train"), amp) for amp in (True, False)]
    assert 0 < (losses[0].losses - losses[1].losses).abs().max() < 0.05


class Counting:
    """A loader that counts the passes asked of it, and gives each `eval_train` images anew."""

    def __init__(self, loader, *samples):
        self.loader, self.samples, self.calls = loader, list(samples), []

    def run(self, mode):
        self.calls.append(mode)
        index = torch.tensor(self.samples.pop(0))
        images = self.loader.normalize(self.loader.train_images.plain(index))
        return [(images, self.loader.noisy_labels[index], index)]


def test_each_network_is_divided_by_its_own_losses_of_a_pass_of_its_own():
    loader, recipe = tiny_loader(), tiny_recipe()
    samples = [7, 3, 12, 30, 21, 1, 39], [5, 2, 31, 8, 20]
    pair, counting = tiny_pair(recipe), Counting(loader, *samples)
    splits = smr.co_divide(pair, counting, recipe)
    assert counting.calls == ["eval_train", "eval_train"]
    for network, history, split, sample in zip(
        pair.networks, pair.histories, splits, samples, strict=True
    ):
        index = sorted(sample)
        scores = smr.sample_losses(network, loader.run("eval_train"))
        scaled = min_max_scale(scores.losses[index])
        assert split.index.tolist() == history[0].index.tolist() == index
        assert_close(history[0].losses, scaled)
        assert_close(torch.tensor(split.losses).float(), scaled)
        assert len(split.probability) == len(split.labeled) == len(index)


def test_both_networks_of_the_whole_set_have_splits_of_their_own():
    recipe = tiny_recipe()
    pair = tiny_pair(recipe)
    first, second = smr.co_divide(pair, tiny_loader(), recipe)
    assert first.index.tolist() == second.index.tolist() == list(range(40))
    assert not np.array_equal(first.losses, second.losses)


def test_the_second_network_is_scored_while_the_first_one_s_mixture_is_fitted(monkeypatch):
    recipe, both_at_work, fitted = tiny_recipe(), threading.Barrier(2, timeout=20), []
    pair, gmm_split = tiny_pair(recipe), method.gmm_split

    def meeting(history, recipe):
        if not fitted:
            both_at_work.wait()
        fitted.append(history)
        return gmm_split(history, recipe)

    monkeypatch.setattr(method, "gmm_split", meeting)
    pair.networks[1].register_forward_pre_hook(lambda *_: both_at_work.wait() and None)
    splits = smr.co_divide(pair, tiny_loader(), recipe)
    assert fitted == pair.histories
    for split, history in zip(splits, pair.histories, strict=True):
        alone = gmm_split(history, recipe)
        assert np.array_equal(split.probability, alone.probability)
        assert np.array_equal(split.labeled, alone.labeled)


class Fixed(nn.Module):
    """Gives these logits, an image's position in the set being its first pixel."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits))

    def forward(self, images):
        return self.logits[images[:, 0, 0, 0].long()]


def positions(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 3, 2, 2)


def test_guess_is_the_sharpened_mean_of_both_networks_on_both_views():
    own, others = (torch.randn(6, 4, generator=generator(seed)) for seed in (1, 2))
    first, second = positions(6)[:3], positions(6)[3:]
    found = smr.guess(Fixed(own), Fixed(others), first, second, T=0.5)
    mean = sum(
        logits.softmax(1)[rows] for logits in (own, others) for rows in (slice(3), slice(3, 6))
    )
    squared = (mean / 4) ** 2
    assert_close(found, squared / squared.sum(dim=1, keepdim=True))


def test_refined_label_weighs_the_given_one_by_its_probability():
    own, labels = torch.randn(6, 4, generator=generator()), torch.tensor([3, 0, 1])
    w = torch.tensor([1.0, 0.25, 0.0])
    found = smr.refine(Fixed(own), positions(6)[:3], positions(6)[3:], labels, w, T=0.5)
    p = (own.softmax(1)[:3] + own.softmax(1)[3:]) / 2
    squared = (w[:, None] * torch.eye(4)[labels] + (1 - w[:, None]) * p) ** 2
    assert_close(found, squared / squared.sum(dim=1, keepdim=True))
    assert_close(found[0], torch.eye(4)[3])


def a_step(labeled_rows_only: bool = False):
    """A semi-supervised step of 4 labeled and 3 unlabeled images with its inputs."""
    network, peer = TinyNet().train(), TinyNet().eval()
    x1, x2, u1, u2 = (torch.randn(n, 3, 8, 8, generator=generator(n)) for n in (4, 4, 3, 3))
    labeled = x1, x2, torch.tensor([1, 2, 3, 4]), torch.rand(4, generator=generator())
    permutation = torch.randperm(14, generator=generator(5))
    recipe = tiny_recipe(labeled_rows_only=labeled_rows_only, warm_up=10)
    inputs = network, peer, labeled, (u1, u2), 0.8, permutation, 18.0, recipe
    return smr.mixmatch_loss(*inputs), permutation


def test_step_s_loss_sums_its_parts_and_the_penalty_is_over_the_whole_mixed_batch():
    result, permutation = a_step()
    assert result.lambda_u == 12.5
    assert_close(result.loss, result.loss_x + 12.5 * result.loss_u + result.penalty)
    mean = result.logits.softmax(dim=1).mean(dim=0)
    assert len(result.logits) == 14
    assert_close(result.penalty, (0.1 * torch.log(0.1 / mean)).sum())
    rows = result.logits.log_softmax(dim=1)[:8] * result.mixed_targets[:8]
    assert_close(result.loss_x, -rows.sum(dim=1).mean())
    errors = (result.logits.softmax(dim=1)[8:] - result.mixed_targets[8:]) ** 2
    assert_close(result.loss_u, errors.mean())
    targets = torch.cat([result.targets_x] * 2 + [result.targets_u] * 2)
    assert_close(result.mixed_targets, 0.8 * targets + 0.2 * targets[permutation])


def test_gradients_flow_through_the_mixed_pass_alone():
    result, _ = a_step()
    assert result.logits.requires_grad
    for targets in (result.targets_x, result.targets_u, result.mixed_targets):
        assert not targets.requires_grad


def test_labeled_rows_alone_still_mix_with_the_unlabeled():
    result, permutation = a_step(labeled_rows_only=True)
    assert len(result.logits) == len(result.mixed_targets) == 8
    targets = torch.cat([result.targets_x] * 2 + [result.targets_u] * 2)
    expected = 0.8 * targets[:8] + 0.2 * targets[permutation][:8]
    assert (permutation[:8] >= 8).any()
    assert_close(result.mixed_targets, expected)
    assert result.loss_u == 0
    mean = result.logits.softmax(dim=1).mean(dim=0)
    assert_close(result.penalty, (0.1 * torch.log(0.1 / mean)).sum())


def two_networks_logits(n: int, classes: int) -> tuple[list[torch.Tensor], torch.Tensor, list]:
    """Each network's logits [n, classes], the labels, and batches that `Fixed` networks take."""
    logits = [torch.randn(n, classes, generator=generator(seed)) for seed in (1, 2)]
    for own in logits:
        own[:, 3] = -9  # a class that is never predicted
    labels = torch.randint(classes, (n,), generator=generator(3))
    batches = [
        (images, y, None)
        for images, y in zip(positions(n).split(32), labels.split(32), strict=True)
    ]
    return logits, labels, batches


def test_metrics_are_scikit_learn_s_of_the_added_logits():
    logits, labels, batches = two_networks_logits(n=90, classes=5)
    found, confusion = smr.test([Fixed(own) for own in logits], batches, tiny_recipe())
    both = (logits[0] + logits[1]).argmax(dim=1)
    macro = {"average": "macro", "zero_division": 0}
    expected = {
        "accuracy": metrics.accuracy_score(labels, both),
        "precision": metrics.precision_score(labels, both, **macro),
        "recall": metrics.recall_score(labels, both, **macro),
        "f1": metrics.f1_score(labels, both, **macro),
        "net1/accuracy": metrics.accuracy_score(labels, logits[0].argmax(dim=1)),
        "net2/accuracy": metrics.accuracy_score(labels, logits[1].argmax(dim=1)),
    }
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()})
    assert len({found["accuracy"], found["net1/accuracy"], found["net2/accuracy"]}) == 3
    assert (confusion == metrics.confusion_matrix(labels, both)).all()


def test_top5_is_scikit_learn_s_of_the_added_logits_and_there_only_where_asked():
    logits, labels, batches = two_networks_logits(n=90, classes=12)
    found, _ = smr.test([Fixed(own) for own in logits], batches, tiny_recipe(top5=True))
    both = (logits[0] + logits[1]).numpy()
    share = metrics.top_k_accuracy_score(labels, both, k=5, labels=range(12))
    assert found["top5"] == pytest.approx(100 * share)
    assert found["accuracy"] < found["top5"] < 100

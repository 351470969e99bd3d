"""ELR (Liu et al., NeurIPS 2020): its targets, its regularizer, its state, and what it is for."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import OneBatch
from helpers import Spy, TinyNet, generator, tiny_config, tiny_loader, tiny_pair, train
from runs import assert_same_run
from sklearn.datasets import load_digits
from torch import nn
from torch.testing import assert_close

import smr
import train_cifar
from smr.methods.elr import update_targets


def test_targets_are_running_means_of_normalized_predictions():
    targets = torch.tensor([[0.6, 0.4], [0.0, 0.0]])
    probabilities = torch.tensor([[0.2, 0.8], [0.3, 0.9]])  # the second row sums to 1.2
    updated = update_targets(targets, probabilities, beta=0.75)
    assert_close(updated, torch.tensor([[0.5, 0.5], [0.0625, 0.1875]]))


class Served(Spy):
    """A loader whose every epoch is this one batch."""

    def __init__(self, loader, *batch):
        super().__init__(loader)
        self.batch = batch

    def run(self, mode, *arguments, **options):
        return OneBatch(*self.batch)


def test_an_epoch_is_cross_entropy_plus_the_weighted_regularizer():
    """Image i of the batch is at position index[i]; other positions keep their targets."""
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    index = torch.tensor([7, 2, 5, 11])
    config = tiny_config(method="elr", elr_lambda=2.0, elr_beta=0.6)
    pair = tiny_pair(config)
    method = smr.new_method(config, pair, Served(tiny_loader(n=12), images, labels, index))
    for epoch in (0, 1):
        logits = copy.deepcopy(pair.networks[0]).train()(images).detach()
        before = method.state_dict()["targets"][0].clone()
        metrics = method.train_epoch(epoch).metrics
        p = logits.softmax(dim=1)
        after = before.clone()
        after[index] = 0.6 * before[index] + 0.4 * p
        assert_close(method.state_dict()["targets"][0], after, atol=1e-3, rtol=1e-3)
        inner = (after[index] * p).sum(dim=1)
        expected = F.cross_entropy(logits, labels) + 2 * torch.log(1 - inner).mean()
        assert metrics["train/net1/loss"] == pytest.approx(expected.item(), rel=1e-3)
    assert not after[[0, 1, 3, 4, 6, 8, 9, 10]].any()


def test_predictions_that_are_certain_have_a_finite_loss():
    class Certain(TinyNet):
        def forward(self, images):
            return 1e4 * super().forward(images)

    config = tiny_config(method="elr", num_epochs=4, lr=1e-6)
    results = list(train(tiny_pair(config, Certain), tiny_loader(), config))
    assert all(np.isfinite(r.metrics["train/net1/loss"]) for r in results)


def test_each_network_has_its_own_targets_and_trains_by_itself():
    config = tiny_config(method="elr", num_epochs=1)
    method = smr.new_method(config, tiny_pair(config), tiny_loader())
    result = [method.train_epoch(epoch) for epoch in range(2)][-1]
    first, second = method.state_dict()["targets"]
    assert first.shape == second.shape == (40, 10)
    assert (first.sum(dim=1) > 0.5).all() and not torch.equal(first, second)
    assert result.splits == () and not [name for name in result.metrics if "split" in name]


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    flags = "--dataset digits --method elr --train_images 100 --width 2 --batch_size 32 --review 0"
    for name, last, *more in (("whole", 2), ("parts", 1), ("parts", 2, "--resume")):
        argv = [*flags.split(), "--num_epochs", str(last), "--output", str(tmp_path / name), *more]
        assert train_cifar.main(argv) == 0
    whole, parts = (tmp_path / name / "digits_0.5_sym_elr_seed123" for name in ("whole", "parts"))
    assert_same_run(parts, whole)


def test_elr_memorizes_fewer_noisy_labels_than_plain_cross_entropy():
    """500 digits with 50 % symmetric noise, and a network that can memorize them."""
    digits, draw = load_digits(), generator(3)
    images = torch.from_numpy(digits.images[:500]).float()[:, None] / 8 - 1
    clean = torch.from_numpy(digits.target[:500])
    others = torch.randint(10, (500,), generator=draw)
    noisy = torch.where(torch.rand(500, generator=draw) < 0.5, others, clean)
    is_noisy = noisy != clean

    class Digits(Spy):
        noisy_labels = noisy

        def run(self, mode, *arguments, **options):
            order = torch.randperm(500, generator=draw).split(50)
            return [(images[rows], noisy[rows], rows) for rows in order]

    def predicted_as(method: str) -> tuple[float, float]:
        """The fraction of noisy labels that network 1 predicts, and of their true labels."""
        torch.manual_seed(0)
        config = tiny_config(method=method, num_epochs=79, lr=0.05, weight_decay=0.0)

        def network() -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

        pair = tiny_pair(config, network)
        list(train(pair, Digits(tiny_loader()), config))
        predicted = pair.networks[0](images)[is_noisy].argmax(dim=1)
        return tuple(
            (predicted == labels[is_noisy]).float().mean().item() for labels in (noisy, clean)
        )

    (ce_noisy, ce_clean), (elr_noisy, elr_clean) = predicted_as("ce"), predicted_as("elr")
    print(ce_noisy, ce_clean, elr_noisy, elr_clean)
    assert ce_noisy > 0.9
    assert elr_noisy < 0.5 * ce_noisy
    assert elr_clean > ce_clean + 0.4

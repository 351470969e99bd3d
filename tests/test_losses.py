"""The losses against their formulas, written out by hand (method 3, 5 and 6)."""

import math

import pytest
import torch
from torch.testing import assert_close

from losses import (
    NegEntropy,
    SemiLoss,
    linear_rampup,
    mixup_criterion,
    sharpen,
    soft_cross_entropy,
    uniform_prior_penalty,
)

# Softmax of log p is p, so these logits have these probabilities.
PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
LOGITS = PROBABILITIES.log() + torch.tensor([[5.0], [-3.0]])


def test_mixup_criterion_weighs_the_two_cross_entropies():
    found = mixup_criterion(LOGITS, torch.tensor([0, 1]), torch.tensor([2, 2]), 0.75)
    first = -(math.log(0.7) + math.log(0.3)) / 2
    second = -(math.log(0.1) + math.log(0.6)) / 2
    assert found.item() == pytest.approx(0.75 * first + 0.25 * second)


def test_soft_cross_entropy_is_the_mean_over_rows():
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    expected = -(0.5 * math.log(0.7) + 0.5 * math.log(0.2) + math.log(0.6)) / 2
    assert soft_cross_entropy(LOGITS, targets).item() == pytest.approx(expected)


def test_sharpening_squares_at_half_temperature_and_normalizes():
    found = sharpen(PROBABILITIES, 0.5)
    assert_close(found[0], torch.tensor([0.49, 0.04, 0.01]) / 0.54)
    assert_close(found.sum(dim=1), torch.ones(2))
    assert_close(sharpen(PROBABILITIES, 1.0), PROBABILITIES)


def test_penalty_compares_the_mean_prediction_with_the_uniform_prior():
    mean = [0.4, 0.25, 0.35]
    expected = sum(math.log((1 / 3) / p) / 3 for p in mean)
    assert uniform_prior_penalty(torch.tensor(mean)).item() == pytest.approx(expected, rel=1e-5)


def test_penalty_is_nought_where_predictions_are_spread_evenly():
    assert uniform_prior_penalty(torch.full((3,), 1 / 3)).item() == pytest.approx(0, abs=1e-6)
    assert uniform_prior_penalty(torch.tensor([0.98, 0.01, 0.01])).item() > 1


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0), (10, 0), (14, 6.25), (18.5, 13.28125), (26, 25), (300, 25)]
)
def test_rampup_rises_over_sixteen_epochs_after_the_warm_up(epoch, expected):
    assert linear_rampup(epoch, 10) == pytest.approx(expected)
    assert linear_rampup(epoch, 10, lambda_u=150) == pytest.approx(6 * expected)


def test_semi_loss_gives_cross_entropy_squared_error_and_its_weight():
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    loss_x, loss_u, weight = SemiLoss(lambda_u=50)(
        LOGITS[:1], targets[:1], LOGITS[1:], targets[1:], 18, 10
    )
    assert loss_x.item() == pytest.approx(-math.log(0.7))
    assert loss_u.item() == pytest.approx((0.1**2 + 0.2**2 + 0.1**2) / 3)
    assert weight == 25


def test_semi_loss_without_unlabeled_rows_is_the_labeled_loss_with_finite_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss_x, loss_u, weight = SemiLoss()(
        logits, PROBABILITIES, logits[2:], PROBABILITIES[2:], 100, 10
    )
    (loss_x + weight * loss_u).backward()
    assert loss_u.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_negative_entropy_is_lowest_on_even_predictions_and_nought_on_sure_ones():
    assert NegEntropy()(torch.zeros(2, 4)).item() == pytest.approx(-math.log(4))
    expected = sum(p * math.log(p) for p in PROBABILITIES.flatten().tolist()) / 2
    assert NegEntropy()(LOGITS).item() == pytest.approx(expected)
    assert NegEntropy()(1000 * torch.eye(3)).item() == 0

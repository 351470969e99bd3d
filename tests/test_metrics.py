"""Figures of an epoch: means, counts, the first step that is not finite, label accuracy."""

import math

import pytest
import torch

from smr import metrics
from smr.errors import NonFiniteLoss
from smr.metrics import LabelAccuracy, Meter, mean_of_networks


def meter_of(*losses: float, images: int = 4) -> Meter:
    """A meter after steps of these losses, with the weight 10, 20, … as a figure of the host."""
    meter = Meter()
    for step, loss in enumerate(losses, start=1):
        value = torch.tensor(loss, requires_grad=True)
        meter.add(value, {"loss": value, "weight": 10.0 * step}, images)
    return meter


def test_figures_are_means_over_steps_and_images_a_sum(clock):
    assert Meter().means() == {}
    meter = meter_of(1.0, 2.0, 6.0)
    assert meter.means() == {"loss": 3, "weight": 20}
    clock.now += 7.5
    assert meter.figures() == {"loss": 3, "weight": 20, "images": 12, "seconds": 7.5}
    assert not meter.sums["loss"].requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_the_first_step_whose_loss_was_not_finite_is_named(bad, step):
    losses = [1.0] * 4 + [math.inf]
    losses[step - 1] = bad
    with pytest.raises(NonFiniteLoss, match=f"^step {step}: the loss is not finite$"):
        meter_of(*losses).figures()


def test_a_figure_that_is_not_the_loss_may_be_infinite():
    meter = Meter()
    meter.add(torch.tensor(1.0), {"loss": torch.tensor(1.0), "other": math.inf}, 1)
    assert meter.figures()["other"] == math.inf


def test_label_accuracy_is_of_the_soft_labels_likeliest_classes():
    targets = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.5, 0.1, 0.4]])
    accuracy = LabelAccuracy()
    accuracy.add(None, [torch.tensor([0])])  # an empty set
    accuracy.add(torch.eye(3), [])  # unknown true labels
    assert accuracy.count == 0
    accuracy.add(targets[:1], [torch.tensor([0])])
    accuracy.add(targets[1:], [torch.tensor([2, 0, 1])])
    assert accuracy.count == 4
    assert accuracy.percent() == 50


def test_figures_of_several_ranks_are_of_all_their_steps(monkeypatch):
    def two_ranks(value):
        """What this rank gives, and another rank whose figures are all 2 larger."""
        if isinstance(value, dict):
            return [value, {name: figure + 2 for name, figure in value.items()}]
        return [value, value + 2]

    meter, accuracy = meter_of(1.0, 2.0, 6.0), LabelAccuracy()
    accuracy.add(torch.eye(3)[:2], [torch.tensor([0, 2])])
    monkeypatch.setattr(metrics.distributed, "all_gather", two_ranks)
    found = meter.figures()
    assert (found["loss"], found["weight"], found["images"]) == (4, 21, 12 + 14)
    assert accuracy.percent() == pytest.approx(100 * (1 + 3) / (2 + 4))


def test_mean_of_networks_is_of_those_that_have_the_metric():
    metrics = {"lr": 0.1, "net1/auc": 0.5, "net2/auc": 1.0, "net2/loss": 3.0}
    means = [mean_of_networks(metrics, name) for name in ("lr", "net*/auc", "net*/loss", "none")]
    assert means == [0.1, 0.75, 3, None]

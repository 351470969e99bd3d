"""Figures of an epoch: means, counts, the first step that is not finite, label accuracy."""

import math

import pytest
import torch

from smr import metrics
from smr.errors import NonFiniteLoss
from smr.metrics import LabelAccuracy, Meter


def meter_of(*losses: float, images: int = 4) -> Meter:
    """A meter after steps of these losses, with the weight 10, 20, … as a figure of the host."""
    meter = Meter()
    for step, loss in enumerate(losses, start=1):
        value = torch.tensor(loss, requires_grad=True)
        meter.add(value, {"loss": value, "weight": 10.0 * step}, images)
    return meter


def test_figures_are_means_over_steps_and_images_a_sum(monkeypatch):
    clock = iter((100.0, 107.5))
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    found = meter_of(1.0, 2.0, 6.0).figures()
    assert found == {"loss": 3, "weight": 20, "images": 12, "seconds": 7.5}


def test_means_so_far_are_there_after_every_step():
    meter = Meter()
    assert meter.means() == {}
    for loss, mean in ((4.0, 4.0), (2.0, 3.0), (0.0, 2.0)):
        meter.add(torch.tensor(loss), {"loss": torch.tensor(loss)}, 1)
        assert meter.means() == {"loss": mean}
    assert meter.steps == meter.images == 3


def test_no_graph_is_kept_of_what_is_added():
    assert not meter_of(1.0).sums["loss"].requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_the_first_step_whose_loss_was_not_finite_is_named(bad, step):
    losses = [1.0] * 5
    losses[step - 1] = bad
    with pytest.raises(NonFiniteLoss, match=f"^step {step}: the loss is not finite$"):
        meter_of(*losses).figures()


def test_later_bad_steps_change_no_name():
    with pytest.raises(NonFiniteLoss, match="step 2: the loss is not finite"):
        meter_of(1.0, math.inf, 2.0, math.nan, 3.0).figures()


def test_a_figure_that_is_not_the_loss_may_be_infinite():
    meter = Meter()
    meter.add(torch.tensor(1.0), {"loss": torch.tensor(1.0), "other": math.inf}, 1)
    assert meter.figures()["other"] == math.inf


def test_label_accuracy_is_of_the_soft_labels_likeliest_classes():
    targets = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.5, 0.1, 0.4]])
    accuracy = LabelAccuracy()
    accuracy.add(targets[:1], [torch.tensor([0])])
    accuracy.add(targets[1:], [torch.tensor([2, 0, 1])])
    assert accuracy.count == 4
    assert accuracy.percent() == 50


def test_label_accuracy_counts_nothing_without_soft_labels_or_true_labels():
    accuracy = LabelAccuracy()
    accuracy.add(None, [torch.tensor([0])])
    accuracy.add(torch.eye(3), [])
    assert accuracy.count == 0


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

"""A method with little to train on continues and says so, or stops and says where."""

import numpy as np
import pytest
import torch
from helpers import Log, Spy, TinyNet, tiny_config, tiny_loader, tiny_pair, train

import smr
from PreResNet import ResNet18
from smr.methods import SMR

WARM_UP, SEMI_SUPERVISED, RECALIBRATION = "warm-up", "semi-supervised", "recalibration"


def small_resnet():
    return ResNet18(width=2)


class FixedSplits(SMR):
    """SMR of which each network labels the first images alone: `counts` of them."""

    counts = (0, 0)

    def co_divide(self):
        n = len(self.loader.noisy_labels)
        masks = [np.arange(n) < count for count in self.counts]
        return tuple(
            smr.Split(np.arange(n), np.zeros(n), np.where(mask, 0.9, 0.1), mask, None)
            for mask in masks
        )


def epoch_zero(counts=None, loader=None, build_network=TinyNet, **flags):
    """The metrics of epoch 0, semi-supervised unless flags say otherwise, and the log's notes."""
    first = {} if "method" in flags else {"warm_up": 0}
    config, log = tiny_config(**first | flags), Log()
    pair = tiny_pair(config, build_network)
    method = smr.new_method(config, pair, loader or tiny_loader(), log)
    if counts:
        method = FixedSplits(config, pair, method.loader, log)
        method.counts = counts
    metrics = method.train_epoch(0).metrics
    for network in pair.networks:
        assert all(torch.isfinite(t).all() for t in network.state_dict().values())
    return metrics, log.notes


def test_a_network_with_an_empty_clean_set_trains_with_cross_entropy():
    # Network 2 trains on network 1's split.
    metrics, notes = epoch_zero((0, 20), None, small_resnet)
    assert len(notes) == 1 and "network 2: the clean set is empty" in notes[0]
    assert "train/net1/loss_x" in metrics
    assert "train/net2/loss_x" not in metrics
    assert metrics["train/net2/images"] == 40
    assert metrics["split/net1/labeled"] == 0
    assert "split/net1/precision" not in metrics


def test_a_network_with_an_empty_noisy_set_trains_on_the_labeled_images():
    metrics, notes = epoch_zero((40, 20), None, small_resnet)
    assert len(notes) == 1 and "network 2: the noisy set is empty" in notes[0]
    assert metrics["train/net2/loss_u"] == 0
    assert metrics["train/net2/loss_x"] > 0
    assert metrics["train/net2/images"] == 80
    assert metrics["train/net1/loss_u"] > 0


def test_one_image_in_the_clean_or_in_the_noisy_set_trains():
    metrics, notes = epoch_zero((1, 39), None, small_resnet)
    assert notes == []
    # One step of 2 and 16 views, or five of 78 views in all beside the same two again and again.
    # Network 1 trains on network 2's split.
    assert (metrics["train/net1/images"], metrics["train/net2/images"]) == (88, 18)
    for network in (1, 2):
        assert np.isfinite(metrics[f"train/net{network}/loss"])
        assert metrics[f"train/net{network}/loss_u"] > 0


@pytest.mark.parametrize(
    ("flags", "counts", "images"),
    [
        ({"warm_up": 1}, None, (33, 33)),
        ({"method": "ce"}, None, (33, 33)),
        # Network 1: 16 and 17 images in two steps; network 2: 17 and 16 in three, 8 twice.
        ({}, (17, 16), (64, 82)),
    ],
    ids=["warm-up", "cross-entropy", "semi-supervised"],
)
def test_a_last_batch_of_one_image_trains(flags, counts, images):
    loader = tiny_loader(n=33)  # two double batches of 16 and one image
    metrics, _ = epoch_zero(counts, loader, small_resnet, **flags)
    assert np.isfinite([metrics["train/net1/loss"], metrics["train/net2/loss"]]).all()
    assert (metrics["train/net1/images"], metrics["train/net2/images"]) == images


def test_a_training_set_smaller_than_a_batch_trains_in_all_kinds_of_epochs():
    config = tiny_config(num_epochs=2, warm_up=1, recalibrate_every=3)
    loader = tiny_loader(n=5, wrong=2)
    results = list(train(tiny_pair(config, small_resnet), loader, config))
    assert {r.kind for r in results} == {WARM_UP, RECALIBRATION, SEMI_SUPERVISED}
    assert all(np.isfinite(r.metrics["train/net1/loss"]) for r in results)


class Blank(TinyNet):
    """Returns the same logits for all images, so that equal labels have equal losses."""

    def forward(self, images):
        return super().forward(0 * images)


def test_equal_losses_label_no_image_and_training_continues():
    loader = tiny_loader(n=20)
    loader.noisy_labels.zero_()
    metrics, notes = epoch_zero(None, loader, Blank)
    assert metrics["split/net1/labeled"] == metrics["split/net2/labeled"] == 0
    assert ["clean set is empty" in note for note in notes] == [True, True]
    assert metrics["train/net1/images"] == metrics["train/net2/images"] == 20


@pytest.mark.parametrize(
    ("wrong", "labeled", "unknown"),
    [(0, "labeled_clean", "auc"), (40, "labeled_noisy", ("/auc", "split/net1/recall"))],
)
def test_labels_of_one_kind_have_no_auc(wrong, labeled, unknown):
    metrics, _ = epoch_zero(None, tiny_loader(wrong=wrong), r=wrong / 40)
    assert not [key for key in metrics if key.endswith(unknown)]
    assert metrics["split/net1/labeled"] == metrics[f"split/net1/{labeled}"]


# --- losses and weights that are not finite ---


class Diverging(TinyNet):
    """Returns NaN after so many forward passes in train mode."""

    def __init__(self, passes_left: float):
        super().__init__()
        self.passes_left = passes_left

    def forward(self, images):
        self.passes_left -= self.training
        return super().forward(images) * (float("nan") if self.passes_left < 0 else 1.0)


@pytest.mark.parametrize(
    ("passes", "flags", "place"),
    [
        # 40 images in double batches of 16: three steps an epoch.
        ((1, np.inf), {"warm_up": 3}, "epoch 0, warm-up, network 1, step 2"),
        ((np.inf, 5), {"warm_up": 3}, "epoch 1, warm-up, network 2, step 3"),
        ((6, np.inf), {"method": "ce"}, "epoch 2, cross-entropy, network 1, step 1"),
        ((np.inf, 4), {"method": "elr"}, "epoch 1, elr, network 2, step 2"),
    ],
)
def test_a_loss_that_is_not_finite_stops_training_and_says_where(passes, flags, place):
    passes, config = iter(passes), tiny_config(**flags)
    pair, finished = tiny_pair(config, lambda: Diverging(next(passes))), []
    with pytest.raises(smr.NonFiniteLoss, match=f"{place}: the loss is not finite"):
        finished.extend(train(pair, tiny_loader(), config))
    assert [result.epoch for result in finished] == list(range(int(place[6])))


def test_a_semi_supervised_loss_that_is_not_finite_says_where():
    passes = iter((np.inf, 7))  # five forward passes a step
    place = "epoch 0, semi-supervised, network 2, step 2: the loss is not finite"
    with pytest.raises(smr.NonFiniteLoss, match=place):
        epoch_zero((20, 20), None, lambda: Diverging(next(passes)))


def test_one_sample_loss_that_is_not_finite_among_others_is_enough():
    class OneBadImage(Spy):
        def run(self, mode, *arguments, **options):
            batches = list(super().run(mode, *arguments, **options))
            batches[0][0][3] = float("inf")
            return batches

    with pytest.raises(smr.NonFiniteLoss, match="semi-supervised, network 1, scoring: "):
        epoch_zero(None, OneBadImage(tiny_loader()))


def test_sample_losses_that_are_not_finite_say_of_which_network():
    config = tiny_config(warm_up=0)
    pair = tiny_pair(config)
    pair.networks[1].linear.bias.data[3] = float("inf")
    with pytest.raises(smr.NonFiniteLoss, match="epoch 0, semi-supervised, network 2, scoring: "):
        list(train(pair, tiny_loader(), config))


def test_a_weight_that_is_not_finite_ends_an_epoch_whose_losses_were():
    config = tiny_config(warm_up=1)
    pair = tiny_pair(config)
    pair.networks[1].register_buffer("unused", torch.tensor([0.0, float("inf")]))
    with pytest.raises(smr.NonFiniteLoss, match=r"^epoch 0, warm-up, unused of network 2 is not"):
        list(train(pair, tiny_loader(), config))

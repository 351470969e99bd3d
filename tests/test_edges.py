"""Where the method has little to work on it goes on, says so, or stops and says where."""

import numpy as np
import pytest
import smr.method as method
import torch
from helpers import TinyNet, tiny_loader, tiny_pair, tiny_recipe

import smr
from PreResNet import ResNet18

SEMI_SUPERVISED = {"num_epochs": 0, "warm_up": 0}


def small_resnet():
    return ResNet18(width=2)


def with_labeled(monkeypatch, *counts: int, n: int = 40):
    """Make co-divide label the first images alone: so many by network 1, so many by network 2."""

    def co_divide(pair, loader, recipe):
        masks, index = [np.arange(n) < count for count in counts], np.arange(n)
        return tuple(smr.Split(index, np.zeros(n), np.where(m, 0.9, 0.1), m, None) for m in masks)

    monkeypatch.setattr(method, "co_divide", co_divide)


def epoch_zero(loader=None, build_network=TinyNet, notes=None, **recipe):
    recipe = tiny_recipe(**SEMI_SUPERVISED | recipe)
    notes = [] if notes is None else notes
    pair = tiny_pair(recipe, build_network)
    (result,) = smr.train(pair, loader or tiny_loader(), recipe, note=notes.append)
    for network in pair.networks:
        assert all(torch.isfinite(t).all() for t in network.state_dict().values())
    return result.metrics


@pytest.mark.parametrize("size", [8, 32])
def test_no_labeled_sample_makes_it_a_recalibration_epoch_for_that_network(monkeypatch, size):
    with_labeled(monkeypatch, 0, 20)  # network 2 trains on network 1's split
    notes: list = []
    found = epoch_zero(tiny_loader(size=size), small_resnet, notes)
    assert notes == ["network 2 has no labeled sample: it has a recalibration epoch instead"]
    assert "train/net1/loss_x" in found
    assert "train/net2/loss_x" not in found
    assert found["train/net2/images"] == 40
    assert found["split/net1/labeled"] == 0
    assert "split/net1/precision" not in found


@pytest.mark.parametrize("size", [8, 32])
def test_no_unlabeled_sample_trains_on_the_labeled_part_alone(monkeypatch, size):
    with_labeled(monkeypatch, 40, 20)
    notes: list = []
    found = epoch_zero(tiny_loader(size=size), small_resnet, notes)
    assert notes == ["network 2 has no unlabeled sample: it trains on the labeled alone"]
    assert found["train/net2/loss_u"] == 0
    assert found["train/net2/loss_x"] > 0
    assert found["train/net2/images"] == 80
    assert found["train/net1/loss_u"] > 0


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("counts", [(1, 1), (39, 39), (1, 39)])
def test_one_sample_on_a_side_trains(monkeypatch, counts, size):
    with_labeled(monkeypatch, *counts)
    notes: list = []
    found = epoch_zero(tiny_loader(size=size), small_resnet, notes)
    assert notes == []
    # One step of 2 and 16 views, or five of 78 views in all beside the same two again and again.
    images = {1: 18, 39: 88}
    for network, labeled in ((1, counts[1]), (2, counts[0])):
        assert found[f"train/net{network}/images"] == images[labeled]
        assert np.isfinite(found[f"train/net{network}/loss"])
        assert found[f"train/net{network}/loss_u"] > 0


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("kind", [smr.WARM_UP, smr.RECALIBRATION, smr.SEMI_SUPERVISED])
def test_last_batch_of_one_image_trains(monkeypatch, size, kind):
    n = 33  # two double batches of 16 and one image; B = 8 leaves one too
    with_labeled(monkeypatch, 17, 16, n=n)
    warm_up = 1 if kind == smr.WARM_UP else 0
    method = "ce" if kind == smr.RECALIBRATION else "smr"
    loader = tiny_loader(n=n, size=size)
    found = epoch_zero(loader, small_resnet, warm_up=warm_up, method=method)
    assert np.isfinite([found["train/net1/loss"], found["train/net2/loss"]]).all()
    # Semi-supervised, network 1: 16 and 17 images in two steps; 2: 17 and 16 in three, 8 twice.
    images = (64, 82) if kind == smr.SEMI_SUPERVISED else (33, 33)
    assert (found["train/net1/images"], found["train/net2/images"]) == images


@pytest.mark.parametrize("size", [8, 32])
def test_set_smaller_than_a_batch_trains_through_all_phases(size):
    recipe = tiny_recipe(num_epochs=5, warm_up=1, recalibrate_every=4)
    loader = tiny_loader(n=5, wrong=2, size=size)
    results = list(smr.train(tiny_pair(recipe, small_resnet), loader, recipe, note=lambda _: None))
    assert {r.kind for r in results} == {smr.WARM_UP, smr.RECALIBRATION, smr.SEMI_SUPERVISED}
    assert all(np.isfinite(r.metrics["train/net1/loss"]) for r in results)


class Blank(TinyNet):
    """Gives all images the same logits, so that equal labels have equal losses."""

    def forward(self, images):
        return super().forward(0 * images)


def test_equal_losses_label_nothing_and_training_goes_on():
    loader = tiny_loader(n=20)
    loader.noisy_labels = torch.zeros_like(loader.noisy_labels)
    notes: list = []
    found = epoch_zero(loader, Blank, notes)
    assert found["split/net1/labeled"] == found["split/net2/labeled"] == 0
    assert notes == [
        f"network {k} has no labeled sample: it has a recalibration epoch instead" for k in (1, 2)
    ]
    assert found["train/net1/images"] == found["train/net2/images"] == 20


def test_clean_labels_have_no_auc_to_give():
    found = epoch_zero(tiny_loader(wrong=0), r=0.0)
    assert not [key for key in found if "auc" in key]
    assert found["split/net1/labeled"] == found["split/net1/labeled_clean"]


def test_labels_that_are_all_wrong_have_neither_auc_nor_recall_of_the_split():
    found = epoch_zero(tiny_loader(wrong=40), r=1.0)
    assert not [key for key in found if key.endswith(("/auc", "split/net1/recall"))]
    assert found["split/net1/labeled"] == found["split/net1/labeled_noisy"]


class Spoilt(TinyNet):
    """Gives NaN from a given training pass on."""

    def __init__(self, passes_left: float):
        super().__init__()
        self.passes_left = passes_left

    def forward(self, images):
        self.passes_left -= self.training
        return super().forward(images) * (float("nan") if self.passes_left < 0 else 1.0)


@pytest.mark.parametrize(
    ("lives", "recipe", "place"),
    [
        # 40 images in double batches of 16: three steps an epoch.
        ((1, np.inf), {}, "epoch 0, warm-up, network 1, step 2"),
        ((np.inf, 5), {}, "epoch 1, warm-up, network 2, step 3"),
        ((6, np.inf), {"method": "ce"}, "epoch 2, cross-entropy, network 1, step 1"),
    ],
)
def test_loss_that_is_not_finite_stops_training_and_says_where(lives, recipe, place):
    networks, recipe = iter(lives), tiny_recipe(warm_up=3, **recipe)
    pair = tiny_pair(recipe, lambda: Spoilt(next(networks)))
    finished = []
    with pytest.raises(smr.NonFiniteLoss, match=f"{place}: the loss is not finite"):
        finished.extend(smr.train(pair, tiny_loader(), recipe))
    assert [result.epoch for result in finished] == list(range(int(place[6])))


def test_semi_supervised_loss_that_is_not_finite_says_where(monkeypatch):
    with_labeled(monkeypatch, 20, 20)
    networks, recipe = iter((np.inf, 7)), tiny_recipe(**SEMI_SUPERVISED)  # five passes a step
    pair = tiny_pair(recipe, lambda: Spoilt(next(networks)))
    with pytest.raises(
        smr.NonFiniteLoss,
        match="epoch 0, semi-supervised, network 2, step 2: the loss is not finite",
    ):
        list(smr.train(pair, tiny_loader(), recipe, note=lambda _: None))


def test_one_score_that_is_not_finite_among_others_is_enough(monkeypatch):
    scores = smr.SampleLosses(torch.arange(40), torch.tensor([1.0] * 39 + [float("inf")]))
    monkeypatch.setattr(method, "sample_losses", lambda *_: scores)
    recipe = tiny_recipe(**SEMI_SUPERVISED)
    with pytest.raises(smr.NonFiniteLoss, match="network 1, scoring: a sample's loss is not"):
        smr.co_divide(tiny_pair(recipe), tiny_loader(), recipe)


def test_a_weight_that_is_not_finite_ends_an_epoch_whose_losses_were():
    recipe = tiny_recipe(warm_up=1)
    pair = tiny_pair(recipe)
    pair.networks[1].register_buffer("unused", torch.tensor([0.0, float("inf")]))
    with pytest.raises(
        smr.NonFiniteLoss, match=r"^epoch 0, warm-up, unused of network 2 is not finite$"
    ):
        list(smr.train(pair, tiny_loader(), recipe))


def test_scores_that_are_not_finite_say_where():
    recipe = tiny_recipe(**SEMI_SUPERVISED)
    pair = tiny_pair(recipe)
    pair.networks[1].linear.bias.data[3] = float("inf")
    with pytest.raises(smr.NonFiniteLoss, match="epoch 0, semi-supervised, network 2, scoring: "):
        list(smr.train(pair, tiny_loader(), recipe))

"""Whole epochs: order of passes, who trains on whose split, ramp, baselines (method 3, 5, 6)."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import OneBatch
from helpers import TinyNet, generator, state_copy, tiny_loader, tiny_pair, tiny_recipe
from torch.testing import assert_close

import smr
import smr.method as method
import smr.training as passes
from losses import NegEntropy
from smr import metrics
from smr.gmm_split import split_statistics

COUNTS = (
    *("labeled", "unlabeled", "labeled_clean", "labeled_noisy"),
    *("unlabeled_clean", "unlabeled_noisy"),
)


class Watched(TinyNet):
    """Notes each pass: its name, its mode, whether gradients flow, its images."""

    def __init__(self, name: str, passes: list):
        super().__init__()
        self.name, self.passes = name, passes

    def forward(self, images):
        mode = "train" if self.training else "eval"
        self.passes.append((self.name, mode, torch.is_grad_enabled(), images.detach().clone()))
        return super().forward(images)


def four_views(rows_x: int = 4, rows_u: int = 3):
    """Labeled and unlabeled batch of one step."""
    source = generator()
    x1, x2 = (torch.randn(rows_x, 3, 8, 8, generator=source) for _ in range(2))
    u1, u2 = (torch.randn(rows_u, 3, 8, 8, generator=source) for _ in range(2))
    labels, probability = torch.arange(rows_x), torch.rand(rows_x, generator=source)
    return OneBatch(x1, x2, labels, probability), OneBatch(u1, u2)


def semi_supervised(pair, labeled, unlabeled, epoch=20, recipe=None):
    recipe = recipe or tiny_recipe()
    return smr.semi_supervised_epoch(
        *pair.networks, pair.optimizers[0], labeled, unlabeled, epoch, recipe
    )


def test_step_passes_u1_u2_x1_x2_and_the_mixed_batch_in_this_order():
    passes: list = []
    names = iter(("network", "peer"))
    pair = tiny_pair(tiny_recipe(), lambda: Watched(next(names), passes))
    reference = copy.deepcopy(pair.networks[0]).train()
    peer_before = state_copy(pair.networks[1])
    labeled, unlabeled = four_views()
    semi_supervised(pair, labeled, unlabeled)

    own = [(mode, grad, images) for name, mode, grad, images in passes if name == "network"]
    (x1, x2, *_), (u1, u2) = labeled.batch, unlabeled.batch
    assert [(mode, grad) for mode, grad, _ in own] == [("train", False)] * 4 + [("train", True)]
    for (_, _, images), expected in zip(own, (u1, u2, x1, x2), strict=False):
        assert torch.equal(images, expected)
    assert len(own[4][2]) == 14

    peers = [(mode, grad) for name, mode, grad, _ in passes if name == "peer"]
    assert set(peers) == {("eval", False)}
    seen_by_peer = torch.cat([images for name, *_, images in passes if name == "peer"])
    assert_close(seen_by_peer, torch.cat([u1, u2]))
    for name, tensor in pair.networks[1].state_dict().items():
        assert torch.equal(tensor, peer_before[name])

    reference.passes = []
    for _, _, images in own:
        reference(images)
    trained = pair.networks[0].bn
    assert_close(trained.running_mean, reference.bn.running_mean)
    assert_close(trained.running_var, reference.bn.running_var)
    assert trained.num_batches_tracked == 5


@pytest.mark.parametrize(("images", "ramp_steps"), [(20, 3), (16, 3), (7, 1)])
def test_ramp_counts_whole_batches_and_one(images, ramp_steps):
    """steps = |labeled| // B + 1, even where that is one more than there are."""
    loader, recipe = tiny_loader(n=30), tiny_recipe(warm_up=10)
    batches = loader.run("train", np.arange(30) < images, np.ones(30))
    found = semi_supervised(tiny_pair(recipe), *batches, epoch=18, recipe=recipe)
    steps = -(-images // 8)
    mean_share = sum(step / ramp_steps for step in range(steps)) / steps
    assert found["lambda_u"] == pytest.approx(25 * (8 + mean_share) / 16)


@pytest.mark.parametrize(("images", "steps"), [(32, 4), (9, 2), (3, 1)])
def test_labeled_set_gives_the_steps_and_the_unlabeled_one_starts_again(images, steps):
    loader = tiny_loader(n=40)
    labeled, unlabeled = loader.run("train", np.arange(40) < images, np.ones(40))
    seen = []
    unlabeled_iter = type(unlabeled).__iter__

    class Counted:
        batch_size, dataset = unlabeled.batch_size, unlabeled.dataset

        def __len__(self):
            return len(unlabeled)

        def __iter__(self):
            seen.append(0)
            for batch in unlabeled_iter(unlabeled):
                seen[-1] += 1
                yield batch

    counted = []
    smr.semi_supervised_epoch(
        *tiny_pair(tiny_recipe()).networks,
        tiny_pair(tiny_recipe()).optimizers[0],
        labeled,
        Counted(),
        20,
        tiny_recipe(),
        lambda step, of, meter: counted.append((step, of)),
    )
    assert counted == [(step + 1, steps) for step in range(steps)]
    assert sum(seen) == steps
    assert seen == ([1] * 4 if images == 32 else [steps])


def test_figures_of_an_epoch_judge_the_targets_by_the_truth():
    pair, recipe = tiny_pair(tiny_recipe()), tiny_recipe()
    labeled, unlabeled = four_views(rows_x=9, rows_u=8)
    network, peer = (copy.deepcopy(network) for network in pair.networks)
    network.train(), peer.eval()
    guessed = smr.guess(network, peer, *unlabeled.batch, recipe.T).argmax(dim=1)
    refined = smr.refine(network, *labeled.batch, recipe.T).argmax(dim=1)
    # Made up so that six of nine refined and two of eight guessed targets are right.
    truth_x = torch.where(torch.arange(9) < 6, refined, (refined + 1) % 10)
    truth_u = torch.where(torch.arange(8) < 2, guessed, (guessed + 1) % 10)
    found = semi_supervised(
        pair, OneBatch(*labeled.batch, truth_x), OneBatch(*unlabeled.batch, truth_u)
    )
    assert found["refined_label_accuracy"] == pytest.approx(100 * 6 / 9)
    assert found["pseudo_label_accuracy"] == 25
    assert found["images"] == 34
    without = semi_supervised(tiny_pair(recipe), labeled, unlabeled)
    assert without.keys() == found.keys() - {"refined_label_accuracy", "pseudo_label_accuracy"}


def test_figures_of_an_epoch_are_the_means_of_its_steps(monkeypatch):
    results, original = [], passes.mixmatch_loss
    monkeypatch.setattr(
        passes, "mixmatch_loss", lambda *inputs: results.append(original(*inputs)) or results[-1]
    )
    labeled, unlabeled = tiny_loader().run("train", np.arange(40) < 20, np.ones(40))
    found = semi_supervised(tiny_pair(tiny_recipe()), labeled, unlabeled, epoch=10)
    for name in ("loss", "loss_x", "loss_u", "lambda_u", "penalty"):
        values = [float(torch.as_tensor(getattr(result, name)).detach()) for result in results]
        assert len({*values}) == 3
        assert found[name] == pytest.approx(sum(values) / 3)


@pytest.mark.parametrize("epoch", [smr.warm_up_epoch, smr.cross_entropy_epoch])
def test_supervised_passes_are_in_train_mode_and_move_the_weights_each_step(epoch):
    passes: list = []
    pair = tiny_pair(tiny_recipe(), lambda: Watched("network", passes))
    (network, _), (optimizer, _) = pair.networks, pair.optimizers
    weights, told = [], []

    def note(step, steps, meter):
        told.append((step, steps, meter.steps, meter.images))
        weights.append(network.conv.weight.detach().clone())

    batches = tiny_loader().run("warmup")
    found = epoch(network.eval(), optimizer, batches, tiny_recipe(), note)
    assert [(mode, grad) for _, mode, grad, _ in passes] == [("train", True)] * 3
    assert network.bn.num_batches_tracked == 3
    assert told == [(1, 3, 1, 16), (2, 3, 2, 32), (3, 3, 3, 40)]
    assert not weights[0].equal(weights[1]) and not weights[1].equal(weights[2])
    assert found.keys() == {"loss", "images", "seconds"}
    assert found["images"] == 40


class Spy:
    """A loader that notes what is asked of it."""

    def __init__(self, loader):
        self.loader, self.calls = loader, []

    def run(self, mode, *arguments, **options):
        self.calls.append((mode, *arguments))
        return self.loader.run(mode, *arguments, **options)

    def __getattr__(self, name):
        return getattr(self.loader, name)


def test_each_network_trains_on_the_other_s_split_made_before_either_trained():
    recipe = tiny_recipe(num_epochs=0, warm_up=0)
    pair, spy = tiny_pair(recipe), Spy(tiny_loader())
    before = copy.deepcopy(pair)
    (result,) = smr.train(pair, spy, recipe)
    modes = [call[0] for call in spy.calls]
    assert modes == ["eval_train", "eval_train", "train", "train", "test"]
    first, second = spy.calls[2][1:], spy.calls[3][1:]
    expected = smr.co_divide(before, tiny_loader(), recipe)
    for call, split in ((first, expected[1]), (second, expected[0])):
        for given, wanted in zip(
            call, (split.labeled, split.probability, split.index), strict=True
        ):
            assert given.tolist() == wanted.tolist()
    assert (first[1] != second[1]).any()
    for k, split in enumerate(expected):
        assert result.splits[k].probability.tolist() == split.probability.tolist()
        assert result.metrics[f"split/net{k + 1}/labeled"] == split.labeled.sum()
        judged = split_statistics(split.labeled, split.probability, tiny_loader().is_clean)
        assert result.metrics[f"split/net{k + 1}/auc"] == judged["auc"]
    assert result.metrics["split/net1/auc"] != result.metrics["split/net2/auc"]


class Sampling(Spy):
    """A loader of which each network scores a sample of its own."""

    def __init__(self, loader, *samples):
        super().__init__(loader)
        self.samples = list(samples)

    def run(self, mode, *arguments, **options):
        batches = super().run(mode, *arguments, **options)
        if mode == "eval_train":
            batches.dataset = torch.tensor(self.samples.pop(0))
        return batches


def test_each_network_trains_on_the_images_that_the_other_scored():
    recipe, loader = tiny_recipe(num_epochs=0, warm_up=0), tiny_loader(wrong=20)
    samples = list(range(0, 40, 2)), list(range(5, 35, 3))
    spy = Sampling(loader, *samples)
    (result,) = smr.train(tiny_pair(recipe), spy, recipe)
    assert [split.index.tolist() for split in result.splits] == [*samples]
    trained_on = [call[3].tolist() for call in spy.calls if call[0] == "train"]
    assert trained_on == [samples[1], samples[0]]
    for k, (split, sample) in enumerate(zip(result.splits, samples, strict=True), start=1):
        found = {name: result.metrics[f"split/net{k}/{name}"] for name in COUNTS}
        wrong = np.array(sample) < 20
        assert found == {
            "labeled": split.labeled.sum(),
            "unlabeled": len(sample) - split.labeled.sum(),
            "labeled_clean": (split.labeled & ~wrong).sum(),
            "labeled_noisy": (split.labeled & wrong).sum(),
            "unlabeled_clean": (~split.labeled & ~wrong).sum(),
            "unlabeled_noisy": (~split.labeled & wrong).sum(),
        }


def test_recalibration_and_plain_cross_entropy_ask_for_their_own_batches():
    def asked(**changes):
        recipe = tiny_recipe(num_epochs=2, **changes)
        spy = Spy(tiny_loader())
        list(smr.train(tiny_pair(recipe), spy, recipe, first_epoch=2))
        return [call[0] for call in spy.calls]

    assert asked(warm_up=3) == ["warmup", "warmup", "test"]
    assert asked(warm_up=1) == ["recalibrate", "recalibrate", "test"]
    assert asked(method="ce") == ["warmup", "warmup", "test"]


def test_an_epoch_s_figures_are_named_and_timed(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: 4.0 * next(ticks))
    recipe = tiny_recipe(num_epochs=0, warm_up=0, p_threshold=0.3)
    (result,) = smr.train(tiny_pair(recipe), tiny_loader(), recipe)
    of_splits = {*COUNTS, "labeled_fraction", "auc", "precision", "recall"}
    of_training = {"loss", "loss_x", "loss_u", "lambda_u", "penalty", "images"}
    of_training |= {"refined_label_accuracy", "pseudo_label_accuracy"}
    of_test = {"accuracy", "precision", "recall", "f1", "net1/accuracy", "net2/accuracy"}
    assert result.metrics.keys() == {
        *{f"split/net{k}/{name}" for k in (1, 2) for name in of_splits},
        *{f"train/net{k}/{name}" for k in (1, 2) for name in of_training},
        *{f"test/{name}" for name in of_test},
        *{"train/learning_rate", "time/train_seconds", "time/images_per_second"},
    }
    images = result.metrics["train/net1/images"] + result.metrics["train/net2/images"]
    assert result.metrics["time/train_seconds"] == 8
    assert result.metrics["time/images_per_second"] == images / 8


class TwoTestSets(Spy):
    """A loader whose first test set is the loader's and whose second its first five images."""

    test_sets = ("webvision", "imagenet")

    def run(self, mode, *arguments, **options):
        if mode not in self.test_sets:
            return super().run(mode, *arguments, **options)
        self.calls.append((mode,))
        batches = self.loader.run("test")
        if mode == "imagenet":
            batches.dataset = batches.dataset[:5]
        return batches


def test_each_test_set_has_its_figures_and_its_confusion():
    recipe = tiny_recipe(num_epochs=0, top5=True)
    pair, loader = tiny_pair(recipe), TwoTestSets(tiny_loader())
    (result,) = smr.train(pair, loader, recipe)
    assert [call[0] for call in loader.calls] == ["warmup", "warmup", "webvision", "imagenet"]
    assert not [name for name in result.metrics if name.startswith("test/")]
    for name, count in (("webvision", 20), ("imagenet", 5)):
        figures, confusion = smr.test(pair.networks, loader.run(name), recipe)
        assert {"accuracy", "top5", "net2/accuracy"} <= figures.keys()
        found = {key: result.metrics[f"{name}/{key}"] for key in figures}
        assert found == figures
        assert result.confusions[name].tolist() == confusion.tolist()
        assert confusion.sum() == count
    assert result.confusions.keys() == {"webvision", "imagenet"}


def test_training_needs_no_folder_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(num_epochs=3)
    told = []
    results = list(
        smr.train(tiny_pair(recipe), tiny_loader(), recipe, progress=lambda *it: told.append(it))
    )
    assert [result.epoch for result in results] == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    places = [(epoch, kind, network, step) for epoch, kind, network, step, _, _ in told]
    assert places[:4] == [
        *[(0, smr.WARM_UP, 1, step) for step in (1, 2, 3)],
        (0, smr.WARM_UP, 2, 1),
    ]
    assert places[-1] == (3, smr.SEMI_SUPERVISED, 2, told[-1][4])


def test_training_goes_on_from_the_first_epoch_that_is_asked_for():
    recipe = tiny_recipe(num_epochs=5)
    results = smr.train(tiny_pair(recipe), tiny_loader(), recipe, first_epoch=4)
    assert [result.epoch for result in results] == [4, 5]


def test_network_2_trains_beside_the_already_updated_network_1(monkeypatch):
    recipe = tiny_recipe(num_epochs=0, warm_up=0)
    pair, peers = tiny_pair(recipe), []
    start = [state_copy(network) for network in pair.networks]
    original = method.semi_supervised_epoch

    def watched(network, peer, *rest):
        peers.append((network, peer, state_copy(peer)))
        return original(network, peer, *rest)

    monkeypatch.setattr(method, "semi_supervised_epoch", watched)
    list(smr.train(pair, tiny_loader(), recipe))
    one, two = pair.networks
    assert [(a is one, a is two, b is one, b is two) for a, b, _ in peers] == [
        (True, False, False, True),
        (False, True, True, False),
    ]
    assert_close(peers[0][2], start[1])
    assert not torch.equal(peers[1][2]["conv.weight"], start[0]["conv.weight"])
    # Network 1 rests while network 2 trains.
    assert_close(peers[1][2]["conv.weight"], one.conv.weight.detach())


def test_epochs_run_in_order_with_their_kind_and_learning_rate():
    recipe = tiny_recipe(
        num_epochs=5, warm_up=2, recalibrate_every=2, lr_steps=((4, 0.1),), p_threshold=0.3
    )
    pair = tiny_pair(recipe)
    results = list(smr.train(pair, tiny_loader(), recipe))
    assert [(r.epoch, r.kind) for r in results] == [
        (0, smr.WARM_UP),
        (1, smr.WARM_UP),
        (2, smr.SEMI_SUPERVISED),
        (3, smr.RECALIBRATION),
        (4, smr.SEMI_SUPERVISED),
        (5, smr.RECALIBRATION),
    ]
    rates = [r.metrics["train/learning_rate"] for r in results]
    assert rates == pytest.approx([0.02] * 4 + [0.002] * 2)
    assert [o.param_groups[0]["lr"] for o in pair.optimizers] == pytest.approx([0.002] * 2)
    for result in results:
        has_split = result.kind == smr.SEMI_SUPERVISED
        assert ("split/net1/auc" in result.metrics) == has_split == (result.splits is not None)
        assert list(result.confusions) == ["test"]
    assert [len(history) for history in pair.histories] == [1, 1]


def test_optimizers_are_sgd_of_the_recipe_each_with_its_own_network():
    recipe = tiny_recipe(lr=0.3, weight_decay=0.07)
    pair = tiny_pair(recipe)
    for network, optimizer in zip(pair.networks, pair.optimizers, strict=True):
        (group,) = optimizer.param_groups
        wanted = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.07, "nesterov": False}
        assert {key: group[key] for key in wanted} == wanted
        assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    weights = [network.conv.weight for network in pair.networks]
    assert not torch.equal(*weights)


def supervised_loss(epoch, recipe) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss of one supervised batch, and the logits and labels that a CE epoch would see."""
    labels = torch.arange(10)
    images = torch.randn(10, 3, 8, 8, generator=generator())
    pair = tiny_pair(recipe)
    logits = copy.deepcopy(pair.networks[0]).train()(images).detach()
    batches = OneBatch(images, labels, labels)
    found = epoch(pair.networks[0], pair.optimizers[0], batches, recipe)
    assert found["images"] == 10
    return found["loss"], logits, labels


def test_dividemix_warms_up_with_its_penalty_if_the_recipe_has_it():
    recipe = tiny_recipe(method="dividemix", warmup_loss="ce", recalibrate_every=0)
    loss, logits, labels = supervised_loss(smr.warm_up_epoch, recipe)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    loss, logits, labels = supervised_loss(smr.warm_up_epoch, replace(recipe, warmup_penalty=True))
    expected = F.cross_entropy(logits, labels) + NegEntropy()(logits)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_recalibration_is_plain_cross_entropy_on_asymmetric_noise_too():
    loss, logits, labels = supervised_loss(
        smr.cross_entropy_epoch, tiny_recipe(warmup_penalty=True)
    )
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_smr_warms_up_with_mixup():
    loss, logits, labels = supervised_loss(smr.warm_up_epoch, tiny_recipe(warmup_penalty=True))
    assert loss != pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-3)


def test_warm_up_draws_one_weight_a_batch_and_takes_all_data_in_double_batches(monkeypatch):
    drawn, seen = [], []
    monkeypatch.setattr(
        passes, "mixup_loss", lambda network, images, labels, weight, permutation: (
            drawn.append((float(weight), permutation.tolist())),
            seen.append(len(images)),
            F.cross_entropy(network(images), labels),
        )[2],
    )  # fmt: skip
    recipe = tiny_recipe()
    pair = tiny_pair(recipe)
    smr.warm_up_epoch(pair.networks[0], pair.optimizers[0], tiny_loader().run("warmup"), recipe)
    assert seen == [16, 16, 8]
    assert len({weight for weight, _ in drawn}) == 3
    assert all(0.5 <= weight <= 1 for weight, _ in drawn)
    for size, (_, permutation) in zip(seen, drawn, strict=True):
        assert sorted(permutation) == list(range(size)) != permutation


def test_cross_entropy_baseline_splits_nothing_and_learns():
    recipe = tiny_recipe(method="ce", num_epochs=12, lr=0.1)
    results = list(smr.train(tiny_pair(recipe), tiny_loader(n=80, wrong=0), recipe))
    assert {r.kind for r in results} == {smr.CROSS_ENTROPY}
    assert all(r.splits is None for r in results)
    losses = [r.metrics["train/net1/loss"] for r in results]
    assert losses[-1] < losses[0] - 0.3

"""Methods: kinds of epochs, whose split trains whom, baselines, a method of your own."""

import copy
from dataclasses import asdict, dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    Log,
    Spy,
    TinyConfig,
    TinyNet,
    plain_images,
    state_copy,
    tiny_config,
    tiny_loader,
    tiny_pair,
    train,
)
from torch.testing import assert_close

import smr
from losses import NegEntropy
from smr.gmm_split import min_max_scale, split_statistics
from smr.methods import SMR

WARM_UP, SEMI_SUPERVISED, RECALIBRATION = "warm-up", "semi-supervised", "recalibration"
COUNTS = (
    *("labeled", "unlabeled", "labeled_clean", "labeled_noisy"),
    *("unlabeled_clean", "unlabeled_noisy"),
)


def kinds(**flags) -> list[str]:
    """The kind of each epoch of a run with these flags."""
    config = tiny_config(**flags)
    method = smr.new_method(config, tiny_pair(config), tiny_loader())
    return [method.kind_of_epoch(epoch) for epoch in range(config.num_epochs + 1)]


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
def test_kinds_of_epochs_are_those_of_the_published_table(num_epochs, warm_up, k, recalibrations):
    found = kinds(num_epochs=num_epochs, warm_up=warm_up, recalibrate_every=k)
    expected = [WARM_UP] * warm_up + [SEMI_SUPERVISED] * (num_epochs + 1 - warm_up)
    for epoch in recalibrations:
        expected[epoch] = RECALIBRATION
    assert found == expected
    assert found[-1] == SEMI_SUPERVISED or k == 0


@pytest.mark.parametrize(("method", "kind"), [("ce", "cross-entropy"), ("elr", "elr")])
def test_a_method_without_a_split_has_one_kind_of_epoch(method, kind):
    assert kinds(method=method) == [kind] * 5


def test_epochs_run_in_order_with_their_kind_and_learning_rate():
    config = tiny_config(
        num_epochs=5, warm_up=2, recalibrate_every=2, lr_steps=((4, 0.1),), p_threshold=0.3
    )
    pair = tiny_pair(config)
    method = smr.new_method(config, pair, tiny_loader())
    results = [method.train_epoch(epoch) for epoch in range(6)]
    assert [(r.epoch, r.kind) for r in results] == [
        *[(0, WARM_UP), (1, WARM_UP), (2, SEMI_SUPERVISED), (3, RECALIBRATION)],
        *[(4, SEMI_SUPERVISED), (5, RECALIBRATION)],
    ]
    rates = [r.metrics["train/learning_rate"] for r in results]
    assert rates == pytest.approx([0.02] * 4 + [0.002] * 2)
    assert [o.param_groups[0]["lr"] for o in pair.optimizers] == pytest.approx([0.002] * 2)
    for result in results:
        has_split = result.kind == SEMI_SUPERVISED
        assert ("split/net1/auc" in result.metrics) == has_split == (len(result.splits) == 2)
    assert [len(history) for history in method.histories] == [1, 1]


def test_training_needs_no_folder_writes_nothing_and_shows_each_step(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    config, log = tiny_config(num_epochs=3), Log()
    assert len(list(train(tiny_pair(config), tiny_loader(), config, log=log))) == 4
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    first = [(0, WARM_UP, 1, step, 3) for step in (1, 2, 3)]
    assert log.steps[:4] == [*first, (0, WARM_UP, 2, 1, 3)]
    *last, step, steps = log.steps[-1]
    assert last == [3, SEMI_SUPERVISED, 2] and step == steps


def test_metrics_of_an_epoch_are_named_and_timed():
    config = tiny_config(num_epochs=0, warm_up=0, p_threshold=0.3)
    (result,) = train(tiny_pair(config), tiny_loader(), config)
    of_splits = {*COUNTS, "labeled_fraction", "auc", "precision", "recall"}
    of_training = {"loss", "loss_x", "loss_u", "lambda_u", "penalty", "images"}
    of_training |= {"refined_label_accuracy", "pseudo_label_accuracy"}
    assert result.metrics.keys() == {
        *{f"split/net{k}/{name}" for k in (1, 2) for name in of_splits},
        *{f"train/net{k}/{name}" for k in (1, 2) for name in of_training},
        *{"train/learning_rate", "time/train_seconds", "time/images_per_second"},
    }
    images = result.metrics["train/net1/images"] + result.metrics["train/net2/images"]
    seconds = result.metrics["time/train_seconds"]
    assert seconds > 0
    assert result.metrics["time/images_per_second"] == pytest.approx(images / seconds)


# --- co-divide, and training on the peer's split ---


class Sampling(Spy):
    """A loader of which each network scores its own sample."""

    def __init__(self, loader, *samples):
        super().__init__(loader)
        self.samples = list(samples)

    def run(self, mode, *arguments, **options):
        batches = super().run(mode, *arguments, **options)
        if mode != "eval_train":
            return batches
        index, images = torch.tensor(self.samples.pop(0)), plain_images(self.loader)
        return [(images[index], self.loader.noisy_labels[index], index)]


def test_each_network_trains_on_its_peer_s_split_made_before_either_trained():
    """Each network scores its own sample, and is split by its own losses of it."""
    config, loader = tiny_config(num_epochs=0, warm_up=0), tiny_loader(wrong=20)
    samples = [7, 3, 12, 30, 21, 1, 39, 25, 10], list(range(5, 35, 3))
    pair = tiny_pair(config)
    expected = SMR(config, copy.deepcopy(pair), Sampling(loader, *samples)).co_divide()
    for network, split, sample in zip(pair.networks, expected, samples, strict=True):
        scored = smr.sample_losses(network, loader.run("eval_train")).losses
        assert split.index.tolist() == sorted(sample)
        assert_close(torch.tensor(split.losses).float(), min_max_scale(scored[sorted(sample)]))
    sampling = Sampling(loader, *samples)
    (result,) = train(pair, sampling, config)
    assert [call[0] for call in sampling.calls] == ["eval_train", "eval_train", "train", "train"]
    for (_, *arguments), split in zip(sampling.calls[2:], reversed(expected), strict=True):
        columns = split.labeled, split.clean_probability, split.index
        for argument, column in zip(arguments, columns, strict=True):
            assert argument.tolist() == column.tolist()
    for k, split in enumerate(expected):
        assert result.splits[k].clean_probability.tolist() == split.clean_probability.tolist()
        is_clean = split.index >= 20
        statistics = split_statistics(split.labeled, split.clean_probability, is_clean)
        of_network = {name: result.metrics[f"split/net{k + 1}/{name}"] for name in statistics}
        assert of_network == statistics


class Moved(TinyNet):
    """Records, at each forward pass of the pair, who passes in which mode and both weights."""

    def __init__(self, record: list, networks: list):
        super().__init__()
        self.record, self.networks = record, networks
        networks.append(self)

    def forward(self, images):
        weights = [network.conv.weight.detach().clone() for network in self.networks]
        self.record.append((self.networks.index(self), self.training, weights))
        return super().forward(images)


def test_network_2_trains_beside_the_already_updated_network_1():
    config, record, networks = tiny_config(num_epochs=0, warm_up=0), [], []
    pair = tiny_pair(config, lambda: Moved(record, networks))
    start = [state_copy(network)["conv.weight"] for network in pair.networks]
    list(train(pair, tiny_loader(), config))
    end = [network.conv.weight.detach() for network in pair.networks]
    first, second = ([weights for k, on, weights in record if on and k == own] for own in (0, 1))
    order = [k for k, training, _ in record if training]
    assert order == sorted(order)  # network 1, then network 2
    for _, peer in first:
        assert peer.equal(start[1])
    assert first[0][0].equal(start[0])
    for peer, _ in second:
        assert peer.equal(end[0]) and not peer.equal(start[0])
    assert second[0][1].equal(start[1]) and not end[1].equal(start[1])
    peers = {(k, training) for k, training, _ in record}
    assert peers == {(0, True), (0, False), (1, True), (1, False)}


# --- the batches of each kind, and the baselines ---


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ({"warm_up": 3}, "warmup"),
        ({"warm_up": 1}, "recalibrate"),
        ({"method": "ce"}, "warmup"),
        ({"method": "elr"}, "warmup"),
    ],
)
def test_each_kind_of_epoch_asks_for_its_own_batches(flags, mode):
    config, spy = tiny_config(num_epochs=2, **flags), Spy(tiny_loader())
    list(train(tiny_pair(config), spy, config, first_epoch=2))
    assert spy.calls == [(mode,), (mode,)]


def loss_of_a_batch(epoch: int = 0, **config) -> tuple[float, float, float]:
    """The loss of an epoch of one batch; CE and negative entropy of the same predictions."""
    config = tiny_config(**config)
    loader = tiny_loader(n=10, batch_size=8)
    pair, batches = tiny_pair(config), list(loader.run("warmup"))
    ((images, labels, _),) = batches
    logits = copy.deepcopy(pair.networks[0]).train()(images).detach()

    class OneBatch(Spy):
        def run(self, mode, *_, **__):
            return batches

    result = smr.new_method(config, pair, OneBatch(loader)).train_epoch(epoch)
    assert result.metrics["train/net1/images"] == 10
    cross_entropy = F.cross_entropy(logits, labels).item()
    return result.metrics["train/net1/loss"], cross_entropy, NegEntropy()(logits).item()


@pytest.mark.parametrize(
    ("flags", "terms"),
    [
        ({"method": "dividemix"}, "ce"),
        ({"method": "dividemix", "entropy_penalty": True}, "ce + penalty"),
        ({"entropy_penalty": True}, "mixup"),
        ({"method": "ce", "entropy_penalty": True}, "ce"),
        ({"epoch": 1, "warm_up": 0, "recalibrate_every": 2, "entropy_penalty": True}, "ce"),
    ],
)
def test_smr_warms_up_with_mixup_and_the_baselines_and_recalibration_have_cross_entropy(
    flags, terms
):
    loss, cross_entropy, penalty = loss_of_a_batch(**flags)
    if terms == "mixup":
        assert loss != pytest.approx(cross_entropy, rel=1e-3)
    else:
        penalty = penalty if "penalty" in terms else 0
        assert loss == pytest.approx(cross_entropy + penalty, rel=1e-5)


def test_dividemix_is_smr_with_other_values_of_two_flags():
    smr_s, dividemix_s = tiny_config(), tiny_config(method="dividemix")
    changed = {k for k, v in asdict(dividemix_s).items() if v != asdict(smr_s)[k]}
    assert changed == {"method", "warmup_loss", "recalibrate_every"}
    assert (dividemix_s.warmup_loss, dividemix_s.recalibrate_every) == ("ce", 0)


# --- state, and a method of one's own ---


class Frozen(smr.Method):
    """A method that trains nothing and counts its epochs, from `--count_from`."""

    @dataclass
    class Flags:
        count_from: int = smr.flag("frozen: first count", default=3, low=0, high=9)

    def __init__(self, config, pair, loader, log=None):
        super().__init__(config, pair, loader, log)
        self.count = config.count_from

    def kind_of_epoch(self, epoch):
        return "frozen"

    def train(self, epoch):
        def train_network(k, progress):
            self.count += 1
            return {"images": 1, "seconds": 1.0, "count": self.count}

        return self.for_each_network(epoch, train_network), ()

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_a_method_of_your_own_is_one_class_with_its_flags_named_in_the_registry(monkeypatch):
    monkeypatch.setitem(smr.METHODS, "frozen", Frozen)
    config = tiny_config(method="frozen", num_epochs=1)
    results = list(train(tiny_pair(config), tiny_loader(), config))
    assert [r.kind for r in results] == ["frozen"] * 2
    assert results[1].metrics["train/net2/count"] == 7
    assert tiny_config(method="frozen", count_from=9).count_from == 9
    for flags, words in (
        ({"method": "frozen", "count_from": 10}, "--count_from 10: expected a whole number"),
        ({"method": "frozen", "warm_up": 1}, "--warm_up: only with --method smr or dividemix"),
        ({"count_from": 1}, "--count_from: only with --method frozen"),
        ({"method": "thawed"}, "--method thawed: expected one of smr, .*, frozen"),
    ):
        with pytest.raises(smr.InputError, match=words):
            smr.configure(TinyConfig, **flags)

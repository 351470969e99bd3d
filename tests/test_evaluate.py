"""Networks in eval mode: logits by batches, per-sample losses, and the test (method 3 and 4)."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Spy, TinyNet, generator, plain_images, state_copy, tiny_config, tiny_loader
from sklearn import metrics
from test_training import Fixed, positions
from torch.testing import assert_close

import smr


def batches_of(loader, size: int = 8) -> list:
    """The training images, not augmented, in batches of this size."""
    columns = plain_images(loader), loader.noisy_labels, torch.arange(len(loader.noisy_labels))
    return list(zip(*(column.split(size) for column in columns), strict=True))


def test_sample_losses_are_in_ascending_order_and_leave_the_network_as_it_was():
    loader, network = tiny_loader(n=23), TinyNet().train()
    before, batches = state_copy(network), batches_of(loader)
    scored = smr.sample_losses(network, loader.run("eval_train"))
    assert not network.training
    logits = network(plain_images(loader))
    expected = F.cross_entropy(logits, loader.noisy_labels, reduction="none").detach()
    assert scored.index.tolist() == list(range(23))
    assert_close(scored.losses, expected)
    assert not scored.losses.requires_grad
    for order, index in (((2, 0, 1), range(23)), ((2, 0), [*range(8), *range(16, 23)])):
        scored = smr.sample_losses(network, [batches[k] for k in order])
        assert scored.index.tolist() == [*index]
        assert_close(scored.losses, expected[[*index]])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_predictions_are_each_network_s_logits_of_each_batch_in_eval_mode():
    loader, networks = tiny_loader(n=11), [TinyNet().train(), TinyNet().train()]
    predicted = list(smr.predict_batches(networks, batches_of(loader)))
    assert [logits.shape for logits, *_ in predicted] == [(2, 8, 10), (2, 3, 10)]
    for k, network in enumerate(networks):
        assert not network.training
        expected = network(plain_images(loader)).detach()
        assert_close(torch.cat([logits[k] for logits, *_ in predicted]), expected)
    assert torch.cat([labels for _, labels, _ in predicted]).equal(loader.noisy_labels)
    assert torch.cat([index for *_, index in predicted]).tolist() == list(range(11))


def test_predictions_in_bf16_are_rounded_and_returned_as_float32():
    loader, network = tiny_loader(n=8), TinyNet()
    (exact, *_), (rounded, *_) = (
        next(smr.predict_batches([network], loader.run("eval_train"), amp)) for amp in (False, True)
    )
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.05
    (both, _), (plain, _) = (
        smr.evaluate([network] * 2, loader.run("test"), tiny_config(amp=amp))
        for amp in (True, False)
    )
    assert both.keys() == plain.keys()
    losses = [smr.sample_losses(network, loader.run("eval_train"), amp) for amp in (True, False)]
    assert 0 < (losses[0].losses - losses[1].losses).abs().max() < 0.05


def two_networks(n: int, classes: int) -> tuple[list[torch.Tensor], torch.Tensor, list]:
    """Each network's logits [n, classes], the labels, and batches that `Fixed` networks take."""
    logits = [torch.randn(n, classes, generator=generator(seed)) for seed in (1, 2)]
    for own in logits:
        own[:, 3] = -9  # a class that is never predicted
    labels = torch.randint(classes, (n,), generator=generator(3))
    images = positions(n).split(32)
    batches = [(x, y, None) for x, y in zip(images, labels.split(32), strict=True)]
    return logits, labels, batches


def test_figures_are_scikit_learn_s_of_the_added_logits():
    logits, labels, batches = two_networks(n=90, classes=5)
    figures, confusion = smr.evaluate([Fixed(own) for own in logits], batches, tiny_config())
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
    assert figures == pytest.approx({name: 100 * value for name, value in expected.items()})
    assert len({figures["accuracy"], figures["net1/accuracy"], figures["net2/accuracy"]}) == 3
    assert (confusion == metrics.confusion_matrix(labels, both)).all()


def test_top5_is_scikit_learn_s_of_the_added_logits_if_the_script_reports_it():
    logits, labels, batches = two_networks(n=90, classes=12)
    networks = [Fixed(own) for own in logits]
    figures, _ = smr.evaluate(networks, batches, tiny_config(top5=True))
    expected = metrics.top_k_accuracy_score(
        labels, (logits[0] + logits[1]).numpy(), k=5, labels=range(12)
    )
    assert figures["top5"] == pytest.approx(100 * expected)
    assert figures["accuracy"] < figures["top5"] < 100


class TwoTestSets(Spy):
    """A loader with two test sets: its own, and the first five images of it."""

    test_sets = ("webvision", "imagenet")

    def run(self, mode, *arguments, **options):
        self.calls.append((mode,))
        ((images, labels, index),) = self.loader.run("test")
        count = 5 if mode == "imagenet" else len(images)
        return [(images[:count], labels[:count], index[:count])]


def test_each_test_set_has_its_figures_and_its_confusion():
    config, networks = tiny_config(top5=True), [TinyNet(), TinyNet()]
    loader = TwoTestSets(tiny_loader(batch_size=20))
    tests = smr.test(networks, loader, config)
    assert [*loader.calls] == [("webvision",), ("imagenet",)]
    assert [*tests] == ["webvision", "imagenet"]
    for name, count in (("webvision", 20), ("imagenet", 5)):
        figures, confusion = smr.evaluate(networks, loader.run(name), config)
        assert {"accuracy", "top5", "net2/accuracy"} <= figures.keys()
        assert tests[name].figures == figures
        assert tests[name].confusion.tolist() == confusion.tolist()
        assert confusion.sum() == count

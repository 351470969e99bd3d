"""Networks in eval mode: logits by batches, per-sample losses, and the test (method 3 and 4)."""

import pytest
import torch
import torch.nn.functional as F
from helpers import TinyNet, generator, plain_images, state_copy, tiny_config, tiny_loader
from sklearn import metrics
from torch import nn
from torch.testing import assert_close

import smr


class Fixed(nn.Module):
    """Returns these logits; an image's first pixel is its position."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits))

    def forward(self, images):
        return self.logits[images[:, 0, 0, 0].long()]


def positions(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 3, 2, 2)


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
    for predict in (
        lambda amp: next(smr.predict_batches([network], loader.run("eval_train"), amp))[0],
        lambda amp: smr.sample_losses(network, loader.run("eval_train"), amp).losses,
    ):
        exact, rounded = predict(False), predict(True)
        assert exact.dtype == rounded.dtype == torch.float32
        assert 0 < (exact - rounded).abs().max() < 0.05


def test_figures_are_scikit_learn_s_of_the_added_logits():
    first, second = (torch.randn(90, 12, generator=generator(seed)) for seed in (1, 2))
    first[:, 3] = second[:, 3] = -9  # a class that is never predicted
    labels = torch.randint(12, (90,), generator=generator(4))
    batches = zip(*(column.split(32) for column in (positions(90), labels, labels)), strict=True)
    config = tiny_config(top5=True)
    figures, confusion = smr.evaluate([Fixed(first), Fixed(second)], batches, config)
    both, macro = (first + second).argmax(dim=1), {"average": "macro", "zero_division": 0}
    top5 = metrics.top_k_accuracy_score(labels, (first + second).numpy(), k=5, labels=range(12))
    expected = {
        "accuracy": metrics.accuracy_score(labels, both),
        "precision": metrics.precision_score(labels, both, **macro),
        "recall": metrics.recall_score(labels, both, **macro),
        "f1": metrics.f1_score(labels, both, **macro),
        "top5": top5,
        "net1/accuracy": metrics.accuracy_score(labels, first.argmax(dim=1)),
        "net2/accuracy": metrics.accuracy_score(labels, second.argmax(dim=1)),
    }
    assert figures == pytest.approx({name: 100 * value for name, value in expected.items()})
    assert len({figures["accuracy"], figures["net1/accuracy"], figures["net2/accuracy"]}) == 3
    assert figures["accuracy"] < figures["top5"] < 100
    assert (confusion == metrics.confusion_matrix(labels, both, labels=range(12))).all()


class TwoTestSets:
    """The test images of a tiny loader, and the first five of them."""

    test_sets = ("webvision", "imagenet")

    def run(self, mode):
        (batch,) = tiny_loader(batch_size=20).run("test")
        return [[column[: 5 if mode == "imagenet" else 20] for column in batch]]


def test_each_test_set_has_its_figures_and_its_confusion():
    config, loader, networks = tiny_config(), TwoTestSets(), [TinyNet(), TinyNet()]
    tests = smr.test(networks, loader, config)
    assert [(name, test.confusion.sum()) for name, test in tests.items()] == [
        ("webvision", 20),
        ("imagenet", 5),
    ]
    for name, test in tests.items():
        figures, confusion = smr.evaluate(networks, loader.run(name), config)
        assert test.figures == figures and "top5" not in figures
        assert test.confusion.tolist() == confusion.tolist()

"""No training step waits for the GPU, and tensors stay where CUDA graphs would need them."""

import contextlib
from functools import partial

import pytest
import torch
from helpers import TinyNet, generator, tiny_config
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import smr
from smr.data.augment import strong_augment
from smr.training import mixmatch_loss

CUDA = torch.device("cuda")
B = 8


class Served(list):
    """Batches as a loader serves them."""

    batch_size = B

    @property
    def dataset(self) -> range:
        return range(sum(len(batch[0]) for batch in self))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Two networks on a fake CUDA device, of whose tensors no value can be read.

    Autograd needs a real GPU: backward passes return gradients of zeros.
    """

    def backward(_loss):
        for network in networks:
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)

    networks = []
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with FakeTensorMode(), torch.device(CUDA), contextlib.suppress(UserWarning):
        networks += [TinyNet() for _ in range(2)]
        sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "foreach": False}
        yield smr.Pair(networks, [torch.optim.SGD(n.parameters(), **sgd) for n in networks])


def images(count: int = B) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32)


def labels(count: int = B) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.long)


def supervised_batches() -> Served:
    return Served((images(n), labels(n), labels(n)) for n in (B, B, 3))


def supervised(pair, progress, epoch) -> None:
    epoch(pair.networks[0], pair.optimizers[0], supervised_batches(), tiny_config(), progress)


def elr(pair, progress) -> None:
    class Loader:
        noisy_labels, class_names = labels(2 * B + 3), range(10)

        def run(self, mode):
            return supervised_batches()

    smr.new_method(tiny_config(method="elr"), pair, Loader()).train_network(0, progress)


def semi_supervised(pair, progress, **options) -> None:
    labeled = Served((images(n), images(n), labels(n), torch.rand(n)) for n in (B, B, 3))
    unlabeled = Served([(images(), images()), (images(2), images(2))])
    arguments = *pair.networks, pair.optimizers[0], labeled, unlabeled, 20, tiny_config(**options)
    smr.mixmatch_epoch(*arguments, progress)


@pytest.mark.parametrize(
    "epoch",
    [
        partial(supervised, epoch=smr.mixup_epoch),
        partial(supervised, epoch=partial(smr.cross_entropy_epoch, entropy_penalty=1)),
        elr,
        semi_supervised,
        partial(semi_supervised, labeled_rows_only=True),
    ],
    ids=["mixup", "cross-entropy", "elr", "semi-supervised", "labeled rows only"],
)
def test_an_epoch_reads_no_value_until_its_end(on_a_gpu, epoch):
    steps = []
    with pytest.raises(DataDependentOutputException):
        epoch(on_a_gpu, lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3]


def test_strong_augmentation_reads_no_value():
    """Of a tensor on `meta` no value can be read either; the draws are the CPU's."""
    pixels = torch.empty((64, 32, 32, 3), dtype=torch.uint8, device="meta")
    views = strong_augment(pixels, generator())
    assert (views.device.type, views.shape) == ("meta", pixels.shape)


def test_sample_losses_read_no_value(on_a_gpu):
    batches = Served((images(n), labels(n), torch.arange(n)) for n in (B, 5))
    scored = smr.sample_losses(on_a_gpu.networks[0], batches)
    assert scored.losses.device.type == "cuda" and len(scored.losses) == B + 5


def step_gradients(cache_enabled: bool) -> list[torch.Tensor]:
    """Gradients of a semi-supervised step in bf16; targets are made under the same autocast."""
    torch.manual_seed(0)
    network, peer = TinyNet().train(), TinyNet().eval()
    x1, x2, u1, u2 = torch.randn(4, B, 3, 32, 32, generator=generator())
    labeled = (x1, x2, torch.arange(B), torch.linspace(0, 1, B))
    permutation = torch.randperm(4 * B, generator=generator(1))
    step = (network, peer, labeled, (u1, u2), 0.7, permutation, 20, tiny_config(T=0.5))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache_enabled):
        loss = mixmatch_loss(*step).loss
    loss.backward()
    return [parameter.grad for parameter in network.parameters()]


def test_weights_cast_for_the_targets_leave_the_mixed_pass_its_gradients():
    """Autocast keeps the bf16 weights that it cast without gradients: they must not be reused."""
    for one, other in zip(step_gradients(True), step_gradients(False), strict=True):
        assert torch.equal(one, other)
        assert float(one.abs().max()) > 0

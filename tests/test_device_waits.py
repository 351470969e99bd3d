"""What no CPU shows: that no step waits for a CUDA card, and what CUDA graphs would need."""

import contextlib

import pytest
import torch
from helpers import TinyNet, generator, tiny_recipe
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import smr
from PreResNet import ResNet18
from smr.metrics import Meter
from smr.steps import mixmatch_loss

CUDA = torch.device("cuda")
B = 8


class Given:
    """An iterable of given batches, such as a loader's."""

    def __init__(self, *batches):
        self.batches, self.batch_size = batches, B
        self.dataset = range(sum(len(batch[0]) for batch in batches))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


@pytest.fixture
def on_a_card(monkeypatch):
    """Tensors are fake ones of a CUDA card, of which nobody can read a value.

    Autograd's engine wants a real card, so backward passes give gradients of zeros; and a pass's
    figures, which are read at its end, are left out.
    """

    def backward(_loss):
        for network in networks:
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)

    networks = []
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(Meter, "figures", lambda _: {})
    with FakeTensorMode(), torch.device(CUDA), contextlib.suppress(UserWarning):
        networks += [TinyNet() for _ in range(2)]
        sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "foreach": False}
        yield smr.Pair(networks, [torch.optim.SGD(n.parameters(), **sgd) for n in networks])


def images(count: int = B) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32)


def labels(count: int = B) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.long)


def test_reading_a_value_of_a_fake_card_raises(on_a_card):
    with pytest.raises(DataDependentOutputException):
        float(images().sum())


@pytest.mark.parametrize("warmup_loss", ["mixup", "ce"])
def test_a_warm_up_pass_reads_no_value_until_its_end(on_a_card, warmup_loss):
    batches = Given(*[(images(n), labels(n), labels(n)) for n in (2 * B, 2 * B, 3)])
    recipe = tiny_recipe(warmup_loss=warmup_loss, warmup_penalty=True)
    smr.warm_up_epoch(on_a_card.networks[0], on_a_card.optimizers[0], batches, recipe)


@pytest.mark.parametrize("labeled_rows_only", [False, True])
def test_a_semi_supervised_pass_reads_no_value_until_its_end(on_a_card, labeled_rows_only):
    sizes = (B, B, 3)
    labeled = Given(*[(images(n), images(n), labels(n), torch.rand(n)) for n in sizes])
    unlabeled = Given((images(), images()), (images(2), images(2)))
    recipe = tiny_recipe(labeled_rows_only=labeled_rows_only)
    smr.semi_supervised_epoch(
        *on_a_card.networks, on_a_card.optimizers[0], labeled, unlabeled, 20, recipe
    )


def test_a_scoring_pass_reads_no_value(on_a_card):
    batches = Given(*[(images(n), labels(n), torch.arange(n)) for n in (B, 5)])
    scores = smr.sample_losses(ResNet18(10, 4), batches)
    assert scores.losses.device.type == "cuda" and len(scores.losses) == B + 5


def step_gradients(targets_within: bool) -> list[torch.Tensor]:
    """Gradients of a semi-supervised step in bf16, its targets made in the same autocast block."""
    torch.manual_seed(0)
    network, peer = ResNet18(10, 4).train(), ResNet18(10, 4).eval()
    x1, x2, u1, u2 = torch.randn(4, B, 3, 32, 32, generator=generator())
    labeled = x1, x2, torch.arange(B), torch.linspace(0, 1, B)
    permutation = torch.randperm(4 * B, generator=generator(1))
    step = (network, peer, labeled, (u1, u2), 0.7, permutation, 20, tiny_recipe(T=0.5))
    if targets_within:
        with torch.autocast("cpu", torch.bfloat16):
            loss = mixmatch_loss(*step).loss
    else:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = mixmatch_loss(*step).loss
    loss.backward()
    return [parameter.grad for parameter in network.parameters()]


def test_weights_cast_for_the_targets_leave_the_mixed_pass_its_gradients():
    """Autocast keeps the bf16 weights that it cast without gradients: they must not be reused."""
    cached, recast = step_gradients(True), step_gradients(False)
    assert len(cached) == len(recast) > 20
    for one, other in zip(cached, recast, strict=True):
        assert torch.equal(one, other)
        assert float(one.abs().max()) > 0


def test_training_and_testing_leave_weights_buffers_and_momentum_where_they_are():
    recipe, labels = tiny_recipe(), torch.arange(B)
    pair = smr.new_pair(lambda: ResNet18(10, 4), recipe, torch.device("cpu"), channels_last=True)
    batches = Given((torch.randn(B, 3, 32, 32), labels, labels))

    def places() -> list[int]:
        network, optimizer = pair.networks[0], pair.optimizers[0]
        momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
        return [tensor.data_ptr() for tensor in (*network.state_dict().values(), *momentum)]

    smr.warm_up_epoch(pair.networks[0], pair.optimizers[0], batches, recipe)
    before = places()
    assert len(before) == len(pair.networks[0].state_dict()) + len([*pair.networks[0].parameters()])
    smr.sample_losses(pair.networks[0], batches)
    smr.warm_up_epoch(pair.networks[0], pair.optimizers[0], batches, recipe)
    smr.test(pair.networks, batches, recipe)
    assert places() == before

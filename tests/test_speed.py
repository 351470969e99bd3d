"""What makes it fast changes no numbers: formats, bf16, compilation, trailing batches."""

from functools import partial
from unittest import mock

import pytest
import torch
from helpers import TinyNet, generator, state_copy, tiny_config, tiny_loader, tiny_pair, train
from runs import run_short
from torch import nn
from torch._dynamo.utils import counters

import smr
from dataloader_cifar import cifar_dataloader
from PreResNet import PreActResNet
from smr import devices
from smr.training import autocast, optimizer_step

CPU = torch.device("cpu")


def images_of(count: int) -> torch.Tensor:
    """Normal images [count, 3, 16, 16]."""
    return torch.randn(count, 3, 16, 16, generator=generator())


def worn(network: nn.Module) -> nn.Module:
    """The network with BN statistics, scales and shifts as training leaves them."""
    source = generator(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            module.running_mean.copy_(torch.randn(shape, generator=source) / 5)
            module.running_var.copy_(torch.rand(shape, generator=source) + 0.5)
            module.weight.data.copy_(torch.rand(shape, generator=source) + 0.5)
            module.bias.data.copy_(torch.randn(shape, generator=source) / 5)
    return network


def flat_parameters(network: nn.Module) -> torch.Tensor:
    """All parameters in one copy."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def step_of(channels_last: bool, amp: bool = False):
    """A semi-supervised step of a small PreAct-ResNet: its MixMatchLoss, and the update."""
    torch.manual_seed(3)
    config = tiny_config(channels_last=channels_last, amp=amp)
    pair = smr.new_pair(partial(PreActResNet, (1, 1, 1, 1), 10, 4), config, CPU)
    network, peer = (worn(network) for network in pair.networks)
    before = flat_parameters(network)
    network.train()
    peer.eval()
    x1, x2, u1, u2 = images_of(16).split(4)
    if channels_last:
        x1, x2, u1, u2 = (v.to(memory_format=torch.channels_last) for v in (x1, x2, u1, u2))
    labeled = (x1, x2, torch.arange(4), torch.tensor([0.1, 0.5, 0.9, 1.0]))
    permutation = torch.randperm(16, generator=generator())
    with autocast(CPU, amp):
        result = smr.mixmatch_loss(network, peer, labeled, (u1, u2), 0.7, permutation, 40.0, config)
    optimizer_step(result.loss, pair.optimizers[0])
    return result, flat_parameters(network) - before


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference over the length of what is expected."""
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_memory_format_changes_no_figure_of_a_step():
    (plain, update), (ours, our_update) = (step_of(form) for form in (False, True))
    assert torch.allclose(ours.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert distance(our_update, update) < 1e-4


def test_networks_lie_in_the_memory_format_that_is_asked_for():
    for channels_last, form in ((True, torch.channels_last), (False, torch.contiguous_format)):
        for network in tiny_pair(tiny_config(channels_last=channels_last)).networks:
            assert network.conv.weight.is_contiguous(memory_format=form)


def test_bf16_step_agrees_with_float32_within_its_rounding():
    result, update = step_of(True)
    rounded, rounded_update = step_of(True, amp=True)
    assert 0 < distance(rounded.logits, result.logits) < 0.03
    assert rounded.loss.dtype == torch.float32
    assert float(rounded.loss.detach()) == pytest.approx(float(result.loss.detach()), rel=0.02)
    # Ten layers add up their roundings; without some layer's gradient it would be far off.
    assert distance(rounded_update, update) < 0.35


def test_compiled_networks_keep_figures_and_names_and_compile_nothing_in_later_epochs():
    # 41 images: every pass ends on a batch that is not full, of another size in each split.
    config = tiny_config(num_epochs=5, warm_up=1, recalibrate_every=3, p_threshold=0.3)

    def run(compiled: bool) -> tuple[smr.Pair, list[tuple[smr.TrainedEpoch, int]]]:
        """The networks, and each epoch with the number of graphs compiled until then."""
        devices.seed_everything(3)
        pair = tiny_pair(config)
        for network in pair.networks if compiled else ():
            before = state_copy(network)
            devices.compile_network(network, [8, 16, 32])
            assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
        counters.clear()
        epochs = train(pair, tiny_loader(n=41), config)
        return pair, [(epoch, counters["stats"]["unique_graphs"]) for epoch in epochs]

    torch.compiler.reset()
    # It traces the gradient too, and takes no minutes of a C++ compiler.
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        pair, compiled = run(compiled=True)
    _, eager = run(compiled=False)
    for (found, _), (plain, none) in zip(compiled, eager, strict=True):
        assert none == 0
        figures = {k: v for k, v in plain.metrics.items() if not k.startswith("time/")}
        assert {k: found.metrics[k] for k in figures} == pytest.approx(figures, rel=1e-4)
    made = [graphs for _, graphs in compiled]
    kinds = [epoch.kind for epoch, _ in compiled]
    assert kinds[:4] == ["warm-up", "semi-supervised", "recalibration", "semi-supervised"]
    assert made[2:] == [made[2]] * 4
    # Train mode without gradients on views, eval mode on views and scoring batches, train mode
    # with gradients on double batches and mixed ones.
    assert 4 <= made[-1] <= 10
    assert [name for name, _ in pair.networks[0].named_modules()] == ["", "conv", "bn", "linear"]
    other = TinyNet().eval()
    other.load_state_dict(pair.networks[0].state_dict())
    assert torch.equal(other(images_of(4)), pair.networks[0].eval()(images_of(4)))


@pytest.mark.skipif(not devices.can_compile(CPU), reason="no compiler, or no Python.h")
def test_a_run_compiles_the_sizes_of_full_batches(tmp_path):
    sizes = set()

    def compiled(forward, dynamic):
        def call(images):
            sizes.add((len(images), torch.is_grad_enabled()))
            return forward(images)

        return call

    # 1,100 images: each kind of epoch ends on a batch that is not full.
    flags = ("--train_images", "1100", "--compile", "on", "--num_epochs", "1")
    with mock.patch("torch.compile", compiled):
        assert run_short(tmp_path, *flags) == 0
    # With gradients: a warm-up batch, a mixed one. Without: views, the peer's two, 1,000 to score.
    assert sizes == {(64, True), (128, True), (32, False), (64, False), (1000, False)}


def test_a_short_real_run_is_the_same_in_bf16_and_channels_last_but_for_rounding():
    def run(fast: bool) -> list[smr.TrainedEpoch]:
        """A warm-up epoch and a semi-supervised one on 160 digits."""
        settings = {"channels_last": fast, "amp": fast}
        config = tiny_config(num_epochs=1, warm_up=1, batch_size=32, lr=0.05, **settings)
        devices.seed_everything(1)
        loader = cifar_dataloader(
            "digits", 0.5, "sym", 32, 0, "", None, channels_last=fast, train_images=160
        )
        pair = smr.new_pair(partial(PreActResNet, (1, 1, 1, 1), 10, 4), config, CPU)
        return list(train(pair, loader, config))

    plain, found = run(False), run(True)
    for network in (1, 2):
        loss = f"train/net{network}/loss"
        assert found[0].metrics[loss] == pytest.approx(plain[0].metrics[loss], rel=2e-3)
        # An image near the threshold may change sides, and with it the steps that follow.
        labeled, wanted = (epochs[1].splits[network - 1].labeled for epochs in (found, plain))
        assert (labeled != wanted).mean() < 0.1
        assert found[1].metrics[loss] == pytest.approx(plain[1].metrics[loss], rel=0.05)

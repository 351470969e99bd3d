"""What makes it fast changes no numbers: formats, folding, bf16, compilation, trailing batches."""

import copy
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import TinyNet, generator, tiny_recipe
from torch import nn
from torch._dynamo.utils import counters

import experiment
import smr
from batches import Augmentation, ImageSet
from dataloader_cifar import cifar_dataloader
from PreResNet import PreActResNet, ResNet18
from support import session
from support.scoring import scorer

CPU = torch.device("cpu")


def images_of(count: int, seed: int = 0) -> torch.Tensor:
    """Normal images [count, 3, 16, 16]."""
    return torch.randn(count, 3, 16, 16, generator=generator(seed))


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


def step_of(channels_last: bool, recipe: smr.Recipe, compiled: bool = False):
    """A semi-supervised step of a small PreAct-ResNet: its MixMatchLoss, and the update."""
    torch.manual_seed(3)
    pair = smr.new_pair(partial(PreActResNet, (1, 1, 1, 1), 10, 4), recipe, CPU, channels_last)
    network, peer = (worn(network) for network in pair.networks)
    before = flat_parameters(network)
    if compiled:
        session.compile_for(network, [4, 8, 16])
    network.train()
    peer = scorer(peer)
    x1, x2, u1, u2 = images_of(16).split(4)
    if channels_last:
        x1, x2, u1, u2 = (v.to(memory_format=torch.channels_last) for v in (x1, x2, u1, u2))
    labelled = x1, x2, torch.arange(4), torch.tensor([0.1, 0.5, 0.9, 1.0])
    permutation = torch.randperm(16, generator=generator())
    with smr.autocast(CPU, recipe.amp):
        result = smr.mixmatch_loss(
            network, peer, labelled, (u1, u2), 0.7, permutation, 40.0, recipe
        )
    smr.optimise(result.loss, pair.optimisers[0])
    return result, flat_parameters(network) - before


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference over the length of what is expected."""
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_memory_format_changes_no_value_of_a_batch():
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    served = [
        ImageSet(images, (0.5,) * 3, (0.2,) * 3, Augmentation(4, True), CPU, channels_last)
        for channels_last in (False, True)
    ]
    views = [each.augmented(torch.arange(6), generator()) for each in served]
    assert torch.equal(*views)
    assert torch.equal(*(each.plain(torch.arange(6)) for each in served))
    assert views[0].is_contiguous()
    assert views[1].is_contiguous(memory_format=torch.channels_last)


def test_memory_format_changes_no_figure_of_a_step():
    (plain, update), (ours, our_update) = (step_of(form, tiny_recipe()) for form in (False, True))
    assert torch.allclose(ours.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert distance(our_update, update) < 1e-4


def test_bf16_step_agrees_with_float32_within_its_rounding():
    result, update = step_of(True, tiny_recipe())
    rounded, rounded_update = step_of(True, tiny_recipe(amp=True))
    assert 0 < distance(rounded.logits, result.logits) < 0.03
    assert rounded.loss.dtype == torch.float32
    assert float(rounded.loss) == pytest.approx(float(result.loss), rel=0.02)
    # Ten layers add up their roundings; without some layer's gradient it would be far off.
    assert distance(rounded_update, update) < 0.35


def test_compiled_step_agrees_with_eager():
    recipe = tiny_recipe()
    result, update = step_of(True, recipe)
    # The compiler's own front end and autograd, without the minutes of its C++ compiler.
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        compiled, compiled_update = step_of(True, recipe, compiled=True)
    assert torch.allclose(compiled.logits, result.logits, rtol=1e-4, atol=1e-5)
    assert distance(compiled_update, update) < 1e-4


@pytest.mark.parametrize("build", [TinyNet, partial(ResNet18, 10, 4)])
def test_folded_scoring_agrees_with_the_network_in_eval_mode(build):
    network = worn(build())
    images = images_of(8)
    score = scorer(network)
    with torch.no_grad():
        assert torch.allclose(score(images), network.eval()(images), rtol=1e-4, atol=1e-5)


def test_folding_takes_away_each_batch_norm_that_follows_a_convolution():
    def batch_norms(network):
        return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())

    network = ResNet18(10, 4)
    assert batch_norms(network) == 17
    # The stem's and the second of each of eight blocks are gone; the others follow a sum.
    assert batch_norms(scorer(network)) == 8
    assert batch_norms(network) == 17


def test_scoring_leaves_the_network_as_it_was():
    network = worn(TinyNet())
    before = copy.deepcopy(network.state_dict())
    batches = [(images_of(4), torch.arange(4), torch.arange(4))]
    smr.sample_losses(network, batches)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_network_that_cannot_be_traced_scores_unfolded():
    class Branching(TinyNet):
        def forward(self, images):
            return super().forward(images if images.mean() > 0 else -images)

    network = worn(Branching())
    assert scorer(network) is network
    assert not network.training


def test_trailing_batches_are_neither_compiled_for_nor_dropped():
    with mock.patch("torch.compile", partial(torch.compile, backend="eager")):
        networks = [TinyNet(), TinyNet()]
        for network in networks:
            session.compile_for(network, [4, 8, 16])
    plain = [copy.deepcopy(network) for network in networks]
    counters.clear()
    for epoch in range(4):
        for network, same in zip(networks, plain, strict=True):
            for size in (4, 8, 5 + epoch):
                images = images_of(size, seed=epoch)
                assert torch.allclose(network(images), same(images), atol=1e-6)
    graphs = counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 4  # the two full sizes, for each network at most; none for 5, 6, 7 and 8


def short_run(seed: int, setting: str) -> float:
    """Mean test accuracy of the last two epochs of a short run on the digits."""
    recipe = tiny_recipe(num_epochs=5, warm_up=3, batch_size=32, seed=seed, amp=setting == "bf16")
    experiment.seed_everything(seed)
    loader = cifar_dataloader(
        "digits", 0.5, "sym", 32, 0, "", None, seed=seed, channels_last=setting != "plain"
    )
    build = partial(PreActResNet, (1, 1, 1, 1), 10, 8)
    pair = smr.new_pair(build, recipe, CPU, channels_last=setting != "plain")
    if setting == "compiled":
        for network in pair.networks:
            session.compile_for(network, [32, 64, 128])
    accuracies = [result.metrics["test/accuracy"] for result in smr.train(pair, loader, recipe)]
    return sum(accuracies[-2:]) / 2


@pytest.mark.slow
def test_short_real_runs_are_as_accurate_in_each_setting_within_the_noise_of_seeds():
    settings, seeds = ("plain", "bf16", "compiled"), (1, 2, 3)
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        found = {s: np.array([short_run(seed, s) for seed in seeds]) for s in settings}
    print(found)
    spread = found["plain"].std(ddof=1)
    assert found["plain"].mean() > 60
    for accuracies in found.values():
        # Three standard errors of a difference between two means of three.
        assert abs(accuracies.mean() - found["plain"].mean()) < 3 * spread * (2 / 3) ** 0.5 + 1

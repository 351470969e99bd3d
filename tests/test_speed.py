"""What makes it fast changes no numbers: formats, bf16, compilation, trailing batches."""

import copy
from functools import cache, partial
from unittest import mock

import pytest
import torch
from helpers import TinyNet, generator, state_copy, tiny_loader, tiny_pair, tiny_recipe
from torch import nn
from torch._dynamo.utils import counters

import smr
from dataloader_cifar import cifar_dataloader
from PreResNet import PreActResNet
from smr.data import loader as loaders
from smr.run import devices
from smr.run import run as session
from smr.training import autocast, optimize
from train_cifar import build_network

CPU = torch.device("cpu")


def compiler(backend: str):
    """A context in which networks are compiled by this backend, without a C++ compiler's minutes.

    "eager" is the compiler's front end alone; "aot_eager" traces the gradient too.
    """
    torch.compiler.reset()
    return mock.patch("torch.compile", partial(torch.compile, backend=backend))


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
        devices.compile_network(network, [16])  # the pass with a gradient; the tracing takes long
    network.train()
    peer.eval()
    x1, x2, u1, u2 = images_of(16).split(4)
    if channels_last:
        x1, x2, u1, u2 = (v.to(memory_format=torch.channels_last) for v in (x1, x2, u1, u2))
    labeled = x1, x2, torch.arange(4), torch.tensor([0.1, 0.5, 0.9, 1.0])
    permutation = torch.randperm(16, generator=generator())
    with autocast(CPU, recipe.amp):
        result = smr.mixmatch_loss(network, peer, labeled, (u1, u2), 0.7, permutation, 40.0, recipe)
    optimize(result.loss, pair.optimizers[0])
    return result, flat_parameters(network) - before


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference over the length of what is expected."""
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_memory_format_changes_no_figure_of_a_step():
    (plain, update), (ours, our_update) = (step_of(form, tiny_recipe()) for form in (False, True))
    assert torch.allclose(ours.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert distance(our_update, update) < 1e-4


def test_networks_lie_in_the_memory_format_that_is_asked_for():
    for channels_last, form in ((True, torch.channels_last), (False, torch.contiguous_format)):
        pair = smr.new_pair(TinyNet, tiny_recipe(), CPU, channels_last)
        for network in pair.networks:
            assert network.conv.weight.is_contiguous(memory_format=form)


def test_bf16_step_agrees_with_float32_within_its_rounding():
    result, update = step_of(True, tiny_recipe())
    rounded, rounded_update = step_of(True, tiny_recipe(amp=True))
    assert 0 < distance(rounded.logits, result.logits) < 0.03
    assert rounded.loss.dtype == torch.float32
    assert float(rounded.loss.detach()) == pytest.approx(float(result.loss.detach()), rel=0.02)
    # Ten layers add up their roundings; without some layer's gradient it would be far off.
    assert distance(rounded_update, update) < 0.35


def test_compiled_step_agrees_with_eager():
    recipe = tiny_recipe()
    result, update = step_of(True, recipe)
    with compiler("aot_eager"):
        compiled, compiled_update = step_of(True, recipe, compiled=True)
    assert torch.allclose(compiled.logits, result.logits, rtol=1e-4, atol=1e-5)
    assert distance(compiled_update, update) < 1e-4


def test_compiling_changes_no_weight_and_no_name():
    network = worn(TinyNet())
    before = state_copy(network)
    with compiler("eager"):
        devices.compile_network(network, [4])
    network.eval()(images_of(4))
    assert list(network.state_dict()) == list(before)
    assert [name for name, _ in network.named_modules()] == ["", "conv", "bn", "linear"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    other = TinyNet()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(images_of(4)), network(images_of(4)))


def graphs() -> int:
    """How many graphs the compiler has made since the counters were cleared."""
    return counters["stats"]["unique_graphs"]


def test_full_batches_are_compiled_and_trailing_ones_are_not():
    with compiler("eager"):
        networks = [TinyNet(), TinyNet()]
        for network in networks:
            devices.compile_network(network, [4, 8])
    plain = [copy.deepcopy(network) for network in networks]
    for network in plain:
        del network.forward
    counters.clear()
    made = []
    for epoch in range(4):
        for network, same in zip(networks, plain, strict=True):
            for size in (4, 8, 9 + epoch):
                images = images_of(size, seed=epoch)
                assert torch.allclose(network(images), same(images), atol=1e-6)
        made.append(graphs())
    assert made == [made[0]] * 4
    assert 2 <= made[0] <= 4  # the two full sizes, for each network at most


def test_epochs_after_each_kind_s_first_compile_nothing_anew_and_give_the_same_figures():
    # 41 images: every pass ends on a batch that is not full, of another size in each split.
    recipe = tiny_recipe(num_epochs=9, warm_up=2, recalibrate_every=3, p_threshold=0.3)

    def run(compiled: bool) -> list[tuple[smr.EpochResult, int]]:
        devices.seed_everything(3)
        pair = tiny_pair(recipe)
        for network in pair.networks if compiled else ():
            devices.compile_network(network, [8, 16, 32])
        counters.clear()
        return [(result, graphs()) for result in smr.train(pair, tiny_loader(n=41), recipe)]

    with compiler("eager"):
        compiled = run(compiled=True)
    for (found, _), (plain, none) in zip(compiled, run(compiled=False), strict=True):
        assert none == 0
        figures = {k: v for k, v in plain.metrics.items() if not k.startswith("time/")}
        assert {k: found.metrics[k] for k in figures} == pytest.approx(figures, rel=1e-4)
    made = [(result.kind, number) for result, number in compiled]
    kinds = [kind for kind, _ in made]
    last_new_kind = max(kinds.index(kind) for kind in {*kinds})
    assert {number for _, number in made[last_new_kind:]} == {made[last_new_kind][1]}
    # Train mode without gradients on views, eval mode on views and scoring batches, train mode
    # with gradients on double batches and mixed ones.
    assert 4 <= made[-1][1] <= 10


@pytest.mark.parametrize("amp", [False, True])
def test_a_run_compiles_its_networks_for_the_sizes_of_full_batches(amp, monkeypatch):
    config = {"amp": amp, "channels_last": False, "compile": True, "num_class": 10, "width": 2}
    config |= {"network": "preact_resnet18", "dataset": "digits", "batch_size": 32}
    asked = []
    monkeypatch.setattr(devices, "compile_network", lambda network, sizes: asked.append(sizes))
    recipe_values = {name: getattr(tiny_recipe(), name) for name in vars(tiny_recipe())}
    script = session.Script("train_cifar.py", None, None, build_network)
    session.make_pair(script, recipe_values | config, CPU)
    assert asked == [[32, 64, 128, 1000]] * 2
    session.make_pair(script, recipe_values | config | {"compile": False}, CPU)
    assert len(asked) == 2


def test_a_run_compiles_six_graphs_at_most_and_none_after_its_first_semi_supervised_epoch(
    monkeypatch,
):
    made = []

    def counting(graph, _):
        made.append(graph)
        return graph.forward

    # 83 images: the warm-up ends on a batch of 3, each split on one of a size of its own.
    recipe = tiny_recipe(num_epochs=3, recalibrate_every=0, p_threshold=0.3)
    config = vars(recipe) | {"channels_last": False, "compile": True}
    for room in (loaders, session):
        monkeypatch.setattr(room, "SCORING_BATCH", 40)
    script = session.Script("train_cifar.py", None, None, lambda _: TinyNet())
    with compiler(counting):
        pair = session.make_pair(script, config, CPU)
    after, trailing = [], set()
    for result in smr.train(pair, tiny_loader(n=83), recipe):
        after.append(len(made))
        trailing |= {int(split.labeled.sum()) % 8 for split in result.splits or ()}
    assert len(trailing) > 2
    assert after[1:] == [after[1]] * 3
    # With gradients: a warm-up batch, a mixed one. Without: views, the peer's two, a scoring batch.
    assert after[1] == 5


@cache
def short_run(channels_last: bool, amp: bool) -> list[smr.EpochResult]:
    """A warm-up epoch and a semi-supervised one on 320 digits."""
    recipe = tiny_recipe(num_epochs=1, warm_up=1, batch_size=32, lr=0.05, amp=amp)
    devices.seed_everything(1)
    loader = cifar_dataloader(
        "digits", 0.5, "sym", 32, 0, "", None, channels_last=channels_last, train_images=320
    )
    pair = smr.new_pair(partial(PreActResNet, (1, 1, 1, 1), 10, 8), recipe, CPU, channels_last)
    return list(smr.train(pair, loader, recipe))


@pytest.mark.parametrize(("amp", "rounding", "moved"), [(False, 1e-4, 0.02), (True, 2e-3, 0.1)])
def test_a_short_real_run_is_the_same_in_each_setting_but_for_rounding(amp, rounding, moved):
    plain, found = short_run(False, False), short_run(True, amp)
    for network in (1, 2):
        loss = f"train/net{network}/loss"
        assert found[0].metrics[loss] == pytest.approx(plain[0].metrics[loss], rel=rounding)
        # An image near the threshold may change sides, and with it the steps that follow.
        labeled, wanted = (run[1].splits[network - 1].labeled for run in (found, plain))
        assert (labeled != wanted).mean() < moved
        assert found[1].metrics[loss] == pytest.approx(plain[1].metrics[loss], rel=0.05)

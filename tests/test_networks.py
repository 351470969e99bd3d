"""PreAct-ResNet-18's structure and its kept quirks (method 2); its figures are in test_golden."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from PreResNet import PreActBlock, ResNet18


@pytest.mark.parametrize(
    ("in_planes", "planes", "stride"), [(4, 4, 1), (4, 8, 1), (4, 4, 2), (12, 24, 2)]
)
def test_shortcut_reads_the_activated_input(in_planes, planes, stride):
    block = PreActBlock(in_planes, planes, stride).eval()
    nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    nn.init.normal_(block.bn1.running_mean)
    images = torch.randn(2, in_planes, 8, 8)
    activated = F.relu((images - block.bn1.running_mean[:, None, None]) / (1 + 1e-5) ** 0.5)
    if (in_planes, stride) == (planes, 1):
        expected = activated
    else:
        weight = block.shortcut[0].weight
        assert weight.shape[2:] == (1, 1)
        expected = F.conv2d(activated, weight, stride=stride)
    assert_close(block(images), expected)


@pytest.mark.parametrize("width", [2, 5, 8, 9])
@pytest.mark.parametrize("size", [8, 15, 32])
def test_memory_format_changes_no_logits(width, size):
    network, images = ResNet18(width=width).eval(), torch.randn(3, 3, size, size)
    expected = network(images)
    channels_last = network.to(memory_format=torch.channels_last)
    found = channels_last(images.to(memory_format=torch.channels_last))
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_block_adds_the_residual_of_two_pre_activated_convolutions():
    block = PreActBlock(3, 3, 1).train()
    images = torch.randn(4, 3, 8, 8)
    activated = F.relu(F.batch_norm(images, None, None, training=True))
    inner = F.conv2d(activated, block.conv1.weight, padding=1)
    inner = F.relu(F.batch_norm(inner, None, None, training=True))
    expected = F.conv2d(inner, block.conv2.weight, padding=1) + activated
    assert_close(block(images), expected)


def test_stem_has_its_own_normalization_and_the_last_block_has_none_after_it():
    names = [name for name, module in ResNet18(width=2).named_modules() if len(name) > 5]
    batch_norms = [name for name in names if "bn" in name]
    assert len(batch_norms) == 16  # two a block; the stem's `bn1` has a shorter name
    network = ResNet18(width=2)
    assert [name for name, _ in network.named_children()] == [
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "linear",
    ]  # fmt: skip
    seen = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
    network(torch.randn(2, 3, 32, 32))
    assert_close(seen["layer1"][0], F.relu(seen["bn1"][1]))
    assert_close(seen["linear"][0], F.avg_pool2d(seen["layer4"][1], 4).flatten(1))


def test_width_and_classes_give_the_channels():
    network = ResNet18(num_classes=7, width=4)
    widths = [network.get_submodule(f"layer{k}")[1].conv2.out_channels for k in (1, 2, 3, 4)]
    assert widths == [4, 8, 16, 32]
    assert [network.get_submodule(f"layer{k}")[0].conv1.stride[0] for k in (1, 2, 3, 4)] == [
        1, 2, 2, 2,
    ]  # fmt: skip
    assert network.eval()(torch.randn(3, 3, 8, 8)).shape == (3, 7)


@pytest.mark.parametrize("size", [8, 32])
def test_one_image_trains(size):
    network = ResNet18(width=2).train()
    logits = network(torch.randn(1, 3, size, size))
    logits.square().sum().backward()
    assert logits.shape == (1, 10)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert all(torch.isfinite(t).all() for t in network.state_dict().values())
    assert network.layer4[1].bn2.num_batches_tracked == 1

"""Networks by name, their last layer, and trained weights from a file or a registry."""

import sys
from collections import OrderedDict
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision import models

from PreResNet import ResNet18
from smr import networks
from smr.errors import InputError

REGISTRY = models.list_models(module=models)
# The smallest of each family.
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf"),
    *("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11", "vit_b_16"),
)
SMALL = "shufflenet_v2_x0_5"


@contextmanager
def without_values(monkeypatch, name):
    """Have networks built without drawing weights: where they compute their widths, on the CPU."""
    if name.startswith("regnet"):
        for layer in (nn.Conv2d, nn.Linear):
            monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
        monkeypatch.setattr(nn.init, "normal_", lambda *_, **__: None)
        yield
    else:
        with torch.device("meta"):
            yield


def layers(network) -> dict[str, int]:
    """Name of each linear or convolutional layer → its outputs."""
    outputs = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}
    return {
        name: getattr(module, outputs[type(module)])
        for name, module in network.named_modules()
        if type(module) in outputs
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_the_last_layer_of_every_network_of_the_registry_is_fitted(name, monkeypatch):
    with without_values(monkeypatch, name):
        plain = models.get_model(name, weights=None, **networks.BUILT_WITH.get(name, {}))
        before = layers(plain)
        networks.fit_head(plain, 7)
    changed = {layer for layer, outputs in layers(plain).items() if outputs != before[layer]}
    assert changed == {networks.head_of(plain)}
    assert before[networks.head_of(plain)] == 1000


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_each_family_gives_logits_of_the_classes(name, monkeypatch):
    with without_values(monkeypatch, name):
        network = networks.untrained(name, 7, 64)
    images = torch.empty(2, 3, 224, 224, device="meta")
    network = network.to("meta")
    assert network.eval()(images).shape == (2, 7)
    if name == "maxvit_t":  # whose last layer has none
        assert network.classifier[-1].bias is None
    if name in networks.BUILT_WITH:
        assert network.train()(images).shape == (2, 7)
        assert network.transform_input


def test_preact_resnet18_has_the_width_asked_for():
    network = networks.build("preact_resnet18", 5, 8, pretrained=False, weights="")
    assert [p.shape for p in network.parameters()] == [p.shape for p in ResNet18(5, 8).parameters()]


def test_random_weights_are_those_of_torchvision_for_the_same_seed():
    torch.manual_seed(1)
    wanted = models.resnet18(weights=None)
    wanted.fc = nn.Linear(512, 3)
    torch.manual_seed(1)
    found = networks.build("resnet18", 3, 64, pretrained=False, weights="")
    assert all(map(torch.equal, wanted.state_dict().values(), found.state_dict().values()))


def test_a_small_image_alone_in_its_batch_can_be_trained_on():
    network = networks.build("resnet18", 3, 64, pretrained=False, weights="").train()
    images = torch.randn(1, 3, 32, 32)
    assert network(images).shape == (1, 3)
    wanted = network(torch.cat([images, images]))[:1]
    assert torch.allclose(network(images), wanted)


@pytest.mark.parametrize("name", ["resnet81", "fasterrcnn_resnet50_fpn", "Linear"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(InputError, match=f"--network {name}: expected preact_resnet18.*resnet18"):
        networks.check_name(name)


def test_an_image_size_that_a_network_does_not_take_is_refused():
    with pytest.raises(InputError, match=r"vit_b_16 takes no images of 64x64.*--image_size"):
        networks.check_size("vit_b_16", 3, 64, 64)
    networks.check_size("squeezenet1_1", 3, 64, 64)


def trained_file(tmp_path, name=SMALL, classes=1000, change=lambda state: state):
    """A file of trained weights of a network with another last layer; (path, state)."""
    state = models.get_model(name, weights=None, num_classes=classes).state_dict()
    path = tmp_path / f"{name}.pth"
    torch.save(change(dict(state)), path)
    return path, state


@pytest.mark.parametrize("change", [dict, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_from_a_file_fill_all_but_the_last_layer(tmp_path, change, legacy):
    path, state = trained_file(tmp_path, classes=12, change=change)
    if legacy:
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    network = networks.build(SMALL, 4, 64, pretrained=True, weights=str(path))
    for key, value in network.state_dict().items():
        assert key.startswith("fc.") or torch.equal(value, state[key]), key
    assert network.fc.weight.shape == (4, 1024)


def test_a_last_layer_of_the_same_size_is_fresh_too(tmp_path):
    path, state = trained_file(tmp_path, classes=4)
    network = networks.build(SMALL, 4, 64, pretrained=False, weights=str(path))
    assert not torch.equal(network.fc.weight, state["fc.weight"])


def test_names_that_do_not_fit_are_listed(tmp_path):
    def spoil(state):
        state["stem.0.weight"] = state.pop("conv1.0.weight")
        state["conv1.1.weight"] = torch.zeros(5)
        return state

    path, _ = trained_file(tmp_path, change=spoil)
    with pytest.raises(InputError) as caught:
        networks.build(SMALL, 4, 64, pretrained=False, weights=str(path))
    assert (
        "3 names do not fit: conv1.1.weight is [5], expected [24], conv1.0.weight is missing, "
        in (str(caught.value))
    )
    assert "stem.0.weight is unknown" in str(caught.value)


def test_densenet_s_files_with_the_names_of_an_older_torch_fit():
    with torch.device("meta"):
        network = networks.untrained("densenet121", 3, 64)
    old = networks.re.compile(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.")
    state = {old.sub(r"\1.\2.", k): torch.zeros(v.shape) for k, v in network.state_dict().items()}
    assert any(".norm.1." in key for key in state)
    network.to_empty(device="cpu")
    networks.load_weights(network, state, "here")
    assert not network.features.conv0.weight.any()


def test_weights_of_helping_heads_are_left_out():
    with torch.device("meta"):
        state = models.googlenet(weights=None, aux_logits=True, init_weights=False).state_dict()
        network = networks.untrained("googlenet", 3, 64)
    assert any(key.startswith("aux1.") for key in state)
    networks.load_weights(network, state, "here")


def published(state) -> dict:
    """The names of a published WebVision state dict: its head, and a layer that no output uses."""
    head = {name.replace("classif.", "last_linear."): value for name, value in state.items()}
    return head | {"projection_head.0.weight": torch.zeros(4, 4)}


def test_a_published_webvision_file_fits_inception_resnet_v2(tmp_path):
    pytest.importorskip("timm")
    network = networks.untrained("timm/inception_resnet_v2", 50, 64)
    state = published(network.state_dict())
    assert "last_linear.weight" in state and "classif.weight" not in state
    torch.save(state, tmp_path / "webvision.pth")
    built = networks.build(
        "timm/inception_resnet_v2", 7, 64, pretrained=False, weights=str(tmp_path / "webvision.pth")
    )
    assert built.classif.weight.shape == (7, 1536)
    for name, value in built.state_dict().items():
        assert name.startswith("classif.") or torch.equal(value, state[name]), name


def test_published_names_of_the_last_layer_are_left_out():
    network = nn.Sequential(OrderedDict(stem=nn.Linear(3, 4), classif=nn.Linear(4, 2)))
    state = published(nn.Sequential(OrderedDict(network.named_children())).state_dict())
    networks.load_weights(network, state, "here")
    state["projection.weight"] = torch.zeros(4)
    with pytest.raises(InputError, match=r"1 names do not fit: projection.weight is unknown"):
        networks.load_weights(network, state, "here")


@pytest.mark.parametrize("content", [b"no weights", b"", b"PK\x03\x04 cut"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, content):
    path = tmp_path / "some.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"some.pt: no file of weights, or a damaged one"):
        networks.read_weights(path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{name}": value for name, value in s.items()},
        lambda s: {"epoch": 3, "model": {f"_orig_mod.module.{n}": v for n, v in s.items()}},
        lambda s: {"optimizer": {"state": {0: {"m": torch.ones(2)}}}, "model_state_dict": s},
        lambda s: {"config": {"lr": 0.1}, "networks": [s, {n: v + 1 for n, v in s.items()}]},
    ],
    ids=["DataParallel", "compiled", "optimizer", "a run's own"],
)
def test_a_state_dict_is_read_however_it_is_wrapped(tmp_path, wrap):
    state = {"conv.weight": torch.arange(4.0), "fc.bias": torch.ones(1)}
    torch.save(wrap(state), tmp_path / "weights.pt")
    found = networks.read_weights(tmp_path / "weights.pt")
    assert list(found) == list(state) and all(torch.equal(found[n], state[n]) for n in state)


def test_other_contents_and_missing_files_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"list.pt: expected a state dict"):
        networks.read_weights(tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"gone.pt: there is no such file"):
        networks.read_weights(tmp_path / "gone.pt")


class FakeWeights:
    """What torchvision's registry gives for a network's default weights."""

    url = "https://example.org/some-weights.pth"

    def __init__(self, state=None):
        self.state = state

    def get_state_dict(self, progress, check_hash):
        assert progress and check_hash
        if self.state is None:
            raise URLError("no route to host")
        return self.state


def fake_registry(monkeypatch, state):
    newer = FakeWeights(None)
    monkeypatch.setattr(models, "get_model_weights", lambda name: [FakeWeights(state), newer])


def test_the_registry_s_weights_are_fetched_and_used(monkeypatch):
    state = models.get_model(SMALL, weights=None).state_dict()
    fake_registry(monkeypatch, state)
    network = networks.build(SMALL, 4, 64, pretrained=True, weights="")
    assert torch.equal(network.conv5[0].weight, state["conv5.0.weight"])


def test_without_a_network_a_line_says_how_to_bring_the_file(monkeypatch):
    fake_registry(monkeypatch, None)
    with pytest.raises(InputError) as caught:
        networks.build(SMALL, 4, 64, pretrained=True, weights="")
    message = str(caught.value)
    assert message.startswith("https://example.org/some-weights.pth could not be fetched")
    assert "no route to host" in message and "--weights FILE" in message and "\n" not in message


def test_preact_resnet18_has_nothing_to_fetch():
    with pytest.raises(InputError, match="preact_resnet18 has no trained weights"):
        networks.build("preact_resnet18", 4, 8, pretrained=True, weights="")


def test_without_timm_its_networks_say_how_to_get_it(monkeypatch):
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--network timm/resnet18: .*pip install timm"):
        networks.check_name("timm/resnet18")


def test_timm_s_networks_are_built_with_the_classes_and_take_a_file(monkeypatch, tmp_path):
    def create_model(name, num_classes=1000, pretrained=False):
        assert name == "resnet18" and not pretrained
        return models.resnet18(weights=None, num_classes=num_classes)

    timm = SimpleNamespace(create_model=create_model, is_model=lambda n: n == "resnet18")
    timm.__version__ = "9"
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setattr(networks, "find_spec", lambda name: True)
    path, state = trained_file(tmp_path, "resnet18")
    network = networks.build("timm/resnet18", 4, 64, pretrained=False, weights=str(path))
    assert network.fc.weight.shape == (4, 512)
    assert torch.equal(network.conv1.weight, state["conv1.weight"])
    with pytest.raises(InputError, match="timm 9 has no such network"):
        networks.check_name("timm/resnet81")


@pytest.mark.parametrize("side", [8, 128])
def test_an_image_that_is_alone_in_its_batch_is_passed_twice_in_training(side):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())
    nn.init.constant_(network[1].bias, 0.25)
    images = torch.rand(1, 3, side, side)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(images)
    networks.pass_lone_images_twice(network)
    torch.testing.assert_close(network(images), torch.full((1, 3), 0.25), rtol=0, atol=1e-4)
    network.eval()
    assert torch.equal(network(images), nn.Sequential.forward(network, images))

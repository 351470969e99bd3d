"""Networks by name, their last layer, and trained weights from a file or a registry."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision import models

from smr import networks
from smr.errors import InputError

# The smallest of each family.
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf"),
    *("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11", "vit_b_16"),
)
SMALL = "shufflenet_v2_x0_5"


def build(name: str, classes: int = 4, pretrained: bool = False, weights="") -> nn.Module:
    return networks.build(name, classes, 64, pretrained, str(weights))


def untrained_on_meta(name: str) -> nn.Module:
    """A network without values."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return networks.untrained(name, 7, 64).to("meta")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_each_family_has_a_last_layer_of_the_classes(name):
    network = untrained_on_meta(name)
    layers = {k: m for k, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    outputs = {
        k: getattr(m, "out_features", getattr(m, "out_channels", 0)) for k, m in layers.items()
    }
    assert [k for k, count in outputs.items() if count in (7, 1000)] == [networks.head_of(network)]
    images = torch.empty(2, 3, 224, 224, device="meta")
    assert network.eval()(images).shape == (2, 7)
    if name == "maxvit_t":  # whose last layer has none
        assert network.classifier[-1].bias is None
    if name in networks.BUILT_WITH:
        assert network.train()(images).shape == (2, 7)
        assert network.transform_input


def test_the_families_are_all_of_the_registry():
    def modules(names) -> set[str]:
        return {models.get_model_builder(name).__module__ for name in names}

    assert modules(FAMILIES) == modules(models.list_models(module=models))


def test_random_weights_are_those_of_torchvision_for_the_same_seed():
    torch.manual_seed(1)
    expected = models.shufflenet_v2_x0_5(weights=None)
    expected.fc = nn.Linear(1024, 3)
    torch.manual_seed(1)
    found = build(SMALL, classes=3)
    assert all(map(torch.equal, expected.state_dict().values(), found.state_dict().values()))


def test_an_image_that_is_alone_in_its_batch_is_passed_twice_in_training():
    network, image = build(SMALL).train(), torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        type(network).forward(network, image)
    assert_close(network(image), network(torch.cat([image, image]))[:1])
    network.eval()
    assert torch.equal(network(image), type(network).forward(network, image))


@pytest.mark.parametrize("name", ["resnet81", "fasterrcnn_resnet50_fpn", "Linear"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(InputError, match=f"--network {name}: expected preact_resnet18.*resnet18"):
        networks.check_size(name, 4, 64, 64)


def test_an_image_size_that_a_network_does_not_take_is_refused():
    with pytest.raises(InputError, match=r"vit_b_16 takes no images of 64x64.*--image_size"):
        networks.check_size("vit_b_16", 3, 64, 64)
    for name in ("squeezenet1_1", "regnet_y_400mf"):
        networks.check_size(name, 3, 64, 64)


def trained_file(tmp_path, classes=1000, change=lambda state: None):
    """A file of trained weights of SMALL; (path, state)."""
    state = dict(models.get_model(SMALL, weights=None, num_classes=classes).state_dict())
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth", state


@pytest.mark.parametrize("classes", [12, 4])
def test_weights_from_a_file_fill_all_but_the_last_layer(tmp_path, classes):
    path, state = trained_file(tmp_path, classes)
    network = build(SMALL, pretrained=True, weights=path)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]) != key.startswith("fc."), key
    assert network.fc.weight.shape == (4, 1024)


def test_names_that_do_not_fit_are_listed(tmp_path):
    def spoil(state):
        state["stem.0.weight"] = state.pop("conv1.0.weight")
        state["conv1.1.weight"] = torch.zeros(5)

    path, _ = trained_file(tmp_path, change=spoil)
    with pytest.raises(InputError, match=re.escape(f"{path}: not of this --network:")) as caught:
        build(SMALL, weights=path)
    for reason in (
        'Missing key.*"conv1.0.weight"',
        'Unexpected key.*"stem.0.weight"',
        "mismatch for conv1.1.weight",
    ):
        assert re.search(reason, str(caught.value))


def of_older_torch(state: dict) -> dict:
    """DenseNet's state dict with the names of an older torch."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.")
    return {old.sub(r"\1.\2.", name): value for name, value in state.items()}


def with_helping_heads(state: dict) -> dict:
    return models.googlenet(weights=None, aux_logits=True, init_weights=False).state_dict()


def of_webvision(state: dict) -> dict:
    """A published WebVision state dict: its head, and a layer that no output uses."""
    head = {name.replace("classif.", "last_linear."): value for name, value in state.items()}
    return head | {"projection_head.0.weight": torch.zeros(4, 4)}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("densenet121", of_older_torch),
        ("googlenet", with_helping_heads),
        ("timm/inception_resnet_v2", of_webvision),
    ],
)
def test_published_files_with_other_names_fit(name, published):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    network = untrained_on_meta(name)
    with torch.device("meta"):
        state = published(network.state_dict())
    assert state.keys() != network.state_dict().keys()
    networks.load_weights(network, state, "here")
    with pytest.raises(InputError, match=r'^here: not of .*Unexpected key.*"projection.weight"'):
        networks.load_weights(network, state | {"projection.weight": torch.zeros(4)}, "here")


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    path = tmp_path / "some.pt"
    with pytest.raises(InputError, match=r"some.pt: no file of weights: .*No such file"):
        networks.read_weights(path)
    for content in (b"no weights", b"", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"some.pt: no file of weights: it is damaged"):
            networks.read_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match=r"some.pt: expected a state dict"):
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


def test_the_registry_s_weights_are_taken_from_torchvision_s_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path, state = trained_file(tmp_path)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    path.rename(cache / models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url.split("/")[-1])
    assert torch.equal(build(SMALL, pretrained=True).conv5[0].weight, state["conv5.0.weight"])


def test_offline_a_line_says_how_to_bring_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(InputError) as caught:
        build("mobilenet_v3_large", pretrained=True)
    message = str(caught.value)
    first = models.MobileNet_V3_Large_Weights.IMAGENET1K_V1.url  # of published runs
    assert message.startswith(f"{first} could not be downloaded (")
    assert "--weights" in message and "\n" not in message
    with pytest.raises(InputError, match=r"preact_resnet18 could not .*\(Unknown model.*--weights"):
        build("preact_resnet18", pretrained=True)


def test_timm_s_networks_are_built_with_the_classes_and_take_a_file(monkeypatch, tmp_path):
    """With an imitation of timm, which the tests do not require."""

    def get_pretrained_cfg(name, allow_unregistered):
        if name != SMALL and not allow_unregistered:
            raise RuntimeError("no such network")

    def create_model(name, num_classes):
        return models.get_model(name, weights=None, num_classes=num_classes)

    timm = SimpleNamespace(create_model=create_model, get_pretrained_cfg=get_pretrained_cfg)
    monkeypatch.setitem(sys.modules, "timm", timm)
    path, state = trained_file(tmp_path)
    network = build(f"timm/{SMALL}", weights=path)
    assert network.fc.weight.shape == (4, 1024)
    assert torch.equal(network.conv5[0].weight, state["conv5.0.weight"])
    with pytest.raises(InputError, match="timm/resnet81: no such network; pip install"):
        networks.check_size("timm/resnet81", 4, 64, 64)

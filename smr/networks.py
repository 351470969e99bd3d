"""Networks by name: PreAct-ResNet-18, torchvision's classification networks and timm's (method 2).

Functions import torchvision and timm when they need them: that takes a second.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn

from PreResNet import ResNet18
from smr.data.cifar_files import load_archive
from smr.data.image_folder import first_ten
from smr.errors import InputError

PREACT = "preact_resnet18"
TIMM = "timm/"
# Without the auxiliary heads; with the scaling of images that their pre-trained weights expect.
BUILT_WITH = {
    name: {"aux_logits": False, "init_weights": True, "transform_input": True}
    for name in ("googlenet", "inception_v3")
}
# Layers of weights files that our networks do not have: auxiliary heads; the last layer, and a
# projection that no output uses, of published WebVision weights of Inception-ResNet-v2.
NOT_LOADED = ("aux1.", "aux2.", "AuxLogits.", "last_linear.", "projection_head.")
# torchvision's files of its DenseNets name the layers of a block as an older torch did.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
# What torch.compile and DataParallel put before each name.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def check_size(name: str, num_class: int, width: int, size: int) -> None:
    """Raise InputError if the network is unknown or takes no images of size x size pixels."""
    try:
        with torch.device("meta"):  # computes nothing
            network = untrained(name, num_class, width)
    except NotImplementedError:  # RegNets compute their widths
        network = untrained(name, num_class, width).to("meta")
    try:
        network.eval()(torch.empty(1, 3, size, size, device="meta"))
    except Exception as error:  # each network raises another kind
        raise InputError(
            f"--network {name} takes no images of {size}x{size} ({error!r}); give another "
            "--image_size"
        ) from error


def build(name: str, num_class: int, width: int, pretrained: bool, weights: str) -> nn.Module:
    """A network with a fresh last layer: logits [b, num_class] of float images [b, 3, h, w].

    Args: width, of preact_resnet18 alone; weights, a file of initial weights; pretrained, without
    a file those of torchvision or timm. Raises InputError.
    """
    network = untrained(name, num_class, width)
    if weights:
        load_weights(network, read_weights(Path(weights)), weights)
    elif pretrained:
        load_weights(network, download_weights(name), f"{name}'s pre-trained weights")
    return network


def untrained(name: str, num_class: int, width: int) -> nn.Module:
    """The network of this name, random weights, `num_class` outputs. Raises InputError."""
    if name == PREACT:
        return ResNet18(num_class, width)
    if name.startswith(TIMM):
        try:
            import timm

            timm.get_pretrained_cfg(name.removeprefix(TIMM), allow_unregistered=False)
        except (ImportError, RuntimeError) as error:
            raise InputError(
                f"--network {name}: {error}; pip install timm, or choose a network that it has"
            ) from error
        network = timm.create_model(name.removeprefix(TIMM), num_classes=num_class)
    else:
        from torchvision import models

        if name not in (known := models.list_models(module=models)):
            raise InputError(
                f"--network {name}: expected {PREACT}, timm/NAME or one of torchvision's: "
                + ", ".join(known)
            )
        network = models.get_model(name, weights=None, **BUILT_WITH.get(name, {}))
        fit_head(network, num_class)
    pass_lone_images_twice(network)
    return network


def head_of(network: nn.Module) -> str:
    """The name of the layer that returns the logits: the last that is linear or a convolution."""
    layers = [name for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return layers[-1]


def fit_head(network: nn.Module, num_class: int) -> None:
    """Replace the last layer by a fresh one with `num_class` outputs."""
    old = network.get_submodule(head_of(network))
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        fresh = nn.Linear(old.in_features, num_class, bias)
    else:
        fresh = nn.Conv2d(old.in_channels, num_class, old.kernel_size, old.stride, bias=bias)
    network.set_submodule(head_of(network), fresh)


def pass_lone_images_twice(network: nn.Module) -> None:
    """In training, pass a lone image twice: maps may hold one value a channel, and BN needs two."""
    plain = network.forward

    def forward(images: Tensor) -> Tensor:
        if network.training and len(images) == 1:
            return plain(torch.cat([images, images]))[:1]
        return plain(images)

    network.forward = forward


def sync_batch_norm(network: nn.Module) -> nn.Module:
    """The network with batch norm over the rows of all ranks, each of which has a GPU."""
    if type(network).__module__.startswith("timm."):
        from timm.layers import convert_sync_batchnorm as convert  # torch's loses timm's ReLUs
    else:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
    return convert(network)


def download_weights(name: str) -> dict[str, Tensor]:
    """torchvision's first or timm's default weights, from the cache or downloaded.

    Raises InputError.
    """
    source = f"the weights of {name}"
    try:
        if name.startswith(TIMM):
            import timm

            return timm.create_model(name.removeprefix(TIMM), pretrained=True).state_dict()
        from torchvision import models

        weights = next(iter(models.get_model_weights(name)))  # those of published runs
        source = weights.url
        return weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # each downloader raises another kind
        raise InputError(
            f"{source} could not be downloaded ({str(error).splitlines()[0]}); download the file "
            "elsewhere and pass it with --weights, or use --pretrained off"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The largest state dict in a .pt, .pth or .safetensors file; of a best.pt network 1.

    Raises InputError.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = load_archive(path)
    except Exception as error:  # safetensors raises many kinds on other files
        reason = shorten(str(error), 200)
        raise InputError(f"--weights {path}: no file of weights: {reason}") from error
    state = max(state_dicts(content), key=len, default=None)
    if not state:
        raise InputError(f"--weights {path}: expected a state dict, names and their tensors")
    return {WRAPPERS.sub("", name): value for name, value in state.items()}


def state_dicts(content) -> Iterator[dict[str, Tensor]]:
    """The dicts of names and tensors in the content of a file, at any depth."""
    if isinstance(content, dict):
        if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
            yield content
            return
        content = list(content.values())
    for value in content if isinstance(content, list | tuple) else ():
        yield from state_dicts(value)


def load_weights(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load weights into all but the last layer. Raises InputError if names or shapes differ."""
    head = head_of(network) + "."
    loaded = {k: v for k, v in network.state_dict().items() if k.startswith(head)}
    for name, value in state.items():
        if not name.startswith((head, *NOT_LOADED)):
            loaded[OLD_DENSENET.sub(r"\1\2", name)] = value
    try:
        network.load_state_dict(loaded)
    except RuntimeError as error:
        reasons = [shorten(line, 200) for line in str(error).splitlines()[1:]]
        raise InputError(f"{where}: not of this --network: {first_ten(reasons)}") from error

"""Networks by name: PreAct-ResNet-18, torchvision's classification networks and timm's (method 2).

torchvision is imported where it is needed: that takes a second.
"""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from PreResNet import ResNet18
from smr.data.image_folder import first_ten
from smr.errors import InputError

PREACT = "preact_resnet18"
TIMM = "timm/"
# Without the heads that help training alone, and that other weights files lack; with the scaling
# of the images that torchvision's weights of these two, and of no other, were trained on.
BUILT_WITH = {
    name: {"aux_logits": False, "init_weights": True, "transform_input": True}
    for name in ("googlenet", "inception_v3")
}
HELPERS = ("aux1.", "aux2.", "AuxLogits.")
# Published WebVision weights of Inception-ResNet-v2: the last layer, classif in timm, and a
# projection that no output uses.
PUBLISHED_HEADS = ("last_linear.", "projection_head.")
# torchvision's files of its DenseNets name the layers of a block as an older torch did.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
# What torch.compile and DataParallel put before each name.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def check_name(name: str) -> None:
    """Raise InputError where no network has this name here, with what to do."""
    if name == PREACT:
        return
    if name.startswith(TIMM):
        if find_spec("timm") is None:
            raise InputError(f"--network {name}: timm is not installed; pip install timm")
        import timm

        if not timm.is_model(name.removeprefix(TIMM)):
            raise InputError(f"--network {name}: timm {timm.__version__} has no such network")
        return
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(
            f"--network {name}: expected {PREACT}, timm/NAME or one of torchvision's: "
            + ", ".join(known)
        )


def check_size(name: str, num_class: int, width: int, size: int) -> None:
    """Raise InputError where the network takes no images of `size` a side. Computes nothing."""
    try:
        with torch.device("meta"):
            network = untrained(name, num_class, width)
    except NotImplementedError:  # RegNets compute their widths
        network = untrained(name, num_class, width).to("meta")
    try:
        network.eval()(torch.empty(1, 3, size, size, device="meta"))
    except Exception as error:  # whatever the network's own code stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"--network {name} takes no images of {size}x{size} ({reason}); give another "
            "--image_size"
        ) from error


def build(name: str, num_class: int, width: int, pretrained: bool, weights: str) -> nn.Module:
    """A network with a fresh last layer of `num_class` outputs; the others random or trained.

    Args: width, of preact_resnet18 alone; weights, a file, else, if pretrained, torchvision's or
    timm's own. Logits [b, num_class] of float images [b, 3, h, w]. Raises InputError.
    """
    network = untrained(name, num_class, width)
    if weights:
        load_weights(network, read_weights(Path(weights)), weights)
    elif pretrained:
        load_weights(network, fetched_weights(name), f"{name}'s trained weights")
    return network


def untrained(name: str, num_class: int, width: int) -> nn.Module:
    """The network of this name, random weights, `num_class` outputs. Raises InputError."""
    check_name(name)
    if name == PREACT:
        return ResNet18(num_class, width)
    if name.startswith(TIMM):
        import timm

        network = timm.create_model(name.removeprefix(TIMM), num_classes=num_class)
    else:
        from torchvision import models

        network = models.get_model(name, weights=None, **BUILT_WITH.get(name, {}))
        fit_head(network, num_class)
    pass_lone_images_twice(network)
    return network


def head_of(network: nn.Module) -> str:
    """The name of the layer that gives the logits: the last that is linear or a convolution."""
    layers = [name for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return layers[-1]


def fit_head(network: nn.Module, num_class: int) -> None:
    """Replace the last layer by a fresh one with `num_class` outputs."""
    parent, _, child = head_of(network).rpartition(".")
    old = network.get_submodule(head_of(network))
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        fresh = nn.Linear(old.in_features, num_class, bias)
    else:
        fresh = nn.Conv2d(old.in_channels, num_class, old.kernel_size, old.stride, bias=bias)
    setattr(network.get_submodule(parent), child, fresh)


def pass_lone_images_twice(network: nn.Module) -> None:
    """Have the network take an image that is alone in its batch twice, in training.

    Some of its maps may hold one value a channel, of which BN needs two.
    """
    plain = network.forward

    def forward(images: Tensor) -> Tensor:
        if network.training and len(images) == 1:
            return plain(torch.cat([images, images]))[:1]
        return plain(images)

    network.forward = forward


def sync_batch_norm(network: nn.Module) -> nn.Module:
    """The network with its BN over the rows of all ranks, each of which has a GPU."""
    if type(network).__module__.startswith("timm."):
        from timm.layers import convert_sync_batchnorm as convert  # torch's loses timm's ReLUs
    else:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
    return convert(network)


def fetched_weights(name: str) -> dict[str, Tensor]:
    """torchvision's first or timm's default weights, from their cache or fetched with progress.

    Raises InputError.
    """
    if name == PREACT:
        raise InputError(
            f"--pretrained on: {PREACT} has no trained weights; --weights FILE takes some"
        )
    instead = (
        "fetch it where there is a network and give it with --weights FILE, or --pretrained off"
    )
    if name.startswith(TIMM):
        import timm

        try:
            return timm.create_model(name.removeprefix(TIMM), pretrained=True).state_dict()
        except Exception as error:  # of whichever client timm fetches with
            reason = str(error).splitlines()[0]
            raise InputError(
                f"timm could not fetch weights of {name} ({reason}); {instead}"
            ) from error
    from torchvision import models

    weights = next(iter(models.get_model_weights(name)))  # those that published runs start from
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{weights.url} could not be fetched ({error}); {instead}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a .pt, .pth or .safetensors file; of a checkpoint the largest one in it.

    Of a run's own best.pt network 1. Raises InputError.
    """
    if not path.is_file():
        raise InputError(f"--weights {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            if find_spec("safetensors") is None:
                raise InputError(f"--weights {path}: pip install safetensors, or give a .pt file")
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, weights_only=True, map_location="cpu")
    except InputError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds on what is not theirs
        raise InputError(f"--weights {path}: no file of weights, or a damaged one") from error
    state = max(state_dicts(content), key=len, default=None)
    if not state:
        raise InputError(f"--weights {path}: expected a state dict, names and their tensors")
    return {WRAPPERS.sub("", name): value for name, value in state.items()}


def state_dicts(content) -> Iterator[dict[str, Tensor]]:
    """The dicts of names and tensors inside of what a file contains, at any depth."""
    parts = content.items() if isinstance(content, dict) else ()
    if parts and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in parts):
        yield content
        return
    values = content if isinstance(content, list | tuple) else [value for _, value in parts]
    for value in values:
        yield from state_dicts(value)


def load_weights(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put trained weights into all but the last layer.

    Raises InputError that lists the names that do not fit.
    """
    head = head_of(network) + "."
    wanted = {k: v for k, v in network.state_dict().items() if not k.startswith(head)}
    found = {
        OLD_DENSENET.sub(r"\1\2", name): value
        for name, value in state.items()
        if not name.startswith((head, *HELPERS, *PUBLISHED_HEADS))
    }
    shapes = [
        f"{name} is {list(found[name].shape)}, expected {list(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    ]
    missing = [f"{name} is missing" for name in wanted if name not in found]
    unknown = [f"{name} is unknown" for name in found if name not in wanted]
    if misfits := sorted(shapes) + missing + unknown:
        raise InputError(
            f"{where}: not of this --network, {len(misfits)} names do not fit: "
            + first_ten(misfits)
        )
    network.load_state_dict(found, strict=False)  # strictly compared above, but for the head

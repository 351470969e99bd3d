"""What the training scripts for photos share: flags, their consequences, checks and networks."""

from collections.abc import Callable

import torch

from smr import networks
from smr.data.decoding import usable_cores
from smr.data.image_file_dataset import Frame
from smr.errors import InputError
from smr.run import options

# What each photo script's recipes share.
RECIPE = {
    "width": 64,
    "num_workers": usable_cores(),
    "pretrained": False,
    "weights": "",
    "lambda_u": 0.0,
}
# What a parser answers to flags of other scripts.
NO_NOISE = dict.fromkeys(
    ("--r", "--noise_mode"), "these labels are as people gave them, and no noise is injected"
)


def add_flags(parser: options.Parser, add: Callable) -> None:
    """Add the flags of photos and their networks to the data's group."""
    default = parser.default_of
    about = f"side of the image that a network sees ({default('image_size', '128, on CUDA 224')})"
    add("--image_size", "--crop", type=options.number(int, 32, 1024), metavar="PIXELS", help=about)
    about = f"""shorter side that photos are scaled to before the crop
        ({default("resize", "8/7 of the crop")})"""
    add("--resize", type=options.number(int, 32, 2048), metavar="PIXELS", help=about)
    about = f"""preact_resnet18, any of torchvision's classification networks, or timm/NAME where
        timm is installed ({default("network")})"""
    add("--network", metavar="NAME", help=about)
    about = f"start from torchvision's first or timm's default weights ({default('pretrained')})"
    add("--pretrained", type=options.switch("pretrained"), metavar="{off,on}", help=about)
    about = "start from this state dict, .pt or .safetensors, of the network with any last layer"
    add("--weights", metavar="FILE", help=about)
    about = "threads that decode photos (default: the cores that this process may use)"
    add("--num_workers", type=options.number(int, 0), help=about)
    about = """labels instead of the data's own: .json as correct_labels.py writes, .npy, .npz,
        .pt or .csv"""
    add("--noise_file", metavar="FILE", help=about)
    about = "leave out what cannot be decoded (default: refuse it, naming the first ten)"
    add("--skip_broken", action="store_true", default=None, help=about)
    about = "decode every photo before training (default: only their headers are read)"
    add("--check_images", action="store_true", default=None, help=about)


def settle(config: dict) -> None:
    """Fill in the consequences of a photo script's flags. Raises InputError."""
    size, name, width = config["image_size"], config["network"], config["width"]
    resize = config.setdefault("resize", round(8 / 7 * size))
    if resize < size:
        raise InputError(f"--resize {resize} is smaller than the crop of --image_size {size}")
    if name != networks.PREACT and width != RECIPE["width"]:
        raise InputError(f"--width: only with --network {networks.PREACT}")
    networks.check_size(name, config["num_class"], width, size)
    if config["weights"]:
        config["pretrained"] = False
    # Kept: without a weight on their loss, the other rows skip the network (method 5).
    config["labeled_rows_only"] = config["lambda_u"] == 0


def frame(config: dict, square: bool = False) -> Frame:
    """How a configuration's photos become images."""
    random_resized = config.get("random_resized_crop", False)
    return Frame(config["resize"], config["image_size"], square, random_resized)


def loader_options(config: dict, device: torch.device) -> dict:
    """The arguments that every photo loader takes, of a configuration."""
    names = ("batch_size", "num_workers", "seed", "channels_last")
    flags = {name: config.get(name, False) for name in ("skip_broken", "check_images")}
    flags["noise_file"] = config.get("noise_file", "")
    return {name: config[name] for name in names} | flags | {"device": device}


def build_network(config: dict) -> torch.nn.Module:
    """One network with a fresh last layer. Raises InputError."""
    return networks.build(
        *(config["network"], config["num_class"], config["width"]),
        *(config["pretrained"], config["weights"]),
    )

"""Train two networks with SMR on mini WebVision (Zhang et al., Mathematics 2024; method 8).

    python train_webvision.py --data_path ./data/WebVision1.0/ --imagenet_path ./data/imagenet/val
    python train_webvision.py --method dividemix

The first reproduces the figure of the paper's abstract, the second that of DivideMix, each with
Inception-ResNet-v2 of timm (pip install timm). A flag that is not given takes its value from the
method's recipe.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Before torch is loaded: its threads shall not spin on cores that other runs need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from dataloader_webvision import webvision_dataloader
from smr.run import options, photos
from smr.run import run as session
from smr.run.photos import build_network

RECIPES = {
    "webvision": photos.RECIPE
    | {
        "num_epochs": 120,
        "batch_size": 32,
        "lr": 0.01,
        "lr_steps": ((40, 0.1), (80, 0.01)),
        "weight_decay": 5e-4,
        "warm_up": 1,
        "recalibrate_every": 15,
        "alpha": 0.5,
        "image_size": 299,
        "resize": 320,
        "network": "timm/inception_resnet_v2",
        "num_class": 50,
        "data_path": "./data/WebVision1.0",
        "imagenet_path": "./data/imagenet/val",
        "test_titles": {"test": "WebVision", "imagenet": "ImageNet"},
    }
}
DIVIDEMIX = {"num_epochs": 80, "lr_steps": ((40, 0.1),), "random_resized_crop": True}


def new_parser() -> options.Parser:
    """The shared flags, and those of photos and of ImageNet's."""
    parser = options.new_parser(__doc__, RECIPES, photos.NO_NOISE)
    path = "DIR holds info/, google/ and val_images_256/ (default: ./data/WebVision1.0)"
    add = options.add_data_flags(parser, "there is one (default: webvision)", path)
    about = """ImageNet's validation images, in folders named by synset or class number (default:
        ./data/imagenet/val, or no second test set where that is not there)"""
    add("--imagenet_path", metavar="DIR", help=about)
    photos.add_flags(parser, add)
    return parser


def resolve(given: dict, device: torch.device) -> dict:
    """The run's configuration (`options.resolve`), with the consequences of method and data."""
    recipe = {"dataset": "webvision"} | RECIPES["webvision"]
    if given.get("method") == "dividemix":
        recipe |= DIVIDEMIX
    config = options.resolve(given, recipe, device)
    if "imagenet_path" not in given and not Path(config["imagenet_path"]).is_dir():
        config["imagenet_path"] = ""
    config["top5"] = config["num_class"] > 5
    photos.settle(config)
    return config


def make_loader(config: dict, device: torch.device) -> webvision_dataloader:
    """The data of a configuration."""
    return webvision_dataloader(
        *(config["data_path"], config["imagenet_path"], config["num_class"]),
        frame=photos.frame(config),
        **photos.loader_options(config, device),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    script = session.Script("train_webvision.py", resolve, make_loader, build_network)
    return session.main(script, new_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

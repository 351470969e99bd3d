"""Train two networks with SMR on Clothing1M (Zhang et al., Mathematics 2024; method 9).

    python train_clothing1M.py --data_path ./data/Clothing1M
    python train_clothing1M.py --data_path ./data/Clothing1M --num_batches 250 --num_epochs 20

Both start from torchvision's ResNet-50, trained on ImageNet. The first is the published protocol;
in the second an epoch sees a quarter as much. A flag that is not given takes its value from the
recipe.
"""

import os
import sys

if __name__ == "__main__":
    # Before torch is loaded: its threads shall not spin on cores that other runs need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from dataloader_clothing1M import CLASSES, clothing_dataloader
from smr.run import options, photos
from smr.run import run as session
from smr.run.photos import build_network

RECIPES = {
    "clothing1M": photos.RECIPE
    | {
        "num_epochs": 80,
        "num_batches": 1000,
        "batch_size": 32,
        "lr": 0.002,
        "lr_steps": ((40, 0.1),),
        "weight_decay": 1e-3,
        "warm_up": 1,
        "recalibrate_every": 10,
        "alpha": 0.5,
        "image_size": 224,
        "resize": 256,
        "network": "resnet50",
        "pretrained": True,
        "data_path": "./data/Clothing1M",
        "select_on": "val",
        "warmup_penalty": True,
        "test_titles": {"val": "Validation", "test": "Test"},
    }
}


def new_parser() -> options.Parser:
    """The shared flags, and those of photos and of an epoch's sample."""
    parser = options.new_parser(__doc__, RECIPES, photos.NO_NOISE)
    path = "DIR holds the lists and images/, or is images/ itself (default: ./data/Clothing1M)"
    add = options.add_data_flags(parser, "there is one (default: clothing1M)", path)
    about = """batches of B in a sample that a network scores and its peer trains on; a warm-up has
        twice as many images (default: 1000)"""
    add("--num_batches", type=options.number(int, 1), metavar="N", help=about)
    photos.add_flags(parser, add)
    return parser


def resolve(given: dict, device: torch.device) -> dict:
    """The run's configuration (`options.resolve`), with its consequences for photos."""
    recipe = {"dataset": "clothing1M"} | RECIPES["clothing1M"]
    config = options.resolve(given, recipe, device)
    options.settle_num_class(config, len(CLASSES), "Clothing1M")
    photos.settle(config)
    return config


def make_loader(config: dict, device: torch.device) -> clothing_dataloader:
    """The data of a configuration."""
    return clothing_dataloader(
        config["data_path"],
        num_batches=config["num_batches"],
        frame=photos.frame(config),
        **photos.loader_options(config, device),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    script = session.Script("train_clothing1M.py", resolve, make_loader, build_network)
    return session.main(script, new_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

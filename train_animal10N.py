"""Train two networks with SMR on photos with wrong labels (Zhang et al., Mathematics 2024).

    python train_animal10N.py --num_epochs 200 --lambda_u 0 --data_path './data/Animal-10N' \\
        --dataset 'animal10N' --num_class 10
    python train_animal10N.py --dataset folder --data_path ./photos

The first reproduces a figure of the paper, on data that its authors hand out on request; the
second takes your own photos, photos/training/<class>/*. A flag that is not given takes its value
from the data set's recipe.
"""

import os
import sys

if __name__ == "__main__":
    # Before torch is loaded: its threads shall not spin on cores that other runs need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import dataloader_animal10N as data
from PreResNet import ResNet18
from smr.data.listings import class_names
from smr.errors import InputError
from smr.run import options, session
from vgg import vgg19_bn

# Method 3's table; what its columns share stands in options.DEFAULTS and smr.Recipe.
ANIMAL_RECIPE = {
    "num_epochs": 200,
    "batch_size": 128,
    "lr": 0.01,
    "lr_steps": ((140, 0.01),),  # Kept: /100 at once; 80:0.1,140:0.01 was evidently meant
    "weight_decay": 1e-3,
    "warm_up": 30,
    "recalibrate_every": 15,
    "lambda_u": 0.0,
    "image_size": data.ANIMAL_SIZE,
    "network": "vgg19_bn",
    "width": 64,
    "num_workers": os.cpu_count() or 1,
}
RECIPES = {
    "animal10N": ANIMAL_RECIPE | {"data_path": "./data/Animal-10N"},
    # The only published recipe for labels that people gave.
    "folder": ANIMAL_RECIPE | {"data_path": "", "val_fraction": 0.1},
}


NOISE_FLAGS = ("--r", "--noise_mode", "--noise_file")
NO_NOISE = "these labels are as people gave them, and no noise is injected"


def new_parser() -> options.Parser:
    """The shared flags, and those of image files and their networks."""
    parser = options.new_parser(__doc__, RECIPES, dict.fromkeys(NOISE_FLAGS, NO_NOISE))
    add = options.add_data_flags(
        parser,
        "folder is any DIR/training/<class>/* (default: animal10N)",
        "DIR holds training/ and testing/, or the binaries (default: ./data/Animal-10N)",
    )
    about = "side to which a folder's images are scaled and cropped (default: 64)"
    add("--image_size", type=options.number(int, 32, 1024), metavar="PIXELS", help=about)
    about = "share of a folder without testing/ that is held out as test images (default: 0.1)"
    add("--val_fraction", type=options.number(float, 0, 0.5, open_low=True), help=about)
    about = "leave out files that are no images (default: refuse them, naming the first ten)"
    add("--skip_broken", action="store_true", default=None, help=about)
    about = "threads that decode images (default: one for each core)"
    add("--num_workers", type=options.number(int, 0), help=about)
    about = """preact_resnet18 has a twelfth of the weights, and trains on a CPU if --width is
        small (default: vgg19_bn, the published one)"""
    add("--network", choices=("vgg19_bn", "preact_resnet18"), help=about)
    return parser


def resolve(given: dict, device: torch.device) -> dict:
    """The run's configuration (`options.resolve`), with the consequences of the data."""
    dataset = given.get("dataset", "animal10N")
    config = options.resolve(given, {"dataset": dataset} | RECIPES[dataset], device)
    if dataset == "animal10N":
        classes = len(data.ANIMALS)
        for flag in given.keys() & {"image_size", "val_fraction"}:
            if given[flag] != RECIPES[dataset].get(flag):
                raise InputError(f"--{flag}: only with --dataset folder")
    elif config["data_path"]:
        classes = len(class_names(config["data_path"]))
    else:
        raise InputError("--dataset folder needs --data_path DIR, with DIR/training/<class>/*")
    if config["network"] == "vgg19_bn" and config["width"] != RECIPES[dataset]["width"]:
        raise InputError("--width: only with --network preact_resnet18")
    options.settle_num_class(config, classes, config["data_path"])
    if device.type == "cpu" and "channels_last" not in given:
        # On a CPU it gains little.
        config["channels_last"] = False
    # Kept: without a weight on their loss, the other rows skip the network (method 5).
    config["labelled_rows_only"] = config["lambda_u"] == 0
    return config


def make_loader(config: dict, device: torch.device) -> data.animal_dataloader:
    """The data of a configuration."""
    return data.animal_dataloader(
        root=config["data_path"],
        batch_size=config["batch_size"],
        num_workers=config["num_workers"],
        dataset=config["dataset"],
        image_size=config["image_size"],
        val_fraction=config.get("val_fraction", 0.0),
        skip_broken=config.get("skip_broken", False),
        seed=config["seed"],
        device=device,
        channels_last=config["channels_last"],
    )


def build_network(config: dict) -> torch.nn.Module:
    """One untrained network."""
    if config["network"] == "vgg19_bn":
        return vgg19_bn(config["num_class"])
    return ResNet18(config["num_class"], config["width"])


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    script = session.Script("train_animal10N.py", resolve, make_loader, build_network)
    return session.main(script, new_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

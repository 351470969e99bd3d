"""Train two networks with SMR on photos with wrong labels (Zhang et al., Mathematics 2024).

    python train_animal10N.py --num_epochs 200 --lambda_u 0 --data_path './data/Animal-10N' \\
        --dataset 'animal10N' --num_class 10
    python train_animal10N.py --dataset folder --data_path ./photos

The first reproduces a figure of the paper, on data that its authors hand out on request; the
second takes your own photos, photos/<class>/* or photos/training/<class>/*, with a recipe that
suits their number. A flag that is not given takes its value from the data set's recipe.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Before torch is loaded: its threads shall not spin on cores that other runs need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import dataloader_animal10N as data
from dataloader_folder import VAL_FRACTION, folder_dataloader, list_folder
from smr.data.loader import Loader
from smr.errors import InputError
from smr.run import options, photos
from smr.run import run as session
from smr.run.photos import build_network

# Method 3's table; what its columns share stands in options.DEFAULTS and smr.Recipe.
ANIMAL_RECIPE = photos.RECIPE | {
    "num_epochs": 200,
    "batch_size": 128,
    "lr": 0.01,
    "lr_steps": ((140, 0.01),),  # Kept: /100 at once; 80:0.1,140:0.01 was evidently meant
    "weight_decay": 1e-3,
    "warm_up": 30,
    "recalibrate_every": 15,
    **dict.fromkeys(("image_size", "resize"), data.ANIMAL_SIZE),
    "network": "vgg19_bn",
    "data_path": "./data/Animal-10N",
}
# Clothing1M's, published for labels that people gave and a trained network to start from.
FOLDER_RECIPE = photos.RECIPE | {
    "lr": 0.002,
    "weight_decay": 1e-3,
    "warm_up": 1,
    "alpha": 0.5,
    # The smallest of the usual ones: on two CPU cores a run takes an hour, not a night.
    "network": "resnet18",
    "pretrained": True,
    "data_path": "",
}
USUAL_PHOTOS, USUAL_EPOCHS = 2000, 6
RECIPES = {"animal10N": ANIMAL_RECIPE, "folder": FOLDER_RECIPE}
OF_FOLDER = ("image_size", "resize", "val_fraction", "pretrained", "weights", "check_images")


def recipe_for(count: int, device: torch.device, num_epochs: int | None) -> dict:
    """The folder recipe's values that depend on the number of training photos, and on the device.

    Args: num_epochs, where --num_epochs gives it.
    """
    if num_epochs is None:
        # 2,000 photos take up to an hour on two CPU cores. Fewer need more epochs for as many
        # steps, yet repeat themselves: the root is between as many epochs and as many steps.
        num_epochs = min(max(round(USUAL_EPOCHS * (USUAL_PHOTOS / count) ** 0.5), 4), 40)
    batch_size = 32
    while batch_size > 8 and count < 16 * batch_size:
        batch_size //= 2
    return FOLDER_RECIPE | {
        "num_epochs": num_epochs,
        "batch_size": batch_size,
        "lr_steps": ((max(1, -(-num_epochs // 2)), 0.1),),
        # Clothing1M's every 10 of 80 epochs, but never so often that no other epoch is left.
        "recalibrate_every": max(3, num_epochs // 8),
        "image_size": 224 if device.type == "cuda" else 128,
    }


def new_parser() -> options.Parser:
    """The shared flags, and those of photos."""
    parser = options.new_parser(__doc__, RECIPES, photos.NO_NOISE)
    add = options.add_data_flags(
        parser,
        "folder is any DIR/<class>/* or DIR/training/<class>/* (default: animal10N)",
        "DIR holds training/ and testing/, or the binaries (default: ./data/Animal-10N)",
    )
    about = f"""share of a folder without testing/ that is held out as test images (default:
        {VAL_FRACTION})"""
    add("--val_fraction", type=options.number(float, 0, 0.5, open_low=True), help=about)
    photos.add_flags(parser, add)
    return parser


def resolve(given: dict, device: torch.device) -> dict:
    """The run's configuration (`options.resolve`), with the consequences of the data."""
    dataset = given.get("dataset", "animal10N")
    if dataset == "folder":
        if not given.get("data_path"):
            raise InputError("--dataset folder needs --data_path DIR, with DIR/<class>/*")
        if given.get("noise_file"):
            raise InputError(
                "--noise_file: a photo's folder is its label; correct_labels.py moves it"
            )
        found = list_folder(Path(given["data_path"]), given.get("val_fraction"), 0)
        count, classes = len(found.train.files), len(found.class_names)
        recipe = recipe_for(count, device, given.get("num_epochs"))
    else:
        recipe, classes = ANIMAL_RECIPE, len(data.ANIMALS)
        for flag in OF_FOLDER:
            if given.get(flag, recipe.get(flag)) != recipe.get(flag):
                raise InputError(f"--{flag}: only with --dataset folder")
    config = options.resolve(given, {"dataset": dataset} | recipe, device)
    options.settle_num_class(config, classes, config["data_path"])
    if device.type == "cpu" and dataset == "animal10N" and "channels_last" not in given:
        # On a CPU it gains little.
        config["channels_last"] = False
    photos.settle(config)
    return config


def make_loader(config: dict, device: torch.device) -> Loader:
    """The data of a configuration."""
    shared = photos.loader_options(config, device)
    if config["dataset"] == "animal10N":
        shared.pop("check_images")  # each is decoded at the start
        return data.animal_dataloader(config["data_path"], **shared)
    shared.pop("noise_file")  # the folders are the labels
    loader = folder_dataloader(
        config["data_path"],
        frame=photos.frame(config, square=True),
        val_fraction=config.get("val_fraction"),
        **shared,
    )
    chosen = ("num_epochs", "batch_size", "lr", "lr_steps", "warm_up", "recalibrate_every")
    chosen += ("network", "pretrained", "image_size")
    values = "  ".join(f"--{flag} {options.shown(flag, config[flag])}" for flag in chosen)
    loader.info.data_notes.append(f"the recipe for so many photos, or the flags: {values}")
    return loader


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    script = session.Script("train_animal10N.py", resolve, make_loader, build_network)
    return session.main(script, new_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

"""Train two networks with SMR on CIFAR with noisy labels (Zhang et al., Mathematics 2024).

    python train_cifar.py --dataset digits
    python train_cifar.py --r 0.5 --noise_mode sym --data_path ./data/cifar-10-batches-py --download

The first needs no data and takes two to six minutes on two CPU cores; the second reproduces
a figure of the paper. A flag that is not given takes its value from the data set's recipe.
With --method dividemix, B is 64, as DivideMix published it.
"""

import os
import sys

if __name__ == "__main__":
    # Before torch is loaded: its threads shall not spin on cores that other runs need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import dataloader_cifar as data
from losses import LAMBDA_U
from PreResNet import ResNet18
from smr.data.cifar_files import download
from smr.run import options
from smr.run import run as session

# Method 3's table; what its columns share stands in options.DEFAULTS and smr.Recipe.
NOISE = {"noise_mode": "sym", "r": 0.5, "noise_file": ""}
CIFAR_RECIPE = NOISE | {
    "num_epochs": 300,
    "batch_size": 128,
    "lr": 0.02,
    "lr_steps": ((150, 0.1),),
    "weight_decay": 5e-4,
    "recalibrate_every": 30,
    "width": 64,
}
RECIPES = {
    # Ten epochs: the networks know the classes, and have not yet memorized wrong labels.
    "cifar10": CIFAR_RECIPE | {"warm_up": 10, "data_path": "./data/cifar-10-batches-py"},
    # A hundred classes take longer to learn before losses tell anything.
    "cifar100": CIFAR_RECIPE | {"warm_up": 30, "data_path": "./data/cifar-100-python"},
    # Ours: small enough for two CPU cores in minutes, in the proportions of CIFAR's.
    "digits": NOISE
    | {
        "num_epochs": 60,
        "batch_size": 64,
        "lr": 0.02,
        "lr_steps": ((50, 0.1),),
        "weight_decay": 5e-4,
        "warm_up": 15,
        "recalibrate_every": 10,
        "width": 16,
        "compile": False,  # the compiler's start takes longer than the run
        "data_path": "",
    },
}


# DivideMix's own B, with which its figures were published.
DIVIDEMIX = {"batch_size": 64}


def published_lambda_u(dataset: str, noise_mode: str, r: float) -> float:
    """lambda_u of the published row (method 7), the published default where there is none."""
    if noise_mode.startswith("asym"):
        return 0.0
    if noise_mode == "sym" and dataset == "cifar100" and r >= 0.5:
        return 150.0
    if noise_mode == "sym" and dataset == "cifar10":
        return {0.2: 0.0, 0.9: 50.0}.get(r, LAMBDA_U)
    return LAMBDA_U


def new_parser() -> options.Parser:
    """The shared flags, and those of CIFAR's data, noise and networks."""
    parser = options.new_parser(__doc__, RECIPES)
    add = options.add_data_flags(
        parser,
        "digits are scikit-learn's and need no download (default: cifar10)",
        "folder of the official Python files (default: ./data/…)",
    )
    about = "fetch the official archive if it is not there"
    add("--download", action="store_true", default=None, help=about)
    about = "train on the first N training images alone (default: all)"
    add("--train_images", type=options.number(int, 2), metavar="N", help=about)
    about = "generated noise, or one of CIFAR-N's human label sets (default: sym)"
    add("--noise_mode", choices=(*data.SYNTHETIC_MODES, *data.HUMAN_LABELS), help=about)
    about = """share of training labels drawn anew, of which some stay right (default: 0.5; human
        labels: their realized rate)"""
    add("--r", type=options.number(float, 0, 1), help=about)
    about = "CIFAR-10_human.pt, CIFAR-100_human.pt or a JSON list of labels (default: generate)"
    add("--noise_file", metavar="FILE", help=about)
    return parser


def resolve(given: dict, device: torch.device) -> dict:
    """The run's configuration (`options.resolve`), with CIFAR's own consequences."""
    dataset = given.get("dataset", "cifar10")
    recipe = {"dataset": dataset} | RECIPES[dataset]
    if given.get("method") == "dividemix":
        recipe |= DIVIDEMIX
    config = options.resolve(given, recipe, device)
    options.settle_num_class(config, data.NUM_CLASS[dataset], dataset)
    noise_mode = config["noise_mode"]
    if "r" not in given and noise_mode in data.HUMAN_LABELS:
        _, config["r"] = data.HUMAN_LABELS[noise_mode]
    data.check_noise(dataset, noise_mode, config["noise_file"])
    if "lambda_u" not in given:
        # A list of labels alone names no cell.
        is_cell = not config["noise_file"] or given.keys() & {"r", "noise_mode"}
        published = published_lambda_u(dataset, noise_mode, config["r"])
        config["lambda_u"] = published if is_cell else LAMBDA_U
    config["warmup_penalty"] = noise_mode.startswith("asym")
    return config


def make_loader(config: dict, device: torch.device) -> data.cifar_dataloader:
    """The data of a configuration."""
    if config.get("download"):
        download(config["data_path"], config["dataset"])
    return data.cifar_dataloader(
        dataset=config["dataset"],
        r=config["r"],
        noise_mode=config["noise_mode"],
        batch_size=config["batch_size"],
        num_workers=0,
        root_dir=config["data_path"],
        log=None,
        noise_file=config["noise_file"],
        seed=config["seed"],
        device=device,
        channels_last=config["channels_last"],
        train_images=config.get("train_images"),
    )


def build_network(config: dict) -> torch.nn.Module:
    """One untrained PreAct-ResNet-18."""
    return ResNet18(config["num_class"], config["width"])


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    script = session.Script("train_cifar.py", resolve, make_loader, build_network)
    return session.main(script, new_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

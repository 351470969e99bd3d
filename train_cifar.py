"""Train two networks with SMR on CIFAR with noisy labels (Zhang et al., Mathematics 2024).

    python train_cifar.py --dataset digits
    python train_cifar.py --r 0.5 --noise_mode sym --data_path ./data/cifar-10-batches-py --download

The first needs no data and takes about a minute on two CPU cores; the second reproduces a figure
of the paper. A flag that is not given takes its value from the data set's recipe.
"""

import sys
from functools import partial
from pathlib import Path

import torch

import dataloader_cifar as data
import experiment
import options
import smr
from batches import InputError
from PreResNet import ResNet18

# SPEC 3's table. What the three share: two networks, SGD with momentum 0.9, mixup's alpha = 4,
# T = 0.5 and p_threshold = 0.5, DivideMix's published constants.
SHARED_RECIPE = {"alpha": 4.0, "T": 0.5, "p_threshold": 0.5, "warmup_loss": "mixup"}
CIFAR_RECIPE = SHARED_RECIPE | {
    "num_epochs": 300,
    "batch_size": 128,  # DivideMix has 64 a side; SMR 128
    "lr": 0.02,
    "lr_steps": ((150, 0.1),),
    "weight_decay": 5e-4,
    "recalibrate_every": 30,
    "width": 64,
    "noise_mode": "sym",
    "r": 0.5,
}
RECIPES = {
    # Ten epochs: the networks know the classes, and have not yet memorised wrong labels.
    "cifar10": CIFAR_RECIPE | {"warm_up": 10, "data_path": "./data/cifar-10-batches-py"},
    # A hundred classes take longer to learn before losses tell anything.
    "cifar100": CIFAR_RECIPE | {"warm_up": 30, "data_path": "./data/cifar-100-python"},
    # Ours: small enough for two CPU cores and a minute, in the proportions of CIFAR's.
    "digits": SHARED_RECIPE
    | {
        "num_epochs": 40,
        "batch_size": 64,
        "lr": 0.02,
        "lr_steps": ((30, 0.1),),
        "weight_decay": 5e-4,
        "warm_up": 8,
        "recalibrate_every": 10,
        "width": 16,
        "noise_mode": "sym",
        "r": 0.5,
        "data_path": "",
    },
}


def published_lambda_u(dataset: str, noise_mode: str, r: float) -> float:
    """lambda_u of the published row (SPEC 7); 25, the published default, where there is none."""
    if noise_mode.startswith("asym"):
        return 0.0
    published = {
        ("cifar10", 0.2): 0.0,
        ("cifar10", 0.9): 50.0,
        ("cifar100", 0.5): 150.0,
        ("cifar100", 0.8): 150.0,
        ("cifar100", 0.9): 150.0,
    }
    return published.get((dataset, r), 25.0) if noise_mode == "sym" else 25.0


def new_parser() -> options.Parser:
    """The shared flags, and those of CIFAR's data, noise and networks."""
    parser = options.new_parser(__doc__)
    add = parser.add_argument_group("data and noise (SPEC 1)").add_argument
    add(
        "--dataset",
        choices=tuple(RECIPES),
        default="cifar10",
        help="digits are scikit-learn's and need no download (default cifar10)",
    )
    add("--data_path", metavar="DIR", help="folder of the official Python files (default ./data/…)")
    add("--download", action="store_true", help="fetch the official archive if it is not there")
    add(
        "--num_class",
        type=options.number(int, 2),
        help="number of classes (default: the data set's; another one is an error)",
    )
    add(
        "--noise_mode",
        choices=(*data.SYNTHETIC_MODES, *data.HUMAN_KEYS),
        help="generated noise, or one of CIFAR-N's human label sets (default sym)",
    )
    add(
        "--r",
        type=options.number(float, 0, 1),
        help="share of training labels drawn anew, of which some stay right (default 0.5; for human "
        "labels their realised rate)",
    )
    add(
        "--noise_file",
        default="",
        metavar="FILE",
        help="CIFAR-10_human.pt or CIFAR-100_human.pt, or a JSON list of labels (default: generate)",
    )
    add(
        "--width",
        type=options.number(int, 1),
        help="channels of PreAct-ResNet-18's first stage (default 64; digits 16)",
    )
    return parser


def resolve(args, device: torch.device) -> dict:
    """The run's configuration (`options.resolve`), with CIFAR's own consequences."""
    config = options.resolve(args, RECIPES[args.dataset], device)
    expected = data.DATASETS[args.dataset].num_class
    if config["num_class"] not in (None, expected):
        raise InputError(f"--num_class {args.num_class}: {args.dataset} has {expected} classes")
    config["num_class"] = expected
    if args.r is None and config["noise_mode"] in data.HUMAN_RATES:
        config["r"] = data.HUMAN_RATES[config["noise_mode"]]
    if args.lambda_u is None:
        cell = config["dataset"], config["noise_mode"], config["r"]
        config["lambda_u"] = published_lambda_u(*cell)
    config["asymmetric"] = config["noise_mode"].startswith("asym")
    return config


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = new_parser().parse_args(argv)
    device = options.find_device(args.device, args.gpuid)
    config = resolve(args, device)
    experiment.seed_everything(config["seed"])
    if args.download and config["dataset"] != "digits":
        data.download(config["data_path"], config["dataset"])
    folder = Path(config["output"]) / experiment.run_name(config)
    experiment.make_folder(folder, args.overwrite)
    loader = data.cifar_dataloader(
        config["dataset"],
        config["r"],
        config["noise_mode"],
        config["batch_size"],
        0,
        config["data_path"],
        None,
        config["noise_file"],
        seed=config["seed"],
        device=device,
        channels_last=config["channels_last"] == "on",
        cache_folder=folder,
    )
    build_network = partial(ResNet18, config["num_class"], config["width"])
    recipe = options.recipe_of(config, smr.Recipe)
    pair = smr.new_pair(build_network, recipe, device, config["channels_last"] == "on")
    kinds = [smr.kind_of_epoch(epoch, recipe) for epoch in range(recipe.num_epochs + 1)]
    run = experiment.Run(folder, config, kinds, with_truth=True)
    run.open_records(-1)
    run.log.heading(run.columns)
    results = smr.train(pair, loader, recipe, 0, run.progress, run.log.note)
    return experiment.follow(run, pair, loader, results, config["save_every"])


if __name__ == "__main__":
    with options.one_line_errors("train_cifar.py"):
        sys.exit(main())

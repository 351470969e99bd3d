"""Train two heads on frozen features of all CIFAR-10 images, each scaled up to a photo.

    python benchmarks/reproduce.py worst --frozen --method smr --seed 1 --weights lite0.pth \\
        --data_path cifar-10-batches-py --noise_file CIFAR-10_human.pt

The features are computed once into --features, whatever the noise, and resumed at the pass that was
interrupted.
"""

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import label_errors

import compare_runs
import train_cifar
from smr import networks
from smr.data.augment import normalizer
from smr.data.image_file_dataset import IMAGENET_VIEWS
from smr.data.loader import Loader
from smr.evaluate import test
from smr.files import write_text
from smr.flags import DATA, FREE, ON_OFF, flag
from smr.logging.metrics_file import read_metrics
from smr.run.command import command
from smr.run.run import Run

# Chosen on the labels rand1, seed 1, with SMR, for all methods and noises (docs/results.md).
HEADS = {
    "num_epochs": 10,
    "batch_size": 512,
    "lr": 0.04,
    "lr_steps": ((7, 0.1),),
    "weight_decay": 0.003,
    "warm_up": 3,
    "recalibrate_every": 5,
    "alpha": 4.0,
    "lambda_u": 0.0,
}


# C of logistic regression: scikit-learn's default, and the best of label_errors.GRID on the labels
# rand1 and worst.
GRID = (1.0, 0.001, 3e-4)


@dataclass
class FrozenCifarConfig(train_cifar.CifarConfig):
    """The flags of the backbone."""

    network: str = flag("the backbone", DATA, "timm/tf_efficientnet_lite0")
    weights: str = flag("its weights", DATA, "", metavar="FILE")
    pretrained: bool = flag(
        "ImageNet's weights", DATA, words=ON_OFF, shown_default="on without --weights"
    )
    image_size: int = flag("side of the scaled images", DATA, 128, low=32, high=512)
    feature_views: int = flag("augmented views", DATA, 2, low=0, high=100)
    features: str = flag(
        "features", DATA, "./checkpoint/features_cifar10", metavar="DIR", resume=FREE
    )
    freeze_backbone: bool = flag("always on here", DATA, True, words=ON_OFF)

    def hyperparameters(self, device: torch.device) -> dict:
        return super().hyperparameters(device) | HEADS | {"pretrained": not self.weights}

    @property
    def labeled_rows_only(self) -> bool:
        """As on photos (method 5)."""
        return self.lambda_u == 0


class Upscaled(nn.Module):
    """A network of images that are scaled to side x side first."""

    def __init__(self, network: nn.Module, side: int):
        super().__init__()
        self.network, self.side = network, side

    def forward(self, images: Tensor) -> Tensor:
        scaled = F.interpolate(images, size=(self.side,) * 2, mode="bicubic", align_corners=False)
        return self.network(scaled.contiguous(memory_format=torch.channels_last))


def build_network(config: FrozenCifarConfig) -> nn.Module:
    """The backbone with a fresh last layer."""
    values = config.network, config.num_class, config.width, config.pretrained, config.weights
    return Upscaled(networks.build(*values), config.image_size)


def make_loader(config: FrozenCifarConfig, device: torch.device) -> Loader:
    """CIFAR's images with the statistics of ImageNet."""
    loader = train_cifar.make_loader(config, device)
    mean, std = IMAGENET_VIEWS.mean, IMAGENET_VIEWS.std
    loader.normalize = normalizer(mean, std, device, config.channels_last)
    loader.info.mean, loader.info.std = mean, std
    return loader


@command
def main(argv: list[str] | None = None) -> None:
    """Train, test, log and save epoch by epoch, as train_cifar.py does."""
    with Run(FrozenCifarConfig, __doc__, argv) as run:
        config = run.config
        run.load(make_loader)
        loader = run.freeze_backbone(build_network, Path(config.features))
        pair = run.new_pair(build_network)
        method = run.new_method(pair, loader)
        for epoch in run.epochs():
            trained = method.train_epoch(epoch)
            run.log(trained, test(pair.networks, loader, config))
            run.save(epoch)
        run.report_label_issues()


def baselines(flags: list[str]) -> list[dict]:
    """Lines of cleanlab and of votes on the mean of the views of the images with these labels."""
    with Run(FrozenCifarConfig, __doc__, flags) as run:
        run.load(make_loader)
        loader = run.freeze_backbone(build_network, Path(run.config.features))
    test, truth = loader.tests["test"]
    values, labels = loader.train_images.float().mean(dim=1), loader.noisy_labels.numpy()
    issue = labels != loader.clean_labels
    data = label_errors.standardized(values, labels, test[:, 0].float(), truth.numpy())
    votes = label_errors.timed("votes", issue, lambda: label_errors.votes(values, labels))
    about = {"seed": run.config.seed, "labels": loader.info.noise_sha256}
    return [
        about | {"method": row.pop("way"), "last": row.pop("accuracy")} | row
        for row in [*label_errors.regressions(data, issue, GRID), votes]
    ]


def line_of(run: Path) -> dict:
    """A finished run's line: test accuracies in per cent, its label issues, its last split."""
    config, rows = json.loads((run / "config.json").read_text("utf-8")), read_metrics(run)
    accuracies = [row["test/accuracy"] for row in rows]
    line = {
        "method": compare_runs.method_of(config),
        "seed": config["seed"],
        "noise_rate": config["noise_rate"],
        "best": max(accuracies),
        "last": accuracies[-1],
        "last_ten": np.mean(accuracies[-10:]),
        "seconds": sum(row["time/seconds"] for row in rows),
    }
    splits = [row for row in rows if "split/net1/labeled" in row]
    for name in ("precision", "recall") if splits else ():
        networks = [splits[-1].get(f"split/net{k}/{name}", 0) for k in (1, 2)]
        line[name] = sum(networks) / 2
    with open(run / "labels.csv", encoding="utf-8-sig") as file:
        labels = list(csv.DictReader(file))
    given, true, rank, p_given, p_predicted = (
        np.array([float(row[name]) for row in labels])
        for name in ("given", "true", "rank", "p_given", "p_predicted")
    )
    line |= label_errors.figures(given != true, rank, p_given < p_predicted / 2)
    return line | {"features": config["features_of"], "labels": config["noise_sha256"]}


def record(line: dict, path: Path) -> None:
    """Add a line to a file of lines, in the place of an older one."""
    key = ("cell", "method", "seed")
    lines = label_errors.read_rows(path) if path.exists() else []
    lines = [each for each in lines if any(each[name] != line[name] for name in key)]
    lines.append({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in line.items()})
    lines.sort(key=lambda each: [each[name] for name in key])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(each) + "\n" for each in lines))

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
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_cifar
from smr import networks
from smr.data.augment import normalizer
from smr.data.image_file_dataset import IMAGENET_VIEWS
from smr.data.loader import Loader
from smr.evaluate import test
from smr.files import write_json
from smr.flags import DATA, FREE, ON_OFF, flag
from smr.run.command import command
from smr.run.run import Run

# Heads on many images: fewer epochs and less weight decay than train_folder.FROZEN were slightly
# better on 8,000 photos.
HEADS = {
    "num_epochs": 15,
    "batch_size": 128,
    "lr": 0.02,
    "lr_steps": ((10, 0.1),),
    "weight_decay": 0.02,
    "warm_up": 4,
    "recalibrate_every": 5,
    "alpha": 4.0,
    "lambda_u": 0.0,
}


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


def add_label_issues(run: Path, copy: Path) -> None:
    """Add AP, precision at 100 and at the number of noisy labels, and F1 to the config.json."""
    with open(run / "labels.csv", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = ("given", "true", "rank", "p_given", "p_predicted")
    given, true, rank, p_given, p_predicted = (
        np.array([float(row[name]) for row in rows]) for name in names
    )
    issue, order = given != true, np.argsort(rank)
    figures = {
        "ap": average_precision_score(issue, -rank),
        "p100": issue[order[:100]].mean(),
        "p_noisy": issue[order[: issue.sum()]].mean() if issue.any() else 0,
        "f1": f1_score(issue, p_given < p_predicted / 2),
    }
    figures = {name: round(float(value), 5) for name, value in figures.items()}
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    write_json(copy / "config.json", config | {"label_issues": figures})

"""The configuration that the photo scripts share: image size, networks, reading of files."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from smr import networks
from smr.config import DATA, FREE, GROWS, Config, flag
from smr.data.decoding import usable_cores
from smr.data.image_file_dataset import Frame
from smr.errors import InputError

WIDTH = 64
OWN_LABELS = "these labels come with the photos, and no noise is injected"


@dataclass
class PhotoConfig(Config):
    """Flags of photos and of their networks. Raises InputError."""

    width: int = flag(
        WIDTH, group=DATA, low=1, high=1024, help="channels of preact_resnet18's first stage"
    )
    image_size: int = flag(
        group=DATA,
        low=32,
        high=1024,
        metavar="PIXELS",
        aliases=("--crop",),
        help="side of the images that the networks expect",
    )
    resize: int = flag(
        group=DATA,
        low=32,
        high=2048,
        metavar="PIXELS",
        shown_default="8/7 of --image_size, or the published one",
        help="shorter side of a photo before the crop",
    )
    network: str = flag(
        group=DATA,
        metavar="NAME",
        help="preact_resnet18, a torchvision classification network, or timm/NAME",
    )
    pretrained: bool = flag(
        group=DATA,
        words=("off", "on"),
        help="initial weights: torchvision's IMAGENET1K_V1 or timm's default ones",
    )
    weights: str = flag(
        "",
        group=DATA,
        metavar="FILE",
        help="initial weights: a state dict, .pt or .safetensors, with any last layer",
    )
    num_workers: int = flag(
        group=DATA,
        low=0,
        resume=FREE,
        shown_default="the cores that this process may use",
        help="threads that decode photos",
    )
    freeze_backbone: bool = flag(
        group=DATA,
        words=("off", "on"),
        shown_default="off",
        help="compute the features of each photo once; two linear heads train on them",
    )
    feature_views: int = flag(
        2, group=DATA, low=0, high=100, help="augmented views of each photo in the features"
    )
    finetune_epochs: int = flag(
        0,
        group=DATA,
        low=0,
        resume=GROWS,
        metavar="N",
        help="then fine-tune whole networks for N epochs on the photos without label issues",
    )
    noise_file: str = flag(
        "",
        group=DATA,
        metavar="FILE",
        resume=FREE,
        help="a list of labels instead of the dataset's own",
    )
    skip_broken: bool = flag(
        False, group=DATA, resume=FREE, help="exclude files that cannot be decoded"
    )
    check_images: bool = flag(
        False, group=DATA, resume=FREE, help="decode every photo before training"
    )

    ELSEWHERE: ClassVar = {"r": OWN_LABELS, "noise_mode": OWN_LABELS}

    def hyperparameters(self, device: torch.device) -> dict:
        values = {"num_workers": usable_cores(), "pretrained": False} | super().hyperparameters(
            device
        )
        size = self.image_size or values["image_size"]
        return {"resize": round(8 / 7 * size), "lambda_u": 0.0} | values

    def check(self, device: torch.device) -> None:
        super().check(device)
        if self.resize < self.image_size:
            raise InputError(
                f"--resize {self.resize} is smaller than the crop of --image_size {self.image_size}"
            )
        if self.network != networks.PREACT and self.width != WIDTH:
            raise InputError(f"--width: only with --network {networks.PREACT}")
        networks.check_size(self.network, self.num_class, self.width, self.image_size)
        if self.weights:
            self.pretrained = False
        if self.finetune_epochs and not self.freeze_backbone:
            raise InputError("--finetune_epochs: only after --freeze_backbone on")

    @property
    def last_epoch(self) -> int:
        """The number of the last epoch, with those of fine-tuning."""
        return self.num_epochs + self.finetune_epochs

    @property
    def labeled_rows_only(self) -> bool:
        """Kept: with lambda_u = 0 the unlabeled rows are not forwarded (method 5)."""
        return self.lambda_u == 0

    def frame(self, **options) -> Frame:
        """How photos become images."""
        return Frame(self.resize, self.image_size, **options)

    def loader_options(self, device: torch.device) -> dict:
        """The keyword arguments that every photo loader takes."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "seed": self.seed,
            "channels_last": self.channels_last,
            "device": device,
            "skip_broken": self.skip_broken,
        }


def build_network(config: PhotoConfig) -> nn.Module:
    """One network with a fresh last layer (method 2). Raises InputError."""
    return networks.build(
        config.network,
        num_class=config.num_class,
        width=config.width,
        pretrained=config.pretrained,
        weights=config.weights,
    )

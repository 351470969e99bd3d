"""The configuration that the photo scripts share: image size, networks, reading of files."""

from dataclasses import dataclass

import torch
from torch import nn

from smr import networks
from smr.config import Config
from smr.data.image_file_dataset import Frame
from smr.devices import cpu_count
from smr.errors import InputError
from smr.flags import DATA, FREE, GROWS, ON_OFF, flag

WIDTH = 64


@dataclass
class PhotoConfig(Config):
    """Flags of photos and of their networks. Raises InputError."""

    width: int = flag("channels of preact_resnet18's first stage", DATA, WIDTH, low=1, high=1024)
    image_size: int = flag(
        "side of the images that the networks expect",
        DATA,
        low=32,
        high=1024,
        metavar="PIXELS",
        aliases=("--crop",),
    )
    resize: int = flag(
        "shorter side of a photo before the crop",
        DATA,
        low=32,
        high=2048,
        metavar="PIXELS",
        shown_default="8/7 of --image_size, or the published one",
    )
    network: str = flag(
        "preact_resnet18, a torchvision classification network, or timm/NAME", DATA, metavar="NAME"
    )
    pretrained: bool = flag(
        "initial weights: torchvision's IMAGENET1K_V1 or timm's default ones", DATA, words=ON_OFF
    )
    weights: str = flag(
        "initial weights: a state dict, .pt or .safetensors, with any last layer",
        DATA,
        "",
        metavar="FILE",
    )
    num_workers: int = flag(
        "threads that decode photos",
        DATA,
        low=0,
        resume=FREE,
        shown_default="the cores that this process may use",
    )
    freeze_backbone: bool = flag(
        "compute the features of each photo once; two linear heads train on them",
        DATA,
        words=ON_OFF,
        shown_default="off",
    )
    feature_views: int = flag(
        "augmented views of each photo in the features", DATA, 2, low=0, high=100
    )
    finetune_epochs: int = flag(
        "then fine-tune whole networks for N epochs on the photos without label issues",
        DATA,
        0,
        low=0,
        resume=GROWS,
        metavar="N",
    )
    noise_file: str = flag(
        "a list of labels instead of the dataset's own", DATA, "", metavar="FILE", resume=FREE
    )
    skip_broken: bool = flag("exclude files that cannot be decoded", DATA, False, resume=FREE)
    check_images: bool = flag("decode every photo before training", DATA, False, resume=FREE)

    def hyperparameters(self, device: torch.device) -> dict:
        values = super().hyperparameters(device)
        defaults = {
            "num_workers": cpu_count(),
            "pretrained": False,
            "resize": resize_of(self.image_size or values["image_size"]),
            "lambda_u": 0.0,
        }
        return defaults | values

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


def resize_of(image_size: int) -> int:
    """The shorter side of a photo from which a crop of `image_size` is taken by default."""
    return round(8 / 7 * image_size)


def build_network(config: PhotoConfig) -> nn.Module:
    """One network with a fresh last layer (method 2). Raises InputError."""
    return networks.build(
        config.network,
        num_class=config.num_class,
        width=config.width,
        pretrained=config.pretrained,
        weights=config.weights,
    )

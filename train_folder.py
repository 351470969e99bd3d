"""Train two networks with SMR on your own photos, and list the labels that are wrong.

    python train_folder.py --data_path photos

photos/<class>/*, or photos/training/<class>/* and photos/testing/<class>/*. The hyperparameters
follow from the number of photos; the log says which were chosen.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from dataloader_folder import VAL_FRACTION, folder_dataloader, list_folder
from smr.config import DATA, FREE, flag, shown_flags
from smr.errors import InputError
from smr.evaluate import test
from smr.photos import PhotoConfig, build_network
from smr.run.command import command
from smr.run.run import Run

# Clothing1M's, published for human labels and a pre-trained network.
HYPERPARAMETERS = {
    "folder": {
        "lr": 0.002,
        "weight_decay": 1e-3,
        "warm_up": 1,
        "alpha": 0.5,
        "network": "resnet18",  # on two CPU cores a larger one takes a night
        "pretrained": True,
    }
}
# Epochs for this many photos. Fewer photos need more epochs for as many steps, yet they repeat
# themselves: the square root is between as many epochs and as many steps.
USUAL_PHOTOS, USUAL_EPOCHS = 2000, 6
CHOSEN = ("num_epochs", "batch_size", "lr", "lr_steps", "network", "pretrained", "image_size")


@dataclass
class FolderConfig(PhotoConfig):
    """The flags of a photo folder."""

    dataset: str = flag("folder", group=DATA, choices=tuple(HYPERPARAMETERS), help="the only one")
    labels_csv: str = flag(
        "",
        group=DATA,
        metavar="FILE",
        resume=FREE,
        aliases=("--labels",),
        help="a CSV with the columns file and label, if the photos are not in class folders",
    )
    val_fraction: float | None = flag(
        group=DATA,
        above=0,
        high=0.5,
        shown_default=f"{VAL_FRACTION}",
        help="fraction held out as test images, without a folder of test photos",
    )

    HYPERPARAMETERS: ClassVar = HYPERPARAMETERS

    def hyperparameters(self, device: torch.device) -> dict:
        """Clothing1M's, and what follows from the number of photos."""
        if not self.data_path:
            raise InputError("--data_path DIR is missing: the folder with DIR/<class>/*")
        folder = list_folder(Path(self.data_path), self.val_fraction, 0, self.labels_csv)
        count = len(folder.train.files)
        self.set_num_class(len(folder.class_names), self.data_path)
        sizes = {"image_size": 224 if device.type == "cuda" else 128}
        scaled = scaled_hyperparameters(count, self.num_epochs)
        size = self.image_size or sizes["image_size"]
        defaults = {"num_workers": usable_cores(), "resize": round(8 / 7 * size), "lambda_u": 0.0}
        return defaults | HYPERPARAMETERS["folder"] | sizes | scaled

    def check(self, device: torch.device) -> None:
        super().check(device)
        if self.noise_file:
            raise InputError("--noise_file: a photo's folder is its label; use --labels FILE.csv")

"""Train two networks with SMR on your own photos, and list the label issues.

    python train_folder.py --data_path photos

photos/<class>/*, or photos/training/<class>/* and photos/testing/<class>/*. The hyperparameters
depend on the number of photos; the log prints them.
"""

import math
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

from dataloader_folder import VAL_FRACTION, folder_dataloader, list_folder
from smr.data.image_file_dataset import ImageFileLoader
from smr.errors import InputError
from smr.evaluate import test
from smr.flags import DATA, FREE, flag, shown_flags
from smr.photos import PhotoConfig, build_network, resize_of
from smr.run.command import command
from smr.run.run import Run

# Linear heads on frozen features: chosen on CIFAR-10 photos with human and uniform label noise
# (docs/labels.md).
FROZEN = {
    "num_epochs": 30,
    "batch_size": 128,
    "lr": 0.02,
    "lr_steps": ((20, 0.1),),
    "weight_decay": 0.05,
    "warm_up": 8,
    "recalibrate_every": 10,
    "alpha": 4.0,
}
# The same on fewer than 1,000 photos: fewer epochs, as the heads memorize them soon.
FEW_PHOTOS = 1000
FROZEN_FEW = FROZEN | {"num_epochs": 12, "lr_steps": ((8, 0.1),)}
# A whole network: Clothing1M's, published for human labels and a pre-trained network.
WHOLE = {"lr": 0.002, "weight_decay": 1e-3, "warm_up": 1, "alpha": 0.5}
HYPERPARAMETERS = {
    "folder": {
        "image_size": 128,
        "network": "resnet18",  # small: two CPU cores take minutes for its features
        "pretrained": True,
    }
}
# Epochs for this many photos. Fewer photos need more epochs for as many steps, yet they repeat
# themselves: the square root is between as many epochs and as many steps.
USUAL_PHOTOS, USUAL_EPOCHS = 2000, 6


@dataclass
class FolderConfig(PhotoConfig):
    """The flags of a photo folder."""

    dataset: str = flag("the dataset of this script", DATA, "folder", choices=("folder",))
    labels_csv: str = flag(
        "a CSV with the columns file and label, if the photos are not in class folders",
        DATA,
        "",
        metavar="FILE",
        resume=FREE,
        aliases=("--labels",),
    )
    val_fraction: float | None = flag(
        "fraction of each class held out for the test, if there is no folder of test photos",
        DATA,
        above=0,
        high=0.5,
        shown_default=str(VAL_FRACTION),
    )

    HYPERPARAMETERS: ClassVar = HYPERPARAMETERS

    def hyperparameters(self, device: torch.device) -> dict:
        """Clothing1M's, with the values that follow from the number of photos."""
        if not self.data_path:
            raise InputError("--data_path DIR is missing: the folder with DIR/<class>/*")
        values = super().hyperparameters(device)
        if self.num_class and self.lr_steps is not None:  # a run's whole configuration
            return values
        train, _, info = list_folder(self.data_path, self.val_fraction, self.seed, self.labels_csv)
        self.set_num_class(len(info.class_names), self.data_path)
        if device.type == "cuda":
            values |= {"image_size": 224, "resize": resize_of(self.image_size or 224)}
        # Without pre-trained weights there is nothing to freeze.
        values["freeze_backbone"] = self.pretrained is not False or bool(self.weights)
        frozen = values["freeze_backbone"] if self.freeze_backbone is None else self.freeze_backbone
        if not frozen:
            return values | whole_hyperparameters(len(train), self.num_epochs)
        return values | (FROZEN_FEW if len(train) < FEW_PHOTOS else FROZEN)

    def check(self, device: torch.device) -> None:
        super().check(device)
        if self.noise_file:
            raise InputError("--noise_file: the folders are the labels; see also --labels FILE.csv")


def whole_hyperparameters(count: int, num_epochs: int | None) -> dict:
    """The hyperparameters of whole networks on `count` training photos."""
    if num_epochs is None:
        num_epochs = min(max(round(USUAL_EPOCHS * (USUAL_PHOTOS / count) ** 0.5), 4), 40)
    return WHOLE | {
        "num_epochs": num_epochs,
        "batch_size": 32 if count >= 512 else 16 if count >= 256 else 8,
        "lr_steps": ((max(1, math.ceil(num_epochs / 2)), 0.1),),
        # Clothing1M's every 10 of 80 epochs, but never every other epoch.
        "recalibrate_every": max(3, num_epochs // 8),
    }


def make_loader(config: FolderConfig, device: torch.device) -> ImageFileLoader:
    """The photos, with their folders or a CSV as labels."""
    loader = folder_dataloader(
        config.data_path,
        frame=config.frame(square=True),
        val_fraction=config.val_fraction,
        labels_csv=config.labels_csv,
        check_images=config.check_images,
        **config.loader_options(device),
    )
    config.set_num_class(len(loader.class_names), config.data_path)
    chosen = "num_epochs batch_size lr lr_steps network freeze_backbone image_size"
    shown, count = shown_flags(config, chosen.split()), loader.info.train_images
    loader.info.data_notes.append(f"hyperparameters for {count} photos: {shown}")
    return loader


@command
def main(argv: list[str] | None = None) -> None:
    """Train, test, log and save epoch by epoch, then report the label issues."""
    with Run(FolderConfig, __doc__, argv) as run:
        config = run.config
        loader = run.load(make_loader)  # photos; their folders are the labels
        loader = run.freeze_backbone(build_network)  # --freeze_backbone on: their features
        pair = run.new_pair(build_network)  # two networks, each with its SGD
        method = run.new_method(pair, loader)  # --method: smr, dividemix, ce, elr
        for epoch in run.epochs():
            if epoch > config.num_epochs and run.frozen:  # --finetune_epochs: whole networks
                pair, loader, method = run.fine_tune(build_network)
            # Warm-up; or GMM co-divide, then MixMatch; or recalibration: smr/methods/smr.py.
            trained = method.train_epoch(epoch)
            tests = test(pair.networks, loader, config)
            run.log(trained, tests)  # console, metrics.jsonl, acc.txt, stats.txt, TensorBoard
            run.save(epoch)  # last.pt, best.pt
        run.report_label_issues()  # labels.csv, labels.html


if __name__ == "__main__":
    sys.exit(main())

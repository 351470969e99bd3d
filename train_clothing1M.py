"""Train two networks with SMR on Clothing1M (Zhang et al., Mathematics 2024; method 9).

    python train_clothing1M.py --data_path ./data/Clothing1M
    python train_clothing1M.py --data_path ./data/Clothing1M --num_batches 250 --num_epochs 20

Both start from torchvision's ResNet-50, pre-trained on ImageNet. The first is the published
protocol; in the second an epoch has a quarter of the images. Flags that you omit take their
values from the hyperparameters.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

from dataloader_clothing1M import CLASSES, clothing_dataloader
from smr.evaluate import test
from smr.flags import DATA, flag
from smr.photos import PhotoConfig, build_network
from smr.run.command import command
from smr.run.run import Run

# The published hyperparameters (docs/method.md, section 9).
HYPERPARAMETERS = {
    "clothing1M": {
        "num_epochs": 80,
        "num_batches": 1000,
        "batch_size": 32,
        "lr": 0.002,  # the network is pre-trained
        "lr_steps": ((40, 0.1),),
        "weight_decay": 1e-3,
        "warm_up": 1,
        "recalibrate_every": 10,
        "alpha": 0.5,
        "image_size": 224,
        "resize": 256,
        "network": "resnet50",
        "pretrained": True,
        "data_path": "./data/Clothing1M",
    }
}


@dataclass
class ClothingConfig(PhotoConfig):
    """The flags of Clothing1M."""

    dataset: str = flag("the dataset of this script", DATA, "clothing1M", choices=("clothing1M",))
    num_batches: int = flag(
        "batches of B in the sample that an epoch trains on; a warm-up has twice the images",
        DATA,
        low=1,
        metavar="N",
    )

    HYPERPARAMETERS: ClassVar = HYPERPARAMETERS
    TEST_TITLES: ClassVar = {"val": "Validation", "test": "Test"}
    SELECT_ON: ClassVar = "val"
    entropy_penalty: ClassVar = True

    def check(self, device: torch.device) -> None:
        self.set_num_class(len(CLASSES), "Clothing1M")
        super().check(device)


def make_loader(config: ClothingConfig, device: torch.device) -> clothing_dataloader:
    """The photos, of which each epoch takes a sample."""
    return clothing_dataloader(
        config.data_path,
        num_batches=config.num_batches,
        frame=config.frame(),
        noise_file=config.noise_file,
        check_images=config.check_images,
        **config.loader_options(device),
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Train, test, log and save epoch by epoch, then report the label issues."""
    with Run(ClothingConfig, __doc__, argv) as run:
        config = run.config
        loader = run.load(make_loader)  # photos, decoded while the networks train
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

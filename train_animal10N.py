"""Train two networks with SMR on Animal-10N (Zhang et al., Mathematics 2024).

    python train_animal10N.py --num_epochs 200 --lambda_u 0 --data_path './data/Animal-10N' \\
        --dataset 'animal10N' --num_class 10

Its authors provide the photos on request. Flags that you omit take their values from the
hyperparameters. Your own photos have a script of their own: train_folder.py.
"""

import shlex
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

import dataloader_animal10N as data
from smr.errors import InputError
from smr.evaluate import test
from smr.flags import DATA, flag
from smr.photos import PhotoConfig, build_network
from smr.run.command import command
from smr.run.run import Run

# The paper's hyperparameters (docs/method.md, section 3).
HYPERPARAMETERS = {
    "animal10N": {
        "num_epochs": 200,
        "batch_size": 128,
        "lr": 0.01,
        "lr_steps": ((140, 0.01),),  # Kept: /100 at once; 80:0.1,140:0.01 was evidently meant
        "weight_decay": 1e-3,
        "warm_up": 30,
        "recalibrate_every": 15,
        "image_size": data.ANIMAL_SIZE,
        "resize": data.ANIMAL_SIZE,
        "network": "vgg19_bn",
        "data_path": "./data/Animal-10N",
    }
}


@dataclass
class AnimalConfig(PhotoConfig):
    """The flags of Animal-10N, whose photos have one size."""

    dataset: str = flag("animal10N", DATA, "animal10N", choices=("animal10N", "folder"))

    HYPERPARAMETERS: ClassVar = HYPERPARAMETERS

    def hyperparameters(self, device: torch.device) -> dict:
        if self.dataset == "folder":
            raise InputError(
                "--dataset folder: your own photos have a script of their own: python "
                f"train_folder.py --data_path {shlex.quote(self.data_path or 'PHOTOS')}"
            )
        # On a CPU channels_last gains little with VGG-19.
        return super().hyperparameters(device) | {"channels_last": device.type != "cpu"}

    def check(self, device: torch.device) -> None:
        self.set_num_class(len(data.ANIMALS), "Animal-10N")
        for name in ("image_size", "resize"):
            if getattr(self, name) != data.ANIMAL_SIZE:
                raise InputError(f"--{name}: Animal-10N has photos of {data.ANIMAL_SIZE} pixels")
        super().check(device)


def make_loader(config: AnimalConfig, device: torch.device) -> data.animal_dataloader:
    """The photos, in memory."""
    return data.animal_dataloader(
        config.data_path, noise_file=config.noise_file, **config.loader_options(device)
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Train, test, log and save epoch by epoch, then report the label issues."""
    with Run(AnimalConfig, __doc__, argv) as run:
        config = run.config
        loader = run.load(make_loader)  # images, with the labels that people gave
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

"""Train two networks with SMR on mini WebVision (Zhang et al., Mathematics 2024; method 8).

    python train_webvision.py --data_path ./data/WebVision1.0/ --imagenet_path ./data/imagenet/val
    python train_webvision.py --method dividemix

The first reproduces the figure of the paper's abstract, the second that of DivideMix, each with
Inception-ResNet-v2 of timm (pip install timm). Flags that you omit take their values from the
hyperparameters of the method.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from dataloader_webvision import webvision_dataloader
from smr.evaluate import test
from smr.flags import DATA, FREE, flag
from smr.photos import PhotoConfig, build_network
from smr.run.command import command
from smr.run.run import Run

# The published hyperparameters (docs/method.md, section 8).
HYPERPARAMETERS = {
    "webvision": {
        "num_epochs": 120,
        "batch_size": 32,  # Inception-ResNet-v2 on 299 pixels fills a GPU
        "lr": 0.01,
        "lr_steps": ((40, 0.1), (80, 0.01)),
        "weight_decay": 5e-4,
        "warm_up": 1,  # real noise is learned late: one epoch tells labels apart
        "recalibrate_every": 15,
        "alpha": 0.5,  # of mixed photos one dominates
        "image_size": 299,
        "resize": 320,
        "network": "timm/inception_resnet_v2",
        "num_class": 50,  # "mini": the first classes
        "data_path": "./data/WebVision1.0",
        "imagenet_path": "./data/imagenet/val",
    }
}
DIVIDEMIX = {"num_epochs": 80, "lr_steps": ((40, 0.1),)}


@dataclass
class WebVisionConfig(PhotoConfig):
    """The flags of WebVision's photos and of ImageNet's."""

    dataset: str = flag("the dataset of this script", DATA, "webvision", choices=("webvision",))
    imagenet_path: str = flag(
        "ImageNet's validation images, in folders by synset or class number (optional)",
        DATA,
        metavar="DIR",
        resume=FREE,
    )

    HYPERPARAMETERS: ClassVar = HYPERPARAMETERS
    TEST_TITLES: ClassVar = {"test": "WebVision", "imagenet": "ImageNet"}

    def hyperparameters(self, device: torch.device) -> dict:
        values = super().hyperparameters(device)
        if not Path(values["imagenet_path"]).is_dir():
            values["imagenet_path"] = ""
        return values | (DIVIDEMIX if self.method == "dividemix" else {})

    @property
    def top5(self) -> bool:
        """Tests have top-5 accuracy too, if it says anything."""
        return self.num_class > 5


def make_loader(config: WebVisionConfig, device: torch.device) -> webvision_dataloader:
    """The photos; DivideMix's training view is a random resized crop."""
    return webvision_dataloader(
        config.data_path,
        config.imagenet_path,
        config.num_class,
        frame=config.frame(random_resized=config.method == "dividemix"),
        noise_file=config.noise_file,
        check_images=config.check_images,
        **config.loader_options(device),
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Train, test, log and save epoch by epoch, then report the label issues."""
    with Run(WebVisionConfig, __doc__, argv) as run:
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

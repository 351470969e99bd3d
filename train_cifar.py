"""Train two networks with SMR on CIFAR with noisy labels (Zhang et al., Mathematics 2024).

    python train_cifar.py --dataset digits
    python train_cifar.py --r 0.5 --noise_mode sym --data_path ./data/cifar-10-batches-py --download

The first needs no data. The second reproduces a figure of the paper. Flags that you omit take
their values from the hyperparameters of the dataset.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

import dataloader_cifar as data
from PreResNet import ResNet18
from smr.config import Config
from smr.data.cifar_files import download
from smr.evaluate import test
from smr.flags import DATA, FREE, flag
from smr.run.command import command
from smr.run.run import Run

# The paper's hyperparameters (docs/method.md, section 3).
CIFAR = {
    "num_epochs": 300,
    "batch_size": 128,  # a side
    "lr": 0.02,
    "lr_steps": ((150, 0.1),),
    "weight_decay": 5e-4,
    "recalibrate_every": 30,
    "width": 64,
}
# Ours: small enough for two CPU cores in minutes, in the proportions of CIFAR's.
DIGITS = CIFAR | {
    "num_epochs": 25,
    "batch_size": 64,
    "lr_steps": ((21, 0.1),),
    "warm_up": 8,
    "recalibrate_every": 6,
    "width": 16,
    "compile": False,  # the compiler's start takes longer than the run
    "data_path": "",
}
HYPERPARAMETERS = {
    # Ten epochs: the networks know the classes, and have not yet memorized noisy labels.
    "cifar10": CIFAR | {"warm_up": 10, "data_path": "./data/cifar-10-batches-py"},
    # A hundred classes take longer to learn before their losses separate.
    "cifar100": CIFAR | {"warm_up": 30, "data_path": "./data/cifar-100-python"},
    "digits": DIGITS,
}
DIVIDEMIX = {"batch_size": 64}
NOISE_MODES = (*data.SYNTHETIC_MODES, *data.HUMAN_LABELS)


@dataclass
class CifarConfig(Config):
    """The flags of CIFAR's images, noise and network."""

    dataset: str = flag("digits need no download", DATA, "cifar10", choices=tuple(HYPERPARAMETERS))
    download: bool = flag("download the official archive if absent", DATA, False, resume=FREE)
    train_images: int | None = flag(
        "train on the first N training images", DATA, low=2, metavar="N", shown_default="all"
    )
    noise_mode: str = flag(
        "injected noise, or one of CIFAR-N's sets of human labels", DATA, "sym", choices=NOISE_MODES
    )
    r: float = flag(
        "fraction of training labels that the noise resamples; some keep their class",
        DATA,
        low=0,
        high=1,
        shown_default="0.5; human labels: their noise rate",
    )
    noise_file: str = flag(
        "CIFAR-N's .pt or a list of labels (default: none)", DATA, "", metavar="FILE", resume=FREE
    )
    width: int = flag("channels of PreAct-ResNet-18's first stage", DATA, low=1, high=1024)

    HYPERPARAMETERS: ClassVar = HYPERPARAMETERS

    def hyperparameters(self, device: torch.device) -> dict:
        """The dataset's, with lambda_u of the published row (docs/method.md, section 7)."""
        values = super().hyperparameters(device)
        if self.method == "dividemix":
            values |= DIVIDEMIX
        # A list of labels alone is no published row.
        is_row = not self.noise_file or self.r is not None or self.noise_mode != "sym"
        r = self.r if self.r is not None else data.HUMAN_LABELS.get(self.noise_mode, ("", 0.5))[1]
        row = (self.dataset, self.noise_mode, r) if is_row else ("", "", 0.5)
        return values | {"r": r, "lambda_u": data.published_lambda_u(*row)}

    def check(self, device: torch.device) -> None:
        super().check(device)
        self.set_num_class(data.NUM_CLASS[self.dataset], self.dataset)
        data.check_noise(self.dataset, self.noise_mode, self.noise_file)

    @property
    def entropy_penalty(self) -> bool:
        """DivideMix's warm-up penalty, on asymmetric noise (docs/method.md, section 6)."""
        return self.noise_mode.startswith("asym")


def make_loader(config: CifarConfig, device: torch.device) -> data.cifar_dataloader:
    """The images on the device, and their labels with the injected noise."""
    if config.download:
        download(config.data_path, config.dataset)
    return data.cifar_dataloader(
        dataset=config.dataset,
        r=config.r,
        noise_mode=config.noise_mode,
        batch_size=config.batch_size,
        num_workers=0,
        root_dir=config.data_path,
        log=None,
        noise_file=config.noise_file,
        seed=config.seed,
        device=device,
        channels_last=config.channels_last,
        train_images=config.train_images,
    )


def build_network(config: CifarConfig) -> torch.nn.Module:
    """One untrained PreAct-ResNet-18."""
    return ResNet18(config.num_class, config.width)


@command
def main(argv: list[str] | None = None) -> None:
    """Train, test, log and save epoch by epoch, then report the label issues."""
    with Run(CifarConfig, __doc__, argv) as run:
        config = run.config
        loader = run.load(make_loader)  # images, and labels with the injected noise
        pair = run.new_pair(build_network)  # two networks, each with its SGD
        method = run.new_method(pair, loader)  # --method: smr, dividemix, ce, elr
        for epoch in run.epochs():
            # Warm-up; or GMM co-divide, then MixMatch; or recalibration: smr/methods/smr.py.
            trained = method.train_epoch(epoch)
            tests = test(pair.networks, loader, config)
            run.log(trained, tests)  # console, metrics.jsonl, acc.txt, stats.txt, TensorBoard
            run.save(epoch)  # last.pt, best.pt
        run.report_label_issues()  # labels.csv, labels.html


if __name__ == "__main__":
    sys.exit(main())

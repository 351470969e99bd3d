"""CIFAR-10, CIFAR-100 and scikit-learn's digits with noisy training labels.

loader = cifar_dataloader("cifar10", 0.5, "sym", 128, 0, "./data/cifar-10-batches-py", None)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from losses import LAMBDA_U
from smr.data.augment import Views
from smr.data.cifar_files import ARCHIVES, read_cifar, read_digits
from smr.data.memory_dataset import MemoryLoader
from smr.data.noise_file import read_label_list, with_labels
from smr.errors import InputError

NUM_CLASS = {name: archive.num_class for name, archive in ARCHIVES.items()} | {"digits": 10}
VIEWS = {
    # Kept: the published constants, not the true standard deviation.
    "cifar10": Views((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), padding=4, flip=True),
    "cifar100": Views((0.507, 0.487, 0.441), (0.267, 0.256, 0.276), padding=4, flip=True),
    # A mirrored digit is another sign, so digits are not flipped; 1 of 8 is about CIFAR's 4 of 32.
    "digits": Views((0.3053,) * 3, (0.3760,) * 3, padding=1, flip=False),
}

# CIFAR-N (Wei et al., ICLR 2022): mode → its name in the file, and its realized rate, which is
# what `r` means for labels that people gave.
HUMAN_LABELS = {
    "aggre": ("aggre_label", 0.0903),
    "rand1": ("random_label1", 0.1723),
    "rand2": ("random_label2", 0.1812),
    "rand3": ("random_label3", 0.1764),
    "worst": ("worse_label", 0.4021),
    "noisy100": ("noisy_label", 0.402),
}
HUMAN_MODES = {"cifar10": tuple(HUMAN_LABELS)[:5], "cifar100": ("noisy100",), "digits": ()}
SYNTHETIC_MODES = ("sym", "asym", "asym_superclass")
# truck→automobile, bird→airplane, deer→horse, cat↔dog
CIFAR10_CONFUSIONS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
# The fine classes of CIFAR-100's 20 superclasses, in ascending order of superclass and fine id.
CIFAR100_SUPERCLASSES = (
    *((4, 30, 55, 72, 95), (1, 32, 67, 73, 91), (54, 62, 70, 82, 92), (9, 10, 16, 28, 61)),
    *((0, 51, 53, 57, 83), (22, 39, 40, 86, 87), (5, 20, 25, 84, 94), (6, 7, 14, 18, 24)),
    *((3, 42, 43, 88, 97), (12, 17, 37, 68, 76), (23, 33, 49, 60, 71), (15, 19, 21, 31, 38)),
    *((34, 63, 64, 66, 75), (26, 45, 77, 79, 99), (2, 11, 35, 46, 98), (27, 29, 44, 78, 93)),
    *((36, 50, 65, 74, 80), (47, 52, 56, 59, 96), (8, 13, 48, 58, 90), (41, 69, 81, 85, 89)),
)


def published_lambda_u(dataset: str, noise_mode: str, r: float) -> float:
    """lambda_u of the published row (method 7), or the published default."""
    if noise_mode.startswith("asym"):
        return 0.0
    if noise_mode == "sym" and dataset == "cifar100" and r >= 0.5:
        return 150.0
    if noise_mode == "sym" and dataset == "cifar10":
        return {0.2: 0.0, 0.9: 50.0}.get(r, LAMBDA_U)
    return LAMBDA_U


def confusions(dataset: str, noise_mode: str) -> dict[int, int]:
    """Class → the class that asymmetric noise turns it into; classes that stay are absent."""
    if (dataset, noise_mode) == ("cifar10", "asym"):
        return CIFAR10_CONFUSIONS
    if (dataset, noise_mode) == ("cifar100", "asym"):
        blocks = tuple(range(start, start + 5) for start in range(0, 100, 5))
    elif (dataset, noise_mode) == ("cifar100", "asym_superclass"):
        blocks = CIFAR100_SUPERCLASSES
    else:
        raise InputError(f"--noise_mode {noise_mode} is not defined for {dataset}: use sym")
    return {label: block[(i + 1) % 5] for block in blocks for i, label in enumerate(block)}


def noisy_labels(
    labels: Sequence[int], dataset: str, noise_mode: str, r: float, seed: int
) -> list[int]:
    """The labels with injected noise, those of the published code for the same seed.

    Args: labels, the clean ones, 0..classes-1; noise_mode, one of SYNTHETIC_MODES; r in [0, 1].
    """
    noisy = [int(label) for label in labels]
    source = random.Random(seed)
    order = list(range(len(noisy)))
    source.shuffle(order)
    # In ascending order: `sym` draws its labels image by image from the same source.
    chosen = sorted(order[: int(r * len(noisy))])
    if noise_mode == "sym":
        last = NUM_CLASS[dataset] - 1
        for i in chosen:
            noisy[i] = source.randint(0, last)
    else:
        turned = confusions(dataset, noise_mode)
        for i in chosen:
            noisy[i] = turned.get(noisy[i], noisy[i])
    return noisy


def check_noise(dataset: str, noise_mode: str, noise_file: str | Path) -> None:
    """Raise InputError if these flags name no noise; opens no file."""
    if noise_mode in HUMAN_LABELS:
        if noise_mode not in HUMAN_MODES[dataset]:
            modes = ", ".join((*HUMAN_MODES[dataset], "sym"))
            raise InputError(
                f"--noise_mode {noise_mode}: {dataset} has no such human labels, but {modes}"
            )
        if not noise_file:
            raise InputError(
                f"--noise_mode {noise_mode} needs --noise_file: the CIFAR-N labels, "
                "CIFAR-10_human.pt or CIFAR-100_human.pt"
            )
    elif not noise_file and noise_mode != "sym":
        confusions(dataset, noise_mode)
    if noise_file and not Path(noise_file).is_file():
        raise InputError(f"--noise_file {noise_file}: there is no such file")


class cifar_dataloader(MemoryLoader):
    """CIFAR or digits with noisy labels; `.run` is described in `smr.data.loader.Loader`.

    Args:
        dataset: 'cifar10', 'cifar100' or 'digits'.
        r, noise_mode, noise_file, seed: the noise. A .json that does not exist is what the first
            run of a DivideMix script names: the noise is generated.
        num_workers: not used; an argument of DivideMix's loader.
        root_dir: the folder that holds the official files; unused for digits.
        log: an open text file for a line about each split, or None.
        train_images: how many of the first training images to take; None for all.
        options: device and channels_last of the batches.
    """

    def __init__(
        self,
        dataset: str,
        r: float,
        noise_mode: str,
        batch_size: int,
        num_workers: int,
        root_dir: str | Path,
        log,
        noise_file: str | Path = "",
        seed: int = 123,
        train_images: int | None = None,
        **options,
    ):
        if Path(noise_file).suffix.lower() == ".json" and not Path(noise_file).exists():
            noise_file = ""
        check_noise(dataset, noise_mode, noise_file)
        data = read_digits() if dataset == "digits" else read_cifar(root_dir, dataset)
        whole, classes = len(data.train_labels), NUM_CLASS[dataset]
        count = whole if train_images is None else train_images
        if count > whole:
            raise InputError(f"--train_images {count}: there are {whole}")
        clean = data.train_labels[:count]
        data = replace(data, train_images=data.train_images[:count], clean_labels=clean)
        if noise_file:
            column, _ = HUMAN_LABELS.get(noise_mode, ("", None))
            labels = read_label_list(noise_file, count, classes, whole, column, clean)
        else:
            labels = np.asarray(noisy_labels(clean, dataset, noise_mode, r, seed))
        data = with_labels(data, labels)
        super().__init__(data, VIEWS[dataset], batch_size, seed, log=log, **options)

"""CIFAR-10, CIFAR-100 and scikit-learn's digits with noisy training labels (SPEC 1).

loader = cifar_dataloader("cifar10", 0.5, "sym", 128, 0, "./data/cifar-10-batches-py", None)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

import json
import os
import pickle
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from batches import Augmentation, ImageData, InputError, NoisyLoader

HUMAN_KEYS = {
    "aggre": "aggre_label",
    "rand1": "random_label1",
    "rand2": "random_label2",
    "rand3": "random_label3",
    "worst": "worse_label",
    "noisy100": "noisy_label",
}
# The realised rates of CIFAR-N's label sets (Wei et al., ICLR 2022): what `r` means for them.
HUMAN_RATES = {
    "aggre": 0.0903,
    "rand1": 0.1723,
    "rand2": 0.1812,
    "rand3": 0.1764,
    "worst": 0.4021,
    "noisy100": 0.402,
}
SYNTHETIC_MODES = ("sym", "asym", "asym_superclass")
# truck→automobile, bird→airplane, deer→horse, cat↔dog
CIFAR10_CONFUSIONS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
# The fine classes of CIFAR-100's 20 superclasses, in ascending order of superclass and fine id.
CIFAR100_SUPERCLASSES = (
    (4, 30, 55, 72, 95),
    (1, 32, 67, 73, 91),
    (54, 62, 70, 82, 92),
    (9, 10, 16, 28, 61),
    (0, 51, 53, 57, 83),
    (22, 39, 40, 86, 87),
    (5, 20, 25, 84, 94),
    (6, 7, 14, 18, 24),
    (3, 42, 43, 88, 97),
    (12, 17, 37, 68, 76),
    (23, 33, 49, 60, 71),
    (15, 19, 21, 31, 38),
    (34, 63, 64, 66, 75),
    (26, 45, 77, 79, 99),
    (2, 11, 35, 46, 98),
    (27, 29, 44, 78, 93),
    (36, 50, 65, 74, 80),
    (47, 52, 56, 59, 96),
    (8, 13, 48, 58, 90),
    (41, 69, 81, 85, 89),
)


@dataclass(frozen=True)
class DataSet:
    """What is fixed for a data set: its files, its normalisation and its training views."""

    num_class: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: Augmentation
    folder: str = ""
    train_files: tuple[str, ...] = ()
    test_file: str = ""
    label_key: str = ""
    names_file: str = ""
    names_key: str = ""


DATASETS = {
    "cifar10": DataSet(
        num_class=10,
        mean=(0.4914, 0.4822, 0.4465),
        # Kept: the published constants, not the true standard deviation.
        std=(0.2023, 0.1994, 0.2010),
        augmentation=Augmentation(padding=4, flip=True),
        folder="cifar-10-batches-py",
        train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test_file="test_batch",
        label_key="labels",
        names_file="batches.meta",
        names_key="label_names",
    ),
    "cifar100": DataSet(
        num_class=100,
        mean=(0.507, 0.487, 0.441),
        std=(0.267, 0.256, 0.276),
        augmentation=Augmentation(padding=4, flip=True),
        folder="cifar-100-python",
        train_files=("train",),
        test_file="test",
        label_key="fine_labels",
        names_file="meta",
        names_key="fine_label_names",
    ),
    # A mirrored digit is another sign, so digits are not flipped; 1 of 8 is about CIFAR's 4 of 32.
    "digits": DataSet(
        num_class=10,
        mean=(0.3053, 0.3053, 0.3053),
        std=(0.3760, 0.3760, 0.3760),
        augmentation=Augmentation(padding=1, flip=False),
    ),
}


class _Array:
    """Stands in for numpy.ndarray while a CIFAR pickle is read: it can hold uint8 data only."""

    def __setstate__(self, state):
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _Dtype) or dtype.name != "u1" or fortran_order:
            raise ValueError("an array that is not plain uint8")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, name, *_):
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state):
        pass


class _BatchUnpickler(pickle.Unpickler):
    """Reads what CIFAR's files hold (dicts, lists, strings, ints, uint8 arrays); runs nothing."""

    allowed: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): lambda kind, *_: kind(),
        ("numpy._core.multiarray", "_reconstruct"): lambda kind, *_: kind(),
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise ValueError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return self.allowed[module, name]


def read_pickle(path: Path) -> dict:
    """The dict of a CIFAR file, keys as str, executing nothing. Raises InputError."""
    try:
        with open(path, "rb") as file:
            content = _BatchUnpickler(file, encoding="bytes").load()
        return {key.decode(): value for key, value in content.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        raise InputError(
            f"{path}: not a CIFAR file ({error}); restore it from the official archive "
            "(--download fetches it)"
        ) from error


def find_data(root: str | Path, dataset: str) -> Path:
    """The folder that holds the data set: `root` or its official sub-folder. Raises InputError."""
    spec = DATASETS[dataset]
    for folder in (Path(root), Path(root) / spec.folder):
        if (folder / spec.train_files[0]).is_file():
            return folder
    raise InputError(
        f"{dataset} not found: looked for {spec.train_files[0]} in {root} and in "
        f"{Path(root) / spec.folder}; get the Python version from the CIFAR page of the University "
        f"of Toronto, or let --download fetch it; --dataset digits needs no data"
    )


def download(root: str | Path, dataset: str) -> None:
    """Fetch and unpack the official archive through torchvision, its checksum verified."""
    from torchvision import datasets  # takes a second to import, and only a download needs it

    source = datasets.CIFAR10 if dataset == "cifar10" else datasets.CIFAR100
    root = Path(root)
    parent = root.parent if root.name == DATASETS[dataset].folder else root
    source(str(parent), download=True)


def _read_split(folder: Path, files: Sequence[str], spec: DataSet) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for name in files:
        content = read_pickle(folder / name)
        found = content.get("data"), content.get(spec.label_key)
        rows = getattr(found[0], "values", np.empty(0))
        if rows.ndim != 2 or rows.shape[1] != 3072:
            raise InputError(f"{folder / name}: 'data' is not rows of 3072 bytes (uint8)")
        images.append(rows)
        labels.append(
            checked_labels(
                found[1], len(rows), spec.num_class, f"{folder / name}: {spec.label_key}"
            )
        )
    rows = np.concatenate(images)
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.concatenate(labels)


def checked_labels(labels, count: int, classes: int, what: str) -> np.ndarray:
    """int64 [count] of a list of ints in 0..classes-1; `what` names it in the InputError."""
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise InputError(f"{what}: expected a plain list of whole numbers")
    if len(labels) != count:
        raise InputError(f"{what}: {len(labels)} labels for {count} images")
    labels = np.asarray(labels, dtype=np.int64)
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"{what}: labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}"
        )
    return labels


def read_cifar(root: str | Path, dataset: str) -> ImageData:
    """CIFAR-10 or CIFAR-100 from the official Python layout, as many images as the files hold."""
    spec = DATASETS[dataset]
    folder = find_data(root, dataset)
    train_images, train_labels = _read_split(folder, spec.train_files, spec)
    test_images, test_labels = _read_split(folder, [spec.test_file], spec)
    names = [str(label) for label in range(spec.num_class)]
    if (folder / spec.names_file).is_file():
        found = read_pickle(folder / spec.names_file).get(spec.names_key, [])
        if len(found) == spec.num_class:
            names = [name.decode() for name in found]
    return ImageData(train_images, train_labels, test_images, test_labels, names)


def read_digits() -> ImageData:
    """The 1,797 scans that scikit-learn ships: 8x8, three equal channels, a fixed split."""
    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    train, test = train_test_split(
        np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0
    )
    labels = digits.target.astype(np.int64)
    names = [str(label) for label in range(10)]
    return ImageData(images[train], labels[train], images[test], labels[test], names)


def confusions(dataset: str, noise_mode: str) -> dict[int, int]:
    """Class → the class that asymmetric noise turns it into; classes that stay are absent."""
    if dataset == "cifar10" and noise_mode == "asym":
        return CIFAR10_CONFUSIONS
    if dataset == "cifar100" and noise_mode == "asym":
        blocks = tuple(range(start, start + 5) for start in range(0, 100, 5))
    elif dataset == "cifar100" and noise_mode == "asym_superclass":
        blocks = CIFAR100_SUPERCLASSES
    else:
        raise InputError(f"--noise_mode {noise_mode} is not defined for {dataset}: use sym")
    return {label: block[(i + 1) % 5] for block in blocks for i, label in enumerate(block)}


def noisy_labels(
    labels: Sequence[int], dataset: str, noise_mode: str, r: float, seed: int
) -> list[int]:
    """The labels with injected noise, the same as the published code's for the same seed (SPEC 1).

    Args: labels, the clean ones, 0..classes-1; noise_mode, one of SYNTHETIC_MODES; r in [0, 1].
    """
    noisy = [int(label) for label in labels]
    source = random.Random(seed)
    order = list(range(len(noisy)))
    source.shuffle(order)
    # In ascending order: `sym` draws its labels image by image from the same source.
    chosen = sorted(order[: int(r * len(noisy))])
    if noise_mode == "sym":
        last = DATASETS[dataset].num_class - 1
        for i in chosen:
            noisy[i] = source.randint(0, last)
    else:
        turned = confusions(dataset, noise_mode)
        for i in chosen:
            noisy[i] = turned.get(noisy[i], noisy[i])
    return noisy


def noise_cache_name(dataset: str, noise_mode: str, r: float, seed: int) -> str:
    """File name of generated labels: data set, mode, exact r and seed."""
    return f"{dataset}_{noise_mode}_r{r!r}_seed{seed}.json"


def cached_noisy_labels(
    labels: np.ndarray, dataset: str, noise_mode: str, r: float, seed: int, folders: Sequence[Path]
) -> np.ndarray:
    """Generated labels, also written into the first of `folders` that can be written.

    A cache that does not hold what this data and seed give is refused, since a later reader would
    take it for something that it is not. Raises InputError.
    """
    noisy = noisy_labels(labels, dataset, noise_mode, r, seed)
    name = noise_cache_name(dataset, noise_mode, r, seed)
    for folder in folders:
        path = Path(folder) / name
        if path.is_file():
            if read_label_list(path, len(labels), DATASETS[dataset].num_class).tolist() != noisy:
                raise InputError(
                    f"{path}: its labels are not what these images and this seed give; delete it, "
                    "or name it as --noise_file to train on it as it is"
                )
            break
        temporary = path.with_name(f".{name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(noisy))
            temporary.replace(path)
            break
        except OSError:
            continue
    return np.asarray(noisy)


def read_label_list(path: str | Path, count: int, classes: int) -> np.ndarray:
    """int64 [count] from a JSON list, as DivideMix and SMR write. Raises InputError."""
    try:
        labels = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: expected a plain list of labels") from error
    return checked_labels(labels, count, classes, str(path))


def read_human_labels(path: str | Path, noise_mode: str, clean: np.ndarray) -> np.ndarray:
    """int64 [n], CIFAR-N's labels of `noise_mode` for these clean labels. Raises InputError."""
    reconstruct = np.empty(0).__reduce__()[0]  # NumPy has moved it, so the file may use either name
    reconstructs = [
        (reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")
    ]
    allowed = [np.ndarray, np.dtype, type(np.dtype(np.int64)), *reconstructs]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, weights_only=True, map_location="cpu")
        found, order = (np.asarray(content[key]) for key in (HUMAN_KEYS[noise_mode], "clean_label"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        raise InputError(
            f"{path}: no CIFAR-N label file with '{HUMAN_KEYS[noise_mode]}' and 'clean_label'"
        ) from error
    if len(order) != len(clean) or (order != clean).any():
        raise InputError(
            f"{path}: its {len(order)} clean labels are not those of the {len(clean)} images; it "
            "belongs to another data set, or the images stand in another order"
        )
    return checked_labels(found.tolist(), len(clean), int(clean.max()) + 1, str(path))


def inject_noise(
    clean: np.ndarray,
    dataset: str,
    noise_mode: str,
    r: float,
    seed: int,
    noise_file: str | Path,
    cache_folders: Sequence[Path],
) -> np.ndarray:
    """int64 [n] training labels: from `noise_file` where there is one, else generated (SPEC 1)."""
    if noise_mode in HUMAN_KEYS and not noise_file:
        raise InputError(
            f"--noise_mode {noise_mode} needs --noise_file: the CIFAR-N labels, "
            "CIFAR-10_human.pt or CIFAR-100_human.pt"
        )
    if not noise_file:
        return cached_noisy_labels(clean, dataset, noise_mode, r, seed, cache_folders)
    if Path(noise_file).suffix != ".json":
        if noise_mode not in HUMAN_KEYS:
            raise InputError(
                f"{noise_file}: not a .json list; with a CIFAR-N file --noise_mode is one of "
                + ", ".join(HUMAN_KEYS)
            )
        return read_human_labels(noise_file, noise_mode, clean)
    made_for = re.fullmatch(r"(.+?)_(\w+)_r([\d.e-]+)_seed(-?\d+)\.json", Path(noise_file).name)
    if made_for and Path(noise_file).name != noise_cache_name(dataset, noise_mode, r, seed):
        raise InputError(
            f"{noise_file}: made for another data set, noise or seed than this run's "
            f"({noise_cache_name(dataset, noise_mode, r, seed)}); rename it to use it all the same"
        )
    return read_label_list(noise_file, len(clean), DATASETS[dataset].num_class)


class cifar_dataloader(NoisyLoader):
    """CIFAR or digits with noisy labels; `.run` is described in `batches.NoisyLoader`.

    Args:
        dataset: 'cifar10', 'cifar100' or 'digits'.
        r, noise_mode, noise_file, seed: the noise (SPEC 1). A .json that is not there is what a
            family script's first run names: the noise is generated.
        num_workers: accepted for the family's sake; images are on the device, nothing works apart.
        root_dir: the folder that holds the official files; unused for digits.
        log: an open text file for a line about each split, or None.
        device, channels_last: where images are served, and in which memory format.
        cache_folder: takes generated labels where root_dir cannot be written.
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
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        cache_folder: str | Path | None = None,
    ):
        spec = DATASETS[dataset]
        if Path(noise_file).suffix == ".json" and not Path(noise_file).exists():
            noise_file = ""
        cache_folders = [Path(cache_folder)] if cache_folder else []
        if dataset == "digits":
            data = read_digits()
        else:
            data = read_cifar(root_dir, dataset)
            cache_folders.insert(0, find_data(root_dir, dataset))
        data.clean_labels = data.train_labels
        data.train_labels = inject_noise(
            data.clean_labels, dataset, noise_mode, r, seed, noise_file, cache_folders
        )
        super().__init__(
            data,
            spec.mean,
            spec.std,
            spec.augmentation,
            batch_size,
            seed,
            device,
            channels_last,
            log,
        )

"""Clothing1M: a million photos, of which each epoch sees a balanced sample.

loader = clothing_dataloader("./data/Clothing1M", 32, 8, num_batches=1000)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

from math import ceil
from pathlib import Path

import numpy as np
import torch

from smr.data.augment import Views
from smr.data.image_file_dataset import Frame, ImageFileLoader
from smr.data.image_folder import Listing, names_and_labels, read_lines
from smr.data.loader import DatasetInfo
from smr.errors import InputError

CLASSES = (
    *("T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket"),
    *("Downcoat", "Suit", "Shawl", "Dress", "Vest", "Underwear"),
)
VIEWS = Views((0.6959, 0.6537, 0.6371), (0.3113, 0.3192, 0.3214), flip=True)
WHERE = "Clothing1M's authors hand out the photos and their lists on request (Xiao et al., 2015)"
# Of NumPy's random numbers of one seed: those that a recalibration epoch's sample takes.
RECALIBRATION = 1


def balanced_sample(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """int64 positions of a sample in random order, in which no class exceeds its share.

    The photos are taken in random order, each while its class has fewer than its share, one part in
    len(CLASSES) of `count`. In that order the frequent classes fill first, so the sample is put in
    random order again. Args: labels int64 [n].
    """
    order = draw.permutation(len(labels))
    is_taken = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASSES)):
        is_taken[np.flatnonzero(labels[order] == label)[: ceil(count / len(CLASSES))]] = True
    return draw.permutation(order[is_taken][:count])


def find_lists(root: Path) -> Path:
    """The folder that holds the lists: root, the one above or annotations/. Raises InputError."""
    name = "noisy_label_kv.txt"
    for folder in (root, root.parent, root / "annotations", root.parent / "annotations"):
        if (folder / name).is_file():
            return folder
    raise InputError(f"{root / name}: there is no such file, nor in {root.parent}; {WHERE}")


def read_part(lists: Path, kind: str, keys: str, root: Path) -> Listing:
    """The photos that the list `keys` names, with their labels. Raises InputError.

    Args: kind, 'noisy' or 'clean', whose labels they have.
    """
    path = lists / f"{kind}_label_kv.txt"
    label_of = dict(names_and_labels(path, WHERE))
    names = read_lines(lists / keys, WHERE)
    if not names:
        raise InputError(f"{lists / keys}: names no photo; {WHERE}")
    for name in names:
        if label_of.get(name, len(CLASSES)) >= len(CLASSES):
            label = label_of.get(name, "missing")
            raise InputError(f"{path}: the label of {name} is {label}, not 0 to {len(CLASSES) - 1}")
    # The data's folder is that above images/, or images/ itself.
    prefix = "" if (root / "images").is_dir() else "images/"
    labels = np.array([label_of[name] for name in names], dtype=np.int64)
    return Listing(root, [name.removeprefix(prefix) for name in names], labels)


class clothing_dataloader(ImageFileLoader):
    """Clothing1M; `.run` is described in `smr.data.loader.Loader`.

    Args: root, the folder above images/, or images/ itself; num_batches, labeled batches of an
    epoch. The others are those of ImageFileLoader.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        num_workers: int,
        num_batches: int = 1000,
        frame: Frame = Frame(256, 224),  # noqa: B008, it is frozen
        **options,
    ):
        root, self.num_batches = Path(root), num_batches
        lists = find_lists(root)
        train = read_part(lists, "noisy", "noisy_train_key_list.txt", root)
        tests = {
            name: read_part(lists, "clean", f"clean_{name}_key_list.txt", root)
            for name in ("val", "test")
        }
        info = DatasetInfo(list(CLASSES))
        options |= {"batch_size": batch_size, "num_workers": num_workers}
        super().__init__(train, tests, VIEWS, frame, info, **options)

    def run(self, mode: str, *args, **options):
        """The batches of `mode` over this epoch's sample; see `Loader.run`. Raises ValueError."""
        count = self.num_batches * self.batch_size
        train = self.train_images, self.noisy_labels
        if mode == "warmup":
            return self.supervised(self._sample(2 * count, self.new_seed()))
        if mode == "eval_train":
            return self._scoring(*train, self._sample(count, self.new_seed()))
        if mode == "recalibrate":
            # Kept: not augmented, not shuffled. Both networks and a resumed run see the same
            # sample, because the generator's state stays as it is.
            seed = self.new_seed(self.generator.clone_state())
            batches = self._scoring(*train, self._sample(count, seed, RECALIBRATION))
            batches.split_rows = True
            return batches
        return super().run(mode, *args, **options)

    def _sample(self, count: int, *seed: int) -> torch.Tensor:
        draw = np.random.default_rng(seed)
        labels = self.noisy_labels.cpu().numpy()
        return torch.from_numpy(balanced_sample(labels, count, draw)).to(self.device)

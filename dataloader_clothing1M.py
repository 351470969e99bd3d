"""Clothing1M: a million photos, of which each epoch sees a balanced sample (method 9).

loader = clothing_dataloader("./data/Clothing1M", 32, 8, num_batches=1000)
for images, noisy_labels, index in loader.run("warmup"): ...
"""

from pathlib import Path

import numpy as np
import torch

from smr.data.decoding import checked_images
from smr.data.image_file_dataset import Frame, Photos, StreamBatches, StreamLoader
from smr.data.image_folder import Listing, class_notes, lines_of, names_and_labels, refuse_broken
from smr.data.memory_dataset import Views
from smr.data.noise_file import relabeled
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

    The photos are taken in random order, each while its class has fewer than its share. In that
    order the frequent classes fill first, so the sample is put in random order again.

    Args: labels int64 [n]; count, of which each class may have one part in len(CLASSES).
    """
    order = draw.permutation(len(labels))
    given = labels[order]
    # How many of a photo's class come before it.
    by_class = np.argsort(given, kind="stable")
    starts = np.searchsorted(given[by_class], given[by_class])
    before = np.empty(len(order), dtype=np.int64)
    before[by_class] = np.arange(len(order)) - starts
    return draw.permutation(order[before < count / len(CLASSES)][:count])


def find_lists(root: Path) -> Path:
    """The folder that holds the lists: root, the one above or annotations/. Raises InputError."""
    folders = [root, root.parent, root / "annotations", root.parent / "annotations"]
    name = "noisy_label_kv.txt"
    found = next((folder for folder in folders if (folder / name).is_file()), None)
    if found is None:
        raise InputError(f"{root / name}: there is no such file, nor in {root.parent}; {WHERE}")
    return found


def read_part(lists: Path, kind: str, keys: str, root: Path) -> Listing:
    """The photos that the list `keys` names, with their labels. Raises InputError.

    Args: kind, 'noisy' or 'clean', whose labels they have.
    """
    path = lists / f"{kind}_label_kv.txt"
    labels = dict(names_and_labels(path, WHERE))
    names = [line.strip() for line in lines_of(lists / keys, WHERE) if line.strip()]
    if not names:
        raise InputError(f"{lists / keys}: names no photo; {WHERE}")
    if unlabeled := next((name for name in names if name not in labels), None):
        raise InputError(f"{lists / keys}: {path.name} has no label of {unlabeled}")
    found = np.array([labels[name] for name in names], dtype=np.int64)
    if outside := [name for name, label in zip(names, found, strict=True) if label >= len(CLASSES)]:
        raise InputError(f"{path}: the label of {outside[0]} is not 0 to {len(CLASSES) - 1}")
    # The data's folder is that above images/, or images/ itself.
    prefix = "" if (root / "images").is_dir() else "images/"
    return Listing([name.removeprefix(prefix) for name in names], found)


class clothing_dataloader(StreamLoader):
    """Clothing1M; `.run` is described in `smr.data.loader.Loader`.

    Args:
        root: the folder above images/, or images/ itself.
        num_batches: labeled batches of an epoch, N of method 9.
        num_workers: processes that decode, and threads that look at the photos first.
        frame: how photos become images.
        check_images: decode all photos first, instead of reading their headers alone.
        noise_file: a list of labels in the place of the data's own, or "".
    The others are those of StreamLoader.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        num_workers: int,
        num_batches: int = 1000,
        frame: Frame = Frame(256, 224),  # noqa: B008, it is frozen
        check_images: bool = False,
        noise_file: str | Path = "",
        skip_broken: bool = False,
        seed: int = 123,
        **options,
    ):
        root = Path(root)
        lists, self.num_batches = find_lists(root), num_batches
        train, val, test = (
            checked_images(root, read_part(lists, *names, root), check_images, num_workers)
            for names in (
                ("noisy", "noisy_train_key_list.txt"),
                ("clean", "clean_val_key_list.txt"),
                ("clean", "clean_test_key_list.txt"),
            )
        )
        notes = refuse_broken(root, train, val, test, skip_broken=skip_broken)
        train, dropped = relabeled(train, noise_file, len(CLASSES), notes)
        notes += class_notes(root, train, test, CLASSES)
        served = {
            name: (Photos(root, part.files, frame), part.labels)
            for name, part in (("train", train), ("val", val), ("test", test))
        }
        super().__init__(
            *(*served.pop("train"), served, VIEWS, list(CLASSES), batch_size, seed),
            workers=num_workers,
            skip_broken=skip_broken,
            facts={"data_notes": notes} | dropped,
            **options,
        )

    def run(self, mode: str, pred=(), prob=(), index=None, with_truth: bool = False, strong=False):
        """The iterables of `mode` over this epoch's sample; see `Loader.run`. Raises ValueError."""
        count = self.num_batches * self.batch_size
        if mode == "warmup":
            return self._supervised(self._sample(2 * count, (self.new_seed(),)))
        if mode == "eval_train":
            return self._scoring(self._sample(count, (self.new_seed(),)))
        if mode == "recalibrate":
            # Kept: not augmented, not shuffled. Both networks find the same sample, since neither
            # moves the generator on, and a resumed run finds it too.
            seed = self.new_seed(self.generator.clone_state())
            sample, columns = self._sample(count, (seed, RECALIBRATION)), self._columns()
            served = self.train_images, sample, columns, self.batch_size
            return StreamBatches(self, *served, views=0, shuffle=False, trained=True)
        return super().run(mode, pred, prob, index, with_truth, strong)

    def _sample(self, count: int, seed: tuple[int, ...]) -> torch.Tensor:
        draw = np.random.default_rng(seed)
        labels = self.noisy_labels.cpu().numpy()
        return torch.from_numpy(balanced_sample(labels, count, draw)).to(self.device)

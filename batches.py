"""A whole image set as one uint8 tensor on the training device, served by the batch (SPEC 1).

Shuffle, crop, flip and normalise are a few batched tensor operations, the same on CPU and GPU.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor


class InputError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


@dataclass(frozen=True)
class Augmentation:
    """How a training view is drawn: zero padding and random crop back, then a random flip."""

    padding: int
    flip: bool


@dataclass
class ImageData:
    """What a reader found: images uint8 [n, height, width, 3], labels int64 [n] in 0..classes-1.

    `clean_labels` are the training labels before noise, None where nobody knows them; `files`
    name the training images, where they are files. `labels_are_noisy` says that the test labels
    are noisy too, because they were held out of the training set. `notes` are lines for the log on
    what else the reader found.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: list[str]
    clean_labels: np.ndarray | None = None
    files: list[str] | None = None
    labels_are_noisy: bool = False
    notes: list[str] = field(default_factory=list)


class ImageSet:
    """Images uint8 [n, height, width, 3] on a device, served normalised as float32 [b, 3, h, w].

    Args: mean and std per channel, for images scaled to [0, 1]; channels_last gives the served
    batches' memory format, never their values.
    """

    def __init__(
        self,
        images: np.ndarray,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ):
        pad = self.padding = augmentation.padding
        self.flip = augmentation.flip
        self.channels_last = channels_last
        stored = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        # Without padding the images themselves: a copy of a large set costs what the set does.
        self.padded = F.pad(stored, (0, 0, pad, pad, pad, pad)) if pad else stored
        self.count, self.height, self.width, _ = stored.shape
        # The crop that begins at each pixel of the set, as an overlapping view [pixels, height,
        # 3·width].
        across = self.width + 2 * pad
        pixels = self.padded.numel() // 3 - (self.height - 1) * across - self.width + 1
        self.crops = self.padded.flatten().as_strided(
            (max(pixels, 0), self.height, 3 * self.width), (3, 3 * across, 1)
        )
        # x/255 → (x - mean)/std as one multiply and one add, over whole rows of pixels.
        mean, std = torch.tensor(mean), torch.tensor(std)
        self.scale = (1 / (255 * std)).repeat(self.width).to(device)
        self.shift = (-mean / std).repeat(self.width).to(device)

    def __len__(self) -> int:
        return self.count

    @property
    def device(self) -> torch.device:
        return self.padded.device

    @property
    def stored(self) -> Tensor:
        """The images as they came, uint8 [n, height, width, 3]: a view of what is held."""
        pad = self.padding
        return self.padded[:, pad : pad + self.height, pad : pad + self.width]

    def plain(self, index: Tensor) -> Tensor:
        """The images of int64 `index` [b], not augmented (SPEC 1: `test` and `eval`)."""
        return self._normalise(self._cropped(index, self.padding, self.padding))

    def augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each image: its own crop and its own flip (SPEC 1: `train`)."""
        draw = {"generator": generator, "device": self.device}
        offsets = torch.randint(2 * self.padding + 1, (2, len(index)), **draw)
        rows = self._cropped(index, *offsets)
        if self.flip:
            images = rows.unflatten(2, (self.width, 3))
            flipped = torch.randint(2, (len(index), 1, 1, 1), **draw)
            # images where flipped is 0, mirrored where 1: bitwise, five times as fast as a choice.
            mask = (-flipped).to(torch.uint8)
            rows = ((images.flip(2) ^ images) & mask).bitwise_xor_(images).flatten(2)
        return self._normalise(rows)

    def _cropped(self, index: Tensor, down: Tensor | int, right: Tensor | int) -> Tensor:
        """uint8 [b, height, 3·width] from these pixels of the padded images on."""
        _, high, across, _ = self.padded.shape
        first = (index * high + down) * across + right
        # On a CPU index_select is three times as fast; elsewhere it may first copy the whole view.
        return self.crops.index_select(0, first) if first.is_cpu else self.crops[first]

    def _normalise(self, rows: Tensor) -> Tensor:
        images = rows.float().mul_(self.scale).add_(self.shift)
        images = images.unflatten(2, (self.width, 3)).permute(0, 3, 1, 2)
        return images if self.channels_last else images.contiguous()


@dataclass(frozen=True)
class Rows:
    """The images that an iterable serves, as positions in the whole set."""

    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


class Batches:
    """Batches of (view, …, column, …): `views` augmented views, or one plain one where views = 0.

    Each column is a tensor with a value for each image of the whole set. The last batch holds what
    is left over; each iteration shuffles anew.
    """

    def __init__(
        self,
        images: ImageSet,
        index: Tensor,
        columns: Sequence[Tensor],
        batch_size: int,
        views: int,
        shuffle: bool,
        generator: torch.Generator,
    ):
        self.images = images
        self.dataset = Rows(index)
        self.columns = columns
        self.batch_size = batch_size
        self.views = views
        self.shuffle = shuffle
        self.generator = generator

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        index = self.dataset.index
        if self.shuffle:
            device = self.images.device
            index = index[torch.randperm(len(index), generator=self.generator, device=device)]
        for rows in index.split(self.batch_size) if len(index) else ():
            if self.views:
                views = [self.images.augmented(rows, self.generator) for _ in range(self.views)]
            else:
                views = [self.images.plain(rows)]
            yield *views, *(column[rows] for column in self.columns)


class NoisyLoader:
    """Serves a data set with noisy training labels in the DivideMix family's form.

    `.run('warmup')` gives batches of 2·batch_size (images, noisy labels, index),
    `.run('eval_train')` the same not augmented and in order, `.run('test')` (images, labels,
    index), and `.run('train', pred, prob)` a labelled iterable of (view 1, view 2, labels,
    probability) and an unlabelled one of (view 1, view 2). Images are float32 [b, 3, h, w]; labels
    and index int64 [b].
    """

    def __init__(
        self,
        data: ImageData,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        channels_last: bool,
        log,
    ):
        self.data = data
        self.batch_size = batch_size
        self.log = log
        as_set = {"mean": mean, "std": std, "device": device, "channels_last": channels_last}
        self.train_images = ImageSet(data.train_images, augmentation=augmentation, **as_set)
        self.test_images = ImageSet(data.test_images, augmentation=Augmentation(0, False), **as_set)
        if self.train_images.device.type == "cpu":
            # The padded images hold them too, and host memory shall not hold them twice.
            self.data = replace(data, train_images=self.train_images.stored.numpy())
        self.noisy_labels = torch.as_tensor(data.train_labels, device=device)
        self.test_labels = torch.as_tensor(data.test_labels, device=device)
        self.clean_labels = None
        if data.clean_labels is not None:
            self.clean_labels = torch.as_tensor(data.clean_labels, device=device)
        self.train_index = torch.arange(len(self.train_images), device=device)
        self.test_index = torch.arange(len(self.test_images), device=device)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    @property
    def is_clean(self) -> np.ndarray | None:
        """Bool [n], which training labels are right; None where nobody knows."""
        if self.data.clean_labels is None:
            return None
        return np.asarray(self.data.train_labels) == np.asarray(self.data.clean_labels)

    def run(self, mode: str, pred=(), prob=(), with_truth: bool = False):
        """The iterables of `mode`; see the class.

        Args: for 'train', pred is bool [n], True for labelled, and prob float [n], the clean
        probability. with_truth appends the clean labels to each batch of 'train'.
        """
        if mode == "warmup":
            columns = self.noisy_labels, self.train_index
            return self._training(
                self.train_index, columns, views=1, batch_size=2 * self.batch_size
            )
        if mode == "eval_train":
            columns = self.noisy_labels, self.train_index
            return self._plain(self.train_images, self.train_index, columns)
        if mode == "test":
            return self._plain(
                self.test_images, self.test_index, (self.test_labels, self.test_index)
            )
        if mode == "train":
            return self._split(np.asarray(pred, dtype=bool), np.asarray(prob), with_truth)
        raise ValueError(f"mode '{mode}': expected 'warmup', 'train', 'eval_train' or 'test'")

    def split_statistics(self, pred: np.ndarray, prob: np.ndarray) -> dict[str, float]:
        """Counts of a split and, where clean labels are known, its selection figures (README).

        AUC, precision and recall are absent where they are not defined.
        """
        labelled = int(pred.sum())
        counts = {
            "labelled": labelled,
            "unlabelled": len(pred) - labelled,
            "labelled_share": labelled / len(pred),
        }
        clean = self.is_clean
        if clean is None:
            return counts
        selected = int((pred & clean).sum())
        counts |= {
            "labelled_clean": selected,
            "labelled_wrong": labelled - selected,
            "unlabelled_clean": int(clean.sum()) - selected,
            "unlabelled_wrong": int((~clean).sum()) - (labelled - selected),
        }
        if 0 < clean.sum() < len(clean):
            counts["auc"] = float(roc_auc_score(clean, prob))
        if labelled:
            counts["precision"] = selected / labelled
        if clean.any():
            counts["recall"] = selected / int(clean.sum())
        return counts

    def _split(self, pred: np.ndarray, prob: np.ndarray, with_truth: bool):
        if len(pred) != len(self.train_images) or len(prob) != len(self.train_images):
            raise ValueError(
                f"pred has {len(pred)} and prob {len(prob)} values: expected one for each of the "
                f"{len(self.train_images)} training images"
            )
        if self.log:
            self.log.write(statistics_line(self.split_statistics(pred, prob)) + "\n")
            self.log.flush()
        device = self.train_images.device
        probability = torch.as_tensor(prob, dtype=torch.float32, device=device)
        truth = (self.clean_labels,) if with_truth else ()
        labelled, unlabelled = (
            torch.from_numpy(np.flatnonzero(chosen)).to(device) for chosen in (pred, ~pred)
        )
        return (
            self._training(labelled, (self.noisy_labels, probability, *truth), views=2),
            self._training(unlabelled, truth, views=2),
        )

    def _training(self, index, columns, views: int, batch_size: int | None = None) -> Batches:
        size = batch_size or self.batch_size
        return Batches(self.train_images, index, columns, size, views, True, self.generator)

    def _plain(self, images: ImageSet, index: Tensor, columns) -> Batches:
        return Batches(images, index, columns, self.batch_size, 0, False, self.generator)


def labels_sha256(labels: Sequence[int]) -> str:
    """sha256 of the labels as a JSON list: two runs with the same value saw the same noise."""
    return hashlib.sha256(json.dumps([int(label) for label in labels]).encode()).hexdigest()


def statistics_line(statistics: dict[str, float]) -> str:
    """One line of `stats.txt` from `NoisyLoader.split_statistics`."""
    line = f"Number of labelled samples:{statistics['labelled']}"
    if "auc" in statistics:
        line += f"   AUC:{statistics['auc']:.3f}"
    if "labelled_clean" in statistics:
        line += "   clean:{labelled_clean}   wrong:{labelled_wrong}".format(**statistics)
    line += f"   Number of unlabelled samples:{statistics['unlabelled']}"
    if "unlabelled_clean" in statistics:
        line += "   clean:{unlabelled_clean}   wrong:{unlabelled_wrong}".format(**statistics)
    return line

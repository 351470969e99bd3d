"""The interface of a dataset to the method: modes, batches and a description."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from smr import distributed
from smr.data.augment import Views, normalizer, strong_augment
from smr.gmm_split import split_statistics
from smr.metrics import statistics_line


@dataclass
class DatasetInfo:
    """The description of a dataset that config.json holds.

    frame: how photos become images, the fields of `image_file_dataset.Frame`; None if they are no
        photos. mean, std: of pixels in [0, 1].
    data_notes: lines for the log. duplicates: [file, file, problem] of byte-identical photos.
    labels_in_paths: the folder or the name of a training image tells its label.
    dropped_images: positions that --noise_file excludes from training.
    noise_sha256: checksum of the training labels as a JSON list; noise_rate: if the true labels
        are known.
    """

    class_names: list[str]
    train_images: int = 0
    test_images: int = 0
    image_size: list[int] = field(default_factory=list)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    frame: list | None = None
    data_notes: list[str] = field(default_factory=list)
    test_labels_are_noisy: bool = False
    labels_in_paths: bool = False
    dropped_images: list[int] = field(default_factory=list)
    noise_sha256: str = ""
    noise_rate: float | None = None
    duplicates: list[list[str]] = field(default_factory=list)


class Batches:
    """Batches of (view, …, column, …): `views` augmented views, or the plain image if views = 0.

    Args:
        images: of the training set or of a test set, as `loader.serve` takes them.
        index: positions of the images that are served, int64 [n].
        columns: tensors with a value for each image of the set.
        strong: the views follow again, strongly augmented.
    The last batch holds the remainder; each iteration shuffles again. With `split_rows` each rank
    gets a part of every batch instead of every other batch.
    """

    def __init__(
        self,
        loader: "Loader",
        images: Sized,
        index: Tensor,
        columns: Sequence[Tensor],
        batch_size: int,
        views: int = 0,
        shuffle: bool = False,
        strong: bool = False,
    ):
        self.loader, self.images, self.dataset, self.columns = loader, images, index, columns
        self.batch_size, self.views, self.shuffle, self.strong = batch_size, views, shuffle, strong
        self.split_rows = views > 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if not len(self.dataset):
            return
        order, seed = self.loader.start_pass(self)
        source = distributed.rank_generator(self.loader.generator) if self.strong else None
        for rows, views in self.loader.serve(self, order, seed):
            if source:
                views = [*views, *(strong_augment(view, source) for view in views)]
            images = map(self.loader.normalize, views)
            yield *images, *(column[rows] for column in self.columns)


class Loader:
    """A dataset as the method reads it; `MemoryLoader` and `ImageFileLoader` serve its images.

    Attributes:
        batch_size: B.
        noisy_labels: the training labels, int64 [n] on the device of the batches.
        clean_labels, is_clean: int64 and bool [n], the true labels and where the training labels
            equal them; None if unknown.
        class_names: of the classes 0, 1, …
        files: the training images' names, [n]; None if they are no files.
        test_sets: the modes of `run` that serve test images.
        generator: every shuffle and view is drawn from it; lies on the device of the batches.
        info: the `DatasetInfo`.
    """

    def __init__(
        self,
        train_images: Sized,
        train_labels: np.ndarray,
        tests: Mapping[str, tuple[Sized, np.ndarray]],
        views: Views,
        info: DatasetInfo,
        batch_size: int,
        seed: int = 123,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        clean_labels: np.ndarray | None = None,
        files: list[str] | None = None,
        log=None,
    ):
        self.batch_size, self.log, self.files = batch_size, log, files
        self.class_names = info.class_names
        self.clean_labels = clean_labels
        self.is_clean = None if clean_labels is None else np.asarray(train_labels) == clean_labels
        self.noisy_labels = torch.as_tensor(train_labels, device=device)
        self.device = self.noisy_labels.device
        self.train_images = train_images
        self.train_index = torch.arange(len(train_images), device=device)
        self.tests = {
            name: (images, torch.as_tensor(labels, device=device))
            for name, (images, labels) in tests.items()
        }
        self.test_sets = tuple(tests)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.normalize = normalizer(views.mean, views.std, device, channels_last)
        self.info = info
        info.mean, info.std = views.mean, views.std
        info.train_images = len(train_images)
        info.test_images = sum(len(labels) for _, labels in tests.values())
        labels = json.dumps(self.noisy_labels.tolist())
        info.noise_sha256 = hashlib.sha256(labels.encode()).hexdigest()
        info.noise_rate = None if self.is_clean is None else 1 - float(self.is_clean.mean())

    def run(
        self,
        mode: str,
        pred: Sequence[bool] = (),
        prob: Sequence[float] = (),
        index: Sequence[int] | None = None,
        with_true_labels: bool = False,
        strong: bool = False,
    ):
        """The batches of `mode`; each iteration shuffles and augments again. Raises ValueError.

        'warmup', 'recalibrate': (images, noisy labels, index), augmented, in batches of 2B.
        'eval_train': the same not augmented, in batches of any size; called once for each network,
        so that each may score its own sample. 'whole': the same, always of all training images.
        'train': a labeled iterable of (view 1, view 2, labels, clean probability) and an unlabeled
        one of (view 1, view 2), in batches of B. pred, bool [m], is True for labeled, and prob,
        float [m], the clean probability, of the images at positions `index`, int64 [m] (None: all).
        with_true_labels appends the true labels; `strong` inserts (strong view 1, strong view 2)
        after the views.
        A name of `test_sets`: (images, labels, index), not augmented, in batches of any size.

        Images are float32 [b, 3, h, w], normalized; labels and index int64 [b].
        """
        if mode in ("warmup", "recalibrate"):
            return self.supervised(self.train_index)
        if mode in ("eval_train", "whole"):
            return self._scoring(self.train_images, self.noisy_labels)
        if mode in self.tests:
            return self._scoring(*self.tests[mode])
        if mode == "train":
            index = np.arange(len(self.noisy_labels)) if index is None else np.asarray(index)
            pred = np.asarray(pred, dtype=bool)
            return self._split(pred, np.asarray(prob), index, with_true_labels, strong)
        modes = f"'warmup', 'recalibrate', 'eval_train', 'whole', 'train' or {self.test_sets}"
        raise ValueError(f"mode '{mode}': expected {modes}")

    def thumbnails(self, index: np.ndarray) -> np.ndarray:
        """The training images at these positions for a person to see, uint8 [k, h, w, 3]."""
        raise NotImplementedError

    def start_pass(self, batches: Batches) -> tuple[Tensor | np.ndarray, int]:
        """The positions in the order of this pass, and its seed: here 0, none."""
        index = batches.dataset
        if batches.shuffle:
            draw = {"generator": self.generator, "device": self.device}
            index = index[torch.randperm(len(index), **draw)]
        return index, 0

    def serve(self, batches: Batches, order, seed: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Positions of the images that this rank serves, and their views uint8 [b, h, w, 3]."""
        raise NotImplementedError

    def _split(self, pred, prob, index: np.ndarray, with_true_labels: bool, strong: bool):
        if self.log:
            is_clean = None if self.is_clean is None else self.is_clean[index]
            self.log.write(statistics_line(split_statistics(pred, prob, is_clean)) + "\n")
            self.log.flush()
        probability = torch.zeros(len(self.noisy_labels), device=self.device)
        probability[index] = torch.as_tensor(prob, dtype=torch.float32, device=self.device)
        columns = self.noisy_labels, probability
        true = (torch.as_tensor(self.clean_labels, device=self.device),) if with_true_labels else ()

        def part(chosen: np.ndarray, columns: tuple[Tensor, ...]) -> Batches:
            rows = torch.as_tensor(index[chosen], device=self.device)
            options = {"views": 2, "shuffle": True, "strong": strong}
            return Batches(self, self.train_images, rows, columns, self.batch_size, **options)

        return part(pred, columns + true), part(~pred, true)

    def supervised(self, index: Tensor) -> Batches:
        """(images, noisy labels, index) of these training images, as in 'warmup'."""
        columns, size = (self.noisy_labels, self.train_index), 2 * self.batch_size
        return Batches(self, self.train_images, index, columns, size, views=1, shuffle=True)

    def _scoring(self, images: Sized, labels: Tensor, index: Tensor | None = None) -> Batches:
        """(images, labels, index) of images at `index`, by default of all, not augmented."""
        positions = torch.arange(len(images), device=self.device)
        index = positions if index is None else index
        size = self._scoring_batch_size(len(index))
        return Batches(self, images, index, (labels, positions), size)

    def _scoring_batch_size(self, count: int) -> int:
        """B: large images fill memory, and decoding sets the pace."""
        return self.batch_size

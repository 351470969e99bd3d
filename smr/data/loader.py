"""What a data set is to the method, and one that is held whole on the training device."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from smr import distributed
from smr.data.augment import distorted
from smr.data.memory_dataset import ImageSet, Views
from smr.gmm_split import split_statistics, statistics_line

# Images that a pass without gradients takes at once, where none has more pixels than this: a card
# is kept busy, and nothing is held that a training step at B = 128 does not hold.
SCORING_BATCH, SCORING_PIXELS = 1000, 64 * 64
# Batches that are distorted at once: of their dozens of small operations a batch costs nearly what
# many do.
AHEAD = 16


class Loader(Protocol):
    """All that the method, the record and a run ask of a data set.

    batch_size: B (method 3).
    noisy_labels: the training labels as given, int64 [n] on the device.
    clean_labels, is_clean: int64 and bool [n], the true labels and which given ones are right;
        None where nobody knows.
    class_names: of the classes 0, 1, …
    files: the training images' names, [n]; None where they are no files.
    test_sets: the modes of `run` that serve test images; their names begin TensorBoard's tags.
    facts: what config.json tells of the data.
    generator: what every shuffle and view is drawn from; lies on the device of the batches.
    """

    batch_size: int
    noisy_labels: Tensor
    clean_labels: np.ndarray | None
    is_clean: np.ndarray | None
    class_names: list[str]
    files: list[str] | None
    test_sets: tuple[str, ...]
    facts: dict
    generator: torch.Generator

    def run(
        self,
        mode: str,
        pred: Sequence[bool] = (),
        prob: Sequence[float] = (),
        index: Sequence[int] | None = None,
        with_true_labels: bool = False,
        strong: bool = False,
    ):
        """The batches of `mode`, shuffled or drawn anew at each iteration.

        'warmup', 'recalibrate': (images, noisy labels, index), augmented, in batches of 2B.
        'eval_train': the same not augmented, in batches of any size; called once for each network,
        so that each may score a sample of its own. 'whole': the same, always of all training
        images.
        'train': a labeled iterable of (view 1, view 2, labels, probability) and an unlabeled one
        of (view 1, view 2), in batches of B. pred, bool [m], is True for labeled, and prob,
        float [m], the clean probability, of the images at positions `index`, int64 [m], in the
        whole set (None: all of it). with_true_labels appends the clean labels to each batch; with
        `strong` each of its two views is distorted too (method 11): (view 1, view 2, strong view
        1, strong view 2, …).
        A name of `test_sets`: (images, labels, index), not augmented, in batches of any size.

        Images are float32 [b, 3, h, w], normalized; labels and index int64 [b].
        """

    def thumbnails(self, index: np.ndarray) -> np.ndarray:
        """The training images at these positions as a person sees them, uint8 [k, h, w, 3]."""


@dataclass
class ImageData:
    """What a reader found: images uint8 [n, height, width, 3], labels int64 [n] in 0..classes-1.

    `clean_labels` are the training labels before noise, None where nobody knows them; `files`
    name the training images, where they are files. `test_labels_are_noisy` says that the test
    images were held out of the training set. `notes` are lines for the log on what else the reader
    found.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: list[str]
    clean_labels: np.ndarray | None = None
    files: list[str] | None = None
    test_labels_are_noisy: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rows:
    """The images that an iterable serves, as positions in the whole set."""

    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


class Batches:
    """Batches of (view, …, column, …): `views` augmented views, or one plain one where views = 0.

    With `strong` the same views follow again, each distorted (method 11).
    Each column is a tensor with a value for each image of the whole set. The last batch holds what
    is left over; each iteration shuffles anew. Of several ranks each gets its part.
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
        strong: bool = False,
    ):
        self.images = images
        self.dataset = Rows(index)
        self.columns = columns
        self.batch_size = batch_size
        self.views = views
        self.shuffle = shuffle
        self.generator = generator
        self.strong = strong

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        index = self.dataset.index
        if self.shuffle:
            device = self.images.device
            index = index[torch.randperm(len(index), generator=self.generator, device=device)]
        batches = index.split(self.batch_size) if len(index) else ()
        if not self.views:
            for rows in distributed.rank_batches(batches):
                yield self.images.plain(rows), *(column[rows] for column in self.columns)
            return
        weak = ((rows, self._drawn(rows)) for rows in batches)
        for rows, views in self._with_strong(batches) if self.strong else weak:
            own = rows[distributed.rank_rows(len(rows))]
            images = (self.images.normalized(view) for view in views)
            yield *images, *(column[own] for column in self.columns)

    def _drawn(self, rows: Tensor) -> list[Tensor]:
        own = distributed.rank_rows(len(rows))
        return [self.images.drawn(rows, self.generator, own) for _ in range(self.views)]

    def _with_strong(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        source = distributed.rank_generator(self.generator)
        for first in range(0, len(batches), AHEAD):
            group = batches[first : first + AHEAD]
            weak = [view for rows in group for view in self._drawn(rows)]
            pixels = torch.cat(weak).unflatten(2, (-1, 3))
            strong = distorted(pixels, source).flatten(2).split([len(view) for view in weak])
            for k, rows in enumerate(group):
                own = slice(k * self.views, (k + 1) * self.views)
                yield rows, [*weak[own], *strong[own]]


class BaseLoader:
    """A `Loader` but for `thumbnails` and `_batches`: what images are, and how they are served.

    Args: train_images and those of `tests`, test set → (images, labels), are whatever `_batches`
    serves and have a length; facts, clean_labels and files, see Loader; log, an open text file for
    a line about each split, as the DivideMix family's scripts keep it, or None.
    """

    def __init__(
        self,
        train_images: Sized,
        train_labels: np.ndarray,
        tests: Mapping[str, tuple[Sized, np.ndarray]],
        class_names: list[str],
        batch_size: int,
        seed: int,
        device: torch.device | str,
        facts: dict,
        clean_labels: np.ndarray | None = None,
        files: list[str] | None = None,
        log=None,
    ):
        self.batch_size = batch_size
        self.log = log
        self.class_names, self.files = class_names, files
        self.clean_labels, self.is_clean = clean_labels, None
        if clean_labels is not None:
            self.is_clean = np.asarray(train_labels) == clean_labels
        self.train_images = train_images
        self.noisy_labels = torch.as_tensor(train_labels, device=device)
        self.device = self.noisy_labels.device
        self.train_index = torch.arange(len(train_images), device=device)
        self.tests = {
            name: (images, torch.as_tensor(labels, device=device))
            for name, (images, labels) in tests.items()
        }
        self.test_sets = tuple(tests)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.facts = {
            "train_images": len(train_images),
            "test_images": sum(len(images) for images, _ in tests.values()),
            "class_names": class_names,
        } | facts

    @property
    def info(self):
        import hashlib, json, types

        d = (
            dict(
                data_notes=[],
                dropped_images=[],
                labels_in_paths=False,
                frame=None,
                test_labels_are_noisy=False,
            )
            | self.facts
        )
        given = json.dumps(self.noisy_labels.tolist())
        d["noise_sha256"] = hashlib.sha256(given.encode()).hexdigest()
        d["noise_rate"] = None if self.is_clean is None else 1 - float(self.is_clean.mean())
        from dataclasses import make_dataclass

        return make_dataclass("DatasetInfo", list(d))(**d)

    def run(
        self, mode: str, pred=(), prob=(), index=None, with_true_labels: bool = False, strong=False
    ):
        """The iterables of `mode`; see `Loader.run`. Raises ValueError."""
        if mode in ("warmup", "recalibrate"):
            return self._supervised(self.train_index)
        if mode in ("eval_train", "whole"):
            return self._scoring(self.train_index)
        if mode in self.tests:
            images, labels = self.tests[mode]
            index = torch.arange(len(images), device=self.device)
            return self._plain(images, index, (labels, index))
        if mode == "train":
            index = np.arange(len(self.noisy_labels)) if index is None else np.asarray(index)
            pred, prob = np.asarray(pred, dtype=bool), np.asarray(prob)
            return self._split(pred, prob, index, with_true_labels, strong)
        modes = f"'warmup', 'recalibrate', 'eval_train', 'whole', 'train' or {self.test_sets}"
        raise ValueError(f"mode '{mode}': expected {modes}")

    def _split(
        self,
        pred: np.ndarray,
        prob: np.ndarray,
        index: np.ndarray,
        with_true_labels: bool,
        strong: bool,
    ):
        if not len(pred) == len(prob) == len(index):
            raise ValueError(
                f"pred has {len(pred)} and prob {len(prob)} values: expected one for each of the "
                f"{len(index)} training images"
            )
        if self.log:
            is_clean = None if self.is_clean is None else self.is_clean[index]
            self.log.write(statistics_line(split_statistics(pred, prob, is_clean)) + "\n")
            self.log.flush()
        device = self.device
        probability = torch.zeros(len(self.noisy_labels), device=device)
        probability[torch.from_numpy(index).to(device)] = torch.as_tensor(
            prob, dtype=torch.float32, device=device
        )
        truth = (torch.as_tensor(self.clean_labels, device=device),) if with_true_labels else ()
        labeled, unlabeled = (
            torch.from_numpy(index[chosen]).to(device) for chosen in (pred, ~pred)
        )
        columns = self.noisy_labels, probability, *truth
        return (
            self._training(labeled, columns, 2, self.batch_size, strong),
            self._training(unlabeled, truth, 2, self.batch_size, strong),
        )

    def _columns(self) -> tuple[Tensor, Tensor]:
        """What goes with a training image where each is served once: its label, its position."""
        return self.noisy_labels, self.train_index

    def _supervised(self, index: Tensor):
        return self._training(index, self._columns(), 1, 2 * self.batch_size)

    def _scoring(self, index: Tensor):
        return self._plain(self.train_images, index, self._columns())

    def _plain(self, images: Sized, index: Tensor, columns: Sequence[Tensor]):
        """Not augmented; by B: large images fill memory, and their decoding sets the pace."""
        return self._batches(images, index, columns, self.batch_size, 0, False)

    def _training(
        self,
        index: Tensor,
        columns: Sequence[Tensor],
        views: int,
        batch_size: int,
        strong: bool = False,
    ):
        return self._batches(self.train_images, index, columns, batch_size, views, True, strong)


class NoisyLoader(BaseLoader):
    """A `Loader` over images in memory: the whole set on the device, served by the batch.

    Args: log, see BaseLoader.
    """

    def __init__(
        self,
        data: ImageData,
        views: Views,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        log=None,
    ):
        images = ImageSet(data.train_images, views, device, channels_last)
        test_images = ImageSet(data.test_images, views.for_tests(), device, channels_last)
        super().__init__(
            images,
            data.train_labels,
            {"test": (test_images, data.test_labels)},
            *(data.class_names, batch_size, seed, device),
            facts={
                "image_size": [images.height, images.width],
                "mean": views.mean,
                "std": views.std,
                "frame": [images.stored.shape[1], views.window, True] if views.window else None,
                "test_labels_are_noisy": data.test_labels_are_noisy,
                "data_notes": data.notes,
            },
            clean_labels=data.clean_labels,
            files=data.files,
            log=log,
        )

    def thumbnails(self, index: np.ndarray) -> np.ndarray:
        """The training images at these positions as they came, uint8 [k, h, w, 3]."""
        return self.train_images.stored[torch.from_numpy(index)].cpu().numpy()

    def _plain(self, images: ImageSet, index: Tensor, columns: Sequence[Tensor]):
        """Not augmented; small images by the thousand, or where they are fewer by ranks' shares."""
        size = self.batch_size
        if images.height * images.width <= SCORING_PIXELS:
            size = min(SCORING_BATCH, distributed.rank_share(len(index)))
        return self._batches(images, index, columns, size, 0, False)

    def _batches(self, images, index, columns, batch_size, views, shuffle, strong=False):
        served = images, index, columns, batch_size, views, shuffle
        return Batches(*served, self.generator, strong)

"""Datasets in memory: all images as one uint8 tensor on the training device."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smr import distributed
from smr.data.augment import Views
from smr.data.loader import Batches, DatasetInfo, Loader

# Images of a batch in a pass without gradients, if none has more pixels than this: a GPU is kept
# busy, and no more memory is used than by a training step at B = 128.
SCORING_BATCH, SCORING_PIXELS = 1000, 64 * 64


@dataclass
class ImageData:
    """Images uint8 [n, height, width, 3] with labels int64 [n] in 0..classes-1.

    clean_labels: the training labels before noise, None if unknown. files: names of the training
    images, if they are files. The others: see `DatasetInfo`.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: list[str]
    clean_labels: np.ndarray | None = None
    files: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    dropped_images: list[int] = field(default_factory=list)
    labels_in_paths: bool = False


class MemoryImages:
    """Images uint8 [n, height, width, 3] on a device, padded for random crops."""

    def __init__(self, images: np.ndarray, padding: int = 0, device: torch.device | str = "cpu"):
        self.padding, (self.height, self.width) = padding, images.shape[1:3]
        stored = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        pad = (0, 0, padding, padding, padding, padding)
        # Without padding no copy: it would double the memory of a large dataset.
        self.padded = F.pad(stored, pad) if padding else stored

    def __len__(self) -> int:
        return len(self.padded)

    def plain(self, index: Tensor) -> Tensor:
        """The images at `index` [b], uint8 [b, height, width, 3]."""
        pad, height, width = self.padding, self.height, self.width
        return self.padded[index][:, pad : pad + height, pad : pad + width]

    def cropped(self, index: Tensor, down: Tensor, right: Tensor, flipped: Tensor) -> Tensor:
        """Crops at these offsets [b] in the padded images, mirrored where `flipped` [b] is 1."""
        rows, columns = (
            torch.arange(side, device=index.device) for side in (self.height, self.width)
        )
        columns = torch.where(flipped[:, None] == 1, columns.flip(0), columns)
        rows, columns = down[:, None] + rows, right[:, None] + columns
        return self.padded[index[:, None, None], rows[:, :, None], columns[:, None]]


class MemoryLoader(Loader):
    """A `Loader` of images in memory. Args: log, an open text file for a line about each split."""

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
        images = MemoryImages(data.train_images, views.padding, device)
        test_images = MemoryImages(data.test_images, device=device)
        self.views = views
        info = DatasetInfo(
            data.class_names,
            image_size=[images.height, images.width],
            data_notes=data.notes,
            labels_in_paths=data.labels_in_paths,
            dropped_images=data.dropped_images,
        )
        super().__init__(
            images,
            data.train_labels,
            {"test": (test_images, data.test_labels)},
            views,
            info,
            batch_size=batch_size,
            seed=seed,
            device=device,
            channels_last=channels_last,
            clean_labels=data.clean_labels,
            files=data.files,
            log=log,
        )

    def thumbnails(self, index: np.ndarray) -> np.ndarray:
        """The training images at these positions, uint8 [k, h, w, 3]."""
        return self.train_images.plain(torch.as_tensor(index, device=self.device)).cpu().numpy()

    def serve(
        self, batches: Batches, order: Tensor, seed: int
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Positions of this rank's images, and their views uint8 [b, h, w, 3]."""
        groups = order.split(batches.batch_size)
        if not batches.views:
            for rows in distributed.rank_batches(groups):
                yield rows, [batches.images.plain(rows)]
            return
        for rows in groups:
            own = distributed.rank_rows(len(rows))
            yield rows[own], [self.augmented(rows, own) for _ in range(batches.views)]

    def augmented(self, index: Tensor, own: slice) -> Tensor:
        """A view, uint8 [b, h, w, 3], of the `own` ones of these images.

        Crop and flip are drawn for all of `index`, so that the ranks' generators stay equal.
        """
        draw = {"generator": self.generator, "device": self.device}
        down, right = torch.randint(2 * self.views.padding + 1, (2, len(index)), **draw)
        flipped = torch.zeros_like(index)
        if self.views.flip:
            flipped = torch.randint(2, (len(index),), **draw)
        return self.train_images.cropped(index[own], down[own], right[own], flipped[own])

    def _scoring_batch_size(self, count: int) -> int:
        """Many small images at once, but at least a batch for each rank."""
        height, width = self.info.image_size
        if height * width <= SCORING_PIXELS:
            return min(SCORING_BATCH, distributed.rank_share(count))
        return self.batch_size

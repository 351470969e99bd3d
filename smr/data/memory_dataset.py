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


class MemoryLoader(Loader):
    """A `Loader` of images in memory, uint8 [n, height, width, 3] on the device.

    options: channels_last and log, as of `Loader`.
    """

    def __init__(
        self,
        data: ImageData,
        views: Views,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        **options,
    ):
        images, test_images = (
            torch.from_numpy(np.ascontiguousarray(part)).to(device)
            for part in (data.train_images, data.test_images)
        )
        self.views = views
        info = DatasetInfo(
            data.class_names,
            image_size=[*images.shape[1:3]],
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
            clean_labels=data.clean_labels,
            files=data.files,
            **options,
        )

    def thumbnails(self, index: np.ndarray) -> np.ndarray:
        """The training images at these positions, uint8 [k, h, w, 3]."""
        return self.train_images[torch.as_tensor(index, device=self.device)].cpu().numpy()

    def serve(
        self, batches: Batches, order: Tensor, seed: int
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Positions of this rank's images, and their views uint8 [b, h, w, 3]."""
        groups = order.split(batches.batch_size)
        if not batches.views:
            for rows in distributed.rank_batches(groups):
                yield rows, [batches.images[rows]]
            return
        for rows in groups:
            own = distributed.rank_rows(len(rows))
            yield rows[own], [self.augmented(rows, own) for _ in range(batches.views)]

    def augmented(self, index: Tensor, own: slice) -> Tensor:
        """A view, uint8 [b, h, w, 3], of the `own` ones of these images.

        Crop and flip are drawn for all of `index`, so that the ranks' generators stay equal.
        """
        draw = {"generator": self.generator, "device": self.device}
        pad = self.views.padding
        down, right = torch.randint(2 * pad + 1, (2, len(index)), **draw)[:, own, None]
        flipped = torch.zeros_like(index)
        if self.views.flip:
            flipped = torch.randint(2, (len(index),), **draw)
        images = self.train_images[index[own]]
        rows, columns = (torch.arange(side, device=self.device) for side in images.shape[1:3])
        columns = torch.where(flipped[own, None] == 1, columns.flip(0), columns)
        padded = F.pad(images, (0, 0, pad, pad, pad, pad))
        image = torch.arange(len(images), device=self.device)[:, None, None]
        return padded[image, (down + rows)[:, :, None], (right + columns)[:, None]]

    def _scoring_batch_size(self, count: int) -> int:
        """Many small images at once, but at least a batch for each rank."""
        height, width = self.info.image_size
        if height * width <= SCORING_PIXELS:
            return min(SCORING_BATCH, distributed.rank_share(count))
        return self.batch_size

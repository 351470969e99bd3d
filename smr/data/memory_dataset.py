"""An image set as one uint8 tensor on the training device, and its views (method 1).

Crop, flip and normalize are a few batched tensor operations, the same on CPU and GPU.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """How images are served: per-channel mean and std of images scaled to [0, 1], and for
    training views a zero padding that is cropped back at random and a random flip. `window` is
    the side served of larger square images, anywhere in training, else in the middle; 0: all."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: int = 0
    flip: bool = False
    window: int = 0

    def for_tests(self) -> "Views":
        """The same normalization of images that are never augmented."""
        return replace(self, padding=0, flip=False)


def mirrored(images: Tensor, flipped: Tensor) -> Tensor:
    """Images uint8 [b, height, width, 3] where integer `flipped` [b] is 0, mirrored where 1."""
    # Bitwise, five times as fast as a choice.
    mask = (-flipped[:, None, None, None]).to(torch.uint8)
    return ((images.flip(2) ^ images) & mask).bitwise_xor_(images)


class Normalizer:
    """Rows of pixels, uint8 [b, height, 3·width], normalized: float32 [b, 3, height, width]."""

    def __init__(self, views: Views, width: int, device: torch.device | str, channels_last: bool):
        self.width = width
        self.channels_last = channels_last
        # x/255 → (x - mean)/std as one multiply and one add, over whole rows of pixels.
        mean, std = torch.tensor(views.mean), torch.tensor(views.std)
        self.scale = (1 / (255 * std)).repeat(width).to(device)
        self.shift = (-mean / std).repeat(width).to(device)

    def __call__(self, rows: Tensor) -> Tensor:
        images = rows.float().mul_(self.scale).add_(self.shift)
        images = images.unflatten(2, (self.width, 3)).permute(0, 3, 1, 2)
        return images if self.channels_last else images.contiguous()


class ImageSet:
    """Images uint8 [n, height, width, 3] on a device, served normalized as float32 [b, 3, h, w].

    channels_last gives the served batches' memory format, never their values.
    """

    def __init__(
        self,
        images: np.ndarray,
        views: Views,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ):
        pad = self.padding = views.padding
        self.flip = views.flip
        stored = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        # Without padding the images themselves: a copy of a large set costs what the set does.
        self.padded = F.pad(stored, (0, 0, pad, pad, pad, pad)) if pad else stored
        self.count, *sides, _ = stored.shape
        self.height, self.width = (views.window or side for side in sides)
        # The rows, and the columns, by which what is held is larger than what is served.
        self.margin = self.padded.shape[1] - self.height
        # The crop that begins at each pixel of the set, as an overlapping view [pixels, height,
        # 3·width].
        across = self.padded.shape[2]
        pixels = self.padded.numel() // 3 - (self.height - 1) * across - self.width + 1
        self.crops = self.padded.flatten().as_strided(
            (max(pixels, 0), self.height, 3 * self.width), (3, 3 * across, 1)
        )
        self.normalized = Normalizer(views, self.width, device, channels_last)

    def __len__(self) -> int:
        return self.count

    @property
    def device(self) -> torch.device:
        return self.padded.device

    @property
    def stored(self) -> Tensor:
        """The images as they came, uint8 [n, height, width, 3]: a view of what is held."""
        pad, (_, high, across, _) = self.padding, self.padded.shape
        return self.padded[:, pad : high - pad, pad : across - pad]

    def plain(self, index: Tensor) -> Tensor:
        """The images of int64 `index` [b], not augmented (method 1: `test` and `eval`)."""
        middle = round(self.margin / 2)
        return self.normalized(self._cropped(index, middle, middle))

    def drawn(self, index: Tensor, generator: torch.Generator, own: slice) -> Tensor:
        """The pixels of one view of each image, uint8 [b, height, 3·width], to be `normalized`.

        Each has its own crop and its own flip (method 1: `train`), drawn for all of `index` [n],
        made of the `own` ones, so that ranks draw alike.
        """
        draw = {"generator": generator, "device": self.device}
        offsets = torch.randint(self.margin + 1, (2, len(index)), **draw)
        rows = self._cropped(index[own], *offsets[:, own])
        if self.flip:
            images = rows.unflatten(2, (self.width, 3))
            rows = mirrored(images, torch.randint(2, (len(index),), **draw)[own]).flatten(2)
        return rows

    def _cropped(self, index: Tensor, down: Tensor | int, right: Tensor | int) -> Tensor:
        """uint8 [b, height, 3·width] from these pixels of the padded images on."""
        _, high, across, _ = self.padded.shape
        first = (index * high + down) * across + right
        # On a CPU index_select is three times as fast; elsewhere it may first copy the whole view.
        return self.crops.index_select(0, first) if first.is_cpu else self.crops[first]

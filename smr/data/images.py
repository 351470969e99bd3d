"""An image set as one uint8 tensor on the training device, and its views (method 1).

Crop, flip and normalise are a few batched tensor operations, the same on CPU and GPU.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """How images are served: per-channel mean and std of images scaled to [0, 1], and for
    training views a zero padding that is cropped back at random and a random flip."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: int = 0
    flip: bool = False

    def for_tests(self) -> "Views":
        """The same normalisation of images that are never augmented."""
        return replace(self, padding=0, flip=False)


class ImageSet:
    """Images uint8 [n, height, width, 3] on a device, served normalised as float32 [b, 3, h, w].

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
        mean, std = torch.tensor(views.mean), torch.tensor(views.std)
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
        """The images of int64 `index` [b], not augmented (method 1: `test` and `eval`)."""
        return self._normalise(self._cropped(index, self.padding, self.padding))

    def augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each image: its own crop and its own flip (method 1: `train`)."""
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

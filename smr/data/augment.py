"""Normalization and augmentation of uint8 images, the same on CPU and GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# RandAugment: operations on each image, and levels of their strength.
OPERATIONS, LEVELS = 2, 31


@dataclass(frozen=True)
class Views:
    """The augmentation of a training image, and the normalization of every image.

    mean, std: of each channel, of pixels in [0, 1]. padding: zeros on each side before a random
    crop of the image's own size. flip: mirror with probability 0.5.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: int = 0
    flip: bool = False


def normalizer(
    mean: tuple, std: tuple, device: torch.device | str, channels_last: bool
) -> Callable[[Tensor], Tensor]:
    """A function: images uint8 [b, h, w, 3] to float32 [b, 3, h, w], normalized.

    channels_last is the memory format of its result.
    """
    mean, std = torch.tensor(mean), torch.tensor(std)
    # x/255 → (x - mean)/std as one multiply and one add.
    scale, shift = (1 / (255 * std)).to(device), (-mean / std).to(device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def normalize(images: Tensor) -> Tensor:
        pixels = images.float().mul_(scale).add_(shift)
        return pixels.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)

    return normalize


@cache
def rand_augment(level: int):
    """torchvision's RandAugment of this strength, 0 to LEVELS - 1."""
    from torchvision.transforms import InterpolationMode, v2  # takes a second, few runs need it

    return v2.RandAugment(OPERATIONS, level, LEVELS, InterpolationMode.BILINEAR)


def strong_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images uint8 [b, h, w, 3], each after its own RandAugment at a strength of its own.

    torchvision draws from torch's global generator of the CPU, which is seeded by the next number
    of `generator`, a CPU generator, and then restored.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        levels = torch.randint(LEVELS, (len(images),)).tolist()
        views = zip(levels, images.permute(0, 3, 1, 2), strict=True)
        augmented = [rand_augment(level)(image) for level, image in views]
    return torch.stack(augmented).permute(0, 2, 3, 1) if augmented else images

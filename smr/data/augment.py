"""Strong views: RandAugment's operations on a batch, each image with its own (method 11).

Images are uint8 [b, 3, side, side], and an operation's strengths float32 [b] from -1 to 1, which
cover its range; operations without a range or a sign leave those unused.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATIONS_EACH = 2
# RandAugment's ranges, each of them whole.
FACTOR = 0.9
BITS = 4
ANGLE = math.radians(30)
SHEAR = 0.3
SHIFT = 150 / 331  # of a side


def unchanged(images: Tensor, _strength: Tensor) -> Tensor:
    """The images as they are."""
    return images


def blended(images: Tensor, others: Tensor | float, strength: Tensor) -> Tensor:
    """factor·images + (1 - factor)·others, factor = 1 + FACTOR·strength; cut off, not rounded."""
    factor = (1 + FACTOR * strength)[:, None, None, None]
    return (images * factor + (1 - factor) * others).clamp_(0, 255).to(torch.uint8)


def gray(images: Tensor) -> Tensor:
    """Luminance in whole levels: float32 [b, 1, side, side]."""
    red, green, blue = images.float().split(1, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor_()


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Towards black, or away from it."""
    return blended(images, 0.0, strength)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Towards the mean of the image's gray, or away from it."""
    return blended(images, gray(images).mean(dim=(1, 2, 3), keepdim=True), strength)


def color(images: Tensor, strength: Tensor) -> Tensor:
    """Towards the image's gray, or away from it."""
    return blended(images, gray(images), strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Towards a mean over 3x3 pixels, the middle one with weight 5, or away; the rim stays."""
    smooth = images.float()
    inner = smooth[..., 1:-1, 1:-1]
    inner.copy_(((9 * F.avg_pool2d(smooth, 3, stride=1) + 4 * inner) / 13).round_())
    return blended(images, smooth, strength)


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """The upper 8 to 8 - BITS bits of each value."""
    levels = 2 ** (BITS * strength.abs()).round()
    return images & (256 - levels).to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Values inverted from a threshold on, 255 to 0."""
    threshold = 255 * (1 - strength.abs())[:, None, None, None]
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor, _strength: Tensor) -> Tensor:
    """Each channel stretched to all of 0 to 255."""
    from torchvision.transforms.v2 import functional  # takes a second, and few runs need it

    return functional.autocontrast(images)


def equalize(images: Tensor, _strength: Tensor) -> Tensor:
    """Each channel with a level histogram."""
    from torchvision.transforms.v2 import functional

    return functional.equalize(images)


def matrices(*entries: Tensor) -> Tensor:
    """float32 [b, 2, 3] of their six entries [b], row by row."""
    return torch.stack(entries, dim=1).unflatten(1, (2, 3))


def rotation(strength: Tensor) -> Tensor:
    """About the middle, by ANGLE at most."""
    cos, sin, zero = (ANGLE * strength).cos(), (ANGLE * strength).sin(), 0 * strength
    return matrices(cos, -sin, zero, sin, cos, zero)


def shear_across(strength: Tensor) -> Tensor:
    """Rows moved across, in proportion to their distance from the middle one."""
    zero = 0 * strength
    return matrices(zero + 1, SHEAR * strength, zero, zero, zero + 1, zero)


def shear_down(strength: Tensor) -> Tensor:
    """Columns moved down, in proportion to their distance from the middle one."""
    zero = 0 * strength
    return matrices(zero + 1, zero, zero, SHEAR * strength, zero + 1, zero)


def shift_across(strength: Tensor) -> Tensor:
    """By a share of the width."""
    zero = 0 * strength
    return matrices(zero + 1, zero, 2 * SHIFT * strength, zero, zero + 1, zero)


def shift_down(strength: Tensor) -> Tensor:
    """By a share of the height."""
    zero = 0 * strength
    return matrices(zero + 1, zero, zero, zero, zero + 1, 2 * SHIFT * strength)


def warped(images: Tensor, to_source: Tensor) -> Tensor:
    """Each image by its matrix [b, 2, 3] from where a pixel goes to where it comes from.

    Places count from the middle in halves of a side; bilinear, and black beyond the image.
    """
    grid = F.affine_grid(to_source, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8)


COLORS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    *(unchanged, brightness, contrast, color, sharpness),
    *(posterize, solarize, autocontrast, equalize),
)
MOVES: tuple[Callable[[Tensor], Tensor], ...] = (
    *(rotation, shear_across, shear_down, shift_across, shift_down),
)


def operated(images: Tensor, chosen: Tensor, strength: Tensor) -> Tensor:
    """Each image after one operation, number `chosen` of COLORS + MOVES.

    Args: chosen, int64 [b], and strength lie on the CPU: how many images an operation has, no
    device is asked, so that none is waited for.
    """
    if not len(images):
        return images
    sizes = chosen.bincount(minlength=len(COLORS + MOVES)).tolist()
    order = chosen.argsort()
    strengths = strength[order].to(images.device, non_blocking=True).split(sizes)
    order = order.to(images.device, non_blocking=True)
    parts = images[order].split([*sizes[: len(COLORS)], sum(sizes[len(COLORS) :])])
    colored = zip(COLORS, parts, strengths, strict=False)
    done = [operation(part, own) for operation, part, own in colored if len(part)]
    if len(parts[-1]):
        moves = zip(MOVES, strengths[len(COLORS) :], strict=True)
        done.append(warped(parts[-1], torch.cat([move(own) for move, own in moves])))
    return torch.empty_like(images).index_copy_(0, order, torch.cat(done))


def distorted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Square views uint8 [b, side, side, 3], each after OPERATIONS_EACH operations of its own.

    Operations and strengths are drawn evenly, from a generator of the CPU.
    """
    images, count = pixels.permute(0, 3, 1, 2), len(pixels)
    for _ in range(OPERATIONS_EACH):
        chosen = torch.randint(len(COLORS + MOVES), (count,), generator=generator)
        strength = 2 * torch.rand(count, generator=generator) - 1
        images = operated(images, chosen, strength)
    return images.permute(0, 2, 3, 1)

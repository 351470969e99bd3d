"""Views of images (method 1) against a plain implementation, one image at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import plain_images
from torch.testing import assert_close

from smr.data.augment import Views
from smr.data.memory_dataset import ImageData, MemoryLoader

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR = Views(MEAN, STD, padding=4, flip=True)


def image_set(images, padding=4, flip=True, seed=0, **options) -> MemoryLoader:
    labels = np.zeros(len(images), int)
    data = ImageData(images, labels, images, labels, ["a"])
    return MemoryLoader(data, replace(CIFAR, padding=padding, flip=flip), 4, seed, **options)


def augmented(loader: MemoryLoader, index) -> torch.Tensor:
    """One view of each of these images, as training sees them."""
    return loader.normalize(loader.augmented(index, slice(None)))


def located_images(count: int, height: int = 32, width: int | None = None) -> np.ndarray:
    """Images whose channels tell a pixel's row, its column, and nothing (random)."""
    shape = count, height, width or height, 3
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images[..., 0] = 1 + np.arange(shape[1])[:, None]
    images[..., 1] = 1 + np.arange(shape[2])
    return images


def as_bytes(views: torch.Tensor) -> np.ndarray:
    """What served views [n, 3, h, w] were before normalization: float [n, h, w, 3]."""
    return (views.double().permute(0, 2, 3, 1).numpy() * STD + MEAN) * 255


def drawn(views: torch.Tensor, padding: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [n, 2] of the crops and flips [n], read off views of `located_images`."""
    pixels = as_bytes(views).round().astype(int)
    down, right = pixels.shape[1] // 2, pixels.shape[2] // 2
    rows, columns = pixels[:, down, right, 0] - 1, pixels[:, down, right, 1] - 1
    flipped = pixels[:, down, right, 1] > pixels[:, down, right + 1, 1]
    across = np.where(flipped, pixels.shape[2] - 1 - right, right)
    return np.stack([rows - down + padding, columns - across + padding], axis=1), flipped


def plain_view(image: np.ndarray, offset, flipped: bool, padding: int = 4) -> np.ndarray:
    """A view float64 [3, h, w] as method 1 words it: pad, crop, flip, scale, normalize."""
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, 3))
    padded[padding : padding + height, padding : padding + width] = image
    view = padded[offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    if flipped:
        view = view[:, ::-1]
    return ((view / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(32, 32), (20, 28), (28, 20)])
def test_view_equals_pad_crop_flip_and_normalize_one_by_one(channels_last, shape):
    images = located_images(60, *shape)
    index = torch.arange(60).flip(0)
    views = augmented(image_set(images, channels_last=channels_last), index)
    offsets, flips = drawn(views)
    assert {*flips} == {False, True}
    expected = [
        plain_view(images[i], *draw) for i, *draw in zip(index, offsets, flips, strict=True)
    ]
    assert views.dtype == torch.float32
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    assert views.is_contiguous(memory_format=format_)
    assert_close(views, torch.from_numpy(np.stack(expected)).float(), rtol=1e-5, atol=1e-5)


def test_every_image_of_every_view_draws_its_own_crop_and_flip():
    images = image_set(located_images(1, 12))
    same = torch.zeros(400, dtype=torch.long)
    (first, first_flips), (second, second_flips) = (
        drawn(augmented(images, same)) for _ in range(2)
    )
    assert len(np.unique(first, axis=0)) == 81
    # One of 81 crops is the same by chance, and half of the flips.
    assert (first == second).all(axis=1).mean() < 0.04
    assert 0.4 < (first_flips == second_flips).mean() < 0.6


def test_crops_are_uniform_over_81_places_and_half_are_flipped():
    n = 40_500
    offsets, flips = drawn(
        augmented(image_set(located_images(1, 12)), torch.zeros(n, dtype=torch.long))
    )
    assert offsets.min() == 0
    assert offsets.max() == 8
    counts = np.zeros((2, 9, 9))
    np.add.at(counts, (flips.astype(int), offsets[:, 0], offsets[:, 1]), 1)
    assert abs(flips.mean() - 0.5) < 0.01
    # Chi-squared with 161 degrees of freedom: 230 is exceeded once in 3,000 draws.
    assert ((counts - n / 162) ** 2 / (n / 162)).sum() < 230


def test_digits_are_cropped_and_never_flipped_and_animals_flipped_and_never_cropped():
    index = torch.zeros(500, dtype=torch.long)
    digits = image_set(located_images(1, 8), padding=1, flip=False)
    offsets, flips = drawn(augmented(digits, index), padding=1)
    assert not flips.any()
    assert len(np.unique(offsets, axis=0)) == 9
    animals = image_set(located_images(1, 8), padding=0)
    offsets, flips = drawn(augmented(animals, index), padding=0)
    assert not offsets.any()
    assert 0.4 < flips.mean() < 0.6


@pytest.mark.parametrize("padding", [0, 3])
def test_plain_images_are_normalized_alone(padding):
    images = located_images(4, 10, 7)
    loader = image_set(images, padding=padding)
    assert np.array_equal(loader.thumbnails(np.array([3, 1])), images[[3, 1]])
    expected = np.stack([plain_view(image, (4, 4), False) for image in images])
    found = plain_images(loader)
    assert_close(found, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)

"""Augmentation, batches and split statistics (SPEC 1), against plain implementations."""

import numpy as np
import pytest
import torch
from helpers import generator
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from batches import Augmentation, Batches, ImageData, ImageSet, NoisyLoader, statistics_line

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR = Augmentation(padding=4, flip=True)


def image_set(images, augmentation=CIFAR, **options):
    return ImageSet(images, MEAN, STD, augmentation, **options)


def located_images(count: int, size: int = 32) -> np.ndarray:
    """Images whose channels tell a pixel's row, its column, and nothing (random)."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images[..., 0] = 1 + np.arange(size)[:, None]
    images[..., 1] = 1 + np.arange(size)
    return images


def as_bytes(views: torch.Tensor) -> np.ndarray:
    """What served views [n, 3, h, w] were before normalisation: float [n, h, w, 3]."""
    return (views.double().permute(0, 2, 3, 1).numpy() * STD + MEAN) * 255


def drawn(views: torch.Tensor, padding: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [n, 2] of the crops and flips [n], read off views of `located_images`."""
    pixels = as_bytes(views).round().astype(int)
    middle = pixels.shape[1] // 2
    rows, columns = pixels[:, middle, middle, 0] - 1, pixels[:, middle, middle, 1] - 1
    flipped = pixels[:, middle, middle, 1] > pixels[:, middle, middle + 1, 1]
    across = np.where(flipped, pixels.shape[2] - 1 - middle, middle)
    return np.stack([rows - middle + padding, columns - across + padding], axis=1), flipped


def plain_view(image: np.ndarray, offset, flipped: bool, padding: int = 4) -> np.ndarray:
    """A view float64 [3, h, w] as SPEC 1 words it: pad, crop, flip, scale, normalise."""
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, 3))
    padded[padding : padding + height, padding : padding + width] = image
    view = padded[offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    if flipped:
        view = view[:, ::-1]
    return ((view / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_view_equals_pad_crop_flip_and_normalise_one_by_one(channels_last):
    images = located_images(60)
    index = torch.arange(60).flip(0)
    views = image_set(images, channels_last=channels_last).augmented(index, generator())
    offsets, flips = drawn(views)
    expected = [
        plain_view(images[i], *draw) for i, *draw in zip(index, offsets, flips, strict=True)
    ]
    assert views.dtype == torch.float32
    assert_close(views, torch.from_numpy(np.stack(expected)).float(), rtol=1e-5, atol=1e-5)


def test_padding_is_black_before_normalisation():
    view = image_set(np.full((200, 32, 32, 3), 255, np.uint8)).augmented(
        torch.arange(200), generator()
    )
    values = np.unique(as_bytes(view).round(4))
    assert_close(values, np.array([0.0, 255.0]), atol=1e-3, rtol=0)


def test_every_image_of_every_view_draws_its_own_crop_and_flip():
    images = image_set(located_images(1, 12))
    same = torch.zeros(400, dtype=torch.long)
    source = generator()
    (first, first_flips), (second, second_flips) = (
        drawn(images.augmented(same, source)) for _ in range(2)
    )
    assert len(np.unique(first, axis=0)) == 81
    # One of 81 crops is the same by chance, and half of the flips.
    assert (first == second).all(axis=1).mean() < 0.04
    assert 0.4 < (first_flips == second_flips).mean() < 0.6


def test_crops_are_uniform_over_81_places_and_half_are_flipped():
    n = 40_500
    offsets, flips = drawn(
        image_set(located_images(1, 12)).augmented(torch.zeros(n, dtype=torch.long), generator())
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
    digits = image_set(located_images(1, 8), Augmentation(padding=1, flip=False))
    offsets, flips = drawn(digits.augmented(index, generator()), padding=1)
    assert not flips.any()
    assert len(np.unique(offsets, axis=0)) == 9
    animals = image_set(located_images(1, 8), Augmentation(padding=0, flip=True))
    offsets, flips = drawn(animals.augmented(index, generator()), padding=0)
    assert not offsets.any()
    assert 0.4 < flips.mean() < 0.6


def test_plain_images_are_scaled_and_normalised_alone():
    images = located_images(5)
    index = torch.tensor([3, 1])
    for channels_last in (False, True):
        found = image_set(images, channels_last=channels_last).plain(index)
        expected = [plain_view(images[i], (4, 4), False) for i in index]
        assert_close(found, torch.from_numpy(np.stack(expected)).float(), rtol=1e-5, atol=1e-5)
        format_ = torch.channels_last if channels_last else torch.contiguous_format
        assert found.is_contiguous(memory_format=format_)


def batches_over(count: int, batch_size: int, shuffle: bool, views: int = 1, index=None):
    """Batches whose images are grey, as bright as their position in the set."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    images = image_set(images.repeat(3, 3), Augmentation(0, False))
    index = torch.arange(count) if index is None else index
    position = torch.arange(count)
    return Batches(
        images, index, (position, 10 * position), batch_size, views, shuffle, generator()
    )


def test_all_images_come_once_with_their_columns_and_the_last_batch_is_kept():
    batches = batches_over(23, 5, shuffle=True, views=2)
    served = list(batches)
    assert [len(batch[0]) for batch in served] == [5, 5, 5, 5, 3]
    assert len(batches) == 5
    assert len(batches.dataset) == 23
    view1, view2, position, column = (torch.cat(parts) for parts in zip(*served, strict=True))
    assert sorted(position.tolist()) == list(range(23))
    assert (column == 10 * position).all()
    for view in (view1, view2):
        assert (as_bytes(view)[:, 0, 0, 0].round() == position.numpy()).all()


def test_each_pass_shuffles_anew_and_the_same_seed_repeats_it():
    def orders(batches):
        return [torch.cat([batch[1] for batch in batches]).tolist() for _ in range(2)]

    first, second = orders(batches_over(50, 8, shuffle=True))
    assert first != second
    assert first != sorted(first)
    assert orders(batches_over(50, 8, shuffle=True)) == [first, second]
    assert orders(batches_over(50, 8, shuffle=False)) == [list(range(50))] * 2


def test_batches_serve_the_chosen_images_alone():
    chosen = torch.tensor([7, 3, 11])
    assert [b[1].tolist() for b in batches_over(23, 2, False, index=chosen)] == [[7, 3], [11]]
    nothing = batches_over(23, 2, True, index=chosen[:0])
    assert len(nothing) == 0
    assert list(nothing) == []
    assert [len(b[1]) for b in batches_over(3, 8, True)] == [3]


def noisy_loader(n: int = 20, batch_size: int = 4, log=None, wrong: int = 5) -> NoisyLoader:
    """`n` located images with clean labels i % 10, the first `wrong` of them given wrongly."""
    clean = np.arange(n) % 10
    given = np.where(np.arange(n) < wrong, (clean + 1) % 10, clean)
    test = located_images(7)
    data = ImageData(located_images(n), given, test, clean[:7], list("0123456789"), clean)
    return NoisyLoader(data, MEAN, STD, CIFAR, batch_size, 0, "cpu", False, log)


def test_loader_serves_the_four_modes():
    loader = noisy_loader()
    warm_up = list(loader.run("warmup"))
    assert [len(batch[0]) for batch in warm_up] == [8, 8, 4]
    labels, index = (torch.cat([batch[k] for batch in warm_up]) for k in (1, 2))
    assert (labels == loader.noisy_labels[index]).all()
    assert sorted(index.tolist()) == list(range(20))

    scored = list(loader.run("eval_train"))
    assert [len(batch[0]) for batch in scored] == [4] * 5
    assert torch.cat([batch[2] for batch in scored]).tolist() == list(range(20))
    plain = loader.train_images.plain(torch.arange(20))
    assert_close(torch.cat([batch[0] for batch in scored]), plain)

    tested = list(loader.run("test"))
    assert torch.cat([batch[1] for batch in tested]).tolist() == [0, 1, 2, 3, 4, 5, 6]

    chosen = np.arange(20) % 3 == 0
    probability = np.linspace(0, 1, 20)
    labelled, unlabelled = loader.run("train", chosen, probability)
    assert len(labelled.dataset) == 7
    assert len(unlabelled.dataset) == 13
    assert [len(batch) for batch in labelled] == [4, 4]
    assert [len(batch) for batch in unlabelled] == [2, 2, 2, 2]
    pairs = {
        (y.item(), round(w.item(), 4))
        for _, _, ys, ws in labelled
        for y, w in zip(ys, ws, strict=True)
    }
    given = loader.noisy_labels.tolist()
    assert pairs == {(given[i], round(probability[i], 4)) for i in range(0, 20, 3)}


def test_two_views_of_a_labelled_image_are_of_the_same_image():
    loader = noisy_loader()
    labelled, unlabelled = loader.run("train", np.arange(20) < 12, np.ones(20))
    for view1, view2, *_ in (*labelled, *unlabelled):
        for first, second in zip(as_bytes(view1), as_bytes(view2), strict=True):
            # The random channel's brightest values survive crop and flip in most places.
            common = np.intersect1d(first[8:24, 8:24, 2].round(), second[..., 2].round())
            assert len(common) > 100
        assert not torch.equal(view1, view2)


def test_truth_rides_along_only_where_asked():
    loader = noisy_loader()
    labelled, unlabelled = loader.run("train", np.arange(20) < 8, np.ones(20), with_truth=True)
    assert sorted(torch.cat([b[4] for b in labelled]).tolist()) == list(range(8))
    assert sorted(torch.cat([b[2] for b in unlabelled]).tolist()) == sorted([8, 9, *range(10)])


def test_wrong_calls_of_the_loader_say_what_was_expected():
    loader = noisy_loader()
    with pytest.raises(ValueError, match="expected 'warmup', 'train', 'eval_train' or 'test'"):
        loader.run("valid")
    with pytest.raises(ValueError, match="20 training images"):
        loader.run("train", np.ones(3, bool), np.ones(20))


def test_split_statistics_count_each_side_and_judge_the_probability():
    loader = noisy_loader(n=20, wrong=5)
    chosen = np.arange(20) >= 3  # two wrong ones get in
    probability = np.random.default_rng(0).random(20)
    found = loader.split_statistics(chosen, probability)
    assert found == {
        "labelled": 17,
        "unlabelled": 3,
        "labelled_share": 17 / 20,
        "labelled_clean": 15,
        "labelled_wrong": 2,
        "unlabelled_clean": 0,
        "unlabelled_wrong": 3,
        "auc": pytest.approx(roc_auc_score(np.arange(20) >= 5, probability)),
        "precision": 15 / 17,
        "recall": 1.0,
    }
    assert statistics_line(found | {"auc": 0.98765}) == (
        "Number of labelled samples:17   AUC:0.988   clean:15   wrong:2"
        "   Number of unlabelled samples:3   clean:0   wrong:3"
    )


def test_statistics_that_are_not_defined_are_absent():
    nobody = np.zeros(20, bool)
    assert "auc" not in noisy_loader(wrong=0).split_statistics(~nobody, np.ones(20))
    assert "precision" not in noisy_loader().split_statistics(nobody, np.ones(20))
    all_wrong = noisy_loader(wrong=20).split_statistics(~nobody, np.ones(20))
    assert "auc" not in all_wrong
    assert "recall" not in all_wrong


def test_statistics_line_without_known_truth_counts_alone():
    line = statistics_line({"labelled": 3, "unlabelled": 4})
    assert line == "Number of labelled samples:3   Number of unlabelled samples:4"

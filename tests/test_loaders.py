"""Batches, and the loader that holds a set in memory: what each mode serves (method 1, 3 and 5)."""

import hashlib
import io
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from smr import distributed
from smr.data.augment import Views
from smr.data.loader import Batches
from smr.data.memory_dataset import ImageData, MemoryLoader

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
PLAIN = Views(MEAN, STD)


def gray_images(count: int) -> np.ndarray:
    """uint8 [count, 8, 8, 3], each as bright as its position in the set, whatever its crop."""
    return np.arange(count, dtype=np.uint8).repeat(8 * 8 * 3).reshape(count, 8, 8, 3)


def shown(views: torch.Tensor) -> list[int]:
    """Positions of the gray images that are served, read off their middle, which no crop loses."""
    middle = views.permute(0, 2, 3, 1)[:, 4, 4].double().numpy()
    return ((middle * STD + MEAN) * 255).round().astype(int)[:, 0].tolist()


def batches_over(count: int, batch_size: int, shuffle: bool, views: int = 1, index=None):
    """Batches of gray images with two columns: the position in the set and its tenfold."""
    index = torch.arange(count) if index is None else index
    columns = torch.arange(count), 10 * torch.arange(count)
    images, labels = gray_images(count), np.zeros(count, int)
    loader = MemoryLoader(ImageData(images, labels, images, labels, ["a"]), PLAIN, 4, seed=0)
    images = loader.train_images
    return Batches(loader, images, index, columns, batch_size, views=views, shuffle=shuffle)


def normalized(images: np.ndarray) -> torch.Tensor:
    """These images as a loader serves them."""
    pixels = torch.from_numpy(images).float() / 255
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def test_all_images_come_once_with_their_columns_and_the_last_batch_is_kept():
    batches = batches_over(23, 5, shuffle=True, views=2)
    served = list(batches)
    assert [len(batch[0]) for batch in served] == [5, 5, 5, 5, 3]
    assert len(batches) == 5
    assert len(batches.dataset) == 23
    view1, view2, position, column = (torch.cat(parts) for parts in zip(*served, strict=True))
    assert sorted(position.tolist()) == list(range(23))
    assert (column == 10 * position).all()
    assert shown(view1) == shown(view2) == position.tolist()


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
    batches = list(batches_over(23, 2, False, index=chosen))
    assert [b[1].tolist() for b in batches] == [shown(b[0]) for b in batches] == [[7, 3], [11]]
    nothing = batches_over(23, 2, True, index=chosen[:0])
    assert len(nothing) == 0
    assert list(nothing) == []
    assert [len(b[1]) for b in batches_over(3, 8, True)] == [3]


def gray_loader(n: int = 20, wrong: int = 5, padding: int = 2, log=None, **changes) -> MemoryLoader:
    """`n` gray images with clean labels i % 10, the first `wrong` given the class after theirs; 7
    test images, brighter by 100, with labels 9, 8, …; B = 4."""
    clean = np.arange(n) % 10
    given = np.where(np.arange(n) < wrong, (clean + 1) % 10, clean)
    test = 9 - np.arange(7)
    content = {
        "train_images": gray_images(n),
        "train_labels": given,
        "test_images": 100 + gray_images(7),
        "test_labels": test,
        "class_names": list("abcdefghij"),
        "clean_labels": clean,
    }
    views = Views(MEAN, STD, padding=padding, flip=True)
    return MemoryLoader(ImageData(**content | changes), views, 4, seed=0, log=log)


def joined(batches) -> list[list]:
    """For each part of the batches (shown positions, then columns) its values, as lists."""
    parts = [torch.cat(part) for part in zip(*batches, strict=True)]
    return [shown(part) if part.dim() == 4 else part.tolist() for part in parts]


@pytest.mark.parametrize("mode", ["warmup", "recalibrate"])
def test_training_on_given_labels_has_all_images_augmented_in_double_batches(mode):
    loader = gray_loader()
    batches = list(loader.run(mode))
    assert [len(batch[0]) for batch in batches] == [8, 8, 4]
    positions, labels, index = joined(batches)
    assert positions == index != sorted(index) == list(range(20))
    assert labels == [loader.noisy_labels.tolist()[i] for i in index]
    corners = torch.cat([batch[0] for batch in batches])[:, :, 0, 0]
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    assert 0 < (corners - black).abs().lt(1e-6).all(dim=1).sum() < 20  # some crops reach outside


def test_scoring_has_all_images_in_order_with_their_given_labels_and_not_augmented():
    loader = gray_loader()
    batches = list(loader.run("eval_train"))
    assert joined(batches) == [list(range(20)), loader.noisy_labels.tolist(), list(range(20))]
    assert loader.noisy_labels.tolist()[:6] == [1, 2, 3, 4, 5, 5]
    assert_close(torch.cat([batch[0] for batch in batches]), normalized(gray_images(20)))


@pytest.mark.parametrize(
    ("side", "ranks", "sizes"),
    [
        (8, 1, [1000, 1000, 5]),
        (64, 1, [1000, 1000, 5]),
        (8, 3, [669, 669, 667]),
        (80, 1, [4] * 501 + [1]),
    ],
)
def test_scoring_and_testing_take_a_thousand_small_images_at_once_or_each_rank_s_share(
    monkeypatch, side, ranks, sizes
):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    small, labels = np.zeros((2005, side, side, 3), np.uint8), np.zeros(2005, int)
    loader = MemoryLoader(ImageData(small, labels, small, labels, ["a"]), PLAIN, 4, seed=0)
    for mode in ("eval_train", "whole", "test"):
        batches = loader.run(mode)
        assert [len(rows) for rows in batches.dataset.split(batches.batch_size)] == sizes


def test_a_test_set_without_images_has_no_batches():
    some, none, labels = gray_images(9), gray_images(0), np.zeros(9, int)
    loader = MemoryLoader(ImageData(some, labels, none, labels[:0], ["a"]), PLAIN, 4, seed=0)
    assert len(loader.run("test")) == 0 and list(loader.run("test")) == []


def test_testing_has_the_test_images_in_order_with_their_labels_and_not_augmented():
    loader = gray_loader()
    assert loader.test_sets == ("test",)
    batches = list(loader.run("test"))
    test = list(range(7))
    assert joined(batches) == [[100 + i for i in test], [9 - i for i in test], test]
    assert_close(torch.cat([batch[0] for batch in batches]), normalized(100 + gray_images(7)))


def split_of(loader: MemoryLoader, *arguments, **options) -> list[dict[int, tuple]]:
    """For the labeled and the unlabeled part: position → (views shown, columns …)."""
    parts = []
    for batches in loader.run("train", *arguments, **options):
        assert {len(batch[0]) for batch in batches} <= {4, len(batches.dataset) % 4}
        positions, *columns = joined(batches) if len(batches) else [[]]
        parts.append(dict(zip(positions, zip(*columns, strict=True), strict=True)))
        assert len(parts[-1]) == len(batches.dataset)
    return parts


def test_a_split_serves_each_side_its_images_labels_and_probabilities():
    loader = gray_loader()
    index = np.array([2, 3, 5, 8, 11, 13, 17])
    chosen = np.array([True, False, True, True, False, True, False])
    probability = np.array([0.9, 0.1, 0.8, 0.7, 0.2, 0.6, 0.3])
    labeled, unlabeled = split_of(loader, chosen, probability, index, with_true_labels=True)
    assert labeled == {
        2: (2, 3, pytest.approx(0.9), 2),  # the first five are given the class after theirs
        5: (5, 5, pytest.approx(0.8), 5),
        8: (8, 8, pytest.approx(0.7), 8),
        13: (13, 3, pytest.approx(0.6), 3),
    }
    assert unlabeled == {3: (3, 3), 11: (11, 1), 17: (17, 7)}
    # Of all images, without true labels.
    given, probability = loader.noisy_labels.tolist(), np.linspace(0, 1, 20)
    labeled, unlabeled = split_of(loader, np.arange(20) % 3 == 0, probability)
    assert labeled == {i: (i, given[i], pytest.approx(probability[i])) for i in range(0, 20, 3)}
    assert unlabeled == {i: (i,) for i in range(20) if i % 3}


@pytest.mark.parametrize(
    ("known", "labeled", "unlabeled"),
    [
        ({}, "3   AUC:0.833   clean:2   wrong:1", "2   clean:1   wrong:1"),
        ({"clean_labels": None}, "3", "2"),
    ],
)
def test_a_split_s_line_goes_to_the_log_and_counts_the_sample_alone(known, labeled, unlabeled):
    chosen, index = np.array([True, True, True, False, False]), np.array([3, 9, 12, 1, 15])
    loader = gray_loader(log=io.StringIO(), **known)
    loader.run("train", chosen, np.array([0.7, 0.9, 0.8, 0.1, 0.2]), index)
    line = f"Number of labeled samples:{labeled}   Number of unlabeled samples:{unlabeled}\n"
    assert loader.log.getvalue() == line


def test_a_loader_describes_its_dataset_and_knows_which_given_labels_are_correct():
    loader = gray_loader(notes=["a note"], files=["a.png"] * 20)
    noisy = json.dumps(loader.noisy_labels.tolist()).encode()
    expected = {
        "noise_rate": 0.25,
        "noise_sha256": hashlib.sha256(noisy).hexdigest(),
        "mean": MEAN,
        "train_images": 20,
        "test_images": 7,
        "image_size": [8, 8],
        "class_names": list("abcdefghij"),
        "data_notes": ["a note"],
    }
    info = asdict(loader.info)
    assert {name: info[name] for name in expected} == expected
    assert json.loads(json.dumps(info)) == info | {"mean": [*MEAN], "std": [*STD]}
    assert (loader.files, loader.class_names) == (["a.png"] * 20, list("abcdefghij"))
    assert loader.is_clean.tolist() == [False] * 5 + [True] * 15
    unknown = gray_loader(clean_labels=None)
    assert unknown.is_clean is unknown.clean_labels is unknown.info.noise_rate is None


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'valid': expected 'warmup', 'recalibrate', 'eval_train'"):
        gray_loader().run("valid")

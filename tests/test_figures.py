"""The pictures of a run, by their pixels."""

import numpy as np
import pytest
import torch
from helpers import tiny_recipe

import smr
from smr.gmm_split import SampleLosses
from smr.logging import figures as pictures


def split_of(losses) -> smr.Split:
    losses = torch.as_tensor(losses)
    return smr.gmm_split([SampleLosses(torch.arange(len(losses)), losses)], tiny_recipe())


def color_count(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture == np.array(color)).all(axis=2).sum())


def test_mixture_densities_integrate_to_one_and_the_clean_component_comes_first():
    losses = np.concatenate([np.random.normal(0.2, 0.04, 600), np.random.normal(0.7, 0.05, 400)])
    points = np.linspace(-1, 2, 3001)
    densities = pictures.mixture_densities(split_of(losses).mixture, points)
    areas = densities.sum(axis=1) * (points[1] - points[0])
    assert areas == pytest.approx([0.6, 0.4], abs=0.02)
    assert points[densities.argmax(axis=1)] == pytest.approx([0.2, 0.7], abs=0.15)


def test_loss_histogram_shows_right_and_wrong_labels_by_their_share():
    losses = np.concatenate([np.full(300, 0.1), np.full(100, 0.8), [0.0, 1.0]])
    is_clean = losses < 0.5
    split = split_of(losses)
    apart = pictures.loss_histogram(split, is_clean, "")
    together = pictures.loss_histogram(split, None, "")
    assert apart.dtype == np.uint8 and apart.shape == together.shape
    below_legend, low, high = slice(180, 360), slice(60, 340), slice(510, 525)  # 0 to 0.5; 0.8
    assert color_count(apart[below_legend, high], pictures.RED) > 100
    assert color_count(apart[below_legend, low], pictures.RED) == 0
    assert color_count(apart[below_legend, low], pictures.BLUE) > 100
    assert color_count(together, pictures.RED) == 0


def test_loss_histogram_of_equal_losses_has_no_mixture_to_draw():
    split = split_of(np.full(50, 0.3))
    picture = pictures.loss_histogram(split, None, "")
    assert split.mixture is None and color_count(picture, pictures.DARK_RED) == 0


def test_matrix_is_darker_where_more_of_a_row_lies():
    counts = np.array([[60, 30, 10], [0, 5, 0], [0, 0, 0]])
    picture = pictures.matrix(counts, ["a", "b", "c"], "", "", "")
    faint = tuple(int(255 + 0.3**0.5 * (c - 255)) for c in pictures.DARK_BLUE)
    full_cell, faint_cell = (
        np.argwhere((picture == color).all(axis=2)) for color in (pictures.DARK_BLUE, faint)
    )
    assert len(full_cell) > 1000 and len(faint_cell) > 1000
    below, beside = full_cell.mean(axis=0) - faint_cell.mean(axis=0)
    assert below == pytest.approx(46, abs=2) and beside == pytest.approx(0, abs=2)


@pytest.mark.parametrize("classes", [10, 100])
def test_matrix_of_a_class_without_images_and_of_many_classes_is_drawn(classes):
    picture = pictures.matrix(np.zeros((classes, classes), int), ["name"] * classes, "", "", "")
    assert picture.shape[0] > classes * 12


def test_the_true_noise_where_it_is_known_stands_below_the_noise_found():
    given, predicted = np.array([0, 1, 1]), np.array([0, 0, 1])
    found = pictures.transitions(given, predicted, None, ["a", "b"])
    both = pictures.transitions(given, predicted, predicted, ["a", "b"])
    below = pictures.transitions(predicted, predicted, None, ["a", "b"])
    np.testing.assert_array_equal(both[: len(found), : found.shape[1]], found)
    assert len(both) == 2 * len(found) + 24
    cells = np.s_[60:, :80]  # below the title
    assert (both[len(found) + 24 :][cells] != found[cells]).any()
    assert len(below) == len(found)


def test_noise_found_has_predicted_classes_as_rows_and_given_labels_as_columns():
    given, predicted, names = np.array([1, 1, 1, 0]), np.zeros(4, int), ["a", "b"]
    expected = pictures.matrix(
        np.array([[1, 3], [0, 0]]),
        names,
        "Noise found, % of each predicted class",
        "predicted",
        "given",
        as_percent=True,
    )
    found = pictures.transitions(given, predicted, None, names)
    np.testing.assert_array_equal(found, expected)


def test_suspects_of_fewer_images_than_a_row_are_drawn_in_their_colors():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[1] = (0, 200, 0)
    labels = np.array([0, 1, 0])
    picture = pictures.suspects(
        images, ["x.png"] * 3, labels, labels, ["a" * 40, "b"], columns=8, side=128
    )
    assert color_count(picture, (0, 200, 0)) == 128 * 128


def words_of(monkeypatch, draw) -> list[tuple[str, tuple]]:
    """The words that a picture's pen writes, with their colors."""
    written, blank = [], pictures.blank

    def noting(width, height):
        picture, pen = blank(width, height)
        text = pen.text
        pen.text = lambda place, words, color, *rest, **more: (
            written.append((words, color)),
            text(place, words, color, *rest, **more),
        )
        return picture, pen

    monkeypatch.setattr(pictures, "blank", noting)
    draw()
    return written


def test_suspects_captions_are_rank_and_file_then_the_given_class_then_the_one_seen(monkeypatch):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    given, seen = np.array([0, 1]), np.array([2, 0])
    files, names = ["first.png", "a very long name of a photo.jpeg"], ["cat", "dog", "owl"]
    written = words_of(
        monkeypatch, lambda: pictures.suspects(images, files, given, seen, names, 2, 64)
    )
    assert [words for words, _ in written] == [
        *("1  first.png", "given cat", "seen owl"),
        *("2  " + pictures.shortened(files[1]), "given dog", "seen cat"),
    ]
    assert written[1][1] == pictures.DARK_RED and written[2][1] == pictures.DARK_BLUE


def test_histogram_stacks_wrong_labels_upon_right_ones():
    """Where both lie in a bin, its bar is as high as both together, the right ones below."""
    losses = np.concatenate([np.full(100, 0.51), np.full(100, 0.51), [0.0, 1.0]])
    is_clean = np.concatenate([np.ones(100, bool), np.zeros(100, bool), [True, False]])
    picture = pictures.loss_histogram(split_of(losses), is_clean, "")
    bar = picture[45:360, slice(349, 357)]  # the bin from 0.50 to 0.52
    red, blue = (
        np.flatnonzero((bar == np.array(color)).all(axis=2).sum(axis=1) > 2)
        for color in (pictures.RED, pictures.BLUE)
    )
    assert red.max() < blue.min()
    assert len(red) == pytest.approx(len(blue), abs=12)
    assert len(red) + len(blue) > 280

"""The figures of a run, by their pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch

import smr
from smr.gmm_split import SampleLosses
from smr.logging import figures


def split_of(losses) -> smr.Split:
    losses = torch.as_tensor(losses)
    return smr.gmm_split([SampleLosses(torch.arange(len(losses)), losses)], r=0.5, seed=1)


def color_count(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture == np.array(color)).all(axis=2).sum())


def test_gmm_densities_integrate_to_one_and_the_clean_component_comes_first():
    losses = np.concatenate([np.random.normal(0.2, 0.04, 600), np.random.normal(0.7, 0.05, 400)])
    points = np.linspace(-1, 2, 3001)
    densities = figures.gmm_densities(split_of(losses).gmm, points)
    areas = densities.sum(axis=1) * (points[1] - points[0])
    assert areas == pytest.approx([0.6, 0.4], abs=0.02)
    assert points[densities.argmax(axis=1)] == pytest.approx([0.2, 0.7], abs=0.15)


def test_loss_histogram_shows_clean_and_noisy_labels_by_their_share():
    losses = np.concatenate([np.full(300, 0.1), np.full(100, 0.8), [0.0, 1.0]])
    is_clean = losses < 0.5
    split = split_of(losses)
    apart = figures.loss_histogram(split, is_clean, "")
    together = figures.loss_histogram(split, None, "")
    assert apart.dtype == np.uint8 and apart.shape == together.shape
    below_legend, low, high = slice(180, 360), slice(60, 340), slice(510, 525)  # 0 to 0.5; 0.8
    assert color_count(apart[below_legend, high], figures.RED) > 100
    assert color_count(apart[below_legend, low], figures.RED) == 0
    assert color_count(apart[below_legend, low], figures.BLUE) > 100
    assert color_count(together, figures.RED) == 0
    equal = split_of(np.full(50, 0.3))  # no GMM to draw
    picture = figures.loss_histogram(equal, None, "")
    assert equal.gmm is None and color_count(picture, figures.DARK_RED) == 0


def test_matrix_is_darker_where_more_of_a_row_lies():
    counts = np.array([[60, 30, 10], [0, 5, 0], [0, 0, 0]])
    picture = figures.matrix(counts, ["a", "b", "c"], "", "", "")
    faint = tuple(int(255 + 0.3**0.5 * (c - 255)) for c in figures.DARK_BLUE)
    full_cell, faint_cell = (
        np.argwhere((picture == color).all(axis=2)) for color in (figures.DARK_BLUE, faint)
    )
    assert len(full_cell) > 1000 and len(faint_cell) > 1000
    below, beside = full_cell.mean(axis=0) - faint_cell.mean(axis=0)
    assert below == pytest.approx(46, abs=2) and beside == pytest.approx(0, abs=2)


@pytest.mark.parametrize("classes", [10, 100])
def test_matrix_of_a_class_without_images_and_of_many_classes_is_drawn(classes):
    picture = figures.matrix(np.zeros((classes, classes), int), ["name"] * classes, "", "", "")
    assert picture.shape[0] > classes * 12


def test_transitions_have_predicted_rows_and_given_columns_above_the_true_ones_if_known():
    given, predicted, names = np.array([1, 1, 1, 0]), np.zeros(4, int), ["a", "b"]
    title, counts = "Estimated label noise, % of each predicted class", np.array([[1, 3], [0, 0]])
    expected = figures.matrix(counts, names, title, "predicted", "given", as_percent=True)
    alone = figures.noise_transitions(given, predicted, None, names)
    np.testing.assert_array_equal(alone, expected)
    both = figures.noise_transitions(given, predicted, given, names)
    np.testing.assert_array_equal(both[: len(alone), : alone.shape[1]], alone)
    assert len(both) == 2 * len(alone) + 24
    cells = np.s_[60:, :80]  # below the title
    assert (both[len(alone) + 24 :][cells] != alone[cells]).any()


def test_label_issues_of_fewer_images_than_a_row_are_drawn_in_their_colors():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[1] = (0, 200, 0)
    labels = np.array([0, 1, 0])
    names = ["a" * 40, "b"]
    picture = figures.label_issues(images, ["x.png"] * 3, labels, labels, names, 8, 128)
    assert color_count(picture, (0, 200, 0)) == 128 * 128


class Pen:
    """Notes what is written, with its color and the font's size."""

    def __init__(self):
        self.texts = []

    def text(self, place, text, color, font, anchor):
        self.texts.append((text, color, font))


def test_letters_are_of_a_font_that_has_them_if_the_system_has_one():
    own, *system = figures.fonts()
    assert figures.font_for("cat…", 20).getname() == own.getname()
    assert figures.lacks(own, "ä") and not figures.lacks(own, "a")
    if not system:
        assert not list(Path("/usr/share/fonts").rglob("DejaVuSans.ttf"))
        pytest.skip("this system has none of the fonts")
    for text in ("Käse", "кошка"):
        font = figures.font_for(text, 20)
        assert font.size == 20
        assert not any(figures.lacks(font, letter) for letter in text)


def test_a_letter_that_no_font_has_and_broken_file_names_are_drawn():
    pen = Pen()
    figures.write(pen, (0, 0), "a\udce4\nb", 16)
    assert pen.texts[0][0] == "a? b"
    assert figures.text_width("\U0010fffd", 16) > 0


def test_a_name_that_is_too_wide_keeps_its_beginning_and_its_end():
    assert figures.cut("cat.jpg", 16, 200) == "cat.jpg"
    name = "IMG_20240101_" + "x" * 60 + "_0042.jpg"
    short = figures.cut(name, 16, 200)
    assert short.startswith("IMG_2024") and short.endswith("_0042.jpg") and "…" in short
    assert 180 < figures.text_width(short, 16) <= 200
    assert figures.cut(name, 16, 0) == "…"


def test_a_matrix_of_long_class_names_is_hardly_wider_than_one_of_short_ones():
    counts = np.eye(10, dtype=int)
    short, long = (figures.matrix(counts, [n] * 10, "", "", "") for n in ("cat", "c" * 200))
    assert long.shape[1] - short.shape[1] < 200


def test_captions_are_rank_and_file_then_given_and_predicted_class_in_letters_large_enough():
    """A caption's ink is within its image's width, and as high as that of a short one's."""
    images, index = np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1])
    names, files = ["cat", "a very long name of a class " * 5], ["first.png", "second.png"]
    picture = figures.label_issues(images, files, index, index, names, columns=2, side=128)
    below = picture[12 + 128 : -12]
    for color in (figures.DARK_RED, figures.DARK_BLUE):
        rows, columns = np.nonzero((np.abs(below.astype(int) - color).max(axis=2)) < 60)
        first, second = columns < 12 + 128 + 6, columns > 12 + 128 + 6
        assert first.any() and columns.max() < 12 + 128 + 12 + 128 + 2
        assert np.ptp(rows[second]) > 0.6 * np.ptp(rows[first])


def test_histogram_stacks_noisy_labels_on_clean_ones():
    """Where both lie in a bin, its bar is as high as both together, the clean ones below."""
    losses = np.concatenate([np.full(100, 0.51), np.full(100, 0.51), [0.0, 1.0]])
    is_clean = np.concatenate([np.ones(100, bool), np.zeros(100, bool), [True, False]])
    picture = figures.loss_histogram(split_of(losses), is_clean, "")
    bar = picture[45:360, slice(349, 357)]  # the bin from 0.50 to 0.52
    red, blue = (
        np.flatnonzero((bar == np.array(color)).all(axis=2).sum(axis=1) > 2)
        for color in (figures.RED, figures.BLUE)
    )
    assert red.max() < blue.min()
    assert len(red) == pytest.approx(len(blue), abs=12)
    assert len(red) + len(blue) > 280

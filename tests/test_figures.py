"""The figures of a run, by their pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFont

import smr
from smr.gmm_split import SampleLosses
from smr.logging import figures


def split_of(losses) -> smr.Split:
    losses = torch.as_tensor(losses)
    return smr.gmm_split([SampleLosses(torch.arange(len(losses)), losses)], r=0.5, seed=1)


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.array(color)).all(axis=2)


def test_gmm_densities_integrate_to_one_and_the_clean_component_comes_first():
    losses = np.concatenate([np.random.normal(0.2, 0.04, 600), np.random.normal(0.7, 0.05, 400)])
    points = np.linspace(-1, 2, 3001)
    densities = figures.gmm_densities(split_of(losses).gmm, points)
    areas = densities.sum(axis=1) * (points[1] - points[0])
    assert areas == pytest.approx([0.6, 0.4], abs=0.02)
    assert points[densities.argmax(axis=1)] == pytest.approx([0.2, 0.7], abs=0.15)


def test_loss_histogram_stacks_noisy_labels_on_clean_ones_by_their_share():
    losses = np.concatenate([np.full(300, 0.1), np.full(200, 0.81), [0.0, 1.0]])
    is_clean = np.arange(502) < 400
    apart, together = (
        figures.loss_histogram(split_of(losses), truth, "")[80:360] for truth in (is_clean, None)
    )
    assert apart.dtype == np.uint8 and apart.shape == together.shape == (280, 640, 3)
    low, high = (apart[:, slice(int(640 * x), int(640 * x) + 8)] for x in (0.102, 0.802))
    assert not has_color(low, figures.RED).any() and has_color(low, figures.BLUE)[:, 0].sum() > 250
    red, blue = (has_color(high, color)[:, 0] for color in (figures.RED, figures.BLUE))
    assert np.flatnonzero(red).max() < np.flatnonzero(blue).min()
    assert [red.sum(), blue.sum()] == pytest.approx([280 / 3] * 2, abs=12)
    assert not has_color(together, figures.RED).any()
    equal = split_of(np.full(50, 0.3))  # no GMM to draw
    picture = figures.loss_histogram(equal, None, "")
    assert equal.gmm is None and not has_color(picture, figures.DARK_RED).any()


def test_matrix_is_darker_where_more_of_a_row_lies():
    counts = np.array([[60, 30, 10], [0, 5, 0], [0, 0, 0]])
    picture = figures.matrix(counts, ["a", "b", "c"], "", "", "")
    faint = tuple(int(255 + 0.3**0.5 * (c - 255)) for c in figures.DARK_BLUE)
    full_cell, faint_cell = (
        np.argwhere(has_color(picture, color)) for color in (figures.DARK_BLUE, faint)
    )
    assert len(full_cell) > 1000 and len(faint_cell) > 1000
    below, beside = full_cell.mean(axis=0) - faint_cell.mean(axis=0)
    assert below == pytest.approx(46, abs=2) and beside == pytest.approx(0, abs=2)


def test_matrix_of_many_classes_and_of_long_names_or_letters_that_no_font_has_is_drawn():
    many = figures.matrix(np.zeros((100, 100), int), ["name"] * 100, "", "", "")
    assert many.shape[0] > 100 * 12
    names = "c" * 99, "\U0010fffd\udce4\nb"
    long, short = (figures.matrix(np.eye(3), [name] * 3, "", "", "") for name in names)
    assert long.shape[1] - short.shape[1] < 200


def test_transitions_have_predicted_rows_and_given_columns_above_the_true_ones_if_known():
    given, predicted, names = np.array([1, 1, 1, 0]), np.zeros(4, int), ["a", "b"]
    title, counts = "Estimated label noise, % of each predicted class", np.array([[1, 3], [0, 0]])
    expected = figures.matrix(counts, names, title, "predicted", "given")
    alone = figures.noise_transitions(given, predicted, None, names)
    np.testing.assert_array_equal(alone, expected)
    both = figures.noise_transitions(given, predicted, given, names)
    title = "True label noise, % of each true class"
    true = figures.matrix(np.diag([1, 3]), names, title, "true", "given")
    np.testing.assert_array_equal(both, np.vstack([alone, true]))


def test_captions_are_rank_and_file_then_given_and_predicted_class_cut_to_the_image():
    images, index = np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1])
    images[1] = (0, 200, 0)
    names, files = ["cat", "a very long name of a class " * 5], ["1.png", "2.png", "3.png"]
    picture = figures.label_issues(images, files, index, index, names, columns=2, side=128)
    assert has_color(picture, (0, 200, 0)).sum() == 128 * 128
    below = picture[12 + 128 : 12 + 128 + 64]
    for color in (figures.DARK_RED, figures.DARK_BLUE):
        _, columns = np.nonzero((np.abs(below.astype(int) - color).max(axis=2)) < 60)
        assert columns.min() < 12 + 128 < columns.max() < 12 + 128 + 12 + 128 + 2


def test_letters_are_of_a_font_that_has_them_if_the_system_has_one():
    font = figures.font_of(20)
    if font.getname() == ImageFont.load_default(20).getname():
        assert not list(Path("/usr/share/fonts").rglob("DejaVuSans.ttf"))
        pytest.skip("this system has none of the fonts")
    missing = bytes(font.getmask("\uffff"))
    assert font.size == 20 and all(bytes(font.getmask(letter)) != missing for letter in "aäш…")


def test_a_name_that_is_too_wide_keeps_its_beginning_and_its_end():
    assert figures.cut("cat.jpg", 16, 200) == "cat.jpg"
    assert figures.cut("a\udce4\nb", 16, 200) == "a? b"
    name = "IMG_20240101_" + "x" * 60 + "_0042.jpg"
    short = figures.cut(name, 16, 200)
    assert short.startswith("IMG_2024") and short.endswith("_0042.jpg") and "…" in short
    assert 180 < figures.font_of(16).getlength(short) <= 200
    assert figures.cut(name, 16, 0) == "…"

"""From per-sample losses to a split, and its statistics (method 4)."""

import warnings

import numpy as np
import pytest
import torch
from helpers import generator
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import precision_score, recall_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from torch.testing import assert_close

from smr.gmm_split import (
    SampleLosses,
    clean_probability,
    fit_gmm,
    gmm_split,
    losses_for_gmm,
    min_max_scale,
    split_statistics,
    with_losses,
)
from smr.metrics import statistics_line


def losses_of(losses: torch.Tensor, index=None) -> SampleLosses:
    """SampleLosses of these images, by default of all."""
    return SampleLosses(torch.arange(len(losses)) if index is None else torch.tensor(index), losses)


def history_of(*passes: torch.Tensor, r: float = 0.5) -> list[SampleLosses]:
    """The history after epochs with these losses of all images."""
    history: list[SampleLosses] = []
    for losses in passes:
        history = with_losses(history, losses_of(losses), r)
    return history


def test_losses_are_scaled_to_the_unit_range():
    assert_close(min_max_scale(torch.tensor([2.0, 6.0, 3.0])), torch.tensor([0, 1, 0.25]))
    assert min_max_scale(torch.tensor([0.7, 0.7])).tolist() == [0, 0]
    assert_close(min_max_scale(torch.tensor([0.2, 0.7])), torch.tensor([0.0, 1.0]))


def two_groups(n: int = 200) -> torch.Tensor:
    """Losses, the first half low, the second high."""
    noise = torch.rand(n, generator=generator())
    return noise + 8 * (torch.arange(n) >= n // 2)


def test_low_losses_are_labeled_whichever_component_comes_first():
    for seed in range(6):
        split = gmm_split(history_of(two_groups()), r=0.5, seed=seed)
        assert split.labeled.tolist() == [True] * 100 + [False] * 100
        assert split.clean_probability[:100].min() > 0.99
        assert split.losses.dtype == split.clean_probability.dtype == np.float64
        mirrored = gmm_split(history_of(-two_groups()), r=0.5, seed=seed)
        assert mirrored.labeled.tolist() == [False] * 100 + [True] * 100


def test_the_gmm_is_scikit_learn_s_with_the_published_settings_without_its_warning():
    source = np.random.default_rng(0)
    low = source.random(1000) < 0.4
    losses = np.where(low, np.abs(source.normal(0, 0.03, 1000)), source.random(1000))
    settings = {"n_components": 2, "max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}
    gmm = GaussianMixture(**settings, random_state=7)
    with pytest.warns(ConvergenceWarning):  # ten iterations are too few
        gmm.fit(losses[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_gmm(losses, seed=7)
    assert {name: found.get_params()[name] for name in settings} == settings
    assert_close(found.means_, gmm.means_)
    expected = gmm.predict_proba(losses[:, None])[:, gmm.means_.argmin()]
    assert_close(clean_probability(losses, found), expected)


def test_only_probabilities_above_the_threshold_are_labeled():
    history = history_of(torch.rand(300, generator=generator()))
    probability = gmm_split(history, r=0.5, seed=1).clean_probability
    seen = []
    for threshold in (0.0, 0.3, 0.9, 1.0, float(probability[7])):
        split = gmm_split(history, r=0.5, seed=1, p_threshold=threshold)
        assert split.labeled.tolist() == (split.clean_probability > threshold).tolist()
        seen.append(split.labeled.sum())
    assert len({*seen}) == 5
    assert not split.labeled[7]  # a probability that is the threshold is not above it


def test_equal_losses_have_no_gmm_and_a_probability_of_one_half():
    split = gmm_split(history_of(torch.full((9,), 3.0)), r=0.5, seed=1)
    assert split.gmm is None
    assert split.losses.tolist() == [0] * 9
    assert split.clean_probability.tolist() == [0.5] * 9
    assert not split.labeled.any()


def test_a_split_of_a_sample_holds_the_sample_s_positions():
    index = list(range(0, 600, 3))
    split = gmm_split([losses_of(min_max_scale(two_groups()), index)], r=0.5, seed=1)
    assert split.index.tolist() == index
    assert split.index.dtype == np.int64
    assert split.labeled.tolist() == [True] * 100 + [False] * 100
    whole = gmm_split(history_of(two_groups()), r=0.5, seed=1)
    assert_close(split.clean_probability, whole.clean_probability)


def random_losses(count: int, n: int = 60) -> list[torch.Tensor]:
    source = generator()
    return [torch.rand(n, generator=source) for _ in range(count)]


def test_at_r_090_the_scaled_losses_of_the_last_five_epochs_are_averaged():
    drawn = random_losses(7)
    history = history_of(*drawn, r=0.9)
    assert len(history) == 5
    expected = torch.stack([min_max_scale(losses) for losses in drawn[2:]]).mean(dim=0)
    assert_close(losses_for_gmm(history, 0.9), expected)
    assert_close(torch.tensor(gmm_split(history, r=0.9, seed=1).losses).float(), expected)
    for r in (0.5, 0.8, 0.91):  # at another r, the latest epoch's alone
        (latest,) = history_of(*drawn, r=r)
        assert_close(latest.losses, min_max_scale(drawn[6]))
        assert_close(losses_for_gmm(history, r), latest.losses)
    assert_close(losses_for_gmm(history[-1:], 0.9), min_max_scale(drawn[6]))
    three = torch.stack([min_max_scale(losses) for losses in drawn[:3]]).mean(dim=0)
    assert_close(losses_for_gmm(history_of(*drawn[:3], r=0.9), 0.9), three)


def test_at_r_090_only_epochs_that_scored_the_same_images_are_averaged():
    one, other = list(range(60)), list(range(1, 61))
    drawn = random_losses(4)
    history: list[SampleLosses] = []
    for losses, index in zip(drawn, (one, other, one, other), strict=True):
        history = with_losses(history, losses_of(losses, index), 0.9)
    expected = (min_max_scale(drawn[1]) + min_max_scale(drawn[3])) / 2
    assert_close(losses_for_gmm(history, 0.9), expected)
    split = gmm_split(history, r=0.9, seed=1)
    assert split.index.tolist() == other
    history = with_losses(history, losses_of(drawn[0][:50], one[:50]), 0.9)  # of another length
    assert_close(losses_for_gmm(history, 0.9), min_max_scale(drawn[0][:50]))


def test_statistics_are_counts_auc_precision_and_recall():
    is_clean, labeled = np.arange(20) >= 5, np.arange(20) >= 3  # two wrong ones get in
    labeled[19] = False
    probability = np.random.default_rng(0).random(20)
    found = split_statistics(labeled, probability, is_clean)
    assert found == {
        "labeled": 16,
        "unlabeled": 4,
        "labeled_fraction": 16 / 20,
        "labeled_clean": 14,
        "labeled_noisy": 2,
        "unlabeled_clean": 1,
        "unlabeled_noisy": 3,
        "auc": pytest.approx(roc_auc_score(is_clean, probability)),
        "precision": precision_score(is_clean, labeled),
        "recall": recall_score(is_clean, labeled),
    }
    assert found["precision"] == 14 / 16
    assert found["recall"] == 14 / 15
    assert statistics_line(found | {"auc": 0.98765}) == (
        "Number of labeled samples:16   AUC:0.988   clean:14   wrong:2"
        "   Number of unlabeled samples:4   clean:1   wrong:3"
    )


def test_statistics_that_are_not_defined_are_absent():
    everybody, first = np.ones(20, bool), np.arange(20) < 1
    for labeled, is_clean, expected in (
        (everybody, everybody, {"precision": 1, "recall": 1}),
        (~everybody, ~first, {"auc": 0.5, "recall": 0}),
        (everybody, ~everybody, {"precision": 0}),
        (everybody, first, {"auc": 0.5, "precision": 1 / 20, "recall": 1}),
        (first, ~first, {"auc": 0.5, "precision": 0, "recall": 0}),
    ):
        found = split_statistics(labeled, np.ones(20), is_clean)
        names = {"auc", "precision", "recall"} & found.keys()
        assert {name: found[name] for name in names} == expected
    assert statistics_line(split_statistics(everybody, np.ones(20), everybody)) == (
        "Number of labeled samples:20   clean:20   wrong:0"
        "   Number of unlabeled samples:0   clean:0   wrong:0"
    )


def test_if_the_true_labels_are_unknown_a_split_has_counts_alone():
    found = split_statistics(np.arange(7) < 3, np.ones(7), None)
    assert found == {"labeled": 3, "unlabeled": 4, "labeled_fraction": 3 / 7}
    line = statistics_line(found)
    assert line == "Number of labeled samples:3   Number of unlabeled samples:4"

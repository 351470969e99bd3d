"""From the losses of a scoring pass to its mixture, and to a labeled and an unlabeled part."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from smr.recipe import Recipe

# Epochs whose scaled losses are averaged where the noise is heaviest (method 4).
HISTORY_LENGTH = 5
HISTORY_R = 0.9


@dataclass(frozen=True)
class SampleLosses:
    """What one network made of the images that it scored, maybe a sample of the whole set.

    index int64 [m]: their positions in the whole set, ascending; losses float32 [m]: CE against
    the given labels, raw from a scoring pass, scaled to [0, 1] in a history.
    """

    index: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Split:
    """One network's view of the images that it scored: arrays [m]."""

    index: np.ndarray  # int64, positions in the whole set, ascending
    losses: np.ndarray  # float64, scaled to [0, 1]
    probability: np.ndarray  # float64, of the given label being right
    labeled: np.ndarray  # bool
    mixture: GaussianMixture | None  # fitted to the losses; None where they are all equal


def min_max_scale(losses: Tensor) -> Tensor:
    """Losses scaled to [0, 1]; all 0 where they are equal (method 4)."""
    spread = losses.max() - losses.min()
    return (losses - losses.min()) / torch.where(spread > 0, spread, torch.ones_like(spread))


def append_losses(history: list[SampleLosses], scores: SampleLosses, r: float) -> None:
    """Append a pass's raw losses to a network's history, scaled, and forget those out of use."""
    history.append(SampleLosses(scores.index, min_max_scale(scores.losses)))
    del history[: -HISTORY_LENGTH if r == HISTORY_R else -1]


def losses_for_gmm(history: list[SampleLosses], r: float) -> Tensor:
    """What the mixture is fitted to: the newest losses, or at r = 0.9 the mean of five passes.

    The mean is over the passes that scored the newest one's images (method 4).
    """
    newest = history[-1]
    if r != HISTORY_R:
        return newest.losses
    same = [scores.losses for scores in history if torch.equal(scores.index, newest.index)]
    return torch.stack(same).mean(dim=0)


def fit_gmm(losses: np.ndarray, seed: int) -> GaussianMixture | None:
    """The two-component mixture over scaled losses [m] (method 4); None where they are equal."""
    if losses.max() == losses.min():
        return None
    mixture = GaussianMixture(
        n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are the method's
        return mixture.fit(losses.reshape(-1, 1))


def clean_probability(losses: np.ndarray, mixture: GaussianMixture | None) -> np.ndarray:
    """Posterior [m] of the mixture's component with the smaller mean (method 4).

    Equal losses, which have no mixture, tell nothing: each gets 0.5.
    """
    if mixture is None:
        return np.full(len(losses), 0.5)
    return mixture.predict_proba(losses.reshape(-1, 1))[:, mixture.means_.argmin()]


def gmm_split(history: list[SampleLosses], recipe: Recipe) -> Split:
    """The split by a network's history of scaled losses (method 4)."""
    # In float64: the mixture's EM loses four digits in float32.
    losses = losses_for_gmm(history, recipe.r).cpu().numpy().astype(np.float64)
    mixture = fit_gmm(losses, recipe.seed)
    probability = clean_probability(losses, mixture)
    index = history[-1].index.cpu().numpy()
    return Split(index, losses, probability, probability > recipe.p_threshold, mixture)


def split_statistics(
    labeled: np.ndarray, probability: np.ndarray, is_clean: np.ndarray | None
) -> dict[str, float]:
    """Counts of a split and, where it is known which labels are right, how good the split is.

    Args: bool, float and bool [m]; is_clean is None where nobody knows. AUC, precision and recall
    are absent where they are not defined.
    """
    chosen = int(labeled.sum())
    figures = {
        "labeled": chosen,
        "unlabeled": len(labeled) - chosen,
        "labeled_fraction": chosen / len(labeled),
    }
    if is_clean is None:
        return figures
    right = int((labeled & is_clean).sum())
    figures |= {
        "labeled_clean": right,
        "labeled_noisy": chosen - right,
        "unlabeled_clean": int(is_clean.sum()) - right,
        "unlabeled_noisy": int((~is_clean).sum()) - (chosen - right),
    }
    if 0 < is_clean.sum() < len(is_clean):
        figures["auc"] = float(roc_auc_score(is_clean, probability))
    if chosen:
        figures["precision"] = right / chosen
    if is_clean.any():
        figures["recall"] = right / int(is_clean.sum())
    return figures


def statistics_line(statistics: dict[str, float]) -> str:
    """`split_statistics` as a line of `stats.txt`."""
    line = f"Number of labeled samples:{statistics['labeled']}"
    if "auc" in statistics:
        line += f"   AUC:{statistics['auc']:.3f}"
    if "labeled_clean" in statistics:
        line += "   clean:{labeled_clean}   wrong:{labeled_noisy}".format(**statistics)
    line += f"   Number of unlabeled samples:{statistics['unlabeled']}"
    if "unlabeled_clean" in statistics:
        line += "   clean:{unlabeled_clean}   wrong:{unlabeled_noisy}".format(**statistics)
    return line

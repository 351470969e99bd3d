"""Co-divide: per-sample losses, their two-component GMM, a clean and a noisy set (method 4)."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

# At this r the losses of the last epochs are averaged (method 4).
HISTORY_LENGTH = 5
HISTORY_R = 0.9


class SampleLosses(NamedTuple):
    """One network's per-sample CE against the given labels.

    index int64 [m]: positions in the training set, ascending. losses float32 [m]: in nats from a
    forward pass, scaled to [0, 1] in a history.
    """

    index: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Split:
    """The clean and the noisy set by one network's losses: arrays [m]."""

    index: np.ndarray  # int64, positions in the training set, ascending
    losses: np.ndarray  # float64, scaled to [0, 1]
    clean_probability: np.ndarray  # float64
    labeled: np.ndarray  # bool: the clean set, whose labels are used
    gmm: GaussianMixture | None  # None if all losses are equal


def min_max_scale(losses: Tensor) -> Tensor:
    """Losses scaled to [0, 1]; all 0 where they are equal (method 4)."""
    spread = losses.max() - losses.min()
    return (losses - losses.min()) / torch.where(spread > 0, spread, torch.ones_like(spread))


def with_losses(history: list[SampleLosses], latest: SampleLosses, r: float) -> list[SampleLosses]:
    """A network's history after an epoch with these losses: scaled, without those out of use."""
    history = [*history, SampleLosses(latest.index, min_max_scale(latest.losses))]
    return history[-HISTORY_LENGTH if r == HISTORY_R else -1 :]


def losses_for_gmm(history: list[SampleLosses], r: float) -> Tensor:
    """The scaled losses that the GMM is fitted to: the latest, or at r = 0.9 a mean of five epochs.

    The mean is over the epochs that scored the same images as the latest one (method 4).
    """
    latest = history[-1]
    if r != HISTORY_R:
        return latest.losses
    same = [each.losses for each in history if torch.equal(each.index, latest.index)]
    return torch.stack(same).mean(dim=0)


def fit_gmm(losses: np.ndarray, seed: int) -> GaussianMixture | None:
    """The two-component GMM of scaled losses [m] (method 4); None if all losses are equal."""
    if losses.max() == losses.min():
        return None
    gmm = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the method stops after ten iterations
        return gmm.fit(losses.reshape(-1, 1))


def clean_probability(losses: np.ndarray, gmm: GaussianMixture | None) -> np.ndarray:
    """Posterior [m] of the component with the smaller mean (method 4); 0.5 without a GMM."""
    if gmm is None:
        return np.full(len(losses), 0.5)
    return gmm.predict_proba(losses.reshape(-1, 1))[:, gmm.means_.argmin()]


def gmm_split(history: list[SampleLosses], r: float, seed: int, p_threshold: float = 0.5) -> Split:
    """Split the images of a network's latest losses into a clean and a noisy set (method 4)."""
    # In float64: EM loses four digits in float32.
    losses = losses_for_gmm(history, r).cpu().numpy().astype(np.float64)
    gmm = fit_gmm(losses, seed)
    probability = clean_probability(losses, gmm)
    index = history[-1].index.cpu().numpy()
    return Split(index, losses, probability, labeled=probability > p_threshold, gmm=gmm)


def split_statistics(
    labeled: np.ndarray, probability: np.ndarray, is_clean: np.ndarray | None
) -> dict[str, float]:
    """Sizes of the split and, if the true labels are known, its quality.

    Args: bool, float and bool [m]; is_clean is None if the true labels are unknown.
    AUC, precision and recall are absent when they are not defined.
    """
    size, count = int(labeled.sum()), len(labeled)
    statistics = {"labeled": size, "unlabeled": count - size, "labeled_fraction": size / count}
    if is_clean is None:
        return statistics
    clean = int((labeled & is_clean).sum())
    statistics |= {
        "labeled_clean": clean,
        "labeled_noisy": size - clean,
        "unlabeled_clean": int(is_clean.sum()) - clean,
        "unlabeled_noisy": int((~is_clean).sum()) - (size - clean),
    }
    if 0 < is_clean.sum() < len(is_clean):
        statistics["auc"] = float(roc_auc_score(is_clean, probability))
    if size:
        statistics["precision"] = clean / size
    if is_clean.any():
        statistics["recall"] = clean / int(is_clean.sum())
    return statistics

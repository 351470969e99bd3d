"""Label issues on arrays: which labels are likely noisy, by trained networks.

labels             int [n]
pred_probs         float [n, classes], the networks' probabilities
clean_probability  float [n], or [networks, n] whose mean counts: each label's probability of
                   being clean, by the GMM over the training losses (method 4)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Agreement with the labels (Cohen's kappa: 0 by chance, 1 for all) below which networks that have
# not learned enough are reported.
LEAST_KAPPA = 0.05
# The same where one class has this share of all predictions, and so many times its labels' share.
LARGEST_SHARE, LARGEST_EXCESS = 0.5, 1.5


def probability_of(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Float [n], each label's own probability."""
    return np.take_along_axis(pred_probs, np.asarray(labels)[:, None], axis=1)[:, 0]


def mean_over_networks(clean_probability: np.ndarray) -> np.ndarray:
    """Float [n] of one network's [n] or several networks' [networks, n]."""
    return np.atleast_2d(clean_probability).mean(axis=0)


def label_quality_scores(
    labels: np.ndarray, pred_probs: np.ndarray, clean_probability: np.ndarray
) -> np.ndarray:
    """Float [n] from 0 to 2, lower for likelier label issues: the best of what was measured.

    The clean probability plus the label's probability over that of the predicted class: how large
    the label's loss is among all, and whether another class fits better (docs/labels.md).
    """
    share = probability_of(labels, pred_probs) / np.max(pred_probs, axis=1)
    return mean_over_networks(clean_probability) + share


def self_confidence(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Float [n], each label's own probability: the best score of heads on frozen features."""
    return probability_of(labels, pred_probs)


def find_unlikely_labels(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Bool [n]: another class is more than twice as likely; for heads on frozen features."""
    return probability_of(labels, pred_probs) < np.max(pred_probs, axis=1) / 2


def find_label_issues(
    labels: np.ndarray, pred_probs: np.ndarray, clean_probability: np.ndarray
) -> np.ndarray:
    """Bool [n]: another class is predicted, and the clean probability is below one half."""
    predicted = np.argmax(pred_probs, axis=1)
    return (predicted != labels) & (mean_over_networks(clean_probability) < 0.5)


def rank_label_issues(
    labels: np.ndarray, pred_probs: np.ndarray, clean_probability: np.ndarray
) -> np.ndarray:
    """int64 [n], positions in order of label quality, the likeliest issue first."""
    scores = label_quality_scores(labels, pred_probs, clean_probability)
    return np.argsort(scores, kind="stable")


def estimate_correct_among(
    labels: np.ndarray, pred_probs: np.ndarray, chosen: np.ndarray
) -> tuple[int, int]:
    """How many of the `chosen` labels, bool [n], are correct: at least and at most, an estimate.

    Sums of the label's probability, and of all but the predicted class's; on easy images too high.
    """
    of_label = probability_of(labels, pred_probs)[chosen].sum()
    of_others = (1 - np.max(pred_probs, axis=1)[chosen]).sum()
    return round(float(of_label)), round(float(of_others))


def why_unreliable(labels: np.ndarray, pred_probs: np.ndarray, class_names: list[str]) -> str:
    """Why these predictions say little about labels; empty if they agree well enough."""
    predicted = np.argmax(pred_probs, axis=1)
    label_shares, predicted_shares = (
        np.bincount(each, minlength=len(class_names)) / len(labels) for each in (labels, predicted)
    )
    most = int(predicted_shares.argmax())
    if predicted_shares[most] > max(LARGEST_SHARE, LARGEST_EXCESS * label_shares[most]):
        share = 100 * predicted_shares[most]
        return f"they predict {class_names[most]} for {share:.0f} % of the images"
    by_chance, agreement = (
        float(label_shares @ predicted_shares),
        float(np.mean(predicted == labels)),
    )
    if agreement - by_chance < LEAST_KAPPA * (1 - by_chance):
        return (
            f"they agree with {100 * agreement:.0f} % of the labels, and chance gives "
            f"{100 * by_chance:.0f} %"
        )
    return ""


@dataclass(frozen=True)
class LabelIssues:
    """The labels of m training images and what says whether they are clean; see the module.

    index int64 [m]: the images' positions in the training set, ascending; labels int64 [m];
    pred_probs float32 [m, classes]; clean_probability float [networks, m]. frozen: the networks are
    heads on frozen features, for which the probability alone ranks best (docs/labels.md).
    """

    index: np.ndarray
    labels: np.ndarray
    pred_probs: np.ndarray
    clean_probability: np.ndarray
    frozen: bool = False

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What this module's functions take."""
        return self.labels, self.pred_probs, self.clean_probability

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64 [m], the likeliest class."""
        return self.pred_probs.argmax(axis=1)

    @cached_property
    def quality(self) -> np.ndarray:
        """Float [m], see `label_quality_scores` and `self_confidence`."""
        if self.frozen:
            return self_confidence(self.labels, self.pred_probs)
        return label_quality_scores(*self.arrays)

    @cached_property
    def is_issue(self) -> np.ndarray:
        """Bool [m], see `find_label_issues` and `find_unlikely_labels`."""
        if self.frozen:
            return find_unlikely_labels(self.labels, self.pred_probs)
        return find_label_issues(*self.arrays)

    @cached_property
    def order(self) -> np.ndarray:
        """int64 [m], the rows from the likeliest issue on."""
        return np.argsort(self.quality, kind="stable")

    @cached_property
    def rank(self) -> np.ndarray:
        """int64 [m], from 1 for the likeliest issue."""
        rank = np.empty(len(self.labels), dtype=np.int64)
        rank[self.order] = np.arange(1, len(rank) + 1)
        return rank

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


def self_confidence(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Float [n], each label's own probability: the best score of heads on frozen features."""
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
    share = self_confidence(labels, pred_probs) / np.max(pred_probs, axis=1)
    return mean_over_networks(clean_probability) + share


def find_unlikely_labels(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Bool [n]: another class is more than twice as likely; for heads on frozen features."""
    return self_confidence(labels, pred_probs) < np.max(pred_probs, axis=1) / 2


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
    return np.argsort(label_quality_scores(labels, pred_probs, clean_probability), kind="stable")


def why_unreliable(labels: np.ndarray, pred_probs: np.ndarray, class_names: list[str]) -> str:
    """Why these predictions say little about labels; empty if they agree well enough."""
    predicted, classes = np.argmax(pred_probs, axis=1), len(class_names)
    label_shares, shares = (np.bincount(c, minlength=classes) / len(c) for c in (labels, predicted))
    most = int(shares.argmax())
    if shares[most] > max(LARGEST_SHARE, LARGEST_EXCESS * label_shares[most]):
        return f"they predict {class_names[most]} for {100 * shares[most]:.0f} % of the images"
    by_chance, agreement = float(label_shares @ shares), float(np.mean(predicted == labels))
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

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64 [m], the likeliest class."""
        return self.pred_probs.argmax(axis=1)

    @cached_property
    def quality(self) -> np.ndarray:
        """Float [m], see `label_quality_scores` and `self_confidence`."""
        if self.frozen:
            return self_confidence(self.labels, self.pred_probs)
        return label_quality_scores(self.labels, self.pred_probs, self.clean_probability)

    @cached_property
    def is_issue(self) -> np.ndarray:
        """Bool [m], see `find_label_issues` and `find_unlikely_labels`."""
        if self.frozen:
            return find_unlikely_labels(self.labels, self.pred_probs)
        return find_label_issues(self.labels, self.pred_probs, self.clean_probability)

    @cached_property
    def order(self) -> np.ndarray:
        """int64 [m], the rows from the likeliest issue on."""
        return np.argsort(self.quality, kind="stable")

    @cached_property
    def rank(self) -> np.ndarray:
        """int64 [m], from 1 for the likeliest issue."""
        return np.argsort(self.order) + 1

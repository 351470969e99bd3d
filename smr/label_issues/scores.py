"""Label issues on arrays: which labels are likely noisy, by trained networks.

labels             int [n]
pred_probs         float [n, classes], the networks' probabilities
clean_probability  float [n], or [networks, n] whose mean counts: each label's probability of
                   being clean, by the GMM over the training losses (method 4); None for heads on
                   frozen features, for which the label's own probability ranks best
"""

import numpy as np

# Agreement with the labels (Cohen's kappa: 0 by chance, 1 for all) below which networks that have
# not learned enough are reported.
LEAST_KAPPA = 0.05
# The same where one class has this share of all predictions, and so many times its labels' share.
LARGEST_SHARE, LARGEST_EXCESS = 0.5, 1.5


def self_confidence(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Float [n], each label's own probability."""
    return np.take_along_axis(pred_probs, np.asarray(labels)[:, None], axis=1)[:, 0]


def label_quality_scores(
    labels: np.ndarray, pred_probs: np.ndarray, clean_probability: np.ndarray | None = None
) -> np.ndarray:
    """Float [n] from 0 to 2, lower for likelier label issues: the best of what was measured.

    The clean probability plus the label's probability over that of the predicted class: how large
    the label's loss is among all, and whether another class fits better (docs/labels.md). Without
    clean_probability: the label's own probability.
    """
    own = self_confidence(labels, pred_probs)
    if clean_probability is None:
        return own
    return np.atleast_2d(clean_probability).mean(axis=0) + own / np.max(pred_probs, axis=1)


def find_label_issues(
    labels: np.ndarray, pred_probs: np.ndarray, clean_probability: np.ndarray | None = None
) -> np.ndarray:
    """Bool [n]: another class is predicted, and the clean probability is below one half.

    Without clean_probability: another class is more than twice as likely.
    """
    if clean_probability is None:
        return self_confidence(labels, pred_probs) < np.max(pred_probs, axis=1) / 2
    is_low = np.atleast_2d(clean_probability).mean(axis=0) < 0.5
    return (np.argmax(pred_probs, axis=1) != labels) & is_low


def why_unreliable(labels: np.ndarray, pred_probs: np.ndarray, class_names: list[str]) -> str:
    """Why these predictions say little about labels; empty if they agree well enough."""
    predicted, classes = np.argmax(pred_probs, axis=1), len(class_names)
    label_shares, shares = (np.bincount(c, minlength=classes) / len(c) for c in (labels, predicted))
    most = int(shares.argmax())
    if shares[most] > max(LARGEST_SHARE, LARGEST_EXCESS * label_shares[most]):
        return f"they predict {class_names[most]} for {100 * shares[most]:.0f} % of the images"
    chance, agreement = float(label_shares @ shares), float(np.mean(predicted == labels))
    if agreement - chance < LEAST_KAPPA * (1 - chance):
        found = f"they agree with {100 * agreement:.0f} % of the labels"
        return f"{found}, and chance gives {100 * chance:.0f} %"
    return ""


class LabelIssues:
    """The labels of m training images, what says whether they are clean, and what follows from it.

    index int64 [m]: the images' positions in the training set, ascending; labels int64 [m];
    pred_probs float32 [m, classes]; clean_probability float [networks, m]; predicted int64 [m], the
    likeliest class; quality float [m] and is_issue bool [m], see the functions above; order int64
    [m], the rows from the likeliest issue on; rank int64 [m], from 1 for that one.

    Args: frozen, whether the networks are heads on frozen features.
    """

    def __init__(
        self,
        index: np.ndarray,
        labels: np.ndarray,
        pred_probs: np.ndarray,
        clean_probability: np.ndarray,
        frozen: bool = False,
    ):
        self.index, self.labels, self.pred_probs = index, labels, pred_probs
        self.clean_probability = clean_probability
        arrays = labels, pred_probs, None if frozen else clean_probability
        self.predicted = pred_probs.argmax(axis=1)
        self.quality, self.is_issue = label_quality_scores(*arrays), find_label_issues(*arrays)
        self.order = np.argsort(self.quality, kind="stable")
        self.rank = np.argsort(self.order) + 1

"""Figures of an epoch, summed on the device so that no training step waits for it."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from smr import distributed
from smr.errors import NonFiniteLoss


class Meter:
    """Sums of an epoch's figures, and the first training step whose loss was not finite."""

    def __init__(self):
        self.started = time.perf_counter()
        self.steps = 0
        self.images = 0
        self.sums: dict[str, Tensor | float] = {}
        self.finite_steps: Tensor | int = 0

    def add(self, loss: Tensor, figures: dict[str, Tensor | float], images: int) -> None:
        """Add a training step's figures; `loss` is checked for values that are not finite."""
        for name, value in figures.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0) + value
        # The count stops at the first step that is not finite.
        finite = torch.isfinite(loss.detach())
        self.finite_steps = self.finite_steps + (finite & (self.finite_steps == self.steps)).int()
        self.steps += 1
        self.images += images

    def means(self) -> dict[str, float]:
        """Mean of each figure over the steps so far; waits for the device."""
        return {name: float(total) / self.steps for name, total in self.sums.items()}

    def figures(self) -> dict[str, float]:
        """The epoch's `means`, its `images` and wall `seconds`, over all ranks.

        Raises NonFiniteLoss.
        """
        finite_steps = min(distributed.all_gather(int(self.finite_steps)))
        if finite_steps < self.steps:
            raise NonFiniteLoss(f"step {finite_steps + 1}: the loss is not finite")
        # Waits for the device, so that the seconds are those of the whole epoch.
        ranks = distributed.all_gather(self.means())
        means = {name: sum(rank[name] for rank in ranks) / len(ranks) for name in self.sums}
        images = sum(distributed.all_gather(self.images))
        return means | {"images": images, "seconds": time.perf_counter() - self.started}


class LabelAccuracy:
    """Counts, on the device, the soft labels whose likeliest class is the true label."""

    def __init__(self):
        self.count = 0
        self.correct: Tensor | int = 0

    def add(self, soft_labels: Tensor | None, true_labels: Sequence[Tensor]) -> None:
        """Add soft labels [b, classes]; `true_labels` holds one tensor [b], or nothing."""
        if soft_labels is not None and true_labels:
            self.correct = self.correct + (soft_labels.argmax(dim=1) == true_labels[0]).sum()
            self.count += len(soft_labels)

    def percent(self) -> float:
        """Correct soft labels in per cent, over all ranks; waits for the device."""
        correct = sum(distributed.all_gather(int(self.correct)))
        return 100 * correct / sum(distributed.all_gather(self.count))


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


def mean_of_networks(metrics: dict[str, float], name: str) -> float | None:
    """The mean of a metric over the networks, in whose name `net*` stands for both; or None."""
    names = {name.replace("*", network) for network in "12"}
    values = [metrics[each] for each in sorted(names) if each in metrics]
    return statistics.fmean(values) if values else None

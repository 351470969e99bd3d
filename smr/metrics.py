"""Figures of a pass over the data, summed on the device so that no step waits for it."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from smr import distributed
from smr.errors import NonFiniteLoss


class Meter:
    """Sums of a pass's figures, and the first step whose loss was not finite."""

    def __init__(self):
        self.started = time.perf_counter()
        self.steps = 0
        self.images = 0
        self.sums: dict[str, Tensor | float] = {}
        self.finite_steps: Tensor | int = 0

    def add(self, loss: Tensor, figures: dict[str, Tensor | float], images: int) -> None:
        """Add a step's figures; `loss` is watched for the first value that is not finite."""
        for name, value in figures.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0) + value
        # Stops counting at the first bad step: only a count equal to the steps goes on.
        finite = torch.isfinite(loss.detach())
        self.finite_steps = self.finite_steps + (finite & (self.finite_steps == self.steps)).int()
        self.steps += 1
        self.images += images

    def means(self) -> dict[str, float]:
        """Mean of each figure over the steps so far; waits for the device."""
        return {name: float(total) / self.steps for name, total in self.sums.items()}

    def figures(self) -> dict[str, float]:
        """The pass's `means`, the `images` trained on, and its wall `seconds`, over all ranks.

        Raises NonFiniteLoss.
        """
        finite_steps = min(distributed.all_gather(int(self.finite_steps)))
        if finite_steps < self.steps:
            raise NonFiniteLoss(f"step {finite_steps + 1}: the loss is not finite")
        parts = distributed.all_gather(
            self.means()
        )  # waits for the device: the time is the pass's whole
        means = {name: sum(part[name] for part in parts) / len(parts) for name in self.sums}
        images = sum(distributed.all_gather(self.images))
        return means | {"images": images, "seconds": time.perf_counter() - self.started}


class Hits:
    """Counts, on the device, the targets whose likeliest class is the true label."""

    def __init__(self):
        self.count = 0
        self.right: Tensor | int = 0

    def add(self, targets: Tensor | None, truth: Sequence[Tensor]) -> None:
        """Add targets [b, classes]; `truth` holds the true labels [b], or nothing."""
        if targets is not None and truth:
            self.right = self.right + (targets.argmax(dim=1) == truth[0]).sum()
            self.count += len(targets)

    def percent(self) -> float:
        """Right targets per hundred, over all ranks; waits for the device."""
        return (
            100
            * sum(distributed.all_gather(int(self.right)))
            / sum(distributed.all_gather(self.count))
        )

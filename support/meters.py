"""Figures of a pass over the data, summed on the device so that no step waits for it."""

from collections.abc import Sequence

import torch
from torch import Tensor


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the message says where."""


class Meter:
    """Sums of a pass's figures, kept on the device so that no step waits for it."""

    def __init__(self):
        self.steps = 0
        self.images = 0
        self.host_sums: dict[str, float] = {}
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.finite_steps: Tensor | None = None
        self.on_the_way: tuple[int, Tensor, torch.cuda.Event] | None = None

    def add(self, loss: Tensor, figures: dict[str, Tensor | float], images: int) -> None:
        """Add a step's figures; `loss` is watched for the first value that is not finite."""
        self.images += images
        on_device = {n: v.detach() for n, v in figures.items() if isinstance(v, Tensor)}
        values, finite = torch.stack(list(on_device.values())), torch.isfinite(loss.detach())
        if self.sums is None:
            self.names = list(on_device)
            self.sums, self.finite_steps = values, finite.long()
        else:
            self.sums += values
            # Stops counting at the first bad step: only a count equal to the steps goes on.
            self.finite_steps += finite & (self.finite_steps == self.steps)
        for name in figures.keys() - on_device.keys():
            self.host_sums[name] = self.host_sums.get(name, 0.0) + figures[name]
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Mean of each figure over the steps, and the `images` trained on; waits for the device.

        Raises NonFiniteLoss.
        """
        if self.sums is None:
            return {}
        if int(self.finite_steps) < self.steps:
            raise NonFiniteLoss(f"step {int(self.finite_steps) + 1}: the loss is not finite")
        return self._over(self.steps, self.sums.tolist()) | {"images": self.images}

    def glance(self, wait: bool) -> dict[str, float]:
        """The means for a progress line; unless `wait`, on CUDA those of the glance before."""
        if self.sums is None or wait or self.sums.device.type != "cuda":
            return {} if self.sums is None else self._over(self.steps, self.sums.tolist())
        shown = {}
        if self.on_the_way and self.on_the_way[2].query():
            shown = self._over(self.on_the_way[0], self.on_the_way[1].tolist())
        if shown or not self.on_the_way:
            copied = torch.empty(self.sums.shape, pin_memory=True).copy_(
                self.sums, non_blocking=True
            )
            event = torch.cuda.Event()
            event.record()
            self.on_the_way = self.steps, copied, event
        return shown

    def _over(self, steps: int, sums: list[float]) -> dict[str, float]:
        means = {name: total / steps for name, total in zip(self.names, sums, strict=True)}
        return means | {name: total / self.steps for name, total in self.host_sums.items()}


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
        """Right targets per hundred; waits for the device."""
        return 100 * int(self.right) / self.count

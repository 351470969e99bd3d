"""ELR, early-learning regularization (Liu et al., NeurIPS 2020).

A network's targets are running means of its own predictions, one for each training image. The
regularizer pulls the predictions towards them: what a network learned early keeps it from
memorizing noisy labels. The two networks train separately; the test adds their logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smr import distributed
from smr.flags import flag
from smr.gmm_split import Split
from smr.methods.base import Method
from smr.training import supervised_epoch

# Predictions are clamped to this distance from 0 and 1, so that the logarithm is finite.
MARGIN = 1e-4


def update_targets(targets: Tensor, probabilities: Tensor, beta: float) -> Tensor:
    """beta·targets + (1-beta)·probabilities, [b, classes] each (ELR, equation 9)."""
    return beta * targets + (1 - beta) * probabilities / probabilities.sum(dim=1, keepdim=True)


def elr_regularizer(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean of log(1 - <probabilities, targets>) over a batch (ELR, equation 6)."""
    return torch.log(1 - (targets * probabilities).sum(dim=1)).mean()


class ELR(Method):
    """Cross-entropy plus `elr_lambda` times the regularizer, on all noisy labels."""

    NAME = "elr"

    @dataclass
    class Flags:
        """The paper's values for CIFAR-10 with symmetric noise; asymmetric: 1 and 0.9."""

        elr_lambda: float = flag("ELR: weight of the regularizer", default=3.0, low=0)
        elr_beta: float = flag("ELR: momentum of the targets", default=0.7, low=0, high=1)

    def __init__(self, config, pair, loader, log=None):
        super().__init__(config, pair, loader, log)
        shape = len(loader.noisy_labels), len(loader.class_names)
        self.targets = [torch.zeros(shape, device=loader.noisy_labels.device) for _ in range(2)]

    def kind_of_epoch(self, epoch: int) -> str:
        return "elr"

    def train(self, epoch: int) -> tuple[list[dict[str, float]], tuple[Split, ...]]:
        return self.for_each_network(epoch, self.train_network), ()

    def train_network(self, k: int, progress: Callable) -> dict[str, float]:
        """An epoch of network k, which updates its targets batch by batch."""
        network, targets, seen = self.pair.trained[k], self.targets[k], []

        def batch_loss(_step: int, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            logits = network(images).float()
            probabilities = torch.softmax(logits, dim=1).clamp(MARGIN, 1 - MARGIN)
            seen.append(index)
            targets[index] = update_targets(
                targets[index], probabilities.detach(), self.config.elr_beta
            )
            regularizer = elr_regularizer(probabilities, targets[index])
            return F.cross_entropy(logits, labels) + self.config.elr_lambda * regularizer

        batches, optimizer = self.loader.run("warmup"), self.pair.optimizers[k]
        figures = supervised_epoch(network, optimizer, batches, batch_loss, self.config, progress)
        # Under torchrun each rank has updated the targets of its own images.
        own = torch.cat(seen).cpu()
        for index, rows in distributed.all_gather((own, targets.cpu()[own])):
            targets[index.to(targets.device)] = rows.to(targets.device)
        return figures

    def state_dict(self) -> dict:
        return {"targets": self.targets}

    def load_state_dict(self, state: dict) -> None:
        for targets, saved in zip(self.targets, state["targets"], strict=True):
            if saved.shape != targets.shape or not torch.isfinite(saved).all():
                raise ValueError("its ELR targets are not of these images")
            targets.copy_(saved)

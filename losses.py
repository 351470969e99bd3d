"""The losses of SMR and of its baseline DivideMix (method 3, 5 and 6).

Names and call forms are those of the DivideMix family, so its scripts can import them unchanged.
Every `pred` or `outputs` is a float tensor of logits [batch, classes]; every soft target is a
float tensor [batch, classes] whose rows sum to 1; every loss is a scalar tensor, a mean in nats.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# DivideMix's published weight of the unlabeled loss, and the epochs of its ramp.
LAMBDA_U = 25.0
RAMPUP_LENGTH = 16


def mixup_criterion(pred: Tensor, y_a: Tensor, y_b: Tensor, lam: float | Tensor) -> Tensor:
    """The mixup loss of SMR's warm-up: lam·CE(pred, y_a) + (1-lam)·CE(pred, y_b) (method 3).

    y_a and y_b are int64 labels [batch]; lam is the share of y_a's images in the mixed batch.
    """
    return lam * F.cross_entropy(pred, y_a) + (1 - lam) * F.cross_entropy(pred, y_b)


def soft_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy against soft targets (Lx of method 5)."""
    return -(F.log_softmax(outputs, dim=1) * targets).sum(dim=1).mean()


def sharpen(probabilities: Tensor, T: float) -> Tensor:
    """p^(1/T), normalized over the classes (method 5): a T below 1 makes each row more certain."""
    powered = probabilities ** (1 / T)
    return powered / powered.sum(dim=1, keepdim=True)


def uniform_prior_penalty(mean_probabilities: Tensor) -> Tensor:
    """Σ_c prior_c · log(prior_c / mean_c) of a batch's mean softmax [classes], prior uniform.

    Method 5. It keeps a network from giving all images to few classes while most labels are
    guesses.
    """
    prior = torch.full_like(mean_probabilities, 1 / len(mean_probabilities))
    return (prior * torch.log(prior / mean_probabilities)).sum()


def linear_rampup(
    current: float, warm_up: float, rampup_length: float = RAMPUP_LENGTH, lambda_u: float = LAMBDA_U
) -> float:
    """lambda_u · clip((current - warm_up) / rampup_length, 0, 1); `current` in epochs (5)."""
    return lambda_u * min(max((current - warm_up) / rampup_length, 0.0), 1.0)


class SemiLoss:
    """The two losses of a semi-supervised step and the weight of the second (method 5)."""

    def __init__(self, lambda_u: float = LAMBDA_U):
        self.lambda_u = lambda_u

    def __call__(
        self,
        outputs_x: Tensor,
        targets_x: Tensor,
        outputs_u: Tensor,
        targets_u: Tensor,
        epoch: float,
        warm_up: float,
    ) -> tuple[Tensor, Tensor, float]:
        """(Lx, Lu, weight of Lu): `epoch` counts the present epoch's share of steps too.

        Lx is the cross-entropy of the labeled rows, Lu the squared error of the unlabeled rows'
        softmax, averaged over rows and classes, and 0 where there is no unlabeled row.
        """
        loss_x = soft_cross_entropy(outputs_x, targets_x)
        if len(outputs_u):
            loss_u = ((torch.softmax(outputs_u, dim=1) - targets_u) ** 2).mean()
        else:
            loss_u = torch.zeros_like(loss_x)
        return loss_x, loss_u, linear_rampup(epoch, warm_up, lambda_u=self.lambda_u)


class NegEntropy:
    """Mean Σ_c p_c · log p_c, DivideMix's warm-up penalty (method 6)."""

    def __call__(self, outputs: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(outputs, dim=1)
        return (log_probabilities.exp() * log_probabilities).sum(dim=1).mean()

"""One training step: its mixing, its targets and its loss (docs/method.md, sections 3, 5 and 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import NegEntropy, SemiLoss, mixup_criterion, sharpen, uniform_prior_penalty
from smr import distributed
from smr.recipe import Recipe


def mixup_weights(alpha: float, steps: int) -> np.ndarray:
    """float64 [steps]: l ~ Beta(alpha, alpha), l := max(l, 1-l), one a batch (method 3)."""
    drawn = np.random.beta(alpha, alpha, steps)
    return np.maximum(drawn, 1 - drawn)


def mix(values: Tensor, weight: Tensor | float, permutation: Tensor) -> Tensor:
    """l·values + (1-l)·values[permutation] over the first dimension (method 3, 5)."""
    return weight * values + (1 - weight) * values[permutation]


def mixup_loss(
    network: nn.Module, images: Tensor, labels: Tensor, weight: Tensor | float, permutation: Tensor
) -> Tensor:
    """Warm-up's mixup loss of a batch paired with itself by `permutation` (method 3)."""
    logits = network(mix(images, weight, permutation)).float()
    return mixup_criterion(logits, labels, labels[permutation], weight)


def cross_entropy_loss(
    network: nn.Module, images: Tensor, labels: Tensor, penalized: bool
) -> Tensor:
    """CE on the given labels (method 3), plus DivideMix's entropy term if `penalized` (6)."""
    logits = network(images).float()
    loss = F.cross_entropy(logits, labels)
    return loss + NegEntropy()(logits) if penalized else loss


@torch.no_grad()
def guess(network: nn.Module, peer: nn.Module, u1: Tensor, u2: Tensor, T: float) -> Tensor:
    """Targets [b, classes] of unlabeled images: both networks' mean softmax, sharpened (method 5).

    The network is in train mode, so that each view updates its BN; the peer, in eval mode, takes
    both views in one pass.
    """
    own = [torch.softmax(network(view).float(), dim=1) for view in (u1, u2)]
    others = torch.softmax(peer(torch.cat([u1, u2])).float(), dim=1)
    return sharpen((own[0] + own[1] + others[: len(u1)] + others[len(u1) :]) / 4, T)


@torch.no_grad()
def refine(
    network: nn.Module, x1: Tensor, x2: Tensor, labels: Tensor, probability: Tensor, T: float
) -> Tensor:
    """Targets [b, classes] of labeled images: w·onehot(y) + (1-w)·p, sharpened (method 5)."""
    p = sum(torch.softmax(network(view).float(), dim=1) for view in (x1, x2)) / 2
    w = probability[:, None]
    return sharpen(w * F.one_hot(labels, p.shape[1]) + (1 - w) * p, T)


@dataclass(frozen=True)
class MixMatchLoss:
    """A semi-supervised step's loss and its parts, with the targets that it trained on."""

    loss: Tensor
    loss_x: Tensor
    loss_u: Tensor
    lambda_u: float
    penalty: Tensor
    logits: Tensor
    mixed_targets: Tensor
    targets_x: Tensor
    targets_u: Tensor


def mixmatch_loss(
    network: nn.Module,
    peer: nn.Module,
    labeled: Sequence[Tensor],
    unlabeled: Sequence[Tensor] | None,
    weight: Tensor | float,
    permutation: Tensor,
    epoch: float,
    recipe: Recipe,
    strong: Sequence[Tensor] = (),
) -> MixMatchLoss:
    """The loss of a semi-supervised step (method 5).

    Args: labeled (x1, x2, labels, clean probability); unlabeled (u1, u2), or None; weight, the
    step's l; permutation over the rows of [x1; x2; u1; u2]; epoch + step/steps; strong, the views
    that are mixed in the place of x1, x2, u1, u2, where there are others (method 11).
    """
    x1, x2, labels, probability = labeled
    images, targets_u = [x1, x2], None
    if unlabeled is not None:
        targets_u = guess(network, peer, *unlabeled, recipe.T)  # first: the order of BN's passes
        images += unlabeled
    targets_x = refine(network, x1, x2, labels, probability, recipe.T)
    targets = [targets_x, targets_x] + ([targets_u, targets_u] if targets_u is not None else [])
    mixed_images = mix(torch.cat(strong or images), weight, permutation)
    mixed_targets = mix(torch.cat(targets), weight, permutation)
    rows_x = 2 * len(x1)
    if recipe.labeled_rows_only:
        mixed_images, mixed_targets = mixed_images[:rows_x], mixed_targets[:rows_x]
    logits = network(mixed_images).float()
    loss_x, loss_u, lambda_u = SemiLoss(recipe.lambda_u)(
        logits[:rows_x],
        mixed_targets[:rows_x],
        logits[rows_x:],
        mixed_targets[rows_x:],
        epoch,
        recipe.warm_up,
    )
    loss_x, loss_u = (
        distributed.weight_by_rows(loss_x, rows_x),
        distributed.weight_by_rows(loss_u, len(logits) - rows_x),
    )
    softmax = distributed.weight_by_rows(torch.softmax(logits, dim=1).mean(dim=0), len(logits))
    penalty = uniform_prior_penalty(distributed.all_reduce_mean(softmax))
    loss = loss_x + lambda_u * loss_u + penalty
    return MixMatchLoss(
        loss, loss_x, loss_u, lambda_u, penalty, logits, mixed_targets, targets_x, targets_u
    )

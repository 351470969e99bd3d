"""Training steps and one network's epoch over a loader (docs/method.md, sections 3, 5 and 6)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from losses import NegEntropy, SemiLoss, mixup_criterion, sharpen, uniform_prior_penalty
from smr import distributed
from smr.config import Config
from smr.errors import NonFiniteLoss
from smr.metrics import LabelAccuracy, Meter

MOMENTUM = 0.9
# Called after each training step with (step from 1, steps, the epoch's Meter so far).
Progress = Callable[[int, int, Meter], None]


@dataclass
class Pair:
    """Two networks and their optimizers.

    `trained` are the networks as they train: under torchrun, with gradients over all ranks.
    """

    networks: list[nn.Module]
    optimizers: list[Optimizer]

    def __post_init__(self):
        self.trained = [distributed.data_parallel(network) for network in self.networks]

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of both optimizers."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def check_finite(self) -> None:
        """Raise NonFiniteLoss where a weight or statistic of a network is not finite."""
        for k, network in enumerate(self.networks, start=1):
            state = network.state_dict()
            finite = torch.stack([torch.isfinite(value).all() for value in state.values()])
            for name, is_finite in zip(state, finite.tolist(), strict=True):
                if not is_finite:
                    raise NonFiniteLoss(f"{name} of network {k} is not finite")


def new_pair(
    build_network: Callable[[], nn.Module], config: Config, device: torch.device | str
) -> Pair:
    """Two networks with different random weights, each with its own SGD (method 3)."""
    device = torch.device(device)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    networks = [build_network().to(device, memory_format=memory_format) for _ in range(2)]
    sgd = {"lr": config.lr, "momentum": MOMENTUM, "weight_decay": config.weight_decay}
    sgd["fused"] = device.type in ("cuda", "cpu")
    return Pair(networks, [SGD(network.parameters(), **sgd) for network in networks])


def learning_rate(epoch: int, config: Config) -> float:
    """lr times the factor of the last step reached (method 3)."""
    reached = [factor for start, factor in sorted(config.lr_steps) if epoch >= start]
    return config.lr * (reached[-1] if reached else 1.0)


def device_of(network: nn.Module) -> torch.device:
    """The device of the network's parameters."""
    return next(network.parameters()).device


def autocast(device: torch.device, amp: bool) -> AbstractContextManager:
    """bf16 autocast if `amp`, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp)


def optimizer_step(loss: Tensor, optimizer: Optimizer) -> None:
    """One step of the optimizer on the gradient of `loss`."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # at once: the next forward pass needs the memory


def mixup_weights(alpha: float, steps: int, device: torch.device | str = "cpu") -> Tensor:
    """float32 [steps]: l ~ Beta(alpha, alpha), l := max(l, 1-l), one a batch (method 3)."""
    weights = np.random.beta(alpha, alpha, steps)
    return torch.as_tensor(np.maximum(weights, 1 - weights), dtype=torch.float32).to(device)


def mix(values: Tensor, weight: Tensor | float, permutation: Tensor) -> Tensor:
    """l·values + (1-l)·values[permutation] over the first dimension (method 3, 5)."""
    return weight * values + (1 - weight) * values[permutation]


def supervised_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Iterable,
    batch_loss: Callable[[int, Tensor, Tensor, Tensor], Tensor],
    config: Config,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train one network for an epoch on the given labels; returns the means of its Meter.

    Args: batch_loss returns the loss of (step, images, labels, index).
    """
    network.train()
    device, meter = device_of(network), Meter()
    for step, (images, labels, index) in enumerate(batches):
        with autocast(device, config.amp):
            loss = batch_loss(step, images, labels, index)
            loss = distributed.weight_by_rows(loss, len(images))
        optimizer_step(loss, optimizer)
        meter.add(loss, {"loss": loss}, len(images))
        if progress:
            progress(step + 1, len(batches), meter)
    distributed.average_buffers(network)
    return meter.figures()


def mixup_loss(
    network: nn.Module, images: Tensor, labels: Tensor, weight: Tensor | float, permutation: Tensor
) -> Tensor:
    """The mixup loss of a batch paired with itself by `permutation` (method 3)."""
    logits = network(mix(images, weight, permutation)).float()
    return mixup_criterion(logits, labels, labels[permutation], weight)


def mixup_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Iterable,
    config: Config,
    progress: Progress | None = None,
) -> dict[str, float]:
    """One network's warm-up epoch with the robust mixup loss (method 3)."""
    device = device_of(network)
    weights = mixup_weights(config.alpha, len(batches), device)

    def batch_loss(step: int, images: Tensor, labels: Tensor, _index: Tensor) -> Tensor:
        permutation = torch.randperm(len(images), device=device)
        return mixup_loss(network, images, labels, weights[step], permutation)

    return supervised_epoch(network, optimizer, batches, batch_loss, config, progress)


def cross_entropy_loss(
    network: nn.Module, images: Tensor, labels: Tensor, entropy_penalty: bool = False
) -> Tensor:
    """CE on the given labels (method 3), plus DivideMix's negative-entropy penalty (method 6)."""
    logits = network(images).float()
    loss = F.cross_entropy(logits, labels)
    return loss + NegEntropy()(logits) if entropy_penalty else loss


def cross_entropy_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Iterable,
    config: Config,
    progress: Progress | None = None,
    entropy_penalty: bool = False,
) -> dict[str, float]:
    """One network's epoch of CE: recalibration, DivideMix's warm-up, the baseline (method 3, 6)."""

    def batch_loss(_step: int, images: Tensor, labels: Tensor, _index: Tensor) -> Tensor:
        return cross_entropy_loss(network, images, labels, entropy_penalty)

    return supervised_epoch(network, optimizer, batches, batch_loss, config, progress)


@torch.no_grad()
def pseudo_labels(network: nn.Module, peer: nn.Module, u1: Tensor, u2: Tensor, T: float) -> Tensor:
    """Targets [b, classes] of unlabeled images: both networks' mean softmax, sharpened (method 5).

    The network is in train mode, so each view updates its batch norm statistics. The peer is in
    eval mode and takes both views in one forward pass.
    """
    own = [torch.softmax(network(view).float(), dim=1) for view in (u1, u2)]
    peers = torch.softmax(peer(torch.cat([u1, u2])).float(), dim=1)
    return sharpen((own[0] + own[1] + peers[: len(u1)] + peers[len(u1) :]) / 4, T)


@torch.no_grad()
def refined_labels(
    network: nn.Module, x1: Tensor, x2: Tensor, labels: Tensor, probability: Tensor, T: float
) -> Tensor:
    """Targets [b, classes] of labeled images: w·onehot(y) + (1-w)·p, sharpened (method 5)."""
    p = sum(torch.softmax(network(view).float(), dim=1) for view in (x1, x2)) / 2
    w = probability[:, None]
    return sharpen(w * F.one_hot(labels, p.shape[1]) + (1 - w) * p, T)


class MixMatchLoss(NamedTuple):
    """A semi-supervised step's loss and its parts, with the targets of the unmixed images.

    parts: loss_x, loss_u, lambda_u (the ramped weight of loss_u) and penalty.
    """

    loss: Tensor
    parts: dict[str, Tensor | float]
    logits: Tensor
    mixed_targets: Tensor
    targets_x: Tensor
    targets_u: Tensor | None


def mixmatch_loss(
    network: nn.Module,
    peer: nn.Module,
    labeled: Sequence[Tensor],
    unlabeled: Sequence[Tensor] | None,
    weight: Tensor | float,
    permutation: Tensor,
    epoch: float,
    config: Config,
    strong: Sequence[Tensor] = (),
) -> MixMatchLoss:
    """The loss of a semi-supervised step (method 5).

    Args:
        labeled: (x1, x2, the given labels, the clean probability of each).
        unlabeled: (u1, u2), or None when the noisy set is empty.
        weight: the step's mixup weight l.
        permutation: int64, over the rows of [x1; x2; u1; u2].
        epoch: the epoch and its fraction done, for the ramp of lambda_u.
        strong: strongly augmented views to mix in the place of x1, x2, u1, u2.
    """
    (x1, x2, *_), unlabeled = labeled, unlabeled or ()
    # Pseudo-labels first: batch norm statistics depend on the order u1, u2, x1, x2, mixed.
    targets_u = pseudo_labels(network, peer, *unlabeled, config.T) if unlabeled else None
    targets_x = refined_labels(network, *labeled, config.T)
    images, targets = [x1, x2, *unlabeled], [targets_x] * 2 + [targets_u] * len(unlabeled)
    mixed_images = mix(torch.cat(strong or images), weight, permutation)
    mixed_targets = mix(torch.cat(targets), weight, permutation)
    rows_x = 2 * len(x1)
    if config.labeled_rows_only:
        mixed_images, mixed_targets = mixed_images[:rows_x], mixed_targets[:rows_x]
    logits = network(mixed_images).float()
    loss_x, loss_u, lambda_u = SemiLoss(config.lambda_u)(
        outputs_x=logits[:rows_x],
        targets_x=mixed_targets[:rows_x],
        outputs_u=logits[rows_x:],
        targets_u=mixed_targets[rows_x:],
        epoch=epoch,
        warm_up=config.warm_up,
    )
    loss_x = distributed.weight_by_rows(loss_x, rows_x)
    loss_u = distributed.weight_by_rows(loss_u, len(logits) - rows_x)
    softmax = distributed.weight_by_rows(torch.softmax(logits, dim=1).mean(dim=0), len(logits))
    penalty = uniform_prior_penalty(distributed.all_reduce_mean(softmax))
    parts = {"loss_x": loss_x, "loss_u": loss_u, "lambda_u": lambda_u, "penalty": penalty}
    loss = loss_x + lambda_u * loss_u + penalty
    return MixMatchLoss(loss, parts, logits, mixed_targets, targets_x, targets_u)


def endless(batches: Iterable) -> Iterator:
    """The batches again and again, shuffled anew each time; nothing if there is none."""
    while len(batches):
        yield from batches


def mixmatch_epoch(
    network: nn.Module,
    peer: nn.Module,
    optimizer: Optimizer,
    labeled: Iterable,
    unlabeled: Iterable,
    epoch: int,
    config: Config,
    progress: Progress | None = None,
) -> dict[str, float]:
    """One network's semi-supervised epoch (method 5).

    Args: labeled, unlabeled: the batches of `loader.run("train", …)`. The labeled ones set the
    number of steps.

    Returns the means of `loss`, `loss_x`, `loss_u`, `lambda_u` (the weight of Lu) and `penalty`
    and, when the batches carry true labels, `refined_label_accuracy` and `pseudo_label_accuracy`.
    """
    network.train()
    peer.eval()
    device, meter = device_of(network), Meter()
    steps = len(labeled)
    ramp_steps = len(labeled.dataset) // labeled.batch_size + 1  # Kept: the published count
    weights = mixup_weights(config.alpha, steps, device)
    refined, pseudo = LabelAccuracy(), LabelAccuracy()
    unlabeled_batches = endless(unlabeled)
    views = 4 if config.augment == "strong" else 2
    for step, batch_x in enumerate(labeled):
        (x1, x2, *strong_x), (labels, probability, *true_x) = batch_x[:views], batch_x[views:]
        batch_u = next(unlabeled_batches, (x1[:0],) * views)
        (u1, u2, *strong_u), true_u = batch_u[:views], batch_u[views:]
        images = 2 * len(x1) + 2 * len(u1)
        permutation = torch.randperm(images, device=device)
        with autocast(device, config.amp):
            result = mixmatch_loss(
                network,
                peer,
                labeled=(x1, x2, labels, probability),
                unlabeled=(u1, u2) if len(u1) else None,
                weight=weights[step],
                permutation=permutation,
                epoch=epoch + step / ramp_steps,
                config=config,
                strong=strong_x + strong_u,
            )
        optimizer_step(result.loss, optimizer)
        meter.add(result.loss, {"loss": result.loss} | result.parts, images)
        refined.add(result.targets_x, true_x)
        pseudo.add(result.targets_u, true_u)
        if progress:
            progress(step + 1, steps, meter)
    distributed.average_buffers(network)
    accuracies = {"refined_label_accuracy": refined, "pseudo_label_accuracy": pseudo}
    measured = {name: each.percent() for name, each in accuracies.items() if each.count}
    return meter.figures() | measured

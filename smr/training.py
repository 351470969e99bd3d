"""One network's pass over batches: trained (docs/method.md, sections 3, 5, 6) or scored (4)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from smr import distributed
from smr.gmm_split import SampleLosses
from smr.metrics import Hits, Meter
from smr.recipe import Recipe
from smr.steps import cross_entropy_loss, mixmatch_loss, mixup_loss, mixup_weights


def no_progress(*_) -> None:
    """The hook of a caller who wants no progress; see `train`."""


def autocast(device: torch.device, amp: bool) -> AbstractContextManager:
    """bf16 autocast on `device` where amp is set, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp)


def optimize(loss: Tensor, optimizer: Optimizer) -> None:
    """One step of the optimizer down the gradient of `loss`, from and to no gradients."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # at once: the next forward pass needs the memory


def device_weights(alpha: float, steps: int, device: torch.device) -> Tensor:
    """`mixup_weights` of a whole pass as float32 on the device, so that no step waits for one."""
    return torch.as_tensor(mixup_weights(alpha, steps), dtype=torch.float32).to(device)


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters lie."""
    return next(network.parameters()).device


def supervised_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Iterable,
    batch_loss: Callable[[int, Tensor, Tensor], Tensor],
    recipe: Recipe,
    progress: Callable,
) -> dict[str, float]:
    """One network's epoch on the given labels; its mean `loss`.

    Args: batch_loss gives the loss of (step, images, labels); progress is called after each step
    with (step from 1, steps, Meter).
    """
    network.train()
    device, meter = device_of(network), Meter()
    for step, (images, labels, _) in enumerate(batches):
        with autocast(device, recipe.amp):
            loss = distributed.weight_by_rows(batch_loss(step, images, labels), len(images))
        optimize(loss, optimizer)
        meter.add(loss, {"loss": loss}, len(images))
        progress(step + 1, len(batches), meter)
    distributed.average_buffers(network)
    return meter.figures()


def warm_up_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Iterable,
    recipe: Recipe,
    progress: Callable = no_progress,
) -> dict[str, float]:
    """One network's warm-up epoch, by mixup (method 3) or by CE (method 6)."""
    if recipe.warmup_loss == "ce":
        penalized = recipe.warmup_penalty
        return cross_entropy_epoch(network, optimizer, batches, recipe, progress, penalized)
    device = device_of(network)
    weights = device_weights(recipe.alpha, len(batches), device)

    def batch_loss(step: int, images: Tensor, labels: Tensor) -> Tensor:
        permutation = torch.randperm(len(images), device=device)
        return mixup_loss(network, images, labels, weights[step], permutation)

    return supervised_epoch(network, optimizer, batches, batch_loss, recipe, progress)


def cross_entropy_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Iterable,
    recipe: Recipe,
    progress: Callable = no_progress,
    penalized: bool = False,
) -> dict[str, float]:
    """One network's epoch of CE on the given labels: recalibration, and the baseline `ce`.

    Method 3 and 6.
    """

    def batch_loss(_step: int, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy_loss(network, images, labels, penalized)

    return supervised_epoch(network, optimizer, batches, batch_loss, recipe, progress)


def endless(batches: Iterable) -> Iterator:
    """The batches again and again, shuffled anew each time; nothing of an empty set."""
    while len(batches):
        yield from batches


def semi_supervised_epoch(
    network: nn.Module,
    peer: nn.Module,
    optimizer: Optimizer,
    labeled: Iterable,
    unlabeled: Iterable,
    epoch: int,
    recipe: Recipe,
    progress: Callable = no_progress,
) -> dict[str, float]:
    """One network's semi-supervised epoch (method 5).

    Batches are those of `loader.run('train', …)`, with strong views if the recipe has them. Returns
    the means of `loss`, `loss_x`, `loss_u`, `lambda_u` (the weight of Lu) and `penalty`, and, where
    batches carry the truth, the share of right targets, `refined_label_accuracy` and `pseudo_label_accuracy`.
    """
    network.train()
    peer.eval()
    device, meter = device_of(network), Meter()
    steps = len(labeled)
    ramp_steps = len(labeled.dataset) // labeled.batch_size + 1  # Kept: the published count
    weights = device_weights(recipe.alpha, steps, device)
    hits = {"refined_label_accuracy": Hits(), "pseudo_label_accuracy": Hits()}
    unlabeled_stream = endless(unlabeled)
    views = 4 if recipe.augment == "strong" else 2
    for step, batch_x in enumerate(labeled):
        (x1, x2, *strong_x), (labels, probability, *truth_x) = batch_x[:views], batch_x[views:]
        batch_u = next(unlabeled_stream, (x1[:0],) * views)
        (u1, u2, *strong_u), truth_u = batch_u[:views], batch_u[views:]
        images = 2 * len(x1) + 2 * len(u1)
        permutation = torch.randperm(images, device=device)
        with autocast(device, recipe.amp):
            result = mixmatch_loss(
                network,
                peer,
                (x1, x2, labels, probability),
                (u1, u2) if len(u1) else None,
                weights[step],
                permutation,
                epoch + step / ramp_steps,
                recipe,
                strong_x + strong_u,
            )
        optimize(result.loss, optimizer)
        figures = ("loss", "loss_x", "loss_u", "lambda_u", "penalty")
        meter.add(result.loss, {name: getattr(result, name) for name in figures}, images)
        hits["refined_label_accuracy"].add(result.targets_x, truth_x)
        hits["pseudo_label_accuracy"].add(result.targets_u, truth_u)
        progress(step + 1, steps, meter)
    distributed.average_buffers(network)
    return meter.figures() | {name: hit.percent() for name, hit in hits.items() if hit.count}


@torch.no_grad()
def score(
    networks: Sequence[nn.Module], batches: Iterable, amp: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(logits float32 [networks, b, classes], labels, index) of each batch, in eval mode."""
    for network in networks:
        network.eval()
    device = device_of(networks[0])
    for images, labels, index in batches:
        with autocast(device, amp):
            logits = torch.stack([network(images).float() for network in networks])
        yield logits, labels, index


def sample_losses(network: nn.Module, batches: Iterable, amp: bool = False) -> SampleLosses:
    """CE of each image against its given label, raw, in eval mode (method 4).

    In ascending order of index, in whatever order the batches come.
    """
    losses, positions, device = [], [], device_of(network)
    for (logits,), labels, index in score([network], batches, amp):
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        positions.append(index)
    index, order = torch.cat(distributed.all_gather_tensors(positions, device)).sort()
    return SampleLosses(index, torch.cat(distributed.all_gather_tensors(losses, device))[order])

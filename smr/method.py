"""SMR: two networks that find each other's wrong labels (docs/method.md, sections 3 to 6).

Zhang et al., Mathematics 2024, 12, 2389, on the frame of DivideMix (Li, Socher, Hoi, ICLR 2020).
`train` is the epoch loop; each function that it calls implements one paragraph of the method on
plain arguments, and serves any pair of networks and any `smr.data.loaders.Loader`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from smr import ranks
from smr.data.loaders import Loader
from smr.divide import Scores, Split, add_scores, divide, split_statistics
from smr.errors import NonFiniteLoss
from smr.meters import Hits, Meter
from smr.recipe import CROSS_ENTROPY, SEMI_SUPERVISED, WARM_UP, Recipe, kind_of_epoch, learning_rate
from smr.steps import cross_entropy_loss, mixmatch_loss, mixup_loss, mixup_weights


@dataclass
class Pair:
    """Two networks, their optimisers, and each one's recent scaled losses, oldest first.

    `trained` are the networks as their gradients are made: on several ranks, of all ranks' rows.
    """

    networks: list[nn.Module]
    optimisers: list[Optimizer]
    histories: list[list[Scores]] = field(default_factory=lambda: [[], []])

    def __post_init__(self):
        self.trained = [ranks.parallel(network) for network in self.networks]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gives: `metrics` by TensorBoard tag, each test set's confusion, each split."""

    epoch: int
    kind: str
    metrics: dict[str, float]
    confusions: dict[str, np.ndarray]
    splits: tuple[Split, Split] | None


def no_progress(*_) -> None:
    """The hook of a caller who wants no progress; see `train`."""


def new_pair(
    build_network: Callable[[], nn.Module],
    recipe: Recipe,
    device: torch.device,
    channels_last: bool,
) -> Pair:
    """Two networks of different random weights, each with its own SGD (method 3)."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    networks = [build_network().to(device, memory_format=memory_format) for _ in range(2)]
    sgd = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    fused = device.type in ("cuda", "cpu")
    return Pair(networks, [SGD(network.parameters(), **sgd, fused=fused) for network in networks])


def autocast(device: torch.device, amp: bool) -> AbstractContextManager:
    """bf16 autocast on `device` where amp is set, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp)


def optimise(loss: Tensor, optimiser: Optimizer) -> None:
    """One step of the optimiser down the gradient of `loss`, from and to no gradients."""
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)  # at once: the next forward pass needs the memory


def device_weights(alpha: float, steps: int, device: torch.device) -> Tensor:
    """`mixup_weights` of a whole pass as float32 on the device, so that no step waits for one."""
    return torch.as_tensor(mixup_weights(alpha, steps), dtype=torch.float32).to(device)


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters lie."""
    return next(network.parameters()).device


def supervised_epoch(
    network: nn.Module,
    optimiser: Optimizer,
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
            loss = ranks.weighed(batch_loss(step, images, labels), len(images))
        optimise(loss, optimiser)
        meter.add(loss, {"loss": loss}, len(images))
        progress(step + 1, len(batches), meter)
    ranks.average_buffers(network)
    return meter.figures()


def warm_up_epoch(
    network: nn.Module,
    optimiser: Optimizer,
    batches: Iterable,
    recipe: Recipe,
    progress: Callable = no_progress,
) -> dict[str, float]:
    """One network's warm-up epoch, by mixup (method 3) or by CE (method 6)."""
    if recipe.warmup_loss == "ce":
        penalised = recipe.asymmetric
        return cross_entropy_epoch(network, optimiser, batches, recipe, progress, penalised)
    device = device_of(network)
    weights = device_weights(recipe.alpha, len(batches), device)

    def batch_loss(step: int, images: Tensor, labels: Tensor) -> Tensor:
        permutation = torch.randperm(len(images), device=device)
        return mixup_loss(network, images, labels, weights[step], permutation)

    return supervised_epoch(network, optimiser, batches, batch_loss, recipe, progress)


def cross_entropy_epoch(
    network: nn.Module,
    optimiser: Optimizer,
    batches: Iterable,
    recipe: Recipe,
    progress: Callable = no_progress,
    penalised: bool = False,
) -> dict[str, float]:
    """One network's epoch of CE on the given labels: recalibration, and the baseline `ce`.

    Method 3 and 6.
    """

    def batch_loss(_step: int, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy_loss(network, images, labels, penalised)

    return supervised_epoch(network, optimiser, batches, batch_loss, recipe, progress)


def endless(batches: Iterable) -> Iterator:
    """The batches again and again, shuffled anew each time; nothing of an empty set."""
    while len(batches):
        yield from batches


def semi_supervised_epoch(
    network: nn.Module,
    peer: nn.Module,
    optimiser: Optimizer,
    labelled: Iterable,
    unlabelled: Iterable,
    epoch: int,
    recipe: Recipe,
    progress: Callable = no_progress,
) -> dict[str, float]:
    """One network's semi-supervised epoch (method 5).

    Batches are those of `loader.run('train', …)`, with strong views if the recipe has them. Returns
    the means of `loss`, `loss_x`, `loss_u`, `lambda_u` (the weight of Lu) and `penalty`, and, where
    batches carry the truth, the share of right targets, `refined_accuracy` and `guessed_accuracy`.
    """
    network.train()
    peer.eval()
    device, meter = device_of(network), Meter()
    steps = len(labelled)
    ramp_steps = len(labelled.dataset) // labelled.batch_size + 1  # Kept: the published count
    weights = device_weights(recipe.alpha, steps, device)
    hits = {"refined_accuracy": Hits(), "guessed_accuracy": Hits()}
    unlabelled_stream = endless(unlabelled)
    views = 4 if recipe.augment == "strong" else 2
    for step, batch_x in enumerate(labelled):
        (x1, x2, *strong_x), (labels, probability, *truth_x) = batch_x[:views], batch_x[views:]
        batch_u = next(unlabelled_stream, (x1[:0],) * views)
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
        optimise(result.loss, optimiser)
        figures = ("loss", "loss_x", "loss_u", "lambda_u", "penalty")
        meter.add(result.loss, {name: getattr(result, name) for name in figures}, images)
        hits["refined_accuracy"].add(result.targets_x, truth_x)
        hits["guessed_accuracy"].add(result.targets_u, truth_u)
        progress(step + 1, steps, meter)
    ranks.average_buffers(network)
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


def sample_losses(network: nn.Module, batches: Iterable, amp: bool = False) -> Scores:
    """CE of each image against its given label, raw, in eval mode (method 4).

    In ascending order of index, in whatever order the batches come.
    """
    losses, positions, device = [], [], device_of(network)
    for (logits,), labels, index in score([network], batches, amp):
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        positions.append(index)
    index, order = torch.cat(ranks.gathered(positions, device)).sort()
    return Scores(index, torch.cat(ranks.gathered(losses, device))[order])


def co_divide(pair: Pair, loader: Loader, recipe: Recipe) -> tuple[Split, Split]:
    """Score both networks and fit both mixtures (method 4); each one's own split of the data.

    Each network scores a pass of its own, the second while the first one's mixture is fitted.
    Raises NonFiniteLoss.
    """
    fits = []
    with ThreadPoolExecutor(1) as fitting:
        for k, (network, history) in enumerate(zip(pair.networks, pair.histories, strict=True), 1):
            scores = sample_losses(network, loader.run("eval_train"), recipe.amp)
            if not torch.isfinite(scores.losses).all():
                raise NonFiniteLoss(f"network {k}, scoring: a sample's loss is not finite")
            add_scores(history, scores, recipe.r)
            if ranks.is_first():
                fits.append(fitting.submit(divide, history, recipe))
        return ranks.from_first(lambda: (fits[0].result(), fits[1].result()))


def test(
    networks: Sequence[nn.Module], batches: Iterable, recipe: Recipe
) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy, macro precision, recall and F1 of the added logits (method 3), in per cent.

    Returns them with `net1/accuracy` and `net2/accuracy`, each network's own, and `top5` where the
    recipe asks for it; and the confusion matrix, int64 [classes, classes]: rows are the given
    labels, columns the predictions.
    """
    predicted, given, among_five, classes = [], [], [], 0
    device = device_of(networks[0])
    for logits, labels, _ in score(networks, batches, recipe.amp):
        both = logits.sum(dim=0)
        predicted.append(torch.cat([both[None], logits]).argmax(dim=2))
        given.append(labels)
        classes = logits.shape[2]
        if recipe.top5:
            among_five.append((both.topk(5, dim=1).indices == labels[:, None]).any(dim=1))
    classes = max(ranks.every(classes))
    labels = torch.cat(ranks.gathered(given, device)).cpu().numpy()
    both, *each = torch.cat(ranks.gathered(predicted, device), dim=1).cpu().numpy()
    confusion = np.bincount(labels * classes + both, minlength=classes**2).reshape(classes, classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, both, average="macro", zero_division=0
    )
    figures = {
        "accuracy": (both == labels).mean(),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    if recipe.top5:
        figures["top5"] = torch.cat(ranks.gathered(among_five, device)).float().mean()
    figures |= {f"net{k}/accuracy": (own == labels).mean() for k, own in enumerate(each, 1)}
    return {name: 100 * float(value) for name, value in figures.items()}, confusion


def train(
    pair: Pair,
    loader: Loader,
    recipe: Recipe,
    first_epoch: int = 0,
    progress: Callable = no_progress,
    note: Callable[[str], None] = print,
) -> Iterator[EpochResult]:
    """Run the epochs of method 3, from `first_epoch` to num_epochs inclusive, yielding after each.

    Args:
        progress: called after each step with (epoch, kind, network 1 or 2, step from 1, steps,
            the pass's Meter).
        note: called with a line on whatever a reader of the log should know.

    Raises NonFiniteLoss as soon as a network's pass shows one, saying where.
    """
    for epoch in range(first_epoch, recipe.num_epochs + 1):
        kind = kind_of_epoch(epoch, recipe)
        ranks.draw_apart(loader.generator)
        set_learning_rate(pair, learning_rate(epoch, recipe))
        with located(f"epoch {epoch}, {kind}"):
            splits = co_divide(pair, loader, recipe) if kind == SEMI_SUPERVISED else None
            trained = [
                train_network(pair, k, loader, kind, splits, epoch, recipe, progress, note)
                for k in (0, 1)
            ]
            check_finite(pair)
            tested = {
                name: test(pair.networks, loader.run(name), recipe) for name in loader.test_sets
            }
        metrics = epoch_metrics(learning_rate(epoch, recipe), splits, trained, tested, loader)
        confusions = {name: confusion for name, (_, confusion) in tested.items()}
        yield EpochResult(epoch, kind, metrics, confusions, splits)


def train_network(
    pair: Pair,
    k: int,
    loader: Loader,
    kind: str,
    splits: tuple[Split, Split] | None,
    epoch: int,
    recipe: Recipe,
    progress: Callable,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Network k's (0 or 1) part of an epoch; a semi-supervised one is on its peer's split.

    Where the peer's mixture holds no label for right, it is a recalibration epoch instead.
    """
    network, optimiser = pair.trained[k], pair.optimisers[k]
    step_done = partial(progress, epoch, kind, k + 1)
    with located(f"network {k + 1}"):
        if kind == WARM_UP:
            return warm_up_epoch(network, optimiser, loader.run("warmup"), recipe, step_done)
        if kind == SEMI_SUPERVISED:
            split, peer = splits[1 - k], pair.networks[1 - k]
            if split.labelled.all():
                note(f"network {k + 1} has no unlabelled sample: it trains on the labelled alone")
            if split.labelled.any():
                truth = loader.is_clean is not None
                batches = loader.run(
                    *("train", split.labelled, split.probability, split.index),
                    with_truth=truth,
                    strong=recipe.augment == "strong",
                )
                return semi_supervised_epoch(
                    network, peer, optimiser, *batches, epoch, recipe, step_done
                )
            note(f"network {k + 1} has no labelled sample: it has a recalibration epoch instead")
        mode = "warmup" if kind == CROSS_ENTROPY else "recalibrate"
        return cross_entropy_epoch(network, optimiser, loader.run(mode), recipe, step_done)


def set_learning_rate(pair: Pair, lr: float) -> None:
    """Give both optimisers this learning rate."""
    for optimiser in pair.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr


def check_finite(pair: Pair) -> None:
    """Raise NonFiniteLoss where a network no longer holds finite numbers."""
    for k, network in enumerate(pair.networks, start=1):
        state = network.state_dict()
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in state.values()]).tolist()
        if not all(finite):
            raise NonFiniteLoss(f"{list(state)[finite.index(False)]} of network {k} is not finite")


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put the place before the words of a NonFiniteLoss."""
    try:
        yield
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f"{place}, {error}") from error


def epoch_metrics(
    lr: float,
    splits: tuple[Split, Split] | None,
    trained: Sequence[dict[str, float]],
    tested: dict[str, tuple[dict[str, float], np.ndarray]],
    loader: Loader,
) -> dict[str, float]:
    """An epoch's figures by TensorBoard tag (docs/records.md)."""
    seconds, images = (sum(figures[name] for figures in trained) for name in ("seconds", "images"))
    metrics = {"train/learning_rate": lr}
    for k, split in enumerate(splits or (), start=1):
        is_clean = None if loader.is_clean is None else loader.is_clean[split.index]
        judged = split_statistics(split.labelled, split.probability, is_clean)
        metrics |= {f"split/net{k}/{name}": value for name, value in judged.items()}
    for k, figures in enumerate(trained, start=1):
        metrics |= {f"train/net{k}/{name}": v for name, v in figures.items() if name != "seconds"}
    for test_set, (figures, _) in tested.items():
        metrics |= {f"{test_set}/{name}": value for name, value in figures.items()}
    return metrics | {"time/train_seconds": seconds, "time/images_per_second": images / seconds}

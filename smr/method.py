"""SMR: two networks that find each other's wrong labels (docs/method.md, sections 3 to 6).

Zhang et al., Mathematics 2024, 12, 2389, on the frame of DivideMix (Li, Socher, Hoi, ICLR 2020).
`train` is the epoch loop; each function that it calls, here and in `smr.training`, implements one
paragraph of the method on plain arguments, and serves any pair of networks and any
`smr.data.loader.Loader`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import nn
from torch.optim import SGD, Optimizer

from smr import distributed
from smr.data.loader import Loader
from smr.errors import NonFiniteLoss
from smr.gmm_split import SampleLosses, Split, append_losses, gmm_split, split_statistics
from smr.recipe import CROSS_ENTROPY, SEMI_SUPERVISED, WARM_UP, Recipe, kind_of_epoch, learning_rate
from smr.training import (
    cross_entropy_epoch,
    device_of,
    no_progress,
    sample_losses,
    score,
    semi_supervised_epoch,
    warm_up_epoch,
)


@dataclass
class Pair:
    """Two networks, their optimizers, and each one's recent scaled losses, oldest first.

    `trained` are the networks as their gradients are made: on several ranks, of all ranks' rows.
    """

    networks: list[nn.Module]
    optimizers: list[Optimizer]
    histories: list[list[SampleLosses]] = field(default_factory=lambda: [[], []])

    def __post_init__(self):
        self.trained = [distributed.data_parallel(network) for network in self.networks]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gives: `metrics` by TensorBoard tag, each test set's confusion, each split."""

    epoch: int
    kind: str
    metrics: dict[str, float]
    confusions: dict[str, np.ndarray]
    splits: tuple[Split, Split] | None


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
            append_losses(history, scores, recipe.r)
            if distributed.is_rank_zero():
                fits.append(fitting.submit(gmm_split, history, recipe))
        return distributed.from_rank_zero(lambda: (fits[0].result(), fits[1].result()))


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
    classes = max(distributed.all_gather(classes))
    labels = torch.cat(distributed.all_gather_tensors(given, device)).cpu().numpy()
    both, *each = torch.cat(distributed.all_gather_tensors(predicted, device), dim=1).cpu().numpy()
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
        figures["top5"] = (
            torch.cat(distributed.all_gather_tensors(among_five, device)).float().mean()
        )
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
        distributed.seed_ranks_apart(loader.generator)
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
    network, optimizer = pair.trained[k], pair.optimizers[k]
    step_done = partial(progress, epoch, kind, k + 1)
    with located(f"network {k + 1}"):
        if kind == WARM_UP:
            return warm_up_epoch(network, optimizer, loader.run("warmup"), recipe, step_done)
        if kind == SEMI_SUPERVISED:
            split, peer = splits[1 - k], pair.networks[1 - k]
            if split.labeled.all():
                note(f"network {k + 1} has no unlabeled sample: it trains on the labeled alone")
            if split.labeled.any():
                truth = loader.is_clean is not None
                batches = loader.run(
                    *("train", split.labeled, split.probability, split.index),
                    with_true_labels=truth,
                    strong=recipe.augment == "strong",
                )
                return semi_supervised_epoch(
                    network, peer, optimizer, *batches, epoch, recipe, step_done
                )
            note(f"network {k + 1} has no labeled sample: it has a recalibration epoch instead")
        mode = "warmup" if kind == CROSS_ENTROPY else "recalibrate"
        return cross_entropy_epoch(network, optimizer, loader.run(mode), recipe, step_done)


def set_learning_rate(pair: Pair, lr: float) -> None:
    """Give both optimizers this learning rate."""
    for optimizer in pair.optimizers:
        for group in optimizer.param_groups:
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
        judged = split_statistics(split.labeled, split.probability, is_clean)
        metrics |= {f"split/net{k}/{name}": value for name, value in judged.items()}
    for k, figures in enumerate(trained, start=1):
        metrics |= {f"train/net{k}/{name}": v for name, v in figures.items() if name != "seconds"}
    for test_set, (figures, _) in tested.items():
        metrics |= {f"{test_set}/{name}": value for name, value in figures.items()}
    return metrics | {"time/train_seconds": seconds, "time/images_per_second": images / seconds}

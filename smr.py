"""SMR: two networks that find each other's wrong labels (SPEC 3 to 6).

Zhang et al., Mathematics 2024, 12, 2389, on the frame of DivideMix (Li, Socher, Hoi, ICLR 2020).
`train` is the epoch loop; each function that it calls implements one paragraph of the method on
plain arguments, and serves any pair of networks and any loader of `batches.NoisyLoader`'s form.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import precision_recall_fscore_support
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from losses import NegEntropy, SemiLoss, mixup_criterion, sharpen, uniform_prior_penalty
from support.memory import peak_memory
from support.meters import Hits, Meter, NonFiniteLoss
from support.scoring import scorer

WARM_UP = "warm-up"
RECALIBRATION = "recalibration"
SEMI_SUPERVISED = "semi-supervised"
CROSS_ENTROPY = "cross-entropy"
# Epochs whose scaled losses are averaged where the noise is heaviest (SPEC 4).
HISTORY_LENGTH = 5
HISTORY_R = 0.9


@dataclass(frozen=True)
class Recipe:
    """All that a run of the method depends on besides data, networks and seed; values of SPEC 3."""

    method: str  # 'smr', 'dividemix' or 'ce': with 'ce' every epoch is plain cross-entropy
    num_epochs: int  # the last epoch's number, since epoch 0 is run too
    batch_size: int
    lr: float
    lr_steps: tuple[tuple[int, float], ...]  # from this epoch on, this factor of lr
    weight_decay: float
    warm_up: int
    warmup_loss: str  # 'mixup' or 'ce'
    recalibrate_every: int  # 0: never
    alpha: float
    T: float
    p_threshold: float
    lambda_u: float
    seed: int
    r: float = 0.0  # no share of injected noise is known of labels that people gave
    asymmetric: bool = False  # warm-up with CE then carries DivideMix's penalty
    labelled_rows_only: bool = False  # Kept for Animal-10N: the others skip the network
    momentum: float = 0.9
    amp: bool = False  # bf16 autocast


@dataclass
class Pair:
    """Two networks, their optimisers, and each one's recent scaled losses [n], oldest first."""

    networks: list[nn.Module]
    optimisers: list[Optimizer]
    histories: list[list[Tensor]] = field(default_factory=lambda: [[], []])


@dataclass(frozen=True)
class Split:
    """One network's view of the training set: float arrays [n], and a bool one."""

    losses: np.ndarray  # scaled to [0, 1]
    probability: np.ndarray  # of the given label being right
    labelled: np.ndarray
    mixture: GaussianMixture | None  # fitted to the losses; None where they are all equal


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gives: `metrics` by TensorBoard tag, the test's confusion, each one's split."""

    epoch: int
    kind: str
    metrics: dict[str, float]
    confusion: np.ndarray
    splits: tuple[Split, Split] | None


def no_progress(*_) -> None:
    """The hook of a caller who wants no progress; see `train`."""


def kind_of_epoch(epoch: int, recipe: Recipe) -> str:
    """Warm-up, recalibration or semi-supervised (SPEC 3); all cross-entropy for 'ce' (SPEC 6)."""
    if recipe.method == "ce":
        return CROSS_ENTROPY
    if epoch < recipe.warm_up:
        return WARM_UP
    k = recipe.recalibrate_every
    if k and (epoch + 1) % k == 0 and epoch > recipe.warm_up:
        return RECALIBRATION
    return SEMI_SUPERVISED


def learning_rate(epoch: int, recipe: Recipe) -> float:
    """lr times the factor of the last step reached (SPEC 3)."""
    reached = [factor for start, factor in sorted(recipe.lr_steps) if epoch >= start]
    return recipe.lr * (reached[-1] if reached else 1.0)


def mixup_weights(alpha: float, steps: int) -> np.ndarray:
    """float64 [steps]: l ~ Beta(alpha, alpha), l := max(l, 1-l), one a batch (SPEC 3)."""
    drawn = np.random.beta(alpha, alpha, steps)
    return np.maximum(drawn, 1 - drawn)


def mix(values: Tensor, weight: Tensor | float, permutation: Tensor) -> Tensor:
    """l·values + (1-l)·values[permutation] over the first dimension (SPEC 3, 5)."""
    return weight * values + (1 - weight) * values[permutation]


def autocast(device: torch.device, amp: bool) -> AbstractContextManager:
    """bf16 autocast on `device` where amp is set, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp)


def optimise(loss: Tensor, optimiser: Optimizer) -> None:
    """One step of the optimiser down the gradient of `loss`, from and to no gradients."""
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)  # at once: the next forward pass needs the memory


def mixup_loss(
    network: nn.Module, images: Tensor, labels: Tensor, weight: Tensor | float, permutation: Tensor
) -> Tensor:
    """Warm-up's mixup loss of a batch paired with itself by `permutation` (SPEC 3)."""
    logits = network(mix(images, weight, permutation)).float()
    return mixup_criterion(logits, labels, labels[permutation], weight)


def cross_entropy_loss(
    network: nn.Module, images: Tensor, labels: Tensor, penalised: bool
) -> Tensor:
    """CE on the given labels (SPEC 3), plus DivideMix's entropy term if `penalised` (SPEC 6)."""
    logits = network(images).float()
    loss = F.cross_entropy(logits, labels)
    return loss + NegEntropy()(logits) if penalised else loss


@torch.no_grad()
def guess(network: nn.Module, peer: nn.Module, u1: Tensor, u2: Tensor, T: float) -> Tensor:
    """Targets [b, classes] of unlabelled images: both networks' mean softmax, sharpened (SPEC 5).

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
    """Targets [b, classes] of labelled images: w·onehot(y) + (1-w)·p, sharpened (SPEC 5)."""
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
    labelled: Sequence[Tensor],
    unlabelled: Sequence[Tensor] | None,
    weight: Tensor | float,
    permutation: Tensor,
    epoch: float,
    recipe: Recipe,
) -> MixMatchLoss:
    """The loss of a semi-supervised step (SPEC 5).

    Args: labelled (x1, x2, labels, clean probability); unlabelled (u1, u2), or None; weight, the
    step's l; permutation over the rows of [x1; x2; u1; u2]; epoch + step/steps.
    """
    x1, x2, labels, probability = labelled
    images, targets_u = [x1, x2], None
    if unlabelled is not None:
        targets_u = guess(network, peer, *unlabelled, recipe.T)  # first: the order of BN's passes
        images += unlabelled
    targets_x = refine(network, x1, x2, labels, probability, recipe.T)
    targets = [targets_x, targets_x] + ([targets_u, targets_u] if targets_u is not None else [])
    mixed_images = mix(torch.cat(images), weight, permutation)
    mixed_targets = mix(torch.cat(targets), weight, permutation)
    rows_x = 2 * len(x1)
    if recipe.labelled_rows_only:
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
    penalty = uniform_prior_penalty(logits)
    loss = loss_x + lambda_u * loss_u + penalty
    return MixMatchLoss(
        loss, loss_x, loss_u, lambda_u, penalty, logits, mixed_targets, targets_x, targets_u
    )


def new_pair(
    build_network: Callable[[], nn.Module],
    recipe: Recipe,
    device: torch.device,
    channels_last: bool,
) -> Pair:
    """Two networks of different random weights, each with its own SGD (SPEC 3)."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    networks = [build_network().to(device, memory_format=memory_format) for _ in range(2)]
    sgd = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    fused = device.type in ("cuda", "cpu")
    return Pair(networks, [SGD(network.parameters(), **sgd, fused=fused) for network in networks])


def device_weights(alpha: float, steps: int, device: torch.device) -> Tensor:
    """`mixup_weights` of a whole pass as float32 on the device, so that no step waits for one."""
    return torch.as_tensor(mixup_weights(alpha, steps), dtype=torch.float32).to(device)


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters lie."""
    return next(network.parameters()).device


def warm_up_epoch(
    network: nn.Module,
    optimiser: Optimizer,
    batches: Iterable,
    recipe: Recipe,
    progress: Callable = no_progress,
) -> dict[str, float]:
    """One network's warm-up epoch, by mixup (SPEC 3) or by CE (SPEC 6). Returns its mean `loss`."""
    if recipe.warmup_loss == "ce":
        penalised = recipe.asymmetric
        return cross_entropy_epoch(network, optimiser, batches, recipe, progress, penalised)
    network.train()
    device, meter, steps = device_of(network), Meter(), len(batches)
    weights = device_weights(recipe.alpha, steps, device)
    for step, (images, labels, _) in enumerate(batches):
        permutation = torch.randperm(len(images), device=device)
        with autocast(device, recipe.amp):
            loss = mixup_loss(network, images, labels, weights[step], permutation)
        optimise(loss, optimiser)
        meter.add(loss, {"loss": loss}, len(images))
        progress(step + 1, steps, meter)
    return meter.means()


def cross_entropy_epoch(
    network: nn.Module,
    optimiser: Optimizer,
    batches: Iterable,
    recipe: Recipe,
    progress: Callable = no_progress,
    penalised: bool = False,
) -> dict[str, float]:
    """One network's epoch of plain CE on the given labels: recalibration, and the baseline `ce`.

    SPEC 3 and 6. Returns its mean `loss`.
    """
    network.train()
    device, meter, steps = device_of(network), Meter(), len(batches)
    for step, (images, labels, _) in enumerate(batches):
        with autocast(device, recipe.amp):
            loss = cross_entropy_loss(network, images, labels, penalised)
        optimise(loss, optimiser)
        meter.add(loss, {"loss": loss}, len(images))
        progress(step + 1, steps, meter)
    return meter.means()


@torch.no_grad()
def sample_losses(network: nn.Module, batches: Iterable, amp: bool = False) -> Tensor:
    """CE of each training image against its given label, float32 [n], in eval mode (SPEC 4).

    The loss of image `index` stands at position `index`, in whatever order the batches come.
    """
    device, losses, positions = device_of(network), [], []
    score = scorer(network)
    for images, labels, index in batches:
        with autocast(device, amp):
            logits = score(images)
        losses.append(F.cross_entropy(logits.float(), labels, reduction="none"))
        positions.append(index)
    gathered, order = torch.cat(losses), torch.cat(positions)
    return torch.empty_like(gathered).index_copy_(0, order, gathered)


def min_max_scale(losses: Tensor) -> Tensor:
    """Losses scaled to [0, 1]; all 0 where they are equal (SPEC 4)."""
    spread = losses.max() - losses.min()
    return (losses - losses.min()) / torch.where(spread > 0, spread, torch.ones_like(spread))


def fit_mixture(losses: np.ndarray, seed: int) -> GaussianMixture | None:
    """The two-component mixture over scaled losses [n] (SPEC 4); None where they are all equal."""
    if losses.max() == losses.min():
        return None
    mixture = GaussianMixture(
        n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are the method's
        return mixture.fit(losses.reshape(-1, 1))


def clean_probability(losses: np.ndarray, mixture: GaussianMixture | None) -> np.ndarray:
    """Posterior [n] of the mixture's component with the smaller mean (SPEC 4).

    Equal losses, which have no mixture, tell nothing: each gets 0.5.
    """
    if mixture is None:
        return np.full(len(losses), 0.5)
    return mixture.predict_proba(losses.reshape(-1, 1))[:, mixture.means_.argmin()]


def split_losses(history: list[Tensor], r: float) -> Tensor:
    """What the mixture is fitted to (SPEC 4): the newest losses, or at r = 0.9 the mean of five."""
    return torch.stack(history).mean(dim=0) if r == HISTORY_R else history[-1]


def co_divide(pair: Pair, eval_batches: Iterable, recipe: Recipe) -> tuple[Split, Split]:
    """Score both networks, then fit both mixtures (SPEC 4); each one's own split of the data.

    Raises NonFiniteLoss.
    """
    for k, (network, history) in enumerate(zip(pair.networks, pair.histories, strict=True), 1):
        losses = sample_losses(network, eval_batches, recipe.amp)
        if not torch.isfinite(losses).all():
            raise NonFiniteLoss(f"network {k}, scoring: a sample's loss is not finite")
        add_losses(history, losses)
    first, second = (divide(history, recipe) for history in pair.histories)
    return first, second


def add_losses(history: list[Tensor], losses: Tensor) -> None:
    """Append unscaled losses [n] to a network's history, and forget those out of use (SPEC 4)."""
    history.append(min_max_scale(losses))
    del history[:-HISTORY_LENGTH]


def divide(history: list[Tensor], recipe: Recipe) -> Split:
    """The split by a network's history of scaled losses (SPEC 4)."""
    # In float64: the mixture's EM loses four digits in float32.
    losses = split_losses(history, recipe.r).cpu().numpy().astype(np.float64)
    mixture = fit_mixture(losses, recipe.seed)
    probability = clean_probability(losses, mixture)
    return Split(losses, probability, probability > recipe.p_threshold, mixture)


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
    """One network's semi-supervised epoch (SPEC 5).

    Batches are those of `loader.run('train', …)`. Returns the means of `loss`, `loss_x`, `loss_u`,
    `lambda_u` (the weight of Lu) and `penalty`, and the share of right targets, `refined_accuracy`
    and `guessed_accuracy`, where the batches carry the true labels.
    """
    network.train()
    peer = scorer(peer)
    device, meter = device_of(network), Meter()
    steps = len(labelled)
    ramp_steps = len(labelled.dataset) // labelled.batch_size + 1  # Kept: the published count
    weights = device_weights(recipe.alpha, steps, device)
    hits = {"refined_accuracy": Hits(), "guessed_accuracy": Hits()}
    unlabelled_stream = endless(unlabelled)
    for step, (x1, x2, labels, probability, *truth_x) in enumerate(labelled):
        u1, u2, *truth_u = next(unlabelled_stream, (x1[:0], x1[:0]))
        permutation = torch.randperm(2 * len(x1) + 2 * len(u1), device=device)
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
            )
        optimise(result.loss, optimiser)
        figures = ("loss", "loss_x", "loss_u", "lambda_u", "penalty")
        images = 2 * len(x1) + 2 * len(u1)
        meter.add(result.loss, {name: getattr(result, name) for name in figures}, images)
        hits["refined_accuracy"].add(result.targets_x, truth_x)
        hits["guessed_accuracy"].add(result.targets_u, truth_u)
        progress(step + 1, steps, meter)
    return meter.means() | {name: hit.percent() for name, hit in hits.items() if hit.count}


@torch.no_grad()
def test(
    networks: Sequence[nn.Module], batches: Iterable, amp: bool = False
) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy, macro precision, recall and F1 of both networks' added logits (SPEC 3), in percent.

    Returns them with `net1/accuracy` and `net2/accuracy`, each network's own, and the confusion
    matrix, int64 [classes, classes]: rows are the given labels, columns the predictions.
    """
    device, predicted, given = device_of(networks[0]), [], []
    scorers = [scorer(network) for network in networks]
    for images, labels, _ in batches:
        with autocast(device, amp):
            logits = torch.stack([score(images).float() for score in scorers])
        predicted.append(torch.cat([logits.sum(dim=0, keepdim=True), logits]).argmax(dim=2))
        given.append(labels)
    classes = logits.shape[2]
    labels = torch.cat(given).cpu().numpy()
    both, *each = torch.cat(predicted, dim=1).cpu().numpy()
    confusion = np.bincount(labels * classes + both, minlength=classes**2).reshape(classes, classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, both, average="macro", zero_division=0
    )
    metrics = {
        "accuracy": float((both == labels).mean()),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    metrics |= {f"net{k}/accuracy": float((own == labels).mean()) for k, own in enumerate(each, 1)}
    return {name: 100 * float(value) for name, value in metrics.items()}, confusion


def train(
    pair: Pair,
    loader,
    recipe: Recipe,
    first_epoch: int = 0,
    progress: Callable = no_progress,
    note: Callable[[str], None] = print,
) -> Iterator[EpochResult]:
    """Run the epochs of SPEC 3, from `first_epoch` to num_epochs inclusive, yielding after each.

    Args:
        loader: serves the data in the form of `batches.NoisyLoader`.
        progress: called after each step with (epoch, kind, network 1 or 2, step from 1, steps,
            the pass's Meter).
        note: called with a line on whatever a reader of the log should know.

    Raises NonFiniteLoss as soon as a network's pass shows one, saying where.
    """
    for epoch in range(first_epoch, recipe.num_epochs + 1):
        started = time.perf_counter()
        kind = kind_of_epoch(epoch, recipe)
        lr = learning_rate(epoch, recipe)
        for optimiser in pair.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
        metrics: dict[str, float] = {"train/learning_rate": lr}
        splits = None
        if kind == SEMI_SUPERVISED:
            try:
                splits = co_divide(pair, loader.run("eval_train"), recipe)
            except NonFiniteLoss as error:
                raise NonFiniteLoss(f"epoch {epoch}, {kind}, {error}") from error
            judged = [loader.split_statistics(s.labelled, s.probability) for s in splits]
            metrics |= prefixed("split", judged)
        divided = time.perf_counter()
        trained = []
        for k in (0, 1):
            step_done = partial(progress, epoch, kind, k + 1)
            trained.append(
                train_network(pair, k, loader, kind, splits, epoch, recipe, step_done, note)
            )
        metrics |= prefixed("train", trained)
        trained_by = time.perf_counter()
        tested, confusion = test(pair.networks, loader.run("test"), recipe.amp)
        metrics |= {f"test/{name}": value for name, value in tested.items()}
        finished = time.perf_counter()
        metrics |= {
            "time/split_seconds": divided - started,
            "time/train_seconds": trained_by - divided,
            "time/test_seconds": finished - trained_by,
            "time/seconds": finished - started,
            "time/images_per_second": sum(t["images"] for t in trained) / (trained_by - divided),
        }
        peaks = peak_memory(device_of(pair.networks[0]))
        metrics |= {f"memory/{name}": gib for name, gib in peaks.items()}
        yield EpochResult(epoch, kind, metrics, confusion, splits)


def train_network(
    pair: Pair,
    k: int,
    loader,
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
    network, optimiser = pair.networks[k], pair.optimisers[k]
    try:
        if kind == WARM_UP:
            return warm_up_epoch(network, optimiser, loader.run("warmup"), recipe, progress)
        if kind == SEMI_SUPERVISED:
            split = splits[1 - k]
            if split.labelled.all():
                note(f"network {k + 1} has no unlabelled sample: it trains on the labelled alone")
            if split.labelled.any():
                batches = loader.run(
                    "train",
                    split.labelled,
                    split.probability,
                    with_truth=loader.is_clean is not None,
                )
                return semi_supervised_epoch(
                    network, pair.networks[1 - k], optimiser, *batches, epoch, recipe, progress
                )
            note(f"network {k + 1} has no labelled sample: it has a recalibration epoch instead")
        return cross_entropy_epoch(network, optimiser, loader.run("warmup"), recipe, progress)
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f"epoch {epoch}, {kind}, network {k + 1}, {error}") from error


def prefixed(group: str, networks: Sequence[dict[str, float]]) -> dict[str, float]:
    """`group/net1/name` and `group/net2/name` for each of the two networks' figures."""
    return {
        f"{group}/net{k}/{name}": value
        for k, figures in enumerate(networks, start=1)
        for name, value in figures.items()
    }

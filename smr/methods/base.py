"""What every method does around its epochs: learning rate, places of errors, metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from smr import distributed
from smr.config import Config
from smr.data.loader import Loader
from smr.errors import NonFiniteLoss
from smr.gmm_split import SampleLosses, Split, gmm_split, split_statistics, with_losses
from smr.training import Pair, learning_rate


@dataclass(frozen=True)
class TrainedEpoch:
    """An epoch's number, its kind, its `metrics` by TensorBoard tag, and each network's split."""

    epoch: int
    kind: str
    metrics: dict[str, float]
    splits: tuple[Split, ...] = ()


class Method:
    """Two networks, a loader, and what each epoch trains on them.

    A subclass implements `kind_of_epoch` and `train`, and, if it keeps state across epochs,
    `state_dict` and `load_state_dict`, which a resume uses. `Flags` are its command-line flags.
    """

    # As --method names it.
    NAME: ClassVar[str] = ""
    # Hyperparameters that the method sets whatever the dataset.
    DEFAULTS: ClassVar[dict] = {}

    @dataclass
    class Flags:
        """No flags."""

    def __init__(self, config: Config, pair: Pair, loader: Loader, log=None):
        self.config, self.pair, self.loader, self.log = config, pair, loader, log
        # Each network's losses of the last epochs, if the method keeps them.
        self.histories: list[list[SampleLosses]] = [[], []]

    def note(self, text: str) -> None:
        """Write a line to the log, if there is one."""
        if self.log:
            self.log.note(text)

    def kind_of_epoch(self, epoch: int) -> str:
        """The kind of an epoch in a word, such as 'warm-up'."""
        raise NotImplementedError

    def train(self, epoch: int) -> tuple[list[dict[str, float]], tuple[Split, ...]]:
        """Train both networks for an epoch; returns each one's figures, and the splits."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """What the method keeps across epochs: tensors, numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`. Raises any exception on one that does not fit."""

    def train_epoch(self, epoch: int) -> TrainedEpoch:
        """Train both networks for an epoch. Raises NonFiniteLoss that says where."""
        kind, lr = self.kind_of_epoch(epoch), learning_rate(epoch, self.config)
        distributed.seed_ranks_apart(self.loader.generator)
        self.pair.set_learning_rate(lr)
        with located(f"epoch {epoch}, {kind}"):
            figures, splits = self.train(epoch)
            self.pair.check_finite()
        metrics = {"train/learning_rate": lr}
        metrics |= split_metrics(splits, self.loader) | training_metrics(figures)
        return TrainedEpoch(epoch, kind, metrics, splits)

    def for_each_network(
        self, epoch: int, train_network: Callable[[int, Callable | None], dict[str, float]]
    ) -> list[dict[str, float]]:
        """train_network(k, progress) of network 1 (k = 0), then of network 2."""
        figures, kind = [], self.kind_of_epoch(epoch)
        for k in (0, 1):
            with located(f"network {k + 1}"):
                progress = self.log and partial(self.log.progress, epoch, kind, k + 1)
                figures.append(train_network(k, progress))
        return figures

    def clean_probabilities(self, losses: list[SampleLosses]) -> np.ndarray:
        """float [2, m]: each network's clean probability of labels with these losses (method 4)."""
        r, seed = self.config.r, self.config.seed
        splits = [
            gmm_split(with_losses(history, latest, r), r, seed)
            for history, latest in zip(self.histories, losses, strict=True)
        ]
        return np.stack([split.clean_probability for split in splits])


def split_metrics(splits: tuple[Split, ...], loader: Loader) -> dict[str, float]:
    """`split/netK/…` of each network's split."""
    metrics = {}
    for k, split in enumerate(splits, start=1):
        is_clean = None if loader.is_clean is None else loader.is_clean[split.index]
        statistics = split_statistics(split.labeled, split.clean_probability, is_clean)
        metrics |= {f"split/net{k}/{name}": value for name, value in statistics.items()}
    return metrics


def training_metrics(trained: list[dict[str, float]]) -> dict[str, float]:
    """`train/netK/…` of both networks' epochs, and the time that they took."""
    seconds, images = (sum(figures[name] for figures in trained) for name in ("seconds", "images"))
    metrics = {
        f"train/net{k}/{name}": value
        for k, figures in enumerate(trained, start=1)
        for name, value in figures.items()
        if name != "seconds"
    }
    return metrics | {"time/train_seconds": seconds, "time/images_per_second": images / seconds}


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put the place before the message of a NonFiniteLoss."""
    try:
        yield
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f"{place}, {error}") from error

"""Networks in eval mode: batches of logits, per-sample losses, and the test (method 3 and 4)."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn

from smr import distributed
from smr.config import Config
from smr.data.loader import Loader
from smr.gmm_split import SampleLosses
from smr.training import autocast, device_of


@torch.no_grad()
def predict_batches(
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


def predict(
    networks: Sequence[nn.Module], batches: Iterable, amp: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`predict_batches` of all ranks as one batch, in no order."""
    tensors = list(chain.from_iterable(predict_batches(networks, batches, amp)))
    tensors = distributed.all_gather_tensors(tensors, device_of(networks[0]))
    return torch.cat(tensors[::3], dim=1), torch.cat(tensors[1::3]), torch.cat(tensors[2::3])


def sample_losses(network: nn.Module, batches: Iterable, amp: bool = False) -> SampleLosses:
    """CE of each image against its given label, in ascending order of index (method 4)."""
    (logits,), labels, index = predict([network], batches, amp)
    index, order = index.sort()
    return SampleLosses(index, F.cross_entropy(logits, labels, reduction="none")[order])


class Test(NamedTuple):
    """The figures of a test set in per cent, and its confusion matrix."""

    __test__ = False  # for pytest, which takes the name for a test's

    figures: dict[str, float]
    confusion: np.ndarray


def evaluate(networks: Sequence[nn.Module], batches: Iterable, config: Config) -> Test:
    """Accuracy, macro precision, recall and F1 of the added logits (method 3).

    Also `net1/accuracy` and `net2/accuracy`, each network's own, and `top5` if config.top5.
    Confusion matrix: int64 [classes, classes]; rows are the labels, columns the predictions.
    """
    logits, labels, _ = predict(networks, batches, config.amp)
    ensemble = logits.sum(dim=0)
    predicted, *each = torch.cat([ensemble[None], logits]).argmax(dim=2).cpu().numpy()
    known = labels.cpu().numpy()
    precision, recall, f1, _ = precision_recall_fscore_support(
        known, predicted, average="macro", zero_division=0
    )
    accuracy = (predicted == known).mean()
    figures = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    if config.top5:
        in_top5 = ensemble.topk(5, dim=1).indices == labels[:, None]
        figures["top5"] = in_top5.any(dim=1).float().mean()
    figures |= {f"net{k}/accuracy": (own == known).mean() for k, own in enumerate(each, 1)}
    percent = {name: 100 * float(value) for name, value in figures.items()}
    return Test(percent, confusion_matrix(known, predicted, labels=range(logits.shape[2])))


def test(networks: Sequence[nn.Module], loader: Loader, config: Config) -> dict[str, Test]:
    """`evaluate` on each test set of the loader, by its name."""
    return {name: evaluate(networks, loader.run(name), config) for name in loader.test_sets}

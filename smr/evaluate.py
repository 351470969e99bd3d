"""Networks in eval mode: batches of logits, per-sample losses, and the test (method 3 and 4)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import precision_recall_fscore_support
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


def sample_losses(network: nn.Module, batches: Iterable, amp: bool = False) -> SampleLosses:
    """CE of each image against its given label, in ascending order of index (method 4)."""
    losses, positions, device = [], [], device_of(network)
    for (logits,), labels, index in predict_batches([network], batches, amp):
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        positions.append(index)
    index, order = torch.cat(distributed.all_gather_tensors(positions, device)).sort()
    return SampleLosses(index, torch.cat(distributed.all_gather_tensors(losses, device))[order])


def evaluate(
    networks: Sequence[nn.Module], batches: Iterable, config: Config
) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy, macro precision, recall and F1 of the added logits (method 3), in per cent.

    Returns these with `net1/accuracy` and `net2/accuracy`, each network's own, and `top5` if
    config.top5; and the confusion matrix, int64 [classes, classes]: rows are the labels, columns
    the predictions.
    """
    predictions, targets, in_top5, classes = [], [], [], 0
    device = device_of(networks[0])
    for logits, labels, _ in predict_batches(networks, batches, config.amp):
        ensemble = logits.sum(dim=0)
        predictions.append(torch.cat([ensemble[None], logits]).argmax(dim=2))
        targets.append(labels)
        classes = logits.shape[2]
        if config.top5:
            top5 = ensemble.topk(5, dim=1).indices
            in_top5.append((top5 == labels[:, None]).any(dim=1))
    classes = max(distributed.all_gather(classes))
    labels = torch.cat(distributed.all_gather_tensors(targets, device)).cpu().numpy()
    predictions = torch.cat(distributed.all_gather_tensors(predictions, device), dim=1)
    ensemble, *each = predictions.cpu().numpy()
    cells = np.bincount(labels * classes + ensemble, minlength=classes**2)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, ensemble, average="macro", zero_division=0
    )
    figures = {
        "accuracy": (ensemble == labels).mean(),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    if config.top5:
        figures["top5"] = torch.cat(distributed.all_gather_tensors(in_top5, device)).float().mean()
    figures |= {f"net{k}/accuracy": (own == labels).mean() for k, own in enumerate(each, 1)}
    percent = {name: 100 * float(value) for name, value in figures.items()}
    return percent, cells.reshape(classes, classes)


@dataclass(frozen=True)
class Test:
    """The figures of a test set in per cent, and its confusion matrix; see `evaluate`."""

    figures: dict[str, float]
    confusion: np.ndarray


def test(networks: Sequence[nn.Module], loader: Loader, config: Config) -> dict[str, Test]:
    """`evaluate` on each test set of the loader, by its name."""
    return {name: Test(*evaluate(networks, loader.run(name), config)) for name in loader.test_sets}

"""Training as one of several processes: torchrun's ranks, each with its part of every batch.

Every call of torch.distributed is here. In a process of its own each function gives back what it
was given.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smr.errors import InputError, RankLost

T = TypeVar("T")


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_rank() -> int:
    """This process's number among those of its machine: the card that it takes."""
    return int(os.environ["LOCAL_RANK"])


@contextmanager
def joined() -> Iterator[None]:
    """Be one of torchrun's ranks for a while; NCCL carries what lies on CUDA, gloo the rest."""
    if not launched():
        yield
        return
    cards = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cards else "gloo")
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "onnection")):
            raise
        raise RankLost("another rank is gone") from error
    dist.destroy_process_group()  # not where an exception passes: the others would wait for it


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that writes and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def own_rows(batch_size: int) -> slice:
    """This rank's rows of a batch that all ranks drew alike.

    Each row is one rank's, and parts differ by one row at the most. A batch with fewer rows than
    there are ranks goes to each of them whole: their mean gradient is its gradient.
    """
    if count() == 1 or batch_size < count():
        return slice(None)
    first, last = (batch_size * (dist.get_rank() + i) // count() for i in (0, 1))
    return slice(first, last)


def own_batches(batches: Sequence[T]) -> Iterator[T]:
    """This rank's batches of those that need no gradient, each whole as in a single process."""
    return islice(batches, dist.get_rank(), None, count()) if count() > 1 else iter(batches)


def share(rows: int, device: torch.device) -> Tensor | float:
    """What the mean over this rank's rows counts beside an equal part of the batch."""
    if count() == 1:
        return 1.0
    total = torch.tensor(float(rows), device=device)
    dist.all_reduce(total)
    return rows * count() / total


class RanksMean(torch.autograd.Function):
    """The mean over ranks, of values forward and of their gradients backward.

    Each rank's loss is a function of that mean; DistributedDataParallel then takes the mean of
    what reaches the weights, which is the gradient of the one loss.
    """

    @staticmethod
    def forward(_, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total / count()

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return RanksMean.forward(_, gradient)


def mean(values: Tensor) -> Tensor:
    """The mean of the ranks' values; gradients flow through it to each rank's own."""
    return RanksMean.apply(values) if count() > 1 else values


def gathered(parts: list[Tensor]) -> list[Tensor]:
    """The tensors of every rank, on this rank's device; for passes whose order does not matter."""
    if count() == 1:
        return parts
    found: list = [None] * count()
    dist.all_gather_object(found, [part.cpu() for part in parts])
    device = parts[0].device if parts else "cpu"
    return [part.to(device) for of_rank in found for part in of_rank]


def every(value: T) -> list[T]:
    """Each rank's value, the first rank's first."""
    if count() == 1:
        return [value]
    found: list = [None] * count()
    dist.all_gather_object(found, value)
    return found


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on the first rank, handed to all. Its InputError is raised on all."""
    if count() == 1:
        return make()
    box: list = [None, None]
    if is_first():
        try:
            box[0] = make()
        except InputError as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1]:
        raise box[1]
    return box[0]


def in_turn(make: Callable[[], T]) -> T:
    """What `make` gives on each rank, the first one first: what it fetches, the others find."""
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()


def parallel(network: nn.Module) -> nn.Module:
    """The network as it trains: its gradients are the mean of all ranks'."""
    if count() == 1:
        return network
    device = next(network.parameters()).device
    cards = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=cards, broadcast_buffers=False)


def average_buffers(network: nn.Module) -> None:
    """Give all ranks the mean of their BN statistics, which each kept over its own rows."""
    for buffer in network.buffers() if count() > 1 else ():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= count()

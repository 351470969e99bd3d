"""Training as one of several processes: torchrun's ranks, each with its part of every batch.

Every call of torch.distributed is here. In a process of its own each function gives back what it
was given.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smr.errors import InputError, RankLost

T = TypeVar("T")
# How long a rank waits for the others. One that ends is noticed at once: this is for the first one,
# which may have to fetch and look through a large dataset before the rest can begin.
PATIENCE = timedelta(hours=4)


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_rank() -> int:
    """This process's number among those of its machine: the GPU that it takes."""
    return int(os.environ["LOCAL_RANK"])


@contextmanager
def process_group() -> Iterator[None]:
    """Be one of torchrun's ranks for a while; NCCL carries what lies on CUDA, gloo the rest."""
    if not launched():
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "onnection")):
            raise
        reason = f" ({str(error).splitlines()[0]})" if "NCCL" in str(error) else ""
        raise RankLost(f"another rank is gone, or cannot be reached{reason}") from error
    dist.destroy_process_group()  # not where an exception passes: the others would wait for it


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this is the rank that writes and speaks; known before they have joined."""
    return not launched() or os.environ["RANK"] == "0"


def rank_rows(batch_size: int) -> slice:
    """This rank's rows of a batch that all ranks drew alike.

    Each row is one rank's, and parts differ by one row at the most. A batch with fewer rows than
    there are ranks goes to each of them whole: their mean gradient is its gradient.
    """
    if world_size() == 1 or batch_size < world_size():
        return slice(None)
    first, last = (batch_size * (dist.get_rank() + i) // world_size() for i in (0, 1))
    return slice(first, last)


def rank_batches(batches: Sequence[T]) -> Iterator[T]:
    """This rank's batches of those that need no gradient, each whole as in a single process."""
    return (
        islice(batches, dist.get_rank(), None, world_size()) if world_size() > 1 else iter(batches)
    )


def rank_share(rows: int) -> int:
    """How many of the rows the largest part has where ranks share them alike; 1 at least."""
    return max(1, -(-rows // world_size()))


def rank_workers(workers: int) -> int:
    """This rank's number of the worker processes of its machine."""
    return -(-workers // int(os.environ["LOCAL_WORLD_SIZE"])) if launched() else workers


def weight_by_rows(value: Tensor, rows: int) -> Tensor:
    """A mean over this rank's rows, times what they count: the ranks' mean is then all rows'."""
    if world_size() == 1:
        return value
    total = torch.full((), float(rows), device=value.device)
    dist.all_reduce(total)
    return value * (rows * world_size() / total.clamp(min=1))


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of the ranks' values; gradients flow to this rank's own.

    A loss of that mean is the same on all ranks, and DistributedDataParallel takes the mean of what
    reaches the weights: its gradient.
    """
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size() + (values - values.detach())


def all_gather_tensors(parts: list[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors of every rank, on `device`; for passes whose order does not matter."""
    if world_size() == 1:
        return parts
    of_ranks = all_gather([part.cpu() for part in parts])
    return [part.to(device) for of_rank in of_ranks for part in of_rank]


def all_gather(value: T) -> list[T]:
    """Each rank's value, the first rank's first."""
    if world_size() == 1:
        return [value]
    found: list = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def from_rank_zero(make: Callable[[], T]) -> T:
    """What `make` gives on the first rank, handed to all. Its InputError ends them all.

    The first one says why, and the others leave in silence.
    """
    if world_size() == 1:
        return make()
    box: list = [None, None]
    if is_rank_zero():
        try:
            box[0] = make()
        except InputError as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1]:
        raise box[1] if is_rank_zero() else SystemExit(2)
    return box[0]


def one_by_one(make: Callable[[], T]) -> T:
    """What `make` gives on each rank, of which it calls the first one first.

    Then the first one of each other machine, then the rest: what one fetches, the next ones find.
    """
    if world_size() == 1:
        return make()
    made: list[T] = []
    from_rank_zero(lambda: made.append(make()))
    for its_turn in (local_rank() == 0, True):
        if its_turn and not made:
            made.append(make())
        all_gather(None)
    return made[0]


def seed_ranks_apart(shared: torch.Generator) -> None:
    """Have each rank draw mixing partners and dropout of its own, as `shared` and its number say.

    Nothing else does: the first one draws on as a single process would, and a run that is resumed
    as if it had not been stopped.
    """
    if not is_rank_zero():
        torch.manual_seed(zlib.crc32(shared.get_state().numpy().tobytes()) + dist.get_rank())


def rank_generator(shared: torch.Generator) -> torch.Generator:
    """A generator of the CPU that draws for this rank alone, seeded by the next of `shared`."""
    seed = int(torch.randint(2**62, (), generator=shared, device=shared.device))
    number = dist.get_rank() if world_size() > 1 else 0
    return torch.Generator().manual_seed(seed + number)


def data_parallel(network: nn.Module) -> nn.Module:
    """The network as it trains: its gradients are the mean of all ranks'."""
    if world_size() == 1:
        return network
    device = next(network.parameters()).device
    gpus = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(network, device_ids=gpus)
    wrapped.broadcast_buffers = False  # else each pass would begin with the first rank's statistics
    return wrapped


def average_buffers(network: nn.Module) -> None:
    """Give all ranks the mean of their BN statistics, which each kept over its own rows."""
    for buffer in network.buffers() if world_size() > 1 else ():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world_size()

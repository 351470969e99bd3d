"""Training in several processes, torchrun's ranks: each has its part of every batch.

Every call of torch.distributed is here. In a single process each function returns its input.
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
# How long a rank waits for the others, of which rank 0 may have a large dataset to download. If one
# ends, the others notice at once.
TIMEOUT = timedelta(hours=4)


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def local_rank() -> int:
    """This process's number on its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def process_group() -> Iterator[None]:
    """Join torchrun's ranks: NCCL sends CUDA tensors, gloo all others. Raises RankLost."""
    if not launched():
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "onnection")):
            raise
        reason = f" ({str(error).splitlines()[0]})" if "NCCL" in str(error) else ""
        raise RankLost(f"another rank is gone, or cannot be reached{reason}") from error
    dist.destroy_process_group()  # not after an exception: the others would wait for it


def rank() -> int:
    """This process's number among all ranks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this is the rank that prints and writes files, also before the ranks have joined."""
    joined = dist.is_initialized() or not launched()
    return (rank() if joined else int(os.environ["RANK"])) == 0


def rank_rows(batch_size: int) -> slice:
    """This rank's rows of a batch; the parts differ by one row at most.

    A batch with fewer rows than ranks goes to each rank whole: their mean gradient is its gradient.
    """
    if batch_size < world_size():
        return slice(None)
    first, last = (batch_size * (rank() + i) // world_size() for i in (0, 1))
    return slice(first, last)


def rank_batches(batches: Sequence[T]) -> Iterator[T]:
    """This rank's batches of a pass without gradients, each whole as in a single process."""
    return islice(batches, rank(), None, world_size())


def rank_share(rows: int) -> int:
    """The rows of the largest of equal parts; at least 1."""
    return max(1, -(-rows // world_size()))


def rank_workers(workers: int) -> int:
    """This rank's share of its machine's workers."""
    return -(-workers // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def weight_by_rows(value: Tensor, rows: int) -> Tensor:
    """A mean over this rank's rows, weighted so that the mean over ranks is that over all rows."""
    if world_size() == 1:
        return value
    total = torch.full((), float(rows), device=value.device)
    dist.all_reduce(total)
    return value * (rows * world_size() / total.clamp(min=1))


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of the ranks' values; gradients flow to this rank's own.

    A loss of it is equal on all ranks; DistributedDataParallel averages the gradients.
    """
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size() + (values - values.detach())


def all_gather_tensors(parts: list[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors of every rank on `device`, those of rank 0 first."""
    if world_size() == 1:
        return parts
    gathered = all_gather([part.cpu() for part in parts])
    return [part.to(device) for of_rank in gathered for part in of_rank]


def all_gather(value: T) -> list[T]:
    """The value of each rank, that of rank 0 first."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0. If it raises InputError there, the other ranks exit with 2."""
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
    """What `make` returns on this rank: the next ranks find the files that the first downloads.

    Rank 0 calls it first, then the first rank of each other machine, then the rest.
    """
    made: list[T] = []
    from_rank_zero(lambda: made.append(make()))
    for its_turn in (local_rank() == 0, True):
        if its_turn and not made:
            made.append(make())
        all_gather(None)
    return made[0]


def seed_ranks_apart(shared: torch.Generator) -> None:
    """Seed torch on all ranks but rank 0, so that each draws its own mixup partners and dropout.

    Rank 0 draws as a single process does; a resumed run draws the same again.
    """
    if not is_rank_zero():
        torch.manual_seed(zlib.crc32(shared.get_state().numpy().tobytes()) + rank())


def rank_generator(shared: torch.Generator) -> torch.Generator:
    """A CPU generator of this rank alone, seeded by the next draw of `shared`."""
    seed = int(torch.randint(2**62, (), generator=shared, device=shared.device))
    return torch.Generator().manual_seed(seed + rank())


def data_parallel(network: nn.Module) -> nn.Module:
    """The network as it trains: its gradients are the mean over all ranks."""
    if world_size() == 1:
        return network
    wrapped = DistributedDataParallel(network)
    wrapped.broadcast_buffers = False  # else a pass begins with rank 0's batch norm statistics
    return wrapped


def average_buffers(network: nn.Module) -> None:
    """Set the batch norm statistics, which each rank kept over its own rows, to their mean."""
    for buffer in network.buffers() if world_size() > 1 else ():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world_size()

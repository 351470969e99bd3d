"""Checkpoints: `last.pt` holds all that a bit-exact resume needs, `best.pt` the networks alone.

Both load with torch.load(weights_only=True), so that reading a stranger's checkpoint runs no code.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from smr import distributed
from smr.data.cifar_files import Refused, load_archive
from smr.data.loader import Loader
from smr.errors import InputError, NonFiniteLoss
from smr.files import atomic_write
from smr.training import Pair

NETWORK_PARTS = (
    *("script", "epoch", "config", "device", "world_size", "data_sha256", "networks"),
    *("accuracy", "images"),
)
TRAINING_PARTS = ("optimizers", "method", "random", "rows")
# What `predict.py` needs to know of the images that the networks take.
IMAGE_PARTS = ("class_names", "image_size", "mean", "std", "frame")
DAMAGED, OTHER_NETWORK = "a damaged checkpoint", "holds another network than these flags make"


def random_states(loader: Loader) -> dict:
    """Every random state that training draws from; the GMM's is the seed of the configuration."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    device = loader.generator.device
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "device": device.type,
        "loader": loader.generator.get_state(),
    }
    if device.type in ("cuda", "mps"):
        states["torch_device"] = getattr(torch, device.type).get_rng_state()
    return states


def set_random_states(states: dict, loader: Loader) -> None:
    """Restore `random_states`; on another kind of device, seeds derived from them."""
    random.setstate(states["python"])
    kind, keys, position, *rest = states["numpy"]
    if not 0 <= position <= len(keys):
        raise ValueError("NumPy's random state")  # NumPy itself does not check it
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, *rest))
    torch.set_rng_state(states["torch"])
    device = loader.generator.device
    if device.type != states["device"]:
        # Generators differ: the stored state gives a seed, a new one after each epoch.
        seed = zlib.crc32(states["loader"].numpy().tobytes())
        loader.generator.manual_seed(seed)
        torch.manual_seed(seed)
        return
    loader.generator.set_state(states["loader"])
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).set_rng_state(states["torch_device"])


def training_state(run, epoch: int) -> dict:
    """The state of a `Run` after `epoch` (-1: before the first), with the rows of metrics.jsonl.

    Of `run` it reads script, config, loader, pair, method, data_sha256 and rows.
    """
    return {
        "script": run.script,
        "epoch": epoch,
        "config": asdict(run.config),
        "device": run.loader.generator.device.type,
        "world_size": distributed.world_size(),
        "data_sha256": run.data_sha256,
        "networks": [network.state_dict() for network in run.pair.networks],
        "accuracy": run.rows[-1]["test/accuracy"] if run.rows else 0.0,
        "images": {name: getattr(run.loader.info, name) for name in IMAGE_PARTS},
        "optimizers": [optimizer.state_dict() for optimizer in run.pair.optimizers],
        "method": run.method.state_dict(),
        "random": random_states(run.loader),
        "rows": run.rows,
    }


@contextmanager
def fitting(path: Path, what: str) -> Iterator[None]:
    """Turn what torch, NumPy and Python raise on a state that does not fit into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # The last line of torch's message has the reason.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise InputError(f"{path}: {what} ({reason})") from error


def restore(run, state: dict, path: Path) -> None:
    """Restore a `training_state`, or networks alone. Raises InputError if it does not fit."""
    if state["data_sha256"] != run.data_sha256:
        raise InputError(
            f"{path}: the labels, images or classes are not those of this run: files were added, "
            "changed, moved or removed, or --noise_file is another; put them back, or start a new "
            "run with another --id"
        )
    restore_networks(state, run.pair, path)
    if "optimizers" not in state:
        return
    with fitting(path, DAMAGED):
        run.method.load_state_dict(state["method"])
        for optimizer, saved in zip(run.pair.optimizers, state["optimizers"], strict=True):
            restore_momentum(optimizer, saved)
        set_random_states(state["random"], run.loader)


def restore_networks(state: dict, pair: Pair, path: Path) -> None:
    """Restore a checkpoint's networks. Raises InputError if they do not fit."""
    with fitting(path, OTHER_NETWORK):
        for network, saved in zip(pair.networks, state["networks"], strict=True):
            network.load_state_dict(saved)
    try:
        pair.check_finite()
    except NonFiniteLoss as error:
        raise InputError(f"{path}: {error}; use an older checkpoint") from error


def restore_momentum(optimizer: Optimizer, saved: dict) -> None:
    """Restore the momentum; SGD's settings are those of the configuration."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for index, values in saved["state"].items():
        # In the parameter's own memory format: fused SGD reads both as flat memory.
        momentum = torch.empty_like(parameters[index]).copy_(values["momentum_buffer"])
        state[index] = {"momentum_buffer": momentum}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def save(state: dict, path: Path) -> None:
    """Write a checkpoint atomically. Raises OSError."""
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # which torch turns into an error of its own
            raise error.__context__ from None
        raise


def write_checkpoints(
    state: dict,
    folder: Path,
    best_epochs: tuple[int, int],
    last: bool,
    whole: Callable[[dict], dict] | None = None,
) -> list[str]:
    """Write `best.pt` if the state is a network's best, then `last.pt` if asked; notes for the log.

    If the disk is full the older file stays, and a note says so. Args: whole, the state dict of the
    whole network with a head's, if the state holds heads: `best.pt` has whole networks.
    """
    contents = {}
    if state["epoch"] in best_epochs:
        contents["best.pt"] = best_networks(state, best_epochs, folder / "best.pt", whole)
    if last:
        contents["last.pt"] = state
    notes = []
    for name, content in contents.items():
        try:
            save(content, folder / name)
        except OSError as error:
            notes.append(
                f"{name} of epoch {state['epoch']} was not written ({error.strerror}); "
                "the older one stays"
            )
    return notes


def best_networks(
    state: dict, best_epochs: tuple[int, int], path: Path, whole: Callable[[dict], dict] | None
) -> dict:
    """The content of `best.pt`: the state's networks, except one that was better in the file.

    `epochs` are the networks' own if they differ; `epoch` and `accuracy` are of the latest pair.
    """
    best = {name: state[name] for name in NETWORK_PARTS}
    best["networks"] = [whole(network) if whole else network for network in state["networks"]]
    if len(set(best_epochs)) > 1 and path.exists():
        older = 1 - best_epochs.index(state["epoch"])
        best["networks"][older] = load(path)["networks"][older]
        best["epochs"] = best_epochs
    return best


def path_of(path: str | Path, name: str = "last.pt") -> Path:
    """The checkpoint that a user names, a file or a run's folder. Raises InputError."""
    path = Path(path)
    if path.is_dir():
        if runs := sorted(each.parent.name for each in path.glob(f"*/{name}")):
            raise InputError(f"{path}: give one of its runs: {', '.join(runs)}")
        path = path / name
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    return path


def load(path: Path, training: bool = False) -> dict:
    """A checkpoint's content, on the CPU: a `last.pt` if `training`. Raises InputError."""
    try:
        state = load_archive(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except Refused as error:
        raise InputError(f"{path}: no checkpoint: {error}") from error
    parts = NETWORK_PARTS + TRAINING_PARTS * training
    lacking = [name for name in parts if not isinstance(state, dict) or name not in state]
    if lacking:
        raise InputError(
            f"{path}: it lacks {', '.join(lacking)}; --resume takes a last.pt, of this version"
        )
    return state


def copied(state: dict) -> dict:
    """A copy, tensors in host memory, of a state that training changes in place."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)

"""What a run needs to go on as if nothing had happened, on disk in one piece.

`last.pt` holds everything, `best.pt` the networks alone. Both load with
torch.load(weights_only=True), so that reading a stranger's checkpoint runs no code of his.
"""

import io
import json
import random
import zlib
from pathlib import Path

import numpy as np
import torch

from batches import InputError
from support import untrusted
from support.files import replacing

NETWORK_PARTS = {
    "epoch": int,
    "config": dict,
    "device": str,
    "noise_sha256": str,
    "networks": list,
    "accuracy": float,
}
TRAINING_PARTS = {"optimisers": list, "histories": list, "random": dict, "rows": list}
# What torch, NumPy and Python raise on a state that is not theirs.
DAMAGE = (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError)


def random_states(loader) -> dict:
    """Every random state that training draws from; the mixture's is the configuration's seed."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    device = loader.generator.device
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "device": device.type,
        "loader": loader.generator.get_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict, loader) -> None:
    """Put back what `random_states` took, on another kind of device as far as that has the like."""
    random.setstate(states["python"])
    kind, keys, position, *rest = states["numpy"]
    if not 0 <= position <= len(keys):
        raise ValueError("NumPy's random state")  # which NumPy would believe
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
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def training_state(
    pair, loader, config: dict, noise_sha256: str, rows: list[dict], epoch: int
) -> dict:
    """The state after `epoch` (-1: before the first) of a `smr.Pair` and its loader.

    Args: rows of metrics.jsonl so far, of which each has its epoch's accuracies.
    """
    return {
        "epoch": epoch,
        "config": config,
        "device": loader.generator.device.type,
        "noise_sha256": noise_sha256,
        "networks": [network.state_dict() for network in pair.networks],
        "accuracy": rows[-1]["test/accuracy"] if rows else 0.0,
        "optimisers": [optimiser.state_dict() for optimiser in pair.optimisers],
        "histories": pair.histories,
        "random": random_states(loader),
        "rows": [json.dumps(row) for row in rows],
    }


def networks_alone(state: dict) -> dict:
    """What `best.pt` holds of a `training_state`."""
    return {key: state[key] for key in NETWORK_PARTS}


def not_finite(state: dict) -> str | None:
    """Names a network of a `training_state` that no longer holds finite numbers; None if none."""
    for number, network in enumerate(state["networks"], start=1):
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in network.values()])
        if not finite.all():
            name = list(network)[int((~finite).nonzero()[0])]
            return f"{name} of network {number} is not finite"
    return None


def restore(state: dict, pair, loader, noise_sha256: str, path: Path) -> None:
    """Put a `training_state` into a pair and a loader. Raises InputError where it does not fit."""
    if state["noise_sha256"] != noise_sha256:
        raise InputError(
            f"{path}: was trained on other labels (sha256 {state['noise_sha256']}, now "
            f"{noise_sha256}); give the data and the noise file of that run"
        )
    restore_networks(state, pair, path)
    restore_histories(state, pair, loader, path)
    try:
        for optimiser, saved in zip(pair.optimisers, state["optimisers"], strict=True):
            restore_optimiser(optimiser, saved)
        set_random_states(state["random"], loader)
    except DAMAGE as error:
        raise InputError(f"{path}: a damaged checkpoint ({one_line(error)})") from error


def restore_networks(state: dict, pair, path: Path) -> None:
    """Put a checkpoint's networks into a pair. Raises InputError where they do not fit."""
    try:
        for network, saved in zip(pair.networks, state["networks"], strict=True):
            network.load_state_dict(saved)
        damage = not_finite(state)
    except DAMAGE as error:
        raise InputError(
            f"{path}: holds another network than these flags make ({one_line(error)})"
        ) from error
    if damage:
        raise InputError(f"{path}: {damage}; use an older checkpoint")


def restore_optimiser(optimiser: torch.optim.Optimizer, saved: dict) -> None:
    """Put the momentum back; the rest of SGD's settings is the flags'. Raises one of DAMAGE."""
    own = optimiser.state_dict()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index, values in saved["state"].items():
        momentum = values["momentum_buffer"]
        if momentum.shape != parameters[index].shape or not torch.isfinite(momentum).all():
            raise ValueError("an optimiser's momentum is not finite, or another network's")
    optimiser.load_state_dict(own | {"state": saved["state"]})


def restore_histories(state: dict, pair, loader, path: Path) -> None:
    """Put the two networks' recent losses into a pair. Raises InputError."""
    labels = loader.noisy_labels
    try:
        histories = [[losses.to(labels.device) for losses in h] for h in state["histories"]]
        first, second = histories
        fits = all(
            losses.shape == labels.shape and bool(losses.isfinite().all())
            for losses in first + second
        )
    except DAMAGE:
        fits = False
    if not fits:
        raise InputError(f"{path}: its losses of the training images are not of these images")
    pair.histories = histories


def one_line(error: Exception) -> str:
    """The last line of an error's text, where torch says what was wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def save(state: dict, path: Path) -> None:
    """Write a checkpoint that a reader sees whole or not at all. Raises OSError."""
    archive = io.BytesIO()  # torch turns a full disk into an error of its own
    torch.save(state, archive)
    with replacing(path) as file:
        file.write(archive.getbuffer())


def load(path: Path) -> dict:
    """A checkpoint's content, on the CPU, `last.pt` or `best.pt`. Raises InputError."""
    try:
        state = untrusted.load_archive(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except untrusted.Refused as error:
        raise InputError(f"{path}: no checkpoint: {error}") from error
    check_parts(state, NETWORK_PARTS, path)
    simple = (int, float, str, bool, tuple)
    if not all(isinstance(value, simple) for value in state["config"].values()):
        raise InputError(f"{path}: no checkpoint of this project: its configuration is damaged")
    return state


def load_training_state(path: Path) -> dict:
    """The content of a `last.pt`, its rows parsed. Raises InputError."""
    state = load(path)
    if "optimisers" not in state:
        raise InputError(f"{path}: holds the networks alone; --resume takes the run's last.pt")
    check_parts(state, TRAINING_PARTS, path)
    try:
        rows = [json.loads(row) for row in state["rows"]]
        whole = [row["epoch"] for row in rows] == list(range(state["epoch"] + 1))
        whole = whole and all(isinstance(row["test/accuracy"], float) for row in rows)
    except DAMAGE:
        whole = False
    if not whole:
        raise InputError(f"{path}: a damaged checkpoint: it lacks epochs of metrics.jsonl")
    return state | {"rows": rows}


def check_parts(state, parts: dict[str, type], path: Path) -> None:
    """Raise InputError unless the state is a dict with these parts."""
    if not isinstance(state, dict):
        raise InputError(f"{path}: no checkpoint of this project: it is no dict")
    lacking = [name for name, kind in parts.items() if not isinstance(state.get(name), kind)]
    if lacking:
        raise InputError(f"{path}: no checkpoint of this project: it lacks {', '.join(lacking)}")

"""What a run needs to go on as if nothing had happened, on disk in one piece.

`last.pt` holds everything, `best.pt` the networks alone. Both load with
torch.load(weights_only=True), so that reading a stranger's checkpoint runs no code of his.
"""

import os
import random
from pathlib import Path

import numpy as np
import torch

from batches import InputError


def random_states(loader) -> dict:
    """Every random state that training draws from; the mixture's is the configuration's seed."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "loader": loader.generator.get_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict, loader) -> None:
    """Put back what `random_states` took."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    loader.generator.set_state(states["loader"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


def training_state(pair, loader, config: dict, noise_sha256: str, epoch: int) -> dict:
    """The state after `epoch` (-1: before the first) of a `smr.Pair` and its loader."""
    return {
        "epoch": epoch,
        "config": config,
        "noise_sha256": noise_sha256,
        "networks": [network.state_dict() for network in pair.networks],
        "optimisers": [optimiser.state_dict() for optimiser in pair.optimisers],
        "histories": pair.histories,
        "random": random_states(loader),
    }


def networks_alone(state: dict, metrics: dict[str, float]) -> dict:
    """What `best.pt` holds of a `training_state`."""
    kept = {key: state[key] for key in ("epoch", "config", "noise_sha256", "networks")}
    return kept | {"accuracy": metrics["test/accuracy"]}


def restore(state: dict, pair, loader, noise_sha256: str, path: Path) -> None:
    """Put a `training_state` into a pair and a loader. Raises InputError where it does not fit."""
    if state["noise_sha256"] != noise_sha256:
        raise InputError(
            f"{path}: was trained on other labels (sha256 {state['noise_sha256']}, now "
            f"{noise_sha256}); give the data and the noise file of that run"
        )
    restore_networks(state, pair, path)
    try:
        for optimiser, saved in zip(pair.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        device = loader.noisy_labels.device
        pair.histories = [[losses.to(device) for losses in h] for h in state["histories"]]
        set_random_states(state["random"], loader)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path}: a damaged checkpoint ({error})") from error


def restore_networks(state: dict, pair, path: Path) -> None:
    """Put a checkpoint's networks into a pair. Raises InputError where they do not fit."""
    try:
        for network, saved in zip(pair.networks, state["networks"], strict=True):
            network.load_state_dict(saved)
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(
            f"{path}: holds another network than these flags make ({reason})"
        ) from error
    for number, network in enumerate(pair.networks, start=1):
        for name, tensor in network.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"{path}: {name} of network {number} is not finite; use an older one"
                )


def save(state: dict, path: Path) -> None:
    """Write a checkpoint that a reader sees whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> dict:
    """A checkpoint's content, on the CPU, `last.pt` or `best.pt`. Raises InputError."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        raise InputError(f"{path}: no checkpoint of this project, or a damaged one") from error
    wanted = {"epoch", "config", "noise_sha256", "networks"}
    if not isinstance(state, dict) or not wanted <= state.keys():
        raise InputError(
            f"{path}: no checkpoint of this project: it lacks {', '.join(sorted(wanted))}"
        )
    return state


def load_training_state(path: Path) -> dict:
    """The content of a `last.pt`. Raises InputError."""
    state = load(path)
    if "optimisers" not in state:
        raise InputError(f"{path}: holds the networks alone; --resume takes the run's last.pt")
    return state

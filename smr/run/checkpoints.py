"""What a run needs to go on as if nothing had happened, on disk in one piece.

`last.pt` holds everything, `best.pt` the networks alone. Both load with
torch.load(weights_only=True), so that reading a stranger's checkpoint runs no code of his.
"""

import json
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.optim import Optimizer

from smr import distributed
from smr.data.cifar_files import Refused, load_archive
from smr.data.loader import Loader
from smr.errors import InputError, NonFiniteLoss
from smr.files import atomic_write
from smr.gmm_split import SampleLosses
from smr.method import Pair, check_finite

NETWORK_PARTS = (
    *("script", "epoch", "config", "device", "noise_sha256", "networks", "accuracy"),
    "images",  # what the networks take, and what their outputs are called
)
IMAGE_FACTS = ("class_names", "image_size", "mean", "std", "frame")
TRAINING_PARTS = ("optimizers", "histories", "random", "rows")


def random_states(loader: Loader) -> dict:
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
    if device.type in ("cuda", "mps"):
        states["torch_device"] = getattr(torch, device.type).get_rng_state()
    return states


def set_random_states(states: dict, loader: Loader) -> None:
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
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).set_rng_state(states["torch_device"])


def training_state(
    script: str,
    pair: Pair,
    loader: Loader,
    config: dict,
    noise_sha256: str,
    rows: list[dict],
    epoch: int,
) -> dict:
    """The state after `epoch` (-1: before the first), with the rows of metrics.jsonl so far."""
    return {
        "script": script,
        "epoch": epoch,
        "config": dict(config),
        "device": loader.generator.device.type,
        "noise_sha256": noise_sha256,
        "networks": [network.state_dict() for network in pair.networks],
        "accuracy": rows[-1]["test/accuracy"] if rows else 0.0,
        "images": {name: getattr(loader.info, name) for name in IMAGE_FACTS},
        "ranks": distributed.world_size(),
        "optimizers": [optimizer.state_dict() for optimizer in pair.optimizers],
        "histories": [[(s.index, s.losses) for s in history] for history in pair.histories],
        "random": random_states(loader),
        "rows": rows,
    }


def networks_alone(state: dict) -> dict:
    """What `best.pt` holds of a `training_state`."""
    return {key: state[key] for key in (*NETWORK_PARTS, "ranks")}


@contextmanager
def fitting(path: Path, what: str) -> Iterator[None]:
    """Turn what torch, NumPy and Python raise on a state that is not theirs into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # The last line of torch's text says what was wrong.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise InputError(f"{path}: {what} ({reason})") from error


def refuse_other_labels(state: dict, noise_sha256: str, path: Path) -> None:
    """Raise InputError where the labels of this checksum are not those of the checkpoint's run."""
    if state["noise_sha256"] != noise_sha256:
        raise InputError(
            f"{path}: the labels are not those of this run: files were added, moved or removed, or "
            "--noise_file is another; put them back, or start anew with another --id"
        )


def restore(state: dict, pair: Pair, loader: Loader, noise_sha256: str, path: Path) -> None:
    """Put a `training_state` into a pair and a loader. Raises InputError where it does not fit."""
    refuse_other_labels(state, noise_sha256, path)
    restore_networks(state, pair, path)
    restore_histories(state, pair, loader, path)
    with fitting(path, "a damaged checkpoint"):
        for optimizer, saved in zip(pair.optimizers, state["optimizers"], strict=True):
            restore_momentum(optimizer, saved)
        set_random_states(state["random"], loader)


def restore_networks(state: dict, pair: Pair, path: Path) -> None:
    """Put a checkpoint's networks into a pair. Raises InputError where they do not fit."""
    with fitting(path, "holds another network than these flags make"):
        for network, saved in zip(pair.networks, state["networks"], strict=True):
            network.load_state_dict(saved)
    try:
        check_finite(pair)
    except NonFiniteLoss as error:
        raise InputError(f"{path}: {error}; use an older checkpoint") from error


def restore_momentum(optimizer: Optimizer, saved: dict) -> None:
    """Put the momentum back; the rest of SGD's settings is the flags'. Raises ValueError."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for index, values in saved["state"].items():
        momentum = values["momentum_buffer"]
        if momentum.shape != parameters[index].shape or not torch.isfinite(momentum).all():
            raise ValueError("an optimizer's momentum is not finite, or another network's")
        # In the parameter's own memory format: fused SGD walks both flat, side by side.
        state[index] = {"momentum_buffer": torch.empty_like(parameters[index]).copy_(momentum)}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def restore_histories(state: dict, pair: Pair, loader: Loader, path: Path) -> None:
    """Put the two networks' recent losses into a pair. Raises InputError."""
    device, count = loader.noisy_labels.device, len(loader.noisy_labels)
    with fitting(path, "its losses of the training images are not of these images"):
        first, second = (
            [SampleLosses(index.to(device), losses.to(device)) for index, losses in history]
            for history in state["histories"]
        )
        for scores in first + second:
            whole = scores.index.shape == scores.losses.shape and scores.index.max() < count
            if not whole or not torch.isfinite(scores.losses).all():
                raise ValueError(f"{count} images")
    pair.histories = [first, second]


def save(state: dict, path: Path) -> None:
    """Write a checkpoint that a reader sees whole or not at all. Raises OSError."""
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # which torch turns into an error of its own
            raise error.__context__ from None
        raise


def keep(state: dict, folder: Path, best_epochs: tuple[int, int], last: bool) -> list[str]:
    """Write `best.pt` where the state is a network's best, and after it `last.pt` where asked.

    Where the disk does not take one, the older one stays: a line for the log says so.
    """
    contents = {"last.pt": state} if last else {}
    if state["epoch"] in best_epochs:
        contents = {"best.pt": best_networks(state, best_epochs, folder / "best.pt")} | contents
    lines = []
    for name, content in contents.items():
        try:
            save(content, folder / name)
        except OSError as error:
            lines.append(
                f"{name} of epoch {state['epoch']} was not written ({error.strerror}); "
                "the older one stands"
            )
    return lines


def best_networks(state: dict, best_epochs: tuple[int, int], path: Path) -> dict:
    """What `best.pt` is to hold: the state's networks, but for one that was better there.

    `epochs` are the networks' own where they differ; `epoch` and `accuracy` are of the latest pair.
    Where the disk did not take the better one, there is no file, and the state's stands for it.
    """
    best, newest = networks_alone(state), [epoch == state["epoch"] for epoch in best_epochs]
    if not all(newest) and path.exists():
        chosen = zip(newest, state["networks"], load(path)["networks"], strict=True)
        best["networks"] = [new if is_best else old for is_best, new, old in chosen]
        best["epochs"] = best_epochs
    return best


def path_of(given: str | Path, name: str = "last.pt") -> Path:
    """The checkpoint that a user names, a file or a run's folder. Raises InputError."""
    path = Path(given)
    if path.is_dir():
        if runs := sorted(found.parent.name for found in path.glob(f"*/{name}")):
            raise InputError(f"{path}: give one of its runs: {', '.join(runs)}")
        path = path / name
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    return path


def load(path: Path, parts: tuple[str, ...] = NETWORK_PARTS) -> dict:
    """A checkpoint's content, on the CPU, `last.pt` or `best.pt`. Raises InputError."""
    try:
        state = load_archive(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except Refused as error:
        raise InputError(f"{path}: no checkpoint: {error}") from error
    if isinstance(state, dict) and "script" not in state and "config" in state:
        with fitting(path, "no checkpoint of this project"):
            state = upgraded(state)
    if isinstance(state, dict) and "optimizers" in parts and "optimizers" not in state:
        raise InputError(f"{path}: holds the networks alone; --resume takes the run's last.pt")
    lacking = [name for name in parts if not isinstance(state, dict) or name not in state]
    if lacking:
        raise InputError(f"{path}: no checkpoint of this project: it lacks {', '.join(lacking)}")
    return state


def upgraded(state: dict) -> dict:
    """A checkpoint of before the package `smr`, in today's form."""
    config = state["config"]
    animals = config["dataset"] in ("animal10N", "folder")
    words = {"on": True, "bf16": True, "off": False}
    switches = {flag: words[config[flag]] for flag in ("amp", "compile", "channels_last")}
    state |= {
        "script": "train_animal10N.py" if animals else "train_cifar.py",
        "config": config | switches,
        "images": {},
    }
    if "histories" in state:
        state["histories"] = [
            [(torch.arange(len(losses)), losses) for losses in history]
            for history in state["histories"]
        ]
        state["rows"] = [json.loads(row) for row in state["rows"]]
    return state


def load_training_state(path: Path) -> dict:
    """The content of a `last.pt`. Raises InputError."""
    state = load(path, NETWORK_PARTS + TRAINING_PARTS)
    with fitting(path, "a damaged checkpoint"):
        if [row["epoch"] for row in state["rows"]] != list(range(state["epoch"] + 1)):
            raise ValueError("it lacks epochs of metrics.jsonl")
    return state

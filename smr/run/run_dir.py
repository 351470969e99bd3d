"""A run's folder: its name, its lock, and what may be deleted in it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smr.config import Config
from smr.errors import InputError
from smr.flags import Action
from smr.label_issues import report

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


def run_name(config: Config) -> str:
    """<dataset>_[<r>_<noise_mode>_]<method>_seed<seed>[_<id>], r exact."""
    noise = f"{config.r!r}_{config.noise_mode}_" if hasattr(config, "noise_mode") else ""
    name = f"{config.dataset}_{noise}{config.method}_seed{config.seed}"
    return f"{name}_{config.id}" if config.id else name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the lock ends with the process.

    A folder into which nothing was written is removed. Raises InputError.
    """
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(lock, "a") as file:  # opened for writing, else it cannot be locked
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # workers do not inherit it
            try:
                yield
            finally:
                if list(folder.iterdir()) == [lock]:
                    shutil.rmtree(folder)
                    with suppress(OSError):  # it holds other runs
                        folder.parent.rmdir()
    except BlockingIOError as error:
        raise InputError(f"{folder}: another process trains here; use another --id") from error
    except OSError as error:
        path = Path(error.filename or folder)
        inside = path.is_relative_to(folder) or folder.is_relative_to(path)
        advice = "; free some disk space, or use another --output" if inside else ""
        raise InputError(f"{path}: {error.strerror or error}{advice}") from error


def holds_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return any((folder / name).exists() for name in ("config.json", "metrics.jsonl", "last.pt"))


def has_ended(folder: Path) -> bool:
    """Whether the run in this folder has written its lists and its last figures."""
    with suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return "ended" in config and (folder / "labels.csv").exists()
    return False


def refuse_to_lose(folder: Path, action: Action) -> None:
    """Raise InputError if a new run in this folder would delete an epoch or a person's work."""
    metrics = folder / "metrics.jsonl"
    has_epochs = metrics.exists() and metrics.stat().st_size > 0
    if action.resume and (has_epochs or (folder / "best.pt").exists()):
        raise InputError(
            f"{folder} holds a run without the last.pt to resume it from; --overwrite deletes it"
        )
    if holds_run(folder) and not (action.resume or action.overwrite):
        raise InputError(
            f"{folder} holds a run: --resume continues it, --overwrite deletes it, "
            "--id NAME starts another beside it"
        )
    if (action.resume or action.overwrite) and (edited := report.edited(folder)):
        raise InputError(f"{edited[0]} was edited by a person and is never deleted; move it away")


def clear(folder: Path) -> None:
    """Delete the files of the run in this folder, except the lock. Raises OSError."""
    for path in folder.iterdir() if holds_run(folder) else ():
        if path.is_file() and path.name != ".lock":
            path.unlink()

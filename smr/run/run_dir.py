"""A run's folder: held for one process, cleared for a new run, refused where one would be lost."""

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smr.errors import InputError
from smr.label_issues import report as labels

try:
    import fcntl
except ImportError:  # Windows has none, and a run folder there no lock
    fcntl = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process alone; the lock dies with the process.

    A folder into which nothing was written goes again.
    """
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(lock, "a") as file:  # to write: nothing else is locked
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # workers do not inherit it
            try:
                yield
            finally:
                if [entry.name for entry in folder.iterdir()] == [lock.name]:
                    shutil.rmtree(folder)
                    with suppress(OSError):  # it holds other runs
                        folder.parent.rmdir()
    except BlockingIOError as error:
        raise InputError(f"{folder}: another process trains here; use another --id") from error
    except OSError as error:
        path = Path(error.filename or folder)
        ours = path.is_relative_to(folder) or folder.is_relative_to(path)
        advice = "; make room, or give another --output" if ours else ""
        raise InputError(f"{path}: {error.strerror or error}{advice}") from error


def holds_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return any((folder / name).exists() for name in ("config.json", "metrics.jsonl", "last.pt"))


def ended(folder: Path) -> bool:
    """Whether the run that is here has written its lists and its last figures."""
    with suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return "ended" in config and (folder / "labels.csv").exists()
    return False


def refuse_a_run(folder: Path, args: argparse.Namespace) -> None:
    """Raise InputError where starting anew in this folder would lose a run that is there.

    --resume may: a run that was killed before its first checkpoint has nothing to lose.
    """
    metrics = folder / "metrics.jsonl"
    has_epochs = metrics.exists() and metrics.stat().st_size > 0
    if args.resume and (has_epochs or (folder / "best.pt").exists()):
        raise InputError(
            f"{folder} holds a run without the last.pt to resume it from; --overwrite deletes it"
        )
    if holds_run(folder) and not (args.resume or args.overwrite):
        raise InputError(
            f"{folder} holds a run: --resume continues it, --overwrite deletes it, "
            "--id NAME starts another beside it"
        )
    if (args.resume or args.overwrite) and (edited := labels.edited(folder)):
        raise InputError(f"{edited[0]} is a person's work, which a run never deletes; move it away")


def clear_folder(folder: Path) -> None:
    """Delete the run that is here, but for this process's lock. Raises OSError."""
    for entry in folder.iterdir() if holds_run(folder) else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()

"""The hidden logs in a photo folder of the files that correct_labels.py moved there."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from smr.errors import InputError


@dataclass(frozen=True)
class Move:
    """A file's move between two places relative to the data's folder.

    old_link, new_link: what a relative symbolic link says at either place; None for other files.
    dropped: whether the target lies in the folder of dropped photos.
    """

    source: str
    target: str
    old_link: str | None = None
    new_link: str | None = None
    dropped: bool = False

    @property
    def reversed(self) -> "Move":
        """The move that undoes this one."""
        return Move(self.target, self.source, self.new_link, self.old_link)


def log_path(run: Path, root: Path) -> Path:
    """The log of this run's corrections: beside the data, which may outlive the run's folder.

    Hidden, so that training does not read it as a photo outside the class folders.
    """
    return root / f".corrections_{run.resolve().name}.log"


def read_log(path: Path) -> list[Move]:
    """The moves that were planned, done or not; none without a log. Raises InputError."""
    if not path.is_file():
        return []
    try:
        return [Move(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a log of correct_labels.py: {error}") from error


def dropped_folders(root: Path) -> set[str]:
    """Folders in `root` that correct_labels.py made for dropped photos, by all runs' logs.

    No other folder is special: a class may be called `dropped`.
    """
    moves = [move for path in root.glob(".corrections_*.log") for move in read_log(path)]
    return {PurePosixPath(move.target).parts[0] for move in moves if move.dropped}

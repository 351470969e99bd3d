"""Corrections of photos in class folders: files move, with a log that can undo it.

The log has a line for each move. It is written before the first file moves, so that --undo knows of
every move; it reads the log backwards, and skips the moves that were not done.
"""

import errno
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path, PurePosixPath

from smr.data.corrections_log import Move, dropped_folders, log_path, read_log
from smr.data.fingerprint import checksum
from smr.data.image_folder import same_name
from smr.errors import InputError
from smr.files import write_text
from smr.label_issues.corrections import Corrections, FinishedRun
from smr.label_issues.report import Line, free_path

DROPPED_FOLDER = "dropped"
NAME_BYTES = 255


def move_files(
    run: FinishedRun, corrections: Corrections, root: Path, dry_run: bool, line: Line
) -> None:
    """Move the files into the folders of their classes. Raises InputError."""
    log = log_path(run.folder, root)
    logged = read_log(log)
    moves = plan(run, corrections, root, logged)
    if not moves:
        line(f"nothing to move in {root}: each file is where it should be")
    elif carry_out(moves, root, dry_run, line, log, logged + moves):
        line(f"--undo puts them back, by {log}; train again with the same command and another --id")


def undo(run: FinishedRun, root: Path, dry_run: bool, line: Line) -> None:
    """Move everything back, the last first. Raises InputError."""
    log = log_path(run.folder, root)
    if not log.is_file():
        raise InputError(f"{log}: no such log; this run's corrections moved nothing")
    logged = read_log(log)
    if not carry_out(moves_back(logged, root), root, dry_run, line, log, logged):
        return
    log.unlink()
    for move in logged:
        if move.dropped:
            with suppress(OSError):  # the folder is not empty, or gone already
                os.removedirs((root / move.target).parent)


def carry_out(
    moves: Sequence[Move], root: Path, dry_run: bool, line: Line, log: Path, logged: Iterable[Move]
) -> bool:
    """Check all folders, write the log and move the files; False if dry_run. Raises InputError."""
    check_folder(root, root)
    for move in moves:
        for place in (move.source, move.target):
            check_folder(root, (root / place).parent)
    for move in moves:
        line(f"{move.source} -> {move.target}")
    if dry_run:
        line(f"{len(moves):,} files would move in {root}; nothing was done (--dry_run)")
        return False
    done = 0
    try:
        write_text(log, "".join(f"{json.dumps(astuple(move))}\n" for move in logged))
        for move in moves:
            move_file(root, move)
            done += 1
    except OSError as error:
        raise InputError(
            f"{error.filename}: {error.strerror}; {done} of {len(moves)} files were moved: the "
            "same command again continues, --undo puts them back"
        ) from error
    line(f"moved {done:,} files in {root}")
    return True


def move_file(root: Path, move: Move) -> None:
    """Move a file. Raises OSError."""
    source, target = root / move.source, root / move.target
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "a file of this name is there by now", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    if move.new_link is None:
        os.rename(source, target)
    else:
        target.symlink_to(move.new_link)
        source.unlink()


def plan(
    run: FinishedRun, corrections: Corrections, root: Path, logged: Sequence[Move]
) -> list[Move]:
    """The moves that are still to do, all checked. Raises InputError.

    Args: logged, the moves of earlier corrections.
    """
    depth, folders = layout_of(run)
    moved_to = {move.source: move.target for move in logged}
    dropped = min(dropped_folders(root), default=None)
    dropped = dropped or free_path(root / DROPPED_FOLDER, os.path.lexists).name
    moves: dict[Path, Move] = {}  # by target
    for row, label in corrections.items():
        file, path = run.files[row], PurePosixPath(run.files[row])
        if label is None:
            place = PurePosixPath(dropped, *path.parts[depth != 1 :])
        elif depth == 0:
            place = path.with_name(re.sub("^[0-9]+", str(label), path.name))
        else:
            place = folders[label] / path.name
        # An earlier attempt may have moved it there, or to a free place beside.
        is_done = moved_to.get(file, "").startswith(str(place.with_suffix("")))
        at = moved_to[file] if is_done and not os.path.lexists(root / file) else file
        if run.crc32[row] is None or checksum(root / at) != run.crc32[row]:
            raise InputError(
                f"{root / file}: moved or changed since the run; put it back (--undo), train again "
                "or give the data's folder with --data_path; nothing was done"
            )
        if at != file:
            continue
        free = free_path(root / place, lambda path: path in moves or os.path.lexists(path))
        if len(os.fsencode(free.name)) > NAME_BYTES:
            raise InputError(f"{free}: the name is too long; rename {file}; nothing was done")
        target = free.relative_to(root).as_posix()
        moves[free] = Move(file, target, *links(root, file, target), label is None)
    return list(moves.values())


def layout_of(run: FinishedRun) -> tuple[int, dict[int, PurePosixPath]]:
    """How many names of a file's path tell its label, and label → folder of the class.

    2: training/<class>; 1: <class>; 0: training/<label>_<rest>, where no folder tells it.
    """
    paths = [PurePosixPath(file).parts for file in run.files]
    names = [same_name(run.class_names[label]) for label in run.labels]
    depth = 0 if any(len(parts) == 2 for parts in paths) else 2
    if [same_name(parts[0]) for parts in paths] == names:
        depth = 1
    above = paths[0][: depth - 1]
    folders = {label: PurePosixPath(*above, name) for label, name in enumerate(run.class_names)}
    # A folder may be spelled otherwise than its class.
    folders |= {k: PurePosixPath(*p[:depth]) for k, p in zip(run.labels, paths, strict=True)}
    return depth, folders


def links(root: Path, source: str, target: str) -> tuple[str | None, str | None]:
    """What a relative symbolic link says at either place, to the same file; None for others."""
    path = root / source
    if not path.is_symlink() or os.path.isabs(old := os.readlink(path)):
        return None, None
    file = os.path.join(os.path.realpath(path.parent), old)
    return old, os.path.relpath(file, os.path.realpath((root / target).parent))


def check_folder(root: Path, folder: Path) -> None:
    """Raise InputError if a folder, or the one to make it in, is elsewhere or read-only."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{folder}: leads out of {root}; nothing was done")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there}: this folder is read-only; nothing was done")


def moves_back(logged: Sequence[Move], root: Path) -> list[Move]:
    """Those moves that are not undone yet. Raises InputError if files are not as they were left."""
    places = {place for move in logged for place in (move.source, move.target)}
    there = {place for place in places if os.path.lexists(root / place)}
    moves = []
    for move in reversed(logged):
        if move.target in there and move.source in there:
            raise InputError(f"{root / move.source}: another file is there; move it away first")
        if move.target in there:
            moves.append(move.reversed)
            there ^= {move.source, move.target}
        elif move.source not in there:
            raise InputError(f"{root / move.target}: not there any more; put it back first")
    return moves

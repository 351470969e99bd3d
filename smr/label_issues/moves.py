"""Corrections of photos in class folders: files move, with a log that can undo it."""

import errno
import json
import os
import re
import zlib
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path, PurePosixPath

from smr.data.corrections_log import Move, dropped_folders, log_path, read_log
from smr.data.image_folder import same_name
from smr.errors import InputError
from smr.files import write_text
from smr.label_issues.corrections import Corrections, FinishedRun
from smr.label_issues.report import Line

DROPPED_FOLDER = "dropped"
NAME_BYTES = 255


def move_files(
    run: FinishedRun, corrections: Corrections, root: Path, dry_run: bool, line: Line
) -> None:
    """Move the files into the folders of their classes. Raises InputError."""
    if not root.is_dir():
        raise InputError(
            f"{root}: there is no such folder from here; --data_path DIR says where the data is; "
            "nothing was done"
        )
    log = log_path(run.folder, root)
    logged = read_log(log)
    moves = plan(run, corrections, root, logged)
    if not moves:
        line(f"nothing to move in {root}: each file is where it should be")
    # First: --undo must know of each move, and skips those that were not done.
    text = "".join(f"{json.dumps(astuple(move))}\n" for move in logged + moves)
    if moves and carry_out(moves, root, dry_run, line, log, text):
        line(f"--undo puts them back, by {log}; train again with the same command and another --id")


def undo(run: FinishedRun, root: Path, dry_run: bool, line: Line) -> None:
    """Move everything back, the last first. Raises InputError."""
    log = log_path(run.folder, root)
    if not log.is_file():
        raise InputError(f"{log}: there is no such log; this run's corrections moved nothing")
    logged = read_log(log)
    moves = moves_back([move.reversed for move in reversed(logged)], root)
    if not carry_out(moves, root, dry_run, line, log, None):
        return
    log.unlink()
    for folder in {root / PurePosixPath(move.target).parts[0] for move in logged if move.dropped}:
        for inside in sorted([folder, *folder.rglob("*")], reverse=True):
            with suppress(OSError):  # it holds something
                inside.rmdir()


def carry_out(
    moves: list[Move], root: Path, dry_run: bool, line: Line, log: Path, text: str | None
) -> bool:
    """Write text to the log and move the files; False if dry_run. Raises InputError."""
    check_folders(root, moves)
    for move in moves:
        line(f"{move.source} -> {move.target}")
    if dry_run:
        line(f"{len(moves):,} files would move in {root}; nothing was done (--dry_run)")
        return False
    done = 0
    try:
        if text is not None:
            write_text(log, text)
        for move in moves:
            rename(root, move)
            done += 1
    except OSError as error:
        raise InputError(
            f"{error.filename}: {error.strerror}; {done} of {len(moves)} files were moved: the "
            "same command again continues, --undo puts them back"
        ) from error
    line(f"moved {done:,} files in {root}")
    return True


def rename(root: Path, move: Move) -> None:
    """Move a file to a place where there is none. Raises OSError."""
    source, target = root / move.source, root / move.target
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "a file of this name is there by now", str(target))
    os.rename(source, target)
    if move.new_link is not None:
        temporary = target.with_name(".link.new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(move.new_link)
        os.replace(temporary, target)


def plan(
    run: FinishedRun, corrections: Corrections, root: Path, logged: Sequence[Move]
) -> list[Move]:
    """The moves that are still to do, all checked. Raises InputError.

    Args: logged, the moves of earlier corrections.
    """
    depth, folders = layout_of(run)
    done = {move.source: move.target for move in logged}
    dropped = min(dropped_folders(root), default=None) or free_place(root, DROPPED_FOLDER, ())
    moves: dict[str, Move] = {}  # by target
    for row, label in corrections.items():
        file, path = run.files[row], PurePosixPath(run.files[row])
        if label is None:
            place = PurePosixPath(dropped, *path.parts[depth != 1 :])
        elif depth == 0:
            place = path.with_name(re.sub("^[0-9]+", str(label), path.name))
        else:
            place = folders[label] / path.name
        # An earlier attempt may have moved it there, or to a free place beside.
        moved_to, stem = done.get(file, ""), str(place.with_suffix(""))
        is_done = moved_to.startswith(stem) and not os.path.lexists(root / file)
        check_file(root, moved_to if is_done else file, run.checksums[row])
        if not is_done:
            target = free_place(root, str(place), moves)
            check_inside(root, target)
            moves[target] = Move(file, target, *links(root, file, target), label is None)
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
    for label, parts in zip(run.labels, paths, strict=True):
        folders[label] = PurePosixPath(*parts[:depth])
    return depth, folders


def free_place(root: Path, place: str, taken: Container[str]) -> str:
    """The place, or the next with _2, _3, … if a file is there or will be. Raises InputError."""
    path, free, number = PurePosixPath(place), place, 1
    while free in taken or os.path.lexists(root / free):
        number += 1
        free = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
    if len(os.fsencode(PurePosixPath(free).name)) > NAME_BYTES:
        raise InputError(
            f"{root / place}: this name is taken, and with _{number} it is longer than "
            f"{NAME_BYTES} bytes; rename one of the two files and train again; nothing was done"
        )
    return free


def links(root: Path, source: str, target: str) -> tuple[str | None, str | None]:
    """What a relative symbolic link says at either place, to the same file; None for others."""
    path = root / source
    if not path.is_symlink() or os.path.isabs(old := os.readlink(path)):
        return None, None
    file = os.path.join(os.path.realpath(path.parent), old)
    return old, os.path.relpath(file, os.path.realpath((root / target).parent))


def check_folders(root: Path, moves: Sequence[Move]) -> None:
    """Raise InputError if a folder from or to which files move cannot be changed."""
    folders = {root, *((root / move.source).parent for move in moves)}
    for move in moves:
        folder = (root / move.target).parent
        folders.add(next(each for each in (folder, *folder.parents) if each.exists()))
    for folder in sorted(folders):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder}: this folder is read-only; nothing was done")


def check_file(root: Path, file: str, checksum: int) -> None:
    """Raise InputError if a file is not the one of the run."""
    check_inside(root, file)
    try:
        current = zlib.crc32((root / file).read_bytes())
    except OSError as error:
        raise InputError(
            f"{root / file}: {error.strerror}; it was there in training: put it back (--undo, if a "
            "correction moved it), or train again; nothing was done"
        ) from error
    if current != checksum:
        raise InputError(f"{root / file}: changed since the run; train again; nothing was done")


def check_inside(root: Path, file: str) -> None:
    """Raise InputError if a path leads out of the data's folder."""
    if not (root / file).parent.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{file}: leads out of {root}; nothing was done")


def moves_back(backward: Sequence[Move], root: Path) -> list[Move]:
    """Those moves that are not undone yet. Raises InputError if files are not as they were left."""
    moves, there = [], {}
    for move in backward:
        for place in (move.source, move.target):
            check_inside(root, place)
            there.setdefault(place, os.path.lexists(root / place))
        if there[move.source] and there[move.target]:
            raise InputError(f"{root / move.target}: another file is there; move it away first")
        if there[move.source]:
            moves.append(move)
            there |= {move.source: False, move.target: True}
        elif not there[move.target]:
            raise InputError(
                f"{root / move.source}: not there any more; undo the corrections that moved it, or "
                "put it back; nothing was done"
            )
    return moves

"""Corrections of photos in class folders: files move, with a log that can undo it."""

import errno
import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path, PurePosixPath

from smr.data.corrections_log import Move, dropped_folders, log_path, read_log
from smr.data.image_folder import same_name
from smr.errors import InputError
from smr.files import write_text
from smr.label_issues.corrections import Correction, FinishedRun

DROPPED_FOLDER = "dropped"
NAME_BYTES = 255


def move_files(
    run: FinishedRun,
    corrections: Sequence[Correction],
    root: Path,
    dry_run: bool,
    line: Callable[[str], None],
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
    for move in moves:
        line(f"{move.source} -> {move.target}")
    if dry_run:
        line(f"{len(moves):,} files would move in {root}; nothing was done (--dry_run)")
        return
    if not moves:
        line(f"nothing to move in {root}: each file is where it should be")
        return
    done = 0
    try:
        # First: --undo must know of each move, and skips those that were not done.
        write_text(log, "".join(f"{json.dumps(astuple(move))}\n" for move in logged + moves))
        for move in moves:
            rename(root, move)
            done += 1
    except OSError as error:
        raise InputError(
            f"{error.filename}: {error.strerror}; {done} of {len(moves)} files were moved: the "
            "same command again continues, --undo puts them back"
        ) from error
    line(f"moved {done:,} files in {root}; --undo puts them back, by {log}")
    line("train again with the same command and another --id")


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
    run: FinishedRun, corrections: Sequence[Correction], root: Path, logged: Sequence[Move]
) -> list[Move]:
    """The moves that are still to do, all checked. Raises InputError.

    Args: logged, the moves of earlier corrections.
    """
    depth = depth_of(run)
    folders, done = class_folders(run, depth), {move.source: move.target for move in logged}
    dropped = min(dropped_folders(root), default=None) or free_place(root, DROPPED_FOLDER, set())
    moves: list[Move] = []
    taken: set[str] = set()
    for correction in corrections:
        file, checksum = run.files[correction.row], run.checksums[correction.row]
        wanted = str(place_of(file, correction.label, folders, depth, dropped))
        moved_to = done.get(file)
        if moved_to and not os.path.lexists(root / file) and same_place(moved_to, wanted):
            check_file(root, moved_to, checksum)
            continue
        check_file(root, file, checksum)
        target = free_place(root, wanted, taken)
        check_inside(root, target)
        taken.add(target)
        moves.append(Move(file, target, *links(root, file, target), correction.label is None))
    check_folders(root, moves)
    return moves


def depth_of(run: FinishedRun) -> int:
    """How many names of a file's path tell its label: 2, training/<class>; 1, <class>.

    0 if the file's own name does, training/<label>_<rest>.
    """
    paths = [PurePosixPath(file).parts for file in run.files]
    names = [same_name(run.class_names[label]) for label in run.labels]
    if [same_name(parts[0]) for parts in paths] == names:
        return 1
    return 0 if any(len(parts) == 2 for parts in paths) else 2


def class_folders(run: FinishedRun, depth: int) -> dict[int, PurePosixPath]:
    """Label → the folder of its class, which a class without a photo may not have yet."""
    above = PurePosixPath(run.files[0]).parts[: depth - 1]
    folders = {label: PurePosixPath(*above, name) for label, name in enumerate(run.class_names)}
    present = zip(run.labels, run.files, strict=True)
    return folders | {label: PurePosixPath(*PurePosixPath(f).parts[:depth]) for label, f in present}


def place_of(
    file: str, label: int | None, folders: dict[int, PurePosixPath], depth: int, dropped: str
) -> PurePosixPath:
    """The place of a file with this label, None for one that is dropped."""
    path = PurePosixPath(file)
    if label is None:
        return PurePosixPath(dropped, *path.parts[depth != 1 :])
    if depth == 0:
        return path.with_name(re.sub("^[0-9]+", str(label), path.name))
    return folders[label] / path.name


def free_place(root: Path, wanted: str, taken: set[str]) -> str:
    """The place, or the next with _2, _3, … if a file is there or will be. Raises InputError."""
    path, place, number = PurePosixPath(wanted), wanted, 1
    while place in taken or os.path.lexists(root / place):
        number += 1
        place = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
    if len(os.fsencode(PurePosixPath(place).name)) > NAME_BYTES:
        raise InputError(
            f"{root / wanted}: this name is taken, and with _{number} it is longer than "
            f"{NAME_BYTES} bytes; rename one of the two files and train again; nothing was done"
        )
    return place


def same_place(moved: str, wanted: str) -> bool:
    """Whether a file was moved to the place wanted, or to a free one beside it."""
    moved, wanted = PurePosixPath(moved), PurePosixPath(wanted)
    pattern = re.escape(wanted.stem) + "(_[0-9]+)?" + re.escape(wanted.suffix)
    return moved.parent == wanted.parent and bool(re.fullmatch(pattern, moved.name))


def links(root: Path, source: str, target: str) -> tuple[str | None, str | None]:
    """What a relative symbolic link says at either place, to the same file; None for others."""
    path = root / source
    if not path.is_symlink() or os.path.isabs(old := os.readlink(path)):
        return None, None
    file = os.path.join(os.path.realpath(path.parent), old)
    return old, os.path.relpath(file, os.path.realpath((root / target).parent))


def check_folders(root: Path, moves: Sequence[Move]) -> None:
    """Raise InputError if a folder from or to which files move cannot be changed."""
    folders = {root} if moves else set()
    for move in moves:
        folder = (root / move.target).parent
        while not folder.exists():
            folder = folder.parent
        folders |= {folder, (root / move.source).parent}
    for folder in sorted(folders):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder}: this folder is read-only; nothing was done")
        if os.stat(folder).st_dev != os.stat(root).st_dev:
            raise InputError(f"{folder}: lies on another disk than {root}; nothing was done")


def check_file(root: Path, file: str, checksum: int | None) -> None:
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
    inside = (root / file).parent.resolve().is_relative_to(root.resolve())
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or not inside:
        raise InputError(f"{file}: leads out of {root}; nothing was done")


def undo(run: FinishedRun, root: Path, dry_run: bool, line: Callable[[str], None]) -> None:
    """Move everything back, the last first. Raises InputError."""
    log = log_path(run.folder, root)
    if not log.is_file():
        raise InputError(
            f"{log}: there is no such log; nothing was moved by this run's corrections"
        )
    logged = read_log(log)
    moves = moves_back([move.reversed for move in reversed(logged)], root)
    for move in moves:
        line(f"{move.source} -> {move.target}")
    if dry_run:
        line(f"{len(moves):,} files would move back in {root}; nothing was done (--dry_run)")
        return
    check_folders(root, moves)
    try:
        for move in moves:
            rename(root, move)
        log.unlink()
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; --undo again continues") from error
    for folder in {root / PurePosixPath(move.target).parts[0] for move in logged if move.dropped}:
        for inside in sorted([folder, *folder.rglob("*")], reverse=True):
            with suppress(OSError):  # it holds something
                inside.rmdir()
    line(f"moved {len(moves):,} files back in {root}")


def moves_back(backward: Sequence[Move], root: Path) -> list[Move]:
    """Those moves that are not undone yet. Raises InputError if files are not as they were left."""
    moves, there = [], {}

    def exists(place: str) -> bool:
        check_inside(root, place)
        return there.get(place, os.path.lexists(root / place))

    for move in backward:
        moved, original = exists(move.source), exists(move.target)
        if moved and original:
            raise InputError(f"{root / move.target}: another file is there; move it away first")
        if not moved and not original:
            raise InputError(
                f"{root / move.source}: not there any more; undo the corrections that moved it, or "
                "put it back; nothing was done"
            )
        if moved:
            moves.append(move)
            there |= {move.source: False, move.target: True}
    return moves

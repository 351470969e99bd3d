"""Correct labels as a person decided, on the page labels.html or in a spreadsheet.

    python correct_labels.py checkpoint/folder_smr_seed123 corrections.csv --dry_run
    python correct_labels.py checkpoint/folder_smr_seed123 corrections.csv
    python correct_labels.py checkpoint/folder_smr_seed123 --undo

Takes a run's folder, and the corrections.csv that the page saves or the run's labels.csv with
`given` or `given_name` edited. Image files move into the folder of their class, dropped ones into
dropped/; nothing is overwritten, and a log in the data's folder lets --undo put all back. Other
data stays as it is: corrected_labels.json is for the training script's --noise_file.
"""

import errno
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath

from smr.data.image_folder import DROPPED_FOLDER, same_name
from smr.data.noise_file import label_list
from smr.errors import InputError
from smr.files import write_text
from smr.label_issues.corrections import Decision, JudgedRun, accepted, read_decisions, read_run
from smr.run.options import Parser, number, one_line_errors


@dataclass(frozen=True)
class Move:
    """Of a file, between two places relative to the data's folder."""

    source: str
    target: str


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the run's folder, with labels.csv")
    about = "corrections.csv of the page, or an edited labels.csv"
    add("file", type=Path, nargs="?", metavar="FILE", help=about)
    about = "instead of FILE: take the first N suggestions unseen; a part of them will be mistakes"
    add("--accept", type=number(int, 1), metavar="N", help=about)
    about = "instead of FILE: take the suggestions with a p_clean below P unseen"
    add("--accept_below", type=number(float, 0, 1), metavar="P", help=about)
    add("--undo", action="store_true", help="put back what this run's corrections moved")
    add("--dry_run", action="store_true", help="say what would be done, and do nothing")
    about = "the data's folder (default: where the run found it)"
    add("--data_path", type=Path, metavar="DIR", help=about)
    args = parser.parse_args(argv)
    ways = (args.file, args.accept, args.accept_below, args.undo or None)
    if sum(way is not None for way in ways) != 1:
        parser.error("give one of FILE, --accept, --accept_below and --undo")
    with one_line_errors("correct_labels.py"):
        run = read_run(args.run)
        root = args.data_path or Path(run.config["data_path"])
        if args.undo:
            return undo(run, root, args.dry_run)
        if args.file:
            decisions = read_decisions(args.file, run)
        else:
            decisions = accepted(run, args.accept, args.accept_below)
        announce(decisions, run)
        if run.config.get("labels_in_paths"):
            return move(run, decisions, root, args.dry_run)
        return write_label_list(run, decisions, args.dry_run)


def announce(decisions: Sequence[Decision], run: JudgedRun) -> None:
    """Say what was decided."""
    pairs = Counter((run.given[d.row], d.label) for d in decisions)
    dropped = sum(times for (_, label), times in pairs.items() if label is None)
    print(f"{len(decisions) - dropped:,} labels to change, {dropped:,} images to drop")
    for (given, label), times in pairs.most_common():
        target = "dropped" if label is None else run.classes[label]
        print(f"{times:6,}  {run.classes[given]} → {target}")


def move(run: JudgedRun, decisions: Sequence[Decision], root: Path, dry_run: bool) -> int:
    """Move the files into the folders of their classes; the exit status. Raises InputError."""
    if not root.is_dir():
        raise InputError(
            f"{root}: there is no such folder from here; --data_path DIR says where the data is; "
            "nothing was done"
        )
    log = log_path(run, root)
    logged = read_log(log)
    moves = plan(run, decisions, root, {step.source: step.target for step in logged})
    for step in moves:
        print(f"{step.source} → {step.target}")
    if dry_run:
        print(f"{len(moves):,} files would move in {root}; nothing was done (--dry_run)")
        return 0
    if not moves:
        print(f"nothing to move in {root}: each file is where it should be")
        return 0
    done = 0
    try:
        # First: --undo must know of each move, and skips those that were not done.
        write_text(log, "".join(f"{json.dumps(astuple(step))}\n" for step in logged + moves))
        for step in moves:
            rename(root, step)
            done += 1
    except OSError as error:
        raise InputError(
            f"{error.filename}: {error.strerror}; {done} of {len(moves)} files were moved: the "
            "same command again goes on, --undo puts them back"
        ) from error
    print(f"moved {done:,} files in {root}; --undo puts them back, by {log}")
    print("train again with the same command and another --id")
    return 0


def rename(root: Path, step: Move) -> None:
    """Move a file to where there is none. Raises OSError."""
    source, target = root / step.source, root / step.target
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "a file of this name is there by now", str(target))
    os.rename(source, target)


def plan(
    run: JudgedRun, decisions: Sequence[Decision], root: Path, done: dict[str, str]
) -> list[Move]:
    """The moves that are still to do. Raises InputError where a file is not as the run saw it.

    Args: done, source → target of the moves that were logged.
    """
    depth = depth_of(run)
    folders = class_folders(run, depth)
    moves, taken = [], set()
    for decision in decisions:
        file, checksum = run.files[decision.row], run.checksums[decision.row]
        wanted = str(place_of(file, decision.label, folders, depth))
        moved_to = done.get(file)
        if moved_to and not os.path.lexists(root / file) and same_place(moved_to, wanted):
            check_file(root, moved_to, checksum)
            continue
        check_file(root, file, checksum)
        target = free_place(root, wanted, taken)
        check_inside(root, target)
        taken.add(target)
        moves.append(Move(file, target))
    return moves


def depth_of(run: JudgedRun) -> int:
    """How many names of a file's path tell its label: 2, training/<class>; 1, <class>.

    0 where the file's own name does, training/<label>_<rest>.
    """
    paths = [PurePosixPath(file).parts for file in run.files]
    names = [same_name(run.classes[label]) for label in run.given]
    if [same_name(parts[0]) for parts in paths] == names:
        return 1
    return 0 if any(len(parts) == 2 for parts in paths) else 2


def class_folders(run: JudgedRun, depth: int) -> dict[int, PurePosixPath]:
    """Label → the folder of its class, which a class without a photo may not have yet."""
    above = PurePosixPath(run.files[0]).parts[: depth - 1]
    folders = {label: PurePosixPath(*above, name) for label, name in enumerate(run.classes)}
    found = zip(run.given, run.files, strict=True)
    return folders | {label: PurePosixPath(*PurePosixPath(f).parts[:depth]) for label, f in found}


def place_of(
    file: str, label: int | None, folders: dict[int, PurePosixPath], depth: int
) -> PurePosixPath:
    """Where a file belongs that has this label, None for one that is dropped."""
    path = PurePosixPath(file)
    if label is None:
        return PurePosixPath(DROPPED_FOLDER, *path.parts[depth != 1 :])
    if depth == 0:
        return path.with_name(re.sub("^[0-9]+", str(label), path.name))
    return folders[label] / path.name


def free_place(root: Path, wanted: str, taken: set[str]) -> str:
    """The place, or the next with _2, _3, … where there is a file or will be one."""
    path, place, number = PurePosixPath(wanted), wanted, 1
    while place in taken or os.path.lexists(root / place):
        number += 1
        place = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
    return place


def same_place(moved: str, wanted: str) -> bool:
    """Whether a file was moved to the place wanted, or to a free one beside it."""
    moved, wanted = PurePosixPath(moved), PurePosixPath(wanted)
    pattern = re.escape(wanted.stem) + "(_[0-9]+)?" + re.escape(wanted.suffix)
    return moved.parent == wanted.parent and bool(re.fullmatch(pattern, moved.name))


def check_file(root: Path, file: str, checksum: int | None) -> None:
    """Raise InputError where a file is not what the run judged."""
    check_inside(root, file)
    try:
        found = zlib.crc32((root / file).read_bytes())
    except OSError as error:
        raise InputError(
            f"{root / file}: {error.strerror}; the run saw it there: put it back (--undo, if a "
            "correction moved it), or train again; nothing was done"
        ) from error
    if found != checksum:
        raise InputError(
            f"{root / file}: changed since the run, so that nobody judged what it is now; train "
            "again; nothing was done"
        )


def check_inside(root: Path, file: str) -> None:
    """Raise InputError where a path leads out of the data's folder."""
    inside = (root / file).parent.resolve().is_relative_to(root.resolve())
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or not inside:
        raise InputError(f"{file}: leads out of {root}; nothing was done")


def log_path(run: JudgedRun, root: Path) -> Path:
    """Of the moves by this run's corrections: with the data, which may outlive the run's folder.

    Hidden, so that training does not take it for a photo that lies in no class folder.
    """
    return root / f".corrections_{run.folder.resolve().name}.log"


def read_log(path: Path) -> list[Move]:
    """The moves that were planned, whether all were done or not."""
    if not path.is_file():
        return []
    return [Move(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def undo(run: JudgedRun, root: Path, dry_run: bool) -> int:
    """Move everything back, the last first; the exit status. Raises InputError."""
    log = log_path(run, root)
    if not log.is_file():
        raise InputError(
            f"{log}: there is no such log; nothing was moved by this run's corrections"
        )
    backward = [Move(step.target, step.source) for step in reversed(read_log(log))]
    steps = steps_back(backward, root)
    for step in steps:
        print(f"{step.source} → {step.target}")
    if dry_run:
        print(f"{len(steps):,} files would move back in {root}; nothing was done (--dry_run)")
        return 0
    try:
        for step in steps:
            rename(root, step)
        log.unlink()
    except OSError as error:
        raise InputError(
            f"{error.filename}: {error.strerror}; --undo again goes on where it stopped"
        ) from error
    for folder in sorted(
        [root / DROPPED_FOLDER, *(root / DROPPED_FOLDER).rglob("*")], reverse=True
    ):
        with suppress(OSError):  # it holds something
            folder.rmdir()
    print(f"moved {len(steps):,} files back in {root}")
    return 0


def steps_back(backward: Sequence[Move], root: Path) -> list[Move]:
    """Those moves that are not undone yet. Raises InputError where files are not as they left."""
    steps, there = [], {}

    def exists(place: str) -> bool:
        check_inside(root, place)
        return there.get(place, os.path.lexists(root / place))

    for step in backward:
        moved, original = exists(step.source), exists(step.target)
        if moved and original:
            raise InputError(f"{root / step.target}: another file is there; move it away first")
        if not moved and not original:
            raise InputError(
                f"{root / step.source}: not there any more; undo the corrections that moved it, or "
                "put it back; nothing was done"
            )
        if moved:
            steps.append(step)
            there |= {step.source: False, step.target: True}
    return steps


def write_label_list(run: JudgedRun, decisions: Sequence[Decision], dry_run: bool) -> int:
    """Write the labels for --noise_file, null for each dropped image; the exit status."""
    decided = {decision.row: decision.label for decision in decisions}
    # null, too, for a photo that could not be decoded, so that nobody judged it.
    labels: list[int | None] = [None] * run.config["train_images"]
    for index, row in run.rows.items():
        labels[index] = decided.get(row, run.given[row])
    text = json.dumps(label_list(labels, run.config.get("dropped_images", [])))
    path, number = run.folder / "corrected_labels.json", 1
    while path.exists() and path.read_text(encoding="utf-8") != text:
        number += 1
        path = run.folder / f"corrected_labels_{number}.json"
    if dry_run:
        print(f"{path} would be written; nothing was done (--dry_run)")
        return 0
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    print(f"wrote {path}; train again with --noise_file {path} and another --id")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a person decided about a run's labels: corrections.csv of the page, or an edited list."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smr.errors import InputError
from smr.label_issues.report import digest, read_judged

ACTIONS = ("keep", "take", "other", "drop")
CORRECTIONS = ("index", "file", "given", "corrected", "action")
EDITED = ("index", "file", "given", "given_name")


@dataclass(frozen=True)
class JudgedRun:
    """A finished run, and the training images that it judged.

    rows: position in the training set → place in the lists `given` (labels), `files` (relative to
    the data's folder; None where there are no files) and `checksums`.
    """

    folder: Path
    config: dict
    classes: list[str]
    rows: dict[int, int]
    given: list[int]
    files: list[str] | None
    checksums: list[int | None]
    written: list[str]


@dataclass(frozen=True)
class Decision:
    """On the image at place `row` of a JudgedRun: its new class, or None to drop it."""

    row: int
    label: int | None


def read_run(folder: Path) -> JudgedRun:
    """The run in this folder. Raises InputError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        judged = read_judged(folder)
        given, files = judged["given"], judged["files"]
        checksums = judged["crc32"] or [None] * len(given)
        rows = {index: row for row, index in enumerate(judged["index"])}
        classes = config["class_names"]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; expected a run folder") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: no whole judged.json, which a run writes at its end; --evaluate of the "
            "training script writes it anew"
        ) from error
    return JudgedRun(folder, config, classes, rows, given, files, checksums, judged["written"])


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row of a table, as spreadsheets save it. Raises InputError.

    Separated by commas, semicolons or tabs; with or without a byte order mark.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=header.count), restval="")
            for row in reader:
                if any(row.values()):
                    yield reader.line_num, row
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8; save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise InputError(f"{path}: no table: {error}") from error


def read_decisions(path: Path, run: JudgedRun) -> list[Decision]:
    """What a person decided to change, of a `corrections.csv` or an edited `labels.csv`.

    Raises InputError, which names the row.
    """
    decided: dict[int, Decision] = {}
    for line, cells in rows_of(path):
        try:
            read = reader_of(cells)
            row = row_of(cells, run)
            if row in decided:
                raise InputError(f"a second row of index {cells['index']}")
            decided[row] = Decision(row, read(cells, run, row))
        except InputError as error:
            raise InputError(f"{path}, row {line}: {error}; nothing was done") from error
    return [each for each in decided.values() if each.label != run.given[each.row]]


def reader_of(cells: dict[str, str]) -> Callable[[dict, JudgedRun, int], int | None]:
    """What reads such a row's decision. Raises InputError where columns are missing."""
    read, wanted = (corrected, CORRECTIONS) if "action" in cells else (edited, EDITED)
    if missing := [name for name in wanted if cells.get(name) is None]:
        raise InputError(
            f"no column {', '.join(missing)}; expected {', '.join(CORRECTIONS)} of "
            "corrections.csv, or all of the run's own labels.csv"
        )
    return read


def row_of(cells: dict[str, str], run: JudgedRun) -> int:
    """The image that a row is about. Raises InputError where the run has none such."""
    index = int(cells["index"]) if cells["index"].isdecimal() else -1
    if index not in run.rows:
        raise InputError(f"index '{cells['index']}': the run judged no such image")
    row = run.rows[index]
    file = run.files[row] if run.files else ""
    if cells["file"] != file:
        raise InputError(f"file '{cells['file']}': image {index} of the run is '{file}'")
    return row


def corrected(cells: dict[str, str], run: JudgedRun, row: int) -> int | None:
    """The class of a row of corrections.csv, None to drop the image. Raises InputError."""
    action, given = cells["action"], run.classes[run.given[row]]
    if action not in ACTIONS:
        raise InputError(f"action '{action}': expected one of {', '.join(ACTIONS)}")
    if cells["given"] != given:
        raise InputError(f"given '{cells['given']}': the run saw '{given}'")
    if action == "drop":
        return None
    label = label_of(cells["corrected"], run)
    if action == "keep" and label != run.given[row]:
        raise InputError(f"corrected '{cells['corrected']}' of a label to keep, which is '{given}'")
    return label


def edited(cells: dict[str, str], run: JudgedRun, row: int) -> int:
    """The class of a row of labels.csv, by number or by name. Raises InputError."""
    given = run.given[row]
    number, name = cells["given"].strip(), cells["given_name"]
    if not number.isdecimal() or int(number) >= len(run.classes):
        raise InputError(f"given '{number}': expected a number from 0 to {len(run.classes) - 1}")
    by_number, by_name = int(number), label_of(name, run)
    if given not in (by_number, by_name) and by_number != by_name:
        raise InputError(
            f"given {number} and given_name '{name}' are two classes; edit one of them"
        )
    return by_name if by_number == given else by_number


def label_of(name: str, run: JudgedRun) -> int:
    """The number of a class. Raises InputError."""
    if name not in run.classes:
        raise InputError(f"'{name}': the run has no such class")
    return run.classes.index(name)


def accepted(run: JudgedRun, first: int | None, below: float | None) -> list[Decision]:
    """The suggestions of the run's own list, unseen, the most suspicious first.

    Args: first, how many; or below, those whose p_clean is lower. Raises InputError.
    """
    lists = sorted(run.folder.glob("labels*.csv"))
    own = [path for path in lists if digest(path.read_bytes()) in run.written]
    if not own:
        raise InputError(f"{run.folder}: no labels.csv as the run wrote it; --evaluate writes one")
    cells = [cells for _, cells in rows_of(own[-1]) if cells["predicted"] != cells["given"]]
    cells.sort(key=lambda row: int(row["rank"]))
    if below is not None:
        cells = [row for row in cells if float(row["p_clean"]) < below]
    return [Decision(row_of(row, run), int(row["predicted"])) for row in cells[:first]]

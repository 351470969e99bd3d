"""Corrections of a run's labels: corrections.csv of the page, an edited labels.csv, suggestions."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smr.errors import InputError
from smr.label_issues.report import digest, read_run_labels
from smr.label_issues.spreadsheet import may_be, read_table, whole_number

ACTIONS = ("keep", "take", "other", "drop")
CORRECTIONS = ("index", "file", "given", "corrected", "action")
EDITED = ("index", "file", "given", "given_name")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run and the training images that its lists are about.

    rows: position in the training set → place in the lists `labels`, `files` (relative to the
    data's folder; None if the images are no files) and `checksums`. written: of each list that the
    run wrote itself, its digest.
    """

    folder: Path
    config: dict
    class_names: list[str]
    rows: dict[int, int]
    labels: list[int]
    files: list[str] | None
    checksums: list[int | None]
    written: list[str]


@dataclass(frozen=True)
class Correction:
    """Of the image at place `row` of a FinishedRun: its new class, or None to drop it."""

    row: int
    label: int | None


def read_run(folder: Path) -> FinishedRun:
    """The run in this folder. Raises InputError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lists = read_run_labels(folder)
        labels = lists["labels"]
        return FinishedRun(
            *(folder, config, lists["class_names"]),
            rows={index: row for row, index in enumerate(lists["index"])},
            labels=labels,
            files=lists["files"],
            checksums=lists["crc32"] or [None] * len(labels),
            written=lists["written"],
        )
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; expected a run folder") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: no complete labels.json, which a run writes at its end; --evaluate of the "
            "training script writes it again"
        ) from error


class Names:
    """Which class a cell names, in a table that a spreadsheet may have rewritten.

    A class is `rewritten` if its name stands in no row of its images and what stands there may be
    a spreadsheet's form of it: then such cells were not changed by a person.
    """

    def __init__(self, class_names: list[str], cells: Iterable[tuple[int, str]]):
        self.class_names = class_names
        by_label: dict[int, set[str]] = defaultdict(set)
        for label, cell in cells:
            by_label[label].add(cell)
        self.rewritten = {
            label: {cell for cell in read if may_be(class_names[label], cell)}
            for label, read in by_label.items()
            if class_names[label] not in read
        }
        self.ambiguous: Counter = Counter()

    def unchanged(self, cell: str, label: int) -> bool:
        """Whether a person left the name of this class as it was."""
        if cell == self.class_names[label]:
            return True
        if cell not in self.rewritten.get(label, ()):
            return False
        if cell in self.class_names:
            self.ambiguous[self.class_names[label], cell] += 1
        return True

    def label_of(self, cell: str) -> int:
        """The number of the class that a changed cell names. Raises InputError."""
        names = self.class_names
        exact = names.index(cell) if cell in names else None
        others = [c for c, name in enumerate(names) if c != exact and may_be(name, cell)]
        if exact is not None and not any(self.rewritten.get(label) for label in others):
            return exact
        candidates = others if exact is None else [exact, *others]
        if not candidates:
            raise InputError(f"'{cell}': the run has no such class")
        if len(candidates) > 1:
            either = " or ".join(f"'{names[label]}' ({label})" for label in candidates)
            raise InputError(f"'{cell}' may be {either}; give the class's number")
        return candidates[0]

    def notes(self) -> list[str]:
        """Lines on cells that were taken as unchanged although they name another class."""
        return [
            f"note: '{cell}' for '{name}' in {times:,} rows is taken as a spreadsheet's form of "
            "it; to correct such a label edit the number in `given`"
            for (name, cell), times in self.ambiguous.items()
        ]


def read_corrections(path: Path, run: FinishedRun) -> tuple[list[Correction], list[str]]:
    """The labels that a person changed in a `corrections.csv` or `labels.csv`; notes for the user.

    Raises InputError, which names the row.
    """
    columns, numbered = read_table(path)
    page = "action" in columns
    expected, name_column = (CORRECTIONS, "given") if page else (EDITED, "given_name")
    if missing := [name for name in expected if name not in columns]:
        raise InputError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(CORRECTIONS)} of "
            "corrections.csv, or all of the run's own labels.csv; nothing was done"
        )
    line, rows = 1, []
    try:
        for line, cells in numbered:
            rows.append((line, row_of(cells, run), cells))
        names = Names(
            run.class_names, ((run.labels[r], cells[name_column]) for _, r, cells in rows)
        )
        corrections: dict[int, Correction] = {}
        for number, row, cells in rows:
            line = number
            if row in corrections:
                raise InputError(f"a second row of index {cells['index']}")
            label = (label_of_page if page else label_of_edited)(cells, run.labels[row], names)
            corrections[row] = Correction(row, label)
    except InputError as error:
        raise InputError(f"{path}, row {line}: {error}; nothing was done") from error
    changed = [each for each in corrections.values() if each.label != run.labels[each.row]]
    return changed, names.notes()


def row_of(cells: dict[str, str], run: FinishedRun) -> int:
    """The image that a table's row is about. Raises InputError if the run has no such image."""
    index = whole_number(cells["index"])
    if index not in run.rows:
        raise InputError(f"index '{cells['index']}': the run has no such training image")
    row = run.rows[index]
    file = run.files[row] if run.files else ""
    if not may_be(file, cells["file"]):
        raise InputError(f"file '{cells['file']}': image {index} of the run is '{file}'")
    return row


def label_of_page(cells: dict[str, str], label: int, names: Names) -> int | None:
    """The class by a row of corrections.csv, None to drop the image. Raises InputError.

    The page also gives the class's number, in the column `label`.
    """
    action, name = cells["action"], names.class_names[label]
    if action not in ACTIONS:
        raise InputError(f"action '{action}': expected one of {', '.join(ACTIONS)}")
    if not may_be(name, cells["given"]):
        raise InputError(f"given '{cells['given']}': the run's label was '{name}'")
    if action == "drop":
        return None
    number, cell = whole_number(cells.get("label", "")), cells["corrected"]
    if number is not None and number < len(names.class_names):
        corrected = number if may_be(names.class_names[number], cell) else names.label_of(cell)
    else:
        corrected = label if names.unchanged(cell, label) else names.label_of(cell)
    if action == "keep" and corrected != label:
        raise InputError(f"corrected '{cell}' of a label to keep, which is '{name}'")
    return corrected


def label_of_edited(cells: dict[str, str], label: int, names: Names) -> int:
    """The class by a row of labels.csv: of number and name the changed one. Raises InputError."""
    number, cell = whole_number(cells["given"]), cells["given_name"]
    last = len(names.class_names) - 1
    if number is None or number > last:
        raise InputError(f"given '{cells['given']}': expected a number from 0 to {last}")
    by_name = label if names.unchanged(cell, label) else names.label_of(cell)
    if label not in (number, by_name) and number != by_name:
        raise InputError(
            f"given {number} and given_name '{cell}' are two classes; edit one of them"
        )
    return by_name if number == label else number


def suggestions(run: FinishedRun, first: int | None, below: float | None) -> list[Correction]:
    """The suggested labels of the run's own list, the likeliest label issue first.

    Args: first, how many; or below, those with a lower p_clean. Raises InputError.
    """
    lists = sorted(run.folder.glob("labels*.csv"))
    own = [path for path in lists if digest(path.read_bytes()) in run.written]
    if not own:
        raise InputError(f"{run.folder}: no labels.csv as the run wrote it; --evaluate writes one")
    rows = [cells for _, cells in read_table(own[-1])[1] if cells["predicted"] != cells["given"]]
    rows.sort(key=lambda cells: int(cells["rank"]))
    if below is not None:
        rows = [cells for cells in rows if float(cells["p_clean"]) < below]
    return [Correction(row_of(cells, run), int(cells["predicted"])) for cells in rows[:first]]


def summary(corrections: Sequence[Correction], run: FinishedRun) -> list[str]:
    """Lines on how many labels change, and from which class to which."""
    pairs = Counter((run.labels[c.row], c.label) for c in corrections)
    dropped = sum(times for (_, label), times in pairs.items() if label is None)
    lines = [f"{len(corrections) - dropped:,} labels to change, {dropped:,} images to drop"]
    for (before, label), times in pairs.most_common():
        target = "dropped" if label is None else run.class_names[label]
        lines.append(f"{times:6,}  {run.class_names[before]} -> {target}")
    return lines

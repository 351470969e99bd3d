"""Corrections of a run's labels: corrections.csv of the page, an edited labels.csv, suggestions.

Corrections are a dict: a place in the run's lists → the new class, or None to drop the image.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from smr.data.label_table import read_table
from smr.errors import InputError
from smr.label_issues.report import digest, read_run_labels
from smr.label_issues.spreadsheet import may_be, whole_number

Corrections = dict[int, int | None]
ACTIONS = ("keep", "take", "other", "drop")
CORRECTIONS = ("index", "file", "given", "corrected", "action")
EDITED = ("index", "file", "given", "given_name")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run and the training images that its lists are about.

    rows: position in the training set → place in the lists `labels`, `files` (relative to the
    data's folder, or None) and `checksums` (or None). written: the digests of the run's own lists.
    """

    folder: Path
    config: dict
    class_names: list[str]
    rows: dict[int, int]
    labels: list[int]
    files: list[str] | None
    checksums: list[int] | None
    written: list[str]


def read_run(folder: Path) -> FinishedRun:
    """The run in this folder. Raises InputError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lists = read_run_labels(folder)
        rows = {index: row for row, index in enumerate(lists["index"])}
        return FinishedRun(
            folder=folder,
            config=config,
            class_names=lists["class_names"],
            rows=rows,
            labels=lists["labels"],
            files=lists["files"],
            checksums=lists["crc32"],
            written=lists["written"],
        )
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; expected a run folder") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: no complete labels.json, which a run writes at its end; --evaluate of the "
            "training script writes it again"
        ) from error


class ClassNames:
    """The class that a cell names, in a table that a spreadsheet may have rewritten.

    forms: label → the cell in the rows of its images, if the class's name is in none of them and
    a spreadsheet may have made the cell of the name. notes: on forms that are other classes' names.

    Args: cells, (label, cell) of each row.
    """

    def __init__(self, names: list[str], cells: Iterable[tuple[int, str]]):
        self.names, self.forms, self.notes = names, {}, []
        by_label: dict[int, Counter] = defaultdict(Counter)
        for label, cell in cells:
            by_label[label][cell] += 1
        for label, counts in by_label.items():
            forms = [cell for cell, _ in counts.most_common() if may_be(names[label], cell)]
            if names[label] in counts or not forms:
                continue
            self.forms[label] = forms[0]
            if forms[0] in names:
                self.notes.append(
                    f"note: '{forms[0]}' for '{names[label]}' in {counts[forms[0]]:,} rows is "
                    "taken as a spreadsheet's form of it; to correct such a label edit the number "
                    "in `given`"
                )

    def label_of(self, cell: str, label: int) -> int:
        """The class that a cell names in a row of this label. Raises InputError."""
        if cell in (self.names[label], self.forms.get(label)):
            return label
        labels = [c for c, name in enumerate(self.names) if cell in (name, self.forms.get(c))]
        labels = labels or [c for c, name in enumerate(self.names) if may_be(name, cell)]
        if not labels:
            raise InputError(f"'{cell}': the run has no such class")
        if len(labels) > 1:
            either = " or ".join(f"'{self.names[c]}' ({c})" for c in labels)
            raise InputError(f"'{cell}' may be {either}; give the class's number")
        return labels[0]


def read_corrections(path: Path, run: FinishedRun) -> tuple[Corrections, list[str]]:
    """The labels that a person changed in a `corrections.csv` or `labels.csv`; notes for the user.

    Raises InputError, which names the row.
    """
    columns, table = read_table(path)
    page = "action" in columns
    expected, name_column = (CORRECTIONS, "given") if page else (EDITED, "given_name")
    if missing := [name for name in expected if name not in columns]:
        raise InputError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(CORRECTIONS)} of "
            "corrections.csv, or all of the run's own labels.csv; nothing was done"
        )
    corrections: Corrections = {}
    line, rows = 1, []
    try:
        for line, cells in table:
            rows.append((line, row_of(cells, run), cells))
        names = ClassNames(run.class_names, [(run.labels[r], c[name_column]) for _, r, c in rows])
        for number, row, cells in rows:
            line = number
            if row in corrections:
                raise InputError(f"a second row of index {cells['index']}")
            label_of = label_of_page if page else label_of_edited
            corrections[row] = label_of(cells, run.labels[row], names)
    except InputError as error:
        raise InputError(f"{path}, row {line}: {error}; nothing was done") from error
    changed = {row: label for row, label in corrections.items() if label != run.labels[row]}
    return changed, names.notes


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


def label_of_page(cells: dict[str, str], label: int, classes: ClassNames) -> int | None:
    """The class by a row of corrections.csv, None to drop the image. Raises InputError.

    The page also gives the class's number, in the column `label`.
    """
    action, name, corrected = cells["action"], classes.names[label], cells["corrected"]
    if action not in ACTIONS:
        raise InputError(f"action '{action}': expected one of {', '.join(ACTIONS)}")
    if not may_be(name, cells["given"]):
        raise InputError(f"given '{cells['given']}': the run's label was '{name}'")
    if action == "drop":
        return None
    number = whole_number(cells.get("label", ""))
    if number not in range(len(classes.names)) or not may_be(classes.names[number], corrected):
        number = classes.label_of(corrected, label)
    if action == "keep" and number != label:
        raise InputError(f"corrected '{corrected}' of a label to keep, which is '{name}'")
    return number


def label_of_edited(cells: dict[str, str], label: int, classes: ClassNames) -> int:
    """The class by a row of labels.csv: of number and name the changed one. Raises InputError."""
    number, name = whole_number(cells["given"]), cells["given_name"]
    if number not in range(len(classes.names)):
        last = len(classes.names) - 1
        raise InputError(f"given '{cells['given']}': expected a number from 0 to {last}")
    by_name = classes.label_of(name, label)
    if label not in (number, by_name) and number != by_name:
        raise InputError(
            f"given {number} and given_name '{name}' are two classes; edit one of them"
        )
    return by_name if number == label else number


def suggestions(run: FinishedRun, first: int | None, below: float | None) -> Corrections:
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
    return {row_of(cells, run): int(cells["predicted"]) for cells in rows[:first]}


def summary(corrections: Corrections, run: FinishedRun) -> list[str]:
    """Lines on how many labels change, and from which class to which."""
    pairs = Counter((run.labels[row], label) for row, label in corrections.items())
    dropped = list(corrections.values()).count(None)
    lines = [f"{len(corrections) - dropped:,} labels to change, {dropped:,} images to drop"]
    for (before, label), times in pairs.most_common():
        target = "dropped" if label is None else run.class_names[label]
        lines.append(f"{times:6,}  {run.class_names[before]} -> {target}")
    return lines

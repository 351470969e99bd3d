"""Corrections of a run's labels: corrections.csv of the page, an edited labels.csv, suggestions.

Corrections are a dict: a place in the run's lists → the new class, or None to drop the image. Data
that stays as it is gets a new list of labels in the run's folder; smr/label_issues/moves.py moves
photos.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from smr.data.image_folder import files_inside, first_ten, same_name
from smr.data.label_table import find_columns, find_file, places_of, read_table
from smr.data.noise_file import label_list, number
from smr.errors import InputError
from smr.files import atomic_write
from smr.label_issues.report import Line, free_path, is_edited, read_run_labels, to_csv

Corrections = dict[int, int | None]
ACTIONS = ("keep", "take", "other", "drop")
CORRECTIONS = ("index", "file", "given", "corrected", "action")
EDITED = ("index", "file", "given", "given_name")
# Names that a spreadsheet may rewrite: numbers, dates, formulas, truth values, missing values.
MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
WORD = "<?(true|false|n/?a|nan|none|null)>?"
REWRITTEN = re.compile(
    rf"[\d\W]+|\d+e\d+|[=+@-].*|{MONTH}\W*\d+|\d+\W*{MONTH}|{WORD}", re.IGNORECASE
)
# What it makes of them: a number or a date, an empty cell, a formula's error, a truth value.
FORM = re.compile(r".*\d.*|\s*|#.*|true|wahr|vrai|vero|verdadero|fals\w*|faux", re.IGNORECASE)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run and the training images that its lists are about.

    index: their positions in the training set. files: relative to the data's folder, or None.
    crc32: the files' checksums, or None. written: the digests of the run's own lists.
    """

    folder: Path
    config: dict
    written: list[str]
    class_names: list[str]
    files: list[str] | None
    index: list[int]
    labels: list[int]
    crc32: list[int] | None

    @cached_property
    def rows(self) -> dict[int, int]:
        """Position in the training set → place in the lists."""
        return {index: row for row, index in enumerate(self.index)}


def read_run(folder: Path) -> FinishedRun:
    """The run in this folder. Raises InputError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return FinishedRun(folder, config, **read_run_labels(folder))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: no config.json or no complete labels.json; expected a run folder; "
            "--evaluate of the training script writes labels.json again"
        ) from error


def is_same(name: str, cell: str) -> bool:
    """Whether a cell is this name but for case and spaces, or the same number: 5.10 and 5.1."""
    with suppress(ValueError):
        if float(name.replace(",", ".")) == float(cell.replace(",", ".")):
            return True
    return same_name(name) == same_name(cell)


class ClassNames:
    """The class that a cell names, in a table that a spreadsheet may have rewritten.

    A spreadsheet rewrites a name in all its rows. forms: label → the most frequent cell in the
    rows of its images, if the class's name is in none of them. Args: cells, (label, cell) by row.
    """

    def __init__(self, names: list[str], cells: Iterable[tuple[int, str]]):
        self.names, self.forms = names, {}
        by_label: dict[int, Counter] = defaultdict(Counter)
        for label, cell in cells:
            by_label[label][cell] += 1
        for label, counts in by_label.items():
            forms = [cell for cell, _ in counts.most_common() if self.may_be(label, cell)]
            if forms and names[label] not in counts:
                self.forms[label] = forms[0]

    def may_be(self, label: int, cell: str) -> bool:
        """Whether a spreadsheet may have written a class's name as this cell."""
        name = self.names[label]
        is_rewritten = REWRITTEN.fullmatch(name) and FORM.fullmatch(cell)
        return is_same(name, cell) or (bool(is_rewritten) and cell not in self.names)

    def label_of(self, cell: str, label: int) -> int:
        """The class that a cell names in a row of this label. Raises InputError."""
        if cell in (self.names[label], self.forms.get(label)):
            return label
        labels = [c for c, name in enumerate(self.names) if cell in (name, self.forms.get(c))]
        labels = labels or [c for c, name in enumerate(self.names) if is_same(name, cell)]
        if not labels:
            raise InputError(f"'{cell}': the run has no such class")
        if len(labels) > 1:
            either = " or ".join(f"'{self.names[c]}' ({c})" for c in labels)
            raise InputError(f"'{cell}' may be {either}; give the class's number")
        return labels[0]


def read_corrections(path: Path, run: FinishedRun) -> Corrections:
    """The labels that a person changed in a `corrections.csv` or `labels.csv`.

    Raises InputError, which names the row.
    """
    columns, table = read_table(path)
    expected, name_column = EDITED, "given_name"
    if "action" in columns:
        expected, name_column = CORRECTIONS, "given"
    if missing := [name for name in expected if name not in columns]:
        raise InputError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(CORRECTIONS)} of "
            "corrections.csv, or all of the run's own labels.csv; nothing was done"
        )
    corrections, rows = {}, {}
    try:
        for line, cells in table:
            row = row_of(cells, run)
            if row in rows:
                raise InputError(f"a second row of index {cells['index']}")
            rows[row] = line, cells
        named = [(run.labels[row], cells[name_column]) for row, (_, cells) in rows.items()]
        classes = ClassNames(run.class_names, named)
        for row in rows:
            line, cells = rows[row]
            label = new_label(cells, run.labels[row], classes)
            if label != run.labels[row]:
                corrections[row] = label
    except InputError as error:
        raise InputError(f"{path}, row {line}: {error}; nothing was done") from error
    return corrections


def row_of(cells: dict[str, str], run: FinishedRun) -> int:
    """The image that a table's row is about. Raises InputError if the run has no such image."""
    index = number(cells["index"].replace(",", "."))
    if index not in run.rows:
        raise InputError(f"index '{cells['index']}': the run has no such training image")
    row = run.rows[index]
    file = run.files[row] if run.files else ""
    if not is_same(file, cells["file"]):
        raise InputError(f"file '{cells['file']}': image {index} of the run is '{file}'")
    return row


def new_label(cells: dict[str, str], label: int, classes: ClassNames) -> int | None:
    """The class by a row of either table, None to drop the image. Raises InputError.

    Both give the class's number and its name; one that was edited counts.
    """
    action, number_cell, name = cells.get("action"), cells["given"], cells.get("given_name")
    if action is not None:
        if action not in ACTIONS:
            raise InputError(f"action '{action}': expected one of {', '.join(ACTIONS)}")
        before = classes.names[label]
        if not classes.may_be(label, cells["given"]):
            raise InputError(f"given '{cells['given']}': the run's label was '{before}'")
        if action == "keep" and not classes.may_be(label, cells["corrected"] or before):
            raise InputError(f"action keep, but corrected '{cells['corrected']}'")
        if action in ("drop", "keep"):
            return None if action == "drop" else label
        number_cell, name = cells.get("label") or str(label), cells["corrected"]
    by_number = number(number_cell.replace(",", "."))
    if by_number not in range(len(classes.names)):
        raise InputError(f"class '{number_cell}': expected 0 to {len(classes.names) - 1}")
    if by_number != label and classes.may_be(by_number, name):
        return by_number
    by_name = classes.label_of(name, label)
    if action is not None:
        return by_name
    if label not in (by_number, by_name):
        raise InputError(f"class {by_number} and '{name}' are two classes; edit one of them")
    return by_name if by_number == label else by_number


def suggestions(run: FinishedRun, first: int | None, below: float | None) -> Corrections:
    """The suggested labels of the run's own list, the likeliest label issue first.

    Args: first, how many; or below, those with a lower p_clean. Raises InputError.
    """
    lists = sorted(run.folder.glob("labels*.csv"))
    own = [path for path in lists if not is_edited(path, run.written)]
    if not own:
        raise InputError(f"{run.folder}: no labels.csv as the run wrote it; --evaluate writes one")
    _, table = read_table(own[-1])
    rows = [
        cells
        for _, cells in sorted(table, key=lambda row: int(row[1]["rank"]))
        if cells["predicted"] != cells["given"]
        and (below is None or float(cells["p_clean"]) < below)
    ]
    return {row_of(cells, run): int(cells["predicted"]) for cells in rows[:first]}


def write_label_list(
    run: FinishedRun, corrections: Corrections, root: Path, dry_run: bool, line: Line
) -> None:
    """Write corrected_labels.json, or .csv for a run on --labels. Raises InputError."""
    if run.config.get("labels_csv"):
        name, flag, raw = "corrected_labels.csv", "--labels", csv_of(run, corrections, root)
    else:
        name, flag, raw = "corrected_labels.json", "--noise_file", json_of(run, corrections)
    path = free_path(run.folder / name, lambda path: path.exists() and path.read_bytes() != raw)
    if dry_run:
        line(f"{path} would be written; nothing was done (--dry_run)")
        return
    try:
        with atomic_write(path) as file:
            file.write(raw)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    line(f"wrote {path}; train again with {flag} {path} and another --id")


def json_of(run: FinishedRun, corrections: Corrections) -> bytes:
    """A label for each training image, null for each dropped one."""
    # null, too, for a photo that could not be decoded, for which the run has no prediction.
    labels: list[int | None] = [None] * run.config["train_images"]
    for index, row in run.rows.items():
        labels[index] = corrections.get(row, run.labels[row])
    return json.dumps(label_list(labels, run.config.get("dropped_images", []))).encode()


def csv_of(run: FinishedRun, corrections: Corrections, root: Path) -> bytes:
    """The run's own table with the changed labels.

    Rows of test images stay; those of dropped images go. Raises InputError.
    """
    path = Path(run.config["labels_csv"])
    columns, table = read_table(path)
    file_column, label_column = find_columns(path, columns)
    places = places_of(list(files_inside(root, {}, "")))
    changes = {run.files[row]: label for row, label in corrections.items()}
    missing, rows = set(changes), []
    for _, cells in table:
        file = "".join(find_file(cells[file_column].strip(), places)[:1])
        missing.discard(file)
        if changes.get(file) is not None:
            cells[label_column] = run.class_names[changes[file]]
        if changes.get(file, "") is not None:
            rows.append([cells[column] for column in columns])
    if missing:
        names = first_ten(sorted(missing))
        raise InputError(f"{path}: no row for {names} (in {root}); nothing was done")
    return to_csv(columns, rows)

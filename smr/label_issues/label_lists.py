"""Corrections of data that stays as it is: a new list of labels in the run's folder."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from smr.data.noise_file import label_list
from smr.errors import InputError
from smr.files import atomic_write
from smr.label_issues.corrections import Correction, FinishedRun
from smr.label_issues.spreadsheet import read_table


def write_label_list(
    run: FinishedRun, corrections: Sequence[Correction], dry_run: bool, line: Callable[[str], None]
) -> None:
    """Write corrected_labels.json, or .csv for a run on --labels. Raises InputError."""
    changed = {correction.row: correction.label for correction in corrections}
    if run.config.get("labels_csv"):
        name, flag, raw = "corrected_labels.csv", "--labels", csv_of(run, changed)
    else:
        name, flag, raw = "corrected_labels.json", "--noise_file", json_of(run, changed)
    path, number = run.folder / name, 1
    while path.exists() and path.read_bytes() != raw:
        number += 1
        path = (run.folder / name).with_stem(f"corrected_labels_{number}")
    if dry_run:
        line(f"{path} would be written; nothing was done (--dry_run)")
        return
    try:
        with atomic_write(path) as file:
            file.write(raw)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    line(f"wrote {path}; train again with {flag} {path} and another --id")


def json_of(run: FinishedRun, changed: dict[int, int | None]) -> bytes:
    """A label for each training image, null for each dropped one."""
    # null, too, for a photo that could not be decoded, for which the run has no prediction.
    labels: list[int | None] = [None] * run.config["train_images"]
    for index, row in run.rows.items():
        labels[index] = changed.get(row, run.labels[row])
    return json.dumps(label_list(labels, run.config.get("dropped_images", []))).encode()


def csv_of(run: FinishedRun, changed: dict[int, int | None]) -> bytes:
    """The run's own table with changed labels.

    Rows of test images stay; those of dropped images go. Raises InputError.
    """
    path = Path(run.config["labels_csv"])
    columns, numbered = read_table(path)
    table = [cells for _, cells in numbered]
    places = {file: row for row, file in enumerate(run.files or ())}

    def row_of(cell: str) -> int | None:
        parts = PurePosixPath(cell).parts  # maybe from a root elsewhere
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((places[tail] for tail in tails if tail in places), None)

    rows_by_column = {name: [row_of(cells[name]) for cells in table] for name in columns}
    rows = min(rows_by_column.values(), key=lambda rows: rows.count(None), default=[])
    known = [
        (run.labels[row], cells) for row, cells in zip(rows, table, strict=True) if row is not None
    ]

    def agreement(column: str) -> int:
        return sum(cells[column].strip() == run.class_names[label] for label, cells in known)

    column = max(columns, key=agreement, default="")
    if not known or not agreement(column):
        raise InputError(f"{path}: no columns with the run's files and labels; nothing was done")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row, cells in zip(rows, table, strict=True):
        if row in changed:
            if changed[row] is None:
                continue
            cells[column] = run.class_names[changed[row]]
        writer.writerow(cells)
    return text.getvalue().encode("utf-8-sig")

"""Corrections of data that stays as it is: a new list of labels in the run's folder."""

import json
from pathlib import Path

from smr.data.image_folder import files_inside, first_ten
from smr.data.label_table import find_columns, find_file, places_of, read_table
from smr.data.noise_file import label_list
from smr.errors import InputError
from smr.files import atomic_write
from smr.label_issues.corrections import Corrections, FinishedRun
from smr.label_issues.report import Line, to_csv


def write_label_list(
    run: FinishedRun, corrections: Corrections, root: Path, dry_run: bool, line: Line
) -> None:
    """Write corrected_labels.json, or .csv for a run on --labels. Raises InputError."""
    if run.config.get("labels_csv"):
        name, flag, raw = "corrected_labels.csv", "--labels", csv_of(run, corrections, root)
    else:
        name, flag, raw = "corrected_labels.json", "--noise_file", json_of(run, corrections)
    path, number = run.folder / name, 1
    while path.exists() and path.read_bytes() != raw:
        number += 1
        path = path.with_stem(f"corrected_labels_{number}")
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
        label = changes.get(file)
        if label is not None:
            cells[label_column] = run.class_names[label]
        if label is not None or file not in changes:
            rows.append([cells[column] for column in columns])
    if missing:
        names = first_ten(sorted(missing))
        raise InputError(f"{path}: no row for {names} (in {root}); nothing was done")
    return to_csv(columns, rows)

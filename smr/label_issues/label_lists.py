"""Corrections of data that stays as it is: a new list of labels in the run's folder."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from smr.data.image_folder import files_inside, first_ten
from smr.data.label_table import find_columns, find_file, places_of
from smr.data.noise_file import label_list
from smr.errors import InputError
from smr.files import atomic_write
from smr.label_issues.corrections import Correction, FinishedRun
from smr.label_issues.spreadsheet import read_table


def write_label_list(
    run: FinishedRun,
    corrections: Sequence[Correction],
    root: Path,
    dry_run: bool,
    line: Callable[[str], None],
) -> None:
    """Write corrected_labels.json, or .csv for a run on --labels. Raises InputError."""
    changed = {correction.row: correction.label for correction in corrections}
    if run.config.get("labels_csv"):
        name, flag, raw = "corrected_labels.csv", "--labels", csv_of(run, changed, root)
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


def csv_of(run: FinishedRun, changed: dict[int, int | None], root: Path) -> bytes:
    """The run's own table with the changed labels.

    Rows of test images stay; those of dropped images go. Raises InputError.
    """
    path = Path(run.config["labels_csv"])
    columns, rows = read_table(path)
    file_column, label_column = find_columns(path, columns)
    places = places_of(list(files_inside(root, {}, "")))
    changes = {run.files[row]: label for row, label in changed.items()}
    missing, text = set(changes), io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for _, cells in rows:
        file = "".join(find_file(cells[file_column].strip(), places)[:1])
        missing.discard(file)
        if file in changes:
            if changes[file] is None:
                continue
            cells[label_column] = run.class_names[changes[file]]
        writer.writerow(cells)
    if missing:
        names = first_ten(sorted(missing))
        raise InputError(f"{path}: no row for {names} (in {root}); nothing was done")
    return text.getvalue().encode("utf-8-sig")

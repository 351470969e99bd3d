"""Labels from a CSV file beside a folder of images, in any of the usual forms."""

import csv
import io
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from smr.data.image_folder import (
    Listing,
    files_inside,
    first_ten,
    is_photo,
    natural_order,
    read_text,
    sorted_listing,
)
from smr.errors import InputError

# Names of columns in lower case, the first that is there: ours, Label Studio's, FiftyOne's, others.
FILE_COLUMNS = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path"),
    *("image_file", "image_name", "img", "image_id"),
)
LABEL_COLUMNS = (
    *("label", "class_name", "label_name", "class", "choice", "ground_truth.label", "category"),
    *("ground_truth", "labels", "target", "given", "y"),
)
# Label Studio's prefix of an uploaded file.
UPLOAD_PREFIX = re.compile("^[0-9a-f]{8}-")


def read_label_table(path: Path, root: Path) -> tuple[Listing, list[str], list[str]]:
    """The images in `root` that a CSV file labels, by ascending label; the classes; notes.

    Labels are names, or numbers in ascending order. A file is named by its path, by the end of
    its path, or by its name with or without suffix. Raises InputError.
    """
    rows, broken = read_rows(path), {}
    classes = sorted({label for _, label in rows}, key=natural_order)
    if len(classes) < 2:
        raise InputError(f"{path}: labels of {len(classes)} classes; expected at least 2")
    files = list(files_inside(root, broken, ""))
    places, labels, missing = places_of(files), {}, []
    for name, label in rows:
        candidates = find_file(name, places)
        if len(candidates) > 1:
            several = f"{len(candidates)} files: {first_ten(candidates)}"
            raise InputError(f"{path}: '{name}' names {several}; give their paths")
        if not candidates:
            missing.append(name)
        elif labels.setdefault(candidates[0], label) != label:
            raise InputError(f"{path}: {name} has the labels {labels[candidates[0]]} and {label}")
    if not labels:
        raise InputError(
            f"{path}: none of its {len(rows)} files is in {root}: {first_ten(missing)}; "
            f"found {first_ten(files) or 'nothing'}"
        )
    broken = {name: why for name, why in broken.items() if is_photo(name)}
    broken |= dict.fromkeys(missing, f"listed in {path.name}, but not there")
    notes = [f"labels of {len(labels)} images from {path.name}, {len(classes)} classes"]
    if extra := sorted(name for name in files if is_photo(name) and name not in labels):
        notes.append(f"{len(extra)} images without a label in {path.name}: {first_ten(extra)}")
    numbers = {name: number for number, name in enumerate(classes)}
    labeled = [(numbers[label], natural_order(file), file) for file, label in labels.items()]
    return sorted_listing(labeled, broken), classes, notes


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """A table's columns, and line number and cells of each row. Raises InputError.

    Separated by commas, semicolons or tabs.
    """
    text = read_text(path, "save it as 'CSV UTF-8'")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    try:
        rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except csv.Error as error:
        raise InputError(f"{path}: no table ({error}); save it as 'CSV UTF-8'") from error
    return list(reader.fieldnames or ()), rows


def read_rows(path: Path) -> list[tuple[str, str]]:
    """(file, label) of each row that has a label. Raises InputError."""
    columns, table = read_table(path)
    file, label = find_columns(path, columns)
    rows = [(row[file].strip(), row[label].strip()) for _, row in table]
    if several := next((value for _, value in rows if value.startswith(("{", "["))), None):
        raise InputError(f"{path}: several labels of an image: {several[:80]}")
    return [(name, value) for name, value in rows if name and value]


def find_columns(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """The columns of files and of labels. Raises InputError."""
    columns = {name.strip().lower(): name for name in names if name}
    fields = [name for name in columns if name.endswith(".label")]  # FiftyOne's
    file, label = (
        next((columns[name] for name in usual if name in columns), None)
        for usual in (FILE_COLUMNS, (*LABEL_COLUMNS, *fields))
    )
    if not file or not label:
        expected = "expected 'file' and 'label' in its first line"
        raise InputError(f"{path}: columns {first_ten(list(columns))}; {expected}")
    return file, label


def places_of(files: Sequence[str]) -> dict[str, list[str]]:
    """The end of each file's path, of any length, with and without its suffix → the files."""
    places: dict[str, list[str]] = defaultdict(list)
    for file in files:
        parts = file.split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            places[end].append(file)
            places[posixpath.splitext(end)[0]].append(file)
    return places


def find_file(name: str, places: dict[str, list[str]]) -> list[str]:
    """The files that a cell may mean: those of the longest end of its path that is known."""
    name = unquote(name.split("?d=")[-1]).replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        if end in places:
            return [end] if end in places[end] else places[end]
    uploaded = UPLOAD_PREFIX.sub("", parts[-1]) if parts else ""
    return places.get(uploaded, [])

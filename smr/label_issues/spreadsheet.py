"""Tables as spreadsheets save them, and what they make of names that look like numbers or dates."""

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

from smr.data.image_folder import same_name
from smr.errors import InputError

# What pandas reads as a missing value and writes as an empty cell.
MISSING = {"", "#n/a", "n/a", "na", "<na>", "nan", "-nan", "none", "null"}
TRUE_FALSE = ({"true", "wahr", "vrai", "vero", "verdadero"}, {"false", "falsch", "faux", "falso"})
# The beginnings of month names in the languages of most installations, for 1 to 12.
MONTH_WORDS = (
    *("jan ene gen", "feb fév fev", "mar mär mrz maa", "apr avr abr", "may mai mei mag", "jun giu"),
    *("jul lug", "aug aoû ago", "sep set", "oct okt out ott", "nov", "dec dez déc dic"),
)
MONTHS = {word: i for i, words in enumerate(MONTH_WORDS, start=1) for word in words.split()}


def read_table(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """A table's columns, and line number and cells of each row. Raises InputError, also later.

    Separated by commas, semicolons or tabs; UTF-8 with or without a byte order mark, or UTF-16.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8; save it as 'CSV UTF-8'") from error
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        try:
            for row in reader:
                if any(row.values()):
                    yield reader.line_num, row
        except csv.Error as error:
            raise InputError(f"{path}: no table: {error}") from error

    try:
        return list(reader.fieldnames or ()), rows()
    except csv.Error as error:
        raise InputError(f"{path}: no table: {error}") from error


def whole_number(cell: str) -> int | None:
    """3 of '3', '3.0' or '3,0'; None of anything else."""
    return (
        int(cell.split(".")[0].split(",")[0]) if re.fullmatch(r" *\d+([.,]0*)? *", cell) else None
    )


def may_be(name: str, cell: str) -> bool:
    """Whether Excel, LibreOffice or pandas may write a cell `name` back as `cell`."""
    if cell == name or same_name(cell) == same_name(name):
        return True
    if same_number(name, cell) or same_date(name, cell):
        return True
    if not cell.strip():
        return name.strip().lower() in MISSING
    if re.fullmatch(r"#[A-Z/0]+[?!]", cell):  # a formula's error
        return name[:1] in "=+-@"
    return any(name.lower() in words and cell.lower() in words for words in TRUE_FALSE)


def same_number(name: str, cell: str) -> bool:
    """Whether both are one number: 5.10 and 5.1, 00000 and 0, 123456789012 and 1.23457E+11."""
    rounded = 1e-5 if "e" in cell.lower() else 0
    return any(
        math.isclose(one, other, rel_tol=rounded)
        for one in numbers_in(name)
        for other in numbers_in(cell)
    )


def numbers_in(text: str) -> set[float]:
    """The number that a text is, its comma read as a decimal point and as a separator."""
    if not re.fullmatch(r"\s*[+-]?[\d.,]*\d[\d.,]*(e[+-]?\d+)?\s*", text, re.IGNORECASE):
        return set()
    values = set()
    for each in (text.replace(",", "."), text.replace(",", "")):
        try:
            values.add(float(each))
        except ValueError:
            continue
    return values


def same_date(name: str, cell: str) -> bool:
    """Whether `cell` is a date or time for which `name` can be taken: 1-2 and 02-Jan."""
    before, after = date_parts(name), date_parts(cell)
    if not 2 <= len(before) <= 3 or not len(before) <= len(after) <= 6:
        return False
    if len(after) == len(before) and max(after) <= 31 and not re.search(r"[^\W\d_]", cell):
        return False  # neither a month's name nor a year: another name
    for part in before:
        years = {part - 2000, part - 1900, part, part + 1900, part + 2000}
        same = [other for other in after if other in years]
        if not same:
            return False
        after.remove(same[0])
    return True


def date_parts(text: str) -> list[int]:
    """The numbers of a date, month names as theirs; none if the text holds other words."""
    words = re.findall(r"[^\W\d_]+|\d+", text)
    parts = [int(w) if w.isdecimal() else MONTHS.get(w[:3].lower(), -1) for w in words]
    return [] if -1 in parts else parts

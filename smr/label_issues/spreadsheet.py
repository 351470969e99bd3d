"""What spreadsheets make of names that look like numbers or dates."""

import math
import re
from contextlib import suppress

from smr.data.image_folder import same_name

# What pandas reads as a missing value and writes as an empty cell.
MISSING = {"", "#n/a", "n/a", "na", "<na>", "nan", "-nan", "none", "null"}
TRUE_FALSE = ({"true", "wahr", "vrai", "vero", "verdadero"}, {"false", "falsch", "faux", "falso"})
# The beginnings of month names in the languages of most installations, for 1 to 12.
MONTH_WORDS = (
    *("jan ene gen", "feb fév fev", "mar mär mrz maa", "apr avr abr", "may mai mei mag", "jun giu"),
    *("jul lug", "aug aoû ago", "sep set", "oct okt out ott", "nov", "dec dez déc dic"),
)
MONTHS = {word: i for i, words in enumerate(MONTH_WORDS, start=1) for word in words.split()}


def whole_number(cell: str) -> int | None:
    """3 of '3', '3.0' or '3,0'; None of anything else."""
    match = re.fullmatch(r" *(\d+)([.,]0*)? *", cell)
    return int(match[1]) if match else None


def may_be(name: str, cell: str) -> bool:
    """Whether Excel, LibreOffice or pandas may write a cell `name` back as `cell`."""
    if same_name(cell) == same_name(name):
        return True
    numbers = [(one, other) for one in numbers_in(name) for other in numbers_in(cell)]
    if numbers:  # 5.10 and 5.1, 00000 and 0, 123456789012 and 1.23457E+11
        tolerance = 1e-5 if "e" in cell.lower() else 0
        return any(math.isclose(*pair, rel_tol=tolerance) for pair in numbers)
    if date := date_parts(name):  # 1-2 and 02-Jan, but not 2-1
        is_date = re.search(r"[^\W\d_]|\d{4}|:", cell) or len(date) < len(date_parts(cell)) == 3
        return bool(is_date) and date <= date_parts(cell)
    if not cell.strip():
        return name.strip().lower() in MISSING
    if re.fullmatch(r"#[A-Z/0]+[?!]", cell):  # a formula's error
        return name[:1] in "=+-@"
    return any(name.lower() in words and cell.lower() in words for words in TRUE_FALSE)


def numbers_in(text: str) -> set[float]:
    """The number that a text is, its comma read as a decimal point and as a separator."""
    values = set()
    for each in (text.replace(",", "."), text.replace(",", "")):
        with suppress(ValueError):
            values.add(float(each))
    return values


def date_parts(text: str) -> set[int]:
    """Numbers of a date or time, of a year the last two digits; none if there are other words."""
    words = re.findall(r"[^\W\d_]+|\d+", text)
    parts = {int(w) % 100 if w.isdecimal() else MONTHS.get(w[:3].lower(), -1) for w in words}
    return set() if -1 in parts or len(words) < 2 else parts

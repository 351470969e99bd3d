"""Lists that Excel, LibreOffice or pandas wrote back: what a person changed counts, no more."""

import csv
import io

import numpy as np
import pytest
from helpers import finish_by_hand

from smr.data.augment import Views
from smr.data.memory_dataset import ImageData, MemoryLoader
from smr.errors import InputError
from smr.label_issues.corrections import ClassNames, read_corrections, read_run

NAMES = ["5.1", "5.10", "00000", "1-2", "Käse", "NA", "true", "123456789012", "-x", "1,000"]
# What Excel makes of such cells in English and in German, where ; separates.
ENGLISH = {"5.10": "5.1", "00000": "0", "1-2": "02-Jan", "true": "TRUE", "1,000": "1000"}
ENGLISH |= {"123456789012": "1.23457E+11", "-x": "#NAME?"}
GERMAN = {"5.1": "05. Jan", "5.10": "05. Okt", "00000": "0", "1-2": "01. Feb", "true": "WAHR"}
PER_CLASS = 11


@pytest.fixture
def run(tmp_path):
    """A finished run with eleven images of each class."""
    labels = np.repeat(np.arange(len(NAMES)), PER_CLASS)
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    files = [f"training/{NAMES[label]}/{i}.png" for i, label in enumerate(labels)]
    data = ImageData(images, labels, images[:2], labels[:2], NAMES, None, files)
    loader = MemoryLoader(data, Views((0.5,) * 3, (0.5,) * 3), 8, seed=0)
    return read_run(finish_by_hand(loader, tmp_path, None, {}))


def rewritten(
    run, forms: dict[str, str], changes: dict[int, tuple[int, str]], only=False, **form
) -> dict:
    """The corrections of labels.csv after a spreadsheet: index → (column, text) were typed.

    Args: only, whether the list has no other rows.
    """
    raw = (run.folder / "labels.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")  # without which Excel shows KÃ¤se
    header, *rows = csv.reader(io.StringIO(raw.decode("utf-8-sig")))
    rows = [[forms.get(cell, cell) for cell in row] for row in rows]
    for index, (column, text) in changes.items():
        rows[index][column] = text
    rows = [rows[index] for index in changes] if only else rows
    text = io.StringIO()
    csv.writer(text, delimiter=form.get("delimiter", ",")).writerows([header, *rows])
    raw = text.getvalue().encode(form.get("encoding", "utf-8-sig"))
    (run.folder / "edited.csv").write_bytes(raw)
    return read_corrections(run.folder / "edited.csv", run)


@pytest.mark.parametrize(
    ("forms", "form"),
    [
        *(({}, {}), (ENGLISH, {}), (GERMAN, {"delimiter": ";"})),
        (ENGLISH, {"delimiter": "\t", "encoding": "utf-16"}),
    ],
)
def test_one_edit_is_one_correction_whatever_a_spreadsheet_does_to_the_others(run, forms, form):
    assert rewritten(run, forms, {}, **form) == {}
    changes = {0: (2, "4"), 12: (3, "Käse"), 23: (3, forms.get("1-2", "1-2")), 44: (3, "KÄSE ")}
    assert rewritten(run, forms, changes, **form) == {0: 4, 12: 4, 23: 3}


def test_a_list_of_edited_rows_alone_has_their_corrections_and_no_unknown_class(run):
    changes = {0: (3, "Käse"), 12: (3, "1-2"), 44: (2, "0")}
    assert rewritten(run, {}, changes, only=True) == {0: 4, 12: 3, 44: 0}
    with pytest.raises(InputError, match=r"row 2: 'cow': the run has no such class"):
        rewritten(run, {}, {44: (3, "cow")}, only=True)


def test_a_name_that_may_be_two_classes_is_asked_for_and_a_verbatim_one_is_taken(run):
    with pytest.raises(InputError, match=r"'5.1' \(0\) or '5.10' \(1\)"):
        rewritten(run, ENGLISH, {40: (3, "5.1")})
    assert rewritten(run, {}, {40: (3, "5.1"), 12: (3, "5.1")}) == {12: 0, 40: 0}


def test_pandas_writes_back_what_is_read_as_unchanged(run):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(run.folder / "labels.csv")
    # Numbers alone: 5.10 becomes 5.1, 00000 becomes 0.0.
    numbers = table.iloc[PER_CLASS : 3 * PER_CLASS].astype({"given_name": float, "given": float})
    table.loc[3, "given"] = 4
    for written, expected in ((table, {3: 4}), (numbers, {})):
        written.to_csv(run.folder / "edited.csv", index=False)
        assert read_corrections(run.folder / "edited.csv", run) == expected


def page_rows(run, *rows: str) -> dict:
    header = "index,file,given,corrected,action,label\n"
    path = run.folder / "corrections.csv"
    path.write_text(header + "\n".join(rows) + "\n", encoding="utf-8-sig")
    return read_corrections(path, run)


def test_the_pages_corrections_are_read_by_number_where_excel_rewrote_names(run):
    assert page_rows(
        run,
        "44,training/Käse/44.png,Käse,5.1,other,1",
        "45,training/Käse/45.png,Käse,02-Jan,take,3",
        "11,training/5.10/11.png,5.1,5.1,keep,1",
        "46,training/Käse/46.png,Käse,NA,other,4",  # by hand: the name, not the page's number
    ) == {44: 1, 45: 3, 46: 5}
    with pytest.raises(InputError, match=r"row 2: '5.1' may be"):
        page_rows(
            run, "44,training/Käse/44.png,Käse,5.1,other,", "11,training/5.10/11.png,5.1,,drop,"
        )
    # The name wins over the page's number; what is no class and no spreadsheet's form is refused.
    assert page_rows(run, "46,training/Käse/46.png,Käse,NA,other,0") == {46: 5}
    with pytest.raises(InputError, match=r"'tpyo': the run has no such class"):
        page_rows(run, "45,training/Käse/45.png,Käse,tpyo,other,3")
    with pytest.raises(InputError, match="action keep, but corrected"):
        page_rows(run, "44,training/Käse/44.png,Käse,5.10,keep,1")


def test_an_edit_from_true_to_false_is_one_where_a_spreadsheet_translated_both():
    names = ClassNames(["true", "false"], [(0, "WAHR"), (0, "WAHR"), (0, "FALSCH"), (1, "FALSCH")])
    assert [names.label_of(cell, 0) for cell in ("WAHR", "FALSCH")] == [0, 1]

"""labels.html as a person uses it, in a real browser; and its size and form without one."""

import csv
import io
import time
import warnings

import browser as browsers
import numpy as np
import pytest
from browser import ENTER, ESCAPE, LEFT, RIGHT, Browser
from PIL import Image

from smr.data.augment import Views
from smr.data.memory_dataset import ImageData, MemoryLoader
from smr.label_issues import review_page as review
from smr.label_issues.scores import LabelIssues

HOSTILE = "</script><script>window.ran = 1</script>"
NAMES = ["cat", 'dog "big", <b>', "Bär 熊", "<img src=x onerror='window.ran = 1'>", "cow", "crow"]


def loader_of(given, names=NAMES, files=None, side=8) -> MemoryLoader:
    """A loader of noisy images, the hardest to make small."""
    images = np.random.default_rng(0).integers(0, 256, (len(given), side, side, 3), np.uint8)
    data = ImageData(images, np.asarray(given), images[:2], np.arange(2), names, None, files)
    return MemoryLoader(data, Views((0.5,) * 3, (0.5,) * 3), 8, seed=0)


def six_labels() -> MemoryLoader:
    files = [f"training/x/{i}.png" for i in range(4)]
    files += [f"training/{HOSTILE}", 'training/a "b",;.png']
    return loader_of([0, 0, 1, 2, 3, 0], files=files)


# Of the six images, in order of rank: the likeliest classes are dog, dog, cat, cat, cow, Bär.
RANKED = np.array([5, 4, 0, 1, 2, 3])
PROBABILITY = np.full((6, 6), 0.01)
PROBABILITY[np.arange(6), [1, 1, 0, 0, 4, 2]] = 0.7
PROBABILITY[np.arange(6), [4, 4, 4, 4, 0, 4]] = 0.2
PROBABILITY[2] = [0.002, 0.6, 0.398, 0, 0, 0]


def page(ranked, pred_probs, loader, run, duplicates=()) -> str:
    """The page of these images in this order, with the probabilities of each."""
    rank = np.argsort(ranked)  # LabelIssues has the images in order of their positions
    clean_probability = 10.0 * rank  # which decides the order
    index, labels = ranked[rank], loader.noisy_labels.numpy()[ranked[rank]]
    issues = LabelIssues(index, labels, pred_probs[rank], np.stack([clean_probability] * 2))
    return review.page(issues, loader, None, run, len(ranked), dict(duplicates))


def write_page(path, loader=None, run="checkpoint/run 1", duplicates=()):
    loader = loader or six_labels()
    path.write_text(page(RANKED, PROBABILITY, loader, run, duplicates), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not browsers.programs():
        text = "labels.html was NOT tested: no chromium and chromedriver here"
        warnings.warn(text, stacklevel=1)
        pytest.skip(text)
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def shown(browser, tmp_path):
    """The browser, with the page of six labels open and nothing decided."""
    browser.open(write_page(tmp_path / "labels.html"))
    browser.js("localStorage.clear()")
    browser.open(tmp_path / "labels.html")
    for old in browser.downloads.glob("*"):
        old.unlink()
    return browser


def saved(browser) -> list[list[str]]:
    """The rows of the file that Save downloads."""
    browser.click("#save")
    target = browser.downloads / "corrections.csv"
    for _ in range(100):
        if target.exists():
            raw = target.read_bytes()
            assert raw.startswith(b"\xef\xbb\xbf")  # without which Excel shows KÃ¤se
            rows = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"))))
            target.unlink()
            return rows
        time.sleep(0.05)
    raise AssertionError("nothing was saved")


def texts(browser, selector: str) -> list[str]:
    code = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    return browser.js(code, selector)


def actions(browser) -> list[str]:
    return browser.js("return [...document.querySelectorAll('article')].map(a => a.dataset.action)")


def visible_ranks(browser) -> list[int]:
    articles = "[...document.querySelectorAll('article')].filter(a => a.offsetParent)"
    return browser.js(f"return {articles}.map(a => a.item.rank)")


def focused_rank(browser) -> int:
    return browser.js("return document.activeElement.closest('article').item.rank")


def test_names_with_markup_and_quotes_show_as_they_are_and_nothing_is_run_or_fetched(shown):
    assert texts(shown, ".file") == [
        *('1  training/a "b",;.png', f"2  training/{HOSTILE}", "3  training/x/0.png"),
        *("4  training/x/1.png", "5  training/x/2.png", "6  training/x/3.png"),
    ]
    assert set(texts(shown, "dd.label")) == {NAMES[0], NAMES[3], NAMES[1], NAMES[2]}
    assert texts(shown, "#classes option") == NAMES
    assert texts(shown, "h1") == ["run 1"] and texts(shown, "#run") == ["checkpoint/run 1"]
    # A card shows the two likeliest classes beside the given one.
    assert texts(shown, "article:nth-child(1) dt") == ["label", "suggested", "or"]
    first, third, fourth = (texts(shown, f"article:nth-child({k}) dd") for k in (1, 3, 4))
    assert first == ["cat", "1 %", 'dog "big", <b>', "70 %", "cow", "20 %"]
    assert third == ["cat", "<1 %", 'dog "big", <b>', "60 %", "Bär 熊", "40 %"]
    assert fourth == ["cat", "70 %", "cow", "20 %"]  # the likeliest itself: the next class
    # The page fetches nothing and runs no script but its own.
    assert shown.js("return !document.querySelector('b')")
    loaded = shown.js("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    image = '<img src=x onerror="window.ran = 1">'
    shown.js("document.body.append(document.createElement('script'))")
    shown.js("document.body.lastElementChild.text = 'window.ran = 1'")
    shown.js("document.body.insertAdjacentHTML('beforeend', arguments[0])", image)
    time.sleep(0.2)
    assert shown.js("return window.ran === undefined")


def test_a_duplicate_is_first_and_marked_with_the_other_file(shown, tmp_path):
    shown.open(write_page(tmp_path / "labels.html", duplicates={2: HOSTILE}))
    assert texts(shown, ".file")[:2] == ["5  training/x/2.png", '1  training/a "b",;.png']
    marks = "[...document.querySelectorAll('.duplicate')].map(e => e.offsetParent && e.textContent)"
    assert shown.js(f"return {marks}") == [f"same image as {HOSTILE}", *[None] * 5]


def test_decisions_by_keys_are_saved_as_corrections(shown):
    shown.press("rsrds")  # the first key finds the first image; each decision moves on
    assert actions(shown) == ["take", "keep", "drop", "take", None, None]
    assert saved(shown) == [
        ["index", "file", "given", "corrected", "action", "label"],
        ["0", "training/x/0.png", "cat", "", "drop", ""],
        ["1", "training/x/1.png", "cat", "cow", "take", "4"],
        ["4", f"training/{HOSTILE}", NAMES[3], NAMES[3], "keep", "3"],
        ["5", 'training/a "b",;.png', "cat", NAMES[1], "take", "1"],
    ]


def test_arrows_move_buttons_decide_and_u_or_a_second_click_takes_it_back(shown):
    shown.press(RIGHT + RIGHT + RIGHT)
    assert focused_rank(shown) == 3
    shown.press(LEFT + "s" + LEFT)
    assert (focused_rank(shown), actions(shown)[1]) == (2, "take")
    shown.press("u")
    assert actions(shown) == [None] * 6
    shown.click("article:nth-child(2) [data-action=drop]")
    shown.click("article:nth-child(3) [data-action=keep]")
    assert actions(shown)[:4] == [None, "drop", "keep", None]
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.dataset.action)"
    assert shown.js(f"return {pressed}") == ["drop", "keep"]
    shown.click("article:nth-child(2) [data-action=drop]")
    assert actions(shown)[:4] == [None, None, "keep", None]
    assert texts(shown, "#count") == ["1 of 6 decided"]


def test_another_class_is_typed_with_completion_and_an_unknown_one_is_refused(shown):
    shown.press("aa")
    shown.press("c" + ENTER)  # cat, cow and crow
    assert actions(shown)[0] is None
    assert "more than one" in shown.js("return document.activeElement.validationMessage")
    shown.press("RO" + ENTER)
    assert actions(shown)[:2] == ["other", None]
    assert focused_rank(shown) == 2
    shown.press("acow" + ESCAPE + "a" + "ca" + ENTER + "a" + "<im" + ENTER)
    shown.press("a" + NAMES[0] + ENTER)  # the given class: the label is right
    assert actions(shown)[:5] == ["other", "other", "other", "keep", None]
    decided = [["cat", NAMES[3], "other"], ["cat", "cat", "keep"]]
    decided += [[NAMES[3], "cat", "other"], ["cat", "crow", "other"]]
    assert [row[2:5] for row in saved(shown)[1:]] == decided


def test_decisions_are_restored_and_kept_apart_from_those_of_other_labels(shown, tmp_path):
    shown.press("rsd")
    shown.open(write_page(tmp_path / "again.html", run="the same labels elsewhere"))
    assert actions(shown)[:3] == ["take", "drop", None]
    assert texts(shown, "#count") == ["2 of 6 decided"]
    # Those on images that a newer list no longer shows are saved too.
    text = page(np.array([2, 3]), PROBABILITY[:2], six_labels(), "newer")
    (tmp_path / "newer.html").write_text(text, encoding="utf-8")
    shown.open(tmp_path / "newer.html")
    assert texts(shown, "#count") == ["0 of 2 decided"]
    assert [row[0] for row in saved(shown)[1:]] == ["4", "5"]
    other = six_labels()
    other.noisy_labels[3] = 5
    shown.open(write_page(tmp_path / "other.html", other))
    assert actions(shown) == [None] * 6


def choose(browser, selector: str, value: str) -> None:
    code = "const select = document.querySelector(arguments[0]); select.value = arguments[1];"
    browser.js(code + "select.dispatchEvent(new Event('change'))", selector, value)


def test_filters_show_a_class_a_confusion_and_what_is_undecided(shown):
    assert texts(shown, "#confusion option")[1] == f"cat → {NAMES[1]} (2)"
    choose(shown, "#class", "2")
    assert visible_ranks(shown) == [6]
    choose(shown, "#class", "")
    choose(shown, "#confusion", "0,1")
    assert visible_ranks(shown) == [1, 3]
    assert texts(shown, "#count") == ["0 of 6 decided, 2 shown"]
    shown.press("rs")
    assert focused_rank(shown) == 3  # keys stay among what is shown
    choose(shown, "#state", "open")
    assert visible_ranks(shown) == [3]
    choose(shown, "#confusion", "")
    choose(shown, "#state", "done")
    assert visible_ranks(shown) == [1]


def test_a_phone_shows_the_page_with_nothing_beyond_the_edge(shown):
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    shown.emulate("Emulation.setDeviceMetricsOverride", **phone)
    try:
        assert shown.js("return document.documentElement.scrollWidth") <= 360
        shown.js("window.scrollTo(0, document.body.scrollHeight)")
        shown.click("article:last-child [data-action=drop]")  # nothing covers the last buttons
        place = "const b = document.querySelector('#save').getBoundingClientRect()"
        top, bottom = shown.js(f"{place}; return [b.top, b.bottom]")
        assert 0 < top < bottom < 740  # Save is at hand wherever one stands
    finally:
        shown.emulate("Emulation.clearDeviceMetricsOverride")


def test_a_hundred_thumbnails_of_any_images_are_less_than_1_mb():
    index = np.arange(100)
    loader = loader_of(index % 10, [str(label) for label in range(10)], side=224)
    probability = np.full((100, 10), 0.1)
    text = page(index, probability, loader, "run")
    assert len(text.encode()) < 1_000_000


def shown_of(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def test_thumbnails_show_the_whole_photo_upright_or_else_the_stored_pixels_or_gray(tmp_path):
    wide = Image.new("RGB", (400, 100), (255, 0, 0))
    turned = wide.getexif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    wide.save(tmp_path / "a.jpg", exif=turned)
    loader = loader_of([0, 1], files=["a.jpg", "missing.jpg"], side=32)
    photo, stored = (shown_of(review.thumbnail(i, loader, tmp_path)) for i in range(2))
    assert photo.shape == (160, 40, 3) and photo[80, 20, 0] > 240
    pixels = loader.thumbnails(np.array([1]))[0].astype(int)  # of any color side by side
    assert np.abs(stored - pixels).max() <= 6
    loader.train_images = None  # and no pixels in memory
    photo, gray = (shown_of(review.thumbnail(i, loader, tmp_path)) for i in range(2))
    assert photo[80, 20, 0] > 240 and np.ptp(gray) < 3


def test_a_comment_of_any_length_is_not_in_a_thumbnail(tmp_path):
    picture = Image.new("RGB", (300, 200), (0, 200, 0))
    picture.save(tmp_path / "a.gif", comment=b"x" * 70_000)
    jpeg = review.thumbnail(0, loader_of([0, 1], files=["a.gif"] * 2), tmp_path)
    assert len(jpeg) < 2000 and shown_of(jpeg).shape == (107, 160, 3)
    assert b"xxxx" not in jpeg

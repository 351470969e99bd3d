"""Figures of a run, drawn with Pillow: uint8 arrays [height, width, 3] for TensorBoard and files.

`epoch_figures` draws those of an epoch; `label_issues` and `noise_transitions` those of the end.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import confusion_matrix

from smr.evaluate import Test
from smr.gmm_split import Split
from smr.methods import TrainedEpoch

Color = tuple[int, int, int]
INK, PAPER, GRAY, LIGHT = (30, 30, 30), (255, 255, 255), (150, 150, 150), (225, 225, 225)
BLUE, RED = (66, 133, 214), (222, 76, 60)
DARK_BLUE, DARK_RED = (20, 62, 128), (134, 24, 18)
BINS = 50
# Up to this many classes a matrix has cells large enough for a number.
NUMBERED_CLASSES = 20
# The widest class name beside a matrix, in its letters' height; how small a caption's letters get.
NAME_WIDTH, SMALLEST_CAPTION = 12, 0.75
# Fonts with many letters, which Pillow finds in the system's font folders.
FONT_FILES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf", "arialuni.ttf"),
    *("Hiragino Sans GB.ttc", "PingFang.ttc", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc"),
    *("msyh.ttc", "meiryo.ttc", "malgun.ttf", "LiberationSans-Regular.ttf", "Arial.ttf"),
)


@cache
def fonts() -> list[ImageFont.FreeTypeFont]:
    """Pillow's own font, which has ASCII letters only, and those of FONT_FILES on this system."""
    available = [ImageFont.load_default(16)]
    for name in FONT_FILES:
        with suppress(OSError):
            available.append(ImageFont.truetype(name, 16))
    return available


@cache
def lacks(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font draws a letter as it draws one that does not exist."""
    return bytes(font.getmask(letter)) == bytes(font.getmask("\uffff"))


@cache
def font_for(text: str, size: float) -> ImageFont.FreeTypeFont:
    """The first font that has all letters of a text, else the one that lacks the fewest."""
    best = min(fonts(), key=lambda font: sum(lacks(font, letter) for letter in set(text)))
    return best.font_variant(size=size)


def readable(text: str) -> str:
    """The text in one line, without what is no character, such as a file name's broken bytes."""
    return " ".join(text.encode(errors="replace").decode().split("\n"))


def text_width(text: str, size: float) -> float:
    """In pixels."""
    text = readable(text)
    return font_for(text, size).getlength(text)


def write(
    pen: ImageDraw.ImageDraw, place: tuple, text: str, size: float, color=INK, anchor="la"
) -> None:
    """Write a line of text, in a font that has its letters."""
    text = readable(text)
    pen.text(place, text, color, font_for(text, size), anchor=anchor)


def cut(text: str, size: float, width: float) -> str:
    """The text, or its beginning and its end around an ellipsis if it is wider."""
    shown, letters = text, len(text)
    while text_width(shown, size) > width and letters:
        letters -= 1
        shown = text[: letters - letters // 2] + "…" + text[len(text) - letters // 2 :]
    return shown


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and its pen."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def sideways(text: str, size: int, color: Color) -> Image.Image:
    """Text that reads upwards, on white."""
    picture, pen = blank(int(text_width(text, size)) + 2, size + 4)
    write(pen, (1, 0), text, size, color)
    return picture.rotate(90, expand=True)


def epoch_figures(
    trained: TrainedEpoch, tests: dict[str, Test], is_clean: np.ndarray | None, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Tag → figure: each test set's confusion matrix, and each network's losses if it split them.

    Args: is_clean, bool [n], or None if the true labels are unknown; names, those of the classes.
    """
    figures = {}
    for test_set, test in tests.items():
        title = f"Confusion, {test_set} images"
        figures[f"{test_set}/confusion"] = matrix(
            test.confusion, names, title, "label", "predicted"
        )
    for k, split in enumerate(trained.splits, start=1):
        title = f"Epoch {trained.epoch}, network {k}: losses and GMM"
        clean = None if is_clean is None else is_clean[split.index]
        figures[f"split/net{k}/mixture"] = loss_histogram(split, clean, title)
    return figures


def loss_histogram(split: Split, is_clean: np.ndarray | None, title: str) -> np.ndarray:
    """Histogram of a split's scaled losses under the two densities of its GMM (method 4).

    Clean and noisy labels are stacked if is_clean [m] is known; densities are scaled to counts.
    """
    # Letters are large: TensorBoard shows a picture 350 pixels wide.
    width, height, left, right, top, bottom, letters = 1280, 800, 150, 1240, 90, 720, 42
    picture, pen = blank(width, height)
    edges, keys = np.linspace(0, 1, BINS + 1), [("all labels", BLUE)]
    groups = [split.losses]
    if is_clean is not None:
        keys = [("clean labels", BLUE), ("noisy labels", RED)]
        groups = [split.losses[is_clean], split.losses[~is_clean]]
    counts = [np.histogram(losses, edges)[0] for losses in groups]
    highest = max(1, int(sum(counts).max()))
    x, y = (edges * (right - left) + left), (bottom - top) / (1.05 * highest)
    for share in (0, 0.25, 0.5, 0.75, 1):
        level, tick = bottom - share * highest * y, left + share * (right - left)
        pen.line([(left, level), (right, level)], fill=LIGHT, width=2)
        write(pen, (left - 12, level), f"{share * highest:.0f}", letters, anchor="rm")
        write(pen, (tick, bottom + 14), f"{share:g}", letters, anchor="mt")
    base = np.zeros(BINS)
    for (_, color), count in zip(keys, counts, strict=True):
        for i in np.flatnonzero(count):
            low, high = bottom - base[i] * y, bottom - (base[i] + count[i]) * y
            pen.rectangle([x[i] + 1, high, x[i + 1] - 1, low], fill=color)
        base += count
    if split.gmm is not None:
        components = [("clean component", DARK_BLUE), ("noisy component", DARK_RED)]
        densities = gmm_densities(split.gmm, np.linspace(0, 1, 501))
        for (_, color), density in zip(components, densities, strict=True):
            level = np.minimum(density * len(split.losses) / BINS, 1.05 * highest)
            points = zip(np.linspace(left, right, 501), bottom - level * y, strict=True)
            pen.line(list(points), fill=color, width=6, joint="curve")
        keys += components
    write(pen, (left, 14), title, 50)
    for i, (name, color) in enumerate(keys):
        start, level = right - 430, top + 30 + 56 * i
        pen.rectangle([start, level - 16, start + 32, level + 16], fill=color)
        write(pen, (start + 48, level), name, letters, anchor="lm")
    # Drawn twice as large and scaled down: Pillow does not smooth lines.
    return np.asarray(picture.resize((width // 2, height // 2), Image.Resampling.LANCZOS))


def gmm_densities(gmm, points: np.ndarray) -> np.ndarray:
    """float [2, points]: weight times normal density of each component, the clean one first."""
    order = np.argsort(gmm.means_.ravel())
    mean, variance = gmm.means_.ravel()[order, None], gmm.covariances_.ravel()[order, None]
    weight = gmm.weights_[order, None]
    return weight * np.exp(-((points - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def matrix(
    counts: np.ndarray,
    class_names: Sequence[str],
    title: str,
    row_title: str,
    column_title: str,
    as_percent: bool = False,
) -> np.ndarray:
    """A matrix of counts [classes, classes]; a cell is as dark as the root of its row's share.

    Cells hold the count, or with as_percent its share of the row, unless there are many classes.
    """
    classes = len(class_names)
    numbered = classes <= NUMBERED_CLASSES
    cell, size = (46, 16) if numbered else (12, 11)
    names = [cut(name, size, NAME_WIDTH * size) for name in class_names]
    margin = int(max(text_width(name, size) for name in names)) + 12
    left, top = margin + size + 10, margin + 40 + size + 10
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    width = left + max(cell * classes + 12, int(text_width(title, 20)))
    picture, pen = blank(width, top + cell * classes + 6)
    write(pen, (left, 8), title, 20)
    write(pen, (left, 38), f"columns: {column_title}", size, GRAY)
    picture.paste(sideways(f"rows: {row_title}", size, GRAY), (4, top))
    for i, name in enumerate(names):
        middle = i * cell + cell // 2
        write(pen, (left - 6, top + middle), name, size, anchor="rm")
        label = sideways(name, size, INK)
        picture.paste(label, (left + middle - label.width // 2, top - 4 - label.height))
    for (row, column), share in np.ndenumerate(shares):
        darkness = share**0.5
        color = tuple(int(255 + darkness * (c - 255)) for c in DARK_BLUE)
        x, y = left + column * cell, top + row * cell
        pen.rectangle([x, y, x + cell - 2, y + cell - 2], fill=color)
        if numbered and counts[row, column]:
            text = f"{100 * share:.0f}" if as_percent else f"{counts[row, column]:.0f}"
            ink, letters = PAPER if darkness > 0.5 else INK, size - 2 if len(text) > 4 else size
            write(pen, (x + cell // 2 - 1, y + cell // 2 - 1), text, letters, ink, "mm")
    return np.asarray(picture)


def noise_transitions(
    labels: np.ndarray,
    predicted: np.ndarray,
    true_labels: np.ndarray | None,
    class_names: Sequence[str],
) -> np.ndarray:
    """The estimated noise transition matrix, above the true one if it is known; int64 [n] each."""
    parts = []
    for rows, noise, row in ((predicted, "Estimated", "predicted"), (true_labels, "True", "true")):
        if rows is not None:
            counts = confusion_matrix(rows, labels, labels=range(len(class_names)))
            title = f"{noise} label noise, % of each {row} class"
            parts.append(matrix(counts, class_names, title, row, "given", as_percent=True))
    picture, _ = blank(max(part.shape[1] for part in parts), len(parts) * (len(parts[0]) + 24) - 24)
    for i, part in enumerate(parts):
        picture.paste(Image.fromarray(part), (0, i * (len(parts[0]) + 24)))
    return np.asarray(picture)


def label_issues(
    images: np.ndarray,
    captions: Sequence[str],
    labels: np.ndarray,
    predicted: np.ndarray,
    class_names: Sequence[str],
    columns: int,
    side: int,
) -> np.ndarray:
    """Images uint8 [n, h, w, 3] in rows, each above its rank, caption and two labels.

    Args: columns, images in a row; side, of each in pixels. Letters are in proportion to it.
    """
    line, gap, letters = side // 6, 12, side // 8
    across, down = side + gap, side + 3 * line + gap + 4
    picture, pen = blank(columns * across + gap, -(-len(images) // columns) * down + gap)
    for i, image in enumerate(images):
        x, y = gap + i % columns * across, gap + i // columns * down
        enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(enlarged, (x, y))
        given, other = class_names[labels[i]], class_names[predicted[i]]
        lines = (f"{i + 1}  {captions[i]}", f"given {given}", f"predicted {other}")
        for j, (text, color) in enumerate(zip(lines, (GRAY, DARK_RED, DARK_BLUE), strict=True)):
            size = letters * max(SMALLEST_CAPTION, min(1, side / text_width(text, letters)))
            write(pen, (x, y + side + 2 + j * line), cut(text, size, side), size, color)
    return np.asarray(picture)

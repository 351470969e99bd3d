"""Figures of a run, drawn with Pillow: uint8 arrays [height, width, 3] for TensorBoard."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import confusion_matrix
from sklearn.mixture import GaussianMixture

from smr.gmm_split import Split

INK, PAPER, GRAY = (30, 30, 30), (255, 255, 255), (150, 150, 150)
BLUE, RED = (66, 133, 214), (222, 76, 60)
DARK_BLUE, DARK_RED = (20, 62, 128), (134, 24, 18)
BINS = 50
# Up to this many classes a matrix has cells large enough for a number.
NUMBERED_CLASSES = 20
# The widest class name beside a matrix, in its letters' height.
NAME_WIDTH = 12
# Pixels of a matrix's longest title.
TITLE_WIDTH = 460
# Fonts that Pillow finds in the system's font folders, those of all scripts first.
FONT_FILES = (
    *("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arialuni.ttf", "msyh.ttc", "malgun.ttf"),
    *("meiryo.ttc", "Hiragino Sans GB.ttc", "wqy-microhei.ttc", "DejaVuSans.ttf", "Arial.ttf"),
    *("NotoSans-Regular.ttf", "LiberationSans-Regular.ttf"),
)


@cache
def font_of(size: float) -> ImageFont.FreeTypeFont:
    """The first of FONT_FILES on this system, else Pillow's own, which has ASCII letters only."""
    for name in FONT_FILES:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def cut(text: str, size: float, width: float) -> str:
    """The text in one line, or its beginning and its end around an ellipsis if it is wider.

    What is no character, such as a file name's broken bytes, becomes a question mark.
    """
    shown = text = " ".join(text.encode(errors="replace").decode().split("\n"))
    font, letters = font_of(size), len(text)
    while font.getlength(shown) > width and letters:
        letters -= 1
        shown = text[: letters - letters // 2] + "…" + text[len(text) - letters // 2 :]
    return shown


def write(
    pen: ImageDraw.ImageDraw, place: tuple, text: str, size: float, color=INK, anchor="la"
) -> None:
    """Write a line of text."""
    pen.text(place, text, color, font_of(size), anchor=anchor)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and its pen."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def loss_histogram(split: Split, is_clean: np.ndarray | None, title: str) -> np.ndarray:
    """Histogram of a split's scaled losses under the two densities of its GMM (method 4).

    Clean and noisy labels are stacked if is_clean [m] is known; densities are scaled to counts.
    """
    width, top, bottom, bar = 640, 80, 360, 640 / BINS
    picture, pen = blank(width, bottom + 40)
    blue = split.losses if is_clean is None else split.losses[is_clean]
    counts, below = (np.histogram(losses, BINS, (0, 1))[0] for losses in (split.losses, blue))
    scale = (bottom - top) / counts.max()
    for color, heights in ((RED, counts * scale), (BLUE, below * scale)):
        for i, height in enumerate(heights):
            pen.rectangle([i * bar, bottom - height, (i + 1) * bar - 2, bottom], fill=color)
    legend = "labels" if is_clean is None else "blue: clean labels, red: noisy labels"
    if split.gmm is not None:
        legend += ", lines: the GMM"
        x = np.linspace(0, 1, 501)
        levels = bottom - scale * len(split.losses) / BINS * gmm_densities(split.gmm, x)
        for color, level in zip((DARK_BLUE, DARK_RED), levels.clip(top), strict=True):
            pen.line(list(zip(width * x, level, strict=True)), fill=color, width=3, joint="curve")
    # Letters are large: TensorBoard shows a picture 350 pixels wide.
    write(pen, (4, 4), title, 24)
    write(pen, (4, 40), f"{legend}; highest bar {counts.max()}", 20)
    write(pen, (4, bottom + 8), "0", 20)
    write(pen, (width - 4, bottom + 8), "scaled loss 1", 20, anchor="ra")
    return np.asarray(picture)


def gmm_densities(gmm: GaussianMixture, points: np.ndarray) -> np.ndarray:
    """float [2, points]: weight times normal density of each component, the clean one first."""
    points = points[:, None]
    densities = np.exp(gmm.score_samples(points)) * gmm.predict_proba(points).T
    return densities[np.argsort(gmm.means_.ravel())]


def matrix(
    counts: np.ndarray, class_names: Sequence[str], title: str, row_title: str, column_title: str
) -> np.ndarray:
    """A matrix of counts [classes, classes] by their share of the row: dark cells and per cent.

    Cells have a number unless there are many classes.
    """
    classes = len(class_names)
    cell, size = (46, 16) if classes <= NUMBERED_CLASSES else (12, 11)
    names = [cut(name, size, NAME_WIDTH * size) for name in class_names]
    left = int(max(map(font_of(size).getlength, names))) + 12
    top = left + size + 50
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    darkness = np.sqrt(shares)
    picture, pen = blank(left + max(cell * classes + 12, TITLE_WIDTH), top + cell * classes + 24)
    write(pen, (left, 8), title, 20)
    write(pen, (left, 38), f"rows: {row_title}, columns: {column_title}", size, GRAY)
    colors = (255 + darkness[:, :, None] * (np.array(DARK_BLUE) - 255)).astype(np.uint8)
    cells = Image.fromarray(colors).resize((cell * classes,) * 2, Image.Resampling.NEAREST)
    picture.paste(cells, (left, top))
    for i, name in enumerate(names):
        middle = i * cell + cell // 2
        write(pen, (left - 6, top + middle), name, size, anchor="rm")
        label, pen_of_label = blank(int(font_of(size).getlength(name)) + 2, size + 4)
        write(pen_of_label, (1, 0), name, size)
        label = label.rotate(90, expand=True)
        picture.paste(label, (left + middle - label.width // 2, top - 4 - label.height))
    for row, column in np.argwhere(counts) if classes <= NUMBERED_CLASSES else ():
        place = left + column * cell + cell // 2, top + row * cell + cell // 2
        ink = PAPER if darkness[row, column] > 0.5 else INK
        write(pen, place, f"{100 * shares[row, column]:.0f}", size, ink, "mm")
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
            parts.append(matrix(counts, class_names, title, row, "given"))
    return np.vstack(parts)


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
    line, gap, letters = side // 6, 12, side // 9
    across, down = side + gap, side + 3 * line + gap + 4
    picture, pen = blank(columns * across + gap, -(-len(images) // columns) * down + gap)
    for i, image in enumerate(images):
        x, y = gap + i % columns * across, gap + i // columns * down
        enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(enlarged, (x, y))
        given, other = class_names[labels[i]], class_names[predicted[i]]
        lines = (f"{i + 1}  {captions[i]}", f"given {given}", f"predicted {other}")
        for j, (text, color) in enumerate(zip(lines, (GRAY, DARK_RED, DARK_BLUE), strict=True)):
            place = x, y + side + 2 + j * line
            write(pen, place, cut(text, letters, side), letters, color)
    return np.asarray(picture)

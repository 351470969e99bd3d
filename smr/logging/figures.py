"""Figures of a run, drawn with Pillow: uint8 arrays [height, width, 3] for TensorBoard."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import confusion_matrix
from sklearn.mixture import GaussianMixture

from smr.gmm_split import Split

Color = tuple[int, int, int]
INK, PAPER, GRAY, LIGHT = (30, 30, 30), (255, 255, 255), (150, 150, 150), (225, 225, 225)
BLUE, RED = (66, 133, 214), (222, 76, 60)
DARK_BLUE, DARK_RED = (20, 62, 128), (134, 24, 18)
BINS = 50
# Up to this many classes a matrix has cells large enough for a number.
NUMBERED_CLASSES = 20
# The widest class name beside a matrix, in its letters' height.
NAME_WIDTH = 12
# Pixels of a matrix's longest title.
TITLE_WIDTH = 460
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
    shown = text = readable(text)
    font, letters = font_for(text + "…", size), len(text)
    while font.getlength(shown) > width and letters:
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
    counts: np.ndarray,
    class_names: Sequence[str],
    title: str,
    row_title: str,
    column_title: str,
) -> np.ndarray:
    """A matrix of counts [classes, classes] by their share of the row: dark cells and per cent.

    Cells have a number unless there are many classes.
    """
    classes = len(class_names)
    cell, size = (46, 16) if classes <= NUMBERED_CLASSES else (12, 11)
    names = [cut(name, size, NAME_WIDTH * size) for name in class_names]
    margin = int(max(text_width(name, size) for name in names)) + 12
    left, top = margin + size + 10, margin + 40 + size + 10
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    darkness = np.sqrt(shares)
    picture, pen = blank(left + max(cell * classes + 12, TITLE_WIDTH), top + cell * classes + 24)
    write(pen, (left, 8), title, 20)
    write(pen, (left, 38), f"columns: {column_title}", size, GRAY)
    picture.paste(sideways(f"rows: {row_title}", size, GRAY), (4, top))
    colors = (255 + darkness[:, :, None] * (np.array(DARK_BLUE) - 255)).astype(np.uint8)
    cells = Image.fromarray(colors).resize((cell * classes,) * 2, Image.Resampling.NEAREST)
    picture.paste(cells, (left, top))
    for i, name in enumerate(names):
        middle = i * cell + cell // 2
        write(pen, (left - 6, top + middle), name, size, anchor="rm")
        label = sideways(name, size, INK)
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

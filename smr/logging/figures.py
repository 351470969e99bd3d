"""Pictures of a run, drawn with Pillow: uint8 arrays [height, width, 3] for TensorBoard and files.

`epoch_pictures` are those of an epoch; `suspects` and `transitions` those of trained networks.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smr.gmm_split import Split
from smr.method import EpochResult

INK, PAPER, GRAY = (30, 30, 30), (255, 255, 255), (150, 150, 150)
BLUE, RED = (66, 133, 214), (222, 76, 60)
DARK_BLUE, DARK_RED = (20, 62, 128), (134, 24, 18)
BINS = 50
# Up to so many classes a matrix's cells are large enough for a number in each.
NUMBERED_CLASSES = 20
# Letters of a file's name.
CAPTION_LENGTH = 24


def font(size: float) -> ImageFont.FreeTypeFont:
    """The font that Pillow brings with it."""
    return ImageFont.load_default(size)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and its pen."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def epoch_pictures(
    result: EpochResult, is_clean: np.ndarray | None, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Tag → picture: each test set's confusion, and each network's losses where it split.

    Args: is_clean, bool [n] or None where nobody knows; names of the classes.
    """
    drawn = {
        f"{test_set}/confusion": matrix(
            confusion, names, f"Confusion, {test_set} images", "label", "predicted"
        )
        for test_set, confusion in result.confusions.items()
    }
    for k, split in enumerate(result.splits or (), start=1):
        title = f"Epoch {result.epoch}, network {k}: losses, mixture"
        right = None if is_clean is None else is_clean[split.index]
        drawn[f"split/net{k}/mixture"] = loss_histogram(split, right, title)
    return drawn


def loss_histogram(split: Split, is_clean: np.ndarray | None, title: str) -> np.ndarray:
    """Counts of a split's scaled losses under its mixture's two densities (method 4).

    Right and wrong labels are stacked in two colors where is_clean [m] is known. The densities
    are scaled to counts, so that they lie on bars that the mixture describes well.
    """
    # Letters are large: TensorBoard shows a picture 350 pixels wide.
    width, height, left, right, top, bottom, letters = 1280, 800, 150, 1240, 90, 720, 42
    picture, pen = blank(width, height)
    edges = np.linspace(0, 1, BINS + 1)
    groups = [("all labels", BLUE, np.ones(len(split.losses), dtype=bool))]
    if is_clean is not None:
        groups = [("right labels", BLUE, is_clean), ("wrong labels", RED, ~is_clean)]
    counts = [np.histogram(split.losses[chosen], edges)[0] for _, _, chosen in groups]
    highest = max(1, int(sum(counts).max()))
    x, y = (edges * (right - left) + left), (bottom - top) / (1.05 * highest)
    for share in (0, 0.25, 0.5, 0.75, 1):
        level = bottom - share * highest * y
        pen.line([(left, level), (right, level)], fill=(225, 225, 225), width=2)
        pen.text((left - 12, level), f"{share * highest:.0f}", INK, font(letters), anchor="rm")
        tick = left + share * (right - left)
        pen.text((tick, bottom + 14), f"{share:g}", INK, font(letters), anchor="mt")
    base = np.zeros(BINS)
    for (_, color, _), count in zip(groups, counts, strict=True):
        for i in np.flatnonzero(count):
            low, high = bottom - base[i] * y, bottom - (base[i] + count[i]) * y
            pen.rectangle([x[i] + 1, high, x[i + 1] - 1, low], fill=color)
        base += count
    keys = [(name, color) for name, color, _ in groups]
    if split.mixture is not None:
        curves = mixture_densities(split.mixture, np.linspace(0, 1, 501))
        for (name, color), density in zip(
            (("clean component", DARK_BLUE), ("wrong component", DARK_RED)), curves, strict=True
        ):
            level = np.minimum(density * len(split.losses) / BINS, 1.05 * highest)
            points = zip(np.linspace(left, right, 501), bottom - level * y, strict=True)
            pen.line(list(points), fill=color, width=6, joint="curve")
            keys.append((name, color))
    pen.text((left, 14), title, INK, font(50))
    for i, (name, color) in enumerate(keys):
        start, level = right - 430, top + 30 + 56 * i
        pen.rectangle([start, level - 16, start + 32, level + 16], fill=color)
        pen.text((start + 48, level), name, INK, font(letters), anchor="lm")
    # Drawn twice as large: Pillow smooths no line by itself.
    return np.asarray(picture.resize((width // 2, height // 2), Image.Resampling.LANCZOS))


def mixture_densities(mixture, points: np.ndarray) -> np.ndarray:
    """float [2, points]: weight times normal density of each component, the clean one first."""
    order = np.argsort(mixture.means_.ravel())
    mean = mixture.means_.ravel()[order, None]
    variance = mixture.covariances_.ravel()[order, None]
    weight = mixture.weights_[order, None]
    return weight * np.exp(-((points - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def matrix(
    counts: np.ndarray,
    names: Sequence[str],
    title: str,
    row_title: str,
    column_title: str,
    as_percent: bool = False,
) -> np.ndarray:
    """A matrix of counts [classes, classes], each row darker where more of it lies.

    Cells hold the count, or with as_percent its share of the row, unless there are many classes.
    Darkness goes with the share's root, since a confusion of a few per cent shall be seen.
    """
    classes = len(names)
    numbered = classes <= NUMBERED_CLASSES
    cell, size = (46, 16) if numbered else (12, 11)
    margin = int(max(font(size).getlength(name) for name in names)) + 12
    left, top = margin + size + 10, margin + 40 + size + 10
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    width = left + cell * classes + 12
    picture, pen = blank(
        max(width, left + int(font(20).getlength(title))), top + cell * classes + 6
    )
    pen.text((left, 8), title, INK, font(20))
    pen.text((left, 38), f"columns: {column_title}", GRAY, font(size))
    picture.paste(sideways(f"rows: {row_title}", size, GRAY), (4, top))
    for i, name in enumerate(names):
        middle = i * cell + cell // 2
        pen.text((left - 6, top + middle), name, INK, font(size), anchor="rm")
        label = sideways(name, size, INK)
        picture.paste(label, (left + middle - label.width // 2, top - 4 - label.height))
    for (row, column), share in np.ndenumerate(shares):
        darkness = share**0.5
        color = tuple(int(255 + darkness * (c - 255)) for c in DARK_BLUE)
        x, y = left + column * cell, top + row * cell
        pen.rectangle([x, y, x + cell - 2, y + cell - 2], fill=color)
        if numbered and counts[row, column]:
            text = f"{100 * share:.0f}" if as_percent else f"{counts[row, column]:.0f}"
            pen.text(
                (x + cell // 2 - 1, y + cell // 2 - 1),
                text,
                PAPER if darkness > 0.5 else INK,
                font(size - 2 if len(text) > 4 else size),
                anchor="mm",
            )
    return np.asarray(picture)


def sideways(text: str, size: int, color: tuple[int, int, int]) -> Image.Image:
    """Text that reads upwards, on white."""
    picture, pen = blank(int(font(size).getlength(text)) + 2, size + 4)
    pen.text((1, 0), text, color, font(size))
    return picture.rotate(90, expand=True)


def transitions(
    given: np.ndarray, predicted: np.ndarray, clean: np.ndarray | None, names: Sequence[str]
) -> np.ndarray:
    """The noise found, of each predicted class the labels given, above the true one.

    Args: int64 labels [n]; clean None where nobody knows, which leaves the noise found alone.
    """
    classes = len(names)

    def shares(rows: np.ndarray, title: str, row_title: str) -> np.ndarray:
        counts = np.bincount(rows * classes + given, minlength=classes**2)
        return matrix(counts.reshape(classes, classes), names, title, row_title, "given", True)

    found = shares(predicted, "Noise found, % of each predicted class", "predicted")
    if clean is None:
        return found
    injected = shares(clean, "True noise, % of each true class", "true")
    heights, widths = zip(found.shape[:2], injected.shape[:2], strict=True)
    picture, _ = blank(max(widths), sum(heights) + 24)
    picture.paste(Image.fromarray(found), (0, 0))
    picture.paste(Image.fromarray(injected), (0, heights[0] + 24))
    return np.asarray(picture)


def suspects(
    images: np.ndarray,
    captions: Sequence[str],
    given: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    columns: int,
    side: int,
) -> np.ndarray:
    """Images uint8 [n, h, w, 3] in rows, each over its rank, caption and two labels.

    Args: columns, images in a row; side, pixels of each, to which the letters are in proportion.
    """
    line, gap, letters = side // 6, 12, side // 8
    across, down = side + gap, side + 3 * line + gap + 4
    picture, pen = blank(columns * across + gap, -(-len(images) // columns) * down + gap)
    for i, image in enumerate(images):
        x, y = gap + i % columns * across, gap + i // columns * down
        enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(enlarged, (x, y))
        lines = (
            (f"{i + 1}  {shortened(captions[i])}", GRAY),
            (f"given {names[given[i]]}", DARK_RED),
            (f"seen {names[predicted[i]]}", DARK_BLUE),
        )
        for j, (text, color) in enumerate(lines):
            size = letters * min(1.0, side / font(letters).getlength(text))
            pen.text((x, y + side + 2 + j * line), text, color, font(size))
    return np.asarray(picture)


def shortened(name: str) -> str:
    """A name that is readable below a picture: the middle of a long one gives way."""
    return name if len(name) <= CAPTION_LENGTH else f"{name[:9]}…{name[10 - CAPTION_LENGTH :]}"

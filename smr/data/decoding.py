"""Decoding image files of any kind, each as RGB and upright."""

import errno
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from PIL import Image, ImageOps, PngImagePlugin

from smr.data.image_folder import Listing
from smr.errors import InputError
from smr.logging.console import Terminal

T = TypeVar("T")
# Plain picture formats, tried in this order. Never EPS, PS, WMF, FPX or MIC: such files are
# programs, or are handed to one.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "HEIF", "JPEG2000", "PPM"),
    *("ICO", "ICNS", "DIB", "DDS", "QOI", "PSD", "SGI", "SUN", "PCX", "XBM", "TGA"),
)
# Gray values are stretched if they would become fewer levels of 256.
FEW_LEVELS = 16

# Text in a PNG, such as the XMP of an editor, is no reason to refuse the picture.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@cache
def formats() -> list[str]:
    """Those of FORMATS that can be read here; HEIF if pillow-heif is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    # Of odd metadata, and of large photos, which have Pillow's error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return [name for name in FORMATS if name in Image.OPEN]


def open_image(path: str | Path) -> Image.Image:
    """The image, of which the header is read. Raises whatever Pillow raises."""
    return Image.open(path, formats=formats())


def upright(path: str | Path, least: int) -> Image.Image:
    """The photo in RGB as a viewer shows it; a JPEG at a fraction of its size, yet `least` a side.

    A file of several pictures gives the first. Raises whatever Pillow raises.
    """
    with open_image(path) as image:
        image.draft(None, (least, least))
        image.load()
        with suppress(Exception):  # Pillow raises many types on a damaged EXIF block
            ImageOps.exif_transpose(image, in_place=True)
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: transparent pixels become white, deep gray is scaled to 8 bits."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(gray_levels(np.asarray(image)))
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def gray_levels(values: np.ndarray) -> np.ndarray:
    """Gray values of more than 8 bits, or float ones, as uint8.

    White is 1 for float values up to 1, else the largest value of the fewest bits, 8, 10, 12, …,
    that hold the data. Negative values, or FEW_LEVELS, are stretched to the whole range.
    """
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    black, least, most = 0.0, values.min(), values.max()
    pairs_of_bits = -(-int(max(most, 255)).bit_length() // 2)
    white = 1.0 if is_float and most <= 1 else 4.0**pairs_of_bits - 1
    if least < 0 or (most - least) * 255 < FEW_LEVELS * white:
        black, white = least, most if most > least else least + 255
    return ((values - black) * (255 / (white - black))).round().clip(0, 255).astype(np.uint8)


def reason_of(error: Exception, path: str | Path) -> str:
    """Why a file is no image, in a few words, by the error that was raised when it was decoded.

    Raises InputError if memory, threads or file handles of the machine ran out.
    """
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    is_exhausted = isinstance(error, MemoryError) or re.search(
        "can't allocate memory|can't start new thread", reason
    )
    if is_exhausted or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        raise InputError(
            f"photos cannot be decoded: {reason}: lower --num_workers, --batch_size or --image_size"
        ) from error
    if isinstance(error, PIL.UnidentifiedImageError):
        with open(path, "rb") as file:
            start = file.read(12)
        is_heic = start[4:].startswith((b"ftyphe", b"ftypmi"))
        hint = "a HEIC photo; pip install pillow-heif" if is_heic else "no image"
        return hint if start else "an empty file"
    return reason.splitlines()[0]


def read_files(
    listing: Listing, read: Callable[[Path], T], threads: int
) -> tuple[list[T], Listing]:
    """What `read` returns for each path, in threads: Pillow's decoders leave the GIL.

    Returns also the Listing of these files; those for which it raises are among its broken ones.
    """

    def read_one(path: Path) -> tuple[T | None, str]:
        try:
            return read(path), ""
        except Exception as error:  # Pillow's decoders raise many types
            return None, reason_of(error, path)

    values, broken, terminal, count = [], {}, Terminal(), len(listing)
    good = np.ones(count, dtype=bool)
    with ThreadPool(max(1, threads)) as pool:
        for i, (value, reason) in enumerate(pool.imap(read_one, listing.paths, chunksize=100)):
            if reason:
                good[i], broken[listing.files[i]] = False, reason
            else:
                values.append(value)
            if terminal.due():
                terminal.progress(f"reading: {i + 1} of {count} images")
    return values, replace(listing, broken=listing.broken | broken).only(good)

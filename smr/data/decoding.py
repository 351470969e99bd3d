"""Image files of any format and size, decoded into one uint8 array."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

from smr.data.image_folder import Listing
from smr.logging.console import Terminal

# Files that a thread decodes at a time.
PORTION = 100


def read_images(
    root: Path,
    listing: Listing,
    size: int,
    threads: int,
    console: Terminal,
    read: Callable[[Path], np.ndarray] | None = None,
) -> tuple[np.ndarray, Listing]:
    """The images uint8 [m, size, size, 3] of those files that are images, and their Listing.

    Decoded in parallel, each into its place; Pillow's decoders leave the GIL. Args: read gives a
    file's image; `decode` by default.
    """
    read = read or partial(decode, size=size)
    images = np.empty((len(listing.files), size, size, 3), dtype=np.uint8)

    def look(position: int, path: Path) -> None:
        images[position] = read(path)

    started = time.monotonic()
    listing, decoded = looked_through(root, listing, look, threads, console, "decoding")
    seconds = time.monotonic() - started
    console.line(f"decoded {len(decoded)} images in {seconds:.1f} s, {threads} threads")
    return images if decoded.all() else images[decoded], listing


def checked_images(root: Path, listing: Listing, whole: bool, threads: int) -> Listing:
    """The Listing of those files that are images: by their headers, or decoded if `whole`."""

    def look(_position: int, path: Path) -> None:
        with Image.open(path) as image:
            if whole:
                image.load()

    return looked_through(root, listing, look, threads, Terminal(), "looking at")[0]


def looked_through(
    root: Path,
    listing: Listing,
    look: Callable[[int, Path], None],
    threads: int,
    console: Terminal,
    doing: str,
) -> tuple[Listing, np.ndarray]:
    """Look at each file, in threads; the Listing of the files for which `look` raised nothing.

    Args: look takes a file's position and path; doing, a word for the progress line. Also returns
    bool [n], which files those are; the others join the Listing's broken ones.
    """
    files, broken = listing.files, {}
    good = np.ones(len(files), dtype=bool)

    def look_at_portion(positions: range) -> int:
        for position in positions:
            try:
                look(position, root / files[position])
            except Exception as error:  # Pillow's decoders raise whatever they stumble over
                broken[files[position]] = reason_of(error)
                good[position] = False
        return len(positions)

    done = 0
    executor = ThreadPoolExecutor(max(1, threads))
    try:
        starts = range(0, len(files), PORTION)
        portions = [range(start, min(start + PORTION, len(files))) for start in starts]
        for portion in as_completed([executor.submit(look_at_portion, p) for p in portions]):
            done += portion.result()
            if console.due():
                console.progress(f"{doing}: {done} of {len(files)} images")
    finally:
        executor.shutdown(cancel_futures=True)
    listing = replace(listing, broken=listing.broken | dict(sorted(broken.items())))
    return listing.only(good), good


def decode(path: Path, size: int) -> np.ndarray:
    """The image upright, its shorter side scaled to `size`, the center: uint8 [size, size, 3].

    A file of several pictures gives the first. Raises whatever Pillow raises.
    """
    image = upright(path, 2 * size)
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))


def upright(path: Path, least: int) -> Image.Image:
    """The photo in RGB as a viewer shows it; a JPEG at a fraction of its size, yet `least` a side.

    Raises whatever Pillow raises.
    """
    with Image.open(path) as image:
        image.draft(None, (least, least))
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: what is transparent becomes white, 16-bit gray keeps its upper 8 bits."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def reason_of(error: Exception) -> str:
    """Why a file is no image, in a few words."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "no image"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]

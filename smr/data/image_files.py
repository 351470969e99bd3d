"""Image files of any format and size, decoded into one uint8 array."""

import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

from smr.console import Console
from smr.data.listings import Listing

# Files that a thread decodes at a time.
PORTION = 100


def read_images(
    root: Path, listing: Listing, size: int, threads: int, console: Console
) -> tuple[np.ndarray, Listing]:
    """The images uint8 [m, size, size, 3] of those files that are images, and their Listing.

    Decoded in parallel, each into its place; Pillow's decoders leave the GIL.
    """
    files, broken = listing.files, {}
    images = np.empty((len(files), size, size, 3), dtype=np.uint8)
    decoded = np.ones(len(files), dtype=bool)

    def decode_portion(positions: range) -> int:
        for position in positions:
            try:
                images[position] = decode(root / files[position], size)
            except Exception as error:  # Pillow's decoders raise whatever they stumble over
                broken[files[position]] = reason_of(error)
                decoded[position] = False
        return len(positions)

    started, done = time.monotonic(), 0
    executor = ThreadPoolExecutor(max(1, threads))
    try:
        starts = range(0, len(files), PORTION)
        portions = [range(start, min(start + PORTION, len(files))) for start in starts]
        for portion in as_completed([executor.submit(decode_portion, p) for p in portions]):
            done += portion.result()
            if console.due():
                console.progress(f"decoding: {done} of {len(files)} images")
    finally:
        executor.shutdown(cancel_futures=True)
    seconds = time.monotonic() - started
    console.line(f"decoded {len(files)} images in {seconds:.1f} s, {threads} threads")
    images = images if decoded.all() else images[decoded]
    listing = replace(listing, broken=listing.broken | dict(sorted(broken.items())))
    return images, listing.only(decoded)


def decode(path: Path, size: int) -> np.ndarray:
    """The image upright, its shorter side scaled to `size`, the centre: uint8 [size, size, 3].

    A file of several pictures gives the first. Raises whatever Pillow raises.
    """
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
        upright = as_rgb(ImageOps.exif_transpose(image))
    side = min(upright.size)
    left, top = ((length - side) / 2 for length in upright.size)
    box = (left, top, left + side, top + side)
    return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR, box))


def as_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: what is transparent becomes white, 16-bit grey keeps its upper 8 bits."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def reason_of(error: Exception) -> str:
    """Why a file is no image, in a few words."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "no image"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]

"""Image files of any format and size as one uint8 array, decoded once and kept beside them."""

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

from smr.console import Console
from smr.errors import InputError
from smr.files import replacing

# Files that a thread decodes at a time.
PORTION = 100


@dataclass(frozen=True)
class Decoded:
    """The files that are images: uint8 [m, size, size, 3], the position of each in the list of
    files, int64 [m] ascending; and of each other file, by its position, why it is none."""

    images: np.ndarray
    kept: np.ndarray
    broken: dict[int, str]


def entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, without hidden files, in natural order. Raises InputError."""
    try:
        with os.scandir(folder) as found:
            shown = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    for entry in shown:
        if not entry.name.isprintable():
            raise InputError(f"{folder}: the name {entry.name!a} is not readable; rename it")
    return sorted(shown, key=lambda entry: natural_order(entry.name))


def natural_order(name: str) -> tuple:
    """A key that sorts 2.jpg before 10.jpg."""
    words = re.split(r"([0-9]+)", name)
    return tuple(int(word) if i % 2 else word for i, word in enumerate(words)), name


def first_ten(names: Sequence[str]) -> str:
    """The first ten names, and dots where there are more."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def read_images(
    root: Path, files: Sequence[str], size: int, threads: int, cache: Path, console: Console
) -> Decoded:
    """Decode the files, or take from `cache` what was decoded of these very files before.

    Args: files relative to root; size, the side in pixels of the square images; cache, an .npz
    that is written where it can be.
    """
    fingerprint = fingerprint_of(root, files, size)
    decoded = read_cache(cache, fingerprint, len(files), size)
    if decoded is not None:
        console.line(f"{len(decoded.images)} decoded images from {cache}")
        return decoded
    decoded = decode_all(root, files, size, threads, console)
    try:
        write_cache(cache, fingerprint, decoded)
    except OSError as error:
        console.line(
            f"note: {cache} cannot be written ({error.strerror}): the next start decodes again"
        )
    return decoded


def decode_all(
    root: Path, files: Sequence[str], size: int, threads: int, console: Console
) -> Decoded:
    """Decode all files in parallel, each into its place; Pillow's decoders leave the GIL."""
    images = np.empty((len(files), size, size, 3), dtype=np.uint8)
    broken = {}

    def decode_portion(positions: range) -> int:
        for position in positions:
            try:
                images[position] = decode(root / files[position], size)
            except Exception as error:  # Pillow's decoders raise whatever they stumble over
                broken[position] = reason_of(error)
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
    kept = np.setdiff1d(np.arange(len(files)), list(broken))
    return Decoded(images[kept] if broken else images, kept, dict(sorted(broken.items())))


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


def fingerprint_of(root: Path, files: Sequence[str], size: int) -> str:
    """sha256 that changes with any file's name, length or time, with the size and with Pillow."""
    content = [PIL.__version__, size]
    for name in files:
        status = os.stat(root / name)
        content.append((name, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_cache(cache: Path, fingerprint: str, decoded: Decoded) -> None:
    """Write the cache whole or not at all. Raises OSError."""
    with replacing(cache) as file:
        np.savez(
            file,
            fingerprint=fingerprint,
            images=decoded.images,
            kept=decoded.kept,
            broken=json.dumps(list(decoded.broken.items())),
        )


def read_cache(cache: Path, fingerprint: str, count: int, size: int) -> Decoded | None:
    """What the cache holds, or None where it is not there, damaged, or of other files.

    Never by pickle; the archive's own checksum tells damage.
    """
    try:
        with np.load(cache, allow_pickle=False) as content:
            if str(content["fingerprint"]) != fingerprint:
                return None
            kept, images = content["kept"], content["images"]
            broken = {int(k): str(why) for k, why in json.loads(str(content["broken"]))}
    except Exception:  # a damaged archive makes its readers raise whatever they stumble over
        return None
    fits = (
        images.dtype == np.uint8
        and images.shape == (len(kept), size, size, 3)
        and np.array_equal(np.setdiff1d(np.arange(count), list(broken)), kept)
    )
    return Decoded(images, kept, broken) if fits else None

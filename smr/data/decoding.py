"""Decoding image files of any kind, each as RGB and upright."""

import ctypes
import errno
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, PngImagePlugin

from smr.data.image_folder import Listing, first_ten
from smr.errors import InputError
from smr.logging.console import Terminal

# Plain picture formats, tried in this order. Never EPS, PS, WMF, FPX or MIC: such files are
# programs, or are handed to one.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "HEIF", "JPEG2000", "PPM"),
    *("ICO", "ICNS", "DIB", "DDS", "QOI", "PSD", "SGI", "SUN", "PCX", "XBM", "TGA"),
)
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION, PHOTOMETRIC, MAX_SAMPLE_VALUE = 0x0112, 262, 281  # EXIF's and TIFF's tags
# Bits of a gray value in files that store more; beyond these, as many as the largest value has.
DEPTHS = (8, 10, 12, 14, 16)
# An image is nearly of one color if no channel varies by so many levels.
ONE_COLOR = 16
# Bytes 4 to 11 of a HEIC file.
HEIC = (b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf")
# Files that a thread decodes at a time.
PORTION = 100

# Text in a PNG, such as the XMP of an editor, is no reason to refuse the picture.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
_decoding, _printed = threading.local(), set()


def usable_cores() -> int:
    """The CPU cores that this process may use, by its affinity and its container's quota."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    for path in ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        try:
            quota, *period = Path(path).read_text().split()
            period = period or [Path(path).with_name("cpu.cfs_period_us").read_text()]
            if quota not in ("max", "-1"):
                count = min(count, max(1, -(-int(quota) // int(period[0]))))
        except (OSError, ValueError):
            continue
    return count


@cache
def formats() -> list[str]:
    """Those of FORMATS that can be read here; HEIF if pillow-heif is installed."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    # libtiff prints errors without the file's name; Pillow raises them.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)
    # A warning names its file, see `name_warning`; by default only the first one is shown.
    warnings.filterwarnings("always", module=r"PIL\.")
    # Of large photos there is Pillow's error; its warning speaks of attacks.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.showwarning = partial(name_warning, warnings.showwarning)
    return [name for name in FORMATS if name in Image.OPEN]


def name_warning(show: Callable, message, category, *place, **options) -> None:
    """Print a warning of Pillow with the file that it is about, once; others by `show`."""
    path = getattr(_decoding, "path", None)
    if path is None:
        return show(message, category, *place, **options)
    line = f"note: {path}: {' '.join(str(message).split())}"
    if line not in _printed:
        _printed.add(line)
        Terminal().line(line)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """The image, of which the header is read. Raises whatever Pillow raises."""
    _decoding.path = path
    try:
        with Image.open(path, formats=formats()) as image:
            yield image
    finally:
        _decoding.path = None


def upright(path: str | Path, least: int) -> Image.Image:
    """The photo in RGB as a viewer shows it; a JPEG at a fraction of its size, yet `least` a side.

    Raises whatever Pillow raises.
    """
    for fractions in (True, False):
        with open_image(path) as image:
            reduced = fractions and image.draft(None, (least, least)) is not None
            try:
                image.load()
            except OSError:
                if not reduced:
                    raise
                continue  # a lossless JPEG has no fractions
            return turned(as_rgb(image), image)


def turned(picture: Image.Image, image: Image.Image) -> Image.Image:
    """The picture turned as the EXIF orientation of its file says; no other tag is read."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises many types on a damaged EXIF block
        return picture
    return picture.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else picture


def as_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: transparent pixels become white, deep gray is scaled to 8 bits."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(gray_levels(np.asarray(image), getattr(image, "tag_v2", {})))
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def gray_levels(values: np.ndarray, tags) -> np.ndarray:
    """Gray values of more than 8 bits, or float ones, as uint8.

    White is TIFF's MaxSampleValue if the file has it, else 1 for float values up to 1, else the
    largest value of the fewest DEPTHS bits that hold the data. Data with negative values, or that
    would become one color, is stretched from its least to its largest value.
    """
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    black, (least, most) = 0.0, (values.min(), values.max())
    bits = next((bits for bits in DEPTHS if most < 2**bits), int(max(most, 1)).bit_length())
    white = 1.0 if is_float and most <= 1 else 2.0**bits - 1
    declared = tags.get(MAX_SAMPLE_VALUE)
    declared = declared[0] if isinstance(declared, tuple) else declared
    if declared and most <= declared:
        white = float(declared)
    if least < 0 or (most - least) * 255 < ONE_COLOR * white:
        black, white = least, most if most > least else least + 255
    levels = ((values - black) * (255 / (white - black))).round().clip(0, 255).astype(np.uint8)
    return 255 - levels if tags.get(PHOTOMETRIC) == 0 else levels


def is_one_color(pixels: np.ndarray) -> bool:
    """Whether an image uint8 [h, w, 3] is nearly of one color, by some of its pixels."""
    step = 1 + max(pixels.shape) // 128
    some = pixels[::step, ::step].reshape(-1, 3)
    return int((some.max(0) - some.min(0)).max()) < ONE_COLOR


def decode(path: Path, size: int) -> np.ndarray:
    """The image upright, its shorter side scaled to `size`, the center: uint8 [size, size, 3].

    A file of several pictures gives the first. Raises whatever Pillow raises.
    """
    image = upright(path, 2 * size)
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))


def reason_of(error: Exception, path: str | Path | None = None) -> str:
    """Why a file is no image, in a few words."""
    if isinstance(error, Image.DecompressionBombError):
        megapixels = int(re.search("[0-9]+", str(error))[0]) / 1e6
        most = 2e-6 * Image.MAX_IMAGE_PIXELS
        return f"{megapixels:.0f} megapixels, more than {most:.0f}; scale it down"
    if isinstance(error, PIL.UnidentifiedImageError):
        start = b"\0"
        if path is not None:
            with open(path, "rb") as file:
                start = file.read(12)
        is_heic = start[4:11] in HEIC
        hint = "a HEIC photo; pip install pillow-heif" if is_heic else "no image"
        return hint if start else "an empty file"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def raise_if_exhausted(error: BaseException) -> None:
    """Raise InputError, with the flag to change, if memory, threads or file handles ran out."""
    about = ""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        about = "out of memory: lower --num_workers, --batch_size or --image_size"
    elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        about = f"{error.strerror}: lower --num_workers"
    elif isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        about = "no more threads can be started: lower --num_workers"
    if about:
        raise InputError(f"photos cannot be decoded: {about}") from error


def check_images(
    root: Path, listing: Listing, threads: int, decode: Callable | None = None
) -> Listing:
    """The Listing of those files that are images by their headers.

    Args: decode, as training decodes a path; then also of those alone that can be decoded.
    """

    def look(_position: int, path: Path) -> bool:
        if decode:
            return is_one_color(np.asarray(decode(path)))
        with open_image(path):
            return False

    return for_each_file(root, listing, look, threads, "looking at")[0]


def read_images(
    root: Path, listing: Listing, size: int, threads: int
) -> tuple[np.ndarray, Listing]:
    """The images uint8 [m, size, size, 3] of those files that are images, and their Listing."""
    images = np.empty((len(listing.files), size, size, 3), dtype=np.uint8)

    def read(position: int, path: Path) -> bool:
        images[position] = decode(path, size)
        return is_one_color(images[position])

    started = time.monotonic()
    listing, decoded = for_each_file(root, listing, read, threads, "decoding")
    seconds = time.monotonic() - started
    Terminal().line(f"decoded {decoded.sum()} images in {seconds:.1f} s, {threads} threads")
    return images if decoded.all() else images[decoded], listing


def for_each_file(
    root: Path, listing: Listing, look: Callable[[int, Path], bool], threads: int, doing: str
) -> tuple[Listing, np.ndarray]:
    """Call `look` with each file's position and path, in threads; Pillow's decoders leave the GIL.

    Returns the Listing of the files for which it raised nothing, the others among its broken ones,
    and bool [n], which files those are. A file for which it returns True is nearly of one color.
    """
    files, broken, one_color = listing.files, {}, []
    good = np.ones(len(files), dtype=bool)

    def look_at_portion(start: int) -> int:
        portion = files[start : start + PORTION]
        for position, file in enumerate(portion, start):
            try:
                if look(position, root / file):
                    one_color.append(file)
            except Exception as error:  # Pillow's decoders raise many types
                raise_if_exhausted(error)
                broken[file] = reason_of(error, root / file)
                good[position] = False
        return len(portion)

    done, terminal, executor = 0, Terminal(), ThreadPoolExecutor(max(1, threads))
    try:
        starts = range(0, len(files), PORTION)
        for portion in as_completed([executor.submit(look_at_portion, start) for start in starts]):
            done += portion.result()
            if terminal.due():
                terminal.progress(f"{doing}: {done} of {len(files)} images")
    finally:
        executor.shutdown(cancel_futures=True)
    notes = list(listing.notes)
    if one_color:
        notes.append(
            f"{len(one_color)} photos are nearly of one color: {first_ten(sorted(one_color))}"
        )
    listing = replace(listing, broken=listing.broken | dict(sorted(broken.items())), notes=notes)
    return listing.only(good), good

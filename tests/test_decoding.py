"""Decoding image files of any kind."""

import io
import struct
import subprocess
import sys
import threading
import warnings
from functools import partial

import numpy as np
import pytest
from helpers import REPOSITORY
from photos import write_png
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

from smr.data import decoding as image_files
from smr.data.image_file_dataset import Frame, scaled
from smr.data.image_folder import Listing
from smr.logging.console import Terminal

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def listing_of(names, broken=None) -> Listing:
    """These files, each labeled with its position."""
    return Listing(list(names), np.arange(len(names)), broken or {})


def read(root, names, size=64, threads=2, broken=None):
    """(images, Listing) of the files that are images."""
    return image_files.read_images(root, listing_of(names, broken), size, threads)


def save(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_an_image_of_the_right_size_is_not_touched(tmp_path):
    write_png(tmp_path / "a.png", PIXELS)
    assert np.array_equal(image_files.decode(tmp_path / "a.png", 64), PIXELS)


def test_grayscale_becomes_three_equal_channels(tmp_path):
    write_png(tmp_path / "a.png", PIXELS[..., 0])
    decoded = image_files.decode(tmp_path / "a.png", 64)
    assert np.array_equal(decoded, np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["I;16 png", "I;16 tiff", "I tiff", "float tiff"])
def test_deep_gray_is_scaled_by_the_depth_of_its_data(tmp_path, bits, kind):
    mode, suffix = kind.split()
    values = np.round(PIXELS[..., 0] / 255 * (2**bits - 1))
    types = {"I;16": np.uint16, "I": np.int32, "float": np.float32}
    path = save(tmp_path, Image.fromarray(values.astype(types[mode])), f"a.{suffix}")
    decoded = image_files.decode(path, 64)[..., 1].astype(int)
    assert np.abs(decoded - PIXELS[..., 0]).max() <= (bits not in (8, 16))


def test_float_gray_up_to_one_and_below_zero_uses_the_whole_range(tmp_path):
    ramp = PIXELS[..., 0] / 255
    for values in (ramp, 3000 * ramp - 1000, np.where(ramp > 0.99, np.nan, 0.97 * ramp)):
        path = save(tmp_path, Image.fromarray(values.astype(np.float32)), "a.tif")
        decoded = image_files.decode(path, 64)[..., 0].astype(int)
        assert decoded.max() - decoded.min() > 240
        order = np.argsort(np.nan_to_num(values).ravel())
        assert (np.diff(decoded.ravel()[order]) >= 0).all()


def test_what_a_tiff_says_of_its_gray_values_is_used(tmp_path):
    values = (PIXELS[..., 0] / 255 * 1023).astype(np.uint16)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4095  # MaxSampleValue: data of 12 bits of which the picture uses 10
    path = save(tmp_path, Image.fromarray(values), "a.tif", tiffinfo=tags)
    assert abs(int(image_files.decode(path, 64).max()) - 64) <= 1


def test_a_narrow_range_of_deep_values_is_stretched(tmp_path):
    values = 30_000 + PIXELS[..., 0].astype(np.uint16)
    decoded = image_files.decode(save(tmp_path, Image.fromarray(values), "a.png"), 64)[..., 0]
    assert np.array_equal(decoded, PIXELS[..., 0])
    flat = np.full((64, 64), 7, np.uint16)
    decoded = image_files.decode(save(tmp_path, Image.fromarray(flat), "b.png"), 64)
    assert image_files.is_one_color(decoded) and not image_files.is_one_color(PIXELS)
    # Colors of 12 bits in 16, of which Pillow keeps the upper 8.
    assert image_files.is_one_color(PIXELS // 16)


def test_palette_image_gives_its_colors(tmp_path):
    image = Image.fromarray(PIXELS).quantize(16)
    path = save(tmp_path, image, "a.gif")
    assert np.array_equal(image_files.decode(path, 64), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_gives_its_colors(tmp_path):
    red = Image.new("RGB", (64, 64), (200, 30, 40)).convert("CMYK")
    decoded = image_files.decode(save(tmp_path, red, "a.jpg", quality=95), 64)
    assert np.abs(decoded.astype(int) - (200, 30, 40)).max() < 12


def test_what_is_transparent_becomes_white(tmp_path):
    alpha = np.full((64, 64, 1), 255, np.uint8)
    alpha[:32] = 0
    path = save(tmp_path, Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)), "a.png")
    decoded = image_files.decode(path, 64)
    assert (decoded[:32] == 255).all()
    assert np.array_equal(decoded[32:], PIXELS[32:])


def test_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.fromarray(np.repeat([[0, 1]], 64, axis=0).repeat(32, axis=1).astype(np.uint8))
    image = image.convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    decoded = image_files.decode(save(tmp_path, image, "a.png", transparency=0), 64)
    assert decoded[5, 5].tolist() == [255, 255, 255]
    assert decoded[5, 60].tolist() == [200, 100, 50]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(PIXELS).resize((64, 48))
    path = save(tmp_path, image, f"a.{suffix}", exif=exif, quality=95)
    with Image.open(path) as opened:
        opened.load()
        wanted = ImageOps.exif_transpose(opened).convert("RGB")
    assert np.array_equal(np.asarray(image_files.upright(path, 1000)), np.asarray(wanted))


def write_odd_exif(path):
    """A JPEG to be turned, whose tag Make claims to be larger than the file."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera " * 10
    Image.fromarray(PIXELS).save(path, exif=exif, quality=95)
    raw = path.read_bytes()
    path.with_suffix(".good.jpg").write_bytes(raw)
    at = raw.index(b"\x01\x0f\x00\x02", raw.index(b"Exif\x00\x00MM"))
    path.write_bytes(raw[: at + 4] + struct.pack(">I", 60_000) + raw[at + 8 :])


def test_an_odd_exif_tag_does_not_matter(tmp_path):
    write_odd_exif(tmp_path / "a.jpg")
    good = image_files.decode(tmp_path / "a.good.jpg", 64)
    assert np.array_equal(image_files.decode(tmp_path / "a.jpg", 64), good)
    raw = (tmp_path / "a.good.jpg").read_bytes()
    (tmp_path / "c.jpg").write_bytes(raw.replace(b"Exif\x00\x00MM", b"Exif\x00\x00XX", 1))
    turned_back = image_files.decode(tmp_path / "c.jpg", 64)
    assert np.array_equal(np.rot90(turned_back, -1), good)


def test_large_text_in_a_png_does_not_matter(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>" + "long " * 400_000 + "</x:xmpmeta>", zip=True)
    path = save(tmp_path, Image.fromarray(PIXELS), "a.png", pnginfo=text)
    assert np.array_equal(image_files.decode(path, 64), PIXELS)


def test_a_lossless_jpeg_that_has_no_fractions_is_decoded_whole(tmp_path):
    # Gray, 400 x 400, every difference 0: each pixel is the bit 0, and the picture is 128.
    frame = b"\xff\xc3\x00\x0b\x08\x01\x90\x01\x90\x01\x01\x11\x00"
    table = b"\xff\xc4\x00\x14\x00" + b"\x01" + bytes(15) + b"\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00" + bytes(400 * 400 // 8)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8" + frame + table + scan + b"\xff\xd9")
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(OSError):
        image.draft(None, (50, 50))
        image.load()
    assert (image_files.decode(tmp_path / "a.jpg", 25) == 128).all()


def test_programs_are_never_opened(tmp_path):
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
    _, listing = read(tmp_path, ["a.jpg"])
    assert listing.broken == {"a.jpg": "no image"}
    assert not {"EPS", "WMF", "FPX", "MIC", "PDF", "MPEG", "GRIB"} & {*image_files.formats()}
    assert {"JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"} <= {*image_files.formats()}


def test_reasons_say_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "phone.jpg").write_bytes(b"\x00\x00\x00\x18ftypheis" + bytes(40))
    Image.new("L", (200, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        broken = read(tmp_path, ["empty.jpg", "phone.jpg", "large.png"])[1].broken
    assert broken["empty.jpg"] == "an empty file"
    assert broken["large.png"] == "0 megapixels, more than 0; scale it down"
    if "HEIF" not in image_files.formats():
        assert broken["phone.jpg"] == "a HEIC photo; pip install pillow-heif"


def test_a_warning_of_pillow_names_its_file_once(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        write_odd_exif(tmp_path / name)
    paths = [f"{tmp_path}/{name}.jpg" for name in "aba"]
    Image.fromarray(PIXELS).save(tmp_path / "c.tif", compression="tiff_lzw")
    raw = (tmp_path / "c.tif").read_bytes()
    (tmp_path / "c.tif").write_bytes(raw[:200] + b"\xff" * 60 + raw[260:])
    script = f"""from pathlib import Path; import numpy as np
from smr.data.decoding import check_images, decode
from smr.data.image_folder import Listing
listing = Listing({[*paths[:2], f"{tmp_path}/c.tif"]}, np.zeros(3))
check_images(Path(), listing, 1)  # the headers alone
print(*check_images(Path(), listing, 1, lambda path: decode(path, 9)).broken)"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, check=True, text=True
    )
    words = "Tag data larger than file. Skipping tag 271"
    notes = [f"note: {tmp_path / n}.jpg: {words}" for n in ("a", "b")]
    assert done.stdout.splitlines() == [*notes, f"{tmp_path}/c.tif"]
    assert not done.stderr


def test_a_check_finds_what_training_would(tmp_path):
    write_png(tmp_path / "good.png", PIXELS)
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "blue.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    listing = listing_of(["good.png", "blue.png", "cut.png"])
    seen = image_files.check_images(tmp_path, listing, 2)
    assert seen.files == listing.files and not seen.notes
    decode = partial(scaled, frame=Frame(40, 32))
    checked = image_files.check_images(tmp_path, listing, 2, decode)
    assert checked.files == ["good.png", "blue.png"] and list(checked.broken) == ["cut.png"]
    assert checked.notes == ["1 photos are nearly of one color: blue.png"]


def test_usable_cores_are_those_of_the_affinity():
    script = (
        "import os; from smr.data.decoding import usable_cores; "
        "os.sched_setaffinity(0, {0}); print(usable_cores())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == ["1"]


def test_the_shorter_side_is_scaled_and_the_center_kept(tmp_path):
    wide = np.zeros((128, 256, 3), np.uint8)
    wide[:, 64:128], wide[:, 128:192] = (100, 0, 0), (0, 0, 200)
    write_png(tmp_path / "wide.png", wide)
    write_png(tmp_path / "tall.png", wide.transpose(1, 0, 2).copy())
    decoded = image_files.decode(tmp_path / "wide.png", 64)
    assert decoded.shape == (64, 64, 3)
    assert (decoded[:, 1:31] == (100, 0, 0)).all()
    assert (decoded[:, 33:63] == (0, 0, 200)).all()
    assert np.array_equal(image_files.decode(tmp_path / "tall.png", 64), decoded.transpose(1, 0, 2))


def test_a_small_image_is_enlarged(tmp_path):
    write_png(tmp_path / "a.png", np.full((3, 5, 3), 77, np.uint8))
    assert (image_files.decode(tmp_path / "a.png", 64) == 77).all()


def test_a_large_jpeg_decoded_at_a_fraction_of_its_size_looks_the_same(tmp_path):
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    image = Image.fromarray(np.repeat(ramp[None, :, None], 1200, axis=0).repeat(3, axis=2))
    path = save(tmp_path, image, "a.jpg", quality=95)
    wanted = image.resize((64, 64), Image.Resampling.BILINEAR, (200, 0, 1400, 1200))
    difference = image_files.decode(path, 64).astype(int) - np.asarray(wanted)
    assert np.abs(difference).max() <= 3


def test_files_that_are_no_images_are_told_apart_and_left_out(tmp_path):
    write_png(tmp_path / "good.png", PIXELS)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    whole = io.BytesIO()
    Image.fromarray(PIXELS).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:-300])
    names = ["text.png", "cut.jpg", "good.png", "empty.jpg", "gone.png"]
    images, listing = read(tmp_path, names, broken={"misplaced": "in no class folder"})
    assert np.array_equal(images, PIXELS[None])
    assert listing.files == ["good.png"]
    assert listing.labels.tolist() == [2]
    truncated = listing.broken.pop("cut.jpg")
    assert "truncated" in truncated
    assert list(listing.broken.items()) == [
        ("misplaced", "in no class folder"),
        ("empty.jpg", "an empty file"),
        ("gone.png", "No such file or directory"),
        ("text.png", "no image"),
    ]


def test_reasons_are_of_one_line_even_where_the_error_has_no_words():
    assert image_files.reason_of(ValueError("first\nsecond")) == "first"
    assert image_files.reason_of(ValueError()) == "ValueError"


def test_images_stand_in_the_order_of_their_files_whatever_the_threads(tmp_path, capsys):
    names = [f"{i}.png" for i in range(250)]
    for i, name in enumerate(names):
        write_png(tmp_path / name, np.full((2, 2, 3), i, np.uint8))
    images, listing = read(tmp_path, names, threads=4, size=2)
    assert images[:, 0, 0, 0].tolist() == listing.labels.tolist() == list(range(250))
    assert listing.files == names
    said = capsys.readouterr().out
    assert said.startswith("decoded 250 images in ") and said.endswith(" s, 4 threads\n")


def test_progress_counts_the_images_decoded(tmp_path, capsys, monkeypatch):
    names = [f"{i}.png" for i in range(230)]
    for name in names:
        write_png(tmp_path / name, PIXELS[:2, :2])
    monkeypatch.setattr(Terminal, "due", lambda _: True)
    read(tmp_path, names, threads=1, size=2)
    done = [int(line.split()[1]) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert done[-1] == 230
    assert sorted(np.diff([0, *done])) == [30, 100, 100]


def test_no_files_are_no_images(tmp_path):
    images, listing = read(tmp_path, [])
    assert images.shape == (0, 64, 64, 3)
    assert listing.files == []


def test_an_interrupt_stops_the_decoding_threads(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(5 * image_files.PORTION)]
    calls, before = [], threading.active_count()

    def interrupted(path, size):
        calls.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(image_files, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, names, threads=1)
    assert len(calls) < 5
    assert threading.active_count() == before

"""Decoding image files of any kind."""

import io
import struct
import time
import warnings
from functools import partial

import numpy as np
import pytest
from photos import write_png
from PIL import Image, ImageOps, PngImagePlugin

from smr.data.decoding import formats, open_image, read_files, upright
from smr.data.image_file_dataset import Frame, scaled
from smr.data.image_folder import Listing
from smr.errors import InputError
from smr.logging.console import Terminal

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def decode(path, size=64) -> np.ndarray:
    """The middle square as training on a folder sees it."""
    return scaled(path, Frame(size, size, square=True)).numpy()


def read(root, names, size=64, threads=2, broken=None):
    """(images, Listing) of the files that are images; each is labeled with its position."""
    listing = Listing(root, list(names), np.arange(len(names)), broken or {})
    return read_files(listing, partial(decode, size=size), threads)


def save(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., 0]], ids=["color", "gray"])
def test_pixels_of_an_image_of_the_right_size_are_as_they_are_in_three_channels(tmp_path, pixels):
    write_png(tmp_path / "a.png", pixels)
    assert np.array_equal(decode(tmp_path / "a.png"), np.broadcast_to(pixels.T, (3, 64, 64)).T)


@pytest.mark.parametrize("kind", ["I;16 png", "I;16 tiff", "I tiff", "float tiff"])
def test_deep_gray_is_scaled_by_the_depth_of_its_data(tmp_path, kind):
    mode, suffix = kind.split()
    types = {"I;16": np.uint16, "I": np.int32, "float": np.float32}
    for bits in (8, 10, 12, 14, 16):
        values = np.round(PIXELS[..., 0] / 255 * (2**bits - 1))
        path = save(tmp_path, Image.fromarray(values.astype(types[mode])), f"a.{suffix}")
        decoded = decode(path)[..., 1].astype(int)
        assert np.abs(decoded - PIXELS[..., 0]).max() <= (bits not in (8, 16))


def test_float_gray_up_to_one_and_below_zero_uses_the_whole_range(tmp_path):
    ramp = PIXELS[..., 0] / 255
    for values in (ramp, 3000 * ramp - 1000, np.where(ramp > 0.99, np.nan, 0.97 * ramp)):
        path = save(tmp_path, Image.fromarray(values.astype(np.float32)), "a.tif")
        decoded = decode(path)[..., 0].astype(int)
        assert decoded.max() - decoded.min() > 240
        order = np.argsort(np.nan_to_num(values).ravel())
        assert (np.diff(decoded.ravel()[order]) >= 0).all()


def test_a_narrow_range_of_deep_values_is_stretched_unless_it_is_one_value(tmp_path):
    values = 30_000 + PIXELS[..., 0].astype(np.uint16)
    path = save(tmp_path, Image.fromarray(values), "a.png")
    assert np.array_equal(decode(path)[..., 0], PIXELS[..., 0])
    flat = save(tmp_path, Image.fromarray(np.full((64, 64), 7, np.uint16)), "b.png")
    assert np.ptp(decode(flat)) == 0


def test_palette_and_cmyk_images_have_their_colors(tmp_path):
    palette = Image.fromarray(PIXELS).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decode(save(tmp_path, palette, "a.gif")), expected)
    cmyk = Image.new("RGB", (64, 64), (200, 30, 40)).convert("CMYK")
    decoded = decode(save(tmp_path, cmyk, "a.jpg", quality=95))
    assert np.abs(decoded.astype(int) - (200, 30, 40)).max() < 12


def test_what_is_transparent_becomes_white(tmp_path):
    alpha = np.full((64, 64, 1), 255, np.uint8)
    alpha[:32] = 0
    path = save(tmp_path, Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)), "a.png")
    decoded = decode(path)
    assert (decoded[:32] == 255).all()
    assert np.array_equal(decoded[32:], PIXELS[32:])
    palette = Image.fromarray(np.repeat([[0, 1]], 64, axis=0).repeat(32, axis=1).astype(np.uint8))
    palette = palette.convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    decoded = decode(save(tmp_path, palette, "b.png", transparency=0))
    assert decoded[5, 5].tolist() == [255, 255, 255]
    assert decoded[5, 60].tolist() == [200, 100, 50]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientations_are_those_of_pillow(tmp_path, suffix):
    image, exif = Image.fromarray(PIXELS).resize((64, 48)), Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        path = save(tmp_path, image, f"a.{suffix}", exif=exif, quality=95)
        with Image.open(path) as opened:
            expected = ImageOps.exif_transpose(opened).convert("RGB")
        assert np.array_equal(np.asarray(upright(path, 1000)), np.asarray(expected))


def test_an_odd_exif_tag_and_a_damaged_exif_block_do_not_matter(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera " * 10
    raw = save(tmp_path, Image.fromarray(PIXELS), "good.jpg", exif=exif, quality=95).read_bytes()
    at = raw.index(b"\x01\x0f\x00\x02", raw.index(b"Exif\x00\x00MM"))
    # The tag Make claims to be larger than the file.
    (tmp_path / "odd.jpg").write_bytes(raw[: at + 4] + struct.pack(">I", 60_000) + raw[at + 8 :])
    damaged = raw.replace(b"Exif\x00\x00MM", b"Exif\x00\x00XX", 1)
    (tmp_path / "damaged.jpg").write_bytes(damaged)
    with warnings.catch_warnings(record=True) as warned:
        formats.cache_clear()  # as in a new process
        good, odd, not_turned = (
            decode(tmp_path / name) for name in ("good.jpg", "odd.jpg", "damaged.jpg")
        )
    assert np.array_equal(odd, good) and np.array_equal(np.rot90(not_turned, -1), good)
    assert not warned


def test_large_text_in_a_png_does_not_matter(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>" + "long " * 400_000 + "</x:xmpmeta>", zip=True)
    path = save(tmp_path, Image.fromarray(PIXELS), "a.png", pnginfo=text)
    assert np.array_equal(decode(path), PIXELS)


def test_programs_are_never_opened(tmp_path):
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
    _, listing = read(tmp_path, ["a.jpg"])
    assert listing.broken == {"a.jpg": "no image"}
    assert not {"EPS", "WMF", "FPX", "MIC", "PDF", "MPEG", "GRIB"} & {*formats()}
    assert {"JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"} <= {*formats()}


def test_the_shorter_side_is_scaled_and_the_center_kept(tmp_path):
    wide = np.zeros((128, 256, 3), np.uint8)
    wide[:, 64:128], wide[:, 128:192] = (100, 0, 0), (0, 0, 200)
    write_png(tmp_path / "wide.png", wide)
    write_png(tmp_path / "tall.png", wide.transpose(1, 0, 2).copy())
    decoded = decode(tmp_path / "wide.png")
    assert decoded.shape == (64, 64, 3)
    assert (decoded[:, 1:31] == (100, 0, 0)).all()
    assert (decoded[:, 33:63] == (0, 0, 200)).all()
    assert np.array_equal(decode(tmp_path / "tall.png"), decoded.transpose(1, 0, 2))
    write_png(tmp_path / "small.png", np.full((3, 5, 3), 77, np.uint8))
    assert (decode(tmp_path / "small.png") == 77).all()


def test_a_large_jpeg_decoded_at_a_fraction_of_its_size_looks_the_same(tmp_path):
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    image = Image.fromarray(np.repeat(ramp[None, :, None], 1200, axis=0).repeat(3, axis=2))
    path = save(tmp_path, image, "a.jpg", quality=95)
    expected = image.resize((64, 64), Image.Resampling.BILINEAR, (200, 0, 1400, 1200))
    assert np.abs(decode(path).astype(int) - np.asarray(expected)).max() <= 3
    # At the smallest scale that is large enough.
    sizes = [upright(path, least).size for least in (100, 150, 160, 400)]
    assert sizes == [(200, 150), (200, 150), (400, 300), (800, 600)]


def test_files_that_are_no_images_are_told_apart_and_left_out(tmp_path, monkeypatch):
    write_png(tmp_path / "good.png", PIXELS)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "phone.jpg").write_bytes(b"\x00\x00\x00\x18ftypheis" + bytes(40))
    Image.new("L", (200, 100)).save(tmp_path / "large.png")
    whole = io.BytesIO()
    Image.fromarray(PIXELS).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:-300])
    names = ["text.png", "cut.jpg", "good.png", "empty.jpg", "gone.png", "phone.jpg", "large.png"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    images, listing = read(tmp_path, names, broken={"misplaced": "in no class folder"})
    assert np.array_equal(images, PIXELS[None])
    assert listing.files == ["good.png"] and listing.labels.tolist() == [2]
    reasons = listing.broken
    assert "truncated" in reasons.pop("cut.jpg")
    assert "(20000 pixels) exceeds limit" in reasons.pop("large.png")
    phone = reasons.pop("phone.jpg")
    assert "HEIF" in formats() or phone == "a HEIC photo; pip install pillow-heif"
    assert reasons == {
        "misplaced": "in no class folder",
        "text.png": "no image",
        "empty.jpg": "an empty file",
        "gone.png": "No such file or directory",
    }
    headers = Listing(tmp_path, ["cut.jpg"], np.zeros(1, dtype=int))
    assert read_files(headers, open_image, 1)[1].files == ["cut.jpg"]


def test_images_are_in_the_order_of_their_files_and_progress_counts_them(
    tmp_path, capsys, monkeypatch
):
    names = [f"{i}.png" for i in range(250)]
    for i, name in enumerate(names):
        write_png(tmp_path / name, np.full((2, 2, 3), i, np.uint8))
    monkeypatch.setattr(Terminal, "due", lambda _: True)
    images, listing = read(tmp_path, names, threads=4, size=2)
    assert [image[0, 0, 0] for image in images] == listing.labels.tolist() == list(range(250))
    assert listing.files == names
    assert capsys.readouterr().out.splitlines()[-1] == "reading: 250 of 250 images"
    assert read(tmp_path, [])[0] == []


def test_decoding_ends_if_memory_runs_out(tmp_path):
    calls = []

    def fail(path):
        calls.append(path)
        time.sleep(0.05)
        raise MemoryError

    with pytest.raises(InputError, match="lower --num_workers"):
        read_files(Listing(tmp_path, [f"{i}.png" for i in range(2000)], np.zeros(2000)), fail, 1)
    assert len(calls) < 5

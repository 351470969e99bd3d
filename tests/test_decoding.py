"""Decoding image files of any kind."""

import io
import threading

import numpy as np
import pytest
from photos import write_png
from PIL import Image

from smr.data import decoding as image_files
from smr.data.image_folder import Listing
from smr.logging.console import Terminal

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def listing_of(names, broken=None) -> Listing:
    """These files, each labeled with its position."""
    return Listing(list(names), np.arange(len(names)), broken or {})


def read(root, names, size=64, threads=2, broken=None):
    """(images, Listing) of the files that are images."""
    return image_files.read_images(root, listing_of(names, broken), size, threads, Terminal())


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


def test_16_bit_grayscale_keeps_its_upper_8_bits(tmp_path):
    deep = PIXELS[..., 0].astype(np.uint16) * 256 + 7
    path = save(tmp_path, Image.fromarray(deep), "a.png")
    assert np.array_equal(image_files.decode(path, 64)[..., 1], PIXELS[..., 0])


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


def test_a_photo_is_turned_upright_by_its_exif_orientation(tmp_path):
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    decoded = image_files.decode(save(tmp_path, image, "a.png", exif=exif), 64)
    assert np.array_equal(decoded, np.rot90(PIXELS, -1))


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
        ("empty.jpg", "no image"),
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

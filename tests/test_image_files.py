"""Decoding image files of any kind, and the cache beside them."""

import io
import os
import pickle
import threading

import numpy as np
import pytest
from photos import write_png
from PIL import Image

from support import image_files

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def read(root, files, cache=None, size=64, threads=2):
    """(what was decoded, lines said)"""
    said = []
    decoded = image_files.read_images(
        root, files, size, threads, cache or root / "some.cache.npz", said.append
    )
    return decoded, said


@pytest.fixture
def three(tmp_path):
    """A folder of three images of 64x64, and their names."""
    names = [f"{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        write_png(tmp_path / name, np.roll(PIXELS, i, axis=0))
    return tmp_path, names


def save(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_an_image_of_the_right_size_is_not_touched(tmp_path):
    write_png(tmp_path / "a.png", PIXELS)
    assert np.array_equal(image_files.decode(tmp_path / "a.png", 64), PIXELS)


def test_greyscale_becomes_three_equal_channels(tmp_path):
    write_png(tmp_path / "a.png", PIXELS[..., 0])
    decoded = image_files.decode(tmp_path / "a.png", 64)
    assert np.array_equal(decoded, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_16_bit_greyscale_keeps_its_upper_8_bits(tmp_path):
    deep = PIXELS[..., 0].astype(np.uint16) * 256 + 7
    path = save(tmp_path, Image.fromarray(deep), "a.png")
    assert np.array_equal(image_files.decode(path, 64)[..., 1], PIXELS[..., 0])


def test_palette_image_gives_its_colours(tmp_path):
    image = Image.fromarray(PIXELS).quantize(16)
    path = save(tmp_path, image, "a.gif")
    assert np.array_equal(image_files.decode(path, 64), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_gives_its_colours(tmp_path):
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


def test_the_shorter_side_is_scaled_and_the_centre_kept(tmp_path):
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


def test_files_that_are_no_images_are_told_apart(tmp_path):
    write_png(tmp_path / "good.png", PIXELS)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    whole = io.BytesIO()
    Image.fromarray(PIXELS).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:-300])
    decoded, _ = read(tmp_path, ["cut.jpg", "empty.jpg", "good.png", "text.png"])
    assert np.array_equal(decoded.images, PIXELS[None])
    assert decoded.kept.tolist() == [2]
    assert decoded.broken.keys() == {0, 1, 3}
    assert "truncated" in decoded.broken[0]
    assert decoded.broken[1] == decoded.broken[3] == "no image"


def test_images_stand_in_the_order_of_their_files_whatever_the_threads(tmp_path):
    names = [f"{i}.png" for i in range(250)]
    for i, name in enumerate(names):
        write_png(tmp_path / name, np.full((2, 2, 3), i, np.uint8))
    decoded, said = read(tmp_path, names, threads=4, size=2)
    assert np.array_equal(decoded.images[:, 0, 0, 0], np.arange(250))
    assert said[0].startswith("decoded 250 images in")


def test_the_second_start_decodes_nothing(three, monkeypatch):
    root, names = three
    first, _ = read(root, names)
    monkeypatch.setattr(image_files, "decode", None)
    second, said = read(root, names)
    assert np.array_equal(first.images, second.images)
    assert said == [f"3 decoded images from {root / 'some.cache.npz'}"]


def test_the_cache_remembers_what_is_broken(three):
    root, names = three
    (root / "1.png").write_text("no picture")
    first, _ = read(root, names)
    second, said = read(root, names)
    assert "from" in said[0]
    assert second.broken == first.broken == {1: "no image"}
    assert second.kept.tolist() == [0, 2]


def change_content(root):
    write_png(root / "1.png", PIXELS[::-1].copy())


def change_time_alone(root):
    os.utime(root / "1.png", ns=(1, 1))


@pytest.mark.parametrize("change", [change_content, change_time_alone])
def test_a_changed_file_rebuilds_the_cache(three, change):
    root, names = three
    read(root, names)
    change(root)
    decoded, said = read(root, names)
    assert said[0].startswith("decoded 3 images")
    assert np.array_equal(decoded.images[1], np.asarray(Image.open(root / "1.png")))


def test_another_list_of_files_or_size_rebuilds_the_cache(three):
    root, names = three
    read(root, names)
    assert len(read(root, names[:2])[0].images) == 2
    assert read(root, names[:2], size=32)[0].images.shape == (2, 32, 32, 3)


def damage_a_byte(cache):
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)


def cut(cache):
    cache.write_bytes(cache.read_bytes()[:1000])


def replace_images(cache):
    with np.load(cache) as content:
        parts = dict(content)
    np.savez(cache, **parts | {"images": parts["images"][:, :32]})


@pytest.mark.parametrize("damage", [damage_a_byte, cut, replace_images])
def test_a_damaged_cache_is_built_anew(three, damage):
    root, names = three
    wanted = read(root, names)[0].images
    damage(root / "some.cache.npz")
    decoded, said = read(root, names)
    assert said[0].startswith("decoded 3 images")
    assert np.array_equal(decoded.images, wanted)


def test_no_flipped_byte_of_a_cache_gets_through(three):
    root, names = three
    cache = root / "some.cache.npz"
    wanted = read(root, names)[0].images
    whole = cache.read_bytes()
    fingerprint = image_files.fingerprint_of(root, names, 64)
    for position in [*range(0, 400, 2), *range(len(whole) - 1200, len(whole), 5)]:
        cache.write_bytes(
            whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :]
        )
        found = image_files.read_cache(cache, fingerprint, 3, 64)
        assert found is None or np.array_equal(found.images, wanted)


class Planted:
    """A pickle that would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_in_place_of_the_cache_is_not_run(three):
    root, names = three
    planted = Planted(root / "executed")
    np.savez(root / "a.cache.npz", fingerprint=np.array([planted], dtype=object))
    (root / "b.cache.npz").write_bytes(pickle.dumps(planted))
    for name in ("a.cache.npz", "b.cache.npz"):
        decoded, _ = read(root, names, root / name)
        assert len(decoded.images) == 3
    assert not (root / "executed").exists()


def test_where_no_cache_can_be_written_a_note_says_so(three):
    root, names = three
    decoded, said = read(root, names, root / "missing folder" / "some.cache.npz")
    assert len(decoded.images) == 3
    assert said[1].startswith("note: ") and "decodes again" in said[1]


def test_a_full_disk_leaves_no_half_cache(three, monkeypatch):
    root, names = three

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    decoded, said = read(root, names)
    assert len(decoded.images) == 3
    assert "No space left on device" in said[1]
    assert sorted(path.name for path in root.iterdir()) == names


def test_an_interrupt_stops_the_decoding_threads(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(5 * image_files.PORTION)]
    calls = []

    def interrupted(path, size):
        calls.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(image_files, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image_files.decode_all(tmp_path, names, 64, 1, print)
    assert len(calls) < 5
    assert threading.active_count() < 5

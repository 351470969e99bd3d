"""Photos streamed from disk, held against a plain and slow implementation."""

import errno
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import hflip, normalize, pil_to_tensor, resized_crop

from smr.data import image_file_dataset as streams
from smr.data.augment import Views
from smr.data.image_file_dataset import Frame, ImageFileLoader
from smr.data.image_file_dataset import random_numbers as drawn
from smr.data.image_folder import Listing
from smr.data.loader import DatasetInfo
from smr.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FRAME = Frame(resize=40, crop=32)
# Two levels of rounding between Pillow and torch, over the smallest std.
LEVEL = 2.01 / 255 / 0.224
SIZES = ((60, 50), (48, 90), (33, 40), (40, 40), (70, 60))


def photo(number: int) -> Image.Image:
    """A smooth picture of its own, so that scaling by any filter gives nearly the same."""
    width, height = SIZES[number % len(SIZES)]
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write(folder, count: int = 10) -> list[str]:
    """Photos of several sizes, kinds and modes; their names."""
    folder.mkdir(exist_ok=True)
    names = [f"{i}{('.jpg', '.png')[i % 2]}" for i in range(count)]
    for i, name in enumerate(names):
        picture, exif = photo(i), Image.Exif()
        exif[0x0112] = (1, 6, 3)[i % 3]  # upright, or to be turned
        picture = picture.convert("L") if i == 3 else picture
        picture.save(folder / name, quality=95, exif=exif)
    return names


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "photos")
    return tmp_path / "photos"


def loader_of(folder, frame=FRAME, workers=0, seed=3, batch_size=4, **options) -> ImageFileLoader:
    """Photo i of the folder has the label i % 3; the first three are the test set too."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: int(name[:-4]))
    train = Listing(folder, names, np.arange(len(names)) % 3)
    return ImageFileLoader(
        train,
        {"test": train.only(np.arange(len(names)) < 3)},
        Views(MEAN, STD),
        frame,
        DatasetInfo(list("abc")),
        num_workers=workers,
        batch_size=batch_size,
        seed=seed,
        **options,
    )


def slowly(path, numbers=None, frame=FRAME) -> torch.Tensor:
    """A view as torchvision's transforms make it, by these numbers of `drawn`."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if frame.square:
        side = min(picture.size)
        left, top = ((length - side) // 2 for length in picture.size)
        picture = picture.crop((left, top, left + side, top + side))
    scale = frame.resize / min(picture.size)
    size = [int(length * scale + 1e-9) for length in picture.size]
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    free_right, free_down = (length - frame.crop for length in size)
    top, left, height, width = round(free_down / 2), round(free_right / 2), frame.crop, frame.crop
    if numbers is not None and frame.random_resized:
        top, left, height, width = streams.resized_window(
            *size[::-1], numbers[:2], numbers[3:].reshape(10, 2)
        )
    elif numbers is not None:
        top, left = int(numbers[0] * (free_down + 1)), int(numbers[1] * (free_right + 1))
    view = resized_crop(picture, top, left, height, width, [frame.crop] * 2)
    return normalized(hflip(view) if numbers is not None and numbers[2] < 0.5 else view)


def normalized(picture) -> torch.Tensor:
    """The picture as networks see it, float32 [3, height, width]."""
    return normalize(pil_to_tensor(picture) / 255, MEAN, STD)


def by_index(batches, views: int = 1) -> dict[int, list[torch.Tensor]]:
    """Position → its views; the batch's last column holds the positions."""
    return {
        int(row): [view[i] for view in batch[:views]]
        for batch in batches
        for i, row in enumerate(batch[-1])
    }


@pytest.mark.parametrize("frame", [FRAME, Frame(40, 32, square=True), Frame(32, 32)])
def test_scoring_serves_the_middle_of_each_photo_in_order(folder, frame):
    loader = loader_of(folder, frame)
    info = loader.info
    assert (info.train_images, info.test_images, info.image_size) == (10, 3, [32, 32])
    batches = list(loader.run("eval_train"))
    assert [len(images) for images, _, _ in batches] == [4, 4, 2]
    assert torch.cat([index for *_, index in batches]).tolist() == list(range(10))
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == [i % 3 for i in range(10)]
    for i, (image,) in by_index(batches).items():
        wanted = slowly(folder / loader.files[i], None, frame)
        assert (image - wanted).abs().max() < LEVEL, loader.files[i]


@pytest.mark.parametrize("random_resized", [False, True])
@pytest.mark.parametrize("square", [False, True])
def test_training_views_are_the_slow_ones_by_the_numbers_drawn(folder, square, random_resized):
    frame = Frame(40, 32, square, random_resized)
    loader = loader_of(folder, frame)
    labeled, _ = loader.run("train", [True] * 10, np.arange(10) / 10)
    state = loader.generator.get_state()
    served = {
        round(10 * float(probability)): views
        for x1, x2, _, probabilities in labeled
        for probability, *views in zip(probabilities, x1, x2, strict=True)
    }
    loader.generator.set_state(state)
    seed = loader.new_seed()
    assert sorted(served) == list(range(10))
    for i, views in served.items():
        for view, image in enumerate(views):
            wanted = slowly(folder / loader.files[i], drawn(seed, i, view), frame)
            assert (image - wanted).abs().max() < (1 + random_resized) * LEVEL, loader.files[i]


@pytest.mark.parametrize("shape", [(320, 480), (320, 3200)])
def test_resized_windows_have_torchvision_s_distribution(shape):
    draw, image = np.random.default_rng(0), torch.empty(3, *shape, device="meta")
    torch.manual_seed(0)
    ours = [
        streams.resized_window(*shape, draw.random(2), draw.random((10, 2))) for _ in range(3000)
    ]
    theirs = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)]
    for one, other in zip(np.transpose(ours), np.transpose(theirs), strict=True):
        assert ks_2samp(one, other).pvalue > 1e-3


def test_a_photo_into_which_no_window_fits_gives_torchvision_s_central_one():
    for shape in ((10, 1000), (1000, 10), (300, 310)):
        wanted = RandomResizedCrop.get_params(torch.empty(3, *shape), (9.0, 9.0), (3 / 4, 4 / 3))
        assert streams.resized_window(*shape, [0.3, 0.6], np.full((10, 2), 10.0)) == wanted


def test_windows_are_uniform_and_half_are_mirrored():
    # A pixel's color is its place, so that a view tells where it was cut.
    down, across = np.mgrid[:12, :14]
    photo = torch.from_numpy(np.stack([down, across, 0 * down], axis=2).astype(np.uint8))
    found = Counter()
    for seed in range(1500):
        view = streams.view_of(photo, Frame(12, 10), drawn(seed, 0, 0)).int()
        mirrored = int(view[0, 0, 1] > view[0, 1, 1])
        found[(*view[0, -mirrored, :2].tolist(), mirrored)] += 1
    assert sorted(found) == [(i, j, m) for i in range(3) for j in range(5) for m in range(2)]
    expected = 1500 / 30
    assert sum((n - expected) ** 2 / expected for n in found.values()) < 58  # p = 0.001 at 29


def test_each_photo_view_and_pass_draws_anew_and_uniformly():
    places = np.stack([drawn(s, i, v)[:3] for s in range(8) for i in range(40) for v in range(2)])
    assert len(np.unique(places, axis=0)) == len(places) == 640
    assert np.abs(places.mean(axis=0) - 0.5).max() < 0.05
    assert np.abs(np.corrcoef(places.T) - np.eye(3)).max() < 0.15


@pytest.mark.parametrize("frame", [FRAME, Frame(40, 32, random_resized=True)])
def test_a_view_depends_on_neither_workers_nor_batches_nor_the_other_photos(folder, frame):
    plain, training = loader_of(folder, frame), torch.get_rng_state()
    state = plain.generator.get_state()
    wanted = [by_index(plain.run("warmup")) for _ in range(2)]
    assert not torch.equal(wanted[0][0][0], wanted[1][0][0])
    for workers, batch_size in ((2, 4), (1, 3)):
        loader = loader_of(folder, frame, workers=workers, batch_size=batch_size)
        loader.generator.set_state(state)
        for views in wanted:
            found = by_index(loader.run("warmup"))
            assert all(torch.equal(found[i][0], views[i][0]) for i in range(10))
    resumed = loader_of(folder, frame, seed=99)
    resumed.generator.set_state(state)
    resumed.new_seed()  # as the pass before did
    few = by_index(resumed.supervised(torch.tensor([7, 2])))
    assert all(torch.equal(few[i][0], wanted[1][i][0]) for i in (2, 7))
    assert torch.equal(torch.get_rng_state(), training)


def test_an_abandoned_pass_leaves_nothing_behind(folder):
    before = threading.active_count()
    loader = loader_of(folder, workers=1, batch_size=1)
    for images, _, index in loader.run("eval_train"):
        assert index.tolist() == [0] and len(images) == 1
        break
    assert [index.item() for *_, index in loader.run("test")] == [0, 1, 2]
    assert threading.active_count() <= before + 1


def test_a_broken_photo_is_named_once_and_missing_if_that_is_allowed(folder, capsys):
    whole = (folder / "4.jpg").read_bytes()
    (folder / "4.jpg").write_bytes(whole[: len(whole) // 2])
    loader = loader_of(folder, workers=1, batch_size=1, skip_broken=True)
    for _ in range(2):
        assert [int(index) for *_, index in loader.run("eval_train")] == [0, 1, 2, 3, *range(5, 10)]
    told = capsys.readouterr().out
    assert told.count("4.jpg") == 1 and "left out" in told and "truncated" in told


def test_a_broken_photo_stops_the_run_otherwise(folder):
    loader = loader_of(folder, workers=1)
    whole = (folder / "4.jpg").read_bytes()
    (folder / "4.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"1 of 13 files cannot be read as images: 4\.jpg"):
        loader_of(folder, check_images=True)
    (folder / "4.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"4\.jpg: cannot be decoded \(no image\).*--skip_broken"):
        list(loader.run("warmup"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
)
def test_a_photo_for_which_the_machine_ran_out_of_something_is_not_left_out(
    folder, monkeypatch, error
):
    def fail(path, formats):
        raise error

    loader = loader_of(folder, workers=2, skip_broken=True)
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InputError, match="lower --num_workers"):
        list(loader.run("warmup"))


def test_thumbnails_are_the_middles_and_black_if_there_is_none(folder):
    loader = loader_of(folder)
    (folder / "1.png").write_text("no picture")
    shown = loader.thumbnails(np.array([1, 5]))
    assert shown.shape == (2, 32, 32, 3) and not shown[0].any()
    wanted = (slowly(folder / "5.png") * torch.tensor(STD)[:, None, None]).permute(1, 2, 0)
    wanted = 255 * (wanted + torch.tensor(MEAN))
    assert np.abs(shown[1] - wanted.numpy()).max() <= 2

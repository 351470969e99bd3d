"""How fast photos become views here, beside the ordinary way, and what bounds it.

    python benchmarks/photos.py
    python benchmarks/photos.py --photos 400 --workers 2 --rounds 5
    python benchmarks/photos.py --memory 2000 50000

The ordinary way is that of the published scripts: each photo opened and transformed once for each
of its two views, one by one, by torchvision's transforms in a DataLoader with as many workers. The
photos are JPEGs of smooth color and grain, about as large as a camera's of that size. The third
command shows the memory of a scoring pass over so many photos, links to the same files.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from smr.data.augment import flip
from smr.data.decoding import upright
from smr.data.image_file_dataset import (
    IMAGENET_VIEWS,
    Frame,
    ImageFileLoader,
    ImageFiles,
    scaled,
)
from smr.data.loader import DatasetInfo
from smr.run.devices import hardware, peak_memory, prepare_process

SIZES = ((640, 480), (500, 375))
FRAMES = (Frame(320, 299), Frame(256, 224))
BATCH_SIZE = 32


def write_photo(path: Path, size: tuple[int, int], seed: int) -> None:
    """A JPEG of smooth colors with a camera's grain."""
    source, (width, height) = np.random.default_rng(seed), size
    coarse = source.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), float)
    grain = source.normal(0, 8, (height, width, 1))
    pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=85)


def write_photos(root: Path, count: int, size: tuple[int, int]) -> ImageFiles:
    """Up to 200 photos of one size, and links to them."""
    files = [f"{i}.jpg" for i in range(count)]
    root.mkdir()
    for i, name in enumerate(files):
        if i < 200:
            write_photo(root / name, size, i)
        else:
            (root / name).symlink_to(root / files[i % 200])
    return ImageFiles(root, files, FRAMES[0])


class Ordinary(Dataset):
    """Two views of a photo, each from its file."""

    def __init__(self, photos: ImageFiles, frame: Frame):
        from torchvision import transforms

        self.photos = photos
        self.transform = transforms.Compose(
            [
                transforms.Resize(frame.resize),
                transforms.RandomCrop(frame.crop),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_VIEWS.mean, IMAGENET_VIEWS.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        path = self.photos.root / self.photos.files[index]
        first, second = (self.transform(Image.open(path).convert("RGB")) for _ in range(2))
        return first, second, index


def loader_of(
    photos: ImageFiles, frame: Frame, workers: int, device: torch.device
) -> ImageFileLoader:
    """The photos as a run's loader serves them."""
    photos, labels = replace(photos, frame=frame), np.zeros(len(photos), dtype=np.int64)
    return ImageFileLoader(
        *(photos, labels, {}, IMAGENET_VIEWS, DatasetInfo(["a", "b"])),
        batch_size=BATCH_SIZE,
        seed=1,
        device=device,
        channels_last=True,
        workers=workers,
    )


def streamed(photos: ImageFiles, frame: Frame, workers: int, device: torch.device) -> Iterable:
    """Two views of each photo by the loader."""
    loader, count = loader_of(photos, frame, workers, device), len(photos)
    return loader.run("train", np.ones(count, bool), np.ones(count))[0]


def ordinary(photos: ImageFiles, frame: Frame, workers: int, device: torch.device) -> Iterable:
    """The same number of views the ordinary way, on the device."""
    loader = DataLoader(
        Ordinary(photos, frame),
        BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    class OnDevice:
        def __iter__(self):
            for first, second, _ in loader:
                yield first.to(device), second.to(device)

    return OnDevice()


def views_a_second(batches: Iterable, count: int, device: torch.device) -> float:
    """Of a pass over `count` photos, two views each."""
    started = time.perf_counter()
    for _ in batches:
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 2 * count / (time.perf_counter() - started)


def compare(photos: ImageFiles, frame: Frame, workers: int, rounds: int, device: torch.device):
    """(views a second streamed, the ordinary way): medians of rounds in turn, the first unseen."""
    gc.collect()  # else new workers inherit the last comparison's, and complain
    ways = [make(photos, frame, workers, device) for make in (streamed, ordinary)]
    measured = [
        [views_a_second(way, len(photos), device) for way in ways] for _ in range(rounds + 1)
    ]
    return [statistics.median(speeds) for speeds in zip(*measured[1:], strict=True)]


def milliseconds(action: Callable[[int], object], count: int) -> float:
    """Of one call, the fastest of three passes over 0 … count-1."""
    passes = []
    for _ in range(3):
        started = time.perf_counter()
        for i in range(count):
            action(i)
        passes.append(time.perf_counter() - started)
    return 1000 * min(passes) / count


def bounds(photos: ImageFiles, frame: Frame) -> dict[str, float]:
    """Milliseconds a photo that each part of the work takes on one core, for two views."""
    paths = [photos.root / name for name in photos.files[:60]]
    wholes = [scaled(path, frame) for path in paths]
    side = frame.crop
    pixels = torch.empty((2, side, side, 3), dtype=torch.uint8)
    loader = loader_of(photos, frame, 0, torch.device("cpu"))
    batch = torch.zeros((BATCH_SIZE, side, side, 3), dtype=torch.uint8)
    flipped = torch.zeros(BATCH_SIZE, dtype=torch.uint8)

    def cut(i: int) -> None:
        for view in range(2):
            pixels[view] = wholes[i][:side, :side]

    def mirror_and_normalize(_: int) -> None:
        loader.normalize(flip(batch, flipped))

    decode = milliseconds(lambda i: upright(paths[i], frame.resize), len(paths))
    return {
        "decode": decode,
        "scale": milliseconds(lambda i: scaled(paths[i], frame), len(paths)) - decode,
        "cut two": milliseconds(cut, len(paths)),
        "mirror, normalize two": milliseconds(mirror_and_normalize, 5) / BATCH_SIZE * 2,
    }  # fmt: skip


def show_memory(root: Path, count: int, workers: int) -> None:
    """Most memory that this process held after a scoring pass over so many photos."""
    photos = write_photos(root / str(count), count, (160, 120))
    loader = loader_of(photos, Frame(64, 56), workers, torch.device("cpu"))
    served = sum(len(images) for images, *_ in loader.run("eval_train"))
    print(f"{served:>8,} photos: {peak_memory(torch.device('cpu'))['memory/host_gib']:.3f} GiB")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=200, help="of each size (default: 200)")
    parser.add_argument("--workers", type=int, default=2, help="threads, processes (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="passes of each way (default: 3)")
    parser.add_argument("--memory", type=int, nargs="+", metavar="N", help="show memory alone")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    prepare_process(device, amp=False)
    print(f"{hardware(device)}, torch {torch.__version__}, {args.workers} threads and workers")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for count in args.memory or ():
            show_memory(root, count, args.workers)
        for size in SIZES if not args.memory else ():
            photos = write_photos(root / f"{size[0]}", args.photos, size)
            for frame in FRAMES:
                fast, plain = compare(photos, frame, args.workers, args.rounds, device)
                parts = "  ".join(f"{k} {v:.2f}" for k, v in bounds(photos, frame).items())
                print(
                    f"{size[0]}x{size[1]} to {frame.crop}: {fast:.0f} views/s, ordinary "
                    f"{plain:.0f}, {fast / plain:.2f} times; ms a photo: {parts}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())

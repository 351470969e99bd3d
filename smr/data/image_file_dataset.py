"""Image files of any size and number, decoded by threads while the networks train.

A view depends on the seed of its pass, its photo and its number alone, and each pass's seed is the
next of the loader's generator: neither the number of threads nor a resume changes it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smr import distributed
from smr.data.augment import Views
from smr.data.decoding import open_image, read_files, reason_of, upright
from smr.data.image_folder import Listing, class_notes, refuse_broken
from smr.data.loader import Batches, DatasetInfo, Loader
from smr.data.noise_file import relabeled
from smr.errors import InputError
from smr.logging.console import Terminal

# ImageNet's constants, which torchvision's weights were trained with.
IMAGENET_VIEWS = Views((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), flip=True)
# Batches that a pass has in work for each thread.
AHEAD = 2


@dataclass(frozen=True)
class Frame:
    """How a photo becomes an image: its shorter side scaled to `resize`, a window of `crop` cut.

    square: the middle square alone is scaled. random_resized: a training view is a window of random
    area and aspect ratio, scaled to `crop`.
    """

    resize: int
    crop: int
    square: bool = False
    random_resized: bool = False


def scaled(path: str | Path, frame: Frame) -> Tensor:
    """The photo upright, its shorter side scaled to frame.resize: uint8 [height, width, 3].

    Raises whatever Pillow raises.
    """
    image = upright(path, frame.resize)
    short = min(image.size)
    if frame.square:
        left, top = ((length - short) // 2 for length in image.size)
        image = image.crop((left, top, left + short, top + short))
    width, height = (frame.resize * length // short for length in image.size)
    return scaled_to(torch.from_numpy(np.array(image)), height, width)


def scaled_to(pixels: Tensor, height: int, width: int) -> Tensor:
    """uint8 [h, w, 3] scaled to uint8 [height, width, 3], bilinear with antialiasing."""
    if pixels.shape[:2] == (height, width):
        return pixels
    # torch's filter equals Pillow's within a level, and is several times as fast.
    channels, size = pixels[None].permute(0, 3, 1, 2), (height, width)
    channels = F.interpolate(channels, size=size, mode="bilinear", antialias=True)
    return channels.permute(0, 2, 3, 1)[0]


def random_numbers(seed: int, position: int, view: int) -> np.ndarray:
    """float64 [23] in [0, 1): how far down and right a view lies, whether it is mirrored; then the
    attempts of `resized_window`."""
    return np.random.default_rng((seed, position, view)).random(23)


def resized_window(
    height: int, width: int, places: Sequence[float], attempts: np.ndarray
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a window of torchvision's RandomResizedCrop by default.

    Args: in [0, 1): places float64 [2], how far down and right; attempts float64 [10, 2], area and
    aspect ratio (log-uniform) of each. If none fits, the window is the largest central one.
    """
    for area, ratio in attempts:
        pixels, ratio = height * width * (0.08 + 0.92 * area), 3 / 4 * (16 / 9) ** ratio
        high, wide = round((pixels / ratio) ** 0.5), round((pixels * ratio) ** 0.5)
        if 0 < high <= height and 0 < wide <= width:
            free = np.array([height - high, width - wide])
            top, left = (places * (free + 1)).astype(int)
            return top, left, high, wide
    high, wide = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - high) // 2, (width - wide) // 2, high, wide


def view_of(photo: Tensor, frame: Frame, numbers: np.ndarray | None) -> Tensor:
    """A view uint8 [crop, crop, 3] by these random numbers; None for the middle of the photo."""
    side, (high, wide) = frame.crop, photo.shape[:2]
    free = np.array([high, wide]) - side
    if numbers is None:
        top, left = np.round(free / 2).astype(int)
        return photo[top : top + side, left : left + side]
    if frame.random_resized:
        attempts = numbers[3:].reshape(10, 2)
        top, left, height, width = resized_window(high, wide, numbers[:2], attempts)
        view = scaled_to(photo[top : top + height, left : left + width], side, side)
    else:
        top, left = (numbers[:2] * (free + 1)).astype(int)
        view = photo[top : top + side, left : left + side]
    return view.flip(1) if numbers[2] < 0.5 else view


def decode_batch(
    images: Listing, frame: Frame, index: np.ndarray, pixels: Tensor, seed: int | None = None
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Decode each photo at `index` once, into pixels uint8 [b, views, crop, crop, 3].

    Args: seed, of augmented views; None for the photo's middle. What `index` has beyond b is used
    only if no other photo can be decoded: a rank without an image would leave the others waiting.
    Returns the positions of the photos, int64 [m]; the first m rows of `pixels`; by path, why a
    photo is missing.
    """
    rows, broken = [], {}
    for number, position in enumerate(index.tolist()):
        if number >= len(pixels) and rows:
            break
        path = f"{images.root}/{images.files[position]}"
        try:
            photo = scaled(path, frame)
        except Exception as error:  # Pillow's decoders raise many types
            broken[path] = reason_of(error, path)
            continue
        for view in range(pixels.shape[1]):
            numbers = None if seed is None else random_numbers(seed, position, view)
            pixels[len(rows), view] = view_of(photo, frame, numbers)
        rows.append(position)
    return torch.tensor(rows, dtype=torch.int64), pixels[: len(rows)], broken


class ImageFileLoader(Loader):
    """A `Loader` of image files, those of the listings that are images.

    Args:
        train, tests: the training photos; test set → its photos.
        frame: how photos become images.
        info: the classes and what the dataset tells; completed here.
        num_workers: threads that decode.
        check_images: decode all photos first, instead of reading their headers alone.
        noise_file: a file of labels instead of the dataset's own, or "".
        skip_broken: exclude files that cannot be decoded instead of raising an InputError.
    The others are those of `Loader`. Raises InputError.
    """

    def __init__(
        self,
        train: Listing,
        tests: Mapping[str, Listing],
        views: Views,
        frame: Frame,
        info: DatasetInfo,
        num_workers: int = 0,
        check_images: bool = False,
        noise_file: str | Path = "",
        skip_broken: bool = False,
        **options,
    ):
        def look(path: Path) -> None:
            if check_images:
                scaled(path, frame)
            else:
                open_image(path).close()

        parts = [read_files(part, look, num_workers)[1] for part in (train, *tests.values())]
        for root in dict.fromkeys(part.root for part in parts):
            of_root = [part for part in parts if part.root == root]
            info.data_notes += refuse_broken(*of_root, skip_broken=skip_broken)
        train, info.dropped_images = relabeled(parts[0], noise_file, len(info.class_names))
        tests = dict(zip(tests, parts[1:], strict=True))
        info.data_notes += train.notes + class_notes(train, tests["test"], info.class_names)
        info.image_size = [frame.crop, frame.crop]
        info.frame = [frame.resize, frame.crop, frame.square]  # of photos that are not augmented
        labeled = {name: (part, part.labels) for name, part in tests.items()}
        super().__init__(train, train.labels, labeled, views, info, files=train.files, **options)
        self.frame, self.skip_broken = frame, skip_broken
        self.workers = max(1, distributed.rank_workers(num_workers))
        self.threads = ThreadPoolExecutor(self.workers, "decode")
        self.named: set[str] = set()

    def new_batch(self, photos: int, views: int = 1) -> Tensor:
        """uint8 [photos, views, crop, crop, 3], from which a GPU copies in the background."""
        shape, pin = (photos, views, *self.info.image_size, 3), self.device.type == "cuda"
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pin)

    def thumbnails(self, index: np.ndarray) -> np.ndarray:
        """The middle of the training photos at these positions, uint8 [k, crop, crop, 3]."""
        pixels = self.new_batch(len(index))
        rows, pixels, _ = decode_batch(self.train_images, self.frame, index, pixels)
        shown = np.zeros((len(index), *pixels.shape[2:]), dtype=np.uint8)
        shown[np.isin(index, rows)] = pixels[:, 0]
        return shown

    def new_seed(self, generator: torch.Generator | None = None) -> int:
        """A pass's seed, the next of the loader's generator or of another."""
        generator = generator or self.generator
        return int(torch.randint(2**62, (), generator=generator, device=self.device))

    def start_pass(self, batches: Batches) -> tuple[np.ndarray, int]:
        """The positions in the order of this pass, and the seed of its views."""
        index = batches.dataset.cpu().numpy()
        seed = self.new_seed() if batches.views or batches.shuffle else 0
        if batches.shuffle:
            index = np.random.default_rng(seed).permutation(index)
        return index, seed

    def serve(
        self, batches: Batches, order: np.ndarray, seed: int
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Positions of this rank's photos, and their views uint8 [b, crop, crop, 3].

        Some batches are decoded ahead. A photo that cannot be decoded is missing in its batch.
        Raises InputError.
        """
        requests = self.requests(batches, order, seed)
        submitted = (self.threads.submit(decode_batch, *request) for request in requests)
        started = deque(islice(submitted, AHEAD * self.workers))
        try:
            while started:
                started.extend(islice(submitted, 1))
                rows, pixels, broken = started.popleft().result()
                self.report_broken(broken)
                if len(rows):
                    pixels = pixels.to(self.device, non_blocking=True)
                    yield rows.to(self.device), list(pixels.unbind(1))
        finally:
            for future in started:
                future.cancel()

    def requests(self, batches: Batches, order: np.ndarray, seed: int) -> Iterator[tuple]:
        """The arguments of `decode_batch`; of several ranks each decodes its part."""
        starts = range(0, len(order), batches.batch_size)
        for start in starts if batches.split_rows else distributed.rank_batches(starts):
            batch = order[start : start + batches.batch_size]
            own = batch[distributed.rank_rows(len(batch))] if batches.split_rows else batch
            index = np.concatenate([own, np.setdiff1d(batch, own)])
            pixels = self.new_batch(len(own), max(1, batches.views))
            yield batches.images, self.frame, index, pixels, seed if batches.views else None

    def report_broken(self, broken: dict[str, str]) -> None:
        """Name each broken photo once. Raises InputError unless skip_broken."""
        for path, reason in broken.items():
            if not self.skip_broken:
                raise InputError(
                    f"{path}: cannot be decoded ({reason}); repair or remove it, or exclude such "
                    "photos with --skip_broken"
                )
            if path not in self.named:
                Terminal().line(f"note: {path} is left out: it cannot be decoded ({reason})")
        self.named |= broken.keys()

"""Image files of any size and number, decoded by threads while the networks train.

A view depends on the seed of its pass, its photo and its number alone, and each pass's seed is the
next of the loader's generator: neither the number of threads nor a resume changes it.
"""

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smr import distributed
from smr.data.augment import Views, flip
from smr.data.decoding import is_one_color, reason_of, upright
from smr.data.loader import Batches, DatasetInfo, Loader
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


@dataclass(frozen=True)
class ImageFiles:
    """Image files relative to `root`."""

    root: Path
    files: Sequence[str]
    frame: Frame

    def __len__(self) -> int:
        return len(self.files)


@dataclass
class Decoded:
    """A decoded batch: the positions of its photos int64 [m], uint8 [m, views] whether each view is
    mirrored, its pixels uint8 [m, views, crop, crop, 3]; by path, reasons and notes."""

    rows: Tensor
    flipped: Tensor
    pixels: Tensor
    broken: dict[str, str]
    notes: dict[str, str]

    def to(self, device: torch.device) -> "Decoded":
        """The batch on a device."""
        tensors = (self.rows, self.flipped, self.pixels)
        moved = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Decoded(*moved, self.broken, self.notes)


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
    channels = pixels[None].permute(0, 3, 1, 2)
    channels = F.interpolate(channels, size=(height, width), mode="bilinear", antialias=True)
    return channels.permute(0, 2, 3, 1)[0]


def random_numbers(seed: int, position: int, view: int, count: int = 3) -> np.ndarray:
    """float64 [count] in [0, 1): how far down and right a view lies, whether it is mirrored.

    More than three are the attempts of `resized_window`.
    """
    return np.random.default_rng((seed, position, view)).random(count)


def resized_window(
    height: int, width: int, places: Sequence[float], attempts: np.ndarray
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a window of torchvision's RandomResizedCrop by default.

    Its area is 8 % to 100 % of the photo's, its aspect ratio 3/4 to 4/3. If no attempt fits into
    the photo, it is the largest central window.

    Args: in [0, 1): places float64 [2], how far down and right; attempts float64 [10, 2], area and
    aspect ratio (log-uniform) of each attempt.
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


def window_of(
    photo: Tensor, frame: Frame, numbers: Callable[[int], np.ndarray] | None
) -> tuple[Tensor, bool]:
    """A view uint8 [crop, crop, 3], not yet mirrored, and whether it is to be.

    Args: numbers returns so many random numbers; None for the window in the middle.
    """
    side, (high, wide) = frame.crop, photo.shape[:2]
    free = np.array([high, wide]) - side
    if numbers is None:
        top, left = np.round(free / 2).astype(int)
        return photo[top : top + side, left : left + side], False
    *places, mirror = numbers(3)
    if frame.random_resized:
        attempts = numbers(23)[3:].reshape(10, 2)
        top, left, height, width = resized_window(high, wide, places, attempts)
        photo = scaled_to(photo[top : top + height, left : left + width], side, side)
        return photo, bool(mirror < 0.5)
    top, left = (places * (free + 1)).astype(int)
    return photo[top : top + side, left : left + side], bool(mirror < 0.5)


def decode_batch(
    images: ImageFiles, index: np.ndarray, views: int = 0, seed: int = 0, spare: int = 0
) -> Decoded:
    """`views` views of each photo, which is decoded once; without views its middle.

    The last `spare` positions of `index` [b + spare] are used only if no photo of the batch can be
    decoded: a rank without an image would leave the others waiting.
    """
    frame, count = images.frame, len(index) - spare
    flipped = torch.zeros((count, max(1, views)), dtype=torch.uint8)
    pixels = torch.empty((*flipped.shape, frame.crop, frame.crop, 3), dtype=torch.uint8)
    rows, broken, notes = [], {}, {}
    for number, position in enumerate(index.tolist()):
        if number >= count and rows:
            break
        path = f"{images.root}/{images.files[position]}"
        try:
            photo = scaled(path, frame)
        except Exception as error:  # Pillow's decoders raise many types
            raise_if_exhausted(error)
            broken[path] = reason_of(error, path)
            continue
        if is_one_color(photo.numpy()):
            notes[path] = "is nearly of one color"
        for view in range(flipped.shape[1]):
            numbers = partial(random_numbers, seed, position, view) if views else None
            pixels[len(rows), view], flipped[len(rows), view] = window_of(photo, frame, numbers)
        rows.append(position)
    taken = slice(len(rows))
    return Decoded(
        torch.tensor(rows, dtype=torch.int64), flipped[taken], pixels[taken], broken, notes
    )


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


def copied_ahead(batches: Iterable[Decoded], device: torch.device) -> Iterator[Decoded]:
    """The batches on the device; on CUDA a batch is copied while the step before it runs."""
    if device.type != "cuda":
        yield from batches
        return
    stream, started = torch.cuda.Stream(device), deque()
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = batch.to(device)
            started.append((batch, copy, stream.record_event()))
        if len(started) > 1:
            yield arrived(*started.popleft())
    while started:
        yield arrived(*started.popleft())


def arrived(_source: Decoded, batch: Decoded, copied: torch.cuda.Event) -> Decoded:
    """The batch, for the present stream to use once it is copied from its pinned source."""
    present = torch.cuda.current_stream(batch.pixels.device)
    present.wait_event(copied)
    for tensor in (batch.rows, batch.flipped, batch.pixels):
        tensor.record_stream(present)  # else the next copy could reuse its memory too early
    return batch


class ImageFileLoader(Loader):
    """A `Loader` of image files.

    Args: tests, test set → its files and their labels int64 [n]; info, whose image_size and frame
    are set here; workers, threads that decode; skip_broken, exclude files that cannot be decoded
    instead of raising an InputError. The others are those of `Loader`.
    """

    def __init__(
        self,
        train: ImageFiles,
        train_labels: np.ndarray,
        tests: Mapping[str, tuple[ImageFiles, np.ndarray]],
        views: Views,
        info: DatasetInfo,
        workers: int = 0,
        skip_broken: bool = False,
        **options,
    ):
        frame = train.frame
        info.image_size = [frame.crop, frame.crop]
        info.frame = [frame.resize, frame.crop, frame.square]  # of photos that are not augmented
        files = list(train.files)
        super().__init__(train, train_labels, tests, views, info, files=files, **options)
        self.workers = max(1, distributed.rank_workers(workers))
        on_gpu = self.device.type == "cuda"
        self.decode = pinned(decode_batch) if on_gpu else decode_batch
        set_device = {"initializer": torch.cuda.set_device, "initargs": (self.device,)}
        self.threads = ThreadPoolExecutor(self.workers, "decode", **(set_device if on_gpu else {}))
        self.skip_broken = skip_broken
        self.named: set[str] = set()

    def thumbnails(self, index: np.ndarray) -> np.ndarray:
        """The middle of the training photos at these positions, uint8 [k, crop, crop, 3]."""
        side = self.train_images.frame.crop
        shown = np.zeros((len(index), side, side, 3), dtype=np.uint8)
        for number, position in enumerate(index):
            batch = decode_batch(self.train_images, np.array([position]))
            if len(batch.rows):
                shown[number] = batch.pixels[0, 0].numpy()
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

        A photo that cannot be decoded is named once, and missing in its batch.
        """
        requests = self.requests(batches, order, seed)
        for batch in copied_ahead(self.decode_ahead(requests), self.device):
            self.name_photos(batch)
            if len(batch.rows):
                views = zip(batch.pixels.unbind(1), batch.flipped.unbind(1), strict=True)
                yield batch.rows, [flip(*view) for view in views]

    def requests(self, batches: Batches, order: np.ndarray, seed: int) -> Iterator[tuple]:
        """The arguments of `decode_batch`; of several ranks each decodes its part."""
        starts = range(0, len(order), batches.batch_size)
        for start in starts if batches.split_rows else distributed.rank_batches(starts):
            batch = order[start : start + batches.batch_size]
            own = batch[distributed.rank_rows(len(batch))] if batches.split_rows else batch
            spare = np.setdiff1d(batch, own)
            yield batches.images, np.concatenate([own, spare]), batches.views, seed, len(spare)

    def decode_ahead(self, requests: Iterable[tuple]) -> Iterator[Decoded]:
        """The decoded batches in order, some of them decoded ahead. Raises InputError."""
        started: deque[Future] = deque()
        try:
            for request in requests:
                started.append(self.threads.submit(self.decode, *request))
                if len(started) > AHEAD * self.workers:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        except (MemoryError, RuntimeError) as error:
            raise_if_exhausted(error)
            raise
        finally:
            for future in started:
                future.cancel()

    def name_photos(self, batch: Decoded) -> None:
        """Print each problem of a photo once. Raises InputError unless skip_broken."""
        for path, reason in batch.broken.items():
            if not self.skip_broken:
                raise InputError(
                    f"{path}: cannot be decoded ({reason}); repair or remove it, or exclude such "
                    "photos with --skip_broken"
                )
            if path not in self.named:
                Terminal().line(f"left out {path}, which cannot be decoded ({reason})")
        for path, note in batch.notes.items():
            if path not in self.named:
                Terminal().line(f"note: {path} {note}")
        self.named |= {*batch.broken, *batch.notes}


def pinned(decode: Callable[..., Decoded]) -> Callable[..., Decoded]:
    """The same with its tensors in pinned memory, from which a GPU copies in the background."""

    def decode_pinned(*request) -> Decoded:
        batch = decode(*request)
        tensors = (batch.rows, batch.flipped, batch.pixels)
        return Decoded(*(tensor.pin_memory() for tensor in tensors), batch.broken, batch.notes)

    return decode_pinned

"""Photos of any size and number, decoded by worker processes while the networks train (method 1).

A view is drawn from its pass's seed, its photo and its number alone, and each pass's seed from the
loader's generator: neither the number of workers nor where a run was resumed changes it.
"""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smr import distributed
from smr.data.augment import distorted
from smr.data.decoding import reason_of, upright
from smr.data.loader import BaseLoader, Rows
from smr.data.memory_dataset import Normalizer, Views, mirrored
from smr.errors import InputError
from smr.logging.console import Terminal

# ImageNet's constants, which torchvision's weights were trained with.
IMAGENET_VIEWS = Views((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), flip=True)


@dataclass(frozen=True)
class Frame:
    """How a photo becomes an image: its shorter side scaled to `resize`, a window of `crop` cut.

    `square` leaves the ends of its longer side away first.
    """

    resize: int
    crop: int
    square: bool = False


@dataclass(frozen=True)
class Photos:
    """Image files relative to `root`, and how they are served."""

    root: Path
    files: Sequence[str]
    frame: Frame

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Request:
    """What a worker needs for a batch: files, their positions int64 [b], and how many views.

    Without views, one window in the middle of each. The last `spare` files are for a batch of which
    nothing else can be decoded: a rank with no image would leave the others waiting.
    """

    paths: list[str]
    index: np.ndarray
    views: int
    seed: int
    frame: Frame
    spare: int = 0


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
    pixels = torch.from_numpy(np.array(image))
    if image.size == (width, height):
        return pixels
    # torch's filter is Pillow's, within a level, and several times as fast.
    channels = pixels[None].permute(0, 3, 1, 2)
    channels = F.interpolate(channels, size=(height, width), mode="bilinear", antialias=True)
    return channels.permute(0, 2, 3, 1)[0]


def drawn(seed: int, position: int, view: int) -> np.ndarray:
    """float64 [3] in [0, 1): how far down and right a view lies, and whether it is mirrored."""
    return np.random.default_rng((seed, position, view)).random(3)


def cut(request: Request) -> tuple[Tensor, Tensor, Tensor, dict[str, str]]:
    """The views of a request, each photo decoded once.

    Returns int64 [m], the positions of the photos that could be decoded; whether each view is to
    be mirrored, uint8 [m, views]; its pixels, uint8 [m, views, crop, crop, 3]; and path → reason
    of the others.
    """
    side, views = request.frame.crop, max(1, request.views)
    wanted = len(request.paths) - request.spare
    flipped = torch.zeros((wanted, views), dtype=torch.uint8)
    pixels = torch.empty((wanted, views, side, side, 3), dtype=torch.uint8)
    kept, broken = [], {}
    files = zip(request.index.tolist(), request.paths, strict=True)
    for number, (position, path) in enumerate(files):
        if number >= wanted and kept:
            break
        try:
            photo = scaled(path, request.frame)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever they stumble over
            broken[path] = reason_of(error)
            continue
        free = np.array(photo.shape[:2]) - side
        for view in range(views):
            top, left = np.round(free / 2).astype(int)
            if request.views:
                *places, mirror = drawn(request.seed, position, view)
                top, left = (places * (free + 1)).astype(int)
                flipped[len(kept), view] = int(mirror < 0.5)
            pixels[len(kept), view] = photo[top : top + side, left : left + side]
        kept.append(position)
    return torch.tensor(kept, dtype=torch.int64), flipped[: len(kept)], pixels[: len(kept)], broken


class Decoder(Dataset):
    """`cut` as torch's DataLoader takes it; it holds nothing, so that workers hold nothing."""

    def __getitem__(self, request: Request):
        return cut(request)


class Passed:
    """What a DataLoader asks for the requests of its next pass, as it would a sampler."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


def end_quietly_when_told(_worker: int) -> None:
    """Have a worker end by SIGTERM without an error: who stops all processes told the run too."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


class Team:
    """Worker processes that serve one pass at a time and stay for the next."""

    def __init__(self, workers: int, pin_memory: bool):
        # Apart from the team: in a cycle of references the workers would not hear of their end.
        self.passed = Passed()
        self.loader = DataLoader(
            Decoder(),
            sampler=self.passed,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else it draws from the one that training draws from
            worker_init_fn=end_quietly_when_told,
        )

    def serve(self, requests: Iterable[Request]) -> Iterator[tuple]:
        """What `cut` makes of each request, in their order. Raises InputError."""
        self.passed.requests = requests
        try:
            yield from self.loader
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise InputError(
                f"a process that decodes photos died ({str(error).splitlines()[0]}): lower "
                "--num_workers, or give this machine or container more (shared) memory"
            ) from error


def copied_ahead(batches: Iterable[tuple], device: torch.device) -> Iterator[tuple]:
    """Batches (Tensor, …, other) with their tensors on the device.

    On CUDA a batch is copied, from pinned memory, while the step on the one before runs.
    """
    if device.type != "cuda":
        for *tensors, other in batches:
            yield *(tensor.to(device) for tensor in tensors), other
        return
    stream, started = torch.cuda.Stream(device), deque()
    for *tensors, other in batches:
        with torch.cuda.stream(stream):
            copies = [tensor.to(device, non_blocking=True) for tensor in tensors]
            started.append((copies, other, stream.record_event()))
        if len(started) > 1:
            yield arrived(*started.popleft())
    while started:
        yield arrived(*started.popleft())


def arrived(tensors: Sequence[Tensor], other, copied: torch.cuda.Event) -> tuple:
    """The batch, once it is copied, for the present stream to use."""
    present = torch.cuda.current_stream(tensors[0].device)
    present.wait_event(copied)
    for tensor in tensors:
        tensor.record_stream(present)  # else its memory could be the next copy's too early
    return *tensors, other


class StreamBatches:
    """Batches of (view, …, column, …) of photos; the arguments are those of `loaders.Batches`.

    Args: trained, share each batch out among the ranks also where it has no augmented views.
    A photo that cannot be decoded is named once, and is missing in its batch.
    """

    def __init__(
        self,
        loader: "StreamLoader",
        photos: Photos,
        index: Tensor,
        columns: Sequence[Tensor],
        batch_size: int,
        views: int,
        shuffle: bool,
        strong: bool = False,
        trained: bool = False,
    ):
        self.loader = loader
        self.photos = photos
        self.dataset = Rows(index)
        self.columns = columns
        self.batch_size = batch_size
        self.views = views
        self.shuffle = shuffle
        self.strong = strong
        self.trained = trained or views > 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def requests(self, index: np.ndarray, seed: int) -> Iterator[Request]:
        """A pass over the photos at these positions; of several ranks each asks for its part."""
        photos = self.photos
        starts = range(0, len(index), self.batch_size)
        for start in starts if self.trained else distributed.rank_batches(starts):
            batch = index[start : start + self.batch_size]
            own = batch[distributed.rank_rows(len(batch))] if self.trained else batch
            spare = np.setdiff1d(batch, own)
            rows = np.concatenate([own, spare])
            paths = [f"{photos.root}/{photos.files[i]}" for i in rows]
            yield Request(paths, rows, self.views, seed, photos.frame, len(spare))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        loader, index = self.loader, self.dataset.index.cpu().numpy()
        if not len(index):
            return
        seed = loader.new_seed() if self.views or self.shuffle else 0
        if self.shuffle:
            index = np.random.default_rng(seed).permutation(index)
        source = distributed.rank_generator(loader.generator) if self.strong else None
        with loader.team() as team:
            batches = team.serve(self.requests(index, seed))
            for rows, flipped, pixels, broken in copied_ahead(batches, loader.device):
                loader.name_broken(broken)
                if len(rows):
                    drawn = zip(pixels.unbind(1), flipped.unbind(1), strict=True)
                    views = [mirrored(*view) for view in drawn]
                    if source:
                        views += distorted(torch.cat(views), source).split(len(rows))
                    images = map(loader.finished, views)
                    yield *images, *(column[rows] for column in self.columns)


class StreamLoader(BaseLoader):
    """A `Loader` over photos on disk.

    Args: tests, test set → its photos and their labels int64 [n]; workers, processes that decode
    in each of the passes that run side by side (0: this process does it); skip_broken, leave out
    what cannot be decoded instead of raising an InputError; facts, of config.json, beside those of
    the photos. The others are those of BaseLoader.
    """

    def __init__(
        self,
        train: Photos,
        train_labels: np.ndarray,
        tests: Mapping[str, tuple[Photos, np.ndarray]],
        views: Views,
        class_names: list[str],
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int = 0,
        skip_broken: bool = False,
        facts: dict | None = None,
    ):
        side = train.frame.crop
        facts = {
            "image_size": [side, side],
            "mean": views.mean,
            "std": views.std,
            "frame": list(astuple(train.frame)),
            "data_notes": [],
        } | (facts or {})
        super().__init__(
            *(train, train_labels, tests, class_names, batch_size, seed, device, facts),
            files=train.files,
        )
        self.normalized = Normalizer(views, side, device, channels_last)
        workers = distributed.rank_workers(workers)
        self.new_team = partial(Team, workers, pin_memory=self.device.type == "cuda")
        self.idle_teams: list[Team] = []
        self.skip_broken = skip_broken
        self.broken: dict[str, str] = {}

    def thumbnails(self, index: np.ndarray) -> np.ndarray:
        """The middle of the training photos at these positions, uint8 [k, crop, crop, 3]."""
        photos = self.train_images
        paths = [f"{photos.root}/{photos.files[i]}" for i in index]
        kept, _, pixels, _ = cut(Request(paths, np.arange(len(index)), 0, 0, photos.frame))
        shown = np.zeros((len(index), *pixels.shape[2:]), dtype=np.uint8)
        shown[kept.numpy()] = pixels[:, 0].numpy()
        return shown

    def new_seed(self, generator: torch.Generator | None = None) -> int:
        """A pass's seed, the next of the loader's generator, or of another."""
        generator = generator or self.generator
        return int(torch.randint(2**62, (), generator=generator, device=self.device))

    @contextmanager
    def team(self) -> Iterator[Team]:
        """A team for a pass: one that is idle, or a new one where all serve another pass."""
        team = self.idle_teams.pop() if self.idle_teams else self.new_team()
        try:
            yield team
        finally:
            self.idle_teams.append(team)

    def finished(self, pixels: Tensor) -> Tensor:
        """uint8 [b, side, side, 3] as the networks take it: float32 [b, 3, side, side]."""
        return self.normalized(pixels.flatten(2))

    def name_broken(self, broken: dict[str, str]) -> None:
        """Name each photo, path → reason, the first time. Raises InputError unless skip_broken."""
        for path, reason in broken.items():
            if not self.skip_broken:
                raise InputError(
                    f"{path}: cannot be decoded ({reason}); mend or remove it, or leave such "
                    "photos out with --skip_broken"
                )
            if path not in self.broken:
                Terminal().line(f"left out {path}, which cannot be decoded ({reason})")
        self.broken |= broken

    def _batches(self, images, index, columns, batch_size, views, shuffle, strong=False):
        return StreamBatches(self, images, index, columns, batch_size, views, shuffle, strong)

"""A frozen backbone: its features of every photo once, and a loader that serves them as images.

The heads that train on them are last layers of the network. A whole network is the backbone with a
trained head in its place, and loads like any other.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from smr import devices, distributed
from smr.data.loader import Batches, Loader
from smr.errors import InputError
from smr.evaluate import predict_batches
from smr.files import atomic_write, write_json
from smr.logging.console import Terminal, duration
from smr.networks import head_of

# Photos that the backbone takes at once.
CHUNK = 32
# Features that a head takes at once where all views are served.
WHOLE_BATCH = 10_000
# In the run folder.
FOLDER = "features"
# The part of the memory that features may take.
MEMORY_SHARE = 0.5


class FeatureLoader(Loader):
    """The photos of another loader as features: its images are float32 [b, d].

    An augmented view of a photo is one of its augmented feature views, chosen at random. Features
    are divided by `scale`, the root mean square of the plain ones.

    Args: train, float16 [n, views, d] on the device of `photos`; view 0 is the plain one. tests,
    test set → float16 [n, d].
    """

    def __init__(self, photos: Loader, train: Tensor, tests: dict[str, Tensor]):
        vars(self).update(vars(photos))
        self.train_images, self.thumbnails = train, photos.thumbnails
        self.info = replace(photos.info)
        self.tests = {name: (tests[name][:, None], photos.tests[name][1]) for name in tests}
        self.generator = photos.generator.clone_state()
        self.scale = float(train[:, 0].float().pow(2).mean().sqrt()) or 1.0
        self.normalize = lambda features: features.float() / self.scale

    def run(self, mode: str, *args, **options):
        """The modes of `Loader.run`; 'whole' serves every view of every training photo."""
        if mode != "whole":
            return super().run(mode, *args, **options)
        images, views = self.train_images.flatten(0, 1)[:, None], self.train_images.shape[1]
        columns = [c.repeat_interleave(views) for c in (self.noisy_labels, self.train_index)]
        index = torch.arange(len(images), device=self.device)
        return Batches(self, images, index, columns, WHOLE_BATCH)

    def serve(
        self, batches: Batches, order: Tensor, seed: int
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Positions of this rank's photos, and their views' features [b, d]."""
        values, groups = batches.images, order.split(batches.batch_size)
        if not batches.views:
            for rows in distributed.rank_batches(groups):
                yield rows, [values[rows, 0]]
            return
        for rows in groups:
            own = distributed.rank_rows(len(rows))
            views = self.random_views(values.shape[1], len(rows), batches.views)[own]
            yield rows[own], [values[rows[own], view] for view in views.unbind(1)]

    def random_views(self, views: int, photos: int, count: int) -> Tensor:
        """int64 [photos, count]: augmented views, distinct ones if there are enough."""
        draw = {"generator": self.generator, "device": self.device}
        augmented = views - 1
        if augmented >= count:
            return 1 + torch.rand((photos, augmented), **draw).argsort(dim=1)[:, :count]
        return torch.randint(min(1, augmented), views, (photos, count), **draw)

    def _scoring_batch_size(self, count: int) -> int:
        return distributed.rank_share(count)


def read_key(folder: Path) -> dict:
    """What the features in this folder depend on; {} without any."""
    path = folder / "key.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def prepare_folder(folder: Path, key: dict) -> None:
    """Make the folder of features; delete those of another key."""
    folder.mkdir(parents=True, exist_ok=True)
    if read_key(folder) != key:
        for path in folder.glob("*.npy"):
            path.unlink()
        write_json(folder / "key.json", key)


def pass_features(backbone: nn.Module, batches: Batches, amp: bool, progress: "Progress") -> Tensor:
    """float16 [n, d] on the CPU: the backbone's output for each image of the batches."""
    parts, positions, cpu = [], [], torch.device("cpu")
    for (output,), _, index in predict_batches([backbone], in_chunks(batches), amp):
        parts.append(output.half().cpu())
        positions.append(index.cpu())
        progress.add(len(index) * distributed.world_size())
    outputs = torch.cat(distributed.all_gather_tensors(parts, cpu))
    values = torch.zeros((len(batches.images), outputs.shape[1]), dtype=torch.float16)
    # A photo that cannot be decoded has zeros.
    values[torch.cat(distributed.all_gather_tensors(positions, cpu))] = outputs
    return values


def in_chunks(batches: Batches) -> Iterator[tuple[Tensor, ...]]:
    """The batches in smaller ones: heads train on larger batches than photos fit into memory."""
    for batch in batches:
        yield from zip(*(column.split(CHUNK) for column in batch), strict=True)


def refuse_too_large(size: int, device: torch.device) -> None:
    """Raise InputError if so many bytes of features do not fit into the device's memory."""
    memory = devices.memory_of(device)
    if memory and size > MEMORY_SHARE * memory:
        raise InputError(
            f"--freeze_backbone on: the features take {size / 2**30:.1f} GiB of "
            f"{memory / 2**30:.1f} GiB; use fewer --feature_views, a --network with fewer "
            "features, or --freeze_backbone off"
        )


class Progress:
    """The progress line of an extraction, over all passes."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.started, self.terminal = time.monotonic(), Terminal()

    def add(self, photos: int) -> None:
        """Add photos that are done."""
        self.done += photos
        if self.terminal.due():
            rate = self.done / (time.monotonic() - self.started)
            left = duration((self.total - self.done) / rate)
            self.terminal.progress(
                f"features: {self.done:,} of {self.total:,} views  {rate:.0f} images/s, {left} left"
            )


class FrozenBackbone:
    """A network without its last layer, and how trained heads make it whole again.

    Raises InputError if the last layer is no linear layer.
    """

    scale = 1.0  # of the features that heads see

    def __init__(self, network: nn.Module):
        self.head = head_of(network)
        layer = network.get_submodule(self.head)
        if not isinstance(layer, nn.Linear):
            raise InputError("--freeze_backbone on: this --network does not end in a linear layer")
        self.classes, self.features = layer.out_features, layer.in_features
        network.set_submodule(self.head, nn.Identity())
        self.network = network.requires_grad_(False)

    def extract(
        self, photos: Loader, views: int, folder: Path, data: object, amp: bool = False
    ) -> FeatureLoader:
        """The features of all photos: those in `folder`, if it has the same, or computed.

        Args: views, augmented views of each training photo, beside the plain one; data, what tells
        these photos from others, in JSON's types. An interrupted extraction resumes at the pass
        that was interrupted. Raises InputError if the features do not fit into memory.
        """
        key = {"data": data, "weights": self.checksum(), "views": views}
        photos.info.data_notes.append(
            f"features: the plain and {views} augmented views of each image, weights sha256 "
            + key["weights"]
        )
        if distributed.is_rank_zero():
            prepare_folder(folder, key)
        state, outputs = photos.generator.get_state(), {}
        passes = {"train_0": photos.run("whole")}
        passes |= {name: photos.run(name) for name in photos.test_sets}
        augmented = photos.supervised(photos.train_index)
        passes |= dict.fromkeys((f"train_{v}" for v in range(1, views + 1)), augmented)
        progress = Progress(sum(len(batches.images) for batches in passes.values()))
        refuse_too_large(2 * self.features * progress.total, photos.device)
        self.network.to(photos.device, memory_format=torch.channels_last)
        for number, (name, batches) in enumerate(passes.items()):
            path = folder / f"{name}.npy"
            # Rank 0 decides: the others may already see the file that it is writing.
            if not distributed.from_rank_zero(path.exists):
                # Each pass has its own seed: a resumed extraction draws the same views.
                photos.generator.manual_seed(number)
                values = pass_features(self.network, batches, amp, progress)
                if distributed.is_rank_zero():
                    with atomic_write(path) as file:
                        np.save(file, values.numpy())
                distributed.all_gather(None)  # the other ranks read what rank 0 wrote
            outputs[name] = torch.from_numpy(np.load(path)).to(photos.device)
        photos.generator.set_state(state)
        train = torch.stack([outputs.pop(f"train_{v}") for v in range(views + 1)], dim=1)
        loader = FeatureLoader(photos, train, outputs)
        self.scale = loader.scale
        return loader

    def new_head(self) -> nn.Linear:
        """A fresh last layer: float [b, classes] of scaled features [b, d]."""
        return nn.Linear(self.features, self.classes)

    def whole_state(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the whole network with the state dict of a head."""
        state = {name: value.cpu() for name, value in self.network.state_dict().items()}
        weight, bias = head["weight"] / self.scale, head["bias"]
        return state | {f"{self.head}.weight": weight, f"{self.head}.bias": bias}

    def head_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The head's state dict, of its own or of the whole network's."""
        if "weight" in state:
            return state
        weight, bias = (state[f"{self.head}.{name}"] for name in ("weight", "bias"))
        return {"weight": weight * self.scale, "bias": bias}

    def checksum(self) -> str:
        """SHA-256 of the weights."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

"""A run's two networks as one module that takes photos: `smr.load`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from smr import networks
from smr.data.image_file_dataset import Frame, scaled, view_of
from smr.run import checkpoints
from smr.training import Pair


class Predictor(nn.Module):
    """uint8 images [b, height, width, 3] to probabilities float32 [b, classes] (method 3).

    classes: their names. side: of the images. frame: how photos become images; the middle square,
    if the training images were no photos. Args: images, a checkpoint's description of them.
    """

    def __init__(self, trained: Sequence[nn.Module], images: dict):
        super().__init__()
        self.networks = nn.ModuleList(trained)
        mean, std = torch.tensor(images["mean"]), torch.tensor(images["std"])
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.classes, self.side = images["class_names"], images["image_size"][0]
        self.frame = Frame(*(images["frame"] or (self.side, self.side, True)))

    def forward(self, images: Tensor) -> Tensor:
        normalized = (images.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        logits = torch.stack([network(normalized) for network in self.networks])
        return torch.softmax(logits.mean(dim=0), dim=1)

    def read(self, path: str | Path) -> np.ndarray:
        """A photo as the networks were tested on such: uint8 [side, side, 3].

        Raises whatever Pillow raises.
        """
        return view_of(scaled(path, self.frame), self.frame, None).numpy()


def load(path: str | Path) -> Predictor:
    """The networks of a checkpoint or of a run folder's best.pt, in eval mode on the CPU.

    Raises InputError. Nothing in the file is run.
    """
    path = checkpoints.path_of(path, "best.pt")
    state = checkpoints.load(path)
    config = state["config"]
    with checkpoints.fitting(path, "a damaged checkpoint"):
        name, width = config.get("network", networks.PREACT), config["width"]
        pair = Pair([networks.untrained(name, config["num_class"], width) for _ in range(2)], [])
        predictor = Predictor(pair.networks, state["images"])
    checkpoints.restore_networks(state, pair, path)
    return predictor.eval()

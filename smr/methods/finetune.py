"""Fine-tuning after the frozen stage (TURN: Ahn et al., 2023): whole networks on the clean set."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from smr.gmm_split import Split
from smr.methods.base import Method
from smr.training import cross_entropy_epoch


class FineTuning(Method):
    """Cross-entropy on the photos that are no label issues of the frozen stage.

    It follows another method on the same photos, so no --method names it. DEFAULTS replace the
    hyperparameters of the heads; they are Clothing1M's.
    """

    DEFAULTS: ClassVar = {"batch_size": 32, "lr": 0.002, "lr_steps": (), "weight_decay": 1e-3}

    def __init__(self, config, pair, loader, log=None):
        super().__init__(config, pair, loader, log)
        for module in (each for network in pair.networks for each in network.modules()):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # The pre-trained batch norm statistics stay: those of few photos are noise.
                module.eval().train = lambda mode=True, module=module: module

    def use(self, clean_index: torch.Tensor) -> None:
        """Train on the photos at these positions, int64 [m]."""
        self.clean_index = clean_index.to(self.loader.device)
        self.loader.batch_size = self.config.batch_size

    def kind_of_epoch(self, epoch: int) -> str:
        return "fine-tuning"

    def train(self, epoch: int) -> tuple[list[dict[str, float]], tuple[Split, ...]]:
        return self.for_each_network(epoch, self.train_network), ()

    def train_network(self, k: int, progress: Callable) -> dict[str, float]:
        """An epoch of network k over the clean set, in batches of 2B."""
        network, optimizer = self.pair.trained[k], self.pair.optimizers[k]
        batches = self.loader.supervised(self.clean_index)
        return cross_entropy_epoch(network, optimizer, batches, self.config, progress)

    def state_dict(self) -> dict:
        return {"clean_index": self.clean_index}

    def load_state_dict(self, state: dict) -> None:
        self.use(state["clean_index"])

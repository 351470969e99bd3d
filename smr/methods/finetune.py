"""Fine-tuning after the frozen stage (TURN: Ahn et al., 2023): whole networks on the clean set."""

from collections.abc import Callable

import torch

from smr.gmm_split import Split
from smr.methods.base import Method
from smr.training import cross_entropy_epoch


class FineTuning(Method):
    """Cross-entropy on the images at `clean_index`, whose labels the frozen stage trusts.

    It follows another method on the same photos, so no --method names it.
    """

    clean_index: torch.Tensor

    def kind_of_epoch(self, epoch: int) -> str:
        return "fine-tuning"

    def train(self, epoch: int) -> tuple[list[dict[str, float]], tuple[Split, ...]]:
        self.loader.train_index = self.clean_index.to(self.loader.device)
        return self.for_each_network(epoch, self.train_network), ()

    def train_network(self, k: int, progress: Callable) -> dict[str, float]:
        """An epoch of network k over the clean set, in batches of 2B."""
        network, optimizer = self.pair.trained[k], self.pair.optimizers[k]
        batches = self.loader.run("warmup")
        return cross_entropy_epoch(network, optimizer, batches, self.config, progress)

    def state_dict(self) -> dict:
        return {"clean_index": self.clean_index}

    def load_state_dict(self, state: dict) -> None:
        self.clean_index = state["clean_index"]

"""Plain cross-entropy on the noisy labels in every epoch, the baseline (method 6)."""

from collections.abc import Callable

from smr.gmm_split import Split
from smr.methods.base import Method
from smr.training import cross_entropy_epoch


class CrossEntropy(Method):
    """Two networks, each trained separately on the noisy labels."""

    NAME = "ce"

    def kind_of_epoch(self, epoch: int) -> str:
        return "cross-entropy"

    def train(self, epoch: int) -> tuple[list[dict[str, float]], tuple[Split, ...]]:
        def train_network(k: int, progress: Callable) -> dict[str, float]:
            network, optimizer = self.pair.trained[k], self.pair.optimizers[k]
            batches = self.loader.run("warmup")
            return cross_entropy_epoch(network, optimizer, batches, self.config, progress)

        return self.for_each_network(epoch, train_network), ()

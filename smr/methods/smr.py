"""SMR: mixup warm-up, GMM co-divide, MixMatch, recalibration (Zhang et al., Mathematics 2024)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from losses import LAMBDA_U
from smr.errors import NonFiniteLoss
from smr.evaluate import sample_losses
from smr.flags import flag
from smr.gmm_split import SampleLosses, Split, gmm_split, with_losses
from smr.methods.base import Method
from smr.training import cross_entropy_epoch, mixmatch_epoch, mixup_epoch

WARM_UP, SEMI_SUPERVISED, RECALIBRATION = "warm-up", "semi-supervised", "recalibration"


class SMR(Method):
    """Two networks that split the training set for each other (docs/method.md, sections 3 to 5)."""

    NAME = "smr"

    @dataclass
    class Flags:
        """DivideMix's published constants for CIFAR, kept by SMR, and SMR's own two parts."""

        warm_up: int = flag("epochs of warm-up, before noisy labels are memorized", low=0)
        warmup_loss: str = flag(
            "loss of the warm-up",
            fallback="mixup",
            choices=("mixup", "ce"),
            shown_default="mixup; dividemix ce",
        )
        recalibrate_every: int = flag(
            "epochs between recalibrations by cross-entropy, after the warm-up; 0 for never",
            low=0,
            metavar="K",
        )
        alpha: float = flag(
            "parameter of mixup's Beta(alpha, alpha); larger values mix more evenly",
            fallback=4.0,
            above=0,
        )
        T: float = flag("sharpening temperature of soft labels", default=0.5, above=0)
        p_threshold: float = flag(
            "clean probability above which an image is labeled", default=0.5, low=0, high=1
        )
        lambda_u: float = flag(
            "weight of the unlabeled loss Lu",
            fallback=LAMBDA_U,
            low=0,
            shown_default="the published value",
        )
        augment: str = flag(
            "strong: strong augmentation of the mixed images; the targets are of weak views",
            default="weak",
            choices=("weak", "strong"),
        )

    def kind_of_epoch(self, epoch: int) -> str:
        """Warm-up, semi-supervised or recalibration (method 3)."""
        k = self.config.recalibrate_every
        if epoch < self.config.warm_up:
            return WARM_UP
        if k and (epoch + 1) % k == 0 and epoch > self.config.warm_up:
            return RECALIBRATION
        return SEMI_SUPERVISED

    def train(self, epoch: int) -> tuple[list[dict[str, float]], tuple[Split, ...]]:
        """One epoch of method 3."""
        kind, splits = self.kind_of_epoch(epoch), ()
        if kind == WARM_UP:
            train_network = self.warm_up
        elif kind == RECALIBRATION:
            train_network = self.recalibrate
        else:
            # Both splits are made before either network is trained.
            splits = self.co_divide()

            def train_network(k: int, progress: Callable) -> dict[str, float]:
                return self.mixmatch(k, splits[1 - k], epoch, progress)

        return self.for_each_network(epoch, train_network), splits

    def warm_up(self, k: int, progress: Callable) -> dict[str, float]:
        """An epoch of the robust mixup loss, or of CE as in DivideMix (method 3, 6)."""
        network, optimizer = self.pair.trained[k], self.pair.optimizers[k]
        batches = self.loader.run("warmup")
        if self.config.warmup_loss == "mixup":
            return mixup_epoch(network, optimizer, batches, self.config, progress)
        penalty = self.config.entropy_penalty
        return cross_entropy_epoch(network, optimizer, batches, self.config, progress, penalty)

    def recalibrate(self, k: int, progress: Callable) -> dict[str, float]:
        """An epoch of CE on all noisy labels (method 3)."""
        network, optimizer = self.pair.trained[k], self.pair.optimizers[k]
        batches = self.loader.run("recalibrate")
        return cross_entropy_epoch(network, optimizer, batches, self.config, progress)

    def co_divide(self) -> tuple[Split, ...]:
        """Each network's split of the images by the GMM of its losses (method 4).

        Raises NonFiniteLoss.
        """
        r, seed, p_threshold = self.config.r, self.config.seed, self.config.p_threshold
        for k, network in enumerate(self.pair.networks):
            losses = sample_losses(network, self.loader.run("eval_train"), self.config.amp)
            if not torch.isfinite(losses.losses).all():
                raise NonFiniteLoss(f"network {k + 1}, scoring: a sample's loss is not finite")
            self.histories[k] = with_losses(self.histories[k], losses, r)
        return tuple(gmm_split(history, r, seed, p_threshold) for history in self.histories)

    def mixmatch(self, k: int, split: Split, epoch: int, progress: Callable) -> dict[str, float]:
        """Network k's semi-supervised epoch on its peer's split (method 5)."""
        if not split.labeled.any():
            instead = "training with cross-entropy for this epoch"
            self.note(f"network {k + 1}: the clean set is empty; {instead}")
            return self.recalibrate(k, progress)
        if split.labeled.all():
            self.note(f"network {k + 1}: the noisy set is empty; training on labeled images")
        labeled, unlabeled = self.loader.run(
            "train",
            split.labeled,
            split.clean_probability,
            split.index,
            with_true_labels=self.loader.is_clean is not None,
            strong=self.config.augment == "strong",
        )
        return mixmatch_epoch(
            self.pair.trained[k],
            peer=self.pair.networks[1 - k],
            optimizer=self.pair.optimizers[k],
            labeled=labeled,
            unlabeled=unlabeled,
            epoch=epoch,
            config=self.config,
            progress=progress,
        )

    def state_dict(self) -> dict:
        return {"histories": [[tuple(losses) for losses in each] for each in self.histories]}

    def load_state_dict(self, state: dict) -> None:
        device = self.loader.device
        self.histories = [
            [SampleLosses(index.to(device), losses.to(device)) for index, losses in history]
            for history in state["histories"]
        ]
        for each in self.histories[0] + self.histories[1]:
            fits = len(each.index) == len(each.losses) <= len(self.loader.noisy_labels)
            if not fits or not torch.isfinite(each.losses).all():
                raise ValueError("its losses are not of these images")

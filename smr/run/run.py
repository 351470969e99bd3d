"""A run: its configuration, folder and checkpoints, and what each epoch writes."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from smr import devices, distributed, features, networks
from smr.config import Config, configure, resumed
from smr.data.fingerprint import content_fingerprint
from smr.data.loader import Loader
from smr.data.memory_dataset import SCORING_BATCH
from smr.data.noise_file import label_list
from smr.errors import InputError
from smr.evaluate import Test, evaluate
from smr.files import write_json, write_text
from smr.flags import parse
from smr.label_issues import report
from smr.logging.console import Terminal
from smr.logging.metrics_file import RunRecord
from smr.methods import Method, TrainedEpoch, new_method
from smr.methods.finetune import FineTuning
from smr.run import checkpoints, messages, run_dir
from smr.training import Pair, new_pair

# What the networks start from, if a checkpoint holds them.
FROM_CHECKPOINT = {"pretrained": False, "weights": ""}
# Pixels of images on which a second CPU thread does not pay.
TINY_IMAGE = 16 * 16


class Run:
    """A run of a training script, between its command line and its exit status.

    A script uses it in this order: `config`, `load`, `new_pair`, `new_method`, `epochs` with
    `log` and `save` in each, `report_label_issues`. With --evaluate there is no epoch to train.

    Args: usage, the script's docstring; argv, the command line. Raises InputError.
    """

    def __init__(self, config_class: type[Config], usage: str, argv: list[str] | None):
        self.given, self.action = parse(config_class, usage, argv)
        self.config_class, self.script = config_class, script_of(config_class)
        # The checkpoint to start from, and the rows of metrics.jsonl until then.
        self.state: dict | None = None
        self.rows: list[dict] = []
        # With --freeze_backbone: the backbone, and what its features depend on.
        self.frozen: features.FrozenBackbone | None = None
        self.features_key: dict = {}
        # TensorBoard's pictures of the label issues, once these are written.
        self.pictures: dict | None = None
        # Rank 0 writes; the other ranks have no record.
        self.record: RunRecord | None = None
        self.exit_stack = ExitStack()

    def __enter__(self) -> "Run":
        with self.exit_stack:
            values, self.checkpoint_path, self.state = distributed.from_rank_zero(self.open)
            self.folder = self.checkpoint_path.parent
            self.config = configure(self.config_class, **values)
            gpuid = distributed.local_rank() if distributed.launched() else self.config.gpuid
            self.device = devices.find_device(self.config.device, gpuid)
            if distributed.world_size() > 1 and self.device.type == "mps":
                raise InputError("torchrun: several processes train on CUDA or with --device cpu")
            self.exit_stack = self.exit_stack.pop_all()
        return self

    def __exit__(self, *error) -> bool | None:
        return self.exit_stack.__exit__(*error)

    def open(self) -> tuple[dict, Path, dict | None]:
        """The configuration's values, the checkpoint's path, and its content or None.

        Locks the run folder.
        """
        action = self.action
        if action.evaluate:
            path = checkpoints.path_of(action.evaluate)
            state = checkpoints.load(path)
            return asdict(self.config_of(state, path)), path, state
        if isinstance(action.resume, str):
            path = checkpoints.path_of(action.resume)
        else:
            config = configure(self.config_class, **self.given)
            path = Path(config.output) / run_dir.run_name(config) / "last.pt"
        self.exit_stack.enter_context(run_dir.locked(path.parent))
        if action.resume and path.exists():
            state = checkpoints.load_training_state(path)
            return asdict(self.config_of(state, path)), path, state
        run_dir.refuse_to_lose(path.parent, action)
        return asdict(config), path, None

    def config_of(self, state: dict, path: Path) -> Config:
        """The configuration of a checkpoint's run with the flags of the command line."""
        if state["script"] != self.script:
            raise InputError(f"{path}: a run of {state['script']}; use that script")
        with checkpoints.fitting(path, "its configuration does not fit"):
            return resumed(self.config_class, state, self.given, str(path))

    def load(self, make_loader: Callable[[Config, torch.device], Loader]) -> Loader:
        """The loader of the configuration. Seeds Python, NumPy and torch, for the networks."""
        self.loader = distributed.one_by_one(partial(make_loader, self.config, self.device))
        fingerprint = content_fingerprint(self.loader, self.config.data_path)
        self.data_sha256 = f"{self.loader.info.noise_sha256} {fingerprint}"
        if len(set(distributed.all_gather(self.data_sha256))) > 1:
            raise InputError("torchrun: the machines hold different training data")
        devices.seed_everything(self.config.seed)
        return self.loader

    def freeze_backbone(
        self, build_network: Callable[[Config], nn.Module], shared: Path | None = None
    ) -> Loader:
        """With --freeze_backbone on, a loader of the photos' features in the place of the photos.

        The backbone runs once over each photo. The features, and the backbone for a resume, are in
        the run folder's features/. Raises InputError. Args: shared, a folder for the features of
        all runs on the same photos, whatever their labels.
        """
        config, weights = self.config, self.folder / features.FOLDER / "backbone.pt"
        evaluates_whole = self.action.evaluate and self.state["epoch"] > config.num_epochs
        if not config.freeze_backbone or evaluates_whole:
            return self.loader
        self.photos = self.loader
        devices.prepare_process(self.device, config.amp)
        # Without a checkpoint the file is an earlier run's.
        stored = self.state is not None and distributed.from_rank_zero(weights.exists)
        start = from_checkpoint(config) if stored else config
        network = distributed.one_by_one(partial(build_network, start))
        self.frozen = features.FrozenBackbone(network)
        if stored:
            with checkpoints.fitting(weights, "holds another network than these flags make"):
                network.load_state_dict(torch.load(weights, weights_only=True))
        elif distributed.is_rank_zero():
            weights.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save(network.state_dict(), weights)
        labels_sha256, photos_sha256 = self.data_sha256.split()
        key = {
            "data": photos_sha256 if shared else f"{labels_sha256} {photos_sha256}",
            "weights": self.frozen.checksum(),
            "views": config.feature_views,
        }
        self.loader.info.data_notes.append(
            f"features: the plain and {config.feature_views} augmented views of each image, "
            f"weights sha256 {key['weights']}"
        )
        self.features_key = key
        network.to(self.device, memory_format=torch.channels_last)
        folder = shared or weights.parent
        self.loader = features.extract(
            network, self.loader, config.feature_views, folder, key, config.amp
        )
        self.frozen.scale = self.loader.scale
        devices.seed_everything(config.seed)  # the same draws whether they were computed or read
        return self.loader

    def new_pair(self, build_network: Callable[[Config], nn.Module]) -> Pair:
        """Two networks and their optimizers, compiled if the configuration says so."""
        config = self.config
        devices.prepare_process(self.device, config.amp)
        start = from_checkpoint(config) if self.state else config
        height, width = self.loader.info.image_size
        self.threads = torch.get_num_threads()
        if self.frozen or height * width <= TINY_IMAGE:
            torch.set_num_threads(1)
            self.exit_stack.callback(torch.set_num_threads, self.threads)

        def build() -> nn.Module:
            network = self.frozen.new_head() if self.frozen else build_network(start)
            return networks.sync_batch_norm(network) if config.sync_bn else network

        # One rank after the other: pre-trained weights are downloaded once.
        self.pair = new_pair(partial(distributed.one_by_one, build), config, self.device)
        if config.compile:
            torch.compiler.reset()  # of another pair in this process
            # Views and large images; the peer's two views and a warm-up batch; a mixed batch.
            batch_sizes = {config.batch_size, config.batch_size // distributed.world_size()}
            sizes = [factor * size for factor in (1, 2, 4) for size in batch_sizes]
            for network in self.pair.networks:
                devices.compile_network(network, [*sizes, SCORING_BATCH])
        return self.pair

    def new_method(self, pair: Pair, loader: Loader) -> Method:
        """The method of the configuration, and with --resume its state and the networks'."""
        self.method = new_method(self.config, pair, loader)
        if self.state:
            distributed.one_by_one(self.restore)
        if distributed.is_rank_zero() and not self.action.evaluate:
            if not self.rows:
                run_dir.clear(self.folder)
            self.record = RunRecord(self.folder, self.config, self.loader, self.rows)
            self.exit_stack.callback(self.record.close)
            self.method.log = self.record.log
        return self.method

    def restore(self) -> None:
        """Restore the checkpoint, all of it or, with --evaluate, what there is to test."""
        state, path = self.with_heads(self.state), self.checkpoint_path
        if not self.action.evaluate and self.frozen and state["epoch"] > self.config.num_epochs:
            self.rows = state["rows"]  # `fine_tune` restores the whole networks
        elif not self.action.evaluate:
            checkpoints.restore(state, self.pair, self.method, self.loader, self.data_sha256, path)
            self.rows = state["rows"]
            self.state = {"world_size": state["world_size"]}  # the networks hold the rest now
        else:
            checkpoints.refuse_other_data(state, self.data_sha256, path)
            checkpoints.restore_networks(state, self.pair, path)
            if "method" in state and state["epoch"] <= self.config.num_epochs:
                with checkpoints.fitting(path, "a damaged checkpoint"):
                    self.method.load_state_dict(state["method"])

    def with_heads(self, state: dict) -> dict:
        """A checkpoint's state, with the heads of whole networks if the backbone is frozen."""
        if not self.frozen or state["epoch"] > self.config.num_epochs:
            return state
        heads = [self.frozen.head_state(network) for network in state["networks"]]
        return state | {"networks": heads}

    def epochs(self) -> Iterator[int]:
        """The epochs to train; before the first one, the log's first lines and a checkpoint."""
        self.was_complete = distributed.from_rank_zero(
            lambda: len(self.rows) > self.config.last_epoch and run_dir.has_ended(self.folder)
        )
        if self.action.evaluate or self.was_complete:
            return
        first = len(self.rows)
        if self.record:
            self.begin()
        yield from range(first, self.config.last_epoch + 1)

    def fine_tune(
        self, build_network: Callable[[Config], nn.Module]
    ) -> tuple[Pair, Loader, Method]:
        """Whole networks on the photos, in the place of heads on features, and their method.

        Before, the heads' label issues are written. With --resume the networks are restored.
        """
        heads, frozen = self.pair, self.frozen
        resumes = len(self.rows) > self.config.num_epochs + 1
        clean = None if resumes else self.write_lists()
        self.frozen = None
        torch.set_num_threads(self.threads)
        config = replace(self.config, **FineTuning.DEFAULTS)
        self.loader, start = self.photos, from_checkpoint(config)
        build = partial(distributed.one_by_one, partial(build_network, start))
        self.pair = new_pair(build, config, self.device)
        method = FineTuning(config, self.pair, self.loader, self.method.log)
        self.method = method
        if resumes:
            self.pictures, path = {}, self.checkpoint_path
            checkpoints.restore(self.state, self.pair, method, self.loader, self.data_sha256, path)
        else:
            for network, head in zip(self.pair.networks, heads.networks, strict=True):
                network.load_state_dict(frozen.whole_state(head.state_dict()))
            method.use(clean)
        return self.pair, self.loader, method

    def begin(self) -> None:
        """Write what a run writes before its first epoch. Raises OSError."""
        loader = self.loader
        self.write_config()
        messages.introduce(self)
        if not self.rows:
            if loader.clean_labels is not None:
                labels = label_list(loader.noisy_labels.tolist(), loader.info.dropped_images)
                write_text(self.folder / "noisy_labels.json", json.dumps(labels))
            checkpoints.save(self.training_state(-1), self.folder / "last.pt")
        self.writer = checkpoints.BackgroundWriter(self.record.log.line)
        self.exit_stack.callback(self.writer.close)
        self.record.header()

    def training_state(self, epoch: int) -> dict:
        """`checkpoints.training_state` of this run."""
        return checkpoints.training_state(
            script=self.script,
            epoch=epoch,
            config=self.config,
            loader=self.loader,
            pair=self.pair,
            method=self.method,
            data_sha256=self.data_sha256,
            rows=self.rows,
        )

    def write_config(self, **results: object) -> None:
        """Write config.json: flags, dataset, versions, and at the end results."""
        machine = {
            "versions": devices.versions(),
            "hardware": devices.hardware(self.device),
            "world_size": distributed.world_size(),
        }
        if self.features_key:
            machine["features_of"] = self.features_key
        described = asdict(self.config) | asdict(self.loader.info) | machine | results
        write_json(self.folder / "config.json", described)

    def log(self, trained: TrainedEpoch, tests: dict[str, Test]) -> None:
        """Add an epoch to the console, metrics.jsonl, acc.txt, stats.txt and TensorBoard."""
        if self.record:
            self.record.add(trained, tests, devices.peak_memory(self.device))

    def save(self, epoch: int) -> None:
        """Write last.pt when it is due, and best.pt when the epoch is the best, in a thread."""
        if not self.record:
            return
        best_epochs = self.record.best_epochs
        due = (epoch + 1) % self.config.save_every == 0 or epoch == self.config.last_epoch
        self.writer.wait()  # before the next copy: one copy is in memory at most
        if due or epoch in best_epochs:
            state = checkpoints.copied(self.training_state(epoch))
            whole = self.frozen.whole_state if self.frozen else None
            write = checkpoints.write_checkpoints
            self.writer.start(partial(write, state, self.folder, best_epochs, due, whole))

    def report_label_issues(self) -> None:
        """Write the label issues and the last figures; with --evaluate, test the checkpoint."""
        if self.was_complete:
            Terminal().line(
                f"complete at epoch {self.config.num_epochs}; a larger --num_epochs continues it"
            )
            return
        if self.action.evaluate:
            messages.print_test(self)
        elif self.record:
            self.writer.wait()
        if self.pictures is None:
            self.write_lists()
        if self.action.evaluate:
            return
        results = {"ended": True}
        if self.config.SELECT_ON:
            results["selected_accuracy"] = self.test_selected()
        if self.record:
            self.record.finish(self.pictures, results.get("selected_accuracy"))
            self.write_config(**results)

    def write_lists(self) -> torch.Tensor:
        """Compute the label issues, and on rank 0 write them; the positions of the other images.

        Raises NonFiniteLoss.
        """
        line, root = (self.record.log if self.record else Terminal()).line, self.config.data_path
        issues = report.compute_label_issues(
            self.pair, self.loader, self.method, self.config.amp, frozen=bool(self.frozen)
        )
        if distributed.is_rank_zero():
            self.pictures = report.report(
                issues, self.loader, self.folder, line, Path(root), self.config.review
            )
        return torch.from_numpy(issues.index[~issues.is_issue])

    def test_selected(self) -> float:
        """The test accuracy of the networks in best.pt, each of its own best epoch (method 9)."""
        path = self.folder / "best.pt"
        state = distributed.from_rank_zero(partial(checkpoints.load, path))
        checkpoints.restore_networks(self.with_heads(state), self.pair, path)
        figures, _ = evaluate(self.pair.networks, self.loader.run("test"), self.config)
        return figures["accuracy"]


def script_of(config_class: type[Config]) -> str:
    """The file name of the script that defines a configuration class."""
    return Path(sys.modules[config_class.__module__].__file__).name


def from_checkpoint(config: Config) -> Config:
    """The configuration of networks whose weights a checkpoint will replace."""
    return replace(config, **{k: v for k, v in FROM_CHECKPOINT.items() if hasattr(config, k)})

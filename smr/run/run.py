"""A run: its configuration, folder and checkpoints, and what each epoch writes."""

import inspect
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
        self.config_class, self.script = config_class, Path(inspect.getfile(config_class)).name
        # The rows of metrics.jsonl.
        self.rows: list[dict] = []
        # With --freeze_backbone: the backbone, until fine-tuning; the folder of its features.
        self.frozen: features.FrozenBackbone | None = None
        self.features_folder: Path | None = None
        # Rank 0 writes; the other ranks have no record.
        self.record: RunRecord | None = None
        self.written: Future[list[str]] | None = None
        self.pictures: dict = {}
        self.threads, self.exit_stack = torch.get_num_threads(), ExitStack()

    def __enter__(self) -> "Run":
        with self.exit_stack:
            self.exit_stack.callback(torch.set_num_threads, self.threads)
            values, self.checkpoint_path, self.state = distributed.from_rank_zero(self.open)
            self.folder = self.checkpoint_path.parent
            self.config = configure(self.config_class, **values)
            self.fine_tuning = bool(self.state) and self.state["epoch"] > self.config.num_epochs
            gpuid = distributed.local_rank() if distributed.launched() else self.config.gpuid
            self.device = devices.find_device(self.config.device, gpuid)
            if distributed.launched() and self.device.type == "mps":
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
        if action.evaluate or isinstance(action.resume, str):
            path = checkpoints.path_of(action.evaluate or action.resume)
        else:
            config = configure(self.config_class, **self.given)
            path = Path(config.output) / run_dir.run_name(config) / "last.pt"
        if not action.evaluate:
            self.exit_stack.enter_context(run_dir.locked(path.parent))
        if not action.evaluate and not (action.resume and path.exists()):
            run_dir.refuse_to_lose(path.parent, action)
            return asdict(config), path, None
        state = checkpoints.load(path, training=not action.evaluate)
        if state["script"] != self.script:
            raise InputError(f"{path}: a run of {state['script']}; use that script")
        with checkpoints.fitting(path, "its configuration does not fit"):
            config = resumed(self.config_class, state, self.given, str(path))
        return asdict(config), path, state

    @property
    def stage_config(self) -> Config:
        """The configuration, with fine-tuning's own hyperparameters while it fine-tunes."""
        return replace(self.config, **FineTuning.DEFAULTS) if self.fine_tuning else self.config

    def load(self, make_loader: Callable[[Config, torch.device], Loader]) -> Loader:
        """The loader of the configuration. Seeds Python, NumPy and torch, for the networks."""
        self.loader = distributed.one_by_one(partial(make_loader, self.config, self.device))
        fingerprint = content_fingerprint(self.loader)
        self.data_sha256 = f"{self.loader.info.noise_sha256} {fingerprint}"
        if len(set(distributed.all_gather(self.data_sha256))) > 1:
            raise InputError("torchrun: the machines hold different training data")
        devices.seed_everything(self.config.seed)
        devices.prepare_process(self.device, self.config.amp)
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
        if config.freeze_backbone:
            self.features_folder = shared or weights.parent
        if not config.freeze_backbone or self.fine_tuning:
            return self.loader
        self.photos = self.loader
        # Without a checkpoint the file is an earlier run's.
        stored = bool(self.state) and distributed.from_rank_zero(weights.exists)
        start = without_weights(config) if stored else config
        network = distributed.one_by_one(partial(build_network, start))
        self.frozen = features.FrozenBackbone(network)
        if stored:
            with checkpoints.fitting(weights, checkpoints.OTHER_NETWORK):
                network.load_state_dict(torch.load(weights, weights_only=True))
        elif distributed.is_rank_zero():
            weights.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save(network.state_dict(), weights)
        self.loader = self.frozen.extract(
            self.photos,
            views=config.feature_views,
            folder=self.features_folder,
            data=self.data_sha256.split()[1] if shared else self.data_sha256,
            amp=config.amp,
        )
        devices.seed_everything(config.seed)  # the same draws whether they were computed or read
        return self.loader

    def new_pair(self, build_network: Callable[[Config], nn.Module]) -> Pair:
        """Two networks and their optimizers, compiled if the configuration says so."""
        height, width = self.loader.info.image_size
        is_small = self.frozen or height * width <= TINY_IMAGE
        torch.set_num_threads(1 if is_small else self.threads)
        config = self.stage_config
        start = without_weights(config) if self.state or self.fine_tuning else config

        def build() -> nn.Module:
            network = self.frozen.new_head() if self.frozen else build_network(start)
            return networks.sync_batch_norm(network) if config.sync_bn else network

        # One rank after the other: pre-trained weights are downloaded once.
        self.pair = new_pair(partial(distributed.one_by_one, build), config, self.device)
        if config.compile and not self.fine_tuning:
            torch.compiler.reset()  # of another pair in this process
            # Views and large images; the peer's two views and a warm-up batch; a mixed batch.
            batch_sizes = config.batch_size, config.batch_size // distributed.world_size()
            sizes = [factor * size for factor in (1, 2, 4) for size in batch_sizes]
            for network in self.pair.networks:
                devices.compile_network(network, [*sizes, SCORING_BATCH])
        return self.pair

    def new_method(self, pair: Pair, loader: Loader) -> Method:
        """The method of the configuration; a checkpoint's state, and its networks' in the pair."""
        make = FineTuning if self.fine_tuning else new_method
        self.method = make(self.stage_config, pair, loader)
        if self.state:
            distributed.one_by_one(self.restore)
        if distributed.is_rank_zero() and not self.action.evaluate:
            if not self.rows:
                run_dir.clear(self.folder)
            self.record = RunRecord(self.folder, self.config, loader, self.rows)
            self.exit_stack.callback(self.record.close)
            self.method.log = self.record.log
        return self.method

    def restore(self) -> None:
        """Restore the checkpoint; its description remains in `state`."""
        checkpoints.restore(self, self.with_heads(self.state), self.checkpoint_path)
        if not self.action.evaluate:
            self.rows = self.state["rows"]
        for name in ("networks", *checkpoints.TRAINING_PARTS):
            self.state.pop(name, None)

    def with_heads(self, state: dict) -> dict:
        """A checkpoint's state, with the heads of whole networks if the backbone is frozen."""
        if not self.frozen:
            return state
        return state | {"networks": list(map(self.frozen.head_state, state["networks"]))}

    def epochs(self) -> Iterator[int]:
        """The epochs to train; before the first one, the log's first lines and a checkpoint."""
        self.was_complete = distributed.from_rank_zero(
            lambda: len(self.rows) > self.config.last_epoch and run_dir.has_ended(self.folder)
        )
        if self.action.evaluate or self.was_complete:
            return
        if self.record:
            self.begin()
        yield from range(len(self.rows), self.config.last_epoch + 1)

    def fine_tune(
        self, build_network: Callable[[Config], nn.Module]
    ) -> tuple[Pair, Loader, Method]:
        """Whole networks on the photos, in the place of heads on features, and their method.

        Before, the heads' label issues are written.
        """
        heads, frozen, clean_index = self.pair, self.frozen, self.write_lists()
        self.frozen, self.loader, self.fine_tuning = None, self.photos, True
        self.new_pair(build_network)
        for network, head in zip(self.pair.networks, heads.networks, strict=True):
            network.load_state_dict(frozen.whole_state(head.state_dict()))
        self.method = FineTuning(self.stage_config, self.pair, self.loader, self.method.log)
        self.method.use(clean_index)
        return self.pair, self.loader, self.method

    def begin(self) -> None:
        """Write what a run writes before its first epoch. Raises OSError."""
        self.write_config()
        messages.introduce(self)
        if not self.rows:
            if self.loader.clean_labels is not None:
                labels = self.loader.noisy_labels.tolist()
                labels = label_list(labels, self.loader.info.dropped_images)
                write_text(self.folder / "noisy_labels.json", json.dumps(labels))
            checkpoints.save(checkpoints.training_state(self, -1), self.folder / "last.pt")
        # The last write ends with the run, even if the run is interrupted while it waits.
        self.writer = self.exit_stack.enter_context(ThreadPoolExecutor(1))
        self.exit_stack.callback(self.finish_writing)
        self.record.header()

    def write_config(self, **results: object) -> None:
        """Write config.json: flags, dataset, versions, and at the end results."""
        content = asdict(self.config) | asdict(self.loader.info)
        content |= {"versions": devices.versions(), "hardware": devices.hardware(self.device)}
        content |= {"world_size": distributed.world_size()}
        if self.features_folder:
            content["features_of"] = features.read_key(self.features_folder)
        write_json(self.folder / "config.json", content | results)

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
        self.finish_writing()  # before the next copy: one copy is in memory at most
        if due or epoch in best_epochs:
            state = checkpoints.copied(checkpoints.training_state(self, epoch))
            whole = self.frozen.whole_state if self.frozen else None
            write = checkpoints.write_checkpoints
            self.written = self.writer.submit(write, state, self.folder, best_epochs, due, whole)

    def finish_writing(self) -> None:
        """Wait for the checkpoints that are being written; log which were not. Raises OSError."""
        written, self.written = self.written, None
        for note in written.result() if written else ():
            self.record.log.line(note)

    def report_label_issues(self) -> None:
        """Write the label issues and the last figures; with --evaluate, test the checkpoint."""
        if self.was_complete:
            Terminal().line(
                f"complete at epoch {self.config.num_epochs}; a larger --num_epochs continues it"
            )
            return
        if self.action.evaluate:
            messages.print_test(self)
            self.write_lists()
            return
        self.finish_writing()
        if not self.fine_tuning:
            self.write_lists()
        results = {"selected_accuracy": self.test_selected()} if self.config.SELECT_ON else {}
        if self.record:
            self.record.finish(self.pictures, *results.values())
            self.write_config(ended=True, **results)

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


def without_weights(config: Config) -> Config:
    """The configuration of networks whose weights a checkpoint will replace."""
    has_weights = hasattr(config, "pretrained")
    return replace(config, pretrained=False, weights="") if has_weights else config

"""The course of a run, the same for all scripts: open its folder, train, keep, finish, resume."""

import argparse
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from smr import distributed, networks
from smr.data.loader import SCORING_BATCH, Loader
from smr.data.noise_file import label_list
from smr.errors import InputError, NonFiniteLoss, RankLost
from smr.files import write_json, write_text
from smr.label_issues import report as labels
from smr.logging.console import title
from smr.logging.metrics_file import Record, run_name
from smr.logging.terminal import Terminal
from smr.method import EpochResult, Pair, new_pair, test, train
from smr.recipe import Recipe, recipe_of
from smr.run import checkpoints, devices, options
from smr.run.run_dir import clear_folder, ended, locked, refuse_a_run
from smr.run.saving import Saver, copied


@dataclass(frozen=True)
class Script:
    """What differs between the scripts.

    resolve(given, device) → the configuration; make_loader(config, device) → the data;
    build_network(config) → one untrained network.
    """

    name: str
    resolve: Callable[[dict, torch.device], dict]
    make_loader: Callable[[dict, torch.device], Loader]
    build_network: Callable[[dict], torch.nn.Module]


def main(script: Script, parser: options.Parser, argv: list[str] | None) -> int:
    """Run a script's command line; the exit status: 0 done, 1 failed, 2 refused, 128+n signal n."""
    args = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with options.one_line_errors(script.name), distributed.process_group():
            if args.evaluate:
                return evaluate(script, args)
            return start_or_resume(script, args)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        name = signal.Signals(number).name
        if distributed.is_rank_zero():
            print(f"{script.name}: stopped by {name}; --resume goes on", file=sys.stderr)
        return 128 + number
    except RankLost as error:
        print(f"{script.name}: {error}; --resume goes on", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(number: int, _frame) -> None:
    """Have a signal stop the process as Ctrl-C does; the last whole epoch's checkpoint stands."""
    raise KeyboardInterrupt(number)


def start_or_resume(script: Script, args: argparse.Namespace) -> int:
    """Find the run's folder, hold it, and train there; the exit status. Raises InputError."""
    with ExitStack() as held:
        folder, config, state = distributed.from_rank_zero(lambda: opened(script, args, held))
        return run(script, config, options.given_flags(args), device_of(config), folder, state)


def opened(
    script: Script, args: argparse.Namespace, held: ExitStack
) -> tuple[Path, dict, dict | None]:
    """Find the run's folder and hold it; the folder, the configuration, and the state to go on
    from, None to start anew.

    Raises InputError.
    """
    given = options.given_flags(args)
    if isinstance(args.resume, str):
        path = checkpoints.path_of(args.resume)
    else:
        config = script.resolve(given, device_of(given))
        path = Path(config["output"]) / run_name(config) / "last.pt"
        older = path.parent.with_name(run_name(config, with_method=False)) / path.name
        if args.resume and older.exists() and not path.exists():
            path = older
    held.enter_context(locked(path.parent))
    if args.resume and path.exists():
        state = checkpoints.load_training_state(path)
        return path.parent, go_on(script, state, given, path), state
    refuse_a_run(path.parent, args)
    return path.parent, config, None


def device_of(flags: dict) -> torch.device:
    """The device that these flags, or the defaults, name; under torchrun the rank's own.

    Raises InputError.
    """
    wanted = options.DEFAULTS | flags
    if distributed.launched():
        wanted["gpuid"] = distributed.local_rank()
    device = devices.find_device(wanted["device"], wanted["gpuid"])
    if distributed.world_size() > 1 and device.type == "mps":
        raise InputError("torchrun: several processes train on CUDA or with --device cpu")
    return device


def go_on(script: Script, state: dict, given: dict, path: Path) -> dict:
    """The configuration of a checkpoint's run with the given flags. Raises InputError."""
    if state["script"] != script.name:
        raise InputError(f"{path}: a run of {state['script']}; use that script")
    with checkpoints.fitting(path, "its configuration does not fit"):
        device = device_of(state["config"] | given)
        flags = options.continued(state, given, device, str(path))
        try:
            return script.resolve(flags, device)
        except InputError as error:
            raise InputError(f"{path}: its configuration does not fit: {error}") from error


def run(
    script: Script,
    config: dict,
    given: dict,
    device: torch.device,
    folder: Path,
    state: dict | None,
) -> int:
    """Train from the start or from a checkpoint's state; the exit status.

    Args: given, the flags of the command line, for the log. Raises OSError where the run folder
    takes no files at the start.
    """
    loader = distributed.one_by_one(partial(script.make_loader, config, device))
    devices.seed_everything(config["seed"])
    recipe, facts = recipe_of(config), data_facts(loader)
    pair = make_pair(script, config | (options.FROM_CHECKPOINT if state else {}), device)
    sha256, rows = facts["noise_sha256"], state["rows"] if state else []
    distributed.from_rank_zero(partial(refuse_unlike, distributed.all_gather(sha256)))
    ranks_before = state.get("ranks", 1) if state else distributed.world_size()
    if state:
        restore = partial(checkpoints.restore, state, pair, loader, sha256, folder / "last.pt")
        distributed.one_by_one(restore)
        state.clear()  # the networks hold it now: no second copy for the whole run
    done = len(rows) > recipe.num_epochs
    if distributed.from_rank_zero(lambda: done and ended(folder)):
        Terminal().line(f"finished at epoch {recipe.num_epochs}; a larger --num_epochs goes on")
        return 0
    if not distributed.is_rank_zero():
        return accompany(pair, loader, recipe, config, len(rows))
    if not rows:
        clear_folder(folder)
    record = Record(folder, config, recipe, loader, rows)
    state_after = partial(
        checkpoints.training_state, script.name, pair, loader, config, sha256, rows
    )
    machine = {"versions": devices.versions(), "hardware": devices.hardware(device)}
    described = config | facts | machine | {"ranks": distributed.world_size()}
    write_json(folder / "config.json", described)
    introduce(record, facts, given, device, ranks_before)
    if not rows:
        if loader.clean_labels is not None:
            noisy = label_list(loader.noisy_labels.tolist(), facts.get("dropped_images", []))
            write_text(folder / "noisy_labels.json", json.dumps(noisy))
        checkpoints.save(state_after(-1), folder / "last.pt")
    record.begin()
    results = train(pair, loader, recipe, len(rows), record.log.progress, record.log.note)
    try:
        follow(record, results, state_after, config["save_every"], device)
        drawn = report_labels(pair, loader, config, folder, record.log.line)
        record.finish(drawn)
        described["ended"] = True
        if recipe.select_on:
            accuracy = test_selected(pair, loader, recipe, folder)
            described["selected_accuracy"] = accuracy
            record.log.line(
                f"selected by {recipe.select_on} accuracy: networks of epochs "
                f"{' and '.join(map(str, record.best_epochs))}, test accuracy {accuracy:.2f} %"
            )
        write_json(folder / "config.json", described)
        return 0
    except NonFiniteLoss as error:
        record.log.line(f"stopped: {error}; the last checkpoint stands; try a smaller --lr")
        return 1
    finally:
        record.board.close()


def refuse_unlike(checksums: list[str]) -> None:
    """Raise InputError where the ranks' labels, by their checksums, are not the same."""
    if len(set(checksums)) > 1:
        raise InputError("torchrun's machines hold different training data")


def accompany(pair: Pair, loader: Loader, recipe: Recipe, config: dict, first_epoch: int) -> int:
    """Do another rank's part of the run that the first one records; the exit status."""
    try:
        for _ in train(pair, loader, recipe, first_epoch, note=lambda _: None):
            pass
        report_labels(pair, loader, config, Path(), lambda _: None)
        if recipe.select_on:
            test_selected(pair, loader, recipe, Path())
        return 0
    except NonFiniteLoss:  # the first rank has met the same, and says so
        return 1


def follow(
    record: Record,
    results: Iterable[EpochResult],
    state_after: Callable[[int], dict],
    save_every: int,
    device: torch.device,
) -> None:
    """Record each epoch and keep checkpoints, written meanwhile. Raises NonFiniteLoss."""
    with Saver(record.log.line) as saver:
        for result in results:
            record.add(result, devices.peak_memory(device))
            epoch, best = result.epoch, record.best_epochs
            due = (epoch + 1) % save_every == 0 or epoch == record.recipe.num_epochs
            saver.wait()  # before the next copy: no more than one is held
            if due or epoch in best:
                state = copied(state_after(epoch))
                saver.start(partial(checkpoints.keep, state, record.folder, best, due))
                del state  # which the thread frees once it is written


def test_selected(pair: Pair, loader: Loader, recipe: Recipe, folder: Path) -> float:
    """The test accuracy of the networks in best.pt, each of its own best epoch (method 9)."""
    path = folder / "best.pt"
    checkpoints.restore_networks(
        distributed.from_rank_zero(lambda: checkpoints.load(path)), pair, path
    )
    return test(pair.networks, loader.run("test"), recipe)[0]["accuracy"]


def make_pair(script: Script, config: dict, device: torch.device) -> Pair:
    """The two networks and their optimizers, compiled where the configuration says so."""
    devices.prepare_process(device, config["amp"])
    # In turn: trained weights are fetched once.
    build_network = partial(distributed.one_by_one, partial(new_network, script, config))
    pair = new_pair(build_network, recipe_of(config), device, config["channels_last"])
    if config["compile"]:
        torch.compiler.reset()  # of another pair in this process
        # Views, and large images scored; the peer's two views, and a warm-up batch; a mixed batch.
        whole = config["batch_size"]
        sizes = [
            factor * b for factor in (1, 2, 4) for b in {whole, whole // distributed.world_size()}
        ]
        sizes.append(SCORING_BATCH)
        for network in pair.networks:
            devices.compile_network(network, sizes)
    return pair


def new_network(script: Script, config: dict) -> torch.nn.Module:
    """One untrained network, whose BN is that of one process or, by --sync_bn, of all ranks."""
    network = script.build_network(config)
    return networks.joint_statistics(network) if config.get("sync_bn") else network


def data_facts(loader: Loader) -> dict:
    """What config.json tells of the data; the realized noise rate where clean labels are known.

    noise_sha256 is that of the labels as a JSON list: two runs with the same saw the same noise.
    """
    given = json.dumps(loader.noisy_labels.tolist())
    facts = loader.facts | {"noise_sha256": hashlib.sha256(given.encode()).hexdigest()}
    if loader.is_clean is not None:
        facts["noise_rate"] = 1 - float(loader.is_clean.mean())
    return facts


def introduce(
    record: Record, facts: dict, given: dict, device: torch.device, ranks_before: int
) -> None:
    """The lines at the start of a run's log."""
    line, config = record.log.line, record.config
    height, width = facts["image_size"]
    line(
        f"{title(config)}: {facts['train_images']} training and {facts['test_images']} "
        f"test images of {height}x{width}, {len(facts['class_names'])} classes"
    )
    line("classes: " + ", ".join(facts["class_names"]))
    for note in facts["data_notes"]:
        line(f"data: {note}")
    for words in options.contradictions(config, facts["train_images"]):
        line(f"note: {words}")
    if "noise_rate" in facts:
        line(
            f"wrong training labels: {100 * facts['noise_rate']:.2f} %, "
            f"sha256 of the labels {facts['noise_sha256']}"
        )
    flags = "  ".join(f"--{flag} {options.shown(flag, given[flag])}" for flag in given)
    line(f"flags: {flags or 'none'}; the recipe's values of all others are in config.json")
    line(f"device: {devices.hardware(device)}; run folder: {record.folder}")
    if (now := distributed.world_size()) > 1:
        joint = config.get("sync_bn", False)
        statistics = "of all their rows" if joint else "each one's own, averaged after each pass"
        line(f"{now} processes share each batch; BN statistics are {statistics}")
    if record.rows:
        line(f"resumed after epoch {len(record.rows) - 1}")
    if now != ranks_before:
        line(f"note: processes before {ranks_before}, now {now}: figures differ within noise")


def evaluate(script: Script, args: argparse.Namespace) -> int:
    """Test the checkpoint of --evaluate alone, against its stored accuracy; the exit status."""
    path = checkpoints.path_of(args.evaluate)
    state = distributed.from_rank_zero(partial(checkpoints.load, path))
    config = distributed.from_rank_zero(
        partial(go_on, script, state, options.given_flags(args), path)
    )
    device = device_of(config)
    loader, line = (
        distributed.one_by_one(partial(script.make_loader, config, device)),
        Terminal().line,
    )
    checkpoints.refuse_other_labels(state, data_facts(loader)["noise_sha256"], path)
    pair = make_pair(script, config | options.FROM_CHECKPOINT, device)
    recipe = recipe_of(config)
    distributed.one_by_one(partial(checkpoints.restore_networks, state, pair, path))
    if "histories" in state:
        distributed.one_by_one(partial(checkpoints.restore_histories, state, pair, loader, path))
    epochs = state.get("epochs", [state["epoch"]])
    for test_set in loader.test_sets:
        figures, _ = test(pair.networks, loader.run(test_set), recipe)
        stored = ""
        if test_set == "test" and len(epochs) == 1:
            stored = f" (stored {state['accuracy']:.2f} %)"
        line(
            f"{path}, epoch {' and '.join(map(str, epochs))}: "
            f"accuracy {figures['accuracy']:.2f} %{stored}, "
            f"network 1 {figures['net1/accuracy']:.2f} %, "
            f"network 2 {figures['net2/accuracy']:.2f} %; "
            f"macro precision {figures['precision']:.2f} %, recall {figures['recall']:.2f} %, "
            f"F1 {figures['f1']:.2f} %"
        )
    report_labels(pair, loader, config, path.parent, line)
    return 0


def report_labels(
    pair: Pair, loader: Loader, config: dict, folder: Path, line: Callable[[str], None]
) -> dict:
    """Find the label issues, on all ranks, and report them, on rank 0; TensorBoard's pictures."""
    try:
        issues = labels.compute_label_issues(pair, loader, recipe_of(config))
    except NonFiniteLoss as error:
        line(f"labels.csv was not written: {error}")
        return {}
    if not distributed.is_rank_zero():
        return {}
    root = Path(config["data_path"])
    return labels.report(issues, loader, folder, line, root, config["review"])

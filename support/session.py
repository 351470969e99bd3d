"""The course of a run, the same for both scripts: open its folder, train, keep, finish, resume.

A script gives three functions: `resolve(given, device)` → the configuration, `make_loader(config,
device, folder)` → its data, and `build_network(config)` → one untrained network.
"""

import argparse
import copy
import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import experiment
import smr
from batches import InputError, NoisyLoader, labels_sha256
from support import checkpoints, options, report
from support.memory import keep_freed_memory


@dataclass(frozen=True)
class Script:
    """What differs between the scripts."""

    name: str
    resolve: Callable[[dict, torch.device], dict]
    make_loader: Callable[[dict, torch.device, Path], NoisyLoader]
    build_network: Callable[[dict], torch.nn.Module]


@dataclass(frozen=True)
class Plan:
    """A run before anything was read but its checkpoint: `state` is None where it starts anew."""

    config: dict
    device: torch.device
    folder: Path
    state: dict | None


def main(script: Script, parser: options.Parser, argv: list[str] | None) -> int:
    """Run a script's command line; the exit status: 0 done, 1 failed, 2 refused, 128+n signal n."""
    args = parser.parse_args(argv)
    try:
        with options.one_line_errors(script.name):
            if args.evaluate:
                return evaluate(script, parser, args)
            plan = make_plan(script, parser, args)
            loader = script.make_loader(plan.config, plan.device, plan.folder)
            folder = plan.folder
            del plan  # and its state, of which memory shall hold one
            with locked(folder):
                # Again, since another process may have trained here until a moment ago.
                return train(script, make_plan(script, parser, args), loader)
    except KeyboardInterrupt:
        print(f"{script.name}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


def make_plan(script: Script, parser: options.Parser, args: argparse.Namespace) -> Plan:
    """Resolve the flags and find the run folder. Raises InputError before any data is read."""
    given = options.given_flags(args)
    if isinstance(args.resume, str):
        path = Path(args.resume)
        path = path / "last.pt" if path.is_dir() else path
    else:
        device, config = configure(script, given)
        path = Path(config["output"]) / experiment.run_name(config) / "last.pt"
        if not args.resume or not path.exists():
            refuse_a_run(path.parent, args)
            return Plan(config, device, path.parent, None)
    state = checkpoints.load_training_state(path)
    device, config = configure(script, stored_flags(script, parser, state, given, path))
    refuse_other_flags(state, config, device, path)
    return Plan(config, device, path.parent, state)


def stored_flags(
    script: Script, parser: options.Parser, state: dict, given: dict, path: Path
) -> dict:
    """A checkpoint's configuration with the `given` flags. Raises InputError where it is none.

    On another kind of device than the checkpoint's, the flags of speed are that device's own.
    """
    flags = state["config"] | given
    try:
        options.check_values(parser, state["config"])
        if device_of(flags).type != state["device"]:
            flags = {k: v for k, v in flags.items() if k in given or k not in options.SPEED}
        script.resolve(flags, torch.device("cpu"))
    except InputError as error:
        raise InputError(f"{path}: its configuration does not fit: {error}") from error
    return flags


def device_of(flags: dict) -> torch.device:
    """The device that these flags, or the defaults, name. Raises InputError."""
    wanted = options.DEFAULTS | flags
    return options.find_device(wanted["device"], wanted["gpuid"])


def configure(script: Script, given: dict) -> tuple[torch.device, dict]:
    """The device and the resolved configuration of these flags."""
    device = device_of(given)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and pinned memory take the current one
    return device, script.resolve(given, device)


def refuse_other_flags(state: dict, config: dict, device: torch.device, path: Path) -> None:
    """Raise InputError where a checkpoint's flags are others, so that its numbers would change."""
    stored = state["config"]
    free = options.FREE + (options.SPEED if device.type != state["device"] else ())
    other = [
        f"--{flag} {config[flag]} (the run has {stored[flag]})"
        for flag in stored
        if flag not in free and stored[flag] != config.get(flag)
    ]
    epochs = stored.get("num_epochs", 0)
    if config["num_epochs"] < epochs:
        other.append(f"--num_epochs {config['num_epochs']} (the run has {epochs})")
    if other:
        raise InputError(f"{path} cannot go on with " + ", ".join(other))


def refuse_a_run(folder: Path, args: argparse.Namespace) -> None:
    """Raise InputError where starting anew in this folder would lose a run that is there.

    --resume may: a run that was killed before its first checkpoint has nothing to lose.
    """
    if args.resume and (folder / "best.pt").exists():
        raise InputError(
            f"{folder} holds a run without the last.pt to resume it from; --overwrite deletes it"
        )
    if holds_run(folder) and not (args.resume or args.overwrite):
        raise InputError(
            f"{folder} holds a run: --resume continues it, --overwrite deletes it, "
            "--id NAME starts another beside it"
        )


def holds_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return any((folder / name).exists() for name in ("config.json", "metrics.jsonl", "last.pt"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process alone; the lock dies with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "a") as lock:  # to write: NFS locks nothing else
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise InputError(f"{folder}: another process trains here; use another --id") from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{error.filename or folder}: {reason}; make room, or give another --output"
        ) from error


def clear_folder(folder: Path) -> None:
    """Delete the run that is here, but for this process's lock. Raises OSError."""
    for entry in folder.iterdir() if holds_run(folder) else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()


def train(script: Script, plan: Plan, loader: NoisyLoader) -> int:
    """Train from the start or from the plan's state; the exit status.

    Raises OSError where the run folder takes no files at the start.
    """
    config, state = plan.config, plan.state
    experiment.seed_everything(config["seed"])
    recipe = options.recipe_of(config, smr.Recipe)
    pair = make_pair(script, config, plan.device)
    facts = data_facts(loader)
    kinds = [smr.kind_of_epoch(epoch, recipe) for epoch in range(recipe.num_epochs + 1)]
    run = experiment.Run(plan.folder, config, kinds, loader.is_clean, loader.data.class_names)
    state_after = partial(
        checkpoints.training_state, pair, loader, config, facts["noise_sha256"], run.rows
    )
    if state is not None:
        checkpoints.restore(state, pair, loader, facts["noise_sha256"], plan.folder / "last.pt")
        run.open_records(state["rows"])
        state.clear()  # the networks hold it now: no second copy for the whole run
    else:
        clear_folder(plan.folder)
        run.open_records([])
    versions = {"versions": experiment.versions(), "hardware": experiment.hardware(plan.device)}
    experiment.replace_json(plan.folder / "config.json", config | facts | versions)
    first_epoch = len(run.rows)
    introduce(run, facts, plan.device, first_epoch)
    if first_epoch > recipe.num_epochs and (plan.folder / "labels.csv").exists():
        run.log.line(f"finished at epoch {recipe.num_epochs}; a larger --num_epochs goes on")
        run.board.close()
        return 0
    if state is None:
        checkpoints.save(state_after(-1), plan.folder / "last.pt")
    if plan.device.type == "cpu":
        run.log.line(foretell(pair, loader, recipe, kinds[first_epoch:]))
    run.log.heading(run.columns)
    results = smr.train(pair, loader, recipe, first_epoch, run.progress, run.log.note)
    try:
        status = follow(run, results, state_after, config["save_every"])
        if status == 0:
            run.finish()
            with run.going_on():
                drawn = report.report(pair, loader, recipe, plan.folder, run.log.line)
                run.board.add_end_pictures(drawn)
        return status
    finally:
        run.board.close()


def follow(
    run: experiment.Run,
    results: Iterable[smr.EpochResult],
    state_after: Callable[[int], dict],
    save_every: int,
) -> int:
    """Record each epoch and keep checkpoints; the exit status.

    A state that is not on disk yet is held as a copy: a signal in the midst of an epoch saves it,
    so that the epoch is done again as a whole and ends as if nothing had happened.
    """
    unsaved = None
    with run.interrupts:
        try:
            for result in results:
                is_last = result.epoch == run.log.kinds_last
                run.record(result)
                state = state_after(result.epoch)
                damage = checkpoints.not_finite(state)
                if damage:
                    raise smr.NonFiniteLoss(f"after epoch {result.epoch} {damage}")
                if run.best_is_newest:
                    keep_checkpoint(run, checkpoints.networks_alone(state), "best.pt")
                due = is_last or (result.epoch + 1) % save_every == 0
                saved = due and keep_checkpoint(run, state, "last.pt")
                unsaved = None  # before the copy, so that no two are held
                if not saved:
                    unsaved = copy.deepcopy(state)
                if not is_last:
                    run.interrupts.raise_if_any()
        except experiment.Interrupted as stop:
            if unsaved is not None:
                keep_checkpoint(run, unsaved, "last.pt")
            run.log.line(f"stopped by {signal.Signals(stop.signal_number).name}; --resume goes on")
            return 128 + stop.signal_number
        except smr.NonFiniteLoss as error:
            run.log.line(f"stopped: {error}; the last checkpoint stands; try a smaller --lr")
            return 1
    return 0


def keep_checkpoint(run: experiment.Run, state: dict, name: str) -> bool:
    """Save a checkpoint; where the disk does not take it, say so and go on with the older one."""
    try:
        checkpoints.save(state, run.folder / name)
        return True
    except OSError as error:
        run.log.line(f"{name} was not written ({error.strerror}); the older one stands")
        return False


def make_pair(script: Script, config: dict, device: torch.device) -> smr.Pair:
    """The two networks and their optimisers, compiled where the configuration says so."""
    prepare_process(device, config["amp"])
    recipe = options.recipe_of(config, smr.Recipe)
    channels_last = config["channels_last"] == "on"
    pair = smr.new_pair(partial(script.build_network, config), recipe, device, channels_last)
    if config["compile"] == "on":
        # Views and scoring batches; the peer's two views and a warm-up batch; a mixed batch.
        sizes = [factor * config["batch_size"] for factor in (1, 2, 4)]
        for network in pair.networks:
            compile_for(network, sizes)
    return pair


def prepare_process(device: torch.device, amp: str) -> None:
    """Have this process hold memory and multiply as training on the device wants it."""
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda" and amp == "off":
        # Convolutions would otherwise round to ten bits, and float32 not be float32.
        torch.backends.cudnn.allow_tf32 = False


def compile_for(network: torch.nn.Module, batch_sizes: Sequence[int]) -> None:
    """Compile the network for batches of these sizes; it takes others as it is, uncompiled.

    A trailing batch has another size in each epoch, and must not be compiled for in each.
    """
    plain = network._call_impl
    compiled = torch.compile(plain, dynamic=False)

    def call(images: torch.Tensor) -> torch.Tensor:
        return (compiled if len(images) in batch_sizes else plain)(images)

    # What Module.compile sets, and Module.__call__ looks for: weights and names stay as they were.
    network._compiled_call_impl = call


def data_facts(loader: NoisyLoader) -> dict:
    """What config.json tells of the data; the realised noise rate where clean labels are known."""
    facts = {
        "train_images": len(loader.train_images),
        "test_images": len(loader.test_images),
        "image_size": [loader.train_images.height, loader.train_images.width],
        "class_names": loader.data.class_names,
        "noise_sha256": labels_sha256(loader.data.train_labels),
        "test_labels_are_noisy": loader.data.labels_are_noisy,
        "data_notes": loader.data.notes,
    }
    if loader.is_clean is not None:
        facts["realised_noise_rate"] = 1 - float(loader.is_clean.mean())
    return facts


def introduce(run: experiment.Run, facts: dict, device: torch.device, first_epoch: int) -> None:
    """The lines at the start of a run's log."""
    line, config = run.log.line, run.config
    height, width = facts["image_size"]
    line(
        f"{experiment.title(config)}: {facts['train_images']} training and {facts['test_images']} "
        f"test images of {height}x{width}, {len(facts['class_names'])} classes"
    )
    line("classes: " + ", ".join(facts["class_names"]))
    for note in facts["data_notes"]:
        line(f"data: {note}")
    if "realised_noise_rate" in facts:
        line(
            f"wrong training labels: {100 * facts['realised_noise_rate']:.2f} %, "
            f"sha256 of the labels {facts['noise_sha256']}"
        )
    line("configuration: " + "  ".join(f"{k}={v}" for k, v in sorted(config.items()) if v != ""))
    line(f"device: {experiment.hardware(device)}; run folder: {run.folder}")
    if first_epoch:
        line(f"resumed after epoch {first_epoch - 1}")


def foretell(pair: smr.Pair, loader: NoisyLoader, recipe: smr.Recipe, kinds: list[str]) -> str:
    """How long these epochs will take, from a measured training step.

    Of 32 images, or as many up to a warm-up batch as fit into a tenth of a second.
    """
    network = copy.deepcopy(pair.networks[0]).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
    n, test = len(loader.train_images), 2 * len(loader.test_images)

    def measure(size: int) -> float:
        images = loader.train_images.plain(loader.train_index[:size])
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            loss = smr.cross_entropy_loss(network, images, loader.noisy_labels[:size], False)
            smr.optimise(loss, optimiser)
        return time.perf_counter() - started

    size, largest = 32, min(2 * recipe.batch_size, n)
    with torch.random.fork_rng(devices=[]):  # dropout must not draw from the run's random state
        while (seconds := measure(size)) < 0.1 and size < largest:
            size = min(2 * size, largest)
    # A third of a step is a forward pass, the unit below.
    unit = seconds / min(size, n) / 3
    labelled = n if loader.is_clean is None else int(loader.is_clean.sum())
    # Scoring, then for each network 4 passes by itself, 2 by its peer, and the mixed rows' steps.
    mixed = 2 if recipe.labelled_rows_only else 4
    passes = {smr.SEMI_SUPERVISED: 2 * n + 2 * labelled * (4 + 2 + mixed * 3)}
    total = sum(passes.get(kind, 2 * 3 * n) + test for kind in kinds) * unit
    return (
        f"expect about {experiment.duration(total)} on this CPU "
        f"({1 / (3 * unit):.0f} images/s in a measured training step)"
    )


def evaluate(script: Script, parser: options.Parser, args: argparse.Namespace) -> int:
    """Test the checkpoint of --evaluate alone, against its stored accuracy; the exit status."""
    path = Path(args.evaluate)
    state = checkpoints.load(path)
    device, config = configure(
        script, stored_flags(script, parser, state, options.given_flags(args), path)
    )
    refuse_other_flags(state, config, device, path)
    loader = script.make_loader(config, device, path.parent)
    pair = make_pair(script, config, device)
    checkpoints.restore_networks(state, pair, path)
    if "histories" in state:
        checkpoints.restore_histories(state, pair, loader, path)
    metrics, _ = smr.test(pair.networks, loader.run("test"), config["amp"] == "bf16")
    print(
        f"{path}, epoch {state['epoch']}: accuracy {metrics['accuracy']:.2f} % "
        f"(stored {state['accuracy']:.2f} %), "
        f"network 1 {metrics['net1/accuracy']:.2f} %, network 2 {metrics['net2/accuracy']:.2f} %; "
        f"macro precision {metrics['precision']:.2f} %, recall {metrics['recall']:.2f} %, "
        f"F1 {metrics['f1']:.2f} %"
    )
    report.report(pair, loader, options.recipe_of(config, smr.Recipe), path.parent, print)
    return 0

"""Several ranks by gloo: they train one pair of networks on each image once, and end together."""

import copy
import json
import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    TinyNet,
    fake_rank,
    generator,
    state_copy,
    tiny_config,
    tiny_loader,
    tiny_pair,
)
from photo_sets import write_clothing
from runs import (
    PRELOADED,
    RUN_NAME,
    SHORT_RUN,
    assert_same,
    events_of,
    finish,
    rows_of,
    run_main,
    run_short,
    without_times,
)
from test_device_waits import Served
from test_docs import TEXTS, blocks_of
from test_image_file_dataset import loader_of, write
from torch import Tensor
from torch.testing import assert_close

import smr
import train_cifar
from dataloader_clothing1M import clothing_dataloader
from smr import distributed
from smr.data.image_file_dataset import Frame
from smr.devices import seed_everything
from smr.errors import InputError, NonFiniteLoss
from smr.flags import parse
from smr.label_issues.report import compute_label_issues
from smr.run import checkpoints

IMAGES, WRONG = 41, 10  # batches of 16, 16 and 9; labeled and unlabeled ones of 8, 8 and some
STEP = tiny_config(lr=1.0, warm_up=1)
LABELED_ROWS = tiny_config(lr=1.0, warm_up=1, lambda_u=0.0, labeled_rows_only=True)
STILL = tiny_config(lr=1e-30, warm_up=1)  # so that a step moves nothing but BN's statistics


def launch(count: int, target, *arguments) -> list[multiprocessing.Process]:
    """Start `target` as torchrun would start so many ranks, two on a machine."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=as_rank, args=(rank, count, port, target, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def as_rank(rank: int, count: int, port: int, target, arguments: tuple) -> None:
    """What a rank's process runs."""
    named = {"RANK": rank, "LOCAL_RANK": rank % 2, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": 2}
    named |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in named.items()}
    torch.set_num_threads(1)
    target(*arguments)


def save_result(work: Callable[[Path], dict], folder: Path) -> None:
    """Do the work among the other ranks, and save what it returns."""
    with distributed.process_group():
        torch.save(work(folder), folder / str(distributed.rank()))


def results_of(count: int, work: Callable[[Path], dict], folder: Path) -> list[dict]:
    """What `work` returns on each of so many ranks."""
    for process in launch(count, save_result, work, folder):
        assert finish(process) == 0
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(count)]


class FrozenNet(TinyNet):
    """TinyNet with its BN in eval mode, so that rows do not see each other."""

    def train(self, mode: bool = True):
        super().train(mode)
        self.bn.eval()
        return self


def parts(rows: int, count: int) -> list[Tensor]:
    """Each of `count` ranks' rows of a batch; all of them once if there are too few."""
    if rows < count:
        return [torch.arange(rows)]
    return [torch.arange(rows * i // count, rows * (i + 1) // count) for i in range(count)]


@contextmanager
def reversed_pairs(of_ranks: list[Tensor]) -> Iterator[None]:
    """Pair the rows of each rank's part in reversed order: on a rank its own, alone all parts."""

    def pairs(rows: int, **_) -> Tensor:
        found = torch.arange(rows).flip(0)
        if distributed.world_size() == 1:
            for part in of_ranks:
                found[part] = part.flip(0)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", pairs)
        yield


def images_and_labels(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of noise around a brightness that tells the class."""
    draw = generator(seed)
    given = torch.randint(10, (rows,), generator=draw)
    images = torch.randn((rows, 3, 8, 8), generator=draw) + given[:, None, None, None] / 3
    return images, given, torch.arange(rows)


def own(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """This rank's part of a batch."""
    return tuple(column[distributed.rank_rows(len(column))] for column in batch)


def warm_up_step(pair: smr.Pair, count: int, rows: int) -> dict:
    """A warm-up step of so many images, as `count` ranks pair them."""
    batches = Served([own(images_and_labels(rows, seed=1))])
    with reversed_pairs(parts(rows, count)):
        return smr.mixup_epoch(pair.trained[0], pair.optimizers[0], batches, STEP)


def semi_supervised_step(pair: smr.Pair, count: int, rows: int, guessed: int, config=STEP) -> dict:
    """A semi-supervised step of so many labeled and unlabeled images, as `count` ranks do it."""
    x1, given, _ = images_and_labels(rows, seed=1)
    (u1, *_), (u2, *_) = (images_and_labels(guessed, seed) for seed in (2, 3))
    labeled = own((x1, x1.flip(3), given, torch.linspace(0.1, 0.9, rows)))
    mixed = [
        torch.cat([x, rows + x, 2 * rows + u, 2 * rows + guessed + u])
        for x, u in zip(parts(rows, count), parts(guessed, count), strict=True)
    ]
    batches = Served([labeled]), Served([own((u1, u2))])
    networks = pair.trained[0], pair.networks[1]
    with reversed_pairs(mixed):
        return smr.mixmatch_epoch(*networks, pair.optimizers[0], *batches, 20, config)


STEPS = {
    "warm-up": partial(warm_up_step, rows=8),
    "warm-up, fewer rows than ranks": partial(warm_up_step, rows=1),
    "semi-supervised": partial(semi_supervised_step, rows=5, guessed=8),
    "labeled alone": partial(semi_supervised_step, rows=5, guessed=8, config=LABELED_ROWS),
}


def steps(count: int) -> dict[str, dict]:
    """What each of STEPS returns and makes of a network, as `count` ranks do it."""
    results = {}
    for name, step in STEPS.items():
        seed_everything(0)
        pair = tiny_pair(STEP, FrozenNet)
        figures = step(pair, count)
        figures.pop("seconds")
        results[name] = {"figures": figures, "network": state_copy(pair.networks[0])}
    return results


def served() -> dict[str, list]:
    """All that a loader serves this rank in a pass of each mode."""
    loader = tiny_loader(IMAGES, wrong=WRONG)
    chosen = np.arange(IMAGES) % 2 == 0
    labeled, unlabeled = loader.run("train", chosen, np.ones(IMAGES), with_true_labels=True)
    passes = {name: loader.run(name) for name in ("warmup", "eval_train", "test")}
    passes |= {"labeled": labeled, "unlabeled": unlabeled}
    return {name: list(batches) for name, batches in passes.items()}


class Training:
    """A tiny run of a method, and its state as a checkpoint has it."""

    def __init__(self, method: str, num_epochs: int):
        self.loader = tiny_loader(IMAGES, wrong=WRONG)
        self.config = tiny_config(method=method, num_epochs=num_epochs)
        seed_everything(0)
        self.pair = tiny_pair(self.config)
        self.method = smr.new_method(self.config, self.pair, self.loader)
        self.script, self.data_sha256, self.rows = "", "", []

    def state(self, epoch: int) -> dict:
        state = checkpoints.training_state(self, epoch)
        del state["config"], state["images"]
        return copy.deepcopy(state)


def trained(method: str, num_epochs: int) -> dict:
    """A tiny run, and what should be equal on all ranks after it."""
    run, results, states = Training(method, num_epochs), [], []
    for epoch in range(num_epochs + 1):
        results.append(run.method.train_epoch(epoch))
        states.append(run.state(epoch))
    return {
        "metrics": without_times([result.metrics for result in results]),
        "splits": [split.labeled for result in results for split in result.splits],
        "states": states,
    }


def resumed(states: list[dict]) -> dict:
    """The last state of the tiny run of SMR, resumed from rank 0's second epoch."""
    last = len(states) - 1
    run = Training("smr", last)
    state = distributed.from_rank_zero(lambda: states[1])
    checkpoints.restore(run, state, Path())
    for epoch in range(2, last + 1):
        run.method.train_epoch(epoch)
    return run.state(last)


def statistics(of_part: Callable[[Tensor], slice]) -> dict[str, Tensor]:
    """BN's statistics after a pass over some rows of two batches."""
    seed_everything(0)
    pair = tiny_pair(STILL)
    whole = [images_and_labels(8, seed) for seed in (1, 2)]
    batches = [tuple(column[of_part(column)] for column in batch) for batch in whole]
    smr.cross_entropy_epoch(pair.trained[0], pair.optimizers[0], batches, STILL)
    return dict(pair.networks[0].named_buffers())


def who_came_before(folder: Path) -> list[str]:
    """The ranks that were here before this one, in turn with the others."""

    def come() -> list[str]:
        before = sorted(path.name for path in folder.glob("was here *"))
        time.sleep(0.1)  # for those that do not wait
        (folder / f"was here {os.environ['RANK']}").touch()
        return before

    return distributed.one_by_one(come)


def predicted(networks: list[dict], images: int = IMAGES) -> dict:
    """The sample losses, the test and the label issues of these networks, in eval mode."""
    config, loader = tiny_config(), tiny_loader(images, wrong=WRONG)
    pair = tiny_pair(config)
    for network, state in zip(pair.networks, networks, strict=True):
        network.load_state_dict(state)
    losses = smr.sample_losses(pair.networks[0], loader.run("eval_train"))
    figures, confusion = smr.evaluate(pair.networks, loader.run("test"), config)
    issues = compute_label_issues(pair, loader, smr.new_method(config, pair, loader), config.amp)
    arrays = {name: getattr(issues, name) for name in ("index", "labels", "pred_probs")}
    arrays["clean_probability"] = issues.clean_probability
    return {"losses": losses._asdict(), "test": [figures, confusion], "issues": arrays}


def broken_step() -> None:
    """A pass in which the last rank's images of the second batch are not finite."""
    pair, batches = tiny_pair(STEP), [images_and_labels(4, seed) for seed in (1, 2, 3)]
    if distributed.rank() + 1 == distributed.world_size():
        batches[1][0].fill_(torch.nan)
    smr.cross_entropy_epoch(pair.trained[0], pair.optimizers[0], batches, STEP)


def refuse() -> None:
    raise InputError("no such file")


def error_of(work: Callable[[], object]) -> str:
    """The message of the exception that ends the work."""
    with pytest.raises((NonFiniteLoss, InputError, SystemExit)) as raised:
        work()
    return str(raised.value)


def work_of_two(folder: Path) -> dict:
    """Whole runs, what their networks predict, and errors."""
    run = trained("smr", 3)
    networks = run["states"][-1]["networks"]
    return {
        "smr": run,
        "elr": trained("elr", 1),
        "resumed": resumed(run["states"]),
        "predicted": {count: predicted(networks, count) for count in (IMAGES, 8)},
        "broken": error_of(broken_step),
        "refused": error_of(partial(distributed.from_rank_zero, refuse)),
    }


def work_of_three(folder: Path) -> dict:
    """Steps, batches, and the order of the ranks."""
    return {
        "steps": steps(distributed.world_size()),
        "served": served(),
        "statistics": statistics(lambda column: distributed.rank_rows(len(column))),
        "before": who_came_before(folder),
    }


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    return results_of(2, work_of_two, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory) -> list[dict]:
    return results_of(3, work_of_three, tmp_path_factory.mktemp("three"))


def test_a_step_of_parts_is_the_step_of_the_whole_batch(three_ranks):
    for name, step in steps(3).items():
        for of_rank in three_ranks:
            result = of_rank["steps"][name]
            if "fewer" in name:  # each rank sees the whole batch
                result["figures"]["images"] //= 3
            assert_close(result, step, rtol=0, atol=1e-5, msg=f"{name}: {{}}".format)


def test_bn_s_statistics_are_the_mean_of_each_rank_s_own(three_ranks):
    of_parts = [statistics(lambda _, part=part: part) for part in parts(8, 3)]
    for name, value in three_ranks[0]["statistics"].items():
        mean = sum(each[name].float() for each in of_parts) / 3
        assert_close(value.float(), mean, rtol=0, atol=1e-6, msg=name)


def test_rank_0_is_the_first_to_come_then_the_first_of_each_other_machine(three_ranks):
    assert [of_rank["before"] for of_rank in three_ranks] == [
        [],
        ["was here 0", "was here 2"],
        ["was here 0"],
    ]


def joined(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Batches as one."""
    return [torch.cat(columns) for columns in zip(*batches, strict=True)]


def test_each_image_is_served_once_by_one_rank_in_order_and_views_of_one_process(three_ranks):
    for name, batches in served().items():
        of_ranks = [of_rank["served"][name] for of_rank in three_ranks]
        if name in ("warmup", "labeled", "unlabeled"):
            whole = [joined(parts) for parts in zip(*of_ranks, strict=True)]
        else:  # fewer than a scoring batch: each rank has a batch of its own, alike but for one row
            whole = [joined([batch for (batch,) in of_ranks])]
            sizes = [len(batch[0]) for (batch,) in of_ranks]
            assert max(sizes) == -(-sum(sizes) // 3)
        assert_same(whole, [list(batch) for batch in batches], name)


def without_partners(state: dict) -> dict:
    """A checkpoint's state but for the random state that mixing partners are drawn from."""
    return state | {"random": {k: v for k, v in state["random"].items() if k != "torch"}}


@pytest.mark.parametrize(("method", "splits"), [("smr", 4), ("elr", 0)])
def test_all_ranks_train_on_one_split_and_differ_in_their_mixing_partners_alone(
    two_ranks, method, splits
):
    first, other = (of_rank[method] for of_rank in two_ranks)
    assert len(first["splits"]) == splits and first["metrics"][0]["train/net1/images"] == IMAGES
    assert_same(other["metrics"], first["metrics"])
    assert_same(other["splits"], first["splits"])
    for state, of_first in zip(other["states"], first["states"], strict=True):
        assert_same(without_partners(state), without_partners(of_first))
        assert not torch.equal(state["random"]["torch"], of_first["random"]["torch"])


def test_a_resumed_run_of_ranks_ends_as_the_uninterrupted_one(two_ranks):
    for of_rank in two_ranks:
        assert_same(of_rank["resumed"], of_rank["smr"]["states"][-1])


@pytest.mark.parametrize("images", [IMAGES, 8])
def test_ranks_predict_as_one_process_does(two_ranks, images):
    alone = predicted(two_ranks[0]["smr"]["states"][-1]["networks"], images)
    for of_rank in two_ranks:  # batches of another size
        assert_close(of_rank["predicted"][images], alone, rtol=1e-4, atol=1e-6)


def test_an_error_of_one_rank_ends_them_all_and_bad_input_is_told_by_rank_0_alone(two_ranks):
    assert {of_rank["broken"] for of_rank in two_ranks} == {"step 2: the loss is not finite"}
    assert [of_rank["refused"] for of_rank in two_ranks] == ["no such file", "2"]


def of_two_ranks(loader_of: Callable, mode: str) -> list[list]:
    """The batches of a mode that each of two ranks has."""
    batches = []
    for rank in (0, 1):
        with fake_rank(rank):
            batches.append([list(batch) for batch in loader_of().run(mode)])
    return batches


def assert_split_by_rows(loader_of: Callable, mode: str) -> int:
    """Each batch of one process is in parts on two ranks; the number of batches."""
    whole = [list(batch) for batch in loader_of().run(mode)]
    of_ranks = of_two_ranks(loader_of, mode)
    assert_same([joined(parts) for parts in zip(*of_ranks, strict=True)], whole)
    return len(whole)


def test_clothing1m_s_recalibration_without_augmentation_is_split_by_rows(tmp_path):
    write_clothing(tmp_path, train=3, clean=1)
    loader_of = partial(clothing_dataloader, tmp_path, 6, 0, 7, Frame(36, 32))
    # Of an odd number, split by batches, one rank would have a batch, and a step, more.
    assert assert_split_by_rows(loader_of, "recalibrate") == 7


def test_photos_are_split_by_rows_too_and_no_rank_is_left_without_one(tmp_path):
    names = write(tmp_path)
    assert_split_by_rows(partial(loader_of, tmp_path), "warmup")
    even, odd = of_two_ranks(partial(loader_of, tmp_path), "eval_train")
    whole = [list(batch) for batch in loader_of(tmp_path).run("eval_train")]
    assert_same([even[0], odd[0], even[1]], whole)
    for name in names[1:]:
        (tmp_path / name).write_bytes(b"no photo")
    for served in of_two_ranks(partial(loader_of, tmp_path, skip_broken=True), "warmup"):
        assert [index.tolist() for *_, index in served] == [[0]]


def test_ranks_of_a_machine_share_its_workers(monkeypatch):
    assert distributed.rank_workers(9) == 9
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [distributed.rank_workers(workers) for workers in (0, 1, 8, 9)] == [0, 1, 4, 5]


def start_digits(count: int, output: Path, *flags: str) -> list[multiprocessing.Process]:
    """Start a short run of so many ranks; their output is added to `output`/log.txt."""
    argv = [*SHORT_RUN, "--output", str(output), *flags]
    return launch(count, run_main, argv, output / "log.txt")


def test_a_run_goes_on_with_two_processes_and_with_one_again(tmp_path, capsys):
    output, folder, log = tmp_path, tmp_path / RUN_NAME, tmp_path / "log.txt"
    assert run_short(output, "--num_epochs", "0") == 0
    alone = {path.name for path in folder.iterdir()}
    assert "processes" not in capsys.readouterr().out
    for process in start_digits(2, output, "--resume", "--num_epochs", "1"):
        assert finish(process) == 0, log.read_text()
    of_ranks = log.read_text()
    for line in (
        *("2 processes share each batch", "note: 1 processes before, 2 now"),
        *("resumed after epoch 0", "    1 semi-supervised", "\nlabel issues: "),
    ):
        assert of_ranks.count(line) == 1, line
    assert json.loads((folder / "config.json").read_text())["world_size"] == 2
    # Beside one more file of TensorBoard's, the files are those of one process.
    assert {path.name for path in folder.iterdir() if "events" not in path.name} <= alone

    for process in start_digits(2, output, "--evaluate", str(folder)):
        assert finish(process) == 0, log.read_text()
    lists = (folder / "labels.csv").read_text()
    assert run_short(output, "--evaluate", str(folder)) == 0
    assert log.read_text().removeprefix(of_ranks) == capsys.readouterr().out
    assert (folder / "labels.csv").read_text() == lists

    assert run_short(output, "--resume", "--num_epochs", "2") == 0
    assert "note: 2 processes before, 1 now" in capsys.readouterr().out
    assert [row["epoch"] for row in rows_of(folder)] == [0, 1, 2]
    assert [step for step, _ in events_of(folder)["test/accuracy"]] == [0, 1, 2]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_and_the_checkpoint_stands(tmp_path, killed):
    rows, log = tmp_path / RUN_NAME / "metrics.jsonl", tmp_path / "log.txt"
    processes = start_digits(2, tmp_path, "--num_epochs", "500")
    deadline = time.monotonic() + 60
    while not (rows.exists() and rows.read_text().count("\n") > 1):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    processes[killed].kill()
    assert finish(processes[1 - killed], 20) == 1
    assert log.read_text().count("another rank is gone") == 1
    assert "--resume" in log.read_text().splitlines()[-1]
    assert checkpoints.load(tmp_path / RUN_NAME / "last.pt", training=True)["epoch"] >= 0


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("has_joined", [True, False])
def test_a_flag_is_refused_once_by_rank_0(monkeypatch, capsys, rank, has_joined):
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    with fake_rank(rank) if has_joined else nullcontext(), pytest.raises(SystemExit) as stopped:
        parse(train_cifar.CifarConfig, "", ["--gpuid", "0"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("argument --gpuid") == 1 - rank


def test_the_sweep_of_the_page_gives_each_cell_and_seed_a_run():
    (script,) = (b for b in blocks_of(TEXTS["docs/reproduce.md"], "bash") if "#SBATCH" in b)
    cells = set()
    for task in range(15):
        command = subprocess.check_output(
            ["bash", "-c", f"srun() {{ echo $@; }}\n{script}"],
            env=os.environ | {"SLURM_ARRAY_TASK_ID": str(task)},
            text=True,
        )
        assert command.startswith("python train_cifar.py ")
        flags, action = parse(train_cifar.CifarConfig, "", command.split()[2:])
        assert action.resume is True
        cells.add((flags["r"], flags.get("noise_mode"), flags["seed"]))
    assert len(cells) == 15 and (0.4, "asym", 3) in cells and (0.9, None, 1) in cells

"""Bad input costs one line and status 2, and changes no file; odd but valid input works."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import helpers
import pytest
import torch
from helpers import write_cifar
from runs import metrics_of, watched_disk

import train_cifar
from smr.errors import InputError
from smr.run import checkpoints
from smr.run.command import command
from smr.run.run_dir import locked

TINY = (
    *("--dataset", "digits", "--train_images", "100", "--review", "0"),
    *("--width", "1", "--batch_size", "512", "--method", "ce"),
)
RUN_NAME = "digits_0.5_sym_ce_seed123"


def run(output, *flags, epochs: int = 1) -> int:
    """A tiny run in this process; its exit status."""
    return train_cifar.main([*TINY, "--num_epochs", str(epochs), "--output", str(output), *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run; not to be changed."""
    output = tmp_path_factory.mktemp("finished")
    assert run(output) == 0
    return output / RUN_NAME


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of it, under the name that the flags of `run(tmp_path)` give."""
    return Path(shutil.copytree(finished, tmp_path / RUN_NAME))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, *argv) -> str:
    """The one line with which the script refuses a command line."""
    capsys.readouterr()
    line = helpers.refused(train_cifar.main, capsys, *argv)
    assert ": error: " in line
    return line


def refused_run(capsys, folder: Path, *flags) -> str:
    """`refused` for a run in this folder, of which no file changes."""
    before = contents(folder)
    said = refused(capsys, *TINY, "--num_epochs", 1, "--output", folder.parent, *flags)
    assert contents(folder) == before
    return said


@pytest.mark.parametrize(
    "flag",
    ["r 1.1", "r -0.1", "r inf", "T 0", "alpha -1", "batch_size 1", "batch_size 1.5", "lr 0",
     "lr inf", "lr_steps 1:1e999", "num_epochs -1", "num_epochs 99999999999", "warm_up -1",
     "recalibrate_every -1", "lambda_u -1", "p_threshold 2", "weight_decay nan", "seed 4294967296",
     "width 0", "width 99999", "save_every 0", "gpuid -1", "num_class 1", "id ../x",
     "train_images 1", "noise_mode odd", f"batch_size {'9' * 400}"],
)  # fmt: skip
def test_every_flag_has_its_range_checked_before_any_data(flag, capsys):
    name, value = flag.split()
    said = refused(capsys, f"--{name}={value}", "--data_path", "nowhere")
    assert f"error: --{name} " in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--noise_mode worst", "--noise_mode worst needs --noise_file: the CIFAR-N labels"),
        ("--dataset digits --noise_mode worst --noise_file x.pt", "digits has no such human label"),
        ("--noise_mode noisy100 --noise_file x.pt", "cifar10 has no such human labels, but aggre"),
        ("--noise_mode asym_superclass", "is not defined for cifar10: use sym"),
        ("--dataset digits --noise_mode asym", "is not defined for digits: use sym"),
        ("--noise_file x.pt", "x.pt: "),
        ("--noise_file nowhere.json", "--noise_file nowhere.json: there is no such file"),
        ("--num_class 100", "--num_class 100: cifar10 has 10 classes"),
        ("--method ce --warmup_loss mixup", "--warmup_loss: only with --method smr or dividemix"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_before_any_data(flags, said, capsys):
    assert said in refused(capsys, *flags.split(), "--data_path", "nowhere")


def test_a_folder_that_holds_a_run_is_left_alone_and_both_ways_on_are_named(folder, capsys):
    said = refused_run(capsys, folder)
    assert "--resume" in said and "--overwrite" in said


def test_overwrite_deletes_the_run_that_is_there(folder, tmp_path):
    (folder / "stray.txt").write_text("of the old run")
    assert run(tmp_path, "--overwrite", epochs=0) == 0
    assert not (folder / "stray.txt").exists()
    assert len(metrics_of(folder)) == 1


@pytest.mark.parametrize("died", [False, True])
def test_resume_of_a_run_that_never_was_or_died_before_its_first_checkpoint_starts_it(
    tmp_path, died
):
    if died:
        (tmp_path / RUN_NAME).mkdir()
        (tmp_path / RUN_NAME / "config.json").write_text("{}")
    assert run(tmp_path, "--resume", epochs=0) == 0
    assert len(metrics_of(tmp_path / RUN_NAME)) == 1


def test_resume_never_deletes_a_run_whose_last_checkpoint_is_missing(folder, capsys):
    (folder / "last.pt").unlink()
    assert "without the last.pt" in refused_run(capsys, folder, "--resume")


@pytest.mark.parametrize(
    ("flag", "path", "said"),
    [
        ("--resume", f"{RUN_NAME}/gone.pt", "there is no such file"),
        ("--resume", "", f": give one of its runs: {RUN_NAME}"),
        ("--evaluate", "", f": give one of its runs: {RUN_NAME}"),
        (
            "--resume",
            f"{RUN_NAME}/best.pt",
            "it lacks optimizers, method, random, rows; --resume t",
        ),
    ],
)
def test_a_path_that_is_no_checkpoint_for_this_is_refused(folder, capsys, flag, path, said):
    assert said in refused_run(capsys, folder, flag, folder.parent / path)


def test_flags_that_would_change_a_resumed_run_s_numbers_are_each_named(folder, capsys):
    has = {"lr": "0.02", "batch_size": "512", "width": "1", "num_epochs": "1", "r": "0.5"}
    has |= {"dataset": "digits", "amp": "off", "lr_steps": "21:0.1", "method": "ce"}
    new = {"lr": "0.5", "batch_size": "16", "width": "2", "num_epochs": "0", "r": "0.2"}
    new |= {"dataset": "cifar10", "amp": "bf16", "lr_steps": "", "method": "smr"}
    flags = [word for name, value in new.items() for word in (f"--{name}", value)]
    found = refused_run(capsys, folder, "--resume", folder, *flags, "--id", "x")
    for name, value in new.items():
        assert f"--{name} {value} (the run has {has[name]})" in found
    assert "--id" not in found
    found = refused_run(capsys, folder, "--resume", folder, "--elr_beta", "0.5")
    assert "last.pt: --elr_beta: only with --method elr" in found


def changed(path: Path, change) -> None:
    """Save the checkpoint anew after change(state)."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def from_a_gpu(state) -> None:
    """Make the state one that was saved on a CUDA GPU with its flags of speed."""
    state["device"] = "cuda"
    if "random" in state:
        state["random"]["device"] = "cuda"
    state["config"].update(amp=True, compile=True, channels_last=False)


def test_a_checkpoint_of_a_gpu_resumes_and_is_evaluated_with_the_cpu_s_flags_of_speed(
    folder, capsys
):
    changed(folder / "best.pt", from_a_gpu)
    assert train_cifar.main(["--evaluate", str(folder / "best.pt"), "--channels_last", "off"]) == 0
    assert "accuracy" in capsys.readouterr().out
    changed(folder / "last.pt", from_a_gpu)
    assert train_cifar.main(["--resume", str(folder), "--num_epochs", "2"]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["amp"], config["compile"], config["channels_last"]) == (False, False, True)
    assert len(metrics_of(folder)) == 3


def not_finite_network(state) -> None:
    state["networks"][1]["linear.bias"][3] = float("nan")


def outside_numpy_s_state(state) -> None:
    kind, keys, _, *rest = state["random"]["numpy"]
    state["random"]["numpy"] = (kind, keys, 10**6, *rest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (not_finite_network, "linear.bias of network 2 is not finite"),
        (outside_numpy_s_state, "a damaged checkpoint"),
        (lambda s: s["networks"].pop(), "holds another network"),
        (
            lambda s: s["networks"][0].update({"linear.weight": torch.zeros(100, 8)}),
            "size mismatch for linear.weight",
        ),
        (lambda s: s["config"].update(num_class=100), "--num_class 100: digits has 10"),
        (lambda s: s["config"].update(dataset="animal10N"), "(the run has animal10N)"),
        (lambda s: s["config"].pop("num_epochs"), "its configuration does not fit"),
        (lambda s: s.update(script="train_animal10N.py"), "a run of train_animal10N.py; use that"),
        (lambda s: s.update(data_sha256="0" * 64), "are not those of this run"),
        (lambda s: s["random"].pop("numpy"), "a damaged checkpoint"),
        (lambda s: s["random"].update(torch=torch.zeros(3, dtype=torch.uint8)), "a damaged check"),
        (lambda s: s.pop("networks"), "it lacks networks"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(folder, capsys, change, said):
    changed(folder / "last.pt", change)
    found = refused_run(capsys, folder, "--resume", folder, "--num_epochs", 2)
    assert said in found and "last.pt" in found


def test_the_state_of_a_method_that_does_not_fit_is_refused(tmp_path, capsys):
    assert run(tmp_path, "--method", "elr", epochs=0) == 0
    folder = tmp_path / RUN_NAME.replace("_ce_", "_elr_")
    changed(folder / "last.pt", lambda s: s["method"]["targets"][1].fill_(torch.nan))
    said = refused_run(capsys, folder, "--resume", folder, "--method", "elr")
    assert "last.pt" in said and "damaged" in said


@pytest.mark.parametrize("content", [b"", b"half a checkpoint", None])
def test_a_cut_checkpoint_is_refused_by_resume_and_evaluate(folder, capsys, content):
    path = folder / "last.pt"
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    for flag in ("--resume", "--evaluate"):
        assert f"{path}: no checkpoint" in refused_run(capsys, folder, flag, path)


def hold(folder: Path, workers) -> None:
    """Lock the folder, as a run does that has a process for decoding photos."""
    with locked(folder):
        if worker := os.fork():
            workers.send(worker)
        time.sleep(60)
        os._exit(0)


def test_the_second_process_on_a_run_folder_is_refused(folder, tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe()
    holder = context.Process(target=hold, args=(folder, sending))
    holder.start()
    worker = receiving.recv()
    try:
        said = refused_run(capsys, folder, "--resume", "--num_epochs", 2)
        holder.kill()
        holder.join()
        assert "another process trains here" in said
        status = run(tmp_path, "--resume", epochs=2)
        assert status == 0, "the lock is gone with its holder, though a process of its lives on"
    finally:
        os.kill(worker, signal.SIGKILL)


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_full_for_an_epoch_is_reported_and_nothing_is_lost(tmp_path, capsys):
    refusals, rows = [], tmp_path / RUN_NAME / "metrics.jsonl"

    def fills_up(path):
        epochs = rows.read_text().count("\n") if rows.exists() else 0
        if epochs == 1 and len(refusals) < 4:  # epoch 1's records, best.pt and last.pt
            refusals.append(path.name)
            full_disk()

    with watched_disk(fills_up):
        assert run(tmp_path, epochs=3) == 0
    said = capsys.readouterr().out
    assert "the metrics were not written (No space left on device)" in said
    assert re.search(r"last.pt of epoch \d was not written \(No space left on device\)", said)
    assert [row["epoch"] for row in metrics_of(tmp_path / RUN_NAME)] == [0, 1, 2, 3]
    assert checkpoints.load(tmp_path / RUN_NAME / "last.pt")["epoch"] == 3
    assert not list((tmp_path / RUN_NAME).glob(".*.new"))


def test_a_disk_full_from_the_start_is_one_line(tmp_path, capsys):
    with mock.patch("os.fsync", full_disk):
        said = refused(capsys, *TINY, "--output", tmp_path)
    assert "No space left on device; free some disk space, or use another --output" in said


def test_a_file_elsewhere_that_cannot_be_read_is_not_told_to_make_room(tmp_path):
    error = OSError(errno.EMFILE, "Too many open files", "/data/photo.jpg")
    with pytest.raises(InputError) as caught, locked(tmp_path / "run"):
        raise error
    assert str(caught.value) == "/data/photo.jpg: Too many open files"


def test_an_output_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "--output" in refused(capsys, *TINY, "--output", tmp_path / "file")


CIFAR = ("--width", "1", "--batch_size", "16", "--method", "ce", "--num_epochs", "0")


def test_spaces_and_letters_beyond_ascii_in_every_path_and_a_relative_one_work(
    tmp_path, monkeypatch, capsys
):
    here = tmp_path / "日本 語 ü"
    data = write_cifar(here / "data örtlich", "cifar10")
    noise = here / "my noise é.json"
    noise.write_text(str([1] * 100))
    monkeypatch.chdir(here)
    flags = ("--output", "läufe hier", "--noise_file", noise.name)
    assert train_cifar.main([*CIFAR, "--data_path", str(data.relative_to(here)), *flags]) == 0
    monkeypatch.chdir(here / "läufe hier" / "cifar10_0.5_sym_ce_seed123")
    capsys.readouterr()
    flags = ("--data_path", str(data), "--noise_file", str(noise))
    assert train_cifar.main(["--evaluate", "last.pt", *flags]) == 0
    assert "last.pt, epoch 0: test accuracy 10.00 % (stored 10.00 %)" in capsys.readouterr().out


def test_a_run_writes_nothing_into_the_data_folder(tmp_path):
    data = write_cifar(tmp_path / "data", "cifar10")
    before = contents(data)
    argv = [*CIFAR, "--data_path", str(data), "--output", str(tmp_path / "out")]
    assert train_cifar.main(argv) == 0
    assert contents(data) == before
    noise = tmp_path / "out" / "cifar10_0.5_sym_ce_seed123" / "noisy_labels.json"
    assert len(json.loads(noise.read_text())) == 100


def test_labels_that_do_not_fit_change_no_file(cifar10_folder, tmp_path, capsys):
    noise = tmp_path / "noise.json"
    noise.write_text("[1, 2, 3]")
    before = contents(tmp_path)
    said = refused(capsys, *CIFAR, "--data_path", cifar10_folder, "--noise_file", noise,
                   "--output", tmp_path / "out")  # fmt: skip
    assert "3 labels for 100 images" in said
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_run_whose_output_pipe_closes_continues(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert run(tmp_path) == 0
    assert len(metrics_of(tmp_path / RUN_NAME)) == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has"),
        RuntimeError("MPS backend out of memory (allocated: 9 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_without_memory_one_line_names_the_flags(capsys, error):
    @command
    def main(_argv):
        raise error

    assert main([]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "lower --batch_size, --image_size or --num_workers" in line


def test_another_error_is_no_lack_of_memory():
    @command
    def main(_argv):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        main([])

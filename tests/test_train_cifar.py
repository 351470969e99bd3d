"""train_cifar.py as a user runs it: what it refuses, resolves, shows and leaves."""

import contextlib
import functools
import hashlib
import http.server
import io
import itertools
import json
import re
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import write_cifar
from runs import metrics_of
from torchvision import datasets

import train_cifar
from dataloader_cifar import noisy_labels
from smr.config import configure
from smr.errors import InputError

# Epoch 0 warms up, 1 is semi-supervised, 2 recalibrates.
SHORT = "--num_epochs 2 --warm_up 1 --recalibrate_every 3 --width 1 --batch_size 16 --device cpu"
KINDS = ["warm-up", "semi-supervised", "recalibration"]


def run_short(data_path, output, *more: str) -> int:
    """A run on a tiny CIFAR: what main() returns, which is what the script calls."""
    flags = [*SHORT.split(), "--data_path", str(data_path), "--output", str(output)]
    return train_cifar.main([*flags, "--review", "0", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the tiny CIFAR-10: (its output, its folder)."""
    root, output = tmp_path_factory.mktemp("cifar10"), io.StringIO()
    data = write_cifar(root / "data")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.chdir(root)
        assert run_short(data, "checkpoint", "--seed", "5", "--r", "0.45") == 0
    return output.getvalue(), root / "checkpoint" / "cifar10_0.45_sym_smr_seed5"


def test_config_holds_all_resolved_values_and_the_noise(finished):
    config = json.loads((finished[1] / "config.json").read_text())
    expected = {
        "dataset": "cifar10", "r": 0.45, "noise_mode": "sym", "seed": 5, "method": "smr",
        "warm_up": 1, "recalibrate_every": 3, "num_epochs": 2, "width": 1, "batch_size": 16,
        "lr": 0.02, "weight_decay": 5e-4, "alpha": 4, "T": 0.5, "p_threshold": 0.5, "lambda_u": 25,
        "num_class": 10, "warmup_loss": "mixup", "train_images": 100, "test_images": 40,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    noisy = noisy_labels([i % 10 for i in range(100)], "cifar10", "sym", 0.45, 5)
    assert config["noise_sha256"] == hashlib.sha256(json.dumps(noisy).encode()).hexdigest()
    wrong = sum(label != i % 10 for i, label in enumerate(noisy))
    assert config["noise_rate"] == pytest.approx(wrong / 100)
    assert {"python", "torch", "torchvision", "numpy", "scikit-learn"} <= config["versions"].keys()


def test_metrics_hold_an_object_an_epoch_with_the_named_keys(finished):
    rows = metrics_of(finished[1])
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["kind"] for row in rows] == KINDS
    for row in rows:
        assert row["test/best_accuracy"] == max(
            r["test/accuracy"] for r in rows[: row["epoch"] + 1]
        )
        for name in ("split/net1/auc", "split/net2/recall", "train/net1/loss_u"):
            assert (name in row) == (row["kind"] == "semi-supervised")
    for k in ("split/net1/", "split/net2/"):
        row = rows[1]
        assert row[k + "labeled_clean"] + row[k + "labeled_noisy"] == row[k + "labeled"]
        assert row[k + "labeled"] + row[k + "unlabeled"] == 100


def test_the_log_has_the_start_each_epoch_and_the_end(finished):
    output, folder = finished
    rows = metrics_of(folder)
    assert "\r" not in output  # no terminal
    config = json.loads((folder / "config.json").read_text())
    for text in (
        "cifar10:0.45-sym: 100 training and 40 test images of 32x32, 10 classes",
        f"training labels: noise rate {100 * config['noise_rate']:.2f} %",
        config["noise_sha256"],
        "--seed 5",
        "device: cpu, 1 thread, ",
        f"run folder: checkpoint/{folder.name}\n",
    ):
        assert text in output
    assert "resumed" not in output
    heading = next(line for line in output.splitlines() if line.startswith("epoch kind"))
    assert heading.split() == [
        "epoch", "kind", "lr", "Lx", "Lu", "w(Lu)", "labeled", "AUC", "prec", "test%", "best%",
        "seconds",
    ]  # fmt: skip
    summaries = [line for line in output.splitlines() if re.match(r" +\d+ ", line)]
    assert [line.split()[1] for line in summaries] == KINDS
    assert len({len(line) for line in [heading, *summaries]}) == 1
    accuracies = [row["test/accuracy"] for row in rows]
    assert (
        f"best accuracy {max(accuracies):.2f} % (epoch {accuracies.index(max(accuracies))}), "
        f"last {accuracies[-1]:.2f} %, mean of the last 3 epochs {sum(accuracies) / 3:.2f} %"
    ) in output


def test_missing_data_is_one_clear_line_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train_cifar.main([])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "looked for data_batch_1 in data/cifar-10-batches-py" in line
    for help_text in ("University of Toronto", "--download", "--dataset digits needs no data"):
        assert help_text in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    with pytest.raises(SystemExit):
        train_cifar.main(["--data_path", "photos"])
    assert "train_folder.py" in capsys.readouterr().err


def test_cifar100_trains(cifar100_folder, tmp_path):
    more = "--dataset cifar100 --noise_mode asym --r 0.4 --num_class 100 --batch_size 64"
    assert run_short(cifar100_folder, tmp_path, *more.split(), "--num_epochs", "1") == 0
    folder = tmp_path / "cifar100_0.4_asym_smr_seed123"
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_class"], config["lambda_u"]) == (100, 0)
    assert config["noise_rate"] == pytest.approx(0.4)
    assert config["class_names"][99] == "fine99"
    assert [row["kind"] for row in metrics_of(folder)] == KINDS[:2]


def test_digits_need_no_data_and_are_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--dataset digits --num_epochs 3 --warm_up 2 --width 4 --id try --review 0"
    assert train_cifar.main(flags.split()) == 0
    folder = tmp_path / "checkpoint" / "digits_0.5_sym_smr_seed123_try"
    rows = metrics_of(folder)
    assert rows[-1]["kind"] == "semi-supervised"
    assert rows[-1]["test/accuracy"] > 40  # guessing gives 10
    assert rows[-1]["split/net1/auc"] > 0.75  # and 0.5
    config = json.loads((folder / "config.json").read_text())
    assert (config["train_images"], config["test_images"]) == (1437, 360)
    assert config["image_size"] == [8, 8]
    assert config["noise_rate"] == pytest.approx(647 / 1437)


class Terminal(io.StringIO):
    """A text file that is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_shows_a_progress_line_of_each_step_in_its_published_form(
    cifar10_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(time, "monotonic", itertools.count(1000).__next__)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert run_short(cifar10_folder, tmp_path, "--num_epochs", "0") == 0
    shown = re.findall(
        r"\r\x1b\[Kcifar10:0\.5-sym \| Epoch \[  0/  0\] Iter\[  (\d)/  4\]  "
        r"warm-up, net (\d)  loss \d+\.\d{4}  \d+ images/s",
        sys.stdout.getvalue(),
    )
    assert shown == [(str(step), network) for network in "12" for step in (1, 2, 3, 4)]


@pytest.fixture
def official_archive(tmp_path, monkeypatch):
    """Tiny CIFAR-10 in an archive on a local server that torchvision takes for the official one."""
    folder = write_cifar(tmp_path / "made")
    archive = tmp_path / "served" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)

    class Official(datasets.CIFAR10):
        train_list = [[f"data_batch_{i}", md5(folder / f"data_batch_{i}")] for i in range(1, 6)]  # noqa: RUF012
        test_list = [["test_batch", md5(folder / "test_batch")]]  # noqa: RUF012
        meta = datasets.CIFAR10.meta | {"md5": md5(folder / "batches.meta")}
        tgz_md5 = md5(archive)

    monkeypatch.setattr(datasets, "CIFAR10", Official)
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Official.url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield archive
        server.shutdown()


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def downloaded(folder: Path) -> int:
    """The training images that --download leaves in the folder."""
    config = configure(train_cifar.CifarConfig, download=True, data_path=str(folder))
    return len(train_cifar.make_loader(config, torch.device("cpu")).train_images)


def test_download_fetches_the_official_archive_once(official_archive, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    assert downloaded(folder) == 100
    # What is there is left alone, even where torchvision would not find it whole.
    official_archive.unlink()
    (folder / "batches.meta").unlink()
    assert downloaded(folder) == 100


@pytest.mark.parametrize("fault", ["gone", "altered"])
def test_download_that_fails_is_one_line(official_archive, tmp_path, fault):
    if fault == "gone":
        official_archive.unlink()
    else:
        official_archive.write_bytes(official_archive.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"^--download to .*data failed[^\n]*$"):
        downloaded(tmp_path / "data" / "cifar-10-batches-py")
    assert not list(tmp_path.glob("data/**/data_batch_1"))


def test_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_saved(
    cifar10_folder, tmp_path, capsys
):
    # Sound for an epoch.
    flags = ("--lr", "1e6", "--weight_decay", "1e6", "--lr_steps", "0:1e-15,1:1")
    assert run_short(cifar10_folder, tmp_path / "out", *flags) == 1
    (folder,) = (tmp_path / "out").iterdir()
    output = capsys.readouterr().out
    assert re.search(r"stopped: epoch 1, semi-supervised, network 1, step \d: the loss is", output)
    assert "try a smaller --lr" in output
    assert [row["epoch"] for row in metrics_of(folder)] == [0]
    assert (folder / "acc.txt").read_text().count("\n") == 1
    state = torch.load(folder / "last.pt", weights_only=True)
    assert state["epoch"] == 0
    assert all(torch.isfinite(t).all() for net in state["networks"] for t in net.values())

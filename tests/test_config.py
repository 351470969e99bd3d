"""One configuration: flags and their ranges, hints, defaults, and what a resume may change."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

import helpers
import pytest
import torch
from helpers import TinyConfig, config_of, fake_rank, tiny_config

from smr import devices
from smr.config import configure, resumed, speed_defaults
from smr.errors import InputError
from smr.flags import DATA, FREE, GROWS, Action, flag, flags_of, parse
from train_animal10N import AnimalConfig
from train_cifar import CifarConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@dataclass
class OneMoreFlag(TinyConfig):
    """A script with one flag of its own."""

    crop: float | None = flag(
        "fraction that is cropped, in %", DATA, above=0, high=0.5, resume=GROWS
    )
    HYPERPARAMETERS: ClassVar = {"tiny": TinyConfig.HYPERPARAMETERS["tiny"] | {"crop": 0.25}}


def given(*argv: str, script=TinyConfig) -> dict:
    """The flags that this command line gives."""
    return parse(script, "about", list(argv))[0]


def refused(capsys, *argv: str, script=TinyConfig) -> str:
    """The line with which a command line is refused."""
    return helpers.refused(partial(parse, script, "about"), capsys, *argv)


def help_of(capsys, script, usage: str = "about") -> str:
    """What --help prints."""
    with pytest.raises(SystemExit, match="0"):
        parse(script, usage, ["--help"])
    return capsys.readouterr().out


# --- a flag is added in one place ---


def test_a_field_is_a_flag_with_its_help_its_range_its_default_and_its_resume_rule(capsys):
    assert asdict(configure(OneMoreFlag))["crop"] == 0.25
    assert given("--crop", ".5", script=OneMoreFlag) == {"crop": 0.5}
    for value in ("0", "0.51", "x", "nan"):
        assert "--crop" in refused(capsys, "--crop", value, script=OneMoreFlag)
    with pytest.raises(InputError, match=r"^--crop 0.51: expected a number above 0 to 0.5$"):
        configure(OneMoreFlag, crop=0.51)
    shown = " ".join(help_of(capsys, OneMoreFlag).split())
    assert "--crop CROP fraction that is cropped, in % (default: 0.25)" in shown
    run = stored(OneMoreFlag, crop=0.2)
    assert resumed(OneMoreFlag, run, {"crop": 0.3}, "last.pt").crop == 0.3
    with pytest.raises(InputError, match=r"last.pt .*--crop 0.1 \(the run has 0.2\)"):
        resumed(OneMoreFlag, run, {"crop": 0.1}, "last.pt")


# --- values ---


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        ("--batch_size 2", 2),
        ("--batch_size 1000000", 1_000_000),
        ("--p_threshold 0", 0.0),
        ("--p_threshold 1", 1.0),
        ("--lr 1e-9", 1e-9),
        ("--lr 1", 1.0),
        ("--learning_rate 0.5", 0.5),
        ("--weight_decay 0", 0.0),
        ("--seed 4294967295", 2**32 - 1),
        ("--lr_steps 140:0.01,80:.1", ((80, 0.1), (140, 0.01))),
        ("--lr_steps 5:1e-3", ((5, 0.001),)),
        ("--lr_steps ", ()),
        ("--amp bf16", True),
        ("--amp off", False),
        ("--compile on", True),
        ("--id try_2.0-é+", "try_2.0-é+"),
        ("--id ", ""),
        ("--method elr", "elr"),
    ],
)
def test_a_flag_is_read_as_a_value_of_its_type(argv, value):
    ((_, read),) = given(*argv.split(" ")).items()
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("--batch_size", ["1", "1000001", "", "x", "nan", "2.5", "1e3"], "whole number"),
        ("--lr", ["0", "-1", "nan", "inf", "1,5"], "a number"),
        ("--p_threshold", ["-0.1", "1.1", "nan"], "a number from 0 to 1"),
        ("--amp", ["true", "1", ""], "off, bf16"),
        ("--compile", ["bf16"], "off, on"),
        ("--warmup_loss", ["CE"], "mixup, ce"),
        (
            "--lr_steps",
            ["80", "80:0.1,", "80:0.1 140:0.01", "a:1", "-1:0.1", ":0.1", "80:-1", "1:1e999"],
            "EPOCH:FACTOR",
        ),
    ],
)
def test_a_value_that_a_flag_does_not_take_is_refused_in_one_line(capsys, name, texts, expected):
    for text in texts:
        line = refused(capsys, "--method=smr", f"{name}={text}")
        assert f"error: {name} '{text}': expected" in line and expected in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("batch_size", value) for value in (1, 8.0, True)],
        *[("lr", value) for value in (0, "0.1", float("nan"))],
        *[("lr_steps", value) for value in (((80, float("inf")),), ((80,),))],
        *[("id", value) for value in ("a/b", "a b")],
        *[("warmup_loss", "CE"), ("amp", "bf16"), ("method", "sgd"), ("momentum", 0.9)],
    ],
)
def test_a_call_is_checked_as_the_command_line_is(name, value):
    with pytest.raises(InputError, match=f"^--{name}"):
        tiny_config(**{name: value})


# --- help, hints and errors ---


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("--noise-mode", "--noise_mode"),
        ("--epochs=3", "--num_epochs"),
        ("--batchsize", "--batch_size"),
        ("-seed", "--seed"),
        ("--weight_decya", "--weight_decay"),
        ("--xyzzy", None),
        ("stray", None),
    ],
)
def test_an_unknown_flag_is_answered_with_the_one_that_was_meant_if_it_is_like_one(
    capsys, name, meant
):
    line = refused(capsys, name, "3", script=CifarConfig)
    assert f" {name}: " in line and "--help" in line
    assert f"did you mean {meant}?" in line if meant else "mean" not in line


def test_the_help_has_the_values_of_each_dataset(capsys):
    shown = help_of(capsys, CifarConfig, "python train_cifar.py --dataset digits")
    assert shown.startswith("usage: ") and "python train_cifar.py --dataset digits\n" in shown
    shown, digits = " ".join(shown.split()), CifarConfig.HYPERPARAMETERS["digits"]
    ((epoch, factor),) = digits["lr_steps"]
    for words in (
        "epoch 0 is trained too (default: 300; digits {num_epochs})".format(**digits),
        "memorized (default: 10; cifar100 30; digits {warm_up})".format(**digits),
        f"such as 80:0.1,140:0.01 (default: 150:0.1; digits {epoch}:{factor:g})",
        "of SGD (default: 0.0005)",
        "batch has 2B (default: 128; digits 64)",
        "--method {smr,ce,dividemix,elr}",
        "--lr LR, --learning_rate LR",
        "--elr_beta",
    ):
        assert words in shown, words


def test_what_to_do_with_a_run_is_no_part_of_its_configuration(capsys):
    values, action = parse(TinyConfig, "about", ["--seed", "0", "--resume", "runs/a"])
    assert (values, action) == ({"seed": 0}, Action("runs/a"))
    assert "--overwrite" in refused(capsys, "--resume", "--overwrite")


# --- defaults ---

PUBLISHED = {
    **{"method": "smr", "alpha": 4.0, "T": 0.5, "p_threshold": 0.5, "warmup_loss": "mixup"},
    **{"augment": "weak", "num_epochs": 300, "batch_size": 128, "lr": 0.02, "warm_up": 10},
    **{"lr_steps": ((150, 0.1),), "weight_decay": 5e-4, "recalibrate_every": 30, "width": 64},
    **{"id": "", "seed": 123, "device": "cpu", "gpuid": 0, "output": "./checkpoint"},
    **{"save_every": 1, "review": 500, "r": 0.5, "noise_mode": "sym", "lambda_u": 25.0},
    **{"amp": False, "compile": False, "channels_last": True, "num_class": 10},
    "entropy_penalty": False,
}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", PUBLISHED),
        ("--warm_up 7", {"warm_up": 7, "warmup_loss": "mixup", "recalibrate_every": 30}),
        ("--recalibrate_every 0", {"warmup_loss": "mixup", "recalibrate_every": 0}),
        ("--method dividemix", {"warmup_loss": "ce", "recalibrate_every": 0, "batch_size": 64}),
        ("--method dividemix --warmup_loss mixup", {"warmup_loss": "mixup", "warm_up": 10}),
        ("--method dividemix --dataset cifar100", {"batch_size": 64, "warm_up": 30}),
        ("--method dividemix --batch_size 128", {"batch_size": 128}),
        ("--method dividemix --recalibrate_every 9", {"warmup_loss": "ce", "recalibrate_every": 9}),
        ("--method ce", {"batch_size": 128, "warmup_loss": None, "recalibrate_every": None}),
        ("--noise_mode asym", {"entropy_penalty": True}),
        ("--learning_rate 0.1 --num_class 10", {"lr": 0.1, "num_class": 10}),
        # lambda_u is that of the published row.
        ("--noise_mode sym --r 0.2", {"lambda_u": 0}),
        ("--noise_mode sym --r 0.8", {"lambda_u": 25}),
        ("--noise_mode sym --r 0.9", {"lambda_u": 50}),
        ("--noise_mode asym --r 0.4", {"lambda_u": 0}),
        ("--dataset cifar100 --noise_mode sym --r 0.2", {"lambda_u": 25}),
        ("--dataset cifar100 --noise_mode sym --r 0.5", {"lambda_u": 150}),
        ("--dataset cifar100 --noise_mode sym --r 0.65", {"lambda_u": 150}),
        ("--dataset cifar100 --noise_mode sym --r 0.9", {"lambda_u": 150}),
        ("--dataset cifar100 --noise_mode asym --r 0.4", {"lambda_u": 0}),
        ("--dataset cifar100 --noise_mode asym_superclass --r 0.4", {"lambda_u": 0}),
        ("--dataset digits", {"lambda_u": 25}),
        ("--noise_mode sym --r 0.2 --lambda_u 7.5", {"lambda_u": 7.5}),
        ("--dataset cifar100 --noise_file list.json", {"lambda_u": 25}),
        ("--dataset cifar100 --noise_file list.json --r 0.5", {"lambda_u": 150}),
        ("--dataset cifar100 --noise_file list.json --noise_mode asym", {"lambda_u": 0}),
    ],
)
def test_flags_that_are_not_given_take_the_values_of_dataset_method_and_noise(
    flags, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    config = config_of(CifarConfig, *flags.split())
    assert {name: getattr(config, name, None) for name in expected} == expected


@pytest.mark.parametrize(
    ("method", "name", "owners"),
    [("ce", "warm_up", "smr or dividemix"), ("smr", "elr_beta", "elr")],
)
def test_a_flag_of_another_method_is_refused_with_the_methods_that_have_it(method, name, owners):
    with pytest.raises(InputError, match=f"^--{name}: only with --method {owners}$"):
        tiny_config(method=method, **{name: 1})


# --- speed and devices ---


@pytest.fixture
def two_ranks():
    with fake_rank(0):
        yield


@pytest.fixture
def no_compiler(monkeypatch):
    """This machine has no compiler."""
    for name in ("CC", "CXX", "PATH"):
        monkeypatch.setenv(name, "")


def test_flags_of_speed_are_those_that_suit_the_device():
    compiles = devices.can_compile(CUDA)
    assert speed_defaults(CUDA) == {"amp": True, "compile": compiles, "channels_last": True}
    for device in (CPU, torch.device("mps")):
        assert speed_defaults(device) == {"amp": False, "compile": False, "channels_last": True}
    digits, cifar10 = (configure(CifarConfig, dataset=name) for name in ("digits", "cifar10"))
    assert digits.hyperparameters(CUDA)["compile"] is False
    assert "compile" not in cifar10.hyperparameters(CUDA)


def test_compile_on_without_a_compiler_is_refused(no_compiler):
    assert not speed_defaults(CUDA)["compile"]
    with pytest.raises(InputError, match=r"^--compile on: .*compiler.*; leave it off$"):
        configure(AnimalConfig, compile=True, device="cpu")
    assert configure(AnimalConfig, compile=False, device="cpu").compile is False


def check_sync_bn(sync_bn: bool | None, device: torch.device, **flags) -> bool | None:
    """What a configuration makes of --sync_bn on a device."""
    config = tiny_config(**flags)
    config.sync_bn = sync_bn
    config.check(device)
    return config.sync_bn


def test_sync_bn_is_for_several_gpus():
    assert check_sync_bn(None, CUDA) is None
    assert check_sync_bn(False, CPU) is False
    for device in (CPU, CUDA):
        with pytest.raises(InputError, match=r"^--sync_bn on: only under torchrun"):
            check_sync_bn(True, device)


def test_sync_bn_is_on_under_torchrun_on_gpus_and_excludes_compilation(two_ranks):
    assert speed_defaults(CUDA)["compile"] is False
    with pytest.raises(InputError, match=r"^--sync_bn on: only under torchrun"):
        check_sync_bn(True, CPU)
    found = [check_sync_bn(None, CPU), check_sync_bn(None, CUDA), check_sync_bn(False, CUDA)]
    assert found == [None, True, False]
    if devices.can_compile(CPU) and devices.can_compile(CUDA):
        assert check_sync_bn(None, CUDA, compile=True) is False
        with pytest.raises(InputError, match=r"^--sync_bn on: .*--compile off"):
            check_sync_bn(True, CUDA, compile=True)


# --- resuming ---


def stored(script=CifarConfig, device="cpu", world_size=1, **config) -> dict:
    """The part of a checkpoint that a resume compares; `config` replaces what the run has."""
    first = asdict(configure(script, device="cpu", seed=7)) | config
    return {"epoch": 5, "device": device, "world_size": world_size, "config": first}


def test_flags_that_change_no_number_may_change(tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text("[]")
    free = {"output": "x", "id": "x", "save_every": 9, "data_path": "x", "review": 9, "gpuid": 0}
    free |= {"download": True, "noise_file": str(labels), "device": "cpu"}
    config = resumed(CifarConfig, stored(), free, "last.pt")
    assert {name: getattr(config, name) for name in free} == free
    of_photos = {"num_workers", "skip_broken", "check_images"}
    for script, more in ((CifarConfig, set()), (AnimalConfig, of_photos)):
        flags = flags_of(script)
        found = {name for name in flags if flags[name].metadata["resume"] == FREE}
        assert found == (free.keys() | more) & flags.keys()


def test_a_run_of_one_process_and_one_of_several_resume_each_other(two_ranks):
    for world_size, amp in ((1, False), (2, True)):
        run = stored(world_size=world_size, amp=True)
        assert resumed(CifarConfig, run, {}, "last.pt").amp is amp


def test_a_run_of_several_gpus_with_synced_batch_norm_resumes_in_one_process():
    run = stored(world_size=2, sync_bn=True)
    assert resumed(CifarConfig, run, {}, "last.pt").sync_bn is None

"""The command line: values and their ranges, hints, resolution, and what a resume may change."""

import argparse

import pytest
import torch

import train_animal10N
import train_cifar
from smr import distributed
from smr.errors import InputError
from smr.run import options

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def parser() -> options.Parser:
    return train_cifar.new_parser()


def refusal(parse, text: str) -> str:
    """What an argparse type says of a text that it does not take."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse(text)
    return str(caught.value)


# --- values ---


def test_a_number_may_be_either_end_of_its_range():
    whole, open_low = options.number(int, 2, 10), options.number(float, 0, 0.5, open_low=True)
    assert [whole("2"), whole("10")] == [2, 10]
    assert [open_low("0.5"), open_low("1e-9")] == [0.5, 1e-9]
    assert refusal(whole, "1") == "'1': expected a whole number from 2 to 10"
    assert refusal(whole, "11") == "'11': expected a whole number from 2 to 10"
    assert refusal(open_low, "0") == "'0': expected a number above 0 to 0.5"
    assert options.number(float, 0)("0") == 0


@pytest.mark.parametrize("text", ["", "x", "nan", "1.5", "1e3"])
def test_what_is_no_whole_number_is_refused(text):
    assert "expected a whole number from 0 to 1,000,000" in refusal(options.number(int, 0), text)


def test_learning_rate_steps_are_sorted_pairs_of_epoch_and_factor():
    assert options.lr_steps("140:0.01,80:.1") == ((80, 0.1), (140, 0.01))
    assert options.lr_steps("5:1e-3") == ((5, 0.001),)
    assert options.lr_steps("") == ()
    for text in ("80", "80:0.1,", "80:0.1 140:0.01", "a:1", "-1:0.1", ":0.1", "80:-1"):
        assert refusal(options.lr_steps, text) == (
            f"'{text}': expected EPOCH:FACTOR,…, such as 80:0.1,140:0.01, or '' for no step"
        )
    assert refusal(options.lr_steps, "1:1e999") == "'1:1e999': a factor is too large"


@pytest.mark.parametrize(("flag", "on"), [("amp", "bf16"), ("compile", "on")])
def test_a_switch_is_off_or_its_second_word(flag, on):
    parse = options.switch(flag)
    assert parse("off") is False and parse(on) is True
    assert refusal(parse, "true") == f"'true': expected off or {on}"


def test_an_id_is_a_word_that_a_folder_s_name_can_end_in():
    assert options.run_id("try_2.0-é+") == "try_2.0-é+"
    assert options.run_id("") == ""
    for text in ("a/b", "../x", "a b"):
        assert refusal(options.run_id, text) == (
            f"'{text}': expected letters, digits and . _ + - only"
        )


def test_values_are_shown_as_a_command_line_gives_them():
    shown = options.shown
    assert [shown("amp", True), shown("amp", False), shown("compile", True)] == [
        "bf16",
        "off",
        "on",
    ]
    assert shown("lr_steps", ((80, 0.1), (140, 0.01))) == "80:0.1,140:0.01"
    assert shown("lr_steps", ()) == ""
    assert [shown("lr", 0.02), shown("alpha", 4.0), shown("width", 64)] == ["0.02", "4", "64"]
    assert [shown("lr_steps", None), shown("amp", None)] == ["None", "None"]
    assert shown("download", True) == "True"


# --- help, hints and errors ---


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--noise-mode", "--noise_mode"),
        ("--epochs", "--num_epochs"),
        ("--epochs=3", "--num_epochs"),
        ("--learning-rate", "--learning_rate"),
        ("--batchsize", "--batch_size"),
        ("--Recalibrate_every", "--recalibrate_every"),
        ("-seed", "--seed"),
        ("--weight_decya", "--weight_decay"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_one_that_was_meant(parser, capsys, flag, meant):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([flag, "3"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(
        f": error: {flag}: there is no such flag; did you mean {meant}? (--help lists the flags)\n"
    )


@pytest.mark.parametrize("flag", ["--xyzzy", "--qq", "stray"])
def test_an_unknown_flag_like_no_other_gets_no_hint(parser, capsys, flag):
    with pytest.raises(SystemExit):
        parser.parse_args([flag])
    said = capsys.readouterr().err
    assert said.endswith(f": error: {flag}: there is no such flag (--help lists the flags)\n")


def test_a_flag_that_people_try_is_answered_with_what_to_do_instead():
    parser = options.Parser("about", elsewhere={"--r": "say it otherwise"})
    assert parser.hint("--r=0.5") == "; say it otherwise"


def test_the_help_gives_the_values_of_each_recipe(parser):
    help_text = " ".join(parser.format_help().split())
    for words in (
        "number of the last epoch; epoch 0 is run too (default: 300; digits 60)",
        "before memorizing begins (default: 10; cifar100 30; digits 15)",
        "as in 80:0.1,140:0.01 (default: 150:0.1; digits 50:0.1)",
        "0 for never (default: 30; digits 10; dividemix 0)",
        "of SGD (default: 0.0005)",
        "a warm-up batch 2B (default: 128; digits 64)",
    ):
        assert words in help_text
    assert parser.format_help().startswith("usage: ")
    assert "python train_cifar.py --dataset digits\n" in parser.format_help()


# --- resolution ---


def resolve(*flags: str, device=CPU) -> dict:
    parser = train_cifar.new_parser()
    return train_cifar.resolve(options.given_flags(parser.parse_args(flags)), device)


def test_given_flags_are_those_that_say_how_to_train(parser):
    args = parser.parse_args(["--r", "0.2", "--resume", "--amp", "off", "--seed", "0"])
    assert options.given_flags(args) == {"r": 0.2, "amp": False, "seed": 0}
    for action in (["--overwrite"], ["--evaluate", "last.pt"], ["--resume", "last.pt"]):
        assert options.given_flags(parser.parse_args(action)) == {}


def test_flags_that_are_not_given_take_their_defaults():
    expected = {
        **{"method": "smr", "alpha": 4.0, "T": 0.5, "p_threshold": 0.5, "warmup_loss": "mixup"},
        **{"augment": "weak"},
        **{"id": "", "seed": 123, "device": "auto", "gpuid": 0, "output": "./checkpoint"},
        **{"save_every": 1, "review": 500},
        **{"amp": False, "compile": False, "channels_last": True},
    }
    config = resolve()
    assert {flag: config[flag] for flag in expected} == expected


def test_flags_of_speed_are_those_that_suit_the_device(monkeypatch):
    monkeypatch.setattr(options, "can_compile", lambda device: True)
    on_cuda = {"amp": True, "compile": True, "channels_last": True}
    assert options.speed_of(CUDA) == on_cuda
    for device in (CPU, torch.device("mps")):
        assert options.speed_of(device) == on_cuda | {"amp": False, "compile": False}
    monkeypatch.setattr(options, "can_compile", lambda device: False)
    assert options.speed_of(CUDA) == on_cuda | {"compile": False}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--method", "ce"], ("ce", 0, 0)),
        (["--method", "ce", "--warm_up", "0", "--warmup_loss", "ce"], ("ce", 0, 0)),
        (["--method", "dividemix"], ("ce", 0, 10)),
        (["--method", "dividemix", "--warmup_loss", "mixup"], ("mixup", 0, 10)),
        (["--warm_up", "7"], ("mixup", 30, 7)),
    ],
)
def test_a_baseline_is_a_method_with_its_own_warm_up_and_recalibration(flags, expected):
    config = resolve(*flags)
    assert (config["warmup_loss"], config["recalibrate_every"], config["warm_up"]) == expected


@pytest.mark.parametrize("flag", ["--warm_up 1", "--recalibrate_every 1", "--warmup_loss mixup"])
def test_plain_cross_entropy_has_no_warm_up_and_no_recalibration(flag):
    name, value = flag.split()
    with pytest.raises(InputError, match=f"^{name} with --method ce: it has no warm-up, no recal"):
        resolve("--method", "ce", name, value)


def test_joint_batch_statistics_need_several_cuda_cards(monkeypatch):
    assert options.joint_bn({}, CUDA) == {}
    assert options.joint_bn({"sync_bn": False}, CPU) == {}
    with pytest.raises(InputError, match="--sync_bn on: only under torchrun, on several CUDA"):
        options.joint_bn({"sync_bn": True}, CUDA)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert options.joint_bn({}, CPU) == {}
    with pytest.raises(InputError, match="only under torchrun"):
        options.joint_bn({"sync_bn": True}, CPU)
    assert options.joint_bn({}, CUDA) == {"sync_bn": True, "compile": False}
    assert options.joint_bn({"sync_bn": False, "compile": True}, CUDA) == {}
    with pytest.raises(InputError, match="--compile on with --sync_bn on"):
        options.joint_bn({"compile": True}, CUDA)


def test_the_number_of_classes_is_the_data_s():
    config = {}
    options.settle_num_class(config, 7, "photos")
    assert config == {"num_class": 7}
    options.settle_num_class(config, 7, "photos")
    with pytest.raises(InputError, match=r"^--num_class 7: photos has 8 classes$"):
        options.settle_num_class(config, 8, "photos")


def test_values_that_undo_each_other_are_told():
    sound = {"num_epochs": 10, "warm_up": 10, "lr_steps": ((10, 0.1),), "batch_size": 50}
    sound |= {"method": "smr", "recalibrate_every": 4}
    assert options.contradictions(sound, train_images=50) == []
    assert options.contradictions(sound | {"warm_up": 11}, 50) == [
        "the warm-up lasts as long as the run, to epoch 10: no labels are judged"
    ]
    assert (
        options.contradictions(sound | {"warm_up": 11, "method": "ce", "recalibrate_every": 0}, 50)
        == []
    )
    assert options.contradictions(sound | {"method": "dividemix"}, 50) == [
        "dividemix has no recalibration: with --recalibrate_every 4 this is another method"
    ]
    steps = ((5, 0.5), (11, 0.1), (12, 0.01))
    assert options.contradictions(sound | {"lr_steps": steps}, 50) == [
        "learning-rate steps at 11, 12 are beyond the last epoch, 10"
    ]
    assert options.contradictions(sound, 49) == [
        "a batch of 50 is larger than the set of 49 images"
    ]


# --- resuming ---


def stored(device="cpu", **config) -> dict:
    """A checkpoint's part that tells its flags."""
    flags = {"lr": 0.02, "lr_steps": ((50, 0.1),), "num_epochs": 60, "method": "smr", "id": ""}
    flags["augment"] = "weak"
    speed = {"amp": False, "compile": False, "channels_last": True}
    return {"device": device, "config": flags | speed | config}


def test_a_resumed_run_keeps_its_flags():
    state = stored()
    assert options.continued(state, {}, CPU, "last.pt") == state["config"]
    same = {"lr": 0.02, "lr_steps": ((50, 0.1),), "num_epochs": 60, "amp": False}
    assert options.continued(state, same, CPU, "last.pt") == state["config"]


@pytest.mark.parametrize(
    "flag",
    ["device", "gpuid", "output", "id", "save_every", "data_path", "download", "num_workers",
     "review", "noise_file", "skip_broken"],
)  # fmt: skip
def test_a_flag_that_changes_no_number_may_change(flag):
    assert options.continued(stored(), {flag: "other"}, CPU, "last.pt")[flag] == "other"


def test_the_number_of_epochs_may_grow_and_not_shrink():
    assert options.continued(stored(), {"num_epochs": 61}, CPU, "last.pt")["num_epochs"] == 61
    with pytest.raises(InputError, match=r"--num_epochs 59 \(the run has 60\)"):
        options.continued(stored(), {"num_epochs": 59}, CPU, "last.pt")


def test_each_flag_that_would_change_numbers_is_named_with_what_the_run_has():
    given = {"lr": 0.1, "id": "x", "lr_steps": (), "method": "ce", "amp": True, "width": 8}
    with pytest.raises(InputError) as caught:
        options.continued(stored(), given, CPU, "runs/last.pt")
    assert str(caught.value) == (
        "runs/last.pt cannot go on with --lr 0.1 (the run has 0.02), "
        "--lr_steps  (the run has 50:0.1), --method ce (the run has smr), "
        "--amp bf16 (the run has off), --width 8 (the run has None)"
    )


def test_a_run_that_is_older_than_strong_views_goes_on_with_weak_ones_alone():
    older = stored()
    del older["config"]["augment"]
    assert options.continued(older, {"augment": "weak"}, CPU, "last.pt")["augment"] == "weak"
    with pytest.raises(InputError, match=r"--augment strong \(the run has weak\)"):
        options.continued(older, {"augment": "strong"}, CPU, "last.pt")


def test_strong_views_are_refused_where_nothing_is_mixed():
    assert resolve("--augment", "strong")["augment"] == "strong"
    assert resolve("--method", "ce", "--augment", "weak")["augment"] == "weak"
    with pytest.raises(InputError, match="--augment strong with --method ce"):
        resolve("--method", "ce", "--augment", "strong")


def test_on_another_kind_of_device_the_flags_of_speed_are_that_one_s():
    state = stored(device="cuda", amp=True, compile=True, channels_last=False)
    kept = options.continued(state, {}, CPU, "last.pt")
    assert not {"amp", "compile", "channels_last"} & kept.keys()
    assert kept["lr"] == 0.02
    assert options.continued(state, {"amp": True}, CPU, "last.pt")["amp"] is True
    assert options.continued(state, {}, CUDA, "last.pt") == state["config"]
    with pytest.raises(InputError, match=r"--lr 1 \(the run has 0\.02\)"):
        options.continued(state, {"lr": 1.0}, CPU, "last.pt")


def test_between_one_process_and_several_the_flags_of_speed_are_free(monkeypatch):
    several = stored(device="cuda", sync_bn=True) | {"ranks": 2}
    assert "sync_bn" not in options.continued(several, {}, CUDA, "last.pt")
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert options.continued(several, {}, CUDA, "last.pt")["sync_bn"] is True
    alone = stored(device="cuda", compile=True)
    assert "compile" not in options.continued(alone, {}, CUDA, "last.pt")


def test_compilation_on_without_a_compiler_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(options, "can_compile", lambda device: False)
    with pytest.raises(SystemExit) as stop:
        train_animal10N.main(["--compile", "on", "--device", "cpu"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "train_animal10N.py: error: --compile on: this machine lacks a C compiler or Python's "
        "headers (Python.h, in a package such as python3-dev); leave it off\n"
    )
    assert resolve("--compile", "off")["compile"] is False

"""README's promises: its code runs, its commands parse, its tables name every flag and metric."""

import re
import shlex
from pathlib import Path

import pytest

import train_animal10N
import train_cifar

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SCRIPTS = {"train_cifar.py": train_cifar, "train_animal10N.py": train_animal10N}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace(" && ", "\n").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("python train_")]


def test_the_method_example_trains_three_epochs(capsys):
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1], {})
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert [kind for _, kind, _ in shown] == ["warm-up"] * 2 + ["semi-supervised"] * 2
    assert all(10 < float(accuracy) <= 100 for _, _, accuracy in shown)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_of_the_readme_is_understood(command):
    _, script, *arguments = command
    SCRIPTS[script].new_parser().parse_args(arguments)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_the_readme_names_every_flag(script):
    flags = {flag for action in script.new_parser()._actions for flag in action.option_strings}
    missing = {flag for flag in flags if f"`{flag}" not in README and f"({flag}" not in README}
    assert missing <= {"-h", "--help"}

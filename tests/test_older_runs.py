"""Runs of before the package `smr` go on: their folder's name, their checkpoint's form."""

import json

import torch
from runs import SHORT_RUN, rows_of

import train_cifar
from smr.run.checkpoints import load


def older(state: dict) -> dict:
    """A last.pt as it was saved then."""
    words = {"amp": ("off", "bf16"), "compile": ("off", "on"), "channels_last": ("off", "on")}
    state["config"] |= {flag: both[state["config"][flag]] for flag, both in words.items()}
    state["histories"] = [[losses for _, losses in history] for history in state["histories"]]
    state["rows"] = [json.dumps(row) for row in state["rows"]]
    return {key: value for key, value in state.items() if key not in ("script", "images")}


def test_an_older_run_goes_on_in_its_folder_as_if_nothing_had_happened(tmp_path):
    flags = [*SHORT_RUN, "--output", str(tmp_path / "old")]
    assert train_cifar.main([*SHORT_RUN, "--output", str(tmp_path / "new")]) == 0
    assert train_cifar.main([*flags, "--num_epochs", "3"]) == 0
    (folder,) = (tmp_path / "old").iterdir()
    folder = folder.rename(folder.with_name("digits_0.5_sym_seed123"))
    torch.save(older(load(folder / "last.pt")), folder / "last.pt")
    assert train_cifar.main([*flags, "--resume"]) == 0
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["digits_0.5_sym_seed123"]
    (straight,) = (tmp_path / "new").iterdir()
    assert rows_of(folder) == rows_of(straight)

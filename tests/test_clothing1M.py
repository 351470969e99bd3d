"""Clothing1M: balanced samples, selection on the validation set, and train_clothing1M.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import plain_images, tiny_config, tiny_pair
from photo_sets import write_clothing, write_imbalanced_clothing
from runs import assert_same, assert_same_run, rows_of, watched_disk
from torch import nn

import compare_runs
import smr
import train_clothing1M
from dataloader_clothing1M import balanced_sample, clothing_dataloader, read_part
from losses import NegEntropy
from smr.data.image_file_dataset import Frame
from smr.errors import InputError
from smr.photos import build_network
from train_clothing1M import ClothingConfig

TINY = (
    *("--network", "preact_resnet18", "--width", "2", "--image_size", "32", "--resize", "36"),
    *("--pretrained", "off", "--batch_size", "7", "--num_batches", "4", "--recalibrate_every", "3"),
    *("--review", "0", "--num_workers", "0", "--lr", "0.05"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six training photos, two validation and two test photos of each of the 14 classes."""
    return write_clothing(tmp_path_factory.mktemp("clothing"))


def loader_of(root, num_batches=4, batch_size=7) -> clothing_dataloader:
    return clothing_dataloader(root, batch_size, 0, num_batches, Frame(36, 32))


@pytest.mark.parametrize("count", [14, 20, 50, 140, 1000])
def test_a_sample_has_of_each_class_its_share_or_all_that_there_are(count):
    weights = np.random.default_rng(0).random(14) ** 2
    labels = np.random.default_rng(1).choice(14, 300, p=weights / weights.sum())
    sample = balanced_sample(labels, count, np.random.default_rng(2))
    share = -(-count // 14)  # the class that reaches it is full: of 20 images two are of a class
    expected = np.minimum(np.bincount(labels, minlength=14), share)
    counts = np.bincount(labels[sample], minlength=14)
    assert len(set(sample.tolist())) == len(sample) == min(count, expected.sum())
    assert (counts <= expected).all()
    assert len(sample) == count or (counts == expected).all()


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory):
    return write_imbalanced_clothing(tmp_path_factory.mktemp("imbalanced"))


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_of_an_imbalanced_dataset_mix_the_classes_to_the_end(imbalanced, seed):
    loader = clothing_dataloader(imbalanced, 8, 0, 60, Frame(8, 8), seed=seed)
    for mode in ("warmup", "eval_train", "recalibrate"):
        labels = torch.cat([labels for _, labels, _ in loader.run(mode)])
        assert len(labels[-140:].unique()) == 14
    # So a recalibration epoch forgets no class.
    config = tiny_config(batch_size=8, lr=0.02)
    torch.manual_seed(seed)
    pair = tiny_pair(config, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 14)))
    for network, optimizer in zip(pair.networks, pair.optimizers, strict=True):
        smr.cross_entropy_epoch(network, optimizer, loader.run("recalibrate"), config)
    accuracy = smr.evaluate(pair.networks, loader.run("test"), config)[0]["accuracy"]
    assert accuracy > 75  # 41 to 54 in the order in which the photos are taken


def positions(batches) -> list[int]:
    return torch.cat([batch[-1] for batch in batches]).tolist()


def test_each_mode_has_balanced_samples_of_its_size(root):
    loader = loader_of(root)
    for mode, count, batch_size in (("warmup", 56, 14), ("eval_train", 28, 7)):
        passes = [loader.run(mode) for _ in range(2)]
        first, second = (positions(batches) for batches in passes)
        assert sorted(first) != sorted(second)
        assert len(set(first)) == len(first) == count
        assert set(np.bincount(loader.noisy_labels[first]).tolist()) == {count // 14}
        assert {len(batch[0]) for batch in passes[0]} == {batch_size}
    assert positions(loader.run("whole")) == list(range(84))


def test_recalibration_has_one_sample_for_both_networks_not_augmented(root):
    loader = loader_of(root)
    first, second = (list(loader.run("recalibrate")) for _ in range(2))
    assert positions(first) == positions(second) != sorted(positions(first))
    assert [len(images) for images, *_ in first] == [7] * 4
    plain = plain_images(loader, "whole")
    for images, _, index in first + second:
        assert torch.equal(images, plain[index])
    scored = positions(loader.run("eval_train"))
    assert scored != positions(first)
    assert positions(loader.run("recalibrate")) != positions(first)


@pytest.mark.parametrize("inside", [False, True])
def test_the_data_path_is_the_folder_above_the_photos_or_images_itself(inside, tmp_path):
    folder = write_clothing(tmp_path / "clothing", train=1, clean=1)
    if inside:  # the lists lie with the photos, as in the published script
        for path in folder.glob("*.txt"):
            path.rename(folder / "images" / path.name)
        folder = folder / "images"
    loader = loader_of(folder)
    assert len(loader.files) == 14 and loader.test_sets == ("val", "test")
    assert loader.files[3] == (
        "3/0/noisy_train,3,0.jpg" if inside else "images/3/0/noisy_train,3,0.jpg"
    )
    assert loader.noisy_labels.tolist() == list(range(14))
    assert all(len(images) for images, *_ in loader.run("whole"))


def test_lists_above_images_serve_the_folder_images_too(root):
    assert loader_of(root / "images").files == [f[7:] for f in loader_of(root).files]


def test_labels_are_those_of_the_lists(root):
    noisy = read_part(root, "noisy", "noisy_train_key_list.txt", root)
    wrong = [i % 6 % 3 == 2 for i in range(84)]
    assert noisy.labels.tolist() == [(i // 6 + wrong[i]) % 14 for i in range(84)]
    clean = read_part(root, "clean", "clean_test_key_list.txt", root)
    assert clean.labels.tolist() == [i // 2 for i in range(28)]


def test_a_missing_or_empty_list_is_named_with_its_source(tmp_path):
    write_clothing(tmp_path, train=1, clean=1)
    for name, change in (
        ("clean_val_key_list.txt", lambda path: path.write_text("")),
        ("clean_val_key_list.txt", Path.unlink),
        ("noisy_label_kv.txt", Path.unlink),
    ):
        change(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: .*; Clothing1M's authors"):
            loader_of(tmp_path)


def test_a_photo_without_a_label_or_with_one_out_of_range_is_refused(tmp_path):
    path = write_clothing(tmp_path, train=1, clean=1) / "noisy_label_kv.txt"
    *lines, last = path.read_text().splitlines()
    for text, label in (("", "missing"), (last.replace(" 13", " 14"), "14")):
        path.write_text("\n".join([*lines, text]))
        message = rf"{path.name}: the label of images/3/0/noisy_train,13,0.jpg is {label}, not 0"
        with pytest.raises(InputError, match=message):
            loader_of(tmp_path)


def test_the_hyperparameters_are_the_published_ones():
    expected = {
        **{"num_epochs": 80, "num_batches": 1000, "batch_size": 32, "lr": 0.002, "alpha": 0.5},
        **{"lr_steps": ((40, 0.1),), "weight_decay": 1e-3, "warm_up": 1, "recalibrate_every": 10},
        **{"lambda_u": 0.0, "labeled_rows_only": True, "image_size": 224, "resize": 256},
        **{"network": "resnet50", "pretrained": True, "num_class": 14, "SELECT_ON": "val"},
        **{"freeze_backbone": None},
    }
    config = smr.configure(ClothingConfig, device="cpu")
    assert {name: getattr(config, name) for name in expected} == expected


def test_dividemix_always_has_the_negative_entropy_penalty_in_its_warm_up(root):
    flags = {"network": "preact_resnet18", "width": 2, "image_size": 32, "pretrained": False}
    flags |= {"batch_size": 7, "lr": 1e-12}  # the weights do not change
    config = smr.configure(ClothingConfig, method="dividemix", device="cpu", **flags)
    pair = smr.new_pair(lambda: build_network(config), config, "cpu")
    loader = loader_of(root)
    state = loader.generator.get_state()
    figures = smr.new_method(config, pair, loader).train_epoch(0).metrics
    loader.generator.set_state(state)
    losses = []
    with torch.no_grad():
        for images, labels, _ in loader.run("warmup"):
            logits = pair.networks[0](images)
            losses.append(F.cross_entropy(logits, labels) + NegEntropy()(logits))
    assert len(losses) == 4
    assert figures["train/net1/loss"] == pytest.approx(np.mean(losses), abs=1e-4)


def run(root, output, *flags) -> int:
    paths = ("--data_path", str(root), "--output", str(output))
    return train_clothing1M.main([*paths, *TINY, "--num_epochs", "2", *flags])


def test_best_pt_has_each_network_s_best_by_validation_and_a_resumed_run_ends_alike(
    root, tmp_path, capsys
):
    folder = tmp_path / "whole" / "clothing1M_smr_seed123"
    killed = tmp_path / "parts" / folder.name
    states = []  # of the networks, before the first epoch and after each one

    def after(path):
        if path.name == "last.pt":
            states.append(torch.load(path, weights_only=True)["networks"])
            if len(states) == 3:
                shutil.copytree(folder, killed)

    with watched_disk(after=after):
        assert run(root, tmp_path / "whole") == 0
    log = capsys.readouterr().out
    rows = rows_of(folder)
    assert [row["kind"] for row in rows] == ["warm-up", "semi-supervised", "recalibration"]
    assert rows[0]["train/net1/images"] == 56 and rows[2]["train/net1/images"] == 28
    assert rows[1]["split/net1/labeled"] + rows[1]["split/net1/unlabeled"] == 28
    epochs = [int(np.argmax([row[f"val/net{k}/accuracy"] for row in rows])) for k in (1, 2)]
    best = torch.load(folder / "best.pt", weights_only=True)["networks"]
    for k, epoch in enumerate(epochs):
        assert_same(best[k], states[epoch + 1][k], f"network {k}")
    assert f"selected by val accuracy: networks of epochs {epochs[0]} and {epochs[1]}" in log
    first = f"Validation Acc: {rows[0]['val/accuracy']:.2f}%"
    second = f"Test Acc: {rows[0]['test/accuracy']:.2f}%"
    assert (folder / "acc.txt").read_text().startswith(f"Epoch:0 \t {first} \t {second}\n")
    assert (folder / "labels.csv").read_text(encoding="utf-8-sig").count("\n") == 85
    described = json.loads((folder / "config.json").read_text())
    assert len(described["class_names"]) == 14
    # Resumes with the recalibration epoch, whose sample no epoch of this process has scored.
    assert run(root, tmp_path / "parts", "--resume") == 0
    assert_same_run(killed, folder)
    selected = f"{described['selected_accuracy']:.2f}"
    assert log.split("test accuracy ")[1].split()[0] == selected
    assert f" {selected} " in compare_runs.compare([folder]).splitlines()[2]
    assert train_clothing1M.main(["--evaluate", str(folder / "best.pt")]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "best.pt, epoch" in line]
    assert any(f"accuracy {selected} %" in line for line in shown)
    assert len(set(epochs)) == 2  # so no stored accuracy is that of the pair
    assert all(f"epoch {epochs[0]} and {epochs[1]}: " in line for line in shown)
    assert not any("stored" in line for line in shown)

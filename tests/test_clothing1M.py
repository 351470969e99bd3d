"""Clothing1M: samples and selection against plain loops, and its script as a user runs it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TinyNet, tiny_pair, tiny_recipe
from photo_sets import write_clothing, write_imbalanced_clothing
from runs import assert_same, assert_same_run, rows_of
from smr.recipe import recipe_of
from torch import nn

import compare_runs
import smr
import train_clothing1M
from dataloader_clothing1M import balanced_sample, clothing_dataloader, read_part
from losses import NegEntropy
from smr.data.image_file_dataset import Frame
from smr.errors import InputError
from smr.run import options
from smr.run import run as session

TINY = (
    *("--network", "preact_resnet18", "--width", "2", "--image_size", "32", "--pretrained", "off"),
    *("--batch_size", "7", "--num_batches", "4", "--recalibrate_every", "3"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six training photos, two validation and two test photos of each of the 14 classes."""
    return write_clothing(tmp_path_factory.mktemp("clothing"))


def loader_of(root, num_batches=4, batch_size=7) -> clothing_dataloader:
    return clothing_dataloader(root, batch_size, 0, num_batches, Frame(36, 32))


def sampled_slowly(labels, count, order) -> list[int]:
    """Method 9's choice: each while its class has fewer than n/14 and the sample fewer than n."""
    taken, of_class = [], [0] * 14
    for i in order:
        if of_class[labels[i]] < count / 14 and len(taken) < count:
            taken.append(int(i))
            of_class[labels[i]] += 1
    return taken


@pytest.mark.parametrize("count", [14, 20, 50, 140, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sample_is_that_of_the_plain_loop(count, seed):
    weights = np.random.default_rng(seed).random(14) ** 2
    labels = np.random.default_rng(seed).choice(14, 300, p=weights / weights.sum())
    draw = np.random.default_rng(seed)
    sample = sampled_slowly(labels, count, draw.permutation(300))
    found = balanced_sample(labels, count, np.random.default_rng(seed))
    assert found.tolist() == draw.permutation(sample).tolist()


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory):
    return write_imbalanced_clothing(tmp_path_factory.mktemp("imbalanced"))


@pytest.mark.parametrize("mode", ["warmup", "eval_train", "recalibrate"])
def test_the_last_batches_of_a_sample_hold_all_classes(imbalanced, mode):
    loader = clothing_dataloader(imbalanced, 8, 0, 175, Frame(8, 8))
    labels = torch.cat([labels for _, labels, _ in loader.run(mode)])
    assert len(labels[-140:].unique()) == 14


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_recalibration_epoch_on_an_imbalanced_set_does_not_forget_classes(imbalanced, seed):
    loader = clothing_dataloader(imbalanced, 8, 0, 175, Frame(8, 8), seed=seed)
    recipe = tiny_recipe(batch_size=8, lr=0.02)
    torch.manual_seed(seed)
    pair = tiny_pair(recipe, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 14)))
    for network, optimizer in zip(pair.networks, pair.optimizers, strict=True):
        smr.cross_entropy_epoch(network, optimizer, loader.run("recalibrate"), recipe)
    accuracy = smr.test(pair.networks, loader.run("test"), recipe)[0]["accuracy"]
    assert accuracy > 60  # 21 to 34 in the order of choosing


def positions(batches) -> list[int]:
    return torch.cat([batch[-1] for batch in batches]).tolist()


def test_an_epoch_s_passes_see_balanced_samples_of_their_sizes(root):
    loader = loader_of(root)
    for mode, count, batch_size in (("warmup", 56, 14), ("eval_train", 28, 7)):
        passes = [loader.run(mode) for _ in range(2)]
        first, second = (positions(batches) for batches in passes)
        assert sorted(first) != sorted(second)
        assert len(set(first)) == len(first) == count
        assert set(np.bincount(loader.noisy_labels[first]).tolist()) == {count // 14}
        assert {len(batch[0]) for batch in passes[0]} == {batch_size}
    assert positions(loader.run("whole")) == list(range(84))


def test_recalibration_is_on_one_plain_sample_for_both_networks(root):
    loader = loader_of(root)
    first, second = (list(loader.run("recalibrate")) for _ in range(2))
    assert positions(first) == positions(second) != sorted(positions(first))
    assert [len(images) for images, *_ in first] == [7] * 4
    assert all(torch.equal(one[0], other[0]) for one, other in zip(first, second, strict=True))
    plain = {
        i: image
        for images, _, at in loader.run("whole")
        for image, i in zip(images, at.tolist(), strict=True)
    }
    assert all(
        torch.equal(image, plain[i])
        for images, _, at in first
        for image, i in zip(images, at.tolist(), strict=True)
    )
    scored = positions(loader.run("eval_train"))
    assert scored != positions(first)
    assert positions(loader.run("recalibrate")) != positions(first)


def test_each_network_trains_on_what_the_other_one_scored(root, monkeypatch):
    loader, asked = loader_of(root), []
    run = loader.run

    def noting(mode, pred=(), prob=(), index=None, **options):
        batches = run(mode, pred, prob, index, **options)
        served = batches.dataset if mode == "eval_train" else index
        asked.append((mode, None if served is None else sorted(np.asarray(served).tolist())))
        return batches

    monkeypatch.setattr(loader, "run", noting)
    recipe = tiny_recipe(warm_up=0, num_epochs=0, batch_size=7, lambda_u=0.0)
    pair = tiny_pair(recipe, lambda: TinyNet(14))
    list(smr.train(pair, loader, recipe, note=lambda _: None))
    (_, scored_by_1), (_, scored_by_2), first, second = asked[:4]
    assert scored_by_1 != scored_by_2
    assert first == ("train", scored_by_2) and second == ("train", scored_by_1)


@pytest.mark.parametrize("inside", [False, True])
def test_the_photos_are_found_from_the_folder_above_and_from_images_itself(root, inside, tmp_path):
    held = tmp_path / "clothing"
    write_clothing(held, train=1, held=1)
    if inside:  # the lists lie with the photos, as the published script wants them
        for path in held.glob("*.txt"):
            path.rename(held / "images" / path.name)
        held = held / "images"
    loader = loader_of(held)
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


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("noisy_label_kv.txt", "nor in"),
        ("clean_val_key_list.txt", "there is no such file; Clothing1M's authors"),
    ],
)
def test_what_is_missing_is_named_with_where_to_get_it(tmp_path, gone, words):
    write_clothing(tmp_path / "set", train=1, held=1)
    (tmp_path / "set" / gone).unlink()
    with pytest.raises(InputError, match=f"set/{gone}: .*{words}"):
        loader_of(tmp_path / "set")


def test_an_empty_list_is_named(tmp_path):
    write_clothing(tmp_path, train=1, held=1)
    (tmp_path / "clean_val_key_list.txt").write_text("")
    with pytest.raises(InputError, match=r"clean_val_key_list.txt: names no photo"):
        loader_of(tmp_path)


def test_a_photo_without_label_or_with_a_strange_one_is_refused(tmp_path):
    write_clothing(tmp_path, train=1, held=1)
    labels = tmp_path / "noisy_label_kv.txt"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"noisy_label_kv.txt has no label of images/3/0/noisy"):
        loader_of(tmp_path)
    labels.write_text("\n".join([*lines[:-1], lines[-1].replace(" 13", " 14")]))
    with pytest.raises(InputError, match=r"noisy_train,13,0.jpg is not 0 to 13"):
        loader_of(tmp_path)


def test_the_recipe_is_the_published_one():
    given = options.given_flags(train_clothing1M.new_parser().parse_args([]))
    config = train_clothing1M.resolve(given, torch.device("cpu"))
    wanted = {
        **{"num_epochs": 80, "num_batches": 1000, "batch_size": 32, "lr": 0.002, "alpha": 0.5},
        **{"lr_steps": ((40, 0.1),), "weight_decay": 1e-3, "warm_up": 1, "recalibrate_every": 10},
        **{"lambda_u": 0.0, "labeled_rows_only": True, "image_size": 224, "resize": 256},
        **{"network": "resnet50", "pretrained": True, "num_class": 14, "select_on": "val"},
    }
    assert {name: config[name] for name in wanted} == wanted


@pytest.mark.parametrize("flags", [[], ["--noise_file", "list.json"]])
def test_dividemix_always_has_the_negative_entropy_penalty_in_its_warm_up(root, flags, monkeypatch):
    parsed = train_clothing1M.new_parser().parse_args(["--method", "dividemix", *flags])
    config = train_clothing1M.resolve(options.given_flags(parsed), torch.device("cpu"))
    recipe, losses = replace(recipe_of(config), batch_size=7), []
    penalty = NegEntropy.__call__
    monkeypatch.setattr(
        NegEntropy, "__call__", lambda self, x: losses.append(1) or penalty(self, x)
    )
    pair = tiny_pair(recipe, lambda: TinyNet(14))
    smr.warm_up_epoch(pair.networks[0], pair.optimizers[0], loader_of(root).run("warmup"), recipe)
    assert len(losses) == 4


def train(root, output, *flags) -> int:
    shared = ["--data_path", str(root), "--output", str(output), "--num_workers", "0", *TINY]
    return train_clothing1M.main([*shared, *flags])


def test_a_run_keeps_each_network_s_best_by_validation_and_a_resumed_one_ends_alike(
    root, tmp_path, monkeypatch, capsys
):
    states, keep = [], session.checkpoints.keep

    def noting(state, *about):
        states.append(state["networks"])
        return keep(state, *about)

    monkeypatch.setattr(session.checkpoints, "keep", noting)
    assert train(root, tmp_path / "whole", "--num_epochs", "4", "--lr", "0.05") == 0
    log = capsys.readouterr().out
    folder = tmp_path / "whole" / "clothing1M_smr_seed123"
    rows = rows_of(folder)
    assert [row["kind"][:4] for row in rows] == ["warm", "semi", "reca", "semi", "semi"]
    assert rows[0]["train/net1/images"] == 56 and rows[2]["train/net1/images"] == 28
    assert rows[1]["split/net1/labeled"] + rows[1]["split/net1/unlabeled"] == 28
    epochs = [int(np.argmax([row[f"val/net{k}/accuracy"] for row in rows])) for k in (1, 2)]
    best = torch.load(folder / "best.pt", weights_only=True)["networks"]
    for k, epoch in enumerate(epochs):
        assert_same(dict(best[k]), states[epoch][k], f"network {k}")
    assert f"selected by val accuracy: networks of epochs {epochs[0]} and {epochs[1]}" in log
    first = f"Validation Acc: {rows[0]['val/accuracy']:.2f}%"
    second = f"Test Acc: {rows[0]['test/accuracy']:.2f}%"
    assert (folder / "acc.txt").read_text().startswith(f"Epoch:0 \t {first} \t {second}\n")
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == 84
    assert len(json.loads((folder / "config.json").read_text())["class_names"]) == 14
    parts = tmp_path / "parts"
    assert train(root, parts, "--num_epochs", "1", "--lr", "0.05") == 0
    # Goes on with the recalibration epoch, whose sample no epoch of this process has scored.
    assert train(root, parts, "--num_epochs", "4", "--lr", "0.05", "--resume") == 0
    assert_same_run(parts / folder.name, folder)
    test_accuracy = float(log.split("test accuracy ")[1].split()[0])
    selected = json.loads((folder / "config.json").read_text())["selected_accuracy"]
    assert f"{selected:.2f}" == f"{test_accuracy:.2f}"
    assert f" {selected:.2f} " in compare_runs.compare([folder]).splitlines()[2]
    assert train_clothing1M.main(["--evaluate", str(folder / "best.pt")]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "best.pt, epoch" in line]
    assert any(f"accuracy {test_accuracy:.2f} %" in line for line in told)
    assert len(set(epochs)) == 2  # then what is stored of one epoch is not said of the pair
    assert all(f"epoch {epochs[0]} and {epochs[1]}: " in line for line in told)
    assert not any("stored" in line for line in told)


def test_networks_of_different_best_epochs_are_kept_apart(tmp_path):
    parts = dict.fromkeys((*session.checkpoints.NETWORK_PARTS, "ranks"))
    torch.save(parts | {"networks": ["a0", "b0"]}, tmp_path / "best.pt")
    second = parts | {"epoch": 1, "networks": ["a1", "b1"]}  # the best of network 2 alone
    assert session.checkpoints.keep(second, tmp_path, best_epochs=(0, 1), last=False) == []
    kept = torch.load(tmp_path / "best.pt")
    assert kept["networks"] == ["a0", "b1"] and kept["epochs"] == (0, 1)
    (tmp_path / "best.pt").unlink()  # as where the disk was full at epoch 0
    session.checkpoints.keep(second, tmp_path, best_epochs=(0, 1), last=False)
    kept = torch.load(tmp_path / "best.pt")
    assert kept["networks"] == ["a1", "b1"] and "epochs" not in kept

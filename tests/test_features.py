"""--freeze_backbone on: features of photos, heads, whole networks in best.pt; fine-tuning."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused, tiny_config, tiny_loader
from photos import write_photos
from runs import assert_same, assert_same_run, metrics_of
from torch import nn

import predict
import smr
import train_folder
from PreResNet import ResNet18
from smr import devices, features, networks
from smr.errors import InputError
from smr.label_issues.report import compute_label_issues

TINY = (
    *("--network", "preact_resnet18", "--width", "2", "--image_size", "32", "--device", "cpu"),
    *("--num_workers", "0", "--batch_size", "8", "--num_epochs", "2", "--warm_up", "1"),
    *("--recalibrate_every", "3", "--lr_steps", "2:0.1", "--review", "0", "--lr", "0.1"),
)
NAME = "folder_smr_seed123"
COUNTS = {"apple": 9, "pear": 7, "plum": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """21 training photos and 15 test photos of three classes, and weights of the tiny network."""
    folder = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(3)
    torch.save(ResNet18(7, 2).state_dict(), folder / "weights.pt")
    write_photos(folder / "photos", COUNTS)
    write_photos(folder / "photos", dict.fromkeys(COUNTS, 5), "testing")
    return folder


def paths_of(root: Path) -> tuple[str, ...]:
    return "--data_path", str(root / "photos"), "--weights", str(root / "weights.pt")


def train(root: Path, output: Path, *flags: str) -> int:
    return train_folder.main([*TINY, *paths_of(root), "--output", str(output), *flags])


@pytest.fixture(scope="module")
def straight(root, tmp_path_factory) -> Path:
    """The folder of a run that was not interrupted."""
    output = tmp_path_factory.mktemp("straight")
    assert train(root, output) == 0
    return output / NAME


def photo_loader(root: Path):
    """The loader of the photos of the runs above."""
    paths = {"data_path": str(root / "photos"), "weights": str(root / "weights.pt")}
    small = {"network": "preact_resnet18", "width": 2, "image_size": 32, "batch_size": 8}
    config = smr.configure(train_folder.FolderConfig, **paths, **small, device="cpu", num_workers=0)
    return train_folder.make_loader(config, torch.device("cpu"))


def stored(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in (folder / "features").glob("*.npy")}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "features").glob("*.npy")}


def test_features_are_the_penultimate_outputs_of_the_pretrained_network(root, straight):
    photos = photo_loader(root)
    network = ResNet18(7, 2)
    network.load_state_dict(torch.load(root / "weights.pt", weights_only=True))
    network.linear = nn.Identity()
    network.eval()
    found = stored(straight)
    assert found.keys() == {"train_0", "train_1", "train_2", "test"}
    for name, mode in {"train_0": "whole", "test": "test"}.items():
        images, _, index = zip(*photos.run(mode), strict=True)
        with torch.no_grad():
            expected = network(torch.cat(images))
        assert found[name].dtype == np.float16 and found[name].shape == tuple(expected.shape)
        values = torch.from_numpy(found[name])[torch.cat(index)].float()
        assert torch.allclose(values, expected, rtol=2e-3, atol=1e-3), name
        assert expected.std(dim=0).max() > 0.01  # not all photos alike
    assert (found["train_0"] != found["train_1"]).any(axis=1).all()
    assert (found["train_2"] != found["train_1"]).any(axis=1).all()


def test_whole_networks_of_best_return_the_logits_of_heads_on_features(root, straight):
    state, last = (torch.load(straight / f"{n}.pt", weights_only=True) for n in ("best", "last"))
    assert last["networks"][0].keys() == {"weight", "bias"}  # nothing but the heads trains
    images, _, index = zip(*photo_loader(root).run("test"), strict=True)
    values = torch.from_numpy(stored(straight)["test"])[torch.cat(index)].float()
    backbone = torch.load(root / "weights.pt", weights_only=True)
    for saved in state["networks"]:
        network, (weight, bias) = ResNet18(3, 2), (saved[f"linear.{n}"] for n in ("weight", "bias"))
        network.load_state_dict(saved)
        with torch.no_grad():
            logits = network.eval()(torch.cat(images))
        assert torch.allclose(values @ weight.T + bias, logits, atol=1e-2)
        for name, value in backbone.items():
            assert name.startswith("linear.") or torch.equal(saved[name], value)
    accuracies = [row["test/accuracy"] for row in metrics_of(straight)]
    assert state["accuracy"] == max(accuracies) == accuracies[state["epoch"]]


def assert_evaluate_prints_the_stored_accuracy(root: Path, folder: Path, capsys, *flags: str):
    for name in ("best.pt", "last.pt"):
        assert train(root, folder.parent, *flags, "--evaluate", str(folder / name)) == 0
        line = next(t for t in capsys.readouterr().out.splitlines() if "test accuracy" in t)
        accuracy = f"{torch.load(folder / name, weights_only=True)['accuracy']:.2f} %"
        assert f"test accuracy {accuracy} (stored {accuracy})" in line


def test_the_stored_accuracy_is_what_evaluate_load_and_predict_find(root, straight, capsys):
    before = times(straight)
    assert_evaluate_prints_the_stored_accuracy(root, straight, capsys)
    assert times(straight) == before
    predictor = smr.load(straight)
    files = sorted((root / "photos" / "testing").rglob("*.png"))
    images = torch.from_numpy(np.stack([predictor.read(file) for file in files]))
    with torch.no_grad():
        own = predictor(images).argmax(dim=1)
    table = straight.parent / "predictions.csv"
    assert predict.main([str(straight / "best.pt"), *map(str, files), "--output", str(table)]) == 0
    rows = table.read_text(encoding="utf-8-sig").splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == [predictor.classes[k] for k in own]
    with pytest.raises(InputError, match=r"^[^\n]*$"):
        smr.load(straight / "last.pt")  # heads alone


def test_a_resumed_run_is_bit_exact_and_reads_the_features(root, straight, tmp_path):
    assert train(root, tmp_path, "--num_epochs", "0") == 0
    folder = tmp_path / NAME
    before = times(folder)
    assert train(root, tmp_path, "--resume") == 0
    assert times(folder) == before and len(before) == 4
    assert_same_run(folder, straight, events=False)


def test_an_interrupted_extraction_resumes_at_the_pass_that_was_interrupted(
    root, straight, tmp_path
):
    folder = tmp_path / NAME
    shutil.copytree(straight / "features", folder / "features")
    for name in ("test", "train_2"):
        (folder / "features" / f"{name}.npy").unlink()
    before = times(folder)
    assert train(root, tmp_path) == 0
    after = times(folder)
    assert {name: after[name] for name in before} == before and len(after) == 4
    for name, values in stored(straight).items():
        assert (stored(folder)[name] == values).all(), name
    assert_same_run(folder, straight, events=False)


def test_changed_weights_views_or_photos_are_computed_again(root, straight, tmp_path):
    data = Path(shutil.copytree(root, tmp_path / "data"))
    shutil.copytree(straight / "features", tmp_path / NAME / "features")
    for change in ("views", "weights", "photos"):
        before, old = times(tmp_path / NAME), stored(tmp_path / NAME)
        if change == "weights":
            torch.save(ResNet18(7, 2).state_dict(), data / "weights.pt")
        elif change == "photos":
            first, second = (data / "photos/training/apple" / f"{i}.png" for i in (0, 1))
            first.write_bytes(second.read_bytes())
        flags = "--num_epochs", "0", "--feature_views", "3", "--overwrite"
        assert train(data, tmp_path, *flags) == 0
        after, new = times(tmp_path / NAME), stored(tmp_path / NAME)
        assert not before.items() & after.items() and len(new) == 5
        assert (new["train_0"] == old["train_0"]).all() == (change == "views")


def test_features_that_do_not_fit_are_refused_in_a_line_that_names_flags(
    root, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(devices, "memory_of", lambda device: 1000)
    message = refused(train_folder.main, capsys, *TINY, *paths_of(root), "--output", str(tmp_path))
    for name in ("--freeze_backbone on", "--feature_views", "--network", "--freeze_backbone off"):
        assert name in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--network squeezenet1_1 --image_size 64 --width 64 --weights= --freeze_backbone on",
         "this --network does not end in a linear layer"),
        ("--freeze_backbone off --finetune_epochs 1",
         "--finetune_epochs: only after --freeze_backbone on"),
    ],
)  # fmt: skip
def test_networks_without_a_linear_layer_and_fine_tuning_of_whole_ones_are_refused(
    root, tmp_path, capsys, flags, message
):
    flags = ("--pretrained", "off", *flags.split(), "--output", str(tmp_path))
    assert message in refused(train_folder.main, capsys, *TINY, *paths_of(root), *flags)


@pytest.mark.parametrize(
    "counts",
    [
        {"apple": 6, "pear": 1, "plum": 6},  # a class with one photo
        {"apple": 9, "pear": 8},  # two classes, and a last batch of one photo
    ],
)
def test_small_sets_train_to_finite_figures(root, tmp_path, counts):
    data = tmp_path / "data"
    write_photos(data / "photos", counts)
    write_photos(data / "photos", dict.fromkeys(counts, 2), "testing")
    shutil.copy(root / "weights.pt", data)
    assert train(data, tmp_path) == 0
    for row in metrics_of(tmp_path / NAME):
        assert all(np.isfinite(v) for v in row.values() if isinstance(v, float))
    labels = (tmp_path / NAME / "labels.csv").read_text().splitlines()
    assert len(labels) == 1 + sum(counts.values())


def feature_loader(views: int, n: int = 40) -> features.FeatureLoader:
    """Photo i's view v is [i, v, 1]."""
    photos = tiny_loader(n)
    train = torch.stack([torch.tensor([[i, v, 1.0] for v in range(views + 1)]) for i in range(n)])
    return features.FeatureLoader(photos, train.half(), {"test": train[:20, 0].half()})


@pytest.mark.parametrize("views", [0, 1, 2, 5])
def test_the_two_views_of_a_photo_are_augmented_and_distinct_if_there_are_enough(views):
    loader = feature_loader(views)
    half = np.arange(40) < 20
    labeled, unlabeled = loader.run("train", half, np.ones(40))
    seen = set()
    for batches, rows in ((labeled, 20), (unlabeled, 20)):
        x1, x2 = (torch.cat(parts) * loader.scale for parts in list(zip(*batches, strict=True))[:2])
        assert len(x1) == rows and torch.allclose(x1[:, 0], x2[:, 0])
        first, second = x1[:, 1].round().long(), x2[:, 1].round().long()
        assert (first != second).all() if views >= 2 else (first == second).all()
        seen |= set(first.tolist()) | set(second.tolist())
    assert seen == (set(range(1, views + 1)) or {0})
    (plain,) = [images for images, *_ in loader.run("test")] or [None]
    assert torch.allclose(plain[:, 1], torch.zeros(20))
    scored = torch.cat([images for images, *_ in loader.run("eval_train")]) * loader.scale
    assert torch.allclose(scored[:, 1], torch.zeros(40))  # the split is by the plain view


def test_label_issues_are_of_the_probabilities_mean_over_every_view():
    loader = feature_loader(2)
    config = tiny_config()
    pair = smr.new_pair(lambda: nn.Linear(3, 10), config, "cpu")
    method = smr.new_method(config, pair, loader)
    issues = compute_label_issues(pair, loader, method, amp=False, frozen=True)
    views = loader.train_images.float() / loader.scale
    with torch.no_grad():
        logits = sum(network(views) for network in pair.networks) / 2
    expected = logits.softmax(dim=-1).mean(dim=1).numpy()
    assert np.allclose(issues.pred_probs, expected, atol=1e-6)
    own = expected[np.arange(40), loader.noisy_labels.numpy()]
    assert np.allclose(issues.quality, own, atol=1e-6)
    assert (issues.is_issue == (own < expected.max(axis=1) / 2)).all()


def test_backbone_and_head_of_a_registered_network_make_the_whole():
    torch.manual_seed(0)
    network = networks.untrained("mobilenet_v3_small", 4, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        before = network.state_dict()
        frozen = features.FrozenBackbone(network)
        frozen.scale = 3.0
        head = frozen.new_head()
        head.load_state_dict(frozen.head_state({k: v.clone() for k, v in before.items()}))
        assert torch.allclose(head(frozen.network(images) / 3), expected, atol=1e-4)
    whole = frozen.whole_state(head.state_dict())
    assert whole.keys() == before.keys()
    assert all(torch.allclose(whole[k], before[k], atol=1e-6) for k in whole)


FINE = ("--finetune_epochs", "2")


@pytest.fixture(scope="module")
def tuned(root, tmp_path_factory) -> Path:
    """The folder of a run with two epochs of fine-tuning."""
    output = tmp_path_factory.mktemp("tuned")
    assert train(root, output, *FINE) == 0
    return output / NAME


def test_fine_tuning_trains_whole_networks_on_the_clean_set(root, tuned):
    rows = metrics_of(tuned)
    assert [row["kind"] for row in rows][3:] == ["fine-tuning"] * 2 and len(rows) == 5
    state = torch.load(tuned / "last.pt", weights_only=True)
    clean = state["method"]["clean_index"]
    assert 0 < len(clean) <= 21 and rows[3]["train/net1/images"] == len(clean)
    backbone = torch.load(root / "weights.pt", weights_only=True)
    for network in state["networks"]:
        assert not torch.equal(network["layer4.1.conv2.weight"], backbone["layer4.1.conv2.weight"])
        for name in ("bn1.running_mean", "layer1.0.bn1.running_var"):
            assert torch.equal(network[name], backbone[name])
    accuracies = [row["test/accuracy"] for row in rows]
    best = torch.load(tuned / "best.pt", weights_only=True)["epoch"]
    assert accuracies[best] == max(accuracies)  # never worse than the frozen stage


def test_a_resumed_fine_tuning_is_bit_exact(root, straight, tuned, tmp_path):
    shutil.copytree(straight, tmp_path / NAME)
    for epochs in ("1", "2"):
        assert train(root, tmp_path, "--finetune_epochs", epochs, "--resume") == 0
    one, other = (
        torch.load(folder / "last.pt", weights_only=True) for folder in (tmp_path / NAME, tuned)
    )
    assert one["epoch"] == 4
    for part in ("networks", "optimizers", "method"):
        assert_same(one[part], other[part], part)


def test_a_fine_tuned_run_has_no_further_epochs_of_its_heads(root, tuned, capsys):
    flags = ("--output", str(tuned.parent), *FINE, "--num_epochs", "3", "--resume")
    assert "--num_epochs 3 (the run has 2)" in refused(
        train_folder.main, capsys, *TINY, *paths_of(root), *flags
    )


def test_evaluate_tests_checkpoints_of_both_stages(root, tuned, capsys):
    assert_evaluate_prints_the_stored_accuracy(root, tuned, capsys, *FINE)
    assert smr.load(tuned / "last.pt").classes == list(COUNTS)

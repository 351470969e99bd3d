"""Animal-10N in its three forms: reading, loader, network, config and runs."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TinyNet, config_of, run_script
from photos import animals, records, write_animals, write_png
from runs import rows_of

import smr
import train_animal10N
import train_clothing1M
import train_webvision
from dataloader_animal10N import ANIMALS, animal_dataloader, read_animal10n
from smr.errors import InputError
from smr.logging.console import Terminal
from smr.run.run_dir import run_name
from smr.training import LabeledBatch, learning_rate
from train_animal10N import AnimalConfig
from vgg import vgg19_bn

FORMS = ("names", "classes", "binary")
CPU = torch.device("cpu")


def read(folder, skip_broken=False):
    return read_animal10n(folder, 2, skip_broken, Terminal())


def refusal(folder, skip_broken=False) -> str:
    """The message of the InputError that reading the folder raises."""
    with pytest.raises(InputError) as caught:
        read(folder, skip_broken)
    return str(caught.value)


def in_order(count, seed):
    """`photos.animals` in ascending order of label and id."""
    images, labels, ids = animals(count, seed)
    order = np.lexsort((ids, labels))
    return images[order], labels[order], ids[order]


# --- reading ---


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_images_labels_and_order(tmp_path, form):
    data = read(write_animals(tmp_path, form))
    for images, labels, part in (
        (data.train_images, data.train_labels, in_order(30, 1)),
        (data.test_images, data.test_labels, in_order(20, 2)),
    ):
        assert np.array_equal(images, part[0])
        assert labels.dtype == np.int64
        assert np.array_equal(labels, part[1])
    assert data.class_names == list(ANIMALS)
    assert data.clean_labels is None


@pytest.mark.parametrize(
    ("form", "first", "told"),
    [
        ("names", "training/0_{}.png", "files named label_id"),
        ("classes", "training/cat/{}.png", "class folders"),
        ("binary", "data_batch_1.bin:{}", "binaries data_batch_1.bin and test_batch.bin"),
    ],
)
def test_the_form_is_told_and_each_image_named(tmp_path, form, first, told):
    data = read(write_animals(tmp_path, form))
    _, labels, ids = animals(30, 1)
    record = np.lexsort((ids, labels))[0]
    assert data.files[0] == first.format(record if form == "binary" else ids[record])
    assert len(data.files) == 30
    assert told in data.notes[0]


def test_class_folders_may_be_numbers(tmp_path):
    for label in range(10):
        for part in ("training", "testing"):
            write_png(tmp_path / part / str(label) / "a.png", np.full((64, 64, 3), label, np.uint8))
    data = read(tmp_path)
    assert np.array_equal(data.train_images[:, 0, 0, 0], data.train_labels)


def test_binaries_may_come_in_several_files_or_under_the_other_name(tmp_path):
    images, labels, ids = animals(30, 1)
    folder = write_animals(tmp_path, "binary")
    (folder / "data_batch_1.bin").write_bytes(records(images[:20], labels[:20], ids[:20]))
    (folder / "data_batch_2.bin").write_bytes(records(images[20:], labels[20:], ids[20:]))
    assert np.array_equal(read(folder).train_images, in_order(30, 1)[0])
    for name in ("data_batch_1.bin", "data_batch_2.bin"):
        (folder / name).unlink()
    (folder / "training_batch.bin").write_bytes(records(images, labels, ids))
    assert np.array_equal(read(folder).train_images, in_order(30, 1)[0])


@pytest.mark.parametrize("length", [0, 1, 12_295, 12_297])
def test_a_binary_of_a_wrong_length_is_refused(tmp_path, length):
    folder = write_animals(tmp_path, "binary")
    (folder / "test_batch.bin").write_bytes(bytes(length))
    message = refusal(folder)
    assert f"test_batch.bin: {length} bytes" in message
    assert "12296" in message


@pytest.mark.parametrize("label", [10, -1, 2**31 - 1])
def test_a_record_with_a_label_outside_the_classes_is_refused(tmp_path, label):
    folder = write_animals(tmp_path, "binary")
    images, labels, ids = animals(30, 1)
    labels[7] = label
    (folder / "data_batch_1.bin").write_bytes(records(images, labels, ids))
    assert refusal(folder) == (
        f"{folder}: 1 of 30 images have a label outside 0 to 9: data_batch_1.bin:7 ({label})"
    )


def test_a_file_name_with_a_label_outside_the_classes_is_refused_even_with_skip_broken(tmp_path):
    folder = write_animals(tmp_path, "names")
    write_png(folder / "training" / "10_5.png", np.zeros((64, 64, 3), np.uint8))
    message = "1 of 31 images have a label outside 0 to 9: training/10_5.png (10)"
    assert message in refusal(folder)
    assert message in refusal(folder, skip_broken=True)


def test_a_class_folder_of_no_animal_is_refused(tmp_path):
    folder = write_animals(tmp_path, "classes")
    write_png(folder / "testing" / "horse" / "1.png", np.zeros((64, 64, 3), np.uint8))
    message = refusal(folder)
    assert f"{folder / 'testing' / 'horse'}: no class has this name" in message
    assert message.endswith("train_folder.py")


@pytest.mark.parametrize("script", [train_animal10N, train_webvision, train_clothing1M])
def test_flags_of_injected_noise_are_answered_however_they_are_spelt(script, capsys):
    for flag in ("--r", "--noise_mode", "--noise-mode"):
        with pytest.raises(SystemExit):
            script.main([flag, "sym"])
        assert "no noise is injected" in capsys.readouterr().err


def test_files_that_are_no_images_are_named_counted_and_left_out_only_on_request(tmp_path):
    folder = write_animals(tmp_path, "names")
    for i in range(11):
        (folder / "training" / f"3_9{i:03}.jpg").write_text("no picture")
    (folder / "training" / "README.txt").write_text("about")
    (folder / "testing" / "2-sub.png").write_text("about")
    message = refusal(folder)
    assert "13 of 63 files cannot be read as images" in message and "--skip_broken" in message
    assert "training/README.txt (its name does not begin with a label and _)" in message
    assert "training/3_9008.jpg (no image), …" in message
    assert "3_9009" not in message
    data = read(folder, skip_broken=True)
    assert np.array_equal(data.train_images, in_order(30, 1)[0])
    assert np.array_equal(data.train_labels, in_order(30, 1)[1])
    assert len(data.test_labels) == 20
    assert data.notes[1].startswith("left out 13 of 63 files, which cannot be read as images: ")
    assert "training/3_9008.jpg (no image), …" in data.notes[1]


def test_hidden_files_are_no_part_of_the_data(tmp_path):
    folder = write_animals(tmp_path, "classes")
    (folder / "training" / ".DS_Store").write_text("hidden")
    (folder / "training" / "cat" / ".directory").write_text("hidden")
    assert len(read(folder).train_labels) == 30


def test_an_empty_class_is_noted(tmp_path):
    folder = write_animals(tmp_path, "classes")
    for path in (folder / "training" / "hamster").iterdir():
        path.unlink()
    data = read(folder)
    assert len(data.train_labels) == 27 and 8 not in data.train_labels
    assert data.notes[1] == "classes without a training image: hamster"


def test_a_folder_without_the_data_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "data_batch_1.bin").touch()
    (tmp_path / "letter.txt").touch()
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: no Animal-10N: expected folders training/ and testing/")
    assert "found data_batch_1.bin, letter.txt; your own photos in class folders: " in message
    assert message.endswith("train_folder.py")
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: cannot be read: " + (
        "No such file or directory"
    )


@pytest.mark.parametrize("form", ["names", "classes"])
def test_missing_or_empty_test_images_are_refused(tmp_path, form):
    folder = write_animals(tmp_path, form, test=0)
    assert f"{folder / 'testing'}: cannot be read" in refusal(folder)
    (folder / "testing").mkdir()
    assert refusal(folder) == f"{folder}: no test image"


# --- loader ---


def test_the_familys_calls_serve_every_mode(tmp_path):
    folder = write_animals(tmp_path, "binary")
    loader = animal_dataloader(str(folder), 8, 4, ["some", "paths"])
    images, labels, index = next(iter(loader.run("warmup")))
    assert images.shape == (16, 3, 64, 64)
    assert torch.equal(labels, torch.from_numpy(in_order(30, 1)[1])[index])
    clean = np.arange(30) < 20
    labeled, unlabeled = loader.run("train", clean, np.linspace(0, 1, 30))
    assert len(labeled.dataset) == 20 and len(unlabeled.dataset) == 10
    assert [len(batch) for batch in (next(iter(labeled)), next(iter(unlabeled)))] == [4, 2]
    test = torch.cat([labels for _, labels, _ in loader.run("test")])
    assert np.array_equal(test, in_order(20, 2)[1])


def test_images_are_normalized_with_the_published_constants(tmp_path):
    loader = animal_dataloader(write_animals(tmp_path, "binary"), 30, 1)
    images, _, index = next(iter(loader.run("eval_train")))
    stored = torch.from_numpy(in_order(30, 1)[0])[index].permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.6959, 0.6537, 0.6371]), torch.tensor([0.3113, 0.3192, 0.3214])
    wanted = (stored - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(images, wanted, atol=1e-5)


def test_a_training_view_is_the_image_or_its_mirror_image(tmp_path):
    loader = animal_dataloader(write_animals(tmp_path, "binary"), 30, 1)
    plain, _, _ = next(iter(loader.run("eval_train")))
    views, _, index = next(iter(loader.run("warmup")))
    as_is = (views == plain[index]).flatten(1).all(1)
    mirrored = (views == plain[index].flip(3)).flatten(1).all(1)
    assert (as_is ^ mirrored).all()
    assert as_is.any() and mirrored.any()


def test_images_without_padding_are_stored_once(tmp_path):
    images = animal_dataloader(write_animals(tmp_path, "binary"), 30, 1).train_images
    assert images.padded.untyped_storage().nbytes() == 30 * 64 * 64 * 3


def test_a_split_has_counts_alone_where_no_clean_label_is_known(tmp_path):
    log = io.StringIO()
    loader = animal_dataloader(write_animals(tmp_path, "binary"), 30, 1, log=log)
    assert loader.is_clean is None and loader.clean_labels is None
    loader.run("train", np.arange(30) < 20, np.linspace(0, 1, 30))
    assert log.getvalue() == ("Number of labeled samples:20   Number of unlabeled samples:10\n")


# --- network and config ---


def test_vgg_has_torchvisions_names_and_a_fresh_last_layer():
    from torchvision import models

    with torch.device("meta"):
        ours, theirs = vgg19_bn(7).state_dict(), models.vgg19_bn(weights=None).state_dict()
    last = {"classifier.6.weight": (7, 4096), "classifier.6.bias": (7,)}
    wanted = {name: tuple(tensor.shape) for name, tensor in theirs.items()} | last
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == wanted


def resolved(*arguments: str) -> AnimalConfig:
    return config_of(AnimalConfig, *arguments)


VERBATIM = (
    *("--num_epochs", "200", "--lambda_u", "0", "--data_path", "./data/Animal-10N"),
    *("--dataset", "animal10N", "--num_class", "10"),
)


@pytest.mark.parametrize("arguments", [VERBATIM, ()])
def test_the_config_is_the_published_one(arguments):
    config = resolved(*arguments)
    assert (config.batch_size, config.lr, config.weight_decay) == (128, 0.01, 1e-3)
    assert (config.num_epochs, config.warm_up, config.recalibrate_every) == (200, 30, 15)
    assert (config.alpha, config.T, config.p_threshold, config.lambda_u) == (4, 0.5, 0.5, 0)
    assert config.labeled_rows_only and not config.entropy_penalty and config.r == 0
    assert config.network == "vgg19_bn"
    assert run_name(config) == "animal10N_smr_seed123"


def test_the_learning_rate_is_the_published_one_and_can_be_the_meant_one():
    def rates(*arguments):
        config = resolved(*arguments)
        return [learning_rate(epoch, config) for epoch in (0, 79, 80, 139, 140, 200)]

    assert rates() == pytest.approx([0.01, 0.01, 0.01, 0.01, 1e-4, 1e-4])
    meant = rates("--lr_steps", "80:0.1,140:0.01")
    assert meant == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


def test_with_a_weight_on_their_loss_the_unlabeled_rows_go_through_the_network():
    assert resolved("--lambda_u", "25").labeled_rows_only is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num_class", "9"), "--num_class 9: Animal-10N has 10 classes"),
        (("--width", "16"), "--width: only with --network preact_resnet18"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        resolved(*arguments)


@pytest.mark.parametrize("flag", ["--r", "--noise_mode"])
def test_flags_of_injected_noise_are_answered_with_why_there_are_none(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        train_animal10N.main([flag, "0.2"])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and flag in line and "no noise is injected" in line


def test_only_the_labeled_rows_go_through_the_network_and_into_its_penalty():
    config = resolved()
    network, peer = TinyNet(), TinyNet().eval()
    x1, x2, u1, u2 = torch.randn(4, 6, 3, 8, 8)
    labels, probability = torch.arange(6), torch.rand(6)
    permutation, weight = torch.randperm(24), 0.8
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.train()
    result = smr.mixmatch_loss(
        network,
        peer,
        LabeledBatch(x1, x2, labels, probability),
        (u1, u2),
        weight,
        permutation,
        40.0,
        config,
    )
    everything = torch.cat([x1, x2, u1, u2])
    mixed = weight * everything + (1 - weight) * everything[permutation]
    assert [len(images) for images in seen] == [6, 6, 6, 6, 12]
    assert torch.allclose(seen[-1], mixed[:12])
    log_softmax = torch.log_softmax(result.logits, dim=1)
    loss_x = -(log_softmax * result.mixed_targets).sum(1).mean()
    penalty = -torch.log(10 * log_softmax.exp().mean(0)).mean()
    assert torch.allclose(result.loss, loss_x + penalty, atol=1e-6)


# --- runs ---

# A small network that draws in training, as VGG does.
DROPOUT = ("--network", "squeezenet1_1", "--width", "64")

TINY = (
    *("--network", "preact_resnet18", "--width", "2", "--batch_size", "8"),
    *("--num_epochs", "3", "--warm_up", "1", "--recalibrate_every", "3"),
)


def run(folder: Path, output: Path, *arguments) -> int:
    return train_animal10N.main(
        ["--data_path", str(folder), "--output", str(output), *TINY, *arguments]
    )


def test_equal_images_give_equal_results_in_each_form(tmp_path):
    results = []
    for form in FORMS:
        assert run(write_animals(tmp_path, form), tmp_path / f"{form} runs") == 0
        results.append(rows_of(tmp_path / f"{form} runs" / "animal10N_smr_seed123"))
    assert results[0] == results[1] == results[2]
    kinds = [row["kind"] for row in results[0]]
    assert kinds == ["warm-up", "semi-supervised", "recalibration", "semi-supervised"]
    assert {"test/accuracy", "test/net1/accuracy", "test/net2/accuracy"} <= results[0][0].keys()


def test_nothing_is_told_that_only_clean_labels_could_tell(tmp_path, capsys):
    assert run(write_animals(tmp_path, "binary"), tmp_path) == 0
    folder = tmp_path / "animal10N_smr_seed123"
    heading = next(line for line in capsys.readouterr().out.splitlines() if "epoch kind" in line)
    names = ["epoch", "kind", "lr", "Lx", "labeled", "test%", "best%", "seconds"]
    assert heading.split() == names
    stats = (folder / "stats.txt").read_text()
    assert "Number of labeled samples" in stats and "AUC" not in stats and "clean" not in stats
    judged = {"auc", "precision", "recall", "labeled_clean", "refined_label_accuracy"}
    for row in rows_of(folder):
        assert not judged & {k.rsplit("/")[-1] for k in row if not k.startswith("test/")}
    facts = json.loads((folder / "config.json").read_text())
    assert facts["noise_rate"] is None
    assert facts["test_labels_are_noisy"] is False


def test_twelve_images_in_all_train_with_the_published_batch(tmp_path):
    folder = write_animals(tmp_path, "names", train=7, test=5)
    result = run_script(
        *("train_animal10N.py", "--data_path", folder, *TINY, "--batch_size", "128"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "7 training and 5 test images of 64x64, 10 classes" in result.stdout
    assert "data: classes without a training image: orangutan, hamster, guinea pig" in result.stdout
    assert (tmp_path / "checkpoint" / "animal10N_smr_seed123" / "best.pt").is_file()


def test_bad_data_is_refused_in_one_line(tmp_path, capsys):
    folder = write_animals(tmp_path, "names")
    (folder / "training" / "1_1000.png").write_text("no picture")
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path / "out")
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"train_animal10N.py: error: {folder}: 1 of 51 files cannot be read as images: "
        "training/1_1000.png (no image); repair or remove them, or exclude them with "
        "--skip_broken\n"
    )


def test_a_run_with_dropout_resumes_bit_exactly(tmp_path):
    folder = write_animals(tmp_path, "binary")
    assert run(folder, tmp_path / "straight", *DROPOUT) == 0
    assert run(folder, tmp_path / "parts", *DROPOUT, "--num_epochs", "1") == 0
    assert run(folder, tmp_path / "parts", *DROPOUT, "--num_epochs", "3", "--resume") == 0
    runs = (tmp_path / name / "animal10N_smr_seed123" for name in ("straight", "parts"))
    straight, parts = (rows_of(run) for run in runs)
    assert straight == parts

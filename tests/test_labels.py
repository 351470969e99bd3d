"""Which labels look wrong: the judgment, labels.csv, the closing words, and a run's own."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers import TinyNet, run_script, tiny_pair, tiny_recipe
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import smr
from smr.data.augment import Views
from smr.data.memory_dataset import ImageData, MemoryLoader
from smr.gmm_split import SampleLosses
from smr.label_issues import report as labels
from smr.logging import figures as pictures

NAMES = [f"class {label}" for label in range(10)]


def loader_of(labels, clean, files=None) -> MemoryLoader:
    """A loader of as many 8x8 images of one brightness each as there are labels."""
    images = np.random.default_rng(5).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    data = ImageData(images, np.asarray(labels), images[:4], np.arange(4), NAMES, clean, files)
    return MemoryLoader(data, Views((0.5,) * 3, (0.25,) * 3), 16, 1)


@pytest.fixture
def noisy():
    """50 images whose labels are their position modulo 10, the first ten one off."""
    clean = np.arange(50) % 10
    labels = clean.copy()
    labels[:10] = (labels[:10] + 1) % 10
    return loader_of(labels, clean, [f"image {i}.png" for i in range(50)])


@pytest.fixture
def pair():
    return tiny_pair(tiny_recipe(), TinyNet)


def judgment_of(given, predicted, p_given, p_clean, p_predicted=0.95) -> labels.Judgment:
    """Networks that give the label and the class seen these probabilities, and no other any."""
    count = len(given)
    probability = np.zeros((count, 10), np.float32)
    probability[np.arange(count), predicted] = p_predicted
    probability[np.arange(count), given] = p_given
    return labels.Judgment(
        np.arange(count), np.asarray(given), probability, np.asarray(p_clean, dtype=float)
    )


def test_judgment_is_what_the_networks_say_one_by_one(pair, noisy):
    judgment = labels.judge(pair, noisy, tiny_recipe())
    images = noisy.normalize(noisy.train_images.plain(noisy.train_index))
    given = noisy.noisy_labels
    with torch.no_grad():
        logits = sum(network.eval()(images) for network in pair.networks)
    probability = torch.softmax(logits / 2, dim=1).numpy()
    np.testing.assert_array_equal(judgment.predicted, logits.argmax(dim=1))
    np.testing.assert_allclose(judgment.p_predicted, probability.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(judgment.p_given, probability[np.arange(50), given], rtol=1e-5)
    splits = smr.co_divide(pair, noisy, tiny_recipe())
    np.testing.assert_allclose(judgment.p_clean, [s.probability for s in splits], rtol=1e-4)


def test_judging_at_r_09_uses_the_history_and_leaves_it_alone(pair, noisy):
    recipe = tiny_recipe(r=0.9)
    for _ in range(5):
        for history in pair.histories:
            history.append(SampleLosses(torch.arange(50), torch.rand(50)))
    before = [[id(losses) for losses in history] for history in pair.histories]
    judgment = labels.judge(pair, noisy, recipe)
    assert [[id(losses) for losses in history] for history in pair.histories] == before
    splits = smr.co_divide(pair, noisy, recipe)
    np.testing.assert_allclose(judgment.p_clean, [s.probability for s in splits], rtol=1e-4)


def test_labels_csv_has_a_row_for_each_image_with_names_file_and_truth(pair, noisy):
    judgment = labels.judge(pair, noisy, tiny_recipe())
    rows = list(csv.DictReader(labels.labels_csv(judgment, noisy).splitlines()))
    assert ",".join(rows[0]) == (
        "index,file,given,given_name,predicted,predicted_name,p_predicted,p_given,"
        "p_clean_net1,p_clean_net2,p_clean,rank,true"
    )
    assert [int(row["index"]) for row in rows] == list(range(50))
    assert rows[7]["file"] == "image 7.png"
    assert (rows[7]["given"], rows[7]["given_name"], rows[7]["true"]) == ("8", "class 8", "7")
    assert int(rows[7]["predicted"]) == judgment.predicted[7]
    assert rows[7]["predicted_name"] == f"class {judgment.predicted[7]}"
    assert float(rows[7]["p_given"]) == pytest.approx(judgment.p_given[7], rel=1e-5)
    assert float(rows[7]["p_clean_net2"]) == pytest.approx(judgment.p_clean[1, 7], rel=1e-5)
    assert float(rows[7]["p_clean"]) == pytest.approx(judgment.p_clean[:, 7].mean(), rel=1e-5)
    assert sorted(int(row["rank"]) for row in rows) == list(range(1, 51))
    assert rows[judgment.order[0]]["rank"] == "1"


def test_labels_csv_leaves_unknown_files_and_truth_empty(pair):
    loader = loader_of(np.arange(20) % 10, None)
    rows = labels.labels_csv(labels.judge(pair, loader, tiny_recipe()), loader).splitlines()
    row = next(csv.DictReader(rows))
    assert row["file"] == "" and row["true"] == ""


def test_rank_one_is_the_label_that_both_the_mixtures_and_the_networks_doubt_most():
    judgment = judgment_of(
        [0, 0, 0, 0], [1, 0, 1, 1], [0.1, 0.9, 0.01, 0.2], [[0.2, 0.9, 0.1, 0.8], [0.2, 1, 0, 0.9]]
    )
    assert judgment.order.tolist() == [2, 0, 3, 1]


def test_a_label_is_less_suspicious_where_no_better_one_is_at_hand():
    judgment = judgment_of([0, 0], [1, 1], [0.3, 0.3], [[0.5, 0.5]] * 2, [0.35, 0.7])
    assert judgment.order.tolist() == [1, 0]
    np.testing.assert_allclose(judgment.suspicion, [-(0.5 + 0.3 / 0.35), -(0.5 + 0.3 / 0.7)])


def test_a_label_looks_wrong_where_another_class_is_seen_and_the_mean_clean_probability_is_low():
    judgment = judgment_of(
        [0] * 6,
        [1, 1, 1, 1, 1, 0],
        [0.1] * 6,
        [[0.9, 0.9, 0.4, 0.5, 0.2, 0], [0.05, 0.2, 0.56, 0.5, 0.4, 0]],
    )
    assert judgment.looks_wrong.tolist() == [True, False, True, False, True, False]


def test_closing_words_count_what_looks_wrong_and_name_the_likeliest_confusions():
    clean = np.array([1, 1, 1, 2, 0, 0])
    loader = loader_of([0, 0, 0, 0, 0, 0], clean)
    judgment = judgment_of(
        [0] * 6, [1, 1, 1, 2, 0, 3], [0, 0.1, 0.2, 0.3, 0.9, 0.8], [[0, 0, 0.1, 0.2, 0.9, 0.9]] * 2
    )
    words = labels.closing_words(judgment, loader)
    assert words[0] == (
        "4 of 6 training labels look wrong (66.7 %), most often class 0 that looks like class 1 "
        "(3), class 0 that looks like class 2 (1)"
    )
    assert words[-1] == (
        "by the true labels 4 are wrong, 4 of them among these (precision 1.000, recall 1.000); "
        "average precision of the ranking 1.000"
    )


def test_the_precision_of_one_label_that_looks_wrong_and_is_so_is_one():
    judgment = judgment_of([0, 1], [1, 1], [0, 0.9], [[0, 1]] * 2)
    words = labels.closing_words(judgment, loader_of([0, 1], np.array([1, 1])))
    assert "1 are wrong, 1 of them among these (precision 1.000, recall 1.000)" in words[-1]


def test_closing_words_name_three_confusions():
    words = labels.closing_words(
        judgment_of([0] * 4, [1, 2, 3, 4], [0] * 4, [[0] * 4] * 2), loader_of([0] * 4, None)
    )
    assert words[0].endswith(
        "class 0 that looks like class 1 (1), class 0 that looks like class 2 (1), "
        "class 0 that looks like class 3 (1)"
    )


def test_closing_words_of_labels_that_nobody_knows_the_truth_of_claim_none():
    words = labels.closing_words(
        judgment_of([0, 1], [0, 1], [1, 1], [[1, 1]] * 2), loader_of([0, 1], None)
    )
    assert words == ["0 of 2 training labels look wrong (0.0 %)"]


def test_the_progress_of_judging_counts_the_batches_done(monkeypatch):
    said = []
    monkeypatch.setattr(labels.Terminal, "due", lambda _: True)
    monkeypatch.setattr(labels.Terminal, "progress", lambda _, words: said.append(words))
    assert list(labels.watched("abc")) == ["a", "b", "c"]
    assert said == [f"judging the labels: {k} of 3 batches" for k in (1, 2, 3)]


def test_networks_that_are_not_finite_judge_nothing_and_say_so(pair, noisy, tmp_path):
    pair.networks[1].linear.weight.data.fill_(float("nan"))
    said = []
    assert labels.report(pair, noisy, tiny_recipe(), tmp_path, said.append) == {}
    assert said == ["labels.csv was not written: the loss of a training image is not finite"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_file_is_named_and_the_pictures_are_drawn_all_the_same(
    pair, noisy, tmp_path
):
    said = []
    drawn = labels.report(pair, noisy, tiny_recipe(), tmp_path / "missing", said.append)
    assert said[-1].startswith(f"labels.csv was not written to {tmp_path / 'missing'} (No such")
    assert set(drawn) == {"wrong_labels/suspects", "wrong_labels/transitions"}


def test_suspects_are_the_most_suspicious_first_with_the_given_label_and_the_one_seen(
    noisy, monkeypatch
):
    asked = []
    monkeypatch.setattr(pictures, "suspects", lambda *given: asked.append(given))
    p_given = np.linspace(0.9, 0.01, 50)
    given, predicted = np.arange(50) % 10, (np.arange(50) + 1) % 10
    judgment = judgment_of(given, predicted, p_given, [np.linspace(0.9, 0.1, 50)] * 2)
    labels.draw(judgment, noisy)
    of_folder, of_tensorboard = asked
    assert of_folder[-2:] == (8, 128) and of_tensorboard[-2:] == (3, 224)
    assert of_tensorboard[1] == of_folder[1][:9]
    images, captions, shown_given, shown_predicted, names, *_ = of_folder
    assert captions[:3] == ["image 49.png", "image 48.png", "image 47.png"]
    np.testing.assert_array_equal(images, noisy.thumbnails(np.arange(49, -1, -1)))
    assert shown_given.tolist() == given[::-1].tolist()
    assert shown_predicted.tolist() == predicted[::-1].tolist()
    assert names == NAMES


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The folder and output of a short run on digits: two warm-up epochs, one of each other."""
    root = tmp_path_factory.mktemp("run")
    arguments = ["--dataset", "digits", "--width", "2", "--warm_up", "1", "--num_epochs", "2"]
    done = run_script("train_cifar.py", *arguments, "--output", "out", cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    return root / "out" / "digits_0.5_sym_smr_seed123", done.stdout


def read_labels(folder):
    with open(folder / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_ends_with_labels_csv_and_says_in_words_what_it_found(finished_run):
    folder, output = finished_run
    rows = read_labels(folder)
    assert len(rows) == 1437
    noisy = json.loads((folder / "noisy_labels.json").read_text())
    assert [int(row["given"]) for row in rows] == noisy
    wrong = [row["given"] != row["true"] for row in rows]
    assert sum(wrong) / 1437 == pytest.approx(0.4502, abs=1e-4)
    precision = average_precision_score(wrong, [-int(row["rank"]) for row in rows])
    assert f"average precision of the ranking {precision:.3f}" in output
    assert "of 1,437 training labels look wrong" in output
    assert str(folder.relative_to(folder.parent.parent) / "labels.csv") in output
    assert (folder / "suspects.png").is_file() and (folder / "transitions.png").is_file()


def test_evaluate_writes_the_same_labels_csv_again(finished_run):
    folder, _ = finished_run
    before = (folder / "labels.csv").read_text()
    (folder / "labels.csv").unlink()
    done = run_script("train_cifar.py", "--evaluate", str(folder / "last.pt"), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "labels.csv").read_text() == before
    assert len(list(folder.glob("events*"))) == 1  # TensorBoard follows one file at a time


def test_tensorboard_has_curves_histograms_pictures_and_the_table_of_runs(finished_run):
    folder, _ = finished_run
    assert len(list(folder.glob("events*"))) == 1
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    metrics = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    curves = {tag for row in metrics for tag in row} - {"epoch", "kind"}
    memory = {tag for tag in curves if tag.startswith("memory/")}
    overview = {f"overview/{name}" for name in ("accuracy", "best_accuracy", "auc", "precision")}
    assert set(tags["scalars"]) == curves - memory | overview
    assert min(tags["scalars"]) == "overview/accuracy"  # the first chart of the page
    aucs = [[m[f"split/net{k}/auc"] for k in (1, 2)] for m in metrics if "split/net1/auc" in m]
    means = [e.value for e in events.Scalars("overview/auc")]
    assert means == pytest.approx([sum(pair) / 2 for pair in aucs])
    assert {
        "split/net2/auc",
        "train/net1/refined_label_accuracy",
        "time/images_per_second",
    } <= curves
    assert {
        "test/confusion",
        "split/net1/mixture",
        "split/net2/mixture",
        "wrong_labels/suspects",
        "wrong_labels/transitions",
    } == set(tags["images"])
    assert {f"split/net{k}/losses_{group}" for k in (1, 2) for group in ("right", "wrong")} == set(
        tags["histograms"]
    )
    assert [e.step for e in events.Images("test/confusion")] == [0, 2]
    best = [max(m["test/accuracy"] for m in metrics[: epoch + 1]) for epoch in range(3)]
    assert [e.value for e in events.Scalars("test/best_accuracy")] == pytest.approx(best)


def test_the_table_of_runs_sorts_by_method_noise_and_final_accuracies(finished_run):
    folder, _ = finished_run
    events = EventAccumulator(str(folder))
    events.Reload()
    table, start = (
        plugin_data_pb2.HParamsPluginData.FromString(
            events.SummaryMetadata(f"_hparams_/{part}").plugin_data.content
        )
        for part in ("experiment", "session_start_info")
    )
    shown = {info.name for info in table.experiment.hparam_infos}
    assert shown == {"dataset", "method", "noise_mode", "r", "seed"}  # five are shown unasked
    assert "test/best_accuracy" in {m.name.tag for m in table.experiment.metric_infos}
    given = start.session_start_info.hparams
    assert given["method"].string_value == "smr" and given["r"].number_value == 0.5

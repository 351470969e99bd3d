"""Label issues: scores on arrays, labels.csv, the lines of the log, and a run's own."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers import TinyNet, plain_images, run_script, tiny_config, tiny_pair
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import smr
from smr.data.augment import Views
from smr.data.memory_dataset import ImageData, MemoryLoader
from smr.gmm_split import SampleLosses
from smr.label_issues import report as labels
from smr.label_issues.scores import LabelIssues
from smr.logging import figures

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
    return tiny_pair(tiny_config(), TinyNet)


def issues_by(pair, loader, **flags) -> LabelIssues:
    """The label issues by these networks, as a run computes them."""
    method = smr.new_method(tiny_config(**flags), pair, loader)
    return labels.compute_label_issues(pair, loader, method, amp=False)


def issues_of(given, predicted, p_given, p_clean, p_predicted=0.95) -> LabelIssues:
    """Networks with these probabilities of the label and of the predicted class, else 0."""
    count = len(given)
    pred_probs = np.zeros((count, 10), np.float32)
    pred_probs[np.arange(count), predicted] = p_predicted
    pred_probs[np.arange(count), given] = p_given
    clean_probability = np.asarray(p_clean, dtype=float)
    return LabelIssues(np.arange(count), np.asarray(given), pred_probs, clean_probability)


def test_label_issues_are_of_the_networks_mean_and_of_each_ones_gmm(pair, noisy):
    method = smr.new_method(tiny_config(), pair, noisy)
    issues = labels.compute_label_issues(pair, noisy, method, amp=False)
    with torch.no_grad():
        logits = sum(network.eval()(plain_images(noisy)) for network in pair.networks)
    np.testing.assert_array_equal(issues.predicted, logits.argmax(dim=1))
    np.testing.assert_allclose(issues.pred_probs, torch.softmax(logits / 2, dim=1), rtol=1e-5)
    np.testing.assert_array_equal(issues.labels, noisy.noisy_labels)
    splits = [split.clean_probability for split in method.co_divide()]
    np.testing.assert_allclose(issues.clean_probability, splits, rtol=1e-4)


def test_label_issues_at_r_09_use_the_loss_histories_and_leave_them_alone(pair, noisy):
    method = smr.new_method(tiny_config(r=0.9), pair, noisy)
    for _ in range(5):
        for history in method.loss_histories():
            history.append(SampleLosses(torch.arange(50), torch.rand(50)))
    before = [[id(losses) for losses in history] for history in method.loss_histories()]
    issues = labels.compute_label_issues(pair, noisy, method, amp=False)
    assert [[id(losses) for losses in history] for history in method.loss_histories()] == before
    splits = [split.clean_probability for split in method.co_divide()]
    np.testing.assert_allclose(issues.clean_probability, splits, rtol=1e-4)


def test_labels_csv_has_a_row_for_each_image_with_names_file_and_truth(pair, noisy):
    issues = issues_by(pair, noisy)
    rows = rows_of(labels.labels_csv(issues, noisy))
    assert ",".join(rows[0]) == (
        "index,file,given,given_name,predicted,predicted_name,p_predicted,p_given,"
        "p_clean_net1,p_clean_net2,p_clean,rank,true"
    )
    assert [int(row["index"]) for row in rows] == list(range(50))
    assert rows[7]["file"] == "image 7.png"
    assert (rows[7]["given"], rows[7]["given_name"], rows[7]["true"]) == ("8", "class 8", "7")
    assert int(rows[7]["predicted"]) == issues.predicted[7]
    assert rows[7]["predicted_name"] == f"class {issues.predicted[7]}"
    assert float(rows[7]["p_given"]) == pytest.approx(issues.pred_probs[7, 8], rel=1e-5)
    assert float(rows[7]["p_clean_net2"]) == pytest.approx(issues.clean_probability[1, 7], rel=1e-5)
    assert float(rows[7]["p_clean"]) == pytest.approx(
        issues.clean_probability[:, 7].mean(), rel=1e-5
    )
    assert sorted(int(row["rank"]) for row in rows) == list(range(1, 51))
    assert rows[issues.order[0]]["rank"] == "1"


def test_labels_csv_leaves_unknown_files_and_truth_empty(pair):
    loader = loader_of(np.arange(20) % 10, None)
    row = rows_of(labels.labels_csv(issues_by(pair, loader), loader))[0]
    assert row["file"] == "" and row["true"] == ""


def test_rank_one_has_the_lowest_clean_probability_and_share_of_the_label():
    issues = issues_of(
        [0, 0, 0, 0], [1, 0, 1, 1], [0.1, 0.9, 0.01, 0.2], [[0.2, 0.9, 0.1, 0.8], [0.2, 1, 0, 0.9]]
    )
    assert issues.order.tolist() == [2, 0, 3, 1]


def test_label_quality_is_higher_if_no_other_class_fits_better():
    issues = issues_of([0, 0], [1, 1], [0.3, 0.3], [[0.5, 0.5]] * 2, [0.35, 0.7])
    assert issues.order.tolist() == [1, 0]
    np.testing.assert_allclose(issues.quality, [0.5 + 0.3 / 0.35, 0.5 + 0.3 / 0.7])


def test_a_label_issue_has_another_predicted_class_and_a_low_mean_clean_probability():
    issues = issues_of(
        [0] * 6,
        [1, 1, 1, 1, 1, 0],
        [0.1] * 6,
        [[0.9, 0.9, 0.4, 0.5, 0.2, 0], [0.05, 0.2, 0.56, 0.5, 0.4, 0]],
    )
    assert issues.is_issue.tolist() == [True, False, True, False, True, False]


def test_the_log_counts_label_issues_and_names_the_most_frequent_confusions():
    clean = np.array([1, 1, 1, 2, 0, 0])
    loader = loader_of([0, 0, 0, 0, 0, 0], clean)
    issues = issues_of(
        [0] * 6, [1, 1, 1, 2, 0, 3], [0, 0.1, 0.2, 0.3, 0.9, 0.8], [[0, 0, 0.1, 0.2, 0.9, 0.9]] * 2
    )
    words = labels.closing_lines(issues, loader)
    assert words[0] == (
        "label issues: 4 of 6 training labels (66.7 %), most often class 0 predicted as class 1 "
        "(3), class 0 predicted as class 2 (1)"
    )
    assert words[-1] == (
        "of 4 noisy labels 4 are among them (precision 1.000, recall 1.000); average precision of "
        "the ranking 1.000"
    )


def test_the_precision_of_one_label_issue_with_a_noisy_label_is_one():
    issues = issues_of([0, 1], [1, 1], [0, 0.9], [[0, 1]] * 2)
    words = labels.closing_lines(issues, loader_of([0, 1], np.array([1, 1])))
    assert "of 1 noisy labels 1 are among them (precision 1.000, recall 1.000)" in words[-1]


def test_the_log_names_three_confusions():
    words = labels.closing_lines(
        issues_of([0] * 4, [1, 2, 3, 4], [0] * 4, [[0] * 4] * 2), loader_of([0] * 4, None)
    )
    assert words[0].endswith(
        "class 0 predicted as class 1 (1), class 0 predicted as class 2 (1), "
        "class 0 predicted as class 3 (1)"
    )


def test_without_true_labels_the_log_has_no_precision():
    words = labels.closing_lines(
        issues_of([0, 1], [0, 1], [1, 1], [[1, 1]] * 2), loader_of([0, 1], None)
    )
    assert words == ["label issues: 0 of 2 training labels (0.0 %)"]


def test_networks_that_are_not_finite_have_no_label_issues(pair, noisy):
    pair.networks[1].linear.weight.data.fill_(float("nan"))
    with pytest.raises(smr.NonFiniteLoss, match="the loss of a training image is not finite"):
        issues_by(pair, noisy)


def test_a_folder_that_takes_no_file_is_named_and_the_pictures_are_drawn_all_the_same(
    pair, noisy, tmp_path
):
    said = []
    issues = issues_by(pair, noisy)
    drawn = labels.report(issues, noisy, tmp_path / "missing", said.append)
    assert said[-1].startswith(f"labels.csv was not written to {tmp_path / 'missing'} (No such")
    assert set(drawn) == {"label_issues/top", "label_issues/noise_transitions"}


def test_the_pictures_show_the_lowest_quality_first_with_label_and_predicted_class(noisy):
    """Another ranking, another picture; each is that of its images, labels and captions."""
    given, predicted = np.arange(50) % 10, (np.arange(50) + 1) % 10
    issues = issues_of(
        given, predicted, np.linspace(0.9, 0.01, 50), [np.linspace(0.9, 0.1, 50)] * 2
    )
    files, tags = labels.draw(issues, noisy)
    first = np.arange(49, -1, -1)
    captions = [f"image {i}.png" for i in first]
    shown = noisy.thumbnails(first), captions, given[first], predicted[first], NAMES
    np.testing.assert_array_equal(files["label_issues.png"], figures.label_issues(*shown, 8, 128))
    nine = [each[:9] for each in shown[:4]]
    np.testing.assert_array_equal(
        tags["label_issues/top"], figures.label_issues(*nine, NAMES, 3, 224)
    )


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The folder and output of a short run on digits: two warm-up epochs, one of each other."""
    root = tmp_path_factory.mktemp("run")
    arguments = ["--dataset", "digits", "--width", "2", "--warm_up", "1", "--num_epochs", "2"]
    done = run_script("train_cifar.py", *arguments, "--output", "out", cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    return root / "out" / "digits_0.5_sym_smr_seed123", done.stdout


def rows_of(content: bytes) -> list[dict]:
    return list(csv.DictReader(content.decode("utf-8-sig").splitlines()))


def test_a_run_ends_with_labels_csv_and_says_in_words_what_it_found(finished_run):
    folder, output = finished_run
    rows = rows_of((folder / "labels.csv").read_bytes())
    assert len(rows) == 1437
    noisy = json.loads((folder / "noisy_labels.json").read_text())
    assert [int(row["given"]) for row in rows] == noisy
    wrong = [row["given"] != row["true"] for row in rows]
    assert sum(wrong) / 1437 == pytest.approx(0.4502, abs=1e-4)
    precision = average_precision_score(wrong, [-int(row["rank"]) for row in rows])
    assert f"average precision of the ranking {precision:.3f}" in output
    assert " of 1,437 training labels (" in output
    assert str(folder.relative_to(folder.parent.parent) / "labels.csv") in output
    assert (folder / "label_issues.png").is_file() and (folder / "transitions.png").is_file()


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
        "label_issues/top",
        "label_issues/noise_transitions",
    } == set(tags["images"])
    assert {f"split/net{k}/losses_{group}" for k in (1, 2) for group in ("clean", "noisy")} == set(
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

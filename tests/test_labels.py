"""Label issues: scores on arrays, labels.csv, the log, and what a run leaves of them."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import TinyNet, plain_images, tiny_config, tiny_loader, tiny_pair
from runs import metrics_of
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import smr
import train_cifar
from smr.data.augment import Views
from smr.data.fingerprint import content_fingerprint
from smr.data.image_folder import Listing
from smr.data.memory_dataset import ImageData, MemoryLoader
from smr.errors import InputError
from smr.gmm_split import SampleLosses
from smr.label_issues import report as labels
from smr.label_issues import scores
from smr.label_issues.scores import LabelIssues
from smr.logging import figures
from smr.run import run_dir
from smr.run.run_dir import Action

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
    labels = np.where(np.arange(50) < 10, (clean + 1) % 10, clean)
    return loader_of(labels, clean, [f"image {i}.png" for i in range(50)])


@pytest.fixture
def pair():
    return tiny_pair(tiny_config(), TinyNet)


def issues_by(pair, loader, method=None) -> LabelIssues:
    """The label issues by these networks, as a run computes them."""
    method = method or smr.new_method(tiny_config(), pair, loader)
    return labels.compute_label_issues(pair, loader, method, amp=False)


def issues_of(given, predicted, p_given, p_clean, p_predicted=0.95, others=0.0) -> LabelIssues:
    """Networks with these probabilities of the label and of the predicted class, else `others`."""
    rows = np.arange(len(given))
    pred_probs = np.full((len(given), 10), others, np.float32)
    pred_probs[rows, given] = p_given
    pred_probs[rows, predicted] = np.where(np.equal(given, predicted), p_given, p_predicted)
    clean_probability = np.asarray(p_clean, dtype=float)
    return LabelIssues(rows, np.asarray(given), pred_probs, clean_probability)


def rows_of(content: bytes) -> list[dict]:
    return list(csv.DictReader(content.decode("utf-8-sig").splitlines()))


def items_of(folder) -> list[dict]:
    """What labels.html shows."""
    page = (folder / "labels.html").read_text()
    return json.loads(page.split('type="application/json">')[1].split("</script>")[0])["items"]


# --- scores ---


@pytest.mark.parametrize("shape", [(40,), (2, 40), None])
def test_scores_are_functions_on_arrays(shape):
    source = np.random.default_rng(3)
    pred_probs = source.dirichlet(np.ones(4), 40)
    given, clean_probability = source.integers(0, 4, 40), source.random(shape or 40)
    p_given = pred_probs[range(40), given]
    mean = clean_probability.sum(axis=0) / 2 if shape == (2, 40) else clean_probability
    quality = mean + p_given / pred_probs.max(axis=1)
    is_issue = (pred_probs.argmax(axis=1) != given) & (mean < 0.5)
    arrays = given, pred_probs, clean_probability
    issues = LabelIssues(np.arange(40), *arrays, frozen=not shape)
    if not shape:  # heads on frozen features
        arrays, quality, is_issue = arrays[:2], p_given, p_given < pred_probs.max(axis=1) / 2
    np.testing.assert_allclose(scores.label_quality_scores(*arrays), quality)
    np.testing.assert_array_equal(scores.find_label_issues(*arrays), is_issue)
    np.testing.assert_allclose(issues.quality, quality)
    np.testing.assert_array_equal(issues.is_issue, is_issue)
    assert 0 < is_issue.sum() < 40
    assert issues.order.tolist() == sorted(range(40), key=quality.__getitem__)
    assert issues.rank[issues.order].tolist() == list(range(1, 41))


def test_label_issues_are_of_the_networks_mean_and_of_each_ones_gmm(pair, noisy):
    method = smr.new_method(tiny_config(), pair, noisy)
    issues = issues_by(pair, noisy, method)
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
        for history in method.histories:
            history.append(SampleLosses(torch.arange(50), torch.rand(50)))
    before = [[id(losses) for losses in history] for history in method.histories]
    issues = issues_by(pair, noisy, method)
    assert [[id(losses) for losses in history] for history in method.histories] == before
    splits = [split.clean_probability for split in method.co_divide()]
    np.testing.assert_allclose(issues.clean_probability, splits, rtol=1e-4)


def test_networks_that_are_not_finite_have_no_label_issues(pair, noisy):
    pair.networks[1].linear.weight.data.fill_(float("nan"))
    with pytest.raises(smr.NonFiniteLoss, match="the loss of a training image is not finite"):
        issues_by(pair, noisy)


# --- the log ---


def words(issues, clean=None) -> list[str]:
    return labels.closing_lines(issues, loader_of(issues.labels, clean))


def test_the_log_counts_label_issues_and_names_the_most_frequent_confusions():
    p_clean = [[0, 0, 0.1, 0.2, 0.9, 0.9]] * 2
    issues = issues_of([0] * 6, [1, 1, 1, 2, 0, 3], [0, 0.1, 0.2, 0.3, 0.9, 0.8], p_clean)
    first, *_, last = words(issues, np.array([1, 1, 1, 2, 0, 0]))
    assert first == (
        "label issues: 4 of 6 training labels (66.7 %), most often class 0 predicted as class 1 "
        "(3), class 0 predicted as class 2 (1)"
    )
    assert last == (
        "of 4 noisy labels 4 are among them (precision 1.000, recall 1.000); average precision of "
        "the ranking 1.000"
    )
    three = words(issues_of([0] * 4, [1, 2, 3, 4], [0] * 4, [[0] * 4] * 2))[0].split("often ")[1]
    assert three == ", ".join(f"class 0 predicted as class {label} (1)" for label in (1, 2, 3))
    unknown = words(issues_of([0, 1], [0, 1], [1, 1], [[1, 1]] * 2))
    assert unknown == ["label issues: 0 of 2 training labels (0.0 %)"]


def probable(given, predicted, p_predicted=0.9) -> LabelIssues:
    """Networks that predict these classes with this probability, all others alike."""
    others, is_label = (1 - p_predicted) / 9, np.equal(given, predicted)
    p_given, p_clean = np.where(is_label, p_predicted, others), np.where(is_label, 0.9, 0.1)
    return issues_of(given, predicted, p_given, [p_clean] * 2, p_predicted, others)


def test_the_log_asks_for_a_review_and_says_how_many_may_be_correct():
    given = np.arange(40) % 10
    predicted = np.where(np.arange(40) < 20, (given + 1) % 10, given)
    clean = np.where(np.arange(40) < 10, (given + 1) % 10, given)
    said = "\n".join(words(probable(given, predicted, p_predicted=0.73), clean))
    assert "label issues: 20 of 40 training labels (50.0 %)" in said
    # each of the twenty has 0.03 for its label and 0.27 for all but the predicted class
    assert "an estimated 1 to 5 of these 20 labels are correct" in said
    assert "precision 0.500, recall 1.000" in said and "not learned enough" not in said


def test_networks_that_have_learned_too_little_are_named():
    given, index = np.arange(200) % 10, np.arange(200)

    def said(given, predicted) -> str:
        return "\n".join(words(probable(given, predicted)))

    chance = said(given, np.where(index < 182, (given + 1) % 10, given))
    assert "not learned enough" in chance
    assert "they agree with 9 % of the labels, and chance gives 10 %" in chance
    better = np.where(index < 170, (given + 1) % 10, given)
    assert "not learned enough" not in said(given, better)
    one = np.where(index % 5 < 3, 4, given)
    assert "they predict class 4 for 70 % of the images" in said(given, one)
    mostly = np.where(index % 10 < 7, 4, given)  # as many are labeled so
    assert "not learned enough" not in said(mostly, mostly)


# --- files ---


def test_labels_csv_has_a_row_for_each_image_with_names_file_and_truth(pair, noisy):
    issues = issues_by(pair, noisy)
    rows = rows_of(labels.labels_csv(issues, noisy))
    assert ",".join(rows[0]) == (
        "index,file,given,given_name,predicted,predicted_name,p_predicted,p_given,"
        "p_clean_net1,p_clean_net2,p_clean,rank,true"
    )
    assert [int(row["index"]) for row in rows] == list(range(50))
    row, predicted, p_clean = rows[7], issues.predicted[7], issues.clean_probability[:, 7]
    expected = {"file": "image 7.png", "given": "8", "given_name": "class 8", "true": "7"}
    expected |= {"predicted": str(predicted), "predicted_name": f"class {predicted}"}
    assert row | expected == row
    figures = [float(row[name]) for name in ("p_given", "p_clean_net1", "p_clean_net2", "p_clean")]
    exact = [issues.pred_probs[7, 8], *p_clean, p_clean.mean()]
    assert figures == pytest.approx(exact, rel=1e-5)
    assert sorted(int(row["rank"]) for row in rows) == list(range(1, 51))
    assert rows[issues.order[0]]["rank"] == "1"
    unknown = loader_of(np.arange(20) % 10, None)
    row = rows_of(labels.labels_csv(issues_by(pair, unknown), unknown))[0]
    assert row["file"] == "" and row["true"] == ""


def test_pictures_show_the_lowest_quality_first_even_if_no_file_can_be_written(noisy, tmp_path):
    """Another ranking, another picture; each is that of its images, labels and captions."""
    given, predicted = np.arange(50) % 10, (np.arange(50) + 1) % 10
    p_clean = [np.linspace(0.9, 0.1, 50)] * 2
    issues = issues_of(given, predicted, np.linspace(0.9, 0.01, 50), p_clean)
    lines, files = [], labels.draw(issues, noisy)[0]
    tags = labels.report(issues, noisy, tmp_path / "missing", lines.append, None, 0)
    assert lines[-1].startswith(f"labels.csv was not written to {tmp_path / 'missing'} (No such")
    assert set(tags) == {"label_issues/top", "label_issues/noise_transitions"}
    first = np.arange(49, -1, -1)
    captions = [f"image {i}.png" for i in first]
    shown = noisy.thumbnails(first), captions, given[first], predicted[first], NAMES
    np.testing.assert_array_equal(files["label_issues.png"], figures.label_issues(*shown, 8, 128))
    top = figures.label_issues(*(each[:9] for each in shown[:4]), NAMES, 3, 224)
    np.testing.assert_array_equal(tags["label_issues/top"], top)


@pytest.fixture
def write_list(tmp_path):
    """Write the list of these labels, all predicted as class 0, to tmp_path; its name."""

    def write(*given: int) -> str:
        given = np.array(given)
        issues = issues_of(given, given * 0, [0.1] * len(given), [given * 0.1] * 2)
        return labels.write_list(issues, loader_of(given, None), tmp_path, None).name

    return write


def test_a_list_that_nobody_edited_is_written_anew_and_an_edited_one_stays(write_list, tmp_path):
    path, second = tmp_path / "labels.csv", tmp_path / "labels_2.csv"
    assert write_list(0, 1, 2) == "labels.csv"
    before = path.read_bytes()
    assert write_list(0, 1, 3) == "labels.csv"
    assert path.read_bytes() != before
    edited = before.replace(b"\n", b"\r\n")
    path.write_bytes(edited)
    assert [write_list(0, 1, 2), write_list(0, 1, 3)] == ["labels_2.csv", "labels_2.csv"]
    second.write_bytes(b"mine, too")
    assert write_list(0, 1, 2) == "labels_3.csv"
    assert (path.read_bytes(), second.read_bytes()) == (edited, b"mine, too")


def test_an_edited_list_of_a_run_with_a_damaged_record_of_it_stays_too(write_list, tmp_path):
    write_list(0, 1, 2)
    (tmp_path / "labels.json").write_text("{")
    assert write_list(0, 1, 2) == "labels.csv"  # it is what would be written
    (tmp_path / "labels.json").write_text("{")
    (tmp_path / "labels.csv").write_bytes(b"mine")
    assert write_list(0, 1, 2) == "labels_2.csv"
    assert (tmp_path / "labels.csv").read_bytes() == b"mine"


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_person_edited_or_corrected_is_never_deleted(write_list, tmp_path, resume):
    write_list(0, 1, 2)
    flags = Action(resume=resume, overwrite=not resume)
    run_dir.refuse_to_lose(tmp_path, flags)
    for name in ("corrections.csv", "corrected_labels.json", "labels.csv"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=f"{name} was edited by a person"):
            run_dir.refuse_to_lose(tmp_path, flags)
        (tmp_path / name).unlink()


def test_resume_without_checkpoints_refuses_to_delete_epochs_that_were_trained(tmp_path):
    resume = Action(resume=True, overwrite=False)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")  # as of a run killed before its first checkpoint
    run_dir.refuse_to_lose(tmp_path, resume)
    for name in ("best.pt", "metrics.jsonl"):
        (tmp_path / name).write_text("of an epoch")
        with pytest.raises(InputError, match=r"holds a run without the last\.pt"):
            run_dir.refuse_to_lose(tmp_path, resume)
        (tmp_path / name).unlink()


def test_a_report_has_the_probabilities_and_a_page_of_the_first_so_many(pair, tmp_path):
    loader = tiny_loader()
    (tmp_path / "labels.csv").write_text("mine")
    issues, lines = issues_by(pair, loader), []
    labels.report(issues, loader, tmp_path, lines.append, None, review=3)
    assert "labels.csv was edited and stays as it is; the new list is labels_2.csv" in lines
    pred_probs = np.load(tmp_path / "pred_probs.npy")
    assert pred_probs.dtype == np.float32
    np.testing.assert_array_equal(pred_probs, issues.pred_probs)
    rows = rows_of((tmp_path / "labels_2.csv").read_bytes())
    assert pred_probs.argmax(axis=1).tolist() == [int(row["predicted"]) for row in rows]
    first, items = issues.order[:3], items_of(tmp_path)
    assert [item["index"] for item in items] == first.tolist()
    assert [item["label"] for item in items] == loader.noisy_labels[first].tolist()


def test_duplicates_with_two_labels_come_first_on_the_page_and_all_pairs_are_listed(tmp_path):
    loader, lines = tiny_loader(), []
    loader.files = [f"training/{i % 10}/photo {i}.jpg" for i in range(40)]
    rank, given = np.arange(40) / 40, loader.noisy_labels.numpy()
    issues = LabelIssues(np.arange(40), given, np.full((40, 10), 0.1), np.stack([rank] * 2))
    loader.info.duplicates = pairs = [
        ("training/2/photo 12.jpg", "testing/2/photo 3.jpg", "in training and test"),  # one label
        ("training/4/photo 34.jpg", "training/5/photo 25.jpg", "in 4 and 5"),
        ("training/1/photo 31.jpg", "testing/3/photo ä.jpg", "in 1 and 3"),
    ]
    labels.report(issues, loader, tmp_path, lines.append, None, review=4)
    raw = (tmp_path / "duplicates.csv").read_bytes()
    table = raw.decode("utf-8-sig").splitlines()
    assert table == ["file,duplicate,problem", *map(",".join, pairs)]
    shown = [(item["index"], item["rank"], item["duplicate"]) for item in items_of(tmp_path)]
    (first, other), third = pairs[1][:2], pairs[2][1]
    assert shown == [(25, 26, first), (31, 32, third), (34, 35, other), (0, 1, "")]
    assert any("two labels: " in line and "duplicates.csv" in line for line in lines)
    loader.info.duplicates = []
    (tmp_path / "labels.html").unlink()
    labels.report(issues, loader, tmp_path, lines.append, None, 0)
    assert not (tmp_path / "duplicates.csv").exists() and not (tmp_path / "labels.html").exists()


def test_a_fingerprint_is_another_for_other_content_names_classes_or_pixels(tmp_path):
    loader, found = tiny_loader(), set()
    found.add(content_fingerprint(loader))
    assert found == {content_fingerprint(tiny_loader())}
    loader.train_images[3, 4, 4, 0] ^= 1
    found.add(content_fingerprint(loader))
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(b"photo %d" % i)
    loader.files = [f"{i}.png" for i in range(40)]
    train = loader.train_images = Listing(tmp_path, loader.files, loader.noisy_labels.numpy())
    for name in ("0.png", "1.png"):
        loader.tests["test"] = (Listing(tmp_path, [name], np.zeros(1)), np.zeros(1))
        found.add(content_fingerprint(loader))
    assert content_fingerprint(loader) in found
    (tmp_path / "7.png").write_bytes(b"PHOTO 7")
    found.add(content_fingerprint(loader))
    (tmp_path / "7.png").rename(tmp_path / "seven.png")
    train.files[7] = "seven.png"
    found.add(content_fingerprint(loader))
    loader.class_names = list("012345678X")
    found.add(content_fingerprint(loader))
    assert len(found) == 7


# --- a run ---


def test_a_run_ends_with_labels_csv_which_evaluate_writes_again(digits_run, tmp_path, capsys):
    folder = shutil.copytree(digits_run, tmp_path / digits_run.name)
    content = (folder / "labels.csv").read_bytes()
    rows = rows_of(content)
    noisy = json.loads((folder / "noisy_labels.json").read_text())
    assert [int(row["given"]) for row in rows] == noisy and len(rows) == 400
    wrong = [row["given"] != row["true"] for row in rows]
    assert sum(wrong) == 179
    assert (folder / "label_issues.png").is_file() and (folder / "transitions.png").is_file()
    (folder / "labels.csv").unlink()
    assert train_cifar.main(["--evaluate", str(folder / "last.pt")]) == 0
    output = capsys.readouterr().out
    precision = average_precision_score(wrong, [-int(row["rank"]) for row in rows])
    assert f"average precision of the ranking {precision:.3f}" in output
    assert " of 400 training labels (" in output and str(folder / "labels.csv") in output
    assert (folder / "labels.csv").read_bytes() == content
    assert len(list(folder.glob("events*"))) == 1  # TensorBoard follows one file at a time


def test_tensorboard_has_curves_histograms_pictures_and_the_table_of_runs(digits_run):
    events = EventAccumulator(str(digits_run), size_guidance={"images": 0, "histograms": 0})
    tags = events.Reload().Tags()
    curves = {tag for row in metrics_of(digits_run) for tag in row if not tag.startswith("memory/")}
    overview = {f"overview/{name}" for name in ("accuracy", "best_accuracy", "auc", "precision")}
    assert set(tags["scalars"]) == curves - {"epoch", "kind"} | overview
    assert min(tags["scalars"]) == "overview/accuracy"  # the first chart of the page
    pictures = {"split/net1/mixture", "split/net2/mixture", "test/confusion"}
    pictures |= {"label_issues/top", "label_issues/noise_transitions"}
    histograms = {f"split/net{k}/losses_{group}" for k in (1, 2) for group in ("clean", "noisy")}
    assert (set(tags["images"]), set(tags["histograms"])) == (pictures, histograms)
    assert [e.step for e in events.Images("test/confusion")] == [0, 4]

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

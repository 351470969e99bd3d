"""What a run leaves of its label issues: over nothing that a person edited, in honest words."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TinyNet, tiny_config, tiny_loader, tiny_pair

import smr
from smr.data.fingerprint import content_fingerprint
from smr.errors import InputError
from smr.label_issues import report as labels
from smr.label_issues import scores
from smr.label_issues.scores import LabelIssues
from smr.run import run_dir
from smr.run.run_dir import Action


@pytest.fixture
def pair():
    return tiny_pair(tiny_config(), TinyNet)


def issues_by(pair, loader) -> LabelIssues:
    """The label issues by these networks, as a run computes them."""
    method = smr.new_method(tiny_config(), pair, loader)
    return labels.compute_label_issues(pair, loader, method, amp=False)


def report(pair, folder, loader=None, review=0) -> list[str]:
    """The lines of a report."""
    lines, loader = [], loader or tiny_loader()
    issues = issues_by(pair, loader)
    labels.report(issues, loader, folder, lines.append, None, review)
    return lines


def train_a_little(pair) -> None:
    """Have the networks predict other classes than before."""
    for network in pair.networks:
        network.linear.weight.data.mul_(-1)


def test_a_list_that_nobody_edited_is_written_anew(pair, tmp_path):
    report(pair, tmp_path)
    before = (tmp_path / "labels.csv").read_bytes()
    train_a_little(pair)
    report(pair, tmp_path)
    assert (tmp_path / "labels.csv").read_bytes() != before
    assert not (tmp_path / "labels_2.csv").exists()


def test_an_edited_list_stays_and_the_new_one_gets_another_name(pair, tmp_path):
    report(pair, tmp_path)
    edited = (tmp_path / "labels.csv").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "labels.csv").write_bytes(edited)
    first = report(pair, tmp_path)
    assert "labels.csv was edited and stays as it is; the new list is labels_2.csv" in first
    train_a_little(pair)
    report(pair, tmp_path)
    assert (tmp_path / "labels.csv").read_bytes() == edited
    (tmp_path / "labels_2.csv").write_bytes(b"mine, too")
    report(pair, tmp_path)
    assert (tmp_path / "labels_2.csv").read_bytes() == b"mine, too"
    assert sorted(path.name for path in tmp_path.glob("labels*.csv")) == [
        *("labels.csv", "labels_2.csv", "labels_3.csv")
    ]


def test_an_edited_list_of_a_run_without_a_record_of_it_stays_too(pair, tmp_path):
    report(pair, tmp_path)
    (tmp_path / "labels.json").write_text("{")
    kept = (tmp_path / "labels.csv").read_bytes()
    report(pair, tmp_path)
    assert not (tmp_path / "labels_2.csv").exists()  # it is what would be written
    (tmp_path / "labels.json").unlink()
    (tmp_path / "labels.csv").write_bytes(kept + b"0,")
    report(pair, tmp_path)
    assert (tmp_path / "labels.csv").read_bytes() == kept + b"0,"
    assert (tmp_path / "labels_2.csv").read_bytes() == kept


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_person_edited_or_corrected_is_never_deleted(pair, tmp_path, resume):
    report(pair, tmp_path)
    flags = Action(resume=resume, overwrite=not resume)
    run_dir.refuse_to_lose(tmp_path, flags)
    for name in ("corrections.csv", "corrected_labels.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=f"{name} was edited by a person"):
            run_dir.refuse_to_lose(tmp_path, flags)
        (tmp_path / name).unlink()
    (tmp_path / "labels.csv").write_text("mine")
    with pytest.raises(InputError, match=r"labels\.csv was edited by a person"):
        run_dir.refuse_to_lose(tmp_path, flags)


def test_a_new_run_starts_beside_a_list_of_which_no_run_is_left(pair, tmp_path):
    report(pair, tmp_path)
    (tmp_path / "labels.json").unlink()
    run_dir.refuse_to_lose(tmp_path, Action(resume=None, overwrite=False))
    run_dir.clear(tmp_path)
    assert (tmp_path / "labels.csv").exists()


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


def test_pred_probs_are_the_networks_probabilities_in_the_order_of_labels_csv(pair, tmp_path):
    loader = tiny_loader()
    report(pair, tmp_path, loader)
    found = np.load(tmp_path / "pred_probs.npy")
    assert found.dtype == np.float32 and found.shape == (40, 10)
    issues = issues_by(pair, loader)
    np.testing.assert_array_equal(found, issues.pred_probs)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    rows = (tmp_path / "labels.csv").read_text("utf-8-sig").splitlines()[1:]
    seen = [int(row.split(",")[4]) for row in rows]
    assert found.argmax(axis=1).tolist() == seen


def test_the_page_shows_the_first_so_many_of_the_ranking(pair, tmp_path):
    loader = tiny_loader()
    report(pair, tmp_path, loader, review=3)
    page = (tmp_path / "labels.html").read_text()
    content = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    issues = issues_by(pair, loader)
    assert [item["index"] for item in content["items"]] == issues.order[:3].tolist()
    given = loader.noisy_labels[issues.order[:3]].tolist()
    assert [item["label"] for item in content["items"]] == given
    (tmp_path / "labels.html").unlink()
    report(pair, tmp_path, loader)
    assert not (tmp_path / "labels.html").exists()


def issues_of(given, predicted, p_predicted=0.9, p_clean=0.1, classes=10) -> LabelIssues:
    """Networks that predict these classes with this probability, all others alike."""
    count = len(given)
    probability = np.full((count, classes), (1 - p_predicted) / (classes - 1), np.float32)
    probability[np.arange(count), predicted] = p_predicted
    p_clean = np.where(np.equal(given, predicted), 0.9, p_clean)
    return LabelIssues(np.arange(count), np.asarray(given), probability, np.stack([p_clean] * 2))


def words(issues) -> str:
    return "\n".join(labels.closing_lines(issues, tiny_loader(n=len(issues.labels))))


def test_the_log_asks_for_a_review_and_says_how_many_may_be_correct():
    given = np.arange(40) % 10
    predicted = np.where(np.arange(40) < 20, (given + 1) % 10, given)
    said = words(issues_of(given, predicted, p_predicted=0.73))
    assert "label issues: 20 of 40 training labels (50.0 %)" in said
    # each of the twenty has 0.03 for its label and 0.27 for all but the predicted class
    assert "an estimated 1 to 5 of these 20 labels are correct" in said
    assert "precision 0.500, recall 1.000" in said  # of the first ten, which are wrong
    assert "not learned enough" not in said


def test_networks_near_chance_are_said_to_have_learned_too_little():
    given = np.arange(200) % 10
    shifted = np.where(np.arange(200) < 182, (given + 1) % 10, given)
    said = words(issues_of(given, shifted))
    assert "not learned enough" in said
    assert "they agree with 9 % of the labels, and chance gives 10 %" in said
    better = np.where(np.arange(200) < 170, (given + 1) % 10, given)
    assert "not learned enough" not in words(issues_of(given, better))


def test_networks_that_predict_one_class_nearly_everywhere_are_said_to_have_learned_too_little():
    given = np.arange(200) % 10
    one = np.where(np.arange(200) % 5 < 3, 4, given)
    assert "they predict 4 for 70 % of the images" in words(issues_of(given, one))
    mostly = np.where(np.arange(200) % 10 < 7, 4, given)  # as many are labeled so
    assert "not learned enough" not in words(issues_of(mostly, mostly))


def with_duplicates(*pairs) -> tuple:
    """A loader of photos with these duplicates, and issues that rank them by position."""
    loader = tiny_loader()
    loader.files = [f"training/{i % 10}/photo {i}.jpg" for i in range(40)]
    loader.info.duplicates = pairs
    labels_, rank = loader.noisy_labels.numpy(), np.arange(40) / 40
    return loader, LabelIssues(np.arange(40), labels_, np.full((40, 10), 0.1), np.stack([rank] * 2))


def test_duplicates_with_two_labels_come_first_on_the_page_and_all_pairs_are_listed(tmp_path):
    same, other, test = (f"training/{i % 10}/photo {i}.jpg" for i in (12, 25, 31))
    loader, issues = with_duplicates(
        (same, "testing/2/photo 3.jpg", "in training and test"),  # one label
        ("training/4/photo 34.jpg", other, "in 4 and 5"),
        (test, "testing/3/photo ä.jpg", "in 1 and 3"),
    )
    lines: list[str] = []
    labels.report(issues, loader, tmp_path, lines.append, None, review=4)
    raw = (tmp_path / "duplicates.csv").read_bytes()
    assert raw.decode("utf-8-sig").splitlines() == [
        "file,duplicate,problem",
        f"{same},testing/2/photo 3.jpg,in training and test",
        f"training/4/photo 34.jpg,{other},in 4 and 5",
        f"{test},testing/3/photo ä.jpg,in 1 and 3",
    ]
    page = (tmp_path / "labels.html").read_text()
    content = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    shown = [(item["index"], item["rank"], item["duplicate"]) for item in content["items"]]
    assert shown == [
        (25, 26, "training/4/photo 34.jpg"),
        (31, 32, "testing/3/photo ä.jpg"),
        (34, 35, other),
        (0, 1, ""),
    ]
    assert any("two labels: " in line and "duplicates.csv" in line for line in lines)
    loader.info.duplicates = []
    labels.report(issues, loader, tmp_path, lines.append)
    assert not (tmp_path / "duplicates.csv").exists()


def test_a_fingerprint_is_another_for_other_content_names_classes_or_pixels(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(b"photo %d" % i)
    loader = tiny_loader()
    pixels = content_fingerprint(loader, None)
    assert content_fingerprint(tiny_loader(), "missing") == pixels
    loader.train_images.padded[3, 4, 4, 0] ^= 1
    assert content_fingerprint(loader, None) != pixels
    loader.files = [f"{i}.png" for i in range(40)]
    found = {content_fingerprint(loader, tmp_path)}
    assert found == {content_fingerprint(loader, str(tmp_path))}
    (tmp_path / "7.png").write_bytes(b"PHOTO 7")
    found.add(content_fingerprint(loader, tmp_path))
    (tmp_path / "7.png").rename(tmp_path / "seven.png")
    loader.files[7] = "seven.png"
    found.add(content_fingerprint(loader, tmp_path))
    (tmp_path / "seven.png").unlink()  # in memory alone
    found.add(content_fingerprint(loader, tmp_path))
    loader.class_names = list("012345678X")
    found.add(content_fingerprint(loader, tmp_path))
    assert len(found | {pixels}) == 6
    for name in ("0.png", "1.png"):  # the photos of the test set count too
        images = SimpleNamespace(root=tmp_path, files=[name])
        loader.tests["test"] = (images, torch.zeros(1))
        found.add(content_fingerprint(loader, tmp_path))
    assert len(found | {pixels}) == 8


@pytest.mark.parametrize("shape", [(40,), (2, 40)])
def test_scores_are_functions_on_arrays(shape):
    source = np.random.default_rng(3)
    pred_probs = source.dirichlet(np.ones(4), 40)
    given, clean_probability = source.integers(0, 4, 40), source.random(shape)
    mean = clean_probability if len(shape) == 1 else clean_probability.sum(axis=0) / 2
    arrays = given, pred_probs, clean_probability
    quality = [mean[i] + pred_probs[i, given[i]] / pred_probs[i].max() for i in range(40)]
    np.testing.assert_allclose(scores.label_quality_scores(*arrays), quality)
    assert scores.rank_label_issues(*arrays).tolist() == sorted(range(40), key=quality.__getitem__)
    is_issue = [pred_probs[i].argmax() != given[i] and mean[i] < 0.5 for i in range(40)]
    assert scores.find_label_issues(*arrays).tolist() == is_issue

"""What a run leaves of its judgment: over nothing that a person edited, and in honest words."""

import json
from argparse import Namespace

import numpy as np
import pytest
from helpers import TinyNet, tiny_loader, tiny_pair, tiny_recipe

from smr.errors import InputError
from smr.label_issues import report as labels
from smr.logging import figures as pictures
from smr.run import run_dir as folders


@pytest.fixture
def pair():
    return tiny_pair(tiny_recipe(), TinyNet)


def report(pair, folder, loader=None, shown=0) -> list[str]:
    """The lines that a report says."""
    lines: list[str] = []
    labels.report(pair, loader or tiny_loader(), tiny_recipe(), folder, lines.append, None, shown)
    return lines


def train_a_little(pair) -> None:
    """Have the networks judge otherwise than before."""
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
        *("labels.csv", "labels_2.csv", "labels_3.csv"),
    ]


def test_an_edited_list_of_a_run_without_a_record_of_it_stays_too(pair, tmp_path):
    report(pair, tmp_path)
    (tmp_path / "judged.json").write_text("{")
    kept = (tmp_path / "labels.csv").read_bytes()
    report(pair, tmp_path)
    assert not (tmp_path / "labels_2.csv").exists()  # it is what would be written
    (tmp_path / "judged.json").unlink()
    (tmp_path / "labels.csv").write_bytes(kept + b"0,")
    report(pair, tmp_path)
    assert (tmp_path / "labels.csv").read_bytes() == kept + b"0,"
    assert (tmp_path / "labels_2.csv").read_bytes() == kept


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_person_edited_or_corrected_is_never_deleted(pair, tmp_path, resume):
    report(pair, tmp_path)
    flags = Namespace(resume=resume, overwrite=not resume)
    folders.refuse_a_run(tmp_path, flags)
    for name in ("corrections.csv", "corrected_labels.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=f"{name} is a person's work"):
            folders.refuse_a_run(tmp_path, flags)
        (tmp_path / name).unlink()
    (tmp_path / "labels.csv").write_text("mine")
    with pytest.raises(InputError, match=r"labels\.csv is a person's work"):
        folders.refuse_a_run(tmp_path, flags)


def test_a_new_run_starts_beside_a_list_of_which_no_run_is_left(pair, tmp_path):
    report(pair, tmp_path)
    (tmp_path / "judged.json").unlink()
    folders.refuse_a_run(tmp_path, Namespace(resume=None, overwrite=False))
    folders.clear_folder(tmp_path)
    assert (tmp_path / "labels.csv").exists()


def test_resume_without_checkpoints_refuses_to_delete_epochs_that_were_trained(tmp_path):
    resume = Namespace(resume=True, overwrite=False)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")  # as of a run killed before its first checkpoint
    folders.refuse_a_run(tmp_path, resume)
    for name in ("best.pt", "metrics.jsonl"):
        (tmp_path / name).write_text("of an epoch")
        with pytest.raises(InputError, match=r"holds a run without the last\.pt"):
            folders.refuse_a_run(tmp_path, resume)
        (tmp_path / name).unlink()


def test_pred_probs_are_the_networks_probabilities_in_the_order_of_labels_csv(pair, tmp_path):
    loader = tiny_loader()
    report(pair, tmp_path, loader)
    found = np.load(tmp_path / "pred_probs.npy")
    assert found.dtype == np.float32 and found.shape == (40, 10)
    judgment = labels.judge(pair, loader, tiny_recipe())
    np.testing.assert_array_equal(found, judgment.probability)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    rows = (tmp_path / "labels.csv").read_text().splitlines()[1:]
    seen = [int(row.split(",")[4]) for row in rows]
    assert found.argmax(axis=1).tolist() == seen


def test_the_page_shows_the_first_so_many_of_the_ranking(pair, tmp_path):
    loader = tiny_loader()
    report(pair, tmp_path, loader, shown=3)
    page = (tmp_path / "labels.html").read_text()
    content = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    judgment = labels.judge(pair, loader, tiny_recipe())
    assert [item["index"] for item in content["items"]] == judgment.order[:3].tolist()
    given = loader.noisy_labels[judgment.order[:3]].tolist()
    assert [item["given"] for item in content["items"]] == given
    (tmp_path / "labels.html").unlink()
    report(pair, tmp_path, loader)
    assert not (tmp_path / "labels.html").exists()


def judgment_of(given, predicted, p_predicted=0.9, p_clean=0.1, classes=10) -> labels.Judgment:
    """Networks that see these classes with this probability, all others alike."""
    count = len(given)
    probability = np.full((count, classes), (1 - p_predicted) / (classes - 1), np.float32)
    probability[np.arange(count), predicted] = p_predicted
    p_clean = np.where(np.equal(given, predicted), 0.9, p_clean)
    return labels.Judgment(
        np.arange(count), np.asarray(given), probability, np.stack([p_clean] * 2)
    )


def words(judgment) -> str:
    return "\n".join(labels.closing_words(judgment, tiny_loader(n=len(judgment.given))))


def test_closing_words_call_them_candidates_and_say_how_many_may_be_right():
    given = np.arange(40) % 10
    predicted = np.where(np.arange(40) < 20, (given + 1) % 10, given)
    said = words(judgment_of(given, predicted, p_predicted=0.73))
    assert "20 of 40 training labels look wrong (50.0 %)" in said
    # each of the twenty has 0.03 for its label and 0.27 for all but the class seen
    assert "these are candidates" in said and " 1 to 5 of them are right" in said
    assert "precision 0.500, recall 1.000" in said  # of the first ten, which are wrong
    assert "not learnt enough" not in said


def test_networks_near_chance_are_said_to_have_learnt_too_little():
    given = np.arange(200) % 10
    shifted = np.where(np.arange(200) < 182, (given + 1) % 10, given)
    said = words(judgment_of(given, shifted))
    assert "not learnt enough" in said
    assert "they agree with 9 % of the labels, where chance gives 10 %" in said
    better = np.where(np.arange(200) < 170, (given + 1) % 10, given)
    assert "not learnt enough" not in words(judgment_of(given, better))


def test_networks_that_see_one_class_nearly_everywhere_are_said_to_have_learnt_too_little():
    given = np.arange(200) % 10
    one = np.where(np.arange(200) % 5 < 3, 4, given)
    assert "they see 4 in 70 % of the images" in words(judgment_of(given, one))
    mostly = np.where(np.arange(200) % 10 < 7, 4, given)  # as many are labeled so
    assert "not learnt enough" not in words(judgment_of(mostly, mostly))


def test_suspects_are_captioned_with_rank_and_file_name(monkeypatch):
    loader, captions = tiny_loader(), []
    loader.files = [f"training/x/photo {i}.jpg" for i in range(40)]
    monkeypatch.setattr(pictures, "label_issues", lambda images, names, *_: captions.append(names))
    judgment = judgment_of(
        np.arange(40) % 10, (np.arange(40) + 1) % 10, p_clean=np.linspace(1, 0, 40)
    )
    labels.draw(judgment, loader)
    assert captions[0][:2] == ["photo 39.jpg", "photo 38.jpg"] and len(captions[0]) == 40

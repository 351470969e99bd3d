"""A run's metrics on disk and in TensorBoard, from made-up epochs: no network is trained here."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny_loader
from runs import events_of, metrics_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smr.evaluate import Test
from smr.logging.metrics_file import RunRecord, accuracy_line, read_metrics
from smr.methods import TrainedEpoch
from smr.run.run_dir import run_name

CONFIG = {
    **{"dataset": "digits", "r": 0.5, "noise_mode": "sym", "method": "smr", "seed": 7, "id": ""},
    **{"lr": 0.02, "network": "vgg19_bn", "num_epochs": 30, "lambda_u": 25.0, "review": 500},
    **{"SELECT_ON": "", "TEST_TITLES": {}},
}
MEMORY = {"memory/host_gib": 1.234}


def add_epoch(record: RunRecord, epoch: int, accuracy: float, **more: float) -> None:
    """Add a warm-up epoch, which has no split."""
    trained = TrainedEpoch(epoch, "warm-up", {"train/net1/loss": 10 * epoch + 0.5} | more)
    record.add(trained, {"test": Test({"accuracy": accuracy}, np.eye(10, dtype=int))}, MEMORY)


def new_record(folder, rows=(), **changes) -> RunRecord:
    folder.mkdir(exist_ok=True)
    config = SimpleNamespace(**CONFIG | changes)
    config.last_epoch = config.num_epochs
    record = RunRecord(folder, config, tiny_loader(), list(rows))
    record.header()
    return record


def add_epochs(record: RunRecord, accuracies) -> None:
    for epoch, accuracy in enumerate(accuracies, start=len(record.rows)):
        add_epoch(record, epoch, accuracy)


ACCURACIES = [50.0, 80.0, 70.0, 80.0, *range(11, 20)]


def test_each_row_has_its_epoch_s_figures_the_best_so_far_and_the_mean_of_the_last_ten(tmp_path):
    add_epochs(new_record(tmp_path), map(np.float64, ACCURACIES))
    rows = metrics_of(tmp_path)
    assert [(row["epoch"], row["kind"]) for row in rows] == [(i, "warm-up") for i in range(13)]
    assert [row["test/accuracy"] for row in rows] == ACCURACIES
    assert [row["train/net1/loss"] for row in rows] == [10 * epoch + 0.5 for epoch in range(13)]
    assert [row["memory/host_gib"] for row in rows] == [1.234] * 13
    assert [row["test/best_accuracy"] for row in rows] == [50, *[80] * 12]
    means = [row["test/mean_of_last_ten"] for row in rows]
    assert means[:3] == pytest.approx([50, 65, 200 / 3])
    assert means[9] == pytest.approx((50 + 80 + 70 + 80 + 11 + 12 + 13 + 14 + 15 + 16) / 10)
    assert means[12] == pytest.approx((80 + sum(range(11, 20))) / 10)


def test_acc_txt_and_stats_txt_have_the_published_lines_as_soon_as_an_epoch_ends(tmp_path):
    record = new_record(tmp_path)
    add_epoch(record, 0, 50)
    assert (tmp_path / "acc.txt").read_text() == "Epoch:0   Accuracy:50.00\n"
    split = {"split/net1/labeled": 30, "split/net1/unlabeled": 10}
    split |= {"split/net2/labeled": 25, "split/net2/unlabeled": 15, "split/net2/auc": 0.8126}
    add_epoch(record, 1, 81.256, **split)
    assert (tmp_path / "acc.txt").read_text() == (
        "Epoch:0   Accuracy:50.00\nEpoch:1   Accuracy:81.26\n"
    )
    assert (tmp_path / "stats.txt").read_text() == (
        "Epoch:1   Network:1   Number of labeled samples:30   Number of unlabeled samples:10\n"
        "Epoch:1   Network:2   Number of labeled samples:25   AUC:0.813   "
        "Number of unlabeled samples:15\n"
    )


def test_acc_txt_of_several_test_sets_has_their_titles_and_the_five_likeliest_classes():
    titles = {"test": "WebVision", "imagenet": "ImageNet", "third": "Third"}
    row = {"epoch": 3, "test/accuracy": 70.126, "test/top5": 90.0, "imagenet/accuracy": 60.0}
    assert accuracy_line(row, titles) == (
        "Epoch:3 \t WebVision Acc: 70.13% (90.00%) \t ImageNet Acc: 60.00%\n"
    )


def test_the_best_epoch_is_the_first_of_equals_or_each_network_s_own(tmp_path):
    record = new_record(tmp_path / "both")
    add_epochs(record, [50])
    assert record.best_epochs == (0, 0)
    add_epochs(record, [80, 70, 80])
    assert record.best_epochs == (1, 1)
    record = new_record(tmp_path / "own", SELECT_ON="val")
    for epoch, (first, second) in enumerate(((10, 30), (20, 20), (15, 30))):
        own = {"val/net1/accuracy": first, "val/net2/accuracy": second}
        add_epoch(record, epoch, 50 + epoch, **own)
    assert record.best_epochs == (1, 0)


def test_an_epoch_s_time_is_that_since_the_one_before_was_recorded(tmp_path, clock):
    record = new_record(tmp_path)
    for seconds in (5, 7):
        clock.now += seconds
        add_epochs(record, [50])
    assert [row["time/seconds"] for row in metrics_of(tmp_path)] == [5, 7]


def test_files_and_curves_hold_no_more_than_the_rows_that_a_run_goes_on_from(tmp_path):
    record = new_record(tmp_path)
    add_epochs(record, [50, 80, 70])
    record.close()
    rows = metrics_of(tmp_path)[:2]
    again = new_record(tmp_path, rows)
    assert metrics_of(tmp_path) == rows
    assert (tmp_path / "acc.txt").read_text().count("\n") == 2
    add_epochs(again, [60, 40])
    again.close()
    assert [row["test/accuracy"] for row in metrics_of(tmp_path)] == [50, 80, 60, 40]
    assert events_of(tmp_path)["test/accuracy"] == [(0, 50), (1, 80), (2, 60), (3, 40)]


def test_metrics_without_a_last_line_that_was_cut_off_are_read(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n{"epo')
    assert read_metrics(tmp_path) == [{"epoch": 0}, {"epoch": 1}]


def test_a_run_s_name_says_what_it_is():
    for changes, name in (
        ({}, "digits_0.5_sym_smr_seed7"),
        ({"id": "try"}, "digits_0.5_sym_smr_seed7_try"),
        ({"r": 0.0, "method": "ce"}, "digits_0.0_sym_ce_seed7"),
        ({"r": 0.4021, "noise_mode": "worst"}, "digits_0.4021_worst_smr_seed7"),
    ):
        assert run_name(SimpleNamespace(**CONFIG | changes)) == name
    config = {"dataset": "folder", "method": "dividemix", "seed": 1, "id": ""}
    assert run_name(SimpleNamespace(**config)) == "folder_dividemix_seed1"


# --- TensorBoard ---


def test_curves_have_a_point_an_epoch_at_the_epoch_s_number(tmp_path):
    record = new_record(tmp_path)
    add_epochs(record, ACCURACIES[:3])
    counts = {f"split/net{k}/{part}": 5 for k in (1, 2) for part in ("labeled", "unlabeled")}
    own = {"split/net1/auc": 0.5, "split/net2/auc": 1.0, "split/net1/precision": 0.25} | counts
    add_epoch(record, 3, 50, **own)
    record.close()
    curves = events_of(tmp_path)
    assert curves["overview/auc"] == [(3, 0.75)] and curves["overview/precision"] == [(3, 0.25)]
    curves = {tag: points[:3] for tag, points in curves.items()}
    assert curves["test/accuracy"] == [(0, 50), (1, 80), (2, 70)]
    assert curves["test/best_accuracy"] == [(0, 50), (1, 80), (2, 80)]
    assert curves["overview/accuracy"] == curves["test/accuracy"]
    assert curves["train/net1/loss"] == [(0, 0.5), (1, 10.5), (2, 20.5)]
    assert not [tag for tag in curves if tag.startswith("memory/")]


def test_pictures_come_every_tenth_epoch_and_at_the_end_with_the_last_accuracies(tmp_path, capsys):
    record = new_record(tmp_path, num_epochs=12)
    add_epochs(record, ACCURACIES)
    capsys.readouterr()
    record.finish({"label_issues/top": np.zeros((4, 4, 3), np.uint8)}, selected=75.0)
    record.close()
    accuracy, selected = capsys.readouterr().out.splitlines()
    assert accuracy == (
        "best accuracy 80.00 % (epoch 1), last 19.00 %, mean of the last 10 epochs 21.50 %"
    )
    assert selected.endswith("networks of epochs 1 and 1, test accuracy 75.00 %")
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("test/confusion")] == [0, 10, 12]
    assert [event.step for event in events.Images("label_issues/top")] == [12]


def test_what_could_not_be_written_is_logged_and_written_with_the_next_epoch(tmp_path, capsys):
    record = new_record(tmp_path)
    add_epochs(record, [50])
    (tmp_path / ".metrics.jsonl.new").mkdir()  # in the way of the file, as a full disk is
    add_epochs(record, [80])
    (tmp_path / ".metrics.jsonl.new").rmdir()
    assert capsys.readouterr().out.endswith(
        "the metrics were not written (Is a directory); the run continues\n"
    )
    assert len(metrics_of(tmp_path)) == 1
    add_epochs(record, [70])
    record.close()
    assert [row["test/accuracy"] for row in metrics_of(tmp_path)] == [50, 80, 70]
    assert events_of(tmp_path)["test/accuracy"] == [(0, 50), (1, 80), (2, 70)]

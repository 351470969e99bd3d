"""What a run prints: columns, progress, time left; terminals, files, closed pipes, encodings."""

import errno
import io
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from smr.logging.console import RunLog, Terminal, duration
from smr.metrics import Meter

EVERY_COLUMN = ["lr", "Lx", "Lu", "w(Lu)", "labeled", "AUC", "prec", "test%", "best%", "seconds"]
SMR = {"lambda_u": 25.0, "p_threshold": 0.5}


def config_of(method=SMR, **changes) -> SimpleNamespace:
    config = {"dataset": "cifar10", "r": 0.5, "noise_mode": "sym", "num_epochs": 9}
    config |= method | changes
    return SimpleNamespace(**config, last_epoch=config["num_epochs"])


def new_log(truth_known=True, test_sets=("test",), **changes) -> RunLog:
    return RunLog(config_of(**changes), truth_known, test_sets)


def progress_line(log: RunLog, capsys, *place, meter=None) -> str:
    """The progress line at (epoch, kind, network, step, steps)."""
    capsys.readouterr()
    log.terminal.last_shown -= 60
    meter = meter or Meter()
    meter.started -= 30
    log.progress(*place, meter)
    return capsys.readouterr().out


def time_left(log: RunLog, capsys, *place) -> str:
    return progress_line(log, capsys, *place).split("images/s")[1].strip(" ,\n")


def test_durations_are_days_hours_minutes_and_seconds():
    texts = {0.4: "0:00:00", 59.6: "0:01:00", 3599.6: "1:00:00", 3725: "1:02:05"}
    texts[9e4] = "1 day, 1:00:00"
    assert {seconds: duration(seconds) for seconds in texts} == texts


def test_time_left_in_a_process_s_first_epoch_follows_the_share_that_is_done(clock, capsys):
    log = new_log(num_epochs=4)
    log.header()
    clock.now += 60  # three eighths of the epoch take 60 s; 4 and five eighths are left
    assert time_left(log, capsys, 0, "elr", 1, 3, 4) == "0:12:20 left"


def test_time_left_is_the_mean_of_past_epochs_and_warm_up_counts_until_there_are_others(
    clock, capsys
):
    log = new_log()
    for epoch in range(3):
        log.summary(epoch, "warm-up", {"time/seconds": 10.0 * (epoch + 1)})
    # The mean is 20 s: half an epoch and six more.
    assert time_left(log, capsys, 3, "warm-up", 1, 4, 4) == "at least 0:02:10 left"
    assert time_left(log, capsys, 3, "semi-supervised", 1, 4, 4) == "0:02:10 left"
    log.summary(3, "semi-supervised", {"time/seconds": 100.0})
    log.summary(4, "recalibration", {"time/seconds": 40.0})
    # The mean of the two is 70 s: a quarter of an epoch and four more.
    assert time_left(log, capsys, 5, "semi-supervised", 2, 2, 4) == "0:04:58 left"
    assert time_left(log, capsys, 9, "recalibration", 2, 4, 4) == "0:00:00 left"


@pytest.mark.parametrize(("lambda_u", "unlabeled"), [(25, "loss_u 0.5000  "), (0, "")])
def test_progress_line_has_place_means_rate_time_left_and_an_unlabeled_loss_with_weight(
    lambda_u, unlabeled, clock, capsys
):
    log, meter = new_log(num_epochs=4, lambda_u=lambda_u), Meter()
    log.header()
    clock.now += 30
    meter.started = clock.now
    meter.add(torch.tensor(2.0), {"loss": 2.0, "loss_u": 0.75}, 32)
    meter.add(torch.tensor(1.0), {"loss": 1.0, "loss_u": 0.25}, 28)
    assert progress_line(log, capsys, 0, "warm-up", 1, 2, 4, meter=meter) == (
        f"cifar10:0.5-sym | Epoch [  0/  4] Iter[  2/  4]  warm-up, net 1  loss 1.5000  {unlabeled}"
        "2 images/s, at least 0:09:30 left\n"
    )
    log.progress(0, "warm-up", 1, 3, 4, meter)
    assert capsys.readouterr().out == "", "the next line comes half a minute later"


UNLABELED, TRUTH = {"Lu", "w(Lu)"}, {"AUC", "prec"}
SPLIT = {"Lx", "labeled"} | UNLABELED | TRUTH


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        ({}, {}),
        ({"lambda_u": 0}, UNLABELED),
        ({"truth_known": False}, TRUTH),
        ({"method": {}}, SPLIT),
    ],
)
def test_columns_are_those_that_a_run_has_figures_for(arguments, without, capsys):
    new_log(**arguments).header()
    headings = capsys.readouterr().out.split()[2:]
    assert headings == [name for name in EVERY_COLUMN if name not in without]


def test_columns_of_several_test_sets_have_their_names_and_top5(capsys):
    new_log(method={}, top5=True, test_sets=("webvision", "imagenet")).header()
    assert capsys.readouterr().out.split()[2:] == [
        *("lr", "webvision%", "webvision5%", "imagenet%", "imagenet5%", "best%", "seconds")
    ]


def test_an_epoch_s_line_has_the_means_over_both_networks_and_a_dash_for_what_is_missing(capsys):
    log = new_log()
    log.header()
    both = {"loss_x": (1, 2), "loss_u": (0.002, 0.004), "lambda_u": (20, 25)}
    figures = {f"train/net{k}/{name}": v[k - 1] for name, v in both.items() for k in (1, 2)}
    figures |= {"split/net1/labeled": 300, "split/net2/labeled": 500, "split/net1/auc": 0.8}
    figures |= {"split/net2/auc": 0.9, "split/net1/precision": 0.7, "train/learning_rate": 0.02}
    figures |= {"test/accuracy": 91.236, "test/best_accuracy": 92.0, "time/seconds": 12.34}
    log.summary(3, "semi-supervised", figures)
    log.summary(4, "warm-up", {"train/learning_rate": 0.02, "time/seconds": 1.0})
    assert capsys.readouterr().out.splitlines() == [
        "epoch kind                  lr       Lx       Lu  w(Lu) labeled    AUC   prec  test%"
        "  best%  seconds",
        "    3 semi-supervised     0.02   1.5000  0.00300  22.50     400  0.850  0.700  91.24"
        "  92.00     12.3",
        "    4 warm-up             0.02        -        -      -       -      -      -      -"
        "      -      1.0",
    ]


def test_a_note_is_printed_once(capsys):
    log = new_log()
    for text in ("one", "two", "one"):
        log.note(text)
    assert capsys.readouterr().out == "note: one\nnote: two\n"


# --- terminal ---


class FakeTerminal(io.StringIO):
    """A text file that is a terminal."""

    def isatty(self):
        return True


class FullDisk(io.StringIO):
    """A text file on a full disk."""

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("output", "period"), [(FakeTerminal(), 1), (io.StringIO(), 30)])
def test_progress_is_due_once_a_second_on_a_terminal_and_each_half_minute_elsewhere(
    output, period, clock, monkeypatch
):
    monkeypatch.setattr(sys, "stdout", output)
    terminal, due = Terminal(), []
    for seconds in (0, period - 0.1, 0.1, 0, period):
        clock.now += seconds
        due.append(terminal.due())
    assert due == [False, False, True, False, True]


def test_a_terminal_s_progress_line_stays_in_place_cut_to_its_width(monkeypatch, capsys):
    Terminal().progress("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n", "elsewhere it is a whole line"
    monkeypatch.setattr(sys, "stdout", FakeTerminal())
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    terminal.progress("a progress line of more letters than the terminal has")
    terminal.line("a line of its own that may be longer than that")
    assert sys.stdout.getvalue() == (
        "\r\x1b[Ka progress line of \r\x1b[Ka line of its own that may be longer than that\n"
    )


def test_output_on_a_full_disk_stops_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    Terminal().line("lost")
    Terminal().progress("lost")

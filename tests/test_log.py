"""What a reader sees while a run goes on: time left, columns, progress lines, the console."""

import errno
import io
import os

import pytest
import torch
from helpers import tiny_recipe

import smr
from smr.logging import console
from smr.logging.console import Log, TimeLeft, columns_of, duration, title
from smr.logging.console import Terminal
from smr.metrics import Meter

WARM_UP = RECALIBRATION = 6  # forward passes an image, of both networks: a step counts as three
SEMI_SUPERVISED = 2 + 2 * 0.55 * (4 + 2 + 3 * 4)


# Epochs 0 to 2 warm up, 7 recalibrates, 3 to 6, 8 and 9 are semi-supervised.
RECIPE = tiny_recipe(num_epochs=9, warm_up=3, recalibrate_every=4)


def time_left(recipe, epoch=0):
    """TimeLeft after the first step of an epoch of very many."""
    left = TimeLeft(recipe)
    left.step_done(epoch, share=0)
    return left


def test_no_time_left_is_told_in_the_first_half_minute(clock):
    left = time_left(RECIPE)
    clock.now += 29.9
    assert left.seconds(0, share=0.5) is None
    clock.now += 0.1
    assert left.seconds(0, share=0.5) is not None


def test_kinds_that_were_not_seen_yet_are_taken_to_last_as_their_passes_say(clock):
    left = time_left(RECIPE)
    clock.now += 30
    second = 30 / (0.5 * WARM_UP)  # a pass, after half of a warm-up epoch
    passes = 2.5 * WARM_UP + 6 * SEMI_SUPERVISED + RECALIBRATION
    assert left.seconds(0, share=0.5) == pytest.approx(second * passes)


def test_kinds_that_were_seen_are_taken_to_last_as_their_latest_epoch(clock):
    left = time_left(RECIPE)
    for epoch, seconds in enumerate((100, 60, 80)):
        clock.now += seconds
        left.epoch_done(smr.WARM_UP, seconds)
        if epoch == 1:
            clock.now += 20
            second = 180 / (2 * WARM_UP + 0.25 * WARM_UP)
            rest = 0.75 * 60 + second * (6 * SEMI_SUPERVISED + RECALIBRATION)
            assert left.seconds(2, share=0.25) == pytest.approx(rest)
            clock.now -= 20
    clock.now += 50
    second = 290 / (3 * WARM_UP + 0.25 * SEMI_SUPERVISED)
    rest = second * (5.75 * SEMI_SUPERVISED + RECALIBRATION)
    assert left.seconds(3, share=0.25) == pytest.approx(rest)
    clock.now += 150
    left.epoch_done(smr.SEMI_SUPERVISED, 200)
    clock.now += 20
    second = 460 / (3 * WARM_UP + 1.1 * SEMI_SUPERVISED)
    assert left.seconds(4, share=0.1) == pytest.approx(4.9 * 200 + second * RECALIBRATION)
    clock.now += 580
    left.epoch_done(smr.SEMI_SUPERVISED, 180)
    clock.now += 10
    second = 1050 / (3 * WARM_UP + 4 * SEMI_SUPERVISED + 0.5 * RECALIBRATION)
    assert left.seconds(7, share=0.5) == pytest.approx(second * 0.5 * RECALIBRATION + 2 * 180)
    clock.now += 30
    left.epoch_done(smr.RECALIBRATION, 40)
    assert left.seconds(8, share=0.5) == pytest.approx(0.5 * 180 + 180)
    assert left.seconds(9, share=0.75) == pytest.approx(0.25 * 180)


def test_a_resumed_run_judges_by_its_own_epochs_alone(clock):
    left = time_left(RECIPE, epoch=6)
    clock.now += 40
    second = 40 / (0.5 * SEMI_SUPERVISED)
    passes = 2.5 * SEMI_SUPERVISED + RECALIBRATION
    assert left.seconds(6, share=0.5) == pytest.approx(second * passes)
    left.epoch_done(smr.SEMI_SUPERVISED, 80)
    clock.now += 45
    second = 85 / (SEMI_SUPERVISED + 0.25 * RECALIBRATION)
    rest = second * 0.75 * RECALIBRATION + 2 * 80
    assert left.seconds(7, share=0.25) == pytest.approx(rest)


def test_every_epoch_of_plain_cross_entropy_lasts_as_long(clock):
    left = time_left(tiny_recipe(method="ce", num_epochs=9))
    clock.now += 30
    assert left.seconds(0, share=0.25) == pytest.approx(9.75 * 120)


def test_a_step_costs_less_where_the_unlabeled_rows_skip_the_network(clock):
    recipe = tiny_recipe(num_epochs=3, warm_up=3, recalibrate_every=0, labeled_rows_only=True)
    left = time_left(recipe)
    clock.now += 60
    passes = 2.5 * 6 + 2 + 2 * 0.55 * (4 + 2 + 3 * 2)
    assert left.seconds(0, share=0.5) == pytest.approx(60 / 3 * passes)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0:00:00"),
        (59.6, "0:01:00"),
        (61, "0:01:01"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
        (36e4, "100:00:00"),
    ],
)
def test_durations_are_hours_minutes_and_seconds(seconds, shown):
    assert duration(seconds) == shown


# --- lines ---


def new_log(recipe=RECIPE, truth_known=True, test_sets=("test",)) -> Log:
    config = {"dataset": "cifar10", "r": 0.5, "noise_mode": "sym"}
    return Log(config, recipe, truth_known, test_sets)


def test_a_progress_line_has_place_means_rate_and_from_half_a_minute_on_the_time_left(
    clock, capsys
):
    told = new_log(tiny_recipe(num_epochs=4, warm_up=5))
    told.begin()
    capsys.readouterr()
    meter = Meter()
    clock.now += 29
    meter.add(torch.tensor(2.0), {"loss": 2.0}, 32)
    told.console.last_shown -= 30
    told.progress(0, smr.WARM_UP, 1, 1, 4, meter)
    clock.now += 1
    meter.add(torch.tensor(1.0), {"loss": 1.0}, 28)
    told.progress(0, smr.WARM_UP, 1, 2, 4, meter)
    assert capsys.readouterr().out == (
        "cifar10:0.5-sym | Epoch [  0/  4] Iter[  1/  4]  warm-up, net 1  loss 2.0000  1 images/s\n"
    )
    clock.now += 29
    told.progress(0, smr.WARM_UP, 1, 3, 4, meter)
    assert capsys.readouterr().out == (
        "cifar10:0.5-sym | Epoch [  0/  4] Iter[  3/  4]  warm-up, net 1  loss 1.5000  "
        "1 images/s, 0:09:15 left\n"  # a quarter of an epoch took half a minute; 4.625 are to come
    )


def test_the_time_left_is_told_half_a_minute_after_the_first_step_which_may_compile(clock, capsys):
    told = new_log(tiny_recipe(num_epochs=4, warm_up=5))
    told.begin()
    capsys.readouterr()
    clock.now += 90
    for network, step in ((1, 1), (1, 4), (2, 2)):
        meter = Meter()
        meter.add(torch.tensor(2.0), {"loss": 2.0}, 30)
        clock.now += 30
        told.progress(0, smr.WARM_UP, network, step, 4, meter)
    ends = [line.split("images/s")[1] for line in capsys.readouterr().out.splitlines()]
    # Three eighths of an epoch in 30 s, with 4.5 to come; five eighths in 60 s, with 4.25.
    assert ends == ["", ", 0:06:00 left", ", 0:06:48 left"]


def test_a_run_without_injected_noise_is_called_by_its_data_set_alone():
    assert title({"dataset": "animal10N"}) == "animal10N"
    assert title({"dataset": "cifar10", "r": 0.25, "noise_mode": "asym"}) == "cifar10:0.25-asym"


def names_of(recipe, truth_known=True, test_sets=("test",)) -> list[str]:
    return [name for name, *_ in columns_of(recipe, truth_known, test_sets)]


def test_columns_are_those_that_a_run_has_figures_for():
    everything = ["lr", "Lx", "Lu", "w(Lu)", "labeled", "AUC", "prec", "test%", "best%", "seconds"]
    assert names_of(RECIPE) == everything
    without_weight = [name for name in everything if name not in ("Lu", "w(Lu)")]
    assert names_of(tiny_recipe(lambda_u=0)) == without_weight
    unknown = [name for name in everything if name not in ("AUC", "prec")]
    assert names_of(RECIPE, truth_known=False) == unknown
    assert names_of(tiny_recipe(method="ce")) == ["lr", "test%", "best%", "seconds"]


def test_each_test_set_has_its_columns():
    recipe = tiny_recipe(method="ce", top5=True)
    sets = ("webvision", "imagenet")
    assert names_of(recipe, test_sets=sets) == [
        *("lr", "webvision%", "webvision5%", "imagenet%", "imagenet5%", "best%", "seconds"),
    ]


METRICS = {
    "train/learning_rate": 0.02,
    "train/net1/loss_x": 1.0,
    "train/net2/loss_x": 2.0,
    "train/net1/loss_u": 0.002,
    "train/net2/loss_u": 0.004,
    "train/net1/lambda_u": 20.0,
    "train/net2/lambda_u": 25.0,
    "split/net1/labeled": 300,
    "split/net2/labeled": 500,
    "split/net1/auc": 0.8,
    "split/net2/auc": 0.9,
    "split/net1/precision": 0.7,
    "test/accuracy": 91.236,
    "test/best_accuracy": 92.0,
    "time/seconds": 12.34,
}


def test_a_summary_line_has_the_means_over_both_networks_under_their_headings(capsys):
    told = new_log()
    told.begin()
    told.summary(3, smr.SEMI_SUPERVISED, METRICS)
    heading, line = capsys.readouterr().out.splitlines()
    assert heading == (
        "epoch kind                  lr       Lx       Lu  w(Lu) labeled    AUC   prec  test%"
        "  best%  seconds"
    )
    assert line == (
        "    3 semi-supervised     0.02   1.5000  0.00300  22.50      400  0.850  0.700  91.24"
        "  92.00     12.3"
    )


def test_a_figure_that_an_epoch_has_not_is_a_dash(capsys):
    told = new_log()
    told.begin()
    told.summary(0, smr.WARM_UP, {"train/learning_rate": 0.02, "time/seconds": 1.0})
    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == ["0", "warm-up", "0.02", *["-"] * 8, "1.0"]


def test_a_summary_teaches_the_time_left_how_long_its_kind_lasts(clock):
    told = new_log(tiny_recipe(num_epochs=4, warm_up=5))
    told.begin()
    told.time_left.step_done(0, share=0)
    clock.now += 100
    told.summary(0, smr.WARM_UP, {"train/learning_rate": 0.02, "time/seconds": 70.0})
    assert told.time_left.seconds(1, share=0.5) == pytest.approx(3.5 * 70)


def test_a_note_is_made_once(capsys):
    told = new_log()
    for text in ("one", "two", "one"):
        told.note(text)
    assert capsys.readouterr().out == "note: one\nnote: two\n"


# --- console ---


class FakeTerminal(io.StringIO):
    """A text file that is a terminal."""

    def isatty(self):
        return True


class FullDisk(io.StringIO):
    """A text file that takes nothing."""

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("output", "period"), [(Terminal(), 1), (io.StringIO(), 30)])
def test_progress_is_due_once_a_second_on_a_terminal_and_each_half_minute_elsewhere(
    output, period, clock, monkeypatch
):
    monkeypatch.setattr(console.sys, "stdout", output)
    shown = Terminal()
    assert not shown.due()
    clock.now += period - 0.1
    assert not shown.due()
    clock.now += 0.1
    assert shown.due()
    assert not shown.due(), "the next one comes a period later"
    clock.now += period
    assert shown.due()


def test_a_terminal_s_progress_line_stays_in_place_cut_to_its_width(monkeypatch):
    monkeypatch.setattr(console.sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "20")
    shown = Terminal()
    shown.progress("a progress line of more letters than the terminal has")
    shown.line("a line of its own that may be longer than that")
    assert console.sys.stdout.getvalue() == (
        "\r\x1b[Ka progress line of \r\x1b[Ka line of its own that may be longer than that\n"
    )


def test_elsewhere_progress_lines_are_whole_lines(capsys):
    shown = Terminal()
    shown.progress("x" * 300)
    shown.line("done")
    assert capsys.readouterr().out == "x" * 300 + "\ndone\n"


def test_a_log_on_a_full_disk_stops_nothing(monkeypatch):
    monkeypatch.setattr(console.sys, "stdout", FullDisk())
    Terminal().line("lost")
    Terminal().progress("lost")


@pytest.mark.parametrize(("weight", "shown"), [(25.0, True), (0.0, False)])
def test_a_progress_line_leaves_out_an_unlabeled_loss_without_weight(weight, shown, capsys):
    told, meter = new_log(tiny_recipe(lambda_u=weight)), Meter()
    told.begin()
    meter.add(torch.tensor(2.0), {"loss": 2.0, "loss_u": 0.5, "lambda_u": 3.0}, 32)
    told.console.last_shown -= 60
    told.progress(0, smr.WARM_UP, 1, 1, 2, meter)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "loss 2.0000  " in line
    assert ("loss_u 0.5000  lambda_u 3.0000" in line) == shown == ("_u" in line)

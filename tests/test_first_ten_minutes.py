"""benchmarks/first_ten_minutes.py, in tiny settings: each part's findings, and what a card gets."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TinyNet
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import contenders
import first_ten_minutes
import pieces

KINDS = ["scoring", "warm-up", "semi-supervised"]
CPU = ("--device", "cpu", "--output")


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What a whole run on the CPU writes, and what it prints."""
    output, printed = tmp_path_factory.mktemp("card") / "card.jsonl", []
    with pytest.MonkeyPatch.context() as patch:
        noted = lambda line, flush: printed.append(line)  # noqa: E731
        patch.setattr(first_ten_minutes, "print", noted, raising=False)
        assert first_ten_minutes.main([*CPU, str(output)]) == 0
    lines = output.read_text().splitlines()
    assert lines == printed
    return [json.loads(line) for line in lines]


def of_part(findings: list[dict], name: str) -> list[dict]:
    """The part's findings but for the seconds that it took."""
    *found, last = [finding for finding in findings if finding["part"] == name]
    assert list(last) == ["part", "seconds"]
    return found


def test_parts_come_in_their_order_and_none_fails(findings):
    assert list(dict.fromkeys(finding["part"] for finding in findings)) == [
        *("machine", "waits", "convolutions", "compilation", "steps", "profile", "scoring"),
        *("cuda graphs", "epochs"),
    ]
    assert not any("error" in finding for finding in findings)
    assert of_part(findings, "machine")[0]["torch"] == torch.__version__


def test_each_distinct_convolution_is_timed_forward_and_back_with_and_without_a_search(findings):
    found = of_part(findings, "convolutions")
    assert [row["convolution"] for row in found[::2]] == [
        *("3 to 2 at 32", "2 to 2 at 32"),
        *("2 to 4 at 32", "4 to 4 at 16", "2 to 4 at 16"),
        *("4 to 8 at 16", "8 to 8 at 8", "4 to 8 at 8"),
        *("8 to 16 at 8", "16 to 16 at 4", "8 to 16 at 4"),
        "8 to 2 at 32",  # the stem with its channels padded
    ]
    assert [row["benchmark"] for row in found] == [False, True] * 12
    for row in found:
        assert min(row[f"{name}_ms"] for name in ("forward", "of_images", "of_weights")) > 0


def test_steps_epochs_and_scoring_have_their_times(findings):
    for part in ("steps", "cuda graphs"):
        found = of_part(findings, part)
        assert [row["step"] for row in found] == KINDS
        for row in found:
            assert 0 < row["host_least_ms"] <= row["host_ms"] <= row["device_ms"]
    assert [row["rows"] for row in of_part(findings, "scoring")] == [4, 8]
    *epochs, writing, memory = of_part(findings, "epochs")
    assert [row["epoch"] for row in epochs] == [0, 1, 2]
    for row in epochs:
        stages = [row[name] for name in ("co_divide", "train_network", "test", "saving")]
        assert min(stages) > 0
        assert 0.8 * row["wall"] < sum(stages) <= row["wall"]
    assert writing["writing a checkpoint, beside"] > 0 and memory["memory/host_gib"] > 0


def test_compilation_counts_a_graph_for_each_kind_of_pass(tmp_path, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    script = replace(contenders.SCRIPT, build_network=lambda _: TinyNet())
    monkeypatch.setattr(first_ten_minutes, "SCRIPT", script)
    args = first_ten_minutes.parse([*CPU, str(tmp_path)])
    args.compile = True
    found = list(first_ten_minutes.compilation(args))
    assert [row["graphs"] for row in found] == [1, 2, 3, 4, 5]
    assert all(row["first_s"] > row["second_s"] for row in found[1:3])


def test_cuda_graphs_are_asked_of_the_compiler(tmp_path, monkeypatch):
    modes = []
    given = lambda function, **options: modes.append(options.get("mode")) or function  # noqa: E731
    monkeypatch.setattr(torch, "compile", given)
    args = first_ten_minutes.parse([*CPU, str(tmp_path)])
    args.compile = True
    assert len(list(first_ten_minutes.cuda_graphs(args))) == 3
    assert modes == ["reduce-overhead"] * 2
    assert torch.compile is given


def test_five_steps_may_not_wait_for_the_card_and_the_one_that_does_is_named(monkeypatch):
    modes = []

    def fake_steps(_args, compiled, given):
        def run(wait_in: int | None, steps: int) -> None:
            for number, _ in enumerate(given(steps, torch.zeros(2))):
                if number == wait_in:
                    raise RuntimeError("called a synchronizing CUDA operation")

        assert not compiled
        return {"quick": partial(run, None), "slow": partial(run, 2)}

    monkeypatch.setattr(first_ten_minutes, "our_steps", fake_steps)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    args = SimpleNamespace(device=torch.device("cuda"))
    assert list(first_ten_minutes.waits(args)) == [
        {"step": "quick", "waits": None},
        {"step": "slow", "waits": "called a synchronizing CUDA operation"},
    ]
    quick = ["default", *["error"] * 5, "default", "default"]
    assert modes == [*quick, "default", "error", "error", "default"]


def test_a_part_that_fails_says_so_and_the_next_one_begins(tmp_path, monkeypatch, capsys):
    def broken(_args):
        yield {"found": 1}
        raise RuntimeError("out of memory")

    parts = {"broken": broken, "after": lambda _: iter([{"found": 2}])}
    monkeypatch.setattr(first_ten_minutes, "PARTS", parts)
    output = tmp_path / "card.jsonl"
    assert first_ten_minutes.main([*CPU, str(output)]) == 1
    first, error, second, _ = map(json.loads, output.read_text().splitlines())
    assert first == {"part": "broken", "found": 1}
    assert error == {"part": "broken", "error": "RuntimeError: out of memory"}
    assert second == {"part": "after", "found": 2}


@pytest.mark.parametrize(
    ("spans", "share"),
    [([], None), ([(6, 8), (0, 2), (1, 4), (2, 3)], 2 / 8), ([(1, 2), (2, 3)], 0)],
)
def test_a_card_idles_where_nothing_runs_on_it(spans, share):
    assert contenders.idle_share(spans) == share


def test_what_a_card_runs_is_counted_and_what_only_names_it_is_not(monkeypatch):
    def event(start, end, device_type=DeviceType.CUDA, named=False):
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(device_type=device_type, is_user_annotation=named, time_range=span)

    events = [event(0, 1), event(3, 4), event(0, 4, named=True), event(0, 9, DeviceType.CPU)]
    monkeypatch.setattr(contenders, "profiled", lambda *_: SimpleNamespace(events=lambda: events))
    found = contenders.occupancy(lambda: None, torch.device("cuda"))
    assert found == {"launches": 2, "idle_share": 0.5}


def test_a_stopwatch_adds_up_the_calls_and_goes_again():
    room = SimpleNamespace(slow=lambda x: x + 1)
    plain = room.slow
    with pieces.stopwatches(room, "slow") as spent:
        assert [room.slow(1), room.slow(2)] == [2, 3]
        assert spent["slow"] > 0
    assert room.slow is plain

"""benchmarks/first_ten_minutes.py, in tiny settings: each part's findings, and what a GPU gets."""

import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import first_ten_minutes


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Returns the findings of a part, run as a user does, without its seconds."""

    def run(name: str) -> list[dict]:
        output = tmp_path_factory.mktemp("gpu") / "gpu.jsonl"
        flags = ["--device", "cpu", "--output", str(output), "--only", name]
        assert first_ten_minutes.main(flags) == 0
        *findings, last = map(json.loads, output.read_text().splitlines())
        assert list(last) == ["part", "seconds"]
        assert {finding.pop("part") for finding in findings} == {name}
        return findings

    return run


def test_machine_convolutions_and_scoring_are_measured(part):
    assert part("machine")[0]["torch"] == torch.__version__
    scored = part("scoring")
    assert [row["rows"] for row in scored] == [4, 8]
    assert min(row["images_per_s"] for row in scored) > 0
    convolutions = part("convolutions")
    # The last one is the stem with its channels padded.
    sizes = "3-2/32 2-2/32 2-4/32 4-4/16 2-4/16 4-8/16 8-8/8 4-8/8 8-16/8 16-16/4 8-16/4 8-2/32"
    names = [row["convolution"].replace(" to ", "-").replace(" at ", "/") for row in convolutions]
    assert names[::2] == names[1::2] == sizes.split()
    assert [row["benchmark"] for row in convolutions] == [False, True] * 12
    for row in convolutions:
        assert min(row[f"{name}_ms"] for name in ("forward", "of_images", "of_weights")) > 0


def test_steps_and_epochs_of_training_have_their_times(part):
    warm_up, semi_supervised, *epochs, graphs = part("eager steps")
    for kind, row in (("warm-up", warm_up), ("semi-supervised", semi_supervised)):
        assert row["step"] == kind
        assert 0 < row["host_least_ms"] <= row["host_ms"] and row["device_ms"] > 0
    assert warm_up["steps"] == 7 - first_ten_minutes.FIRST_TIMED
    assert [row["kind"] for row in epochs] == ["warm-up"] * 2 + ["semi-supervised"] * 2
    for row in epochs:
        assert 0 < row["time/train_seconds"] < row["time/seconds"]
    assert "split/net2/labeled" in epochs[-1] and graphs == {"graphs": 0}


def test_lines_that_wait_for_the_gpu_are_counted(part, monkeypatch):
    """Training is made up: on a GPU, PyTorch warns at each line that waits."""

    def train(_args, *_flags, progress):
        for step in range(3):
            progress(0, "warm-up", 1, step, 3, None)
            words = "called a synchronizing CUDA operation"
            warnings.warn_explicit(words, UserWarning, "step.py", 7)
        warnings.warn_explicit("something else", UserWarning, "other.py", 1)

    monkeypatch.setattr(first_ten_minutes, "train", train)
    assert part("waits") == [{"steps": 3, "waits": {"step.py:7": 3}}]


def test_a_part_that_fails_says_so_and_the_next_one_starts(tmp_path, monkeypatch):
    def broken(_args):
        yield {"number": 1}
        raise RuntimeError("out of memory")

    parts = {"broken": broken, "after": lambda _: iter([{"number": 2}])}
    monkeypatch.setattr(first_ten_minutes, "PARTS", parts)
    output = tmp_path / "gpu.jsonl"
    assert first_ten_minutes.main(["--device", "cpu", "--output", str(output)]) == 1
    first, error, second, _ = map(json.loads, output.read_text().splitlines())
    assert first == {"part": "broken", "number": 1}
    assert error == {"part": "broken", "error": "RuntimeError: out of memory"}
    assert second == {"part": "after", "number": 2}


def event(start, end, device_type=DeviceType.CUDA, annotation=False):
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(device_type=device_type, is_user_annotation=annotation, time_range=span)


@pytest.mark.parametrize(
    ("spans", "share"),
    [([], None), ([(6, 8), (0, 2), (1, 4), (2, 3)], 2 / 8), ([(1, 2), (2, 3)], 0)],
)
def test_a_gpu_idles_while_no_kernel_runs(spans, share):
    events = [event(*span) for span in spans]
    events += [event(0, 8, annotation=True), event(0, 9, DeviceType.CPU)]
    assert first_ten_minutes.occupancy(events) == {
        "launches": len(spans) / first_ten_minutes.PROFILED,
        "idle_share": share,
    }

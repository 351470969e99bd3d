"""Strong views: torchvision's RandAugment, and where they go."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import Spy, TinyNet, generator, state_copy, tiny_config, tiny_loader, tiny_pair, train
from runs import RUN_NAME, assert_same_run, rows_of, run_short
from torch.testing import assert_close

import smr
from smr import distributed
from smr.data import loader as loaders
from smr.data.augment import LEVELS, rand_augment, strong_augment
from smr.training import LabeledBatch


def photos(count: int) -> torch.Tensor:
    """uint8 [count, 32, 32, 3]: a slope of its own, within part of the range, and noise."""
    source = np.random.default_rng(0)
    slope = np.linspace(40, 160, 32)[:, None, None] * source.uniform(0.5, 1, (count, 1, 1, 3))
    pixels = slope + source.normal(0, 12, (count, 32, 32, 3))
    return torch.from_numpy(pixels.clip(10, 240).astype(np.uint8))


def test_a_strong_view_is_torchvision_s_of_two_operations_at_a_random_strength():
    views, source = photos(30), generator(5)
    found = strong_augment(views, source)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator(5))))
    levels = torch.randint(LEVELS, (30,))
    wanted = [rand_augment(int(k))(v.permute(2, 0, 1)) for k, v in zip(levels, views, strict=True)]
    assert torch.equal(found, torch.stack(wanted).permute(0, 2, 3, 1))
    assert found.dtype == torch.uint8
    transform = rand_augment(30)
    assert (transform.num_ops, transform.magnitude, transform.num_magnitude_bins) == (2, 30, 31)
    assert levels.min() < 5 and levels.max() > 25


def test_images_of_a_batch_are_augmented_each_in_its_own_way_and_by_the_seed_alone():
    views = photos(1).repeat(200, 1, 1, 1)
    before, state = views.clone(), torch.get_rng_state()
    first = strong_augment(views, generator(1))
    assert torch.equal(views, before) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(strong_augment(views, generator(1)), first)
    assert not torch.equal(strong_augment(views, generator(2)), first)
    assert len(first.flatten(1).unique(dim=0)) > 150
    assert strong_augment(views[:0], generator()).shape == (0, 32, 32, 3)


def inverted(pixels: torch.Tensor, _generator) -> torch.Tensor:
    """A distortion that shows where it was made."""
    return 255 - pixels


def levels(views: torch.Tensor) -> torch.Tensor:
    """What `tiny_loader`'s views were before normalization."""
    return ((views * 0.3 + 0.4) * 255).round().int()


def test_a_split_s_strong_views_are_the_weak_ones_distorted_beside_the_same_labels(monkeypatch):
    monkeypatch.setattr(loaders, "strong_augment", inverted)
    loader, chosen = tiny_loader(), np.arange(40) < 24
    options = {"with_true_labels": True, "strong": True}
    labeled, unlabeled = loader.run("train", chosen, np.linspace(0, 1, 40), **options)
    for batches, rows in ((labeled, 24), (unlabeled, 16)):
        columns = [torch.cat(column) for column in zip(*batches, strict=True)]
        assert [len(column) for column in columns] == [rows] * len(columns)
        weak, strong, others = columns[:2], columns[2:4], columns[4:]
        for one, other in zip(weak, strong, strict=True):
            assert torch.equal(levels(other), 255 - levels(one))
        assert not torch.equal(*weak)
        # An image is as bright as its class is high: its middle, which every crop has, tells it.
        shown = levels(weak[0])[:, :, 2:6, 2:6].float().mean(dim=(1, 2, 3))
        assert (shown - 18 * others[-1] - 30).abs().max() < 15
    assert len(columns) == 5 and len(next(iter(labeled))) == 7


def test_without_strong_a_split_serves_what_it_always_did():
    chosen, ones = np.arange(40) < 24, np.ones(40)
    batches = list(tiny_loader().run("train", chosen, ones)[0])
    assert {len(batch) for batch in batches} == {4}
    loader = tiny_loader()
    order = torch.arange(24)[torch.randperm(24, generator=loader.generator)][:8]
    wanted = [loader.normalize(loader.augmented(order, slice(None))) for _ in range(2)]
    assert torch.equal(torch.stack(batches[0][:2]), torch.stack(wanted))


def test_each_rank_distorts_by_a_generator_of_its_own_and_all_stay_in_step(monkeypatch):
    first, second = generator(5), generator(5)
    alone = torch.rand(4, generator=distributed.rank_generator(first))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    other = torch.rand(4, generator=distributed.rank_generator(second))
    assert not torch.equal(alone, other)
    assert torch.equal(first.get_state(), second.get_state())


class Watched(TinyNet):
    """Notes the images of each pass."""

    def __init__(self, passes: list):
        super().__init__()
        self.passes = passes

    def forward(self, images):
        self.passes.append(images.detach().clone())
        return super().forward(images)


@pytest.mark.parametrize("rows_u", [3, 0])
def test_strong_views_go_into_the_mixed_pass_alone_and_targets_come_from_weak_ones(rows_u):
    source = generator()
    x1, x2, s1, s2 = torch.randn(4, 4, 3, 8, 8, generator=source)
    u1, u2, t1, t2 = torch.randn(4, rows_u, 3, 8, 8, generator=source)
    labeled = LabeledBatch(x1, x2, torch.arange(4), torch.rand(4, generator=source))
    shown, results = {}, []
    for augment, strong in (("weak", ()), ("strong", (s1, s2, t1, t2))):
        torch.manual_seed(0)
        batches: list = []
        config = tiny_config(augment=augment)
        network, peer = tiny_pair(config, partial(Watched, batches)).networks
        results.append(
            smr.mixmatch_loss(
                network.train(),
                peer.eval(),
                labeled,
                (u1, u2) if rows_u else None,
                weight=1.0,
                permutation=torch.randperm(8 + 2 * rows_u),
                epoch=20,
                config=config,
                strong=strong,
            )
        )
        shown[augment] = batches
    *weak_targets, weak_mixed = shown["weak"]
    *targets, mixed = shown["strong"]
    assert torch.equal(torch.cat(targets), torch.cat(weak_targets))
    assert torch.equal(weak_mixed, torch.cat([x1, x2, u1, u2]))
    assert torch.equal(mixed, torch.cat([s1, s2, t1, t2]))
    weak, strong = results
    assert_close(strong.mixed_targets, weak.mixed_targets, rtol=0, atol=0)


def test_only_semi_supervised_epochs_ask_for_strong_views():
    class Strong(Spy):
        def run(self, mode, *arguments, **options):
            self.calls.append((mode, options.get("strong", False)))
            return self.loader.run(mode, *arguments, **options)

    config = tiny_config(augment="strong", num_epochs=5, warm_up=2, p_threshold=0.3)
    spy = Strong(tiny_loader())
    assert len(list(train(tiny_pair(config), spy, config))) == 6
    modes = {"warmup", "eval_train", "train", "recalibrate"}
    assert {*spy.calls} == {(mode, mode == "train") for mode in modes}


def test_a_strong_run_trains_otherwise_and_a_weak_one_never_distorts(monkeypatch):
    def weights(**changes) -> torch.Tensor:
        torch.manual_seed(0), np.random.seed(0)
        config = tiny_config(num_epochs=1, **changes)
        pair = tiny_pair(config)
        list(train(pair, tiny_loader(), config))
        return torch.cat([value.flatten() for value in state_copy(pair.networks[0]).values()])

    strong = weights(augment="strong")
    monkeypatch.setattr(loaders, "strong_augment", None)
    weak = weights()
    assert torch.equal(weak, weights(augment="weak")) and not torch.equal(weak, strong)


def test_a_strong_run_that_is_resumed_ends_as_the_straight_one_and_stays_strong(tmp_path, capsys):
    assert run_short(tmp_path / "straight", "--augment", "strong") == 0
    assert run_short(tmp_path / "parts", "--augment", "strong", "--num_epochs", "3") == 0
    with pytest.raises(SystemExit, match="2"):
        run_short(tmp_path / "parts", "--augment", "weak", "--resume")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--augment weak (the run has strong)" in error
    assert run_short(tmp_path / "parts", "--resume") == 0
    straight, parts = (tmp_path / name / RUN_NAME for name in ("straight", "parts"))
    assert_same_run(parts, straight, events=False)
    assert '"augment": "strong"' in (parts / "config.json").read_text()
    assert len(rows_of(straight)) == 6

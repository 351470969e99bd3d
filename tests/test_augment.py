"""Strong augmentation: torchvision's RandAugment, and which forward pass takes its views."""

from functools import partial

import numpy as np
import pytest
import torch
from golden import OneBatch
from helpers import (
    fake_rank,
    generator,
    tiny_config,
    tiny_loader,
    tiny_pair,
)
from runs import RUN_NAME, assert_same_run, rows_of, run_short
from test_training import Watched

import smr
from smr import distributed
from smr.data.augment import LEVELS, rand_augment, strong_augment


def photos(count: int) -> torch.Tensor:
    """uint8 [count, 32, 32, 3]: each a gradient within part of the range, and noise."""
    source = np.random.default_rng(0)
    slope = np.linspace(40, 160, 32)[:, None, None] * source.uniform(0.5, 1, (count, 1, 1, 3))
    pixels = slope + source.normal(0, 12, (count, 32, 32, 3))
    return torch.from_numpy(pixels.clip(10, 240).astype(np.uint8))


def test_a_strong_view_is_torchvision_s_of_two_operations_at_a_random_strength():
    views, source = photos(30), generator(5)
    augmented = strong_augment(views, source)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator(5))))
    levels = torch.randint(LEVELS, (30,))
    expected = [
        rand_augment(int(k))(v.permute(2, 0, 1)) for k, v in zip(levels, views, strict=True)
    ]
    assert torch.equal(augmented, torch.stack(expected).permute(0, 2, 3, 1))
    transform = rand_augment(30)
    assert (transform.num_ops, transform.magnitude, transform.num_magnitude_bins) == (2, 30, 31)
    assert levels.min() < 5 and levels.max() > 25


def test_each_image_of_a_batch_is_augmented_in_its_own_way_and_by_the_seed_alone():
    views = photos(1).repeat(200, 1, 1, 1)
    before, state = views.clone(), torch.get_rng_state()
    first = strong_augment(views, generator(1))
    assert torch.equal(views, before) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(strong_augment(views, generator(1)), first)
    assert not torch.equal(strong_augment(views, generator(2)), first)
    assert len(first.flatten(1).unique(dim=0)) > 150
    assert strong_augment(views[:0], generator()).shape == (0, 32, 32, 3)


def pixels(views: torch.Tensor) -> torch.Tensor:
    """`tiny_loader`'s views before normalization, uint8 [b, h, w, 3]."""
    return ((views * 0.3 + 0.4) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_a_split_s_strong_views_are_the_augmented_weak_ones_of_the_same_images():
    loader, chosen = tiny_loader(), np.arange(40) < 24
    options = {"with_true_labels": True, "strong": True}
    split = loader.run("train", chosen, np.linspace(0, 1, 40), **options)
    for batches, rows in zip(split, (24, 16), strict=True):
        source = loader.generator.clone_state()
        torch.randperm(rows, generator=source)  # the order of the images
        source, served = distributed.rank_generator(source), list(batches)
        assert sum(len(batch[-1]) for batch in served) == rows
        for x1, x2, s1, s2, *_, labels in served:
            assert not torch.equal(x1, x2)
            for weak, strong in ((x1, s1), (x2, s2)):
                assert torch.equal(pixels(strong), strong_augment(pixels(weak), source))
            # Brightness tells the class of an image by its middle, which every crop has.
            brightness = pixels(x1)[:, 2:6, 2:6].float().mean(dim=(1, 2, 3))
            assert (brightness - 18 * labels - 30).abs().max() < 15
    assert [len(next(iter(batches))) for batches in split] == [7, 5]


def test_each_rank_augments_by_its_own_generator_and_the_shared_ones_stay_equal():
    shared, draws = [generator(5), generator(5)], []
    for rank, source in enumerate(shared):
        with fake_rank(rank):
            draws.append(torch.rand(4, generator=distributed.rank_generator(source)))
    assert not torch.equal(*draws)
    assert torch.equal(*(source.get_state() for source in shared))
    alone = torch.rand(4, generator=distributed.rank_generator(generator(5)))
    assert torch.equal(draws[0], alone)


@pytest.mark.parametrize("rows_u", [3, 0])
def test_strong_views_are_mixed_and_targets_come_from_weak_views(rows_u):
    source = generator()
    x1, x2, s1, s2 = torch.randn(4, 4, 3, 8, 8, generator=source)
    u1, u2, t1, t2 = torch.randn(4, rows_u, 3, 8, 8, generator=source)
    columns, passes, targets = (torch.arange(4), torch.rand(4, generator=source)), {}, {}
    views = {"weak": ((), ()), "strong": ((s1, s2), (t1, t2))}
    for augment, (strong_x, strong_u) in views.items():
        torch.manual_seed(0)
        passes[augment] = []
        config = tiny_config(augment=augment, alpha=1e-6)  # a mixup weight of 1
        pair = tiny_pair(config, partial(Watched, "", passes[augment]))
        batches = OneBatch(x1, x2, *strong_x, *columns), OneBatch(u1, u2, *strong_u)
        batches = batches if rows_u else (batches[0], [])
        smr.mixmatch_epoch(*pair.networks, pair.optimizers[0], *batches, 20, config)
        pair = tiny_pair(config)
        targets[augment] = smr.mixmatch_loss(
            *pair.networks,
            labeled=(x1, x2, *columns),
            unlabeled=(u1, u2) if rows_u else None,
            weight=0.7,
            permutation=torch.arange(2 * (4 + rows_u)).flip(0),
            epoch=20,
            config=config,
            strong=(*strong_x, *strong_u),
        ).mixed_targets
    *of_weak_targets, weak_mixed = [images for *_, images in passes["weak"]]
    *of_targets, mixed = [images for *_, images in passes["strong"]]
    assert torch.equal(torch.cat(of_targets), torch.cat(of_weak_targets))
    assert torch.equal(weak_mixed, torch.cat([x1, x2, u1, u2]))
    assert torch.equal(mixed, torch.cat([s1, s2, t1, t2]))
    assert torch.equal(targets["strong"], targets["weak"])


def test_a_resumed_run_with_strong_augmentation_keeps_it_and_ends_as_one_without_a_stop(
    tmp_path, capsys
):
    flags = ("--train_images", "100", "--recalibrate_every", "0", "--num_epochs", "2")
    assert run_short(tmp_path / "straight", *flags, "--augment", "strong") == 0
    assert run_short(tmp_path / "parts", *flags[:-1], "1", "--augment", "strong") == 0
    with pytest.raises(SystemExit, match="2"):
        run_short(tmp_path / "parts", *flags, "--augment", "weak", "--resume")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--augment weak (the run has strong)" in error
    assert run_short(tmp_path / "parts", *flags, "--resume") == 0
    straight, parts = (tmp_path / name / RUN_NAME for name in ("straight", "parts"))
    assert_same_run(parts, straight, events=False)
    assert '"augment": "strong"' in (parts / "config.json").read_text()
    assert len(rows_of(straight)) == 3

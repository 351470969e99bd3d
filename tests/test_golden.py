"""Every figure of the published implementation in tests/reference, within 1e-4 relative.

    pytest tests/test_golden.py -s -n 0

prints the error of each.
"""

import golden
import pytest

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def shown():
    """Prints errors as they are found, and the largest at the end."""
    seen = []

    def show(reference, errors):
        seen.extend(errors.values())
        for figure, error in errors.items():
            print(f"\n{reference:<34}{figure:<16}{error:.1e}", end="")
        return errors

    yield show
    print(f"\nlargest relative error {max(seen):.1e}, tolerance {TOLERANCE:.0e}")


@pytest.mark.parametrize("name", golden.noise_cases())
def test_noise_is_the_published_code_s_bit_for_bit(name, shown):
    errors = shown(name, golden.noise_errors(golden.noise_cases()[name]))
    assert errors == {"first_40": 0, "realized_rate": 0, "sha256": 0}


def test_network_has_the_published_names_shapes_and_logits(shown):
    errors = shown("preact_resnet18", golden.preact_errors())
    assert errors["names, shapes"] == errors["parameters"] == 0
    assert all(error < TOLERANCE for error in errors.values())


@pytest.mark.parametrize("name", ["warmup_step", "recalibrate_step"])
def test_supervised_step_gives_the_published_loss_and_network(name, shown):
    errors = shown(name, golden.supervised_step_errors(name))
    assert all(error < TOLERANCE for error in errors.values())


@pytest.mark.parametrize("name", ["sym", "asym", "late", "photos"])
def test_semi_supervised_step_gives_the_published_targets_losses_and_network(name, shown):
    errors = shown(f"mixmatch_step_{name}", golden.mixmatch_step_errors(name))
    assert all(error < TOLERANCE for error in errors.values())


@pytest.mark.parametrize("photos", [False, True])
def test_consecutive_steps_are_those_written_out_from_the_method(photos, shown):
    name = f"five steps, {'photos' if photos else 'CIFAR'}"
    errors = shown(name, golden.consecutive_steps_errors(photos))
    assert all(error < TOLERANCE for error in errors.values())


@pytest.mark.parametrize("name", ["codivide", "codivide_r09"])
def test_clean_probability_is_the_published_one(name, shown):
    errors = shown(name, golden.co_divide_errors(name))
    assert errors["labeled"] == 0
    assert errors["clean_prob"] < TOLERANCE

"""Escape of real small networks, by the commands a user types: every band of the measured table; in full size: slow."""

import math
import re

import pytest
import torch

from lab.gallery.base import Experiment, Outcome, Surroundings
from lab.gallery.experiments.escape_ballistic import EscapeBallistic
from lab.gallery.experiments.escape_saddle import EscapeSaddle
from lab.gallery.experiments.escape_split import EscapeSplit
from lab.settings import SettingError


def carried_out(experiment: Experiment, seed: int = 0) -> Outcome:
    return experiment.simulate(Surroundings(seed, torch.device("cpu"), lambda part: lambda share: None))


def measured(outcome: Outcome, quantity: str) -> float:
    [found] = [c.measured for c in outcome.comparisons if c.quantity == quantity]
    return found


def assert_is_the_saddle_of_the_table(outcome: Outcome) -> None:
    """The numbers of the saddle itself do not depend on sizes: curvature, noise along it, growth of a kick."""
    of = outcome.values
    assert of["curvature"] == pytest.approx(-0.18244, abs=1e-5)
    assert of["variance_along_it"] == pytest.approx(0.11203, abs=1e-5)
    assert (of["descending_directions"], of["zero_modes"]) == (2, 7)
    assert measured(outcome, "growth per step, no noise, lr 0.2") == pytest.approx(0.035837, rel=1e-4)
    assert measured(outcome, "the same, heavy ball 0.9, lr 0.02") == pytest.approx(0.028673, rel=1e-4)
    assert not outcome.disagreement()


@pytest.mark.slow
def test_a_dead_neuron_is_left_in_the_time_of_theory() -> None:
    outcome = carried_out(EscapeSaddle(replicas=100, batch_sizes=(8, 32), isotropic=0.04))
    assert_is_the_saddle_of_the_table(outcome)
    for name in ("batch 8", "batch 32", "isotropic noise 0.04"):
        assert 0.94 < outcome.values[f"ratio_{name}"] < 1.12
        [growth] = [c for c in outcome.comparisons if c.quantity == f"growth under noise, {name}"]
        assert abs(growth.measured - growth.theory) < 4 * growth.error + 0.05 * growth.theory  # biased by -1 to -4 %


def test_a_radius_that_is_never_reached_gives_one_line_instead_of_a_time() -> None:
    with pytest.raises(SettingError, match=r"radius=8: .* runs .* did not get that far"):
        carried_out(EscapeSaddle(replicas=10, batch_sizes=(8,), isotropic=0.1, radius=8.0, lr=0.6))
    with pytest.raises(SettingError, match=r"lr=2: steps at the saddle are stable below 1\.81"):
        carried_out(EscapeSaddle(lr=2.0))


def test_noise_that_fills_the_radius_is_no_escape_from_a_saddle() -> None:
    with pytest.raises(SettingError, match=r"radius=0\.001: the noise \(batch 8\) spreads over"):
        carried_out(EscapeSaddle(radius=0.001))
    with pytest.raises(SettingError, match=r"radius=0\.3: the noise \(equal split, isotropic noise 5\) spreads over"):
        carried_out(EscapeSplit(isotropic=5.0, stay_steps=1, replicas=10))
    with pytest.raises(ValueError, match="hidden"):
        EscapeSplit(hidden=91)  # beyond whole Hessians


@pytest.mark.slow
def test_dead_neuron_at_full_size() -> None:
    outcome = carried_out(EscapeSaddle())
    assert_is_the_saddle_of_the_table(outcome)
    assert all(0.94 < outcome.values[f"ratio_batch {size}"] < 1.12 for size in (8, 32, 128, 512))
    assert 0.96 < outcome.values["ratio_isotropic noise 0.01"] < 1.08
    assert measured(outcome, "their slope against log B") == pytest.approx(13.95, abs=1.5)
    assert all(0.9 < c.measured / c.theory < 1.1 for c in outcome.comparisons if c.quantity.startswith("growth under"))


@pytest.mark.slow
def test_the_neuron_is_left_in_the_time_of_theory_at_other_learning_rates_and_with_momentum() -> None:
    for lr, momentum in ((0.1, 0.0), (0.4, 0.0), (0.02, 0.9)):
        knobs = EscapeSaddle(replicas=256, batch_sizes=(64,), isotropic=0.04, lr=lr, momentum=momentum)
        outcome = carried_out(knobs)
        assert 0.94 < outcome.values["ratio_batch 64"] < 1.12


def assert_equal_halves_are_never_left(outcome: Outcome, steps: int) -> None:
    of = outcome.values
    assert of["curvature_equal_split"] == pytest.approx(-0.19621, abs=1e-5)
    assert of["variance_unequal_split"] == pytest.approx(0.00185, abs=1e-5)
    assert of["curvature_origin"] == pytest.approx(-0.76797, abs=1e-5)
    assert measured(outcome, "u'Du, equal split, largest") < 1e-25
    assert measured(outcome, "u'Du, origin, largest") < 1e-25
    assert measured(outcome, f"runs that left in {steps} steps, batch 16") == 0
    assert of["farthest_of_those_that_stay"] < 1e-12
    assert "SGD leaves it never by noise" in outcome.finding
    assert measured(outcome, "growth per step of a kick, equal split") == pytest.approx(0.038491, abs=1e-5)
    assert measured(outcome, "steps for a factor e in the size, gradient descent") == pytest.approx(13.515, abs=0.05)
    assert not outcome.disagreement()


@pytest.mark.slow
def test_equal_halves_are_never_left_by_mini_batches() -> None:
    outcome = carried_out(EscapeSplit(replicas=64, stay_steps=150, isotropic=0.04, sizes=(1e-5, 1e-3)))
    assert_equal_halves_are_never_left(outcome, 150)
    assert 0.85 < outcome.values["ratio_equal split, isotropic noise 0.04"] < 1.15


@pytest.mark.slow
def test_equal_halves_at_full_size() -> None:
    outcome = carried_out(EscapeSplit())
    assert_equal_halves_are_never_left(outcome, 1500)
    assert 0.95 < outcome.values["ratio_equal split, isotropic noise 0.01"] < 1.05
    assert 0.95 < outcome.values["ratio_split 0.3, batch 64"] < 1.05


def test_a_minimum_that_fits_is_left_at_the_rate_of_the_random_product() -> None:
    """Twenty digits only. Growth within 4 combined standard errors; landing below the edge, and not far below."""
    outcome = carried_out(
        EscapeBallistic(
            examples=20,
            hidden=10,
            training_steps=600,
            lrs=(0.4, 0.9, 1.2),
            batch_sizes=(4,),
            replicas=32,
            steps=100,
            stay_steps=60,
            landing_replicas=4,
            landing_steps=500,
        )
    )
    assert outcome.values["loss_of_the_minimum"] < 1e-26
    assert measured(outcome, "growth per step, batch full at lr 1.2 x 2/S") == pytest.approx(math.log(1.4), abs=1e-6)
    assert not outcome.disagreement()
    grew = [c for c in outcome.comparisons if c.quantity.startswith("growth per step, batch 4")]
    assert grew and all(0.85 < c.measured / c.theory < 1.15 for c in grew)
    [told] = re.findall(r": (\S+ \+- \S+), theory", outcome.finding)
    assert told in {c.row()[2] for c in grew}, "the finding tells the number of the table, with the same error"
    assert all(c.measured == 0 for c in outcome.comparisons if c.quantity.startswith("runs that left"))
    assert 0.8 < outcome.values["landed_over_critical_batch_4"] < 1.02
    assert 0.9 < outcome.values["landed_over_critical_batch_full"] < 1.02


@pytest.mark.slow
def test_ballistic_escape_at_full_size() -> None:
    outcome = carried_out(EscapeBallistic())
    of = {c.quantity: c for c in outcome.comparisons}
    assert outcome.values["sharpness"] == pytest.approx(6.2319, abs=1e-4)
    assert outcome.values["loss_of_the_minimum"] < 1e-28
    cell = of["growth per step, batch 4 at lr 0.6 x 2/S"]
    assert cell.theory == pytest.approx(0.083, abs=0.006)
    assert 0.88 < cell.measured / cell.theory < 1.08
    assert of["growth per step, batch full at lr 1.2 x 2/S"].measured == pytest.approx(0.3365, abs=5e-4)
    for stays in ("batch 8 at lr 0.4 x 2/S", "batch 16 at lr 0.9 x 2/S"):
        assert of[f"runs that left, {stays}"].measured == 0
    exploding = "batch 8 at lr 0.9 x 2/S"
    assert outcome.values[f"second_moment_growth_{exploding}"] > 1.5 * of[f"growth per step, {exploding}"].theory
    assert outcome.values["second_moment_growth_batch 16 at lr 0.9 x 2/S"] > 0.1
    assert all(0.85 < outcome.values[f"landed_over_critical_batch_{size}"] < 1.0 for size in (2, 4, 8))
    assert not outcome.disagreement()

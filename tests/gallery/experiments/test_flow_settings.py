"""Slips at the knobs of singular_langevin, label_noise and central_flow_toy are refused, each by the name of the knob."""

import pytest
import torch

from lab.gallery.base import Surroundings
from lab.gallery.experiments.central_flow_toy import CentralFlowToy
from lab.gallery.experiments.label_noise import LabelNoise
from lab.gallery.experiments.singular_langevin import SingularLangevin
from lab.settings import SettingError


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SingularLangevin(lr=()), "lr: expected one or more"),
        (lambda: SingularLangevin(temperature=0.01), "temperature=0.01 is too low for alpha=400"),
        (lambda: SingularLangevin(surface="cusp", boundary="periodic"), "boundary=periodic: cusp"),
        (lambda: LabelNoise(start=4.2), "start=4.2: valleys are stable below"),
        (lambda: LabelNoise(half_width=4.2), "half_width=4.2"),
        (lambda: LabelNoise(box=2.0), "box=2: expected less than half_width"),
        (lambda: LabelNoise(std=5.0), "std=5: the spread"),
        (lambda: LabelNoise(scales=(1.0, 1.0)), "scales"),
        (lambda: CentralFlowToy(pull=10.0), "pull=10: expected less than 1/lr"),
        (lambda: CentralFlowToy(past=9.5), "past=9.5: expected at most 0.9/lr"),
        (lambda: CentralFlowToy(noise=()), "noise: expected one or more"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_descent_that_runs_away_is_told_in_one_line() -> None:
    experiment = CentralFlowToy(steps=100, start_x=500.0)
    around = Surroundings(0, torch.device("cpu"), lambda part: lambda share: None)
    with pytest.raises(SettingError, match="start_x=500: gradient descent runs away"):
        experiment.simulate(around)


def test_walkers_that_have_not_forgotten_their_start_are_not_said_to_be_gibbs() -> None:
    experiment = SingularLangevin(
        surface="min_crossing", start="uniform", boundary="periodic", walkers=200, steps=100, lr=(0.005, 1.0)
    )
    around = Surroundings(0, torch.device("cpu"), lambda part: lambda share: None)
    outcome = experiment.simulate(around)
    assert "not yet Gibbs" in outcome.finding
    assert "is the step of Euler" not in outcome.finding
    assert not outcome.disagreement()


def test_descent_that_has_not_settled_is_not_said_to_be_held_at_the_edge() -> None:
    experiment = CentralFlowToy(steps=100, walkers=50, ratios=(0.2,), noise=(0.5,))
    around = Surroundings(0, torch.device("cpu"), lambda part: lambda share: None)
    assert "has not settled in these steps" in experiment.simulate(around).finding

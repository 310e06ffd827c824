"""Langer's rate against quadrature where the temperature is low, and every reason to refuse it."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import cumulative_simpson, simpson

from lab.escape.langer import Langer
from lab.landscapes.double_well import DoubleWell
from lab.points.dense import stationary


def at(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def wells(*stiffness: float) -> Langer:
    well = DoubleWell(stiffness)
    rest = (0.0,) * len(stiffness)
    return Langer(*(stationary(well, at(x, *rest)) for x in (-1.0, 0.0, 1.0)))


def test_the_prefactor_is_the_formula_and_stiff_directions_cancel() -> None:
    for stiffness in ((), (3.0,), (0.5, 7.0)):
        found = wells(*stiffness)
        assert found.barrier == pytest.approx(0.25, abs=1e-14) and found.back == pytest.approx(0.25, abs=1e-14)
        assert found.prefactor == pytest.approx(math.sqrt(2 * 1) / (2 * math.pi), rel=1e-12)
        assert found.rate(0.05) == pytest.approx(found.prefactor * math.exp(-5), rel=1e-12)
        assert found.distance == pytest.approx(1)
        torch.testing.assert_close(found.direction, at(1, *([0] * len(stiffness))))


def test_at_low_temperature_it_is_the_exact_rate() -> None:
    """Mean first-passage time from -1 to the other well, (1/T) int exp(L/T) int_-inf^y exp(-L/T), error of order T / dL."""
    x = torch.linspace(-2, 1, 20_001, dtype=torch.float64).numpy()
    energy = (x**2 - 1) ** 2 / 4
    for T in (0.02, 0.01):
        inside = cumulative_simpson(torch.from_numpy(-energy / T).exp().numpy(), x=x, initial=0)
        outer = torch.from_numpy(energy / T).exp().numpy() * inside / T
        exact = 1 / simpson(outer[x >= -1], x=x[x >= -1])
        assert wells().rate(T) == pytest.approx(exact, rel=2 * T / 0.25)
        assert abs(wells().rate(T) / exact - 1) > 0.2 * T / 0.25, "it is a limit, not the rate itself"


def test_every_reason_to_refuse_is_told() -> None:
    found = wells(4.0)
    # sqrt(T / 2) > 0.35 from T = 0.245 on; the barrier is below 2 T from T = 0.125 on.
    assert [
        ("no bowl" in " ".join(found.refusals(T)), "without waiting" in " ".join(found.refusals(T)))
        for T in (0.06, 0.2, 0.3)
    ] == [
        (False, False),
        (False, True),
        (True, True),
    ]
    assert any("barrier back is 1 times" in said for said in found.refusals(0.06)), "a symmetric well: replicas return"
    deeper = replace(found, beyond=replace(found.beyond, value=-0.5))
    assert deeper.refusals(0.06) == []
    assert deeper.refusals(0.06, torch.tensor([0, 1, 1, 0])) == []
    assert deeper.refusals(0.06, torch.tensor([0, -1, 1, -1])) == [
        "the converged quench found 2 of 4 replicas in a third minimum"
    ]
    assert deeper.refusals(0.06, torch.tensor([-2, 1])) == ["the quench of 1 of 2 replicas did not converge"]


def test_points_that_are_not_what_they_should_be_are_refused() -> None:
    found = wells(4.0)
    with pytest.raises(ValueError, match="the saddle has 0 negative eigenvalues; expected 1"):
        Langer(found.well, found.beyond, found.well)
    with pytest.raises(ValueError, match="the well has 1 negative eigenvalues; expected 0"):
        Langer(found.saddle, found.saddle, found.beyond)
    with pytest.raises(ValueError, match="no higher"):
        replace(found, beyond=replace(found.beyond, value=0.3))
    with pytest.raises(ValueError, match="an eigenvalue 0"):
        replace(found, well=replace(found.well, eigenvalues=at(0, 2)))
    with pytest.raises(ValueError, match="temperature=0"):
        found.rate(0)

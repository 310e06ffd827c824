"""Quadrature of Gibbs distributions: closed forms, masses at crossings, and learning coefficients from the cold limit."""

import math

import pytest
import torch

from lab.gallery.landscapes.crossings import MinCrossing, ProductCrossing, ThreeLines
from lab.landscapes.base import Landscape
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.gibbs import gibbs, inside
from lab.landscapes.quadratic import Quadratic


def test_a_gaussian_in_two_variables_is_exact() -> None:
    law = gibbs(Quadratic((4.0, 1.0)), 0.5, [-6, -9], [6, 9])
    assert law.log_z == pytest.approx(math.log(2 * math.pi * 0.5 / 2), rel=1e-10)
    assert law.mean(lambda x: x[:, 1] ** 2) == pytest.approx(0.5, rel=1e-10)
    assert float(law.shares.sum()) == pytest.approx(1.0, rel=1e-12)


def test_both_wells_hold_half_of_the_mass() -> None:
    law = gibbs(DoubleWell(stiffness=()), 0.07, [-3], [3], at=[(0.0,)])
    assert law.mean(inside([-3], [0])) == pytest.approx(0.5, rel=1e-12)
    # E x U'(x) = T for every smooth confining U.
    assert law.mean(lambda x: x[:, 0] * (x[:, 0] ** 3 - x[:, 0])) == pytest.approx(0.07, rel=1e-7)


@pytest.mark.parametrize(
    ("landscape", "origin", "valley"),
    [(MinCrossing(alpha=100.0), 0.051513, 0.044654), (ProductCrossing(alpha=400.0), 0.056488, 0.042381)],
)
def test_gibbs_mass_of_a_box_at_the_crossing_and_on_a_valley(
    landscape: Landscape, origin: float, valley: float
) -> None:
    edges = sorted(
        {
            side * (centre + shift)
            for centre in (0.0, 0.2, 0.4, 0.5, 0.6, 0.8)
            for shift in (-0.1, 0.1)
            for side in (-1, 1)
        }
    )
    law = gibbs(landscape, 1.0, [-1, -1], [1, 1], at=[(0.0,)] * 2, cuts=[edges] * 2, panels=20)
    # The kink of the minimum on the diagonals lies inside panels: what is left of it is below 1e-5.
    assert law.mean(inside([-0.1, -0.1], [0.1, 0.1])) == pytest.approx(origin, rel=2e-4)
    # The mean over the four boxes that tile an arm between .1 and .9.
    arm = sum(law.mean(inside([x - 0.1, -0.1], [x + 0.1, 0.1])) for x in (0.2, 0.4, 0.6, 0.8)) / 4
    assert arm == pytest.approx(valley, rel=2e-3)
    across = law.mean(inside([-0.1, 0.4], [0.1, 0.6]))
    assert across == pytest.approx(law.mean(inside([0.4, -0.1], [0.6, 0.1])), rel=1e-4)


@pytest.mark.parametrize(
    ("landscape", "betas", "truth"),
    [
        (Quadratic((2.0, 2.0)), (1e2, 1e4, 1e6, 1e8), (1.0, 1.0, 1.0, 1.0)),
        (MinCrossing(alpha=1.0), (1e2, 1e4, 1e6), (0.4701, 0.4972, 0.4997)),
        (ProductCrossing(alpha=1.0), (1e2, 1e4, 1e6, 1e8), (0.3478, 0.4105, 0.4366, 0.4509)),
    ],
)
def test_the_cold_limit_of_the_mean_energy_over_temperature(
    landscape: Landscape, betas: tuple[float, ...], truth: tuple[float, ...]
) -> None:
    for beta, expected in zip(betas, truth, strict=True):
        law = gibbs(landscape, 1 / beta, [-1, -1], [1, 1], at=[(0.0,), (0.0,)])
        assert beta * law.mean(landscape.energy) == pytest.approx(expected, abs=2e-4)


def test_three_lines_are_preferred_where_they_cross() -> None:
    # On the unit disc at 1e2, 1e4: .2144, .2958, towards 1/3 and not 1/2; the third line crosses the panels.
    for beta, expected in ((1e2, 0.2144), (1e4, 0.2958)):
        law = gibbs(ThreeLines(alpha=1.0), 1 / beta, [-1, -1], [1, 1], at=[(0.0,), (0.0,)], panels=100)
        disc = (law.points.square().sum(1) <= 1).double() * law.shares
        found = beta * float((disc * ThreeLines(alpha=1.0).energy(law.points)).sum() / disc.sum())
        assert found == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize(
    ("landscape", "temperature", "low", "high", "says"),
    [
        (Quadratic((1.0, 1.0, 1.0)), 1.0, [-1] * 3, [1] * 3, "1 or 2"),
        (Quadratic((1.0,)), 0.0, [-1], [1], "positive"),
        (Quadratic((1.0,)), 1.0, [1], [-1], "low < high"),
        (Quadratic((1.0,)), 1.0, [-1, -1], [1, 1], "bounds"),
    ],
)
def test_what_cannot_be_integrated_is_refused(
    landscape: Landscape, temperature: float, low: list[float], high: list[float], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        gibbs(landscape, temperature, low, high)


def test_masses_of_boxes_add_up() -> None:
    law = gibbs(ProductCrossing(), 1.0, [-1, -1], [1, 1], at=[(0.0,), ()], cuts=[(-0.5,), (0.25,)])
    left = law.mean(inside([-1, -1], [-0.5, 1])) + law.mean(inside([-0.5, -1], [0.0, 1]))
    assert left == pytest.approx(law.mean(inside([-1, -1], [0.0, 1])), rel=1e-12)
    assert left == pytest.approx(0.5, rel=1e-12)
    assert torch.isclose(law.shares.sum(), torch.tensor(1.0, dtype=torch.float64))

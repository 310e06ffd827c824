"""Converged gradient descent: basins of a double well, soft slopes that only look like minima, and what never arrives."""

import pytest
import torch
from torch import Tensor

from lab.landscapes.base import Landscape
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic
from lab.points.dense import LARGEST, stationary
from lab.points.quench import polish, quench


def at(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


class Soft(Landscape):
    """e/4 (x^2 - 1)^2 + y^2/2: along x a hundred times as soft as along y."""

    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        return 1e-2 / 4 * (x[..., 0] ** 2 - 1) ** 2 + x[..., 1] ** 2 / 2


def test_every_point_goes_to_the_well_on_its_side() -> None:
    W = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = quench(DoubleWell((1.0, 5.0)), W)
    assert bool(found.converged.all()) and float(found.gradient_norms.max()) < 1e-10
    expected = torch.zeros_like(W)
    expected[:, 0] = W[:, 0].sign()
    torch.testing.assert_close(found.w, expected, atol=1e-9, rtol=0)
    wells = tuple(stationary(DoubleWell((1.0, 5.0)), at(x, 0, 0)) for x in (-1.0, 1.0))
    assert torch.equal(found.labels(wells), (W[:, 0] > 0).long())
    assert set(found.labels(wells[:1]).tolist()) == {0, -1}, "a minimum that is not among those known"


def test_a_soft_slope_near_the_top_is_followed_to_its_end() -> None:
    """From x = +-0.001 the flow needs log(1000) / 0.01 = 690 units of time: some hundred steps would see no change."""
    W = torch.stack([at(0.001, 0.3), at(-0.001, 0.3), at(0.4, -1)])
    found = quench(Soft(), W)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.w[:, 0], at(1, -1, 1), atol=1e-6, rtol=0)
    short = quench(Soft(), W, max_steps=100)
    assert not bool(short.converged[:2].any())


def test_newton_may_finish_only_inside_the_bowl() -> None:
    arrived, ends = polish(DoubleWell(()), torch.stack([at(0.95), at(0.5), at(1e-9), at(0.62)]), 1e-10)
    assert bool(arrived[0]) and float(ends[0, 0]) == pytest.approx(1)
    assert not bool(arrived[1]) and not bool(arrived[2]), "negative curvature"
    assert not bool(arrived[3]), "the bowl's rim: a Newton step would leap"


def test_a_saddle_is_no_place_to_arrive_at() -> None:
    found = quench(DoubleWell((1.0,)), torch.stack([at(0, 0.5), at(0.3, 0.5)]), max_steps=500)
    assert found.converged.tolist() == [False, True]
    assert found.labels((stationary(DoubleWell((1.0,)), at(1, 0)),)).tolist() == [-2, 0]


def test_steps_that_are_too_long_are_shortened_where_the_loss_rises() -> None:
    found = quench(DoubleWell((1.0,)), torch.stack([at(0.3, 0.5)]), lr=0.999, max_steps=2000)
    assert bool(found.converged.all())
    jumping = quench(Quadratic((3.0, 1.0)), torch.stack([at(1e-3, 1.0)]), lr=0.67, tol=1e-9)
    assert bool(jumping.converged.all())


def test_what_is_not_finite_stays_so_and_does_not_hold_up_the_others() -> None:
    found = quench(DoubleWell((1.0,)), torch.stack([at(float("nan"), 0), at(0.3, 0.5)]))
    assert found.converged.tolist() == [False, True] and found.steps < 1000


def test_a_large_objective_is_quenched_by_descent_alone() -> None:
    h = torch.linspace(0.5, 2, LARGEST + 1)
    found = quench(Quadratic(h), torch.ones(2, LARGEST + 1, dtype=torch.float64), tol=1e-6)
    assert bool(found.converged.all()) and float(found.w.abs().max()) < 1e-5 and 0 < found.steps < 1000

"""Steps along the most negative eigenvector: F14b, the sign, the limits of the prediction, the line search."""

import pytest
import torch
from torch import Tensor

from lab.curvature.operators import hessian
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.landscapes.base import Landscape
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.quadratic import Quadratic
from lab.landscapes.saddle import Saddle
from lab.points.negative_curvature import limits, line_search, way_down

DOUBLE = torch.float64
ORIGIN = torch.zeros(2, dtype=DOUBLE)


def test_the_step_from_the_saddle_of_the_factorisation_drops_as_predicted() -> None:
    # F14b: along (1, 1)/sqrt 2, s = .3: actual .4560125, to second order .455; eigenvalues +-1 there, {0, 4.25} at (2, .5).
    landscape = Factorisation()
    down = way_down(landscape, ORIGIN)
    assert down.curvature == pytest.approx(-1, abs=1e-12)
    assert down.direction.abs().tolist() == pytest.approx([0.5**0.5] * 2, abs=1e-9)
    assert float(landscape.value(0.3 * down.direction)) == pytest.approx(0.4560125, abs=1e-12)
    assert down.value - down.drop(0.3) == pytest.approx(0.455, abs=1e-12)
    for w, values in ((ORIGIN, [-1.0, 1.0]), (torch.tensor([2.0, 0.5], dtype=DOUBLE), [0.0, 4.25])):
        assert torch.linalg.eigvalsh(hessian(landscape, w).dense()).tolist() == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("side", [-1, 1])
def test_the_sign_is_the_one_that_descends(side: int) -> None:
    w = side * torch.tensor([0.1, 0.05], dtype=DOUBLE)
    down = way_down(Factorisation(), w)
    assert down.slope < 0
    assert side * float(down.direction.sum()) > 0
    here, there = (float(Factorisation().value(w + s * down.direction)) for s in (-0.2, 0.2))
    assert there < here


def test_the_prediction_is_the_taylor_expansion_to_second_order() -> None:
    # THEORY row 41: L(w + v) = L + g'v + v'Hv/2 + O(|v|^3): halving the step divides what is left by eight.
    landscape = DeepLinear((2.0, 1.0), depth=3)
    w = 0.4 * torch.randn(12, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    down = way_down(landscape, w, tol=1e-8)
    left = [down.value - float(landscape.value(w + s * down.direction)) - down.drop(s) for s in (4e-2, 2e-2, 1e-2)]
    assert left[0] / left[1] == pytest.approx(8, rel=0.1)
    assert left[1] / left[2] == pytest.approx(8, rel=0.1)


def test_third_and_fourth_order_say_how_far_it_goes() -> None:
    even = limits(Factorisation(), ORIGIN, way_down(Factorisation(), ORIGIN))
    assert (even.third, even.fourth) == pytest.approx((0, 3), abs=1e-6)
    assert even.cubic == float("inf")
    assert even.quartic == pytest.approx(2, abs=1e-6)  # (1 - s^2/2)^2/2 is 1/2 again at s = 2
    at = torch.tensor([0.2, 0.0], dtype=DOUBLE)  # (x^2 - 1)^2/4: derivatives 3 x^2 - 1, 6 x, 6
    down = way_down(DoubleWell(), at)
    found = limits(DoubleWell(), at, down)
    assert (abs(found.third), found.fourth) == pytest.approx((1.2, 6), abs=1e-4)
    assert found.cubic == pytest.approx(3 * 0.88 / 1.2, rel=1e-4)
    assert found.quartic == pytest.approx((12 * 0.88 / 6) ** 0.5, rel=1e-4)
    straight = limits(Quadratic((1.0, -1.0)), ORIGIN, way_down(Quadratic((1.0, -1.0)), ORIGIN))
    assert straight.cubic == straight.quartic == float("inf")


@pytest.mark.parametrize("first", [1e-6, 0.1, 30.0])
def test_the_line_search_ends_within_a_factor_of_two_of_the_best_length(first: float) -> None:
    down = way_down(Factorisation(), ORIGIN)
    length, drop, losses = line_search(Factorisation(), ORIGIN, down, first=first)
    assert 2**0.5 / 2 <= length <= 2**0.5 * 2**0.5
    assert drop == 0.5 - float(Factorisation().value(length * down.direction)) > 0
    assert losses < 40


def test_where_no_length_lowers_the_loss_the_search_takes_none() -> None:
    bowl, w = Quadratic((1.0, 2.0)), ORIGIN
    assert line_search(bowl, w, way_down(bowl, w))[:2] == (0.0, 0.0)


def test_the_eigenvector_of_a_repeated_eigenvalue_is_one_of_its_space_and_costs_few_products() -> None:
    landscape = Saddle(dimension=200, negative=5)
    w = torch.zeros(200, dtype=DOUBLE)
    down = way_down(landscape, w)
    assert down.curvature == pytest.approx(-1, abs=1e-9)
    assert float(down.direction[:5].norm()) == pytest.approx(1, abs=1e-6)
    assert down.matvecs < 10
    again = way_down(landscape, w, start=down.direction[:, None])
    assert again.matvecs <= down.matvecs
    assert again.curvature == pytest.approx(-1, abs=1e-9)


class Still(Landscape):
    """Constant."""

    num_params = 3

    def energy(self, x: Tensor) -> Tensor:
        return 0 * x.sum(-1)


def test_a_constant_has_no_way_down() -> None:
    down = way_down(Still(), torch.zeros(3, dtype=DOUBLE))
    assert down.curvature == 0 and down.slope == 0
    assert down.drop(1.0) == 0

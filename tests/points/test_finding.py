"""Zeros of the gradient found from nearby, and minima of |g| that are none told apart."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lab.curvature.operators import hessian
from lab.data.halves import top_to_bottom
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.gallery.landscapes.edge_toy import EdgeToy
from lab.landscapes.base import Landscape
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.quadratic import Quadratic
from lab.landscapes.saddle import Saddle
from lab.models.mlp import Mlp
from lab.objective import Decayed, NetworkObjective
from lab.points.critical import classify
from lab.points.finding import _Newton, find_critical

DOUBLE = torch.float64


def normal(size: int, seed: int, scale: float = 0.7) -> Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize(
    "landscape",
    [Factorisation(), DoubleWell(), Saddle(dimension=5, negative=2), DeepLinear((2.0, 1.0)), EdgeToy()],
    ids=lambda landscape: type(landscape).__name__,
)
def test_a_critical_point_is_found_from_anywhere_near(landscape: Landscape) -> None:
    kinds = set()
    for seed in range(6):
        found = find_critical(landscape, normal(landscape.num_params, seed), tol=1e-11)
        assert found.reason == "zero"
        assert float(landscape.grad(found.w).norm()) <= 1e-11
        kinds.add(classify(landscape, found.w).kind)
    assert kinds <= {"minimum", "saddle", "degenerate"}


def test_saddles_are_found_as_well_as_minima() -> None:
    # Started on either side of where the curvature of the wells changes sign, x^2 = 1/3.
    inside, outside = (find_critical(DoubleWell(), torch.tensor([x, 0.3], dtype=DOUBLE)) for x in (0.3, 0.9))
    assert classify(DoubleWell(), inside.w).kind == "saddle"
    assert classify(DoubleWell(), outside.w).kind == "minimum"


def test_convergence_is_quadratic_in_the_end_also_on_a_valley_of_minima() -> None:
    found = find_critical(Factorisation(), torch.tensor([2.0, 0.6], dtype=DOUBLE), tol=1e-13)
    assert found.reason == "zero"
    late = [n for n in found.norms if n < 1e-2]
    assert any(after < 10 * before**1.7 for before, after in pairwise(late))
    assert len(found.norms) < 10


class Bump(Landscape):
    """g = (x^2 + 1, y): |g| has its minimum at 0, where g = (1, 0) lies in the null space of H."""

    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        return x[..., 0] ** 3 / 3 + x[..., 0] + x[..., 1].square() / 2


def test_a_minimum_of_the_gradient_norm_that_is_no_zero_is_told_apart() -> None:
    found = find_critical(Bump(), torch.tensor([0.7, 0.5], dtype=DOUBLE))
    assert found.reason == "stuck" and not found.found
    assert found.grad_norm == pytest.approx(1.0, abs=1e-8)
    assert found.alignment < 1e-3
    assert classify(Bump(), found.w).kind == "not critical"


def test_a_search_that_is_cut_short_says_so() -> None:
    found = find_critical(DeepLinear(), normal(18, 3), max_iterations=2)
    assert found.reason == "unfinished"
    assert found.grad_norm == pytest.approx(float(DeepLinear().grad(found.w).norm()))
    with pytest.raises(ValueError, match="not finite"):
        find_critical(Factorisation(), torch.tensor([torch.inf, 1.0], dtype=DOUBLE))


def test_a_search_never_raises_the_gradient_norm_and_tells_of_it() -> None:
    told = list[float]()
    found = find_critical(DeepLinear((2.0, 1.0), depth=3), normal(12, 4), watch=told.append)
    assert list(found.norms) == told
    assert all(after <= before for before, after in pairwise(told))


@pytest.mark.parametrize("mu", [1e-6, 1e-2, 10.0])
def test_the_step_of_the_krylov_space_is_that_of_the_matrix(mu: float) -> None:
    landscape, w = DeepLinear((2.0, 1.0), depth=3), normal(12, 5)
    H = hessian(landscape, w)
    matrix, g = H.dense(), H.gradient
    truth = -torch.linalg.solve(matrix @ matrix + mu * torch.eye(12, dtype=DOUBLE), matrix @ g)
    step, left = _Newton(H, 12, 0.0).step(mu)
    torch.testing.assert_close(step, truth, rtol=1e-6, atol=1e-9)
    assert left == pytest.approx(float((g + matrix @ truth).norm()), rel=1e-6)


def test_a_critical_point_is_at_rest() -> None:
    w = torch.zeros(3, dtype=DOUBLE)
    found = find_critical(Quadratic((2.0, -1.0, 0.0)), w)
    assert found.reason == "zero" and found.w.equal(w) and len(found.norms) == 1


def test_minimum_and_saddle_of_a_real_network_are_found() -> None:
    # The lower of the two minima of 8-2-2 tanh on 50 digits with weight decay .02, L = .4055, and a saddle of index 1 at
    # .42908, from restarts; others end at minima of |g| that are none.
    x, y = top_to_bottom(50, 8, 2)
    model = Mlp(widths=(2,)).build((8,), 2, 0).double()
    loss = Decayed(NetworkObjective(model, lambda f, t: 0.5 * (f - t).square().sum(1).mean(), (x, y)), 0.02)
    ends = []
    for seed in (1, 12, 3):
        w = normal(loss.num_params, seed, 0.5)
        for _ in range(100):
            w = w - 0.2 * loss.grad(w)
        found = find_critical(loss, w, tol=1e-10)
        point = classify(loss, found.w)
        ends.append((found.reason, point.kind, point.index, round(point.value, 4)))
    assert ends[:2] == [("zero", "minimum", 0, 0.4055), ("zero", "saddle", 1, 0.4291)]
    assert ends[2][:2] == ("stuck", "not critical")

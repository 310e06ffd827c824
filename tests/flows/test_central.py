"""The central flow against its closed forms: the edge-of-stability toy, a scalar factorisation, finite differences."""

import math

import pytest
import torch

from lab.flows.central import average_amplitude, central_flow, gradient_descent, gradient_flow, sharpness
from lab.gallery.landscapes.edge_toy import EdgeToy
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.quadratic import Quadratic

DOUBLE = torch.float64


def test_the_gradient_of_the_sharpness_is_that_of_finite_differences() -> None:
    landscape, w, step = Factorisation(), torch.tensor([1.3, 0.4], dtype=DOUBLE), 1e-5
    here = sharpness(landscape, w)
    for i, e in enumerate(torch.eye(2, dtype=DOUBLE)):
        ahead, behind = (sharpness(landscape, w + sign * step * e).value for sign in (1, -1))
        assert float(here.slope[i]) == pytest.approx((ahead - behind) / (2 * step), rel=1e-8)


@pytest.mark.parametrize(("lr", "pull", "past"), [(0.1, 0.05, 2.0), (0.05, 0.02, 4.0), (0.1, 0.2, 4.9)])
def test_the_central_flow_holds_the_toy_at_the_edge_with_the_variance_of_the_cycle(
    lr: float, pull: float, past: float
) -> None:
    toy = EdgeToy(pull=pull, goal=2 / lr + past)
    square, level = toy.cycle(lr)
    ahead = math.exp(30 * lr * pull)  # thirty steps of gradient flow to the edge
    start = torch.tensor([0.0, 2 / lr - (ahead - 1) * past], dtype=DOUBLE)
    flow = central_flow(toy, start, lr, 45)
    assert float(flow.w[-1, 1]) == pytest.approx(level, rel=1e-9)
    assert float(flow.variance[-1]) == pytest.approx(square, rel=1e-6)
    assert flow.variance[0] == 0 and float(flow.sharpness.max()) <= level * (1 + 1e-9)
    # Below the edge it is gradient flow: y* - y falls by e^(-lr k t), to the fourth order of its steps.
    expected = toy.goal - ahead * past * math.exp(-25 * lr * pull)
    assert float(flow.w[25, 1]) == pytest.approx(expected, rel=1e-9)


def test_gradient_descent_settles_in_the_cycle_the_central_flow_predicts() -> None:
    toy, lr = EdgeToy(pull=0.2, goal=20 + 2.0), 0.1
    path = gradient_descent(toy, torch.tensor([0.3, 19.0], dtype=DOUBLE), lr, 3000)
    flow = central_flow(toy, torch.tensor([0.0, 19.0], dtype=DOUBLE), lr, 60)
    assert float(path[-2:, 0].square().mean()) == pytest.approx(float(flow.variance[-1]), rel=1e-4)
    assert float(path[-2:, 1].mean()) == pytest.approx(float(flow.w[-1, 1]), rel=1e-6)
    assert float(path[-2, 0] * path[-1, 0]) < 0


@pytest.mark.parametrize("ratio", [0.2, 0.45, 0.55])
def test_the_cycle_grows_and_falls_as_its_linearisation_says(ratio: float) -> None:
    lr, pull = 0.1, 0.05
    toy = EdgeToy(pull=pull, goal=2 / lr + ratio / lr)
    square, level = toy.cycle(lr)
    w = torch.tensor([square**0.5, level], dtype=DOUBLE)
    two = torch.autograd.functional.jacobian(
        lambda w: _step(toy, _step(toy, w, lr), lr), w
    )  # brute force: the Jacobian of two steps
    radius = float(torch.linalg.eigvals(two).abs().max())
    assert toy.cycle_growth(lr) == pytest.approx(math.log(radius) / 2, abs=1e-12)
    assert toy.cycle_growth(lr) == pytest.approx(math.log(1 - lr * pull * (1 - 2 * ratio)) / 2, abs=1e-12)
    assert (toy.cycle_growth(lr) < 0) == (ratio < 0.5)


def _step(toy: EdgeToy, w: torch.Tensor, lr: float) -> torch.Tensor:
    x, y = w[0], w[1]
    return torch.stack([x - lr * x * y, y - lr * (x * x / 2 + toy.pull * (y - toy.goal))])


def test_growth_of_a_cycle_that_does_not_turn_is_that_of_its_larger_eigenvalue() -> None:
    toy, lr = EdgeToy(pull=6.0, goal=20.05), 0.1
    square, level = toy.cycle(lr)
    two = torch.autograd.functional.jacobian(
        lambda w: _step(toy, _step(toy, w, lr), lr), torch.tensor([square**0.5, level], dtype=DOUBLE)
    )
    values = torch.linalg.eigvals(two)
    assert float(values.imag.abs().max()) == 0
    assert toy.cycle_growth(lr) == pytest.approx(float(values.abs().max().log()) / 2, abs=1e-12)
    assert math.isnan(EdgeToy(goal=10.0).cycle_growth(lr))


def test_gradient_flow_of_a_factorisation_ends_where_its_kept_difference_says() -> None:
    landscape, start = Factorisation(), torch.tensor([3.0, 0.2], dtype=DOUBLE)
    end = gradient_flow(landscape, start, 0.05, 100)[-1]
    assert float(end.square().sum()) == pytest.approx(float(landscape.flow_end(start)), rel=1e-5)


def test_the_central_flow_of_a_factorisation_slides_along_the_edge() -> None:
    # From (2.42, 0) gradient flow would end at sharpness sqrt(2.42^4 + 4) = 6.19; at lr .33 the edge is at 6.06.
    landscape, lr, start = Factorisation(), 0.33, torch.tensor([2.42, 0.0], dtype=DOUBLE)
    flow = central_flow(landscape, start, lr, 60, substeps=4)
    assert float(landscape.flow_end(start)) > 2 / lr
    assert float(flow.sharpness.max()) == pytest.approx(2 / lr, rel=1e-8)
    assert float(flow.variance.max()) > 0
    assert float(landscape.value(flow.w[-1])) < 1e-6
    assert float(flow.w[-1].square().sum()) == pytest.approx(2 / lr, rel=1e-4)


def test_starts_beyond_the_edge_and_twin_eigenvalues_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond 2/lr"):
        central_flow(EdgeToy(), torch.tensor([0.0, 21.0], dtype=DOUBLE), 0.1, 5)
    with pytest.raises(ValueError, match="two largest"):
        sharpness(Quadratic((2.0, 2.0)), torch.zeros(2, dtype=DOUBLE))


def test_an_average_of_weights_kills_the_oscillation() -> None:
    mean, decay = 0.0, 0.95
    for step in range(2000):
        mean = decay * mean + (1 - decay) * (-1) ** step
    assert abs(mean) == pytest.approx(average_amplitude(decay), rel=1e-9)
    with pytest.raises(ValueError, match="decay"):
        average_amplitude(1.0)

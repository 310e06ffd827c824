"""Least actions that are known: twice the barrier for D = 1, an integral in one dimension, a Lyapunov equation in two."""

import math

import pytest
import torch
from scipy.linalg import solve_continuous_lyapunov
from torch import Tensor

from lab.data.halves import halves_loss
from lab.gallery.laws.action import action, chord_slope, example_covariance, isotropic_slope, least_action
from lab.landscapes.double_well import DoubleWell
from lab.noise.covariance import covariance
from lab.objective.decayed import Decayed
from lab.points.dense import gradient_field
from tests.points.test_string import Bent


def at(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def line(a: Tensor, b: Tensor, points: int = 25) -> Tensor:
    return a + torch.linspace(0, 1, points, dtype=torch.float64)[:, None] * (b - a)


def test_uphill_in_one_dimension_it_is_twice_the_barrier_and_downhill_nothing() -> None:
    gradient = gradient_field(DoubleWell(()))
    for points in (25, 49):
        up = float(action(gradient, None, line(at(-1), at(0), points)).detach())
        assert up == pytest.approx(0.5, rel=1.5 / points**2)  # midpoint rule: h^2/24 (f'(b) - f'(a)) over the integral
    assert float(action(gradient, None, line(at(0), at(1))).detach()) == pytest.approx(0, abs=1e-12)
    whole = float(action(gradient, None, line(at(-1), at(1), 49)).detach())
    assert whole == pytest.approx(0.5, rel=3e-3), "over the saddle it costs no more than to the saddle"


def test_the_error_falls_with_the_square_of_the_number_of_points() -> None:
    gradient = gradient_field(DoubleWell(()))
    errors = [abs(float(action(gradient, None, line(at(-1), at(0), n + 1)).detach()) - 0.5) for n in (12, 24, 48)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05) and errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_noise_that_depends_on_the_place_has_the_known_action_in_one_dimension() -> None:
    """V = int 2 L'(x)/D(x) dx with D = 1 + x^2: of L' = x^3 - x, from -1 to 0, 2 [x^2/2 - log(1 + x^2)]."""
    gradient = gradient_field(DoubleWell(()))

    def diffusion(x: Tensor) -> Tensor:
        return (1 + x**2)[:, :, None]

    exact = 2 * (0 - (1 / 2 - math.log(2)))
    assert float(action(gradient, diffusion, line(at(-1), at(0), 97)).detach()) == pytest.approx(exact, rel=1e-3)


def test_in_a_bent_valley_the_path_is_found_and_costs_twice_the_barrier() -> None:
    gradient = gradient_field(Bent())
    straight = line(at(-1, 0), at(0, 1))
    found = least_action(gradient, None, straight, points=17)
    assert found.start > 1.2 * found.value
    assert found.value == pytest.approx(0.5, rel=0.02)
    lengths = (found.path[1:] - found.path[:-1]).norm(dim=1)
    assert float(lengths.std() / lengths.mean()) < 0.02
    assert torch.equal(found.path[[0, -1]], straight[[0, -1]])


def test_the_noise_of_a_linear_drift_in_two_dimensions_has_the_quasipotential_of_its_covariance() -> None:
    """dw = -H w dt + sqrt(eps D) dW settles in N(0, eps S), H S + S H = D: V(w) = w' S^-1 w / 2. H and D do not commute, so
    the path is bent and the drift is no gradient in the metric of the noise.
    """
    H = torch.tensor([[2.0, 0.4], [0.4, 0.6]], dtype=torch.float64)
    D = torch.tensor([[0.5, -0.6], [-0.6, 1.5]], dtype=torch.float64)
    S = torch.from_numpy(solve_continuous_lyapunov(H.numpy(), D.numpy()))
    goal = at(0.9, 0.4)
    found = least_action(lambda w: w @ H, lambda w: D.expand(len(w), 2, 2), line(at(0, 0), goal), points=25, tol=1e-5)
    exact = float(goal @ torch.linalg.solve(S, goal)) / 2
    assert found.start > 1.05 * exact
    assert found.value == pytest.approx(exact, rel=1e-4)


def test_the_covariance_of_examples_is_that_of_the_noise_room() -> None:
    network = halves_loss(40, 3, 1, 2)
    w = torch.randn(network.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    D = example_covariance(Decayed(network, 0.1))(torch.stack([w, 2 * w]))
    torch.testing.assert_close(D[0], covariance(network, w).dense(), rtol=1e-10, atol=1e-14)
    G = network.example_grads(2 * w)
    torch.testing.assert_close(D[1], G.T @ G / 40 - torch.outer(G.mean(0), G.mean(0)), rtol=1e-10, atol=1e-13)
    leaf = w.clone().requires_grad_()
    step = 1e-6 * torch.ones_like(w)
    (slope,) = torch.autograd.grad(example_covariance(network)(leaf[None])[0].trace(), leaf)
    plus, minus = (example_covariance(network)((w + s * step)[None])[0].trace() for s in (1, -1))
    assert float(slope @ step) == pytest.approx(float(plus - minus) / 2, rel=1e-6)
    with pytest.raises(TypeError, match="no noise of mini-batches"):
        example_covariance(DoubleWell())


def test_noise_that_does_not_reach_everywhere_is_told() -> None:
    network = halves_loss(8, 3, 1, 2)  # 11 parameters, 8 examples
    path = torch.randn(3, network.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match="singular along the path"):
        action(gradient_field(network), example_covariance(network), path)


def test_slopes_of_simpler_theories() -> None:
    D = torch.diag(at(1, 3))
    assert isotropic_slope(0.5, D) == pytest.approx(2 * 0.5 * 2 / 4)
    assert chord_slope(0.5, D, at(0, 0), at(0, 5)) == pytest.approx(1 / 3)

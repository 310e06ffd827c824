"""Gauss-Newton steps of least length: exact for linear models, quadratic near a fit, honest where there is none."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lab.models.losses import MeanSquaredErrorCriterion
from lab.objective import NetworkObjective
from lab.points.interpolate import interpolate, jacobian, least_step


def half_square(f: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (f - y).square().sum(-1).mean()


def network(examples: int, hidden: int = 12, outputs: int = 2) -> NetworkObjective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, 5, generator=generator, dtype=torch.float64)
    return NetworkObjective(model, half_square, (x, 0.3 * torch.sin(3 * x[:, :outputs])))


def test_one_step_of_a_linear_model_is_the_shortest_solution() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    loss = NetworkObjective(model, half_square, (x, y))
    step = least_step(loss, loss.weights)
    assert torch.allclose(step, torch.linalg.pinv(x) @ (y[:, 0] - x @ loss.weights), atol=1e-12)
    found = interpolate(loss, loss.weights)
    assert found.converged and len(found.losses) == 2


def test_the_loss_falls_to_round_off_quadratically_and_no_example_has_a_gradient_left() -> None:
    loss = network(10)
    found = interpolate(loss, loss.weights)
    assert found.converged
    assert found.loss < 1e-26
    small = [value for value in found.losses if value < 1e-3]
    assert all(after < 1e3 * before**2 or after < 1e-26 for before, after in pairwise(small))
    assert float(loss.example_grads(found.w).abs().max()) < 1e-11
    assert sorted(found.losses, reverse=True) == list(found.losses)


def test_jacobian_is_that_of_forward_mode() -> None:
    loss = network(3)
    expected = torch.func.jacfwd(lambda w: loss.outputs(w, loss.x).flatten())(loss.weights)
    assert torch.allclose(jacobian(loss, loss.weights), expected, atol=1e-13)


def test_classes_under_the_squared_error_of_the_lab() -> None:
    loss = network(6, outputs=3)
    loss = NetworkObjective(loss.model, MeanSquaredErrorCriterion(3), (loss.x, torch.arange(6) % 3))
    assert interpolate(loss, loss.weights).converged


def test_repeated_examples_leave_the_kernel_singular_and_are_fitted_all_the_same() -> None:
    loss = network(5)
    twice = NetworkObjective(loss.model, half_square, (loss.x.repeat(2, 1), loss.y.repeat(2, 1)))
    assert interpolate(twice, twice.weights).converged


@pytest.mark.parametrize("kind", ["too many examples", "cross-entropy", "contradiction"])
def test_what_cannot_be_fitted_comes_back_not_converged(kind: str) -> None:
    loss = network(60, hidden=3) if kind == "too many examples" else network(4)
    if kind == "cross-entropy":
        loss = NetworkObjective(loss.model, cross_entropy, (loss.x, torch.tensor([0, 1, 1, 0])))
    if kind == "contradiction":
        loss = NetworkObjective(
            loss.model, half_square, (loss.x[:1].repeat(2, 1), torch.tensor([[0.0, 0], [1, 1]]).double())
        )
    found = interpolate(loss, loss.weights, max_steps=8)
    assert not found.converged
    assert found.loss <= found.losses[0]


def test_single_precision_is_refused() -> None:
    loss = network(4)
    with pytest.raises(ValueError, match="use float64"):
        interpolate(loss, loss.weights.float())

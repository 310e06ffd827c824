"""Networks whose trace their layers do not tell: refused by name, and right by products."""

import pytest
import torch
from once_only import OnceOnly
from torch import Tensor, nn
from traced_networks import (
    DOUBLE,
    Attention,
    Centred,
    Functional,
    Gated,
    Tied,
    Twice,
    Unused,
    dense_gauss_newton,
    dense_trace,
    image,
    mlp,
    seeded,
    small,
)

from lab.curvature.trace import gauss_newton_trace, hessian_trace
from lab.landscapes.double_well import DoubleWell
from lab.objective import NetworkObjective


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Tied(), "first.weight = second.weight of a Linear has no layer of its own"),
        (Twice(), "first.weight = second.weight of a Linear has no layer of its own"),
        (Functional(), "used outside its layer"),
        (Attention(), "in_proj_bias of a MultiheadAttention has no layer of its own that is known here"),
    ],
    ids=["tied", "twice", "functional", "attention"],
)
def test_a_model_that_cannot_be_taken_apart_is_refused_and_automatic_takes_products(
    model: nn.Module, says: str
) -> None:
    objective = small(model)
    w = objective.weights
    for method in ("signs", "gauss_newton"):
        with pytest.raises(TypeError, match=says):
            hessian_trace(objective, w, method=method)  # type: ignore[arg-type]
    found = hessian_trace(objective, w, tol=0.02, max_matvecs=300)
    assert found.method in ("diagonal", "hutchinson", "xtrace")
    assert abs(found.value - dense_trace(objective)) <= 4 * found.error + 1e-10
    # The Gauss-Newton trace takes per-example gradients instead, and is exact.
    assert gauss_newton_trace(objective, w).value == pytest.approx(dense_gauss_newton(objective), rel=1e-10)


def test_a_layer_used_twice_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.layer(x).tanh()))

    objective = small(Shared())
    with pytest.raises(TypeError, match="Linear is used outside its layer, more than once"):
        hessian_trace(objective, objective.weights, method="signs")


def test_a_product_of_layers_is_not_taken_for_piecewise_linear() -> None:
    objective = small(Gated())
    w, truth = objective.weights, dense_trace(objective)
    with pytest.raises(ValueError, match="piecewise linear"):
        hessian_trace(objective, w, method="gauss_newton")
    found = hessian_trace(objective, w, method="signs", tol=0.05, max_matvecs=3000)
    assert found.method == "signs"
    assert abs(found.value - truth) < 4 * found.error


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.ELU(), nn.Softplus()])
def test_smooth_activations_are_not_taken_for_piecewise_linear(activation: nn.Module) -> None:
    objective = mlp(activation)
    with pytest.raises(ValueError, match="piecewise linear"):
        hessian_trace(objective, objective.weights, method="gauss_newton")


def test_a_layer_that_is_not_used_adds_nothing() -> None:
    objective = small(Unused())
    assert gauss_newton_trace(objective, objective.weights).value == pytest.approx(dense_trace(objective), rel=1e-11)


COUPLED = r"couples the examples|depend on the others"


def test_coupled_examples_are_refused() -> None:
    for objective in (
        small(Centred(), chunk_size=6),
        NetworkObjective(
            image(nn.ReLU(), nn.BatchNorm2d(4), nn.CrossEntropyLoss()).model,
            nn.CrossEntropyLoss(),
            (torch.randn(6, 2, 6, 6, dtype=DOUBLE, generator=seeded(0)), torch.arange(6) % 3),
            batch_norm="train",
        ),
    ):
        w = objective.weights
        with pytest.raises(ValueError, match=COUPLED):
            hessian_trace(objective, w, method="signs")
        with pytest.raises(ValueError, match=COUPLED):
            gauss_newton_trace(objective, w)
        found = hessian_trace(objective, w, tol=0.05, max_matvecs=400)
        assert found.method in ("diagonal", "hutchinson", "xtrace")
        assert abs(found.value - dense_trace(objective)) <= 4 * found.error + 1e-10


def test_what_has_no_layers_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="DoubleWell is no network"):
        hessian_trace(DoubleWell(), torch.zeros(2), method="signs")
    with pytest.raises(TypeError, match="DoubleWell is no network"):
        gauss_newton_trace(DoubleWell(), torch.zeros(2))


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()])
def test_a_diverged_network_has_no_trace(activation: nn.Module) -> None:
    objective = mlp(activation)
    w = torch.full_like(objective.weights, torch.nan)
    with pytest.warns(UserWarning, match="trace not converged: nan"):
        found = hessian_trace(objective, w)
    assert not found.converged and found.value != found.value


@pytest.mark.parametrize("method", ["auto", "signs", "hutchinson"])
def test_a_function_without_a_second_derivative_is_refused_not_left_out(method: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(OnceOnly.apply(self.first(x)))

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)
    loss = NetworkObjective(Network(), nn.CrossEntropyLoss(), data)
    with pytest.raises(ValueError, match="once_differentiable"):
        hessian_trace(loss, loss.weights, method=method)

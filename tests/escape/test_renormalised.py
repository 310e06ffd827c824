"""Growth by renormalisation: the exact exponent of linear steps, also where runs left to themselves are biased."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn, optim

from lab.curvature.stability import UpdateRule
from lab.escape.renormalised import exits, free_growth, free_lengths, renormalised_growth, root_loss
from lab.escape.replicas import MakeOptimizer, Replicas
from lab.escape.saddle import growth_factor
from lab.landscapes.quadratic import Quadratic
from lab.landscapes.saddle import Saddle
from lab.noise.example_curvature import example_curvature
from lab.noise.lyapunov import lyapunov
from lab.objective import NetworkObjective, Objective


def sgd(lr: float, momentum: float = 0.0) -> MakeOptimizer:
    return lambda w: optim.SGD(w, lr=lr, momentum=momentum)


def runs(
    loss: Objective, make: MakeOptimizer, origin: Tensor, *, replicas: int = 4, batch: int | None = None
) -> Replicas:
    generator = torch.Generator().manual_seed(0)
    kicks = 1e-12 * torch.randn(replicas, len(origin), generator=generator, dtype=torch.float64)
    return Replicas(loss, origin + kicks, make, batch_size=batch, generator=generator)


def fitted() -> tuple[NetworkObjective, Tensor]:
    """Least squares that fit every example: SGD on it is a product of random matrices, exactly."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(8, 1, bias=False).double()
    x = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    w = torch.randn(8, generator=generator, dtype=torch.float64)
    return NetworkObjective(model, lambda f, y: 0.5 * (f - y).square().sum(-1).mean(), (x, x @ w[:, None])), w


def norm(origin: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda W: (W - origin).norm(dim=1)


@pytest.mark.parametrize("lr", [0.45, 1.0])
def test_gradient_descent_beyond_the_edge_grows_by_log_of_lr_h_minus_1(lr: float) -> None:
    loss, origin = Quadratic(torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)), torch.zeros(3, dtype=torch.float64)
    found = renormalised_growth(runs(loss, sgd(lr), origin), origin, norm(origin))
    assert found.value == pytest.approx(math.log(5 * lr - 1), abs=1e-12)
    by_loss = renormalised_growth(runs(loss, sgd(lr), origin), origin, root_loss(loss, origin))
    assert by_loss.value == pytest.approx(math.log(5 * lr - 1), abs=1e-12)


def test_the_heavy_ball_is_scaled_with_its_momentum() -> None:
    loss, origin = Saddle(dimension=3, confinement=0.0), torch.zeros(3, dtype=torch.float64)
    found = renormalised_growth(runs(loss, sgd(0.02, 0.9), origin), origin, norm(origin), steps=600, burn_in=300)
    assert found.value == pytest.approx(math.log(growth_factor(-1.0, lr=0.02, momentum=0.9)), rel=1e-6)


@pytest.mark.parametrize(("share", "batch"), [(0.8, 1), (1.2, 2)])
def test_sgd_follows_the_lyapunov_exponent_of_its_random_product(share: float, batch: int) -> None:
    """Two independent estimates of one number: within 4 standard errors of their difference (false alarm 6e-5)."""
    loss, w = fitted()
    curvature = example_curvature(loss, w)
    lr = share * 2 / curvature.sharpness
    theory = lyapunov(
        curvature, UpdateRule(lr=lr), batch_size=batch, sampling="with_replacement", steps=800, replicas=100
    )
    moved = runs(loss, sgd(lr), w, replicas=100, batch=batch)
    found = renormalised_growth(moved, w, root_loss(loss, w), steps=400, burn_in=60)
    assert theory.value > 0.05
    assert abs(found.value - theory.value) < 4 * math.hypot(found.error, theory.error)


def test_a_stable_run_is_not_blown_up_along_flat_directions() -> None:
    """Scaling up what has decayed would scale the flat directions, too: here to 1e9 times where they were."""
    loss, w = fitted()
    lr = 0.3 / example_curvature(loss, w).sharpness
    moved = runs(loss, sgd(lr), w, batch=2)
    found = renormalised_growth(moved, w, root_loss(loss, w), steps=200)
    assert found.value < 0
    assert float((moved.W - w).abs().max()) < 1e-10


def test_how_often_it_is_scaled_does_not_matter() -> None:
    loss, w = fitted()
    lr = 2.4 / example_curvature(loss, w).sharpness
    found = [
        renormalised_growth(
            runs(loss, sgd(lr), w, batch=2), w, root_loss(loss, w), steps=90, burn_in=31, every=every
        ).value
        for every in (1, 4, 7)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_exits_and_growth_of_free_runs_on_exact_exponentials() -> None:
    steps = torch.arange(60, dtype=torch.float64)[:, None]
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    lengths = 1e-3 * (rates * steps).exp()
    assert exits(lengths, 0.1).tolist() == [math.ceil(math.log(100) / rate) for rate in rates.tolist()]
    own, common = free_growth(lengths, 0.1)
    assert own.value == pytest.approx(0.2)
    assert common.value == pytest.approx(0.2)
    assert own.error == pytest.approx(0.1 / math.sqrt(3))
    never, _ = free_growth(lengths, 1e9)
    assert math.isnan(never.value) and not never.converged
    assert exits(lengths, 1e9).tolist() == [-1, -1, -1]


def test_free_runs_stop_when_all_are_out_and_nan_is_out() -> None:
    loss, origin = Quadratic(torch.tensor([1.0], dtype=torch.float64)), torch.zeros(1, dtype=torch.float64)
    moved = runs(loss, sgd(3.0), origin)  # doubles at every step
    lengths = free_lengths(moved, norm(origin), steps=1000, until=1e-6)
    assert len(lengths) < 40
    assert bool((lengths[-1] > 1e-6).all())
    own, common = free_growth(lengths, 1e-6)
    assert own.value == pytest.approx(math.log(2), rel=1e-9)
    assert common.value == pytest.approx(math.log(2), rel=1e-9)
    assert exits(torch.tensor([[1.0], [math.nan]]), 10.0).tolist() == [1]


def test_root_loss_is_the_residual_over_root_n() -> None:
    loss, w = fitted()
    W = w + 0.01 * torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (W @ loss.x.T - loss.y[:, 0]).norm(dim=1) / math.sqrt(6)
    assert torch.allclose(root_loss(loss, w)(W), expected, rtol=1e-10)


def test_what_cannot_be_is_said() -> None:
    loss, origin = Quadratic(torch.tensor([1.0], dtype=torch.float64)), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="burn_in=5: expected 0 to 4"):
        renormalised_growth(runs(loss, sgd(3.0), origin), origin, norm(origin), steps=5, burn_in=5)
    with pytest.raises(ValueError, match="Adam is not homogeneous"):
        renormalised_growth(runs(loss, lambda w: optim.Adam(w), origin), origin, norm(origin))
    at = Replicas(loss, origin.expand(2, -1), sgd(3.0), generator=torch.Generator())
    assert math.isnan(renormalised_growth(at, origin, norm(origin), steps=20, burn_in=2).value)

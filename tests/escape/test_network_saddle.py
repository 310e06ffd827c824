"""Saddles as runs meet them: what the theory is told of them, and when runs have left."""

import math

import pytest
import torch
from torch import nn, optim

from lab.escape.network_saddle import NetworkSaddle, follow, left, mean_time
from lab.escape.replicas import Replicas
from lab.landscapes.saddle import Saddle
from lab.objective import NetworkObjective


def origin(hidden: int = 3) -> NetworkSaddle:
    """The origin of a 4-3-2 tanh network on centred targets, where the Hessian is minus E[y x'] between the layers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = torch.stack([x[:, 0] + 0.3 * x[:, 1], 0.5 * x[:, 2]], 1) + 0.1
    y = y - y.mean(0)
    model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2)).double()
    loss = NetworkObjective(model, lambda f, y: 0.5 * (f - y).square().sum(-1).mean(), (x, y))
    return NetworkSaddle.at(loss, torch.zeros(loss.num_params, dtype=torch.float64))


def test_the_origin_has_the_singular_values_of_the_covariance_once_a_neuron_and_no_noise() -> None:
    saddle = origin()
    loss = saddle.objective
    singular = torch.linalg.svdvals(loss.y.T @ loss.x / 40)
    assert torch.allclose(saddle.curvatures, -singular.repeat_interleave(3), atol=1e-12)
    assert float(saddle.variances.abs().max()) < 1e-28
    assert saddle.descent(lr=0.1, batch_size=2, modes=6).time(0.1).never
    assert not saddle.descent(lr=0.1, batch_size=2, isotropic=0.01, modes=6).time(0.1).never
    assert saddle.zero_modes == loss.num_params - 2 * 6 - 2  # W1 and W2 pair up, b2 curves upwards


def test_the_theory_is_told_the_variance_of_a_batch_by_definition() -> None:
    """u'Du / B from all example gradients, and isotropic noise added in squares."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    loss = NetworkObjective(  # a product of two weights, whose origin is a saddle unless w is shifted: noise comes from y
        Product(), lambda f, y: (0.5 * f.square() - y * f).mean(), (x[:, :1], x[:, 1:] - x[:, 1:].mean() + 0.5)
    )
    saddle = NetworkSaddle.at(loss, torch.zeros(2, dtype=torch.float64))
    u = saddle.directions[:, 0]
    along = loss.example_grads(saddle.w) @ u
    variance = float((along - along.mean()).square().mean())
    descent = saddle.descent(lr=0.1, batch_size=5, isotropic=0.2)
    assert float(descent.noise[0]) == pytest.approx(math.sqrt(variance / 5 + 0.04))  # type: ignore[index]
    fewer = saddle.descent(lr=0.1, batch_size=5, sampling="without_replacement", isotropic=0.2)
    assert float(fewer.noise[0]) == pytest.approx(math.sqrt(variance * 25 / (5 * 29) + 0.04))  # type: ignore[index]


class Product(nn.Module):
    """a b + (a + b) times a centred input: a saddle at 0 with noise."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w[0] * self.w[1] + 0 * x


def test_runs_are_followed_until_all_have_left_along_the_first_direction() -> None:
    loss, w = Saddle(dimension=3, negative=2, confinement=0.0), torch.zeros(3, dtype=torch.float64)
    start = torch.tensor([[1e-3, 0.0, 0.0], [1e-2, 5e-2, 0.0]], dtype=torch.float64)
    runs = Replicas(loss, start, lambda w: optim.SGD(w, lr=0.5), generator=torch.Generator())
    x = follow(runs, w, torch.eye(3, dtype=torch.float64)[:, :2], steps=100, radius=0.1)
    grow = 1.5 ** torch.arange(len(x), dtype=torch.float64)[:, None, None]
    assert torch.allclose(x, start[:, :2] * grow, rtol=1e-12)
    one = left(x[:, :, 0].abs(), 0.1)
    expected = [math.ceil(math.log(100) / math.log(1.5)), math.ceil(math.log(10) / math.log(1.5))]
    assert one.times.tolist() == expected
    assert len(x) == max(expected) + 1
    assert left(x.norm(dim=2), 0.1).times[1] == 2
    assert mean_time(one).value == sum(expected) / 2


def test_those_that_stay_are_censored_and_nan_is_an_exit_of_its_own() -> None:
    distance = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.1, math.nan], [9.0, 0.2, math.nan]])
    times = left(distance, 0.5)
    assert times.exited.tolist() == [True, False, False]
    assert times.failed.tolist() == [False, False, True]
    assert times.times.tolist() == [1.0, 2.0, 1.0]
    assert math.isnan(mean_time(times).value)


def test_what_is_no_saddle_is_refused() -> None:
    saddle = origin()
    with pytest.raises(ValueError, match="expected a critical point"):
        NetworkSaddle.at(saddle.objective, torch.full_like(saddle.w, 0.1))
    model = nn.Linear(2, 1).double()
    data = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    bowl = NetworkObjective(model, lambda f, y: 0.5 * (f - y).square().mean(), data)
    with pytest.raises(ValueError, match="no curvature is negative"):
        NetworkSaddle.at(bowl, torch.zeros(3, dtype=torch.float64))

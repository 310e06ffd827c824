"""Walkers that settle: against the optimiser of torch, the gradient of mini-batches, and stationary laws."""

import math

import pytest
import torch

from lab.noise.settling import Regression, additive, average, relaxation, settle
from lab.noise.stationary import averaging_factor, stationary_covariance
from lab.noise.tails import stable, stable_index, stable_width


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_settled_walkers_have_the_covariance_of_theory_and_so_have_their_means() -> None:
    H, lr, decay, draws = torch.diag(torch.tensor([2.0, 0.5]).double()), 0.5, 0.8, generator()
    C = torch.tensor([[1.0, 0.4], [0.4, 0.5]]).double()
    root = torch.linalg.cholesky(C)
    for momentum in (0.0, 0.6):
        found = settle(
            additive(H, lambda w: torch.empty_like(w).normal_(generator=draws) @ root.T),
            torch.full((2000, 2), 3.0).double(),  # forgotten
            lr=lr,
            relaxation=relaxation(H, lr=lr, momentum=momentum),
            looks=5,
            momentum=momentum,
            decay=decay,
        )
        truth = stationary_covariance(H, C, lr=lr, momentum=momentum)
        for i, j in ((0, 0), (0, 1), (1, 1)):
            c = found.product(i, j)
            assert abs(c.value - float(truth[i, j])) < 4 * c.error
            assert c.error == pytest.approx(  # that of 10000 independent Gaussian pairs
                math.sqrt(float(truth[i, i] * truth[j, j] + truth[i, j] ** 2) / 10_000), rel=0.1
            )
        if momentum == 0:
            for i, h in enumerate((2.0, 0.5)):
                c = average(found.mean[:, i] ** 2)
                assert abs(c.value - float(truth[i, i]) * averaging_factor(decay, 1 - lr * h)) < 4 * c.error


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_relaxation_is_how_fast_the_slowest_mode_is_forgotten(momentum: float) -> None:
    H, lr = torch.diag(torch.tensor([1.0, 0.1])), 0.3
    w, velocity, sizes = torch.ones(1, 2).double(), torch.zeros(1, 2).double(), []
    for _ in range(800):
        velocity = momentum * velocity + w @ H.double()
        w = w - lr * velocity
        sizes.append(float(torch.cat([w, lr * velocity], 1).norm()))
    seen = (math.log(sizes[199]) - math.log(sizes[799])) / 600
    assert 1 / relaxation(H, lr=lr, momentum=momentum) == pytest.approx(seen, rel=0.02)


def test_the_noisy_gradient_of_a_regression_is_that_of_its_mini_batches() -> None:
    x = torch.randn(6, 2, generator=generator(1), dtype=torch.float64)
    y = torch.randn(6, generator=generator(2), dtype=torch.float64)
    minimum = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    w = torch.randn(40_000, 2, generator=generator(3), dtype=torch.float64)[:1].expand(40_000, 2)
    seen = Regression(x, y, 2, 0.1).gradient(generator(4))(w)
    each = x * (x @ (w[0] + minimum) - y)[:, None]
    D = each.T @ each / 6 - each.mean(0).outer(each.mean(0))
    assert torch.allclose(seen.mean(0), each.mean(0), atol=4 * float((D.diagonal() / 2 / 40_000).sqrt().max()))
    assert torch.allclose(seen.T.cov(), D / 2, atol=0.03 * float(D.max()))


@pytest.mark.parametrize("alpha", [2.0, 1.5, 1.0, 0.7])
def test_stable_numbers_have_their_characteristic_function_index_and_width(alpha: float) -> None:
    x = stable(torch.zeros(100_000).double(), alpha, generator(5))
    for t in (0.5, 1.0, 2.0):
        assert float(torch.cos(t * x).mean()) == pytest.approx(math.exp(-(t**alpha)), abs=4 / math.sqrt(2 * len(x)))
    index = stable_index(x)
    assert abs(index.value - alpha) < 4 * index.error
    width = stable_width(3 * x, alpha)
    assert abs(width.value - 3) < 4 * width.error < 0.1


@pytest.mark.parametrize("alpha", [0.0, 2.1, math.nan])
def test_an_index_that_no_law_has_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < alpha <= 2"):
        stable(torch.zeros(3), alpha, generator())

"""Stationary covariances, escape and bounds: closed forms in one dimension, dense linear algebra, simulation."""

import math

import pytest
import torch
from torch import Tensor

from lab.noise.stationary import (
    averaging_factor,
    escape_loss,
    markov_bound,
    paley_zygmund_bound,
    regression_covariance,
    stationary_covariance,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(d: int, seed: int) -> Tensor:
    root = random(d, d, seed=seed)
    return root @ root.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def test_one_dimension_is_the_closed_form() -> None:
    assert float(stationary_covariance(one(2.0), one(3 / 5), lr=0.4)) == pytest.approx(0.1, abs=1e-12)


def test_heavy_ball_in_one_dimension_is_the_closed_form() -> None:
    h, c, lr, b = 2.0, 0.6, 0.4, 0.9
    closed = lr * c * (1 + b) / (h * (1 - b) * (2 * (1 + b) - lr * h))
    assert closed == pytest.approx(0.76, abs=1e-12)
    assert float(stationary_covariance(one(h), one(c), lr=lr, momentum=b)) == pytest.approx(closed, abs=1e-12)


def test_a_matrix_that_does_not_commute_solves_the_discrete_lyapunov_equation() -> None:
    H, C = positive(5, 1), positive(5, 2)
    assert float((H @ C - C @ H).abs().max()) > 0.1
    lr = 0.8 / float(torch.linalg.eigvalsh(H)[-1])
    S = stationary_covariance(H, C, lr=lr)
    step = torch.eye(5, dtype=torch.float64) - lr * H
    assert torch.allclose(S, step @ S @ step + lr**2 * C, atol=1e-12)
    h, U = torch.linalg.eigh(H)
    continuous = lr * (U.T @ C @ U) / (h[:, None] + h)  # of HS + SH = lr C, in the eigenbasis of H
    assert torch.allclose(continuous.diagonal(), (U.T @ S @ U).diagonal() * (1 - lr * h / 2), atol=1e-12)


def test_heavy_ball_of_a_matrix_is_what_the_doubled_recursion_settles_at() -> None:
    H, C, lr, b = positive(3, 3), positive(3, 4), 0.3, 0.8
    eye, zero = torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    M = torch.cat([torch.cat([(1 + b) * eye - lr * H, -b * eye], 1), torch.cat([eye, zero], 1)])
    both = torch.block_diag(lr**2 * C, zero)
    S = both
    for _ in range(12):  # doubling: 2^12 steps of the recursion
        S, M = S + M @ S @ M.T, M @ M
    assert torch.allclose(stationary_covariance(H, C, lr=lr, momentum=b), S[:3, :3], atol=1e-9)


def test_simulated_sgd_has_the_stationary_covariance() -> None:
    H, C = positive(3, 5), positive(3, 6)
    lr = 0.8 / float(torch.linalg.eigvalsh(H)[-1])
    truth = stationary_covariance(H, C, lr=lr)
    walkers, root = 20000, torch.linalg.cholesky(C)
    generator, w = torch.Generator().manual_seed(7), torch.zeros(20000, 3, dtype=torch.float64)
    for _ in range(150):  # the slowest mode has decayed to below 1e-6
        noise = torch.randn(walkers, 3, generator=generator, dtype=torch.float64) @ root.T
        w = w - lr * (w @ H + noise)
    off = (w.T @ w / walkers - truth).abs()
    # Var of an entry of a Wishart mean: (S_ii S_jj + S_ij^2)/n. Five standard errors for nine entries: 5e-6 false alarms.
    error = ((truth.diagonal()[:, None] * truth.diagonal() + truth**2) / walkers).sqrt()
    assert bool((off < 5 * error).all())


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
def test_minibatch_regression_settles_at_its_exact_covariance_and_not_at_that_of_additive_noise(sampling: str) -> None:
    N, d, B, lr = 30, 3, 2, 0.25
    x, y = random(N, d, seed=8), random(N, seed=9)
    truth = regression_covariance(x, y, lr=lr, batch_size=B, sampling=sampling)  # type: ignore[arg-type]
    minimum = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    walkers, generator = 5000, torch.Generator().manual_seed(10)
    w, moments = minimum.expand(walkers, d).clone(), []
    for step in range(160):
        if sampling == "with_replacement":
            index = torch.randint(N, (walkers, B), generator=generator)
        else:
            index = torch.rand(walkers, N, generator=generator).argsort(1)[:, :B]
        xb, residual = x[index], (x[index] * w[:, None]).sum(-1) - y[index]
        w = w - lr * (xb * residual[..., None]).mean(1)
        if step >= 60 and step % 20 == 19:
            moments.append((w - minimum).T @ (w - minimum) / walkers)
    means = torch.stack(moments)
    error = means.std(0) / math.sqrt(len(means))
    # The mean of five nearly independent samples of 5000; spread pooled over the entries, relative: 5 standard errors.
    relative = float((error / truth.diagonal().sqrt().outer(truth.diagonal().sqrt())).max())
    assert float((means.mean(0) - truth).norm() / truth.norm()) < 5 * relative
    H, residual = x.T @ x / N, x @ minimum - y
    D = (x * residual[:, None]).T @ (x * residual[:, None]) / N
    factor = 1 / B if sampling == "with_replacement" else (N - B) / (B * (N - 1))
    additive = stationary_covariance(H, factor * D, lr=lr)
    assert float((additive - truth).norm() / truth.norm()) > max(0.05, 5 * relative)


def test_minibatch_regression_is_the_enumeration_of_all_batches() -> None:
    N, d, B, lr = 5, 2, 2, 0.2
    x, y = random(N, d, seed=11), random(N, seed=12)
    S = regression_covariance(x, y, lr=lr, batch_size=B)
    minimum, after = torch.linalg.lstsq(x, y[:, None]).solution[:, 0], torch.zeros(d, d, dtype=torch.float64)
    for i in range(N):
        for j in range(N):
            xb, yb = x[[i, j]], y[[i, j]]
            step = torch.eye(d, dtype=torch.float64) - lr * xb.T @ xb / B
            kick = lr * xb.T @ (xb @ minimum - yb) / B
            after += (step @ S @ step + kick.outer(kick)) / N**2
    assert torch.allclose(after, S, atol=1e-12)


def test_the_full_batch_has_no_covariance() -> None:
    x, y = random(8, 2, seed=13), random(8, seed=14)
    assert float(regression_covariance(x, y, lr=0.1, batch_size=8, sampling="without_replacement").abs().max()) == 0


@pytest.mark.parametrize(("rho", "factor"), [(0.9, 0.32803), (0.0, 0.025641), (-0.9, 0.0020043)])
def test_running_means_shrink_the_variance_by_the_exact_factor(rho: float, factor: float) -> None:
    assert averaging_factor(0.95, rho) == pytest.approx(factor, rel=2e-5)  # five digits were given
    # The stationary state of (w, mean): Var(w) = 1, c = Cov(w, mean), m = Var(mean), by solving the moments' equations.
    k = 0.95
    c = (1 - k) / (1 - k * rho)
    m = ((1 - k) ** 2 + 2 * k * (1 - k) * rho * c) / (1 - k**2)
    assert averaging_factor(k, rho) == pytest.approx(m, abs=1e-12)


def test_escape_follows_the_trace_of_HS_and_not_the_trace_of_S() -> None:
    h = torch.tensor([10.0, 1.0, 0.1, 0.01], dtype=torch.float64)
    H, dt, walkers = torch.diag(h), 1e-3, 40000
    noises = {"aligned": h, "isotropic": h.mean().expand(4)}
    truths = {"aligned": 2.538, "isotropic": 0.9406}
    generator = torch.Generator().manual_seed(0)
    for name, S in noises.items():
        w = torch.zeros(walkers, 4, dtype=torch.float64)
        for _ in range(200):
            w = (1 - h * dt) * w + (S * dt).sqrt() * torch.randn(walkers, 4, generator=generator, dtype=torch.float64)
        losses = (w**2 * h).sum(1) / 2
        exact = escape_loss(H, torch.diag(S), 0.2)
        assert exact == pytest.approx(truths[name], rel=2e-4)
        assert float(losses.mean()) == pytest.approx(exact, rel=0.02)  # standard error .7 %, Euler's step .5 %
    ratio = float((h * h).sum() / (h * h.mean()).sum())
    assert ratio == pytest.approx(3.2734, abs=1e-4)
    short = 1e-7
    assert escape_loss(H, H, short) / escape_loss(H, torch.diag(noises["isotropic"]), short) == pytest.approx(
        ratio, rel=1e-5
    )


def test_a_saddle_is_left_downwards_and_flat_directions_cost_nothing() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    assert escape_loss(0 * eye, eye, 3.0) == 0
    assert escape_loss(-eye, eye, 1.0) == pytest.approx(2 * (1 - math.e**2) / 4, rel=1e-12)


def test_bounds_of_the_size_of_gaussian_noise_hold_and_its_mean_square_is_the_trace() -> None:
    D = positive(5, 15) * torch.linspace(1, 4, 5, dtype=torch.float64).outer(
        torch.linspace(1, 4, 5, dtype=torch.float64)
    )
    mean = torch.ones(5, dtype=torch.float64)
    v = torch.randn(200000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v = v @ torch.linalg.cholesky(D).T
    square, trace = v.square().sum(1), float(D.trace())
    error = math.sqrt(2 * float(D.square().sum()) / len(v))
    assert float(square.mean()) == pytest.approx(trace, abs=4 * error)
    moved = (v + mean).square().sum(1)
    assert float(moved.mean()) == pytest.approx(trace + 5, abs=4 * float(moved.std()) / math.sqrt(len(v)))
    half, twice = float((square > trace / 2).double().mean()), float((square > 2 * trace).double().mean())
    assert 0 < paley_zygmund_bound(0.5, D) < half
    assert 0 < twice < markov_bound(2.0) == 0.5


def test_the_lower_bound_is_that_of_the_fourth_moment() -> None:
    rank_one = torch.diag(torch.tensor([3.0, 0.0], dtype=torch.float64))
    assert paley_zygmund_bound(0.5, rank_one) == pytest.approx(0.25 / 3, abs=1e-12)
    assert paley_zygmund_bound(0.0, torch.eye(1000, dtype=torch.float64)) == pytest.approx(1 / 1.002, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: stationary_covariance(one(2.0), one(1.0), lr=1.0), "not below"),
        (lambda: stationary_covariance(one(2.0), one(1.0), lr=1.0, momentum=1.0), "momentum=1.0"),
        (lambda: stationary_covariance(one(0.0), one(1.0), lr=0.1), "spreads without end"),
        (lambda: stationary_covariance(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.eye(2), lr=0.1), "symmetric"),
        (lambda: stationary_covariance(torch.eye(2), torch.eye(3), lr=0.1), "the same"),
        (lambda: regression_covariance(random(9, 2), random(9), lr=5.0, batch_size=1), "smaller lr"),
        (lambda: regression_covariance(random(9, 2), random(9), lr=0.1, batch_size=3, sampling="epoch"), "epoch"),
        (lambda: regression_covariance(random(3, 5), random(3), lr=0.1, batch_size=1), "full rank"),
        (lambda: regression_covariance(random(9, 2), random(8), lr=0.1, batch_size=1), "expected"),
        (lambda: averaging_factor(1.0, 0.0), "decay=1.0"),
        (lambda: escape_loss(torch.eye(2), torch.eye(2), -1.0), "time=-1.0"),
        (lambda: markov_bound(0.0), "positive multiple"),
        (lambda: paley_zygmund_bound(1.5, torch.eye(2)), "multiple=1.5"),
    ],
)
def test_what_cannot_be_right_is_refused(call, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        call()

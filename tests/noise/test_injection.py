"""Covariances of the constructions, against dense matrices in float64.

The relative Frobenius error of a covariance estimated from K Gaussian draws is sqrt(((Tr C)^2/|C|^2 + 1)/K): with K = 40000
and effective ranks up to 9, 0.016 at most; the tolerance is 0.03.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.curvature.operators import LinearOperator, hessian
from lab.models.losses import CrossEntropyCriterion
from lab.noise import injection
from lab.objective import NetworkObjective

DOUBLE = torch.float64
N, M, K = 40, 5, 40_000
WEIGHTS = {
    "sample_weights": injection.sample_weights,
    "half_difference": injection.half_difference,
    "minibatch": injection.minibatch,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def objective() -> NetworkObjective:
    """A 4-6-3 tanh network on 40 examples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(N, 4, generator=generator(1), dtype=DOUBLE)
    y = torch.randint(3, (N,), generator=generator(2))
    return NetworkObjective(model, CrossEntropyCriterion(0.0), (x, y))


@pytest.fixture(scope="module")
def example_grads(objective: NetworkObjective) -> Tensor:
    return objective.example_grads(objective.weights)


@pytest.fixture(scope="module")
def noise_of_one(example_grads: Tensor) -> Tensor:
    """D (P, P)."""
    centred = example_grads - example_grads.mean(0)
    return centred.T @ centred / N


@pytest.fixture(scope="module")
def dense_hessian(objective: NetworkObjective) -> Tensor:
    return hessian(objective, objective.weights).dense()


def covariance(draws: Tensor) -> Tensor:
    """About zero, which is the mean that noise must have."""
    return draws.T @ draws / len(draws)


def off(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius distance."""
    return float((found - expected).norm() / expected.norm())


def absolute_root_of(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.abs().sqrt() @ vectors.T


def weights_of(weigh: Callable[[int, float, torch.Generator], Tensor], equivalent: float = M, num: int = K) -> Tensor:
    g = generator(3)
    return torch.stack([weigh(N, equivalent, g) for _ in range(num)])


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_batch_too_large_to_draw_is_a_smaller_one_scaled_to_the_same_covariance(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a has the covariance (1 - 11'/N)/(N m), of trace (N - 1)/(N m), whatever m. |a|^2 is known to
    # sqrt(2/(N - 1))/sqrt(1000) = 0.7 % where a is Gaussian; 4 % are more than 5 standard errors.
    drawn, randint = [], torch.randint

    def counted(high: int, size: tuple[int, ...], **settings: Any) -> Tensor:
        drawn.extend(size)
        return randint(high, size, **settings)

    monkeypatch.setattr(injection, "MOST_DRAWN", 100)
    monkeypatch.setattr(torch, "randint", counted)
    for m in (100.0, 1e4, 1e30):
        square = float(weights_of(WEIGHTS[name], m, 1000).square().sum(1).mean())
        assert square * N * m / (N - 1) == pytest.approx(1, rel=0.04)
    assert max(drawn, default=0) <= 100
    assert float(weights_of(WEIGHTS[name], math.inf, 1).abs().max()) == 0.0


@pytest.mark.parametrize("name", ["half_difference", "minibatch"])
def test_as_many_as_there_are_examples_are_always_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "MOST_DRAWN", 3)
    a = weights_of(WEIGHTS[name], N, 1)[0]
    counts = a * N * math.sqrt(2) if name == "half_difference" else a * N + 1
    assert float((counts - counts.round()).abs().max()) < 1e-9  # how often each was drawn, not scaled


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_on_the_examples_give_D_over_m(name: str, example_grads: Tensor, noise_of_one: Tensor) -> None:
    a = weights_of(WEIGHTS[name])
    assert float(a.sum(1).abs().max()) < 1e-12  # hence the mean gradient drops out
    draws = a @ example_grads
    assert off(covariance(draws), noise_of_one / M) < 0.03
    errors = draws.std(0) / math.sqrt(K)
    assert bool((draws.mean(0).abs() < 5 * errors).all())  # 51 entries at 5 standard errors: false alarm in 3e-5


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("equivalent", [0.3, 1.0, 2.6])
def test_the_covariance_of_the_weights_is_that_of_m_examples_also_for_parts_of_one(
    name: str, equivalent: float
) -> None:
    a = weights_of(WEIGHTS[name], equivalent, 10_000)
    expected = (torch.eye(N, dtype=DOUBLE) - 1 / N) / (N * equivalent)
    trace = float(a.square().sum(1).mean())
    error = float(a.square().sum(1).std()) / math.sqrt(len(a))
    assert abs(trace - float(expected.trace())) < 4 * error + 1e-12  # minibatches of one: the length is always the same
    assert off(covariance(a), expected) < 1.2 * math.sqrt((N + 1) / len(a))  # 1.2: the tails of small batches


def test_one_batch_added_to_the_gradient_is_the_gradient_of_that_batch(example_grads: Tensor) -> None:
    a = injection.minibatch(N, M, generator())
    counts = (a + 1 / N) * M
    assert torch.allclose(counts, counts.round(), atol=1e-12)
    assert int(counts.round().sum()) == M


def test_random_weights_are_gaussian_and_differences_of_single_examples_are_not() -> None:
    def kurtosis(a: Tensor) -> float:
        return float(a.pow(4).mean() / a.square().mean() ** 2)

    assert kurtosis(weights_of(injection.sample_weights, 1, 2000)) == pytest.approx(3, abs=0.1)
    assert kurtosis(weights_of(injection.half_difference, 1, 2000)) > 10


def test_signs_give_the_diagonal_of_D_and_nothing_beside_it(example_grads: Tensor, noise_of_one: Tensor) -> None:
    g = generator(4)
    few = K // 4
    draws = torch.stack([injection.signs(n, g) for n in weights_of(injection.sample_weights, M, few) @ example_grads])
    expected = noise_of_one.diag() / M
    found = covariance(draws)
    assert float((found.diag() - expected).norm() / expected.norm()) < 0.03
    # Off the diagonal every entry is 0 with variance E n_i^2 n_j^2 / draws; 1275 of them at 5 standard errors.
    errors = (draws.square().T @ draws.square() / few).sqrt() / math.sqrt(few)
    beside = found - found.diag().diag()
    assert bool((beside.abs() < 5 * errors).all())


def test_isotropic_noise_of_the_length_of_another_has_its_trace_and_no_direction(
    example_grads: Tensor, noise_of_one: Tensor
) -> None:
    g, size, few = generator(5), example_grads.shape[1], K // 4
    of_examples = weights_of(injection.sample_weights, M, few) @ example_grads
    draws = torch.stack([injection.isotropic(float(n.norm()), size, n, g) for n in of_examples])
    expected = torch.eye(size, dtype=DOUBLE) * noise_of_one.trace() / M / size
    squares = draws.square().sum(1)
    assert abs(float(squares.mean() - noise_of_one.trace() / M)) < 4 * float(squares.std()) / math.sqrt(few)
    kurtosis = float(
        squares.square().mean() / squares.mean() ** 2
    )  # lengths vary, directions do not help: wider errors
    assert off(covariance(draws), expected) < 1.2 * math.sqrt(kurtosis * (size + 1) / few)


def test_the_trace_of_one_example_is_exact(objective: NetworkObjective, noise_of_one: Tensor) -> None:
    assert injection.example_trace(objective, objective.weights) == pytest.approx(
        float(noise_of_one.trace()), rel=1e-10
    )


def test_the_root_of_the_hessian_gives_its_absolute_value_and_its_product_gives_its_square(
    objective: NetworkObjective, dense_hessian: Tensor
) -> None:
    operator, size = hessian(objective, objective.weights), len(dense_hessian)
    values, vectors = torch.linalg.eigh(dense_hessian)
    assert float(values.min()) < -1e-3  # |H| is another matrix than H
    absolute = vectors * values.abs() @ vectors.T
    roots = [
        injection.absolute_root(operator, e, tol=0, max_matvecs=size).vector for e in torch.eye(size, dtype=DOUBLE)
    ]
    z = torch.randn(K, size, generator=generator(6), dtype=DOUBLE)
    assert off(covariance(z @ torch.stack(roots)), absolute) < 0.03
    trap = covariance(z @ dense_hessian)
    assert off(trap, dense_hessian @ dense_hessian) < 0.03
    assert off(trap, absolute) > 0.3


def test_a_root_in_few_products_is_near_the_dense_one_and_says_how_near(
    objective: NetworkObjective, dense_hessian: Tensor
) -> None:
    operator, dense = hessian(objective, objective.weights), absolute_root_of(dense_hessian)
    for seed in range(5):
        z = torch.randn(len(dense), generator=generator(seed), dtype=DOUBLE)
        root = injection.absolute_root(operator, z, tol=0.05)
        assert root.change <= 0.05
        assert root.matvecs < len(dense)
        assert off(root.vector, dense @ z) < 0.1
        values, vectors = torch.linalg.eigh(dense_hessian)
        negative = float(((vectors.T @ z) ** 2 * (-values).clamp(min=0)).sum())
        assert root.negative == pytest.approx(negative, rel=0.2)


@pytest.mark.parametrize(
    "diagonal", [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [5.0, 0.0, -3.0], [1e-12, 0.0, 0.0], [1e12, -1.0, 0]]
)
def test_roots_of_repeated_zero_and_extreme_eigenvalues(diagonal: list[float]) -> None:
    d = torch.tensor(diagonal, dtype=DOUBLE)
    operator = LinearOperator(3, lambda v: d * v, dtype=DOUBLE, device=torch.device("cpu"))
    z = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    expected = d.abs().sqrt() * z
    round_off = 1e-7 * float(d.abs().max().sqrt())  # an eigenvalue 0 is found as 1e-16 of the largest, its root as 1e-8
    assert torch.allclose(injection.absolute_root(operator, z).vector, expected, rtol=1e-6, atol=round_off)


def test_a_product_that_is_not_finite_makes_the_root_nan() -> None:
    operator = LinearOperator(2, lambda v: v * math.inf, dtype=DOUBLE, device=torch.device("cpu"))
    root = injection.absolute_root(operator, torch.ones(2, dtype=DOUBLE))
    assert bool(root.vector.isnan().all())
    assert math.isnan(root.change)


@pytest.mark.parametrize("size", [150, 400])
def test_the_trace_of_the_absolute_value_is_known_where_the_trace_itself_is_negative(size: int) -> None:
    # The rule stops at a standard error of 2 %: four of them.
    values = torch.cat([torch.tensor([2.0, 1.0, -2.0], dtype=DOUBLE), torch.linspace(-1, 0.5, size - 3, dtype=DOUBLE)])
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator(3), dtype=DOUBLE))[0]
    A = (rotation * values) @ rotation.T
    operator = LinearOperator(size, lambda v: A @ v, dtype=DOUBLE, device=torch.device("cpu"))
    found = injection.absolute_trace(operator, float(values.sum()), generator(4))
    assert found == pytest.approx(float(values.abs().sum()), rel=0.08)

"""Minima of single batches against least squares, clusters against made ones, leaving out against fitting anew."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.landscapes.quadratic import Quadratic
from lab.noise.batch_minima import BatchLosses, conjugate_gradients, descend, draw_batches, leave_one_out, one_by_one
from lab.noise.clusters import cloud, clusters, silhouette
from lab.noise.stationary import regression_covariance
from lab.objective import NetworkObjective

SIZE, NOISE = 5, 0.5


def half_squared(outputs: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (outputs[:, 0] - y).square().mean()


def regression(num: int, seed: int = 0) -> NetworkObjective:
    """y = x'w + noise, Gaussian inputs, d = 5, sigma = .5."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, SIZE, generator=generator, dtype=torch.float64)
    w = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    y = x @ w + NOISE * torch.randn(num, generator=generator, dtype=torch.float64)
    return NetworkObjective(nn.Linear(SIZE, 1, bias=False).double(), half_squared, (x, y))


def network(batch_norm: bool = False) -> NetworkObjective:
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(6)] if batch_norm else []
    model = nn.Sequential(nn.Linear(4, 6), *norm, nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(40, 4, dtype=torch.float64)
    return NetworkObjective(model, nn.functional.cross_entropy, (x, torch.arange(40) % 3), batch_norm="train")


# --- descent ----------


def test_spread_of_minima_of_linear_regression() -> None:
    """20 000 batches of 20: Tr Var = d sigma^2/(B - d - 1) = .08929 to 1 %, not d sigma^2/B = .0625. The standard error of
    the trace is sqrt(2/(d R)) and a little for the spread of (X'X)^-1: .5 %. The exact minimiser is least squares."""
    loss, num, size = regression(20_000 * 20, seed=2), 20_000, 20
    x, y = loss.x.view(num, size, SIZE), loss.y.view(num, size, 1)
    exact = torch.linalg.solve(x.transpose(1, 2) @ x, x.transpose(1, 2) @ y)[..., 0]
    theory = SIZE * NOISE**2 / (size - SIZE - 1)
    assert cloud_spread(exact) == pytest.approx(theory, rel=0.01)
    few = torch.arange(300 * size).view(300, size)
    found = descend(BatchLosses(loss, few).value_and_grad, torch.zeros(300, SIZE).double(), steps=100, lr=0.1, tol=1e-9)
    torch.testing.assert_close(found.weights, exact[:300], rtol=0, atol=1e-7)
    assert float(found.gradient_left.max()) < 1e-7


def cloud_spread(points: Tensor) -> float:
    return float(points.var(0).sum())


def test_batches_smaller_than_the_weights_have_flats_of_minima_and_descent_finds_the_nearest_point() -> None:
    loss = regression(12)
    index, start = torch.arange(12).view(4, 3), torch.randn(SIZE, dtype=torch.float64)
    found = descend(BatchLosses(loss, index).value_and_grad, start.expand(4, -1), steps=200, lr=0.1)
    x, y = loss.x[index], loss.y[index]
    nearest = start + (torch.linalg.pinv(x) @ (y - x @ start)[..., None])[..., 0]
    torch.testing.assert_close(found.weights, nearest, rtol=0, atol=1e-9)


def test_losses_of_batches_are_those_of_the_restricted_objective() -> None:
    loss = network()
    index = torch.tensor([[0, 1, 2], [5, 5, 9]])
    W = loss.weights + 0.1 * torch.randn(2, loss.num_params, dtype=torch.float64)
    values, gradients = BatchLosses(loss, index).value_and_grad(W)
    torch.testing.assert_close(values, BatchLosses(loss, index).value(W))
    for i in range(2):
        value, gradient = loss.restrict(index[i]).value_and_grad(W[i])
        torch.testing.assert_close(values[i], value, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients[i], gradient, rtol=1e-10, atol=1e-14)


def test_descent_never_ends_above_its_start_and_does_not_mix_the_batches() -> None:
    loss = network()
    index = torch.arange(40).view(4, 10)
    start = loss.weights.expand(4, -1)
    before = BatchLosses(loss, index).value(start)
    # A first step that is far too long.
    together = descend(BatchLosses(loss, index).value_and_grad, start, steps=30, lr=50.0)
    assert bool((together.losses < before).all())
    torch.testing.assert_close(together.losses, BatchLosses(loss, index).value(together.weights))
    alone = descend(BatchLosses(loss, index[2:3]).value_and_grad, start[2:3], steps=30, lr=50.0)
    torch.testing.assert_close(alone.weights[0], together.weights[2], rtol=1e-6, atol=1e-8)


def test_all_examples_together_descend_to_least_squares() -> None:
    loss = regression(60)
    found = descend(partial(one_by_one, [loss]), torch.zeros(1, SIZE).double(), steps=100, lr=0.1)
    exact = torch.linalg.lstsq(loss.x, loss.y[:, None]).solution[:, 0]
    torch.testing.assert_close(found.weights[0], exact, rtol=0, atol=1e-10)


def test_sgd_between_two_batches_settles_at_the_minimum_of_all_not_at_the_mean_of_minima() -> None:
    """Curvatures 1 and 3, minima 0 and 1, lr .1: mean .75 (mean of minima .5), variance .0160714. 20 000 walkers."""
    x, y = torch.tensor([1.0, math.sqrt(3)]).double(), torch.tensor([0.0, math.sqrt(3)]).double()
    loss = NetworkObjective(nn.Linear(1, 1, bias=False).double(), half_squared, (x[:, None], y))
    index = torch.tensor([[0], [1]])
    minima = descend(
        BatchLosses(loss, index).value_and_grad, torch.full((2, 1), 0.3).double(), steps=50, lr=0.1
    ).weights[:, 0]
    torch.testing.assert_close(minima, torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-10)
    exact = float(regression_covariance(x[:, None], y, lr=0.1, batch_size=1))
    assert exact == pytest.approx(0.0160714, abs=5e-8)
    generator, w = torch.Generator().manual_seed(0), torch.full((20_000,), 0.75).double()
    for _ in range(150):
        i = torch.randint(2, w.shape, generator=generator)
        w = w - 0.1 * x[i] * (x[i] * w - y[i])
    assert abs(float(w.mean()) - 0.75) < 4 * math.sqrt(exact / len(w))
    assert float(w.var()) == pytest.approx(exact, rel=4 * math.sqrt(2 / len(w)))


def test_train_mode_batch_norm_is_refused_and_running_statistics_are_not() -> None:
    loss = network(batch_norm=True)
    with pytest.raises(ValueError, match="train-mode BatchNorm couples"):
        BatchLosses(loss, torch.tensor([[0, 1]]))
    assert loss.with_running_statistics().batch_norm == "eval"
    plain = network()
    assert plain.with_running_statistics() is plain


# --- batches ----------


def test_batches_of_an_epoch_are_disjoint_until_it_is_used_up() -> None:
    index = draw_batches(10, 3, 5, "epoch", torch.Generator().manual_seed(0))
    assert index.shape == (5, 3)
    assert len(set(index[:3].flatten().tolist())) == 9 and len(set(index[3:].flatten().tolist())) == 6


def test_other_samplings() -> None:
    generator = torch.Generator().manual_seed(0)
    without = draw_batches(10, 8, 6, "without_replacement", generator)
    assert all(len(set(row.tolist())) == 8 for row in without)
    assert draw_batches(2, 5, 6, "with_replacement", generator).shape == (6, 5)
    with pytest.raises(ValueError, match="a batch of 11 out of 10"):
        draw_batches(10, 11, 1, "epoch", generator)


# --- the cloud ----------


def test_components_are_those_of_the_covariance() -> None:
    points = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, covariance = cloud(points), torch.cov(points.T)
    values = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(found.variances[:4], values)
    assert float(found.variances[4:].max()) < 1e-12
    assert found.spread == pytest.approx(float(covariance.trace()))
    assert found.dimension == pytest.approx(float(values.sum() ** 2 / values.square().sum()))
    torch.testing.assert_close(found.project(points[3]), found.coordinates[3, :2])
    torch.testing.assert_close(found.project(points.mean(0)), torch.zeros(2).double(), rtol=0, atol=1e-12)


def test_silhouette_is_that_of_scikit_learn() -> None:
    points = np.random.default_rng(0).normal(size=(15, 3))
    labels = np.array([1] * 6 + [2] * 8 + [3])
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    assert silhouette(distances, labels) == pytest.approx(silhouette_score(points, labels), abs=1e-12)


@pytest.mark.parametrize("size", [2, 60])
def test_two_clouds_are_two_clusters_and_one_is_none(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(24, size, generator=generator, dtype=torch.float64)
    assert clusters(cloud(points), generator).count == 1
    points[10:, 0] += 15
    found = clusters(cloud(points), generator)
    assert found.count == 2 and found.silhouette > found.null
    assert len(set(found.labels[:10])) == len(set(found.labels[10:])) == 1


def test_two_points_far_off_are_no_cluster() -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(24, 2, generator=generator, dtype=torch.float64)
    points[:2, 0] += 40
    assert clusters(cloud(points), generator).count == 1


def test_few_points_or_one_place_have_no_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    for points in (torch.randn(5, 4), torch.ones(8, 4)):
        found = clusters(cloud(points), generator)
        assert found.count == 1 and math.isnan(found.silhouette)


# --- leaving out ----------


def test_leaving_one_out_of_linear_regression_is_exact() -> None:
    loss = regression(30)
    x, y = loss.x, loss.y
    w = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    inverse = torch.linalg.inv(x.T @ x)
    for i in (0, 7, 29):
        others = torch.arange(30) != i
        refitted = torch.linalg.lstsq(x[others], y[others, None]).solution[:, 0] - w
        formula = -inverse @ x[i] * (y[i] - x[i] @ w) / (1 - x[i] @ inverse @ x[i])
        found = leave_one_out(loss, w, i, tol=1e-13)
        torch.testing.assert_close(formula, refitted, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.vector, formula, rtol=0, atol=1e-10)
        assert found.residual < 1e-12 and found.matvecs <= 2 * SIZE


def test_one_example_cannot_be_left_out_of_one() -> None:
    loss = regression(1)
    with pytest.raises(ValueError, match="leaves none"):
        leave_one_out(loss, loss.weights, 0)


def test_conjugate_gradients_stop_where_they_are_told_and_where_there_is_no_curvature() -> None:
    h, b = torch.tensor([4.0, 1.0, 0.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    A = hessian(Quadratic(h), torch.zeros(3).double())
    exact = conjugate_gradients(A, b, tol=1e-14)
    torch.testing.assert_close(exact.vector, torch.tensor([0.25, 1.0, 0.0]).double())
    assert conjugate_gradients(A, b, max_matvecs=1).matvecs == 1
    damped = conjugate_gradients(A, torch.ones(3).double(), damping=0.5, tol=1e-14)
    torch.testing.assert_close(damped.vector, 1 / (h + 0.5))
    flat = conjugate_gradients(A, torch.tensor([0.0, 0.0, 1.0]).double())
    assert flat.residual == 1 and not flat.vector.any()
    assert not conjugate_gradients(A, torch.zeros(3).double()).vector.any()

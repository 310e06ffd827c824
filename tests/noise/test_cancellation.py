"""Noise far smaller than the gradient, |g|^2 up to 10^16 Tr D: differences of large equal numbers are right or own up.

The truth is dense: gradients of single examples in float64, less that of the first, in float64.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.noise.alignment import alignment, trace_with, variances
from lab.noise.covariance import covariance, eigenvalues
from lab.noise.injection import example_trace
from lab.noise.size import trace
from lab.objective import NetworkObjective
from lab.probes.base import Snapshot
from lab.probes.noise import Noise

DOUBLE = torch.float64


def alike(build: Callable[[], nn.Module], shape: tuple[int, ...], *, spread: float, num: int = 60) -> NetworkObjective:
    """`num` examples that differ by `spread`, all of one class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = build(), torch.randn(1, *shape) + spread * torch.randn(num, *shape)
    return NetworkObjective(model, nn.functional.cross_entropy, (x, torch.zeros(num, dtype=torch.long)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3))


def convolutions() -> nn.Module:
    head = nn.Linear(4 * 16, 3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.Flatten(), head)


class Scaled(nn.Module):
    """A parameter of no known layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.rand(10) + 0.5), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.scale * x).tanh())


class Single(nn.Module):
    """A model that refuses float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(10, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).tanh() @ torch.eye(20))


KINDS = {"mlp": (mlp, (10,)), "convolutions": (convolutions, (2, 8, 8)), "own parameter": (Scaled, (10,))}


def dense(loss: NetworkObjective) -> Tensor:
    """g_i - g in float64, formed from differences."""
    G = loss.example_grads(loss.weights.double())
    G = G - G[0]
    return G - G.mean(0)


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_in_float32_is_that_of_float64_by_parameter_too(kind: str, spread: float) -> None:
    build, shape = KINDS[kind]
    loss = alike(build, shape, spread=spread)
    C, found = dense(loss), trace(loss, loss.weights)
    truth = float(C.square().sum(1).mean())
    assert found.value == pytest.approx(truth, rel=1e-3)
    assert found.round_off < 1e-2 * truth
    assert found.error == pytest.approx(float(C.square().sum(1).std()) / 60**0.5, rel=0.5)
    assert found.gradient.dtype == torch.float32
    for name, place in loss.layout.slices().items():
        assert found.by_parameter[name] == pytest.approx(float(C[:, place].square().sum(1).mean()), rel=1e-3), name
    assert example_trace(loss, loss.weights) == found.value


def test_one_parameter_that_cancels_is_enough() -> None:
    # The bias sees f - y, 1000 and a little; the weights see it times inputs of either sign.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    loss = NetworkObjective(nn.Linear(4, 1), nn.MSELoss(), (x, torch.full((50, 1), 1000.0)))
    C, found = dense(loss), trace(loss, loss.weights)
    assert found.method == "float64"
    for name, place in loss.layout.slices().items():
        assert found.by_parameter[name] == pytest.approx(float(C[:, place].square().sum(1).mean()), rel=1e-3)


@pytest.mark.parametrize("spread", [1e-7, 1e-9, 1e-12])
def test_beyond_what_squares_in_float64_can_tell_differences_are_formed(spread: float) -> None:
    loss = alike(lambda: mlp().double(), (10,), spread=0)
    noise = torch.randn(60, 10, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    loss = NetworkObjective(loss.model, loss.criterion, (loss.x.double() + spread * noise, loss.y))
    found, truth = trace(loss, loss.weights), float(dense(loss).square().sum(1).mean())
    assert found.method == "centred"
    assert abs(found.value - truth) <= 1e-6 * truth + found.round_off
    assert found.round_off < 0.05 * truth


def test_equal_examples_and_one_example_have_no_noise() -> None:
    loss = alike(mlp, (10,), spread=0)
    for few in (loss, loss.restrict(torch.tensor([0]))):
        found = trace(few, few.weights)
        assert 0 <= found.value <= found.round_off < 1e-12 * found.mean_square
        assert min(found.by_parameter.values()) >= 0
    assert math.isnan(trace(few, few.weights).error)


@pytest.mark.parametrize("spread", [1e-4, 1e-6, 0])
def test_a_model_that_refuses_float64_gets_an_error_that_covers(spread: float) -> None:
    loss = alike(Single, (10,), spread=spread)
    with pytest.raises(RuntimeError):
        loss.value(loss.weights.double())
    found, top = trace(loss, loss.weights), eigenvalues(loss, loss.weights, 1)
    twin = nn.Sequential(loss.model.first, nn.Tanh(), loss.model.head)
    truth = float(dense(NetworkObjective(twin, loss.criterion, (loss.x, loss.y))).square().sum(1).mean())
    assert found.method == "centred, float32" and found.value >= 0
    assert abs(found.value - truth) <= found.round_off <= found.error
    assert abs(top.trace - truth) <= top.round_off
    assert found.round_off < max(0.05 * truth, 1e-10)


@pytest.mark.parametrize("limit", [4096, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_the_spectrum_is_that_of_float64(kind: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.noise.covariance.GRAM_EXAMPLES", limit)  # from the Gram matrix, and by Lanczos
    build, shape = KINDS[kind]
    loss = alike(build, shape, spread=1e-4)
    C, found = dense(loss), eigenvalues(loss, loss.weights, 2, tol=1e-4)
    values = torch.linalg.eigvalsh(C @ C.T / len(C)).flip(0)
    assert found.trace == pytest.approx(float(values.sum()), rel=1e-3) and found.round_off < 1e-3 * found.trace
    assert found.squares == pytest.approx(float(values.square().sum()), rel=2e-3)
    assert found.pairs.vectors.dtype == torch.float32
    torch.testing.assert_close(found.pairs.values[:2], values[:2], rtol=1e-3, atol=0)
    along = (C @ found.pairs.vectors.double()).square().mean(0)
    torch.testing.assert_close(variances(loss, loss.weights, found.pairs.vectors), along, rtol=1e-3, atol=0)


def test_the_noise_seen_by_the_curvature_is_that_of_float64() -> None:
    loss = alike(mlp, (10,), spread=1e-4)
    w, C = loss.weights, dense(loss)
    H = hessian(loss, w.double()).dense()
    operator, D = hessian(loss, w), C.T @ C / len(C)
    found = trace_with(operator, loss, w, max_matvecs=500)
    assert abs(found.value - float((H @ D).trace())) < 4 * found.error <= 0.2 * abs(found.value)
    cosine = alignment(operator, covariance(loss, w), max_matvecs=500).cosine
    assert abs(cosine.value - float((H @ D).trace() / (H.norm() * D.norm()))) < 4 * cosine.error


def test_the_probe_says_no_more_than_is_known() -> None:
    loss = alike(mlp, (10,), spread=1e-4)
    found = Noise(hessian=False).measure(Snapshot(0, loss.weights, lambda examples: loss))
    C = dense(loss)
    assert found["noise/trace"] == pytest.approx(float(C.square().sum(1).mean()), rel=1e-3)
    assert float(found["error/noise/trace"]) < 0.5 * float(found["noise/trace"])
    assert found["noise/scale"] == pytest.approx(found["noise/trace"] / found["noise/grad_norm"] ** 2, rel=1e-3)
    equal = alike(mlp, (10,), spread=0)
    assert Noise(hessian=False).measure(Snapshot(0, equal.weights, lambda examples: equal))["noise/trace"] == 0

"""Probes on networks whose outputs are not (N, K), and what the Fisher probe says of several labels an example."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.operators import gauss_newton
from lab.curvature.stability import UpdateRule
from lab.curvature.trace import gauss_newton_trace
from lab.layers.anatomy import take_apart
from lab.noise.covariance import covariance
from lab.noise.information import sampled_fisher, true_fisher
from lab.noise.likelihood import likelihood_of
from lab.objective import NetworkObjective
from lab.probes.base import Probe, Snapshot
from lab.probes.batch_landscape import BatchLandscape
from lab.probes.batch_sharpness import BatchSharpness
from lab.probes.critical_point import CriticalPoint
from lab.probes.fisher import Fisher
from lab.probes.fisher_matrices import label_variance
from lab.probes.linear_stability import LinearStability
from lab.probes.noise import Noise
from lab.probes.spectrum import Spectrum

N, T = 24, 3


class Squeeze(nn.Module):
    """(N, 1) to (N,), of a single example to () where `all_axes`."""

    def __init__(self, all_axes: bool = False):
        super().__init__()
        self.all_axes = all_axes

    def forward(self, f: Tensor) -> Tensor:
        return f.squeeze() if self.all_axes else f.squeeze(-1)


def tokens(f: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(f.flatten(0, -2), y.flatten())


CASES: dict[str, tuple[int, nn.Module, Callable[[Tensor, Tensor], Tensor]]] = {
    "(N,) BCE": (1, Squeeze(), nn.BCEWithLogitsLoss()),
    "(N,) MSE": (1, Squeeze(), nn.MSELoss()),
    "(N,) BCE, all axes squeezed": (1, Squeeze(all_axes=True), nn.BCEWithLogitsLoss()),
    "multi-label BCE": (3, nn.Identity(), nn.BCEWithLogitsLoss()),
    "(N, T, K) tokens": (3, nn.Identity(), tokens),
    "(N T, K) tokens": (3, nn.Flatten(0, 1), tokens),
}


def objective(name: str) -> NetworkObjective:
    torch.manual_seed(0)
    last, shape, criterion = CASES[name]
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, last), shape).double()
    x = torch.randn(N, *([T] if "tokens" in name else []), 4, dtype=torch.float64)
    y = (x[..., 0] > 0).long() + (x[..., 1] > 0.5) if "tokens" in name else x[:, 0].sign().clamp(min=0)
    if name.startswith("multi"):
        y = (x[:, :3] > 0).double()
    return NetworkObjective(net, criterion, (x, y))


def measured(probe: Probe, loss: NetworkObjective) -> dict[str, float]:
    found = probe.measure(Snapshot(0, loss.weights, lambda _: loss, UpdateRule(lr=0.1), batch_size=6))
    return {tag: value for tag, value in found.items() if isinstance(value, float)}


@pytest.mark.parametrize(
    "probe",
    [
        Spectrum(k=2, bottom=1, steps=8, vectors=2, split=True, layers=True),
        Noise(draws=20),
        BatchSharpness(),
        Fisher(vectors=5, k=1),
        LinearStability(),
        CriticalPoint(),
        BatchLandscape(),
    ],
    ids=lambda probe: probe.name,
)
@pytest.mark.parametrize("name", ["(N,) BCE, all axes squeezed", "(N T, K) tokens"])
def test_probes_measure_networks_of_any_outputs_and_say_the_same_of_the_same_network(name: str, probe: Probe) -> None:
    """The twin puts out (N, 1), or the tokens of an example in a dimension of their own."""
    found, twin = measured(copy.deepcopy(probe), objective(name)), objective(name)
    same = nn.Sequential(*list(twin.model)[:3])  # type: ignore[call-overload]
    criterion = tokens if "tokens" in name else lambda f, y: functional.binary_cross_entropy_with_logits(f[:, 0], y)
    expected = measured(copy.deepcopy(probe), NetworkObjective(same, criterion, (twin.x, twin.y)))
    assert found.keys() == expected.keys()
    for tag, value in expected.items():
        if not tag.startswith(("cost/", "error/")) and math.isfinite(value):
            assert found[tag] == pytest.approx(value, rel=1e-4, abs=1e-6), tag


@pytest.mark.parametrize("name", CASES)
def test_the_fisher_probe_parts_the_unit_of_gradients_from_that_of_the_loss_by_its_scale(name: str) -> None:
    loss = objective(name)
    found, w = measured(Fisher(vectors=200, k=1), loss), loss.weights  # all P vectors: exact
    c, G = found["fisher/scale"], gauss_newton(loss, w).dense()
    assert c == pytest.approx({"mult": 1 / 3, "(N, ": 1 / T, "(N T": 1 / T}.get(name[:4], 1.0))
    assert found["fisher/trace_true"] == pytest.approx(c * float(G.trace()), rel=1e-9)
    assert found["fisher/trace_gauss_newton"] == pytest.approx(float(G.trace()), rel=1e-9)
    assert found["fisher/norm_true"] == pytest.approx(c * float(G.norm()), rel=1e-9)
    assert found["fisher/distance_gauss_newton"] < 1e-7
    empirical, F = covariance(loss, w, centred=False).dense(), c * G
    assert found["fisher/distance_empirical"] == pytest.approx(float((empirical - F).norm() / F.norm()), rel=1e-8)
    assert found["fisher/trace_empirical"] == pytest.approx(float(empirical.trace()), rel=1e-9)
    assert found["fisher/cosine_true_gauss_newton"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ["multi-label BCE", "(N, T, K) tokens", "(N,) BCE"])
def test_the_error_of_the_sampled_trace_of_several_labels_is_its_scatter(name: str) -> None:
    """200 sets of labels: their scatter is known to 5 %, the stated error of ten draws an example to 7 % of its own."""
    loss, generator = objective(name), torch.Generator().manual_seed(3)
    w, likelihood = loss.weights, likelihood_of(objective(name), objective(name).weights)
    traces = [sampled_fisher(loss, w, generator=generator).trace(w).value for _ in range(200)]
    (chunk,) = take_apart(loss, w).chunks(w)
    stated = float(label_variance(chunk, likelihood, generator).sum().sqrt()) / N
    assert 0.8 < stated / float(torch.tensor(traces).std()) < 1.3


def test_fisher_and_its_trace_work_where_gradients_are_off() -> None:
    loss = objective("(N, T, K) tokens")
    w = loss.weights
    expected = true_fisher(loss, w).trace(w).value, gauss_newton_trace(loss, w).value
    with torch.no_grad():
        F = true_fisher(loss, w)
        v = F @ torch.ones_like(w)
        assert F.trace(w).value == pytest.approx(expected[0], rel=1e-12)
        assert gauss_newton_trace(loss, w).value == pytest.approx(expected[1], rel=1e-12)
        assert sampled_fisher(loss, w, generator=torch.Generator().manual_seed(0)).trace(w).value > 0
    torch.testing.assert_close(v, true_fisher(loss, w) @ torch.ones_like(w))

"""The trace of the spectrum: the best there is, an error that covers, and `converged` only where it is within 1 %."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lab.curvature.operators import LinearOperator, gauss_newton, hessian
from lab.curvature.trace import gauss_newton_trace, trace
from lab.landscapes.quadratic import Quadratic
from lab.noise.information import sampled_fisher, true_fisher
from lab.objective import NetworkObjective
from lab.probes.base import Snapshot
from lab.probes.spectrum import Spectrum, spectrum
from lab.probes.spectrum_blocks import TRACE_TOL
from lab.results import Eigenpairs

DOUBLE = torch.float64


class Recurrent(nn.Module):
    """vmap cannot take it, and it is no row of layers."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int):
        super().__init__()
        self.cell, self.head = kind(3, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Functional(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(12, 3)), nn.Parameter(torch.randn(2, 12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.mean(1) @ self.a.T) @ self.b.T


class Tied(nn.Module):
    """One layer, used at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, 0]
        for t in range(1, x.shape[1]):
            h = x[:, t] + torch.tanh(self.layer(h))
        return self.head(h)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM, 3),
    "gru": lambda: Recurrent(nn.GRU, 3),
    "rnn": lambda: Recurrent(nn.RNN, 12),
    "functional": Functional,
    "tied": Tied,
    "layers": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 2)),
    "piecewise linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)),
}


def objective(name: str) -> NetworkObjective:
    torch.manual_seed(0)
    net = NETWORKS[name]().double()
    return NetworkObjective(net, nn.CrossEntropyLoss(), (torch.randn(30, 4, 3, dtype=DOUBLE), torch.randint(2, (30,))))


@pytest.mark.parametrize("name", NETWORKS)
def test_trace_is_within_its_error_and_converged_means_within_one_percent(name: str) -> None:
    """Three seeds; 4 errors raise a false alarm in 6e-5. The density alone is off by 20 % and more of these."""
    loss = objective(name)
    truth = float(hessian(loss, loss.weights).dense().trace())
    for seed in range(3):
        found = spectrum(loss, k=3, bottom=3, steps=20, seed=seed)
        assert abs(found.trace.value - truth) <= 4 * found.trace.error + 1e-9 * abs(truth), (found.trace, truth)
        assert found.trace.converged == (found.trace.error <= TRACE_TOL * abs(found.trace.value))
        assert found.trace.error <= found.density.trace.error
        assert found.numbers()["trace_converged"] == float(found.trace.converged)
        if len(loss.weights) <= 200:  # all P products are allowed
            assert found.trace.converged, found.trace


@pytest.mark.parametrize("parameters", ["cell.weight_hh*", "head.*", "cell.bias*"])
def test_trace_in_chosen_parameters_is_that_of_their_block(parameters: str) -> None:
    loss = objective("lstm")
    index = loss.layout.select(parameters)
    truth = float(hessian(loss, loss.weights).dense()[index][:, index].trace())
    found = spectrum(loss, k=1, bottom=1, steps=5, vectors=2, parameters=parameters)
    assert found.trace.converged
    assert abs(found.trace.value - truth) <= 4 * found.trace.error + 1e-9


@pytest.mark.parametrize(
    "values",
    [torch.linspace(-1, 2, 700), torch.arange(1, 701) ** -1.0, torch.cat([torch.full((40,), 9.0), torch.zeros(660)])],
)
def test_a_landscape_too_large_for_its_diagonal_says_whether_its_trace_converged(values: Tensor) -> None:
    found = spectrum(Quadratic(values.double()), torch.zeros(700, dtype=DOUBLE), k=2, bottom=1, steps=10)
    truth = float(values.double().sum())
    assert abs(found.trace.value - truth) <= 4 * found.trace.error + 1e-9
    assert found.trace.converged == (found.trace.error <= TRACE_TOL * abs(found.trace.value))


def test_the_products_reported_are_those_spent() -> None:
    loss = objective("lstm")
    here = Snapshot(0, loss.weights, lambda _: loss)
    found = spectrum(here, k=2, bottom=1, steps=5, vectors=2)
    assert found.trace.method in ("diagonal", "xtrace", "hutchinson")
    (H,) = here.shared
    assert found.matvecs == H.matvecs + 1


def test_known_eigenpairs_leave_the_rest_to_be_sampled() -> None:
    """Ten pairs known of a spectrum that decays: the error is that of the rest, five times smaller and more."""
    values = 10 * 0.7 ** torch.arange(300, dtype=DOUBLE)
    basis = torch.linalg.qr(torch.randn(300, 300, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))).Q
    matrix, nothing = basis @ values.diag() @ basis.T, torch.zeros(10, dtype=DOUBLE)
    known = Eigenpairs(values[:10], basis[:, :10], nothing, nothing, 0, True)
    operator = LinearOperator(300, lambda v: matrix @ v, dtype=DOUBLE, device=matrix.device)
    truth, errors = float(values.sum()), []
    for method in ("hutchinson", "xtrace", "hutch++", "auto"):
        for pairs in (None, known):
            with pytest.warns(UserWarning, match="not converged"):
                found = trace(operator, method=method, tol=1e-12, max_matvecs=18, known=pairs)  # type: ignore[arg-type]
            assert abs(found.value - truth) <= 4 * found.error, (method, pairs)
            errors.append(found.error)
        assert errors[-1] < errors[-2] / 5, method


@pytest.mark.parametrize("name", ["lstm", "functional", "tied", "layers"])
def test_traces_of_metrics_are_exact_for_networks_that_cannot_be_taken_apart(name: str) -> None:
    loss = objective(name)
    w = loss.weights
    G = gauss_newton(loss, w).dense()
    assert gauss_newton_trace(loss, w).value == pytest.approx(float(G.trace()), rel=1e-10)
    assert true_fisher(loss, w).trace(w).value == pytest.approx(float(G.trace()), rel=1e-10)
    S = sampled_fisher(loss, w, generator=torch.Generator().manual_seed(0), draws=2)
    assert S.trace(w).value == pytest.approx(float(S.dense().trace()), rel=1e-10)


def test_a_split_spectrum_of_a_recurrent_network_adds_up_within_its_errors() -> None:
    loss = objective("gru")
    probe = Spectrum(k=2, bottom=1, steps=8, vectors=2, split=True, layers=True)
    tags = probe.measure(Snapshot(0, loss.weights, lambda _: loss, None))
    numbers = {name.removeprefix("spectrum/"): value for name, value in tags.items() if isinstance(value, float)}
    G = float(gauss_newton(loss, loss.weights).dense().trace())
    assert abs(numbers["gauss_newton/trace"] - G) <= 4 * numbers["error/spectrum/gauss_newton/trace"] + 1e-9
    assert math.isfinite(numbers["residual/trace"])

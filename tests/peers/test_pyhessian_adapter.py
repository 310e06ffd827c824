"""PyHessian behind the lab's door: its numbers are right to its own accuracy, and nothing of the caller's is touched."""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.curvature.pyhessian import PyHessian
from lab.landscapes.double_well import DoubleWell
from lab.objective import NetworkObjective
from lab.probes import Snapshot
from lab.probes.spectrum import Spectrum


def objective(**settings: Any) -> NetworkObjective:
    """A small convolutional network with BatchNorm, 116 weights, on 50 examples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
        data = torch.randn(50, 1, 6, 6), torch.randint(4, (50,))
        return NetworkObjective(nn.Sequential(*layers), nn.CrossEntropyLoss(), data, **settings)


LOSSES: dict[str, Callable[[], NetworkObjective]] = {
    "running statistics": objective,
    "batch statistics": lambda: objective(batch_norm="train"),
    "ghost batches, ragged": lambda: objective(batch_norm="train", chunk_size=20),
    "uneven chunks": lambda: objective(chunk_size=20),
}


QUICK = {("running statistics", torch.float32), ("batch statistics", torch.float64)}
QUICK |= {("ghost batches, ragged", torch.float32), ("uneven chunks", torch.float64)}
"""Every loss in one precision, every precision with two losses; the rest is as dear and takes longer."""


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=() if (kind, dtype) in QUICK else pytest.mark.slow)
        for kind in LOSSES
        for dtype in (torch.float32, torch.float64)
    ],
    ids=str,
)
def test_its_numbers_are_those_of_the_dense_hessian_of_the_objective(kind: str, dtype: torch.dtype) -> None:
    loss = LOSSES[kind]()
    w = loss.weights.to(dtype)
    dense = hessian(loss, w.double()).dense()
    truth = torch.linalg.eigvalsh(dense)
    largest = truth[truth.abs().argsort(descending=True)]
    peer = PyHessian(loss, w)
    found = peer.top(2, tol=1e-7, max_matvecs=4000)
    # Its rule leaves tol / (1 - rate) with the rate (lambda_2/lambda_1)^2 < 0.999 here: 1e-4.
    assert found.values.tolist() == pytest.approx(largest[:2].tolist(), rel=1e-4)
    nearest = (found.values[:, None] - truth).abs().min(1).values
    assert bool((nearest <= found.residuals + 1e-6).all()), "an eigenvalue lies within the residual"
    assert found.residuals.max() < 0.1 * abs(found.values[0])
    rayleigh = torch.einsum("pk,pq,qk->k", found.vectors.double(), dense, found.vectors.double())
    assert rayleigh.tolist() == pytest.approx(found.values.tolist(), rel=1e-3)
    # It stops as soon as the running mean is negative, after two or three draws: then there is nothing to compare. Else
    # four standard errors of 300 draws, false alarm 6e-5.
    whole = peer.trace(tol=1e-9, max_matvecs=300)
    assert not whole.converged
    assert whole.matvecs == 300 or whole.value < 0
    assert whole.matvecs < 300 or abs(whole.value - float(truth.sum())) < 4 * whole.error
    phi = peer.density(steps=40, vectors=4)
    assert phi.nodes.shape == phi.weights.shape == (4, 40)
    assert phi.weights.sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert float(torch.trapezoid(phi.values, phi.grid)) == pytest.approx(1.0, abs=1e-5)
    assert float(phi.nodes.max()) == pytest.approx(float(truth[-1]), rel=1e-3)
    # The mean of the nodes is z'Hz/z'z: Tr H / P in expectation, spread over four vectors as their own variance says.
    means = (phi.nodes * phi.weights).sum(1)
    assert abs(float(means.mean()) - float(truth.mean())) < 6 * float(means.std()) / 2


@pytest.mark.parametrize("kind", LOSSES)
def test_nothing_of_the_caller_is_touched(kind: str) -> None:
    loss = LOSSES[kind]()
    for parameter in loss.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    loss.model[1].eval()
    state = copy.deepcopy(loss.model.state_dict())
    modes = [module.training for module in loss.model.modules()]
    source = importlib.import_module("pyhessian.hessian")
    theirs = dict(vars(source)), dict(vars(source.hessian))
    random, dtype, enabled = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    peer = PyHessian(loss, loss.weights.double() + 0.1)
    peer.top(), peer.trace(max_matvecs=5), peer.density(steps=5, vectors=1)
    assert all(bool((parameter.grad == 1).all()) for parameter in loss.model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in loss.model.state_dict().items())
    assert [module.training for module in loss.model.modules()] == modes
    assert (dict(vars(source)), dict(vars(source.hessian))) == theirs
    assert torch.equal(torch.get_rng_state(), random)
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (dtype, enabled)


def test_an_error_on_the_way_leaves_everything_in_order_too() -> None:
    loss = objective()
    loss.criterion = lambda outputs, y: outputs.sum().detach().requires_grad_()
    source = importlib.import_module("pyhessian.hessian")
    theirs, random = dict(vars(source)), torch.get_rng_state()
    with pytest.raises(ValueError):
        PyHessian(loss, loss.weights.double()).density(steps=3, vectors=1)
    assert dict(vars(source)) == theirs
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_default_dtype() == torch.float32


def test_the_same_again_and_beside_another_instance_is_the_same() -> None:
    # Bare, a second instance returns twice the eigenvalue unless somebody clears the gradients.
    loss = objective()
    first = PyHessian(loss, loss.weights).top()
    peer = PyHessian(loss, loss.weights)
    assert torch.equal(peer.top().values, first.values)
    again = PyHessian(loss, loss.weights, generator=torch.Generator().manual_seed(7)).top(tol=1e-7, max_matvecs=2000)
    assert not torch.equal(again.values, first.values), "another generator, another start"
    assert float(again.values) == pytest.approx(float(first.values), rel=0.05)


@pytest.mark.parametrize("kind", ["running statistics", "uneven chunks"])
def test_products_are_counted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, calls, differentiate = LOSSES[kind](), 0, torch.autograd.grad

    def counted(*arguments: Any, **settings: Any) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        return differentiate(*arguments, **settings)

    peer = PyHessian(loss, loss.weights)
    loss.chunk_size(loss.weights)  # measured once, by differentiating twice
    monkeypatch.setattr(torch.autograd, "grad", counted)
    chunks = 3 if kind == "uneven chunks" else 1
    draws, phi = peer.trace(tol=1e-12, max_matvecs=9), peer.density(steps=7, vectors=2)
    assert (draws.matvecs, phi.matvecs, calls) == (9, 14, 23 * chunks)
    calls = 0
    top = peer.top(2, tol=1e-12, max_matvecs=12)
    # Two directions of 6 iterations, and a residual each, for which the lab differentiates twice.
    assert (top.matvecs, top.converged, calls) == (14, False, (12 + 2 * 2) * chunks)
    assert peer.matvecs == 9 + 14 + 14


def test_a_loss_it_cannot_take_is_refused() -> None:
    class Idle(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.idle = nn.Parameter(torch.ones(2))

    loss = NetworkObjective(Idle(), nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.arange(6) % 2))
    with pytest.raises(ValueError, match="does not depend on"):
        PyHessian(loss, loss.weights).top()
    with pytest.raises(TypeError, match="DoubleWell is none"):
        PyHessian(DoubleWell(), torch.zeros(2))
    with pytest.raises(ValueError, match="at least 6 products"):
        PyHessian(objective(), objective().weights).top(3, max_matvecs=5)


def test_the_probe_shows_both_numbers() -> None:
    loss = objective()
    snapshot = Snapshot(0, loss.weights, lambda examples: loss)
    settings = {"k": 1, "bottom": 1, "tol": 1e-3, "steps": 40, "vectors": 4}
    ours, theirs = (Spectrum(engine=engine, **settings).measure(snapshot) for engine in ("lab", "pyhessian"))
    top, peer = ours["spectrum/lambda_1"], theirs["spectrum/lambda_1"]
    assert top != peer
    assert peer == pytest.approx(top, rel=0.05)
    assert {"spectrum/trace", "spectrum/density", "spectrum/nodes"} <= theirs.keys()

"""Curvature: Hessians, spectra and traces of small problems whose truth is known."""

from collections.abc import Iterator

import torch
from torch import nn

from lab.curvature.density import density
from lab.curvature.eigen import lanczos
from lab.curvature.operators import gauss_newton, hessian
from lab.curvature.pyhessian import PyHessian
from lab.curvature.trace import hessian_trace
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic
from lab.models.losses import CrossEntropy
from lab.objective import NetworkObjective
from lab.selfcheck.rows import ROUND_OFF, Row, normal, row_by_row, small_network
from lab.streams import stream


def hessian_of_linear_regression() -> Iterator[Row]:
    """L = mean of 1/2 |w'x - y|^2 has H = X'X/N, whether the graph of the gradient is kept or rebuilt."""
    x, y = normal("regression", 37, 5), torch.zeros(37, 1).double()
    loss = NetworkObjective(
        nn.Linear(5, 1, bias=False), lambda f, y: 0.5 * (f - y).square().sum(1).mean(), (x, y), chunk_size=8
    )
    w = normal("regression weights", 5)
    for memory, how in ((2**40, "graph kept"), (0, "graph rebuilt")):
        error = (hessian(loss, w, memory=memory).dense() - x.T @ x / len(x)).abs().max()
        yield Row(f"Hessian of linear regression - X'X/N, {how}", 0.0, float(error), ROUND_OFF)


def hessian_of_a_network() -> Iterator[Row]:
    """Hessian products of a tanh network against double backward, row by row, through plain autograd."""
    loss = small_network()
    w = loss.weights.double()
    truth = row_by_row(loss, w)
    yield Row(
        "Hessian of a tanh network - row by row", 0.0, float((hessian(loss, w).dense() - truth).abs().max()), ROUND_OFF
    )
    eigenvalues, ends = torch.linalg.eigvalsh(truth), lanczos(hessian(loss, w), top=2, bottom=1, tol=1e-6)
    yield Row("lambda_2 of it", float(eigenvalues[-2]), float(ends.top.values[1]), 1e-5 * float(eigenvalues[-1]))
    yield Row("lambda_min of it", float(eigenvalues[0]), float(ends.bottom.values[0]), 1e-5 * float(eigenvalues[-1]))


def double_well_saddle() -> Iterator[Row]:
    """(x^2 - 1)^2/4 + y^2/2 has eigenvalues (1, -1) at the origin and (2, 1) in its wells."""
    for place, top, bottom in (((0.0, 0.0), 1.0, -1.0), ((1.0, 0.0), 2.0, 1.0)):
        ends = lanczos(hessian(DoubleWell(), torch.tensor(place).double()), bottom=1)
        yield Row(f"double well at {place}: lambda_max", top, float(ends.top.values[0]), ROUND_OFF)
        yield Row(f"double well at {place}: lambda_min", bottom, float(ends.bottom.values[0]), ROUND_OFF)


def gauss_newton_matrix() -> Iterator[Row]:
    """G = H for outputs that are linear in the weights, and G >= 0 where H has negative eigenvalues."""
    x, y = normal("gauss-newton", 30, 4), torch.arange(30) % 3
    model = NetworkObjective(nn.Linear(4, 3, bias=False), CrossEntropy().build(3), (x, y))
    w = normal("gauss-newton weights", model.num_params)
    difference = gauss_newton(model, w).dense() - hessian(model, w).dense()
    yield Row("Gauss-Newton - Hessian of a linear softmax model", 0.0, float(difference.abs().max()), ROUND_OFF)
    loss = small_network()
    least = float(torch.linalg.eigvalsh(gauss_newton(loss, loss.weights.double()).dense())[0])
    yield Row("Gauss-Newton of a tanh network: lambda_min >= 0", 0.0, min(0.0, least), ROUND_OFF)


def clustered_spectrum() -> Iterator[Row]:
    """The top of a spectrum with three eigenvalues within 1 %, in few products, never below it by more than tol."""
    h = torch.cat([torch.tensor([10.0, 9.95, 9.9]), torch.linspace(-3, 5, 1000)]).double()
    top = lanczos(hessian(Quadratic(h), torch.zeros_like(h)), tol=1e-3, generator=stream(0, "selfcheck")).top
    yield Row("Lanczos, clustered top: lambda_max", 10.0, float(top.values[0]), 0.01)
    yield Row("Lanczos, clustered top: converged", 1.0, float(top.converged), 0.0)


def traces() -> Iterator[Row]:
    """Tr H of a network, from draws and from the spectral density, within four of their own standard errors."""
    loss = small_network()
    w = loss.weights.double()
    truth = row_by_row(loss, w)
    estimate = hessian_trace(loss, w, method="signs", tol=0.02, generator=stream(0, "trace"))
    yield Row("Tr H of a tanh network, by random signs", float(truth.trace()), estimate.value, 4 * estimate.error)
    phi = density(hessian(loss, w), steps=10, vectors=200, generator=stream(0, "density"))
    yield Row("Tr H from the spectral density", float(truth.trace()), phi.trace.value, 4 * phi.trace.error)
    square, P = phi.moment(2), len(w)
    expected = float(truth.square().sum())
    yield Row("Tr H^2 from the spectral density", expected, P * square.value, 4 * P * square.error)


def peer() -> Iterator[Row]:
    """PyHessian's power iteration at a tight tolerance, through its adapter."""
    loss = small_network()
    top = float(torch.linalg.eigvalsh(row_by_row(loss, loss.weights.double()))[-1])
    theirs = PyHessian(loss, loss.weights.double()).top(tol=1e-6, max_matvecs=2000)
    yield Row("lambda_max by PyHessian, to 1 %", top, float(theirs.values[0]), 0.01 * top)

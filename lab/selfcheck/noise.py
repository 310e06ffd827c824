"""The noise of mini-batch gradients: its covariance by enumeration, the Fisher matrix, linear stability."""

import itertools
from collections.abc import Iterator

import torch

from lab.curvature.operators import gauss_newton
from lab.noise.covariance import covariance, eigenvalues
from lab.noise.example_curvature import ExampleCurvature
from lab.noise.information import true_fisher
from lab.noise.second_moments import mean_square_lr
from lab.noise.size import trace
from lab.sampling import Sampling, batch_factor
from lab.selfcheck.rows import ROUND_OFF, Row, small_network


def lemma_one() -> Iterator[Row]:
    """The covariance of the gradients of all batches of 3 out of 6 examples against D, operator and factor."""
    loss = small_network().restrict(torch.arange(6))
    w = loss.weights.double()
    D, grads = covariance(loss, w).dense(), loss.example_grads(w)
    ways: dict[Sampling, Iterator[tuple[int, ...]]] = {
        "with_replacement": itertools.product(range(6), repeat=3),
        "without_replacement": itertools.combinations(range(6), 3),
    }
    for sampling, batches in ways.items():
        means = torch.stack([grads[list(batch)].mean(0) for batch in batches])
        centred = means - grads.mean(0)
        error = (centred.T @ centred / len(means) - batch_factor(6, 3, sampling) * D).abs().max()
        yield Row(f"covariance of all batches - D {sampling.replace('_', ' ')}", 0.0, float(error), ROUND_OFF)


def traces_of_the_noise() -> Iterator[Row]:
    """Tr D and its largest eigenvalue from the records of the layers against the matrix of per-example gradients."""
    loss = small_network()
    w = loss.weights.double()
    grads = loss.example_grads(w)
    centred = grads - grads.mean(0)
    D = centred.T @ centred / len(grads)
    yield Row("Tr D of a tanh network", float(D.trace()), trace(loss, w).value, ROUND_OFF)
    top = float(torch.linalg.eigvalsh(D)[-1])
    yield Row("lambda_max of D, by the Gram matrix", top, float(eigenvalues(loss, w, 1).values[0]), ROUND_OFF)


def fisher() -> Iterator[Row]:
    """With labels of the model itself the mean of g g' is the Gauss-Newton matrix."""
    loss = small_network()
    w = loss.weights.double()
    error = (true_fisher(loss, w).dense() - gauss_newton(loss, w).dense()).abs().max()
    yield Row("true Fisher - Gauss-Newton of a tanh network", 0.0, float(error), ROUND_OFF)


def linear_stability() -> Iterator[Row]:
    """Curvatures 0, .5, 1, 1.5, 7: SGD is stable in mean square below 2a/(a^2 + k s^2), k = (N - B)/(B (N - 1))."""
    h = torch.tensor([0, 0.5, 1, 1.5, 7]).double()
    a, square = float(h.mean()), float(h.var(correction=0))
    for batch_size in (1, 4):
        factor = batch_factor(len(h), batch_size, "without_replacement")
        largest = mean_square_lr(ExampleCurvature(h.sqrt()[:, None, None]), factor=factor, tol=1e-8)
        expected = 2 * a / (a * a + factor * square)
        yield Row(f"largest stable learning rate, batches of {batch_size}", expected, largest.value, 1e-6)

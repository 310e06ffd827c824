"""The variance of the gradient noise along a direction against the curvature there: D = slope * H, as far as it holds.

    squared error     slope 2L/K, K outputs: errors a of the same size in each output, independent of the Jacobian J, give
                      D = mean J'a a'J - gg' = (mean |a|^2 / K) mean J'J near a minimum, and H = mean J'J where a is small
    log likelihood    slope c for a well-specified model at its best weights, where the loss of an example is c (-log p): the
                      information equality, Var(score) = -E H of log p; c = 1 for one label an example, 1/T for the mean over
                      T tokens (`lab.noise.likelihood`)

Neither is exact for a network. Both are what a measured slope is held against.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.layers.examples import ExampleGradients
from lab.noise.likelihood import likelihood_of
from lab.objective import NetworkObjective, Objective

DEFINITE = 1e-6
"""Relative deviation up to which d2 loss/df2 counts as a multiple of the identity."""


@dataclass(frozen=True)
class Along:
    """What the noise is along directions u: variance u'Du (k,) float64 and its standard error over the examples.

    slope of the variance against the curvature, least squares through the origin, with its standard error.
    """

    variance: Tensor
    error: Tensor
    slope: float
    slope_error: float


def along(examples: ExampleGradients, vectors: Tensor, curvature: Tensor, *, fitted: int) -> Along:
    """u'Du of unit vectors (P, k), and their slope against `curvature` (k,), the values u'Hu of the same vectors.

    slope = sum lambda u'Du / sum lambda^2 over those of positive curvature among the first `fitted`; NaN without one. Errors
    are standard errors of means over the examples, so that of the slope takes account of what the directions share. Cost:
    a third of a gradient for each vector.
    """
    projected = examples.along(vectors)
    squares = (projected - projected.mean(0)).square()
    root = math.sqrt(len(squares))
    top = curvature.to(squares).clamp(min=0) * (torch.arange(len(curvature), device=squares.device) < fitted)
    slopes = squares @ (top / top.square().sum())
    return Along(squares.mean(0), squares.std(0) / root, float(slopes.mean()), float(slopes.std() / root))


def expected_slope(objective: Objective, w: Tensor, *, generator: torch.Generator | None = None) -> float:
    """2L/K where the loss is a squared error of K outputs (any multiple of |f - y|^2), c where it is another log-likelihood
    c (-log p) of the labels, else NaN.

    A loss is a squared error where d2 loss_i/df2 is the same multiple c of the identity for every example, as one random
    product tells; the slope is then mean |d loss_i/df|^2 / (K c). Cost: one forward pass.
    """
    if not isinstance(objective, NetworkObjective):
        return math.nan
    generator = generator or torch.Generator().manual_seed(0)
    square, multiples, K = 0.0, list[float](), 1
    for weight, outputs, criterion in objective.composition(w.detach()):
        f, n = outputs.detach().double().requires_grad_(), round(weight * len(objective.x))
        K = f.numel() // n
        s = torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f.device)
        with torch.enable_grad():
            (a,) = torch.autograd.grad(criterion(f), f, create_graph=True)
        if not a.requires_grad:
            return math.nan
        (product,) = torch.autograd.grad(a, f, n * s)
        c = float((product * s).sum() / s.square().sum())
        if not bool(((product - c * s).abs() <= DEFINITE * abs(c) * s.abs() + 1e-300).all()):
            return _likelihood_scale(objective, w)
        square += weight * n * float(a.detach().square().sum())
        multiples.append(c)
    c = min(multiples)
    if not c > 0 or max(multiples) - c > DEFINITE * c:
        return math.nan
    return square / (K * c)


def _likelihood_scale(objective: NetworkObjective, w: Tensor) -> float:
    try:
        return likelihood_of(objective, w).scale
    except ValueError:
        return math.nan

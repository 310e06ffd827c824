"""The central flow: where gradient descent at the edge of stability goes, averaged over its oscillation (Cohen et al. 2025).

    dw/dt = -h (grad L + sigma^2/2 grad S),   S = lambda_max of the Hessian, t in steps of h = `lr`
    sigma^2 = <-grad L, grad S> / (|grad S|^2 / 2)   where S = 2/h and this is positive;   0 elsewhere

The oscillation along the top eigenvector has variance sigma^2, and by the third derivative of L pushes against sharpness
exactly as much as the gradient pulls towards it: the component of the gradient along grad S is projected out, and S stays at
2/h. One eigenvalue at the edge at a time; below the edge it is gradient flow.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.operators import hessian
from lab.objective import Objective

CLOSE = 1e-10
"""Relative distance of S from 2/h that counts as none."""
NEWTON = 20
TWIN = 1e-6
"""Relative gap of the two largest eigenvalues below which the sharpness has no gradient."""


@dataclass(frozen=True)
class TopCurvature:
    """S = lambda_max at w, its gradient (P,), and that of the loss (P,)."""

    value: float
    slope: Tensor
    gradient: Tensor

    @property
    def variance(self) -> float:
        """sigma^2 = <-grad L, grad S>/(|grad S|^2/2): the oscillation that holds S, if positive; else S falls by itself."""
        return float(-2 * (self.gradient @ self.slope) / (self.slope @ self.slope))


@dataclass(frozen=True)
class CentralFlow:
    """Along the flow after 0, 1 ... steps: w (steps + 1, P), sharpness and variance of the oscillation (steps + 1,)."""

    w: Tensor
    sharpness: Tensor
    variance: Tensor


def sharpness(objective: Objective, w: Tensor) -> TopCurvature:
    """S, grad S = u'(grad H)u with the top eigenvector u, and grad L at w (P,).

    Cost: a dense Hessian (P products and an eigendecomposition), for P up to a thousand. Raises ValueError where the two
    largest eigenvalues are equal: S has no gradient there.
    """
    H = hessian(objective, w)
    values, vectors = torch.linalg.eigh(H.dense())
    if len(values) > 1 and values[-1] - values[-2] <= TWIN * values.abs().max():
        raise ValueError(f"the two largest eigenvalues are both {float(values[-1]):.6g}: the sharpness has no gradient")
    u = vectors[:, -1]
    return TopCurvature(float(values[-1]), objective.third(w, u, u), objective.grad(w))


def central_flow(objective: Objective, w: Tensor, lr: float, steps: int, *, substeps: int = 1) -> CentralFlow:
    """The flow from w (P,) for a time of `steps` steps of `lr`.

    Each of the substeps is one of Runge and Kutta along -grad L, then projected on S = 2/lr along grad S where it has gone
    beyond: the error is of fourth order in 1/substeps below the edge, of first order along it, where S itself is exact.
    Raises ValueError for a start beyond the edge, where gradient descent does not follow any flow.
    """
    edge, time = 2 / lr, lr / substeps
    here = sharpness(objective, w)
    if here.value > edge * (1 + CLOSE):
        raise ValueError(f"the start has sharpness {here.value:.4g}, beyond 2/lr = {edge:.4g}: no flow describes it")
    path, levels, variances = [w], [here.value], [_variance(here, edge)]
    for _ in range(steps):
        for _ in range(substeps):
            w, here = _onto(objective, _runge_kutta(objective, w, time), edge)
        path.append(w)
        levels.append(here.value)
        variances.append(_variance(here, edge))
    return CentralFlow(torch.stack(path), torch.tensor(levels), torch.tensor(variances))


def gradient_flow(objective: Objective, w: Tensor, lr: float, steps: int, *, substeps: int = 1) -> Tensor:
    """Path (steps + 1, P) of dw/dt = -lr grad L, by the same Runge-Kutta substeps."""
    return _path(w, steps * substeps, lambda w: _runge_kutta(objective, w, lr / substeps))[::substeps]


def gradient_descent(objective: Objective, w: Tensor, lr: float, steps: int) -> Tensor:
    """Path (steps + 1, P) of w <- w - lr grad L."""
    return _path(w, steps, lambda w: w - lr * objective.grad(w))


def _path(w: Tensor, steps: int, step: Callable[[Tensor], Tensor]) -> Tensor:
    """w and where each of the steps leads: (steps + 1, P)."""
    path = [w]
    for _ in range(steps):
        path.append(step(path[-1]))
    return torch.stack(path)


def _variance(here: TopCurvature, edge: float) -> float:
    return max(0.0, here.variance) if here.value >= edge * (1 - 1e-6) else 0.0


def _onto(objective: Objective, w: Tensor, edge: float) -> tuple[Tensor, TopCurvature]:
    """w, moved along grad S to S = edge where it is beyond, by Newton's method."""
    here = sharpness(objective, w)
    for _ in range(NEWTON):
        if here.value <= edge * (1 + CLOSE):
            return w, here
        w = w - (here.value - edge) / (here.slope @ here.slope) * here.slope
        here = sharpness(objective, w)
    raise ValueError(f"no point with sharpness {edge:.4g} found along its gradient (reached {here.value:.4g})")


def _runge_kutta(objective: Objective, w: Tensor, time: float) -> Tensor:
    """Four-stage Runge-Kutta for dw/dt = -grad L."""
    a = objective.grad(w)
    b = objective.grad(w - time / 2 * a)
    c = objective.grad(w - time / 2 * b)
    d = objective.grad(w - time * c)
    return w - time / 6 * (a + 2 * b + 2 * c + d)


def average_amplitude(decay: float) -> float:
    """Amplitude of an exponential moving average of +-1, +-1 ...: m <- decay m + (1 - decay) x has (1 - decay)/(1 + decay).

    >>> average_amplitude(0.95) < 0.026
    True
    """
    if not 0 <= decay < 1 or not math.isfinite(decay):
        raise ValueError(f"decay={decay}: expected from 0 to below 1")
    return (1 - decay) / (1 + decay)

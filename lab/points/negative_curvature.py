"""Leaving a saddle along its most negative eigenvector, without waiting for noise.

    H u = lambda u, |u| = 1, lambda = lambda_min < 0, sign u = -sign(g'u)
    L(w + s u) - L(w) = -s |g'u| - s^2 |lambda| / 2 + s^3 c_3 / 6 + s^4 c_4 / 24 + ...

The first two terms are the prediction; at the saddle itself g = 0 and either sign is as good. It holds for steps short
beside 3 |lambda| / |c_3| and sqrt(12 |lambda| / |c_4|), where the third and fourth derivatives along u have used up the
descent: on (1 - ab)^2/2 from the origin c_3 = 0, c_4 = 3, and the best step is sqrt(2), which is the minimum itself. The
eigenvector is one Lanczos run (some ten Hessian products, not the Hessian). Goldfarb (Mathematical Programming 18, 1980);
Curtis and Robinson 2019 (arXiv 1703.00412).
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.curvature.vectors import dot, norm
from lab.objective import Objective

FIRST = 0.1
"""Length with which a line search begins, where none is given: in the unit of the weights."""
TRIALS = 60
"""Lengths tried at most: from `FIRST` down to less than round-off, or up beyond any weights."""
PROBE_LENGTH = 1e-3
"""Distance at which u'Hu is taken for third and fourth derivatives, relative to |w| or 1: error about its square."""


@dataclass(frozen=True)
class WayDown:
    """The most negative curvature at a point, and the way down along it.

    direction (P,) the unit eigenvector, signed so that slope = g'u <= 0; curvature its eigenvalue (an upper bound of
    lambda_min), error that of it; value L(w); grad_norm |g|; matvecs products spent, the gradient counted as one.
    """

    direction: Tensor
    curvature: float
    error: float
    slope: float
    value: float
    grad_norm: float
    matvecs: int
    converged: bool

    def drop(self, length: float) -> float:
        """L(w) - L(w + length u) to second order: length |g'u| + length^2 |lambda| / 2 for a negative curvature."""
        return -length * self.slope - 0.5 * length**2 * self.curvature


@dataclass(frozen=True)
class Limits:
    """Third and fourth derivatives along u, and the steps at which each alone has used up the descent; inf where it never
    does: cubic 3 |lambda|/|c_3|, quartic sqrt(12 |lambda|/c_4) for c_4 > 0.
    """

    third: float
    fourth: float
    cubic: float
    quartic: float


def way_down(
    objective: Objective,
    w: Tensor,
    *,
    start: Tensor | None = None,
    tol: float = 0.01,
    max_matvecs: int = 100,
    generator: Generator | None = None,
) -> WayDown:
    """The most negative curvature of `objective` at w (P,), by Lanczos.

    start  (P, 1) a direction from a nearby point: few products, and blind to one that has come up elsewhere.
    tol    wanted error of the eigenvalue relative to the largest |eigenvalue|. Not converged is a warning of `lanczos`; what
           is found is a direction of negative curvature all the same.
    Cost: 1 gradient, 5 to 40 products.

    >>> from lab.landscapes.factorisation import Factorisation
    >>> down = way_down(Factorisation(), torch.zeros(2, dtype=torch.float64))
    >>> round(down.curvature, 9), round(down.drop(0.3), 9)
    (-1.0, 0.045)
    """
    H = hessian(objective, w)
    ends = lanczos(H, top=0, bottom=1, start=start, tol=tol, max_matvecs=max_matvecs, generator=generator).bottom
    u = ends.vectors[:, 0]
    slope = float(dot(u[None], H.gradient))
    if slope > 0:
        u, slope = -u, -slope
    return WayDown(
        u,
        float(ends.values[0]),
        float(ends.errors[0]),
        slope,
        float(H.value),
        norm(H.gradient),
        1 + ends.matvecs,
        ends.converged,
    )


def line_search(objective: Objective, w: Tensor, down: WayDown, *, first: float = FIRST) -> tuple[float, float, int]:
    """(length, L(w) - L(w + length u), losses computed) of the best among first, doubled or halved again and again.

    Halved until the loss falls; from there doubled as long as it falls further. (0, 0, n) where no length lowers it. In
    float32 the drop is told only where it is more than 1e-7 of the loss.
    """

    def drop(length: float) -> float:
        after = float(objective.value(w + length * down.direction))
        return down.value - after if math.isfinite(after) else -math.inf

    length, best, losses = first, drop(first), 1
    while best <= 0 and losses < TRIALS:
        length, losses = length / 2, losses + 1
        best = drop(length)
    if best <= 0:
        return 0.0, 0.0, losses
    while losses < 2 * TRIALS:
        further, losses = drop(2 * length), losses + 1
        if further <= best:
            break
        length, best = 2 * length, further
    return length, best, losses


def limits(objective: Objective, w: Tensor, down: WayDown) -> Limits:
    """Third and fourth derivatives of L along u at w, by differences of u'Hu; give w in float64. Cost: three products."""
    u, h = down.direction, PROBE_LENGTH * max(1.0, norm(w))

    def curvature(s: float) -> float:
        return float(dot(u[None], objective.hvp(w + s * u, u)))

    below, here, above = curvature(-h), curvature(0.0), curvature(h)
    third, fourth = (above - below) / (2 * h), (above - 2 * here + below) / h**2
    noise = torch.finfo(w.dtype).eps * (abs(here) + abs(above) + abs(below))
    third = 0.0 if abs(third) <= noise / h else third
    fourth = 0.0 if abs(fourth) <= 4 * noise / h**2 else fourth
    size = abs(min(here, 0.0))
    return Limits(
        third,
        fourth,
        3 * size / abs(third) if third else math.inf,
        math.sqrt(12 * size / fourth) if fourth > 0 else math.inf,
    )

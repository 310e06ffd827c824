"""The Gibbs distribution exp(-L/T)/Z of a landscape in one or two variables, by quadrature: the truth for every sampler.

Composite Gauss-Legendre rules, eight points a panel; the panels shrink by halves towards given points, so that masses
concentrated on a valley or a crossing of width 1e-5 are resolved as well as broad ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lab.landscapes.base import Landscape

NODES = 8
FINEST = 1e-6
"""The smallest panel, relative to the range."""


@dataclass(frozen=True)
class Gibbs:
    """Points (n, P), their shares of the mass (n,), which sum to 1, and log Z of the integral over the box."""

    points: Tensor
    shares: Tensor
    log_z: float

    def mean(self, f: Callable[[Tensor], Tensor]) -> float:
        """The expectation of f, which maps points (n, P) to (n,)."""
        return float((self.shares * f(self.points)).sum())

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """`num` independent points (num, P): nodes of the quadrature by their shares, whose means are those of Gibbs."""
        chosen = torch.rand(num, dtype=torch.float64, generator=generator, device=generator.device).cpu()
        nodes = torch.searchsorted(self.shares.cumsum(0), chosen).clamp_(max=len(self.shares) - 1)
        return self.points[nodes].to(generator.device)


def gibbs(
    landscape: Landscape,
    temperature: float,
    low: Sequence[float],
    high: Sequence[float],
    *,
    at: Sequence[Sequence[float]] = (),
    cuts: Sequence[Sequence[float]] = (),
    panels: int = 16,
) -> Gibbs:
    """exp(-L/temperature) on the box from `low` to `high`, which must be short sequences of P = 1 or 2 numbers.

    at        for each variable the places where exp(-L/T) is narrow: the panels shrink towards them.
    cuts      for each variable the places where panels begin: the edges of indicator functions, which are exact then.
    panels    equal panels beside these, at least.
    Error: that of 8-point Gauss rules, far below 1e-6 where L/T is smooth in each panel; float64. Raises ValueError for
    another number of variables or a temperature that is not positive.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> law = gibbs(Quadratic((4.0,)), 0.5, [-5], [5])
    >>> round(law.mean(lambda x: x[:, 0] ** 2), 9)
    0.125
    """
    if not temperature > 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature={temperature}: expected a positive number")
    size = landscape.num_params
    at, cuts = at or [()] * size, cuts or [()] * size
    if size not in (1, 2) or not size == len(low) == len(high) == len(at) == len(cuts):
        raise ValueError(f"quadrature in {size} variables with {len(low)} bounds: expected 1 or 2, and as many bounds")
    rules = [_rule(*each, panels) for each in zip(low, high, at, cuts, strict=True)]
    points = torch.cartesian_prod(*(x for x, _ in rules)).reshape(-1, size)
    weights = torch.cartesian_prod(*(w for _, w in rules)).reshape(-1, size).prod(-1)
    logs = -landscape.energy(points) / temperature + weights.log()
    log_z = float(torch.logsumexp(logs, 0))
    return Gibbs(points, (logs - log_z).exp(), log_z)


def inside(low: Sequence[float], high: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """The indicator function of a box, for `Gibbs.mean`: its mass."""
    return lambda x: ((x >= torch.tensor(low).to(x)) & (x <= torch.tensor(high).to(x))).all(-1).to(x)


def _rule(
    low: float, high: float, places: Sequence[float], cuts: Sequence[float], panels: int
) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [low, high]: equal panels, cut again at `cuts`, and by halves towards each of the places."""
    if not low < high:
        raise ValueError(f"a range from {low} to {high}: expected low < high")
    edges = {*np.linspace(low, high, panels + 1), *cuts}
    for place in places:
        distances = (high - low) * 2.0 ** -np.arange(math.ceil(-math.log2(FINEST)) + 1)
        edges |= {place, *(place - distances), *(place + distances)}
    kept = np.array(sorted(edge for edge in edges if low <= edge <= high))
    kept = kept[np.concatenate([[True], np.diff(kept) > 1e-12 * (high - low)])]
    x, w = np.polynomial.legendre.leggauss(NODES)
    middle, half = (kept[1:] + kept[:-1]) / 2, np.diff(kept) / 2
    nodes, weights = middle[:, None] + half[:, None] * x, half[:, None] * w
    return torch.from_numpy(nodes.ravel()), torch.from_numpy(np.broadcast_to(weights, nodes.shape).ravel().copy())

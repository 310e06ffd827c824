"""Integrals of exp(log f) from one end of a range up to every point of it, without overflow: for nested quadratures.

Gauss-Legendre panels of eight points; up to a node within a panel the interpolating polynomial is integrated, so that all
partial integrals are as accurate as the whole ones. Values are kept as logarithms: exp(barrier / temperature) of 10^5 is
as good as 10.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

NODES = 8
X, W = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(NODES))
_V = np.polynomial.legendre.legvander(X.numpy(), NODES - 1)
_PRIMITIVES = np.stack(
    [np.polynomial.legendre.legval(X, np.polynomial.legendre.legint(row, lbnd=-1)) for row in np.eye(NODES)], 1
)
BEFORE = torch.from_numpy(_PRIMITIVES @ np.linalg.inv(_V))
"""BEFORE[j, k]: the integral from -1 to node j of the polynomial that is 1 at node k and 0 at the others."""
LEAST = 32
"""Panels that are begun with."""
MOST = 200_000
"""Panels at most."""


class Panels:
    """Panels between the edges (n + 1,): nodes (n, 8) in ascending order. Functions are given by their values there."""

    def __init__(self, edges: Tensor) -> None:
        self.edges = edges
        self.half = edges.diff()[:, None] / 2
        self.nodes = (edges[1:] + edges[:-1])[:, None] / 2 + self.half * X

    @property
    def weights(self) -> Tensor:
        """Weights (n, 8) of the rule."""
        return self.half * W

    def before(self, f: Tensor) -> Tensor:
        """The integral of f (n, 8), of either sign, from the left end to every node."""
        whole = (f * self.weights).sum(1, keepdim=True)
        return whole.cumsum(0) - whole + self.half * (f @ BEFORE.T)

    def log_whole(self, log_f: Tensor) -> Tensor:
        """log of the integral of exp(log_f) over all the range."""
        return torch.logsumexp((log_f + self.weights.log()).flatten(), 0)

    def log_before(self, log_f: Tensor) -> Tensor:
        """log of the integral of exp(log_f) from the left end to every node (n, 8). exp(log_f) varies little in a panel."""
        return self._cumulative(log_f, BEFORE)

    def log_after(self, log_f: Tensor) -> Tensor:
        """The same from every node to the right end."""
        return self._cumulative(log_f.flip(0), W - BEFORE).flip(0)

    def _cumulative(self, log_f: Tensor, part: Tensor) -> Tensor:
        top = log_f.amax(1, keepdim=True)
        f = (log_f - top).exp()
        half = self.half if part is BEFORE else self.half.flip(0)
        whole = torch.logcumsumexp(top + (half * (f @ W)[:, None]).log(), 0)
        outside = torch.cat([torch.full_like(whole[:1], -torch.inf), whole[:-1]])
        return torch.logaddexp(outside, top + (half * (f @ part.T)).log())


def panels(low: float, high: float, change: Callable[[Tensor], Tensor], *, cuts: Sequence[float] = ()) -> Panels:
    """Panels over [low, high], halved until `change` (the slope of log f) times the width is at most 1 in each.

    cuts: places where functions jump, which become edges. Raises ValueError where that takes more than MOST panels.
    """
    if not low < high:
        raise ValueError(f"a range from {low:g} to {high:g}: expected low < high")
    grid = np.unique([*np.linspace(low, high, LEAST + 1), *(c for c in cuts if low < c < high)])
    edges = torch.from_numpy(grid)
    while True:
        rule = Panels(edges)
        steep = (2 * rule.half * change(rule.nodes).abs()).amax(1) > 1
        if not bool(steep.any()):
            return rule
        if len(edges) + int(steep.sum()) > MOST:
            raise ValueError(
                f"more than {MOST} panels from {low:g} to {high:g}: expected a milder barrier or more noise"
            )
        middles = ((edges[1:] + edges[:-1]) / 2)[steep]
        edges = torch.cat([edges, middles]).sort().values

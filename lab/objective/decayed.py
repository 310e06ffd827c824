"""A loss with weight decay in it: L(w) + (decay/2) |w|^2, the function whose minima and saddles a run with coupled weight
decay sees. Hessians are those of L plus `decay` times the identity, the covariance of the gradient noise is that of L.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lab.objective.base import Objective


class Decayed(Objective):
    """`inner` plus (decay/2)|w|^2 on all weights. Every example carries the same decay, so means are means still.

    Raises ValueError for a decay that is negative or no number.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> Decayed(Quadratic((3.0, 1.0)), 0.5).hvp(torch.zeros(2), torch.ones(2))
    tensor([3.5000, 1.5000])
    """

    def __init__(self, inner: Objective, decay: float):
        if not (decay >= 0 and decay < float("inf")):
            raise ValueError(f"weight decay {decay}: expected a number >= 0")
        self.inner, self.decay = inner, decay
        self.num_params, self.num_examples = inner.num_params, inner.num_examples

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        for weight, loss in self.inner.parts(w):
            yield weight, loss + self.decay / 2 * w.square().sum()

    def restrict(self, index: Tensor) -> "Decayed":
        return Decayed(self.inner.restrict(index), self.decay)

    def example_grads(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        return self.inner.example_grads(w, index) + self.decay * w.detach()

    def replica_values(self, W: Tensor, index: Tensor | None = None) -> Tensor:
        return self.inner.replica_values(W, index) + self.decay / 2 * W.detach().square().sum(1)

    def replica_grads(self, W: Tensor, index: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        sums = 1.0 if weights is None else weights.to(W).sum(1, keepdim=True)
        return torch.addcmul(self.inner.replica_grads(W, index, weights), W.detach(), W.new_tensor(self.decay) * sums)

    def composition(self, w: Tensor) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        raise TypeError("a loss with weight decay is no loss of outputs alone: take the Gauss-Newton matrix of `inner`")

    def third(self, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """As `Objective.third`, that of `inner`; what it refuses is refused."""
        return self.inner.third(w, u, v)

    def slope(self, f: Tensor, leaf: Tensor, along: Tensor | None = None) -> Tensor:
        return self.inner.slope(f, leaf, along)

    def graph_bytes(self, w: Tensor) -> int:
        return self.inner.graph_bytes(w)

    def reduce(self, total: Tensor) -> Tensor:
        return self.inner.reduce(total)

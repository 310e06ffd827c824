"""Landscapes whose truth is known: an objective in closed form, and many walkers on it at once.

A landscape is one file of this package (a checked dataclass) and one card in `conf/landscape/`. It writes `energy`, for
any number of points at once; where speed matters also `gradient`, or `gradient_into` (`InPlace`). Everything that
measures networks works on it through `Objective`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from lab.objective import Objective


class Landscape(Objective, ABC):
    """A function of a few variables on which many walkers can stand.

    Law, beside those of `Objective`: `energy` and `gradient` act on the last dimension alone.
    """

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """L of points x (..., P): (...)."""

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient at every point of x (..., P): (..., P). Cost: a pass of automatic differentiation, unless overridden."""
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.energy(leaf).sum(), leaf)[0]

    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        """The same, written into `out`, which is no part of x."""
        return out.copy_(self.gradient(x))

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        yield 1.0, self.energy(w)

    def grad(self, w: Tensor) -> Tensor:
        return self.gradient(w)

    def replica_values(self, W: Tensor, index: Tensor | None = None) -> Tensor:
        return super().replica_values(W, index) if index is not None else self.energy(W.detach())

    def replica_grads(self, W: Tensor, index: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        whole = index is None and weights is None
        return self.gradient(W) if whole else super().replica_grads(W, index, weights)


class InPlace(Landscape, ABC):
    """A landscape for many walkers: its gradient is written where it is wanted, and no memory is taken."""

    def gradient(self, x: Tensor) -> Tensor:
        return self.gradient_into(x, torch.empty_like(x))

    @abstractmethod
    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        """As `Landscape.gradient_into`."""

"""Landscapes whose truth is known: an objective, its critical points, and many walkers on it at once.

A landscape is one file of this package (a checked dataclass) and one card in `conf/landscape/`. It writes `energy`, for
any number of points at once; where speed matters also `gradient`, or `gradient_into` (`InPlace`). Everything that
measures networks works on it through `Objective`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lab.objective import Objective

Kind = Literal["minimum", "saddle", "maximum", "degenerate"]


@dataclass(frozen=True)
class Critical:
    """A critical point known exactly: where, the loss there, and the eigenvalues of its Hessian, ascending."""

    w: tuple[float, ...]
    value: float
    eigenvalues: tuple[float, ...]

    @property
    def index(self) -> int:
        """Number of negative eigenvalues."""
        return sum(value < 0 for value in self.eigenvalues)

    @property
    def nullity(self) -> int:
        """Number of eigenvalues that are zero: where there are some, the Hessian alone does not tell a minimum."""
        return sum(value == 0 for value in self.eigenvalues)

    @property
    def kind(self) -> Kind:
        """A saddle has curvatures of both signs; with zero ones and no opposite signs it is degenerate."""
        if 0 < self.index < len(self.eigenvalues) - self.nullity:
            return "saddle"
        if self.nullity:
            return "degenerate"
        return "maximum" if self.index else "minimum"


class Landscape(Objective, ABC):
    """A function of a few variables on which many walkers can stand.

    Laws, beside those of `Objective`: `energy` and `gradient` act on the last dimension alone; the gradient vanishes at
    every one of `critical_points`, and their values and eigenvalues are those of the energy.
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

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        """Those known in closed form: all of them, or one of each family where there are lines of them."""
        return ()

    @property
    def learning_coefficient(self) -> tuple[float, int] | None:
        """(lambda, m) at the worst singularity of L = min L: volume{L - min L < e} ~ e^lambda (log 1/e)^(m - 1)."""
        return None


class InPlace(Landscape, ABC):
    """A landscape for many walkers: its gradient is written where it is wanted, and no memory is taken."""

    def gradient(self, x: Tensor) -> Tensor:
        return self.gradient_into(x, torch.empty_like(x))

    @abstractmethod
    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        """As `Landscape.gradient_into`."""

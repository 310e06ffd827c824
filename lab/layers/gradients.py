"""Gradients of single examples, known without being formed where that is cheaper: norms, inner products, weighted sums."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Gradients(ABC):
    """Gradients of n single examples in some parameters. names: their names here -> names in the network.

    Laws: `squared_norms`, `along` and `weighted` are those of `rows`, up to round-off.
    """

    names: dict[str, str]

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Memory held."""

    @abstractmethod
    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        """Gradients (b, P) in parameter `name` of the examples `part`."""

    @abstractmethod
    def pieces(self, name: str) -> list[slice]:
        """The examples in parts whose rows are formed at once."""

    @abstractmethod
    def at(self, index: Tensor) -> "Gradients":
        """Those of the examples `index` only."""

    def unformed_norms(self, name: str) -> Tensor | None:
        """Squared norm of every row (n,) float64; None where forming the rows is the cheapest way to them."""
        return None

    def squared_norms(self, name: str, v: Tensor | None = None) -> Tensor:
        """Squared norm of every row (n,), float64; or squared distance from v, of the size of the parameter."""
        if v is None and (norms := self.unformed_norms(name)) is not None:
            return norms
        origin = 0 if v is None else v.flatten()
        return torch.cat([squares(self.rows(name, part) - origin).double() for part in self.pieces(name)])

    def along(self, name: str, v: Tensor) -> Tensor:
        """Inner product of every row with v, of the shape of the parameter: (n,) float64."""
        return (self.rows(name) @ v.flatten()).double()

    def weighted(self, name: str, c: Tensor) -> Tensor:
        """sum_i c_i row_i (P,) for weights c (n,)."""
        return c @ self.rows(name)

    def moments(self, name: str, c: Tensor) -> tuple[Tensor, Tensor]:
        """`squared_norms` and `weighted`; rows that have to be formed are formed once."""
        if (unformed := self.unformed_norms(name)) is not None:
            return unformed, self.weighted(name, c)
        norms, total = [], c.new_zeros(())
        for part in self.pieces(name):
            rows = self.rows(name, part)
            norms.append(squares(rows).double())
            total = total + c[part] @ rows
        return torch.cat(norms), total

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(u (n, fan_in), g (n, out)) where every row is an outer product g u'; None: it is not."""
        return None


def squares(tensor: Tensor) -> Tensor:
    """Squared lengths along the last axis."""
    return torch.linalg.vector_norm(tensor, dim=-1).square()


def per_example(tensor: Tensor) -> Tensor:
    """Sums over all axes but the first, float64."""
    return tensor.flatten(1).sum(1).double()

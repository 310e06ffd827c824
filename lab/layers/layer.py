"""One layer in one forward pass, and what its inputs and output gradients tell of single examples ("ghost" gradients).

For one example the output a of a layer is linear in the parameters, a = A(parameters), with A made of the input. An output
gradient g therefore has the parameter gradient A'g. With inputs u (fan_in, L) at L places (pixels, positions), a = W u + b:

    gradient         A'g = (g u', sum over places of g)              fan_in * out numbers
    squared norm     sum over places of (g'g) * (u'u)                Goodfellow (2015), L = 1; Bu, Mao, Xu (2022)
    along V          sum of g * (V u)                                what a forward pass of the layer costs
    weighted sum     sum over examples of c_i g_i u_i'               what a weight gradient of the layer costs
    random signs     z = S u + s, signs S, s in place of W, b        E z z' = A A'

The last gives traces: Tr A'MA = E z'Mz over the parameters, for any matrix M in the space of the outputs.
"""

from abc import ABC, abstractmethod
from copy import copy
from typing import Any

import torch
from torch import Tensor

ROWS_BYTES = 2**21
"""Memory of the gradients that are formed at once: more falls out of the cache and is written to new memory every time."""


class Layer(ABC):
    """One call of a module on n examples, which are the first dimension of its input h and of its output.

    names  "weight", "bias" -> name in the network, of the trainable ones.
    g      gradient of something in the output, in its shape; whoever has made a backward pass sets it.

    Laws: `squared_norms`, `along` and `weighted` are those of the rows of `rows`, up to round-off.
    """

    def __init__(self, module: Any, names: dict[str, str], h: Tensor, output: Tensor):
        self.module, self.names, self.shape = module, names, output.shape
        self.h, self.g = h.detach(), output.new_empty(0)
        self.repeated = False
        """Whether more output gradients follow at the same input: what they share is kept."""

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.h, self.g))

    @abstractmethod
    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        """Gradients (b, P) in parameter `name` of the examples `part`."""

    @abstractmethod
    def signs(self, generator: torch.Generator) -> Tensor:
        """z = A s (n, ...) with random signs s of its own for every example, in the shape of the output: E z z' = A A'."""

    def forms(self, name: str) -> bool:
        """Whether forming the rows is the cheapest way to their norms."""
        return True

    def unformed_norms(self, name: str) -> Tensor:
        """Squared norm of every row (n,) float64, for a parameter that is not formed."""
        raise NotImplementedError

    def squared_norms(self, name: str, v: Tensor | None = None) -> Tensor:
        """Squared norm of every row (n,), float64; or squared distance from v, of the size of the parameter."""
        if v is None and not self.forms(name):
            return self.unformed_norms(name)
        origin = 0 if v is None else v.flatten()
        return torch.cat([squares(self.rows(name, part) - origin).double() for part in self.pieces(name)])

    def pieces(self, name: str) -> list[slice]:
        """The examples in parts whose rows take `ROWS_BYTES`."""
        size = getattr(self.module, name).numel() * self.g.element_size()
        step = max(1, ROWS_BYTES // size)
        return [slice(begin, begin + step) for begin in range(0, len(self.g), step)]

    def along(self, name: str, v: Tensor) -> Tensor:
        """Inner product of every row with v, of the shape of the parameter: (n,) float64."""
        return (self.rows(name) @ v.flatten()).double()

    def weighted(self, name: str, c: Tensor) -> Tensor:
        """sum_i c_i row_i (P,) for weights c (n,)."""
        return c @ self.rows(name)

    def moments(self, name: str, c: Tensor) -> tuple[Tensor, Tensor]:
        """`squared_norms` and `weighted`; rows that have to be formed are formed once."""
        if not self.forms(name):
            return self.squared_norms(name), self.weighted(name, c)
        norms, total = [], self.g.new_zeros(())
        for part in self.pieces(name):
            rows = self.rows(name, part)
            norms.append(squares(rows).double())
            total = total + c[part] @ rows
        return torch.cat(norms), total

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(u (n, fan_in), g (n, out)) where every row is an outer product g u'; None: it is not."""
        return None

    def at(self, index: Tensor) -> "Layer":
        """The same call on the examples `index` only."""
        few = copy(self)
        few.h, few.g = self.h[index], self.g[index]
        few.shape = few.g.shape
        return few


def squares(tensor: Tensor) -> Tensor:
    """Squared lengths along the last axis."""
    return torch.linalg.vector_norm(tensor, dim=-1).square()


def per_example(tensor: Tensor) -> Tensor:
    """Sums over all axes but the first, float64."""
    return tensor.flatten(1).sum(1).double()

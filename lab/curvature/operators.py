"""Symmetric linear operators on R^P, first of all the Hessian of an objective.

H v = d/dw (g(w)'v), with g the gradient. The graph of g is built once and differentiated for every product (about 1.1
gradients a product) where memory allows, and rebuilt for every product (2.2 gradients) where it does not. Double
backward (Pearlmutter 1994), exact up to round-off.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lab.objective import Objective, directional, memory_of


class LinearOperator:
    """A symmetric map v (P,) -> A v (P,), known by its products only; it counts them.

    Laws: A(av + bw) = a Av + b Aw, and u'(A v) = v'(A u) up to round-off.
    """

    def __init__(self, size: int, apply: Callable[[Tensor], Tensor], *, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        self.products = 0
        self._apply = apply

    def __matmul__(self, v: Tensor) -> Tensor:
        """A v for v (P,), or column by column for v (P, k)."""
        if v.shape[0] != self.size:
            raise ValueError(f"a vector of {v.shape[0]} entries; the operator acts on {self.size}")
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.unbind(1)], dim=1)
        self.products += 1
        return self._apply(v)

    def dense(self) -> Tensor:
        """The matrix (P, P), one product a column: for tests and small problems."""
        return self @ torch.eye(self.size, dtype=self.dtype, device=self.device)


class Hessian(LinearOperator):
    """H(w) of an objective, with the value (scalar) and gradient (P,) that come with it for nothing."""

    def __init__(self, objective: Objective, w: Tensor, *, memory: int):
        w = w.detach().clone()  # the optimiser updates its weights in place; this Hessian stays that at w
        self.kept = objective.graph_bytes(w) <= memory
        if self.kept:
            leaf = w.detach().requires_grad_()
            graphs: list[tuple[float, Tensor]] = []
            self.value, self.gradient = torch.zeros((), dtype=torch.float64, device=w.device), torch.zeros_like(w)
            for weight, loss in objective.parts(leaf):
                (g,) = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
                graphs.append((weight, g))
                self.value += weight * loss.detach()
                self.gradient.add_(g.detach(), alpha=weight)
        else:
            self.value, self.gradient = objective.value_and_grad(w)

        def apply(v: Tensor) -> Tensor:
            if not self.kept:
                return objective.hvp(w, v)
            if len(graphs) == 1 and graphs[0][0] == 1.0:
                return directional(graphs[0][1], leaf, v)
            product = torch.zeros_like(v)
            for weight, g in graphs:
                product.add_(directional(g, leaf, v), alpha=weight)
            return product

        super().__init__(w.numel(), apply, dtype=w.dtype, device=w.device)


def hessian(objective: Objective, w: Tensor, *, memory: int | None = None) -> Hessian:
    """The Hessian of `objective` at w as an operator.

    memory: bytes the graph of the gradient may take (default: a quarter of what the device has); where the objective
    expects more, the graph is rebuilt for every product. Cost: 1 gradient now, then 1.1 (kept) or 2.2 per product.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> H = hessian(Quadratic(torch.tensor([2.0, 5.0])), torch.zeros(2))
    >>> H @ torch.tensor([1.0, 1.0])
    tensor([2., 5.])
    """
    return Hessian(objective, w, memory=memory_of(w.device) // 4 if memory is None else memory)


def preconditioned(operator: LinearOperator, diagonal: Tensor, shift: float | Tensor = 0.0) -> LinearOperator:
    """P^-1/2 (A + shift) P^-1/2 for P = diag(diagonal) > 0: symmetric, with the eigenvalues of P^-1 (A + shift).

    shift: a number or a vector (P,), e.g. the weight decay that the optimiser adds to the gradient. Raises ValueError
    where the diagonal is not positive. Cost: that of A.
    """
    if not bool((diagonal > 0).all()):
        raise ValueError(f"a preconditioner must be positive; its smallest entry is {diagonal.min().item():g}")
    root = diagonal.rsqrt().to(operator.dtype)
    shift = shift.to(root) if isinstance(shift, Tensor) else shift

    def apply(v: Tensor) -> Tensor:
        scaled = root * v
        return root * (operator @ scaled + shift * scaled)

    return LinearOperator(operator.size, apply, dtype=operator.dtype, device=operator.device)

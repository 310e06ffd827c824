"""The curvature matrices of an objective as symmetric operators on R^P; what is made of them is in `lab.curvature.linear`.

    hessian          H v = d/dw (g'v), g = dL/dw                       Pearlmutter (1994)
    gauss_newton     G v = J' (d2 loss / df2) J v, J = df/dw           Schraudolph (2002); Martens (2010)
    residual         H - G, the curvature of the network itself, weighted by the loss gradient

All by double backward, exact up to round-off. The graph of the gradient is built once and differentiated for every
product where memory allows (1.1 gradients a product on an MLP, 2.4 on a ResNet-20), and rebuilt for every product (one
gradient more) where it does not. J v is the derivative of u -> J'u, which is linear: taken at u = d loss / df it is the
gradient itself that is differentiated, so value and gradient come for nothing there too.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lab.curvature.linear import (
    Entries,
    LinearOperator,
    Product,
    block_diagonal,
    difference,
    of_matrix,
    preconditioned,
    projected,
    restricted,
    shifted,
)
from lab.objective import Objective, at_least_single, directional, memory_of, with_gradients

__all__ = [
    "Curvature",
    "Entries",
    "GaussNewton",
    "Hessian",
    "LinearOperator",
    "block_diagonal",
    "difference",
    "gauss_newton",
    "hessian",
    "of_matrix",
    "preconditioned",
    "projected",
    "residual",
    "restricted",
    "rounded",
    "shifted",
]


class Curvature(LinearOperator, ABC):
    """A sum over the parts of an objective, sum of weight * A_part, at w.

    kept      whether the graphs are kept, or rebuilt for every product
    value     L(w), float64 scalar (dtype of w where rebuilt); gradient (P,): they come with the graph for nothing
    """

    @with_gradients
    def __init__(self, objective: Objective, w: Tensor, *, memory: int | None):
        w = w.detach().clone()  # the optimiser updates its weights in place; this operator stays that at w
        leaf = w.detach().requires_grad_()
        self.kept = objective.graph_bytes(w) <= (memory_of(w.device) // 4 if memory is None else memory)
        graphs: list[tuple[float, Product]] = []
        if self.kept:
            value, gradient = torch.zeros((), dtype=torch.float64, device=w.device), torch.zeros_like(w)
            for weight, loss, g, product in self.parts(objective, leaf):
                graphs.append((weight, product))
                value += weight * loss.detach()
                gradient.add_(g.detach(), alpha=weight)
            self.value, self.gradient = objective.reduce(value), objective.reduce(gradient)
        else:
            self.value, self.gradient = objective.value_and_grad(w)

        def rebuilt() -> Iterator[tuple[float, Product]]:
            for weight, _, _, product in self.parts(objective, leaf):
                yield weight, product

        @with_gradients
        def apply(v: Tensor) -> Tensor:
            if len(graphs) == 1 and graphs[0][0] == 1.0:
                return objective.reduce(graphs[0][1](v))
            total = torch.zeros_like(v)
            for weight, product in graphs if self.kept else rebuilt():
                total.add_(product(v), alpha=weight)
            return objective.reduce(total)

        super().__init__(w.numel(), apply, dtype=w.dtype, device=w.device)

    @abstractmethod
    def parts(self, objective: Objective, leaf: Tensor) -> Iterator[tuple[float, Tensor, Tensor, Product]]:
        """Yield (weight, loss, gradient, v -> A_part v), with the graph of the gradient in the product."""


class Hessian(Curvature):
    """H(w) of an objective."""

    def parts(self, objective: Objective, leaf: Tensor) -> Iterator[tuple[float, Tensor, Tensor, Product]]:
        for weight, loss in objective.parts(leaf):
            g = objective.slope(loss, leaf)
            yield weight, loss, g, partial(directional, g, leaf)


class GaussNewton(Curvature):
    """G(w) of an objective: positive semidefinite wherever the loss is convex in the outputs."""

    def parts(self, objective: Objective, leaf: Tensor) -> Iterator[tuple[float, Tensor, Tensor, Product]]:
        for weight, outputs, criterion in objective.composition(leaf):
            f = outputs.detach().requires_grad_()
            loss = criterion(f)
            slope = objective.slope(loss, f)
            u = slope.detach().requires_grad_()
            g = objective.slope(outputs, leaf, u)
            yield weight, loss, g, partial(_gauss_newton, leaf, outputs, f, slope, u, g)


def _gauss_newton(leaf: Tensor, outputs: Tensor, f: Tensor, slope: Tensor, u: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """J' (d slope / df) J v, with g = J'u."""
    curved = directional(slope, f, directional(g, u, v))
    return torch.autograd.grad(outputs, leaf, curved, retain_graph=True, materialize_grads=True)[0]


def hessian(objective: Objective, w: Tensor, *, memory: int | None = None) -> Hessian:
    """The Hessian of `objective` at w as an operator.

    memory: bytes the graph of the gradient may take (default: a quarter of what the device has); where the objective
    expects more, the graph is rebuilt for every product. Cost: 1 to 1.5 gradients now, then 1.1 to 2.4 per product (kept),
    one more where rebuilt. Raises ValueError where the network cannot be differentiated twice.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> H = hessian(Quadratic(torch.tensor([2.0, 5.0])), torch.zeros(2))
    >>> H @ torch.tensor([1.0, 1.0])
    tensor([2., 5.])
    """
    return Hessian(objective, at_least_single(w), memory=memory)


def rounded(
    objective: Objective, w: Tensor, *, dtype: torch.dtype = torch.bfloat16, memory: int | None = None
) -> LinearOperator:
    """The Hessian with its products formed in `dtype`, for vectors in that of w: a `coarse` operator for `lanczos`.

    Error of a product in bfloat16: 3e-3 of its norm on a tanh MLP. Cost there, on a CPU with bfloat16 instructions: 0.5
    gradients per product, the half of the memory. Not every kernel has a bfloat16 version: torch raises RuntimeError.

    >>> from lab.landscapes.quadratic import Quadratic
    >>> rounded(Quadratic(torch.tensor([2.0, 5.0])), torch.zeros(2)) @ torch.tensor([1.0, 1.01])  # of 8 bits
    tensor([2.0000, 5.0312])
    """
    inner = Hessian(objective, w.to(dtype), memory=memory)

    def apply(v: Tensor) -> Tensor:
        return (inner @ v.to(dtype)).to(w.dtype)

    return LinearOperator(w.numel(), apply, dtype=w.dtype, device=w.device)


def gauss_newton(objective: Objective, w: Tensor, *, memory: int | None = None) -> GaussNewton:
    """The generalised Gauss-Newton matrix at w, G v = mean over examples of J' (d2 loss / df2) J v, as an operator.

    The loss Hessian in output space is that of the criterion as it is (any, also one that couples examples), so that
    G = H for a model linear in w. Its scale is that of L: for the cross-entropy G is the Fisher matrix. `memory` as in
    `hessian`. Cost: 1 to 1.6 gradients now, then per product 1.0 on an MLP and 2.0 to 2.3 on a ResNet (kept; the double
    backward of a convolution computes more than J v needs), one more where rebuilt.
    Raises TypeError where the objective is no loss of outputs. Schraudolph (2002); Martens (2010).

    >>> from lab.objective import NetworkObjective
    >>> line, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
    >>> loss = NetworkObjective(line, torch.nn.MSELoss(), (x, x))
    >>> gauss_newton(loss, loss.weights).dense()  # 2 mean x^2
    tensor([[10.]])
    """
    return GaussNewton(objective, at_least_single(w), memory=memory)


def residual(objective: Objective, w: Tensor, *, memory: int | None = None) -> LinearOperator:
    """H - G at w, v -> sum_k (d loss / df_k) (d2 f_k / dw2) v: zero where the network is linear in w or fits perfectly.

    Cost: a Hessian and a Gauss-Newton product; two graphs, of `memory` bytes in all. Raises as `gauss_newton`.

    >>> from lab.objective import NetworkObjective
    >>> line, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
    >>> loss = NetworkObjective(line, torch.nn.MSELoss(), (x, x))
    >>> residual(loss, loss.weights).dense()
    tensor([[0.]])
    """
    memory = (memory_of(w.device) // 4 if memory is None else memory) // 2
    return difference(hessian(objective, w, memory=memory), gauss_newton(objective, w, memory=memory))

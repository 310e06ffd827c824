"""Symmetric linear operators on R^P: the curvature matrices of an objective, and what is made of them.

    hessian          H v = d/dw (g'v), g = dL/dw                       Pearlmutter (1994)
    gauss_newton     G v = J' (d2 loss / df2) J v, J = df/dw           Schraudolph (2002); Martens (2010)
    residual         H - G, the curvature of the network itself, weighted by the loss gradient
    shifted, difference, preconditioned, projected, restricted, block_diagonal: of any operator

All by double backward, exact up to round-off. The graph of the gradient is built once and differentiated for every
product where memory allows (1.1 gradients a product on an MLP, 2.4 on a ResNet-20), and rebuilt for every product (one
gradient more) where it does not. J v is the derivative of u -> J'u, which is linear: taken at u = d loss / df it is the
gradient itself that is differentiated, so value and gradient come for nothing there too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from lab.objective import Objective, at_least_single, directional, memory_of, with_gradients

Product = Callable[[Tensor], Tensor]
Entries = Tensor | slice | Sequence[slice]
"""Entries of a vector (P,): a LongTensor of places, a slice, or several slices."""


class LinearOperator:
    """A symmetric map v (P,) -> A v (P,), known by its products only; it counts them.

    Laws: A(av + bw) = a Av + b Aw, and u'(A v) = v'(A u) up to round-off.
    """

    def __init__(self, size: int, apply: Product, *, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        self.matvecs = 0
        self._apply = apply

    def __matmul__(self, v: Tensor) -> Tensor:
        """A v for v (P,), or column by column for v (P, k)."""
        if v.shape[0] != self.size:
            raise ValueError(f"a vector of {v.shape[0]} entries; the operator acts on {self.size}")
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.unbind(1)], dim=1)
        self.matvecs += 1
        return self._apply(v)

    def dense(self) -> Tensor:
        """The matrix (P, P), one product a column: for tests and small problems."""
        return self @ torch.eye(self.size, dtype=self.dtype, device=self.device)


# --- curvature of an objective ----------


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
    """
    return GaussNewton(objective, at_least_single(w), memory=memory)


def residual(objective: Objective, w: Tensor, *, memory: int | None = None) -> LinearOperator:
    """H - G at w, v -> sum_k (d loss / df_k) (d2 f_k / dw2) v: zero where the network is linear in w or fits perfectly.

    Cost: a Hessian and a Gauss-Newton product; two graphs, of `memory` bytes in all. Raises as `gauss_newton`.
    """
    memory = (memory_of(w.device) // 4 if memory is None else memory) // 2
    return difference(hessian(objective, w, memory=memory), gauss_newton(objective, w, memory=memory))


# --- operators made of operators ----------


def difference(a: LinearOperator, b: LinearOperator) -> LinearOperator:
    """A - B. Cost: a product of each. Raises ValueError where the sizes differ."""
    if a.size != b.size:
        raise ValueError(f"operators on {a.size} and on {b.size} entries have no difference")
    return _like(a, lambda v: (a @ v) - (b @ v))


def shifted(operator: LinearOperator, shift: float | Tensor) -> LinearOperator:
    """A + shift: a number times the identity, or a diagonal (P,). Cost: that of A.

    >>> A = LinearOperator(2, lambda v: v, dtype=torch.float32, device=torch.device("cpu"))
    >>> shifted(A, 0.5) @ torch.ones(2)
    tensor([1.5000, 1.5000])
    """
    shift = _diagonal(operator, shift, "shift") if isinstance(shift, Tensor) else shift
    return _like(operator, lambda v: (operator @ v) + shift * v)


def preconditioned(operator: LinearOperator, diagonal: Tensor, shift: float | Tensor = 0.0) -> LinearOperator:
    """P^-1/2 (A + shift) P^-1/2 for P = diag(diagonal) > 0: symmetric, with the eigenvalues of P^-1 (A + shift).

    shift: a number or a vector (P,), e.g. the weight decay that the optimiser adds to the gradient. Raises ValueError
    where the diagonal is not positive. Cost: that of A.
    """
    if not bool((diagonal > 0).all()):
        raise ValueError(f"a preconditioner must be positive; its smallest entry is {diagonal.min().item():g}")
    root, inner = _diagonal(operator, diagonal.rsqrt(), "preconditioner"), shifted(operator, shift)
    return _like(operator, lambda v: root * (inner @ (root * v)))


def projected(operator: LinearOperator, basis: Tensor, *, complement: bool = False) -> LinearOperator:
    """U U' A U U' for an orthonormal basis U (P, k), or (1 - U U') A (1 - U U') with `complement`: A deflated.

    The eigenvalues of the smaller matrix U' A U, and zeros. Cost: that of A, and 8 P k operations. Raises ValueError
    where U'U differs from 1 by more than the square root of the round-off.
    """
    if basis.dim() != 2 or len(basis) != operator.size:
        raise ValueError(f"a basis of shape {tuple(basis.shape)}; expected ({operator.size}, any number of vectors)")
    basis = basis.detach().to(dtype=operator.dtype, device=operator.device)
    off = (basis.T @ basis - torch.eye(basis.shape[1], dtype=operator.dtype, device=operator.device)).abs()
    if off.numel() and not float(off.max()) <= torch.finfo(operator.dtype).eps ** 0.5:
        raise ValueError(f"U'U differs from the identity by {float(off.max()):.1g}; orthonormalise it: torch.linalg.qr")

    def project(v: Tensor) -> Tensor:
        inside = basis @ (basis.T @ v)
        return v - inside if complement else inside

    return _like(operator, lambda v: project(operator @ project(v)))


def restricted(operator: LinearOperator, entries: Entries) -> LinearOperator:
    """The principal block A_SS on the entries S, of size |S|: the curvature with all other parameters held fixed.

    entries: as `Layout.select("blocks.0.*")` or `Layout.slices()` give them, in any order. Cost: that of A. Raises
    ValueError where S is empty, leaves the vector or names an entry twice.

    >>> A = LinearOperator(3, lambda v: torch.tensor([1.0, 2.0, 3.0]) * v, dtype=torch.float32, device=torch.device("cpu"))
    >>> restricted(A, torch.tensor([2, 0])).dense().diag()
    tensor([3., 1.])
    """
    index = _places(operator, entries)

    def apply(v: Tensor) -> Tensor:
        whole = torch.zeros(operator.size, dtype=v.dtype, device=v.device)
        whole[index] = v
        return (operator @ whole)[index]

    return LinearOperator(len(index), apply, dtype=operator.dtype, device=operator.device)


def block_diagonal(operator: LinearOperator, blocks: Sequence[Entries]) -> LinearOperator:
    """The sum over blocks S of A_SS, of the size of A: what is left of A when blocks do not see each other.

    blocks: e.g. `list(Layout.layers().values())`. Entries in no block map to zero. Cost: a product of A for every block.
    Raises ValueError where blocks overlap, are empty or leave the vector.
    """
    places = [_places(operator, block) for block in blocks]
    _distinct(torch.cat(places) if places else torch.empty(0, dtype=torch.long))

    def apply(v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for index in places:
            inside = torch.zeros_like(v)
            inside[index] = v[index]
            total[index] = (operator @ inside)[index]
        return total

    return _like(operator, apply)


def _like(operator: LinearOperator, apply: Product) -> LinearOperator:
    return LinearOperator(operator.size, apply, dtype=operator.dtype, device=operator.device)


def _diagonal(operator: LinearOperator, diagonal: Tensor, name: str) -> Tensor:
    if diagonal.dim() and diagonal.shape != (operator.size,):
        raise ValueError(f"a {name} of shape {tuple(diagonal.shape)}; expected a number or ({operator.size},)")
    return diagonal.detach().to(dtype=operator.dtype, device=operator.device)


def _places(operator: LinearOperator, entries: Entries) -> Tensor:
    """Entries as a LongTensor, each named once."""
    if not isinstance(entries, Tensor):
        every = torch.arange(operator.size)
        entries = torch.cat([every[s] for s in ([entries] if isinstance(entries, slice) else entries)] or [every[:0]])
    if entries.dtype != torch.long or entries.dim() != 1 or not len(entries):
        raise ValueError(f"entries of shape {tuple(entries.shape)}, {entries.dtype}; expected at least one place (k,)")
    if int(entries.min()) < 0 or int(entries.max()) >= operator.size:
        raise ValueError(
            f"entries from {int(entries.min())} to {int(entries.max())}; the operator acts on {operator.size}"
        )
    _distinct(entries)
    return entries.to(operator.device)


def _distinct(entries: Tensor) -> None:
    if len(entries.unique()) < len(entries):
        raise ValueError("an entry is named twice: the blocks of a matrix do not overlap")

"""Symmetric linear operators on R^P, known by their products only, and what is made of them.

difference, shifted, preconditioned, projected, restricted, block_diagonal: of any operator
of_matrix: of a matrix that is there
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
Entries = Tensor | slice | Sequence[slice]
"""Entries of a vector (P,): a LongTensor of places, a slice, or several slices."""


class LinearOperator:
    """A symmetric map v (P,) -> A v (P,), known by its products only; `matvecs` counts them.

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


def of_matrix(a: Tensor) -> LinearOperator:
    """The operator of a symmetric matrix (P, P), or of the diagonal (P,) of one.

    >>> of_matrix(torch.tensor([[2.0, 1.0], [1.0, 2.0]])) @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    """
    return LinearOperator(len(a), lambda v: a * v if a.dim() == 1 else a @ v, dtype=a.dtype, device=a.device)


def difference(a: LinearOperator, b: LinearOperator) -> LinearOperator:
    """A - B. Cost: a product of each. Raises ValueError where the sizes differ.

    >>> difference(of_matrix(torch.tensor([3.0, 5.0])), of_matrix(torch.tensor([1.0, 1.0]))) @ torch.ones(2)
    tensor([2., 4.])
    """
    if a.size != b.size:
        raise ValueError(f"operators on {a.size} and on {b.size} entries have no difference")
    return _like(a, lambda v: (a @ v) - (b @ v))


def shifted(operator: LinearOperator, shift: float | Tensor) -> LinearOperator:
    """A + shift: a number times the identity, or a diagonal (P,). Cost: that of A.

    >>> shifted(of_matrix(torch.tensor([1.0, 2.0])), 0.5) @ torch.ones(2)
    tensor([1.5000, 2.5000])
    """
    shift = _diagonal(operator, shift, "shift") if isinstance(shift, Tensor) else shift
    return _like(operator, lambda v: (operator @ v) + shift * v)


def preconditioned(operator: LinearOperator, diagonal: Tensor, shift: float | Tensor = 0.0) -> LinearOperator:
    """P^-1/2 (A + shift) P^-1/2 for P = diag(diagonal) > 0: symmetric, with the eigenvalues of P^-1 (A + shift).

    shift: a number or a vector (P,), e.g. the weight decay that the optimiser adds to the gradient. Raises ValueError
    where the diagonal is not positive. Cost: that of A.

    >>> preconditioned(of_matrix(torch.tensor([3.0, 8.0])), torch.tensor([1.0, 4.0]), shift=1.0).dense().diag()
    tensor([4.0000, 2.2500])
    """
    if not bool((diagonal > 0).all()):
        raise ValueError(f"a preconditioner must be positive; its smallest entry is {diagonal.min().item():g}")
    root, inner = _diagonal(operator, diagonal.rsqrt(), "preconditioner"), shifted(operator, shift)
    return _like(operator, lambda v: root * (inner @ (root * v)))


def projected(operator: LinearOperator, basis: Tensor, *, complement: bool = False) -> LinearOperator:
    """U U' A U U' for an orthonormal basis U (P, k), or (1 - U U') A (1 - U U') with `complement`: A deflated.

    The eigenvalues of the smaller matrix U' A U, and zeros. Cost: that of A, and 8 P k operations. Raises ValueError
    where U'U differs from 1 by more than the square root of the round-off.

    >>> projected(of_matrix(torch.tensor([3.0, 8.0])), torch.tensor([[1.0], [0.0]]), complement=True).dense().diag()
    tensor([0., 8.])
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

    >>> restricted(of_matrix(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([2, 0])).dense().diag()
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

    >>> block_diagonal(of_matrix(torch.ones(3, 3)), [slice(0, 2), slice(2, 3)]).dense()
    tensor([[1., 1., 0.],
            [1., 1., 0.],
            [0., 0., 1.]])
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

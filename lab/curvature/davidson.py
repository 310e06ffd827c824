"""Top eigenpairs with few products of an expensive operator A and many of a cheap one C near it.

For the Hessian of a network C is that of some of its examples: a product on a tenth of them costs a tenth. Where A is known
on orthonormal rows V (j, P), C can be corrected there. With D = V (A - C) (j, P) and the projector Pi = V'V,

    M = C + V'D + D'V - V'(D V')V                  M V' = A V',  and M = C on what neither V nor D reaches
    A = M + Delta,    Delta = (1 - Pi) (A - C) (1 - Pi)

a secant update as in quasi-Newton methods. Lanczos or any Rayleigh-Ritz method bounds eigenvalues from below. The difference
Delta, if it is at most delta, bounds them from above too (Weyl):

    theta_i = lambda_i(V A V')  <=  lambda_i(A)  <=  lambda_i(M + delta (1 - Pi))

The next product of A is spent on the top eigenvector of the operator on the right, which is where the largest eigenvalue
might still be; that vector joins V, theta rises, the right side falls, and the solve ends when the two sides are within the
tolerance of each other. That makes the stopping rule a bound, given delta. The eigenpairs on the right cost products of C
alone, by the method of Davidson (J. Comput. Phys. 17, 1975): Rayleigh-Ritz in a basis that grows by residuals instead of
powers and keeps its images under C, because its operator changes with every product of A, which a Krylov space would not
outlive (`lab.curvature.sides`).

A - C is carried from one solve to the next, nearby: it changes more slowly than A. delta is an estimate, no theorem:
`SAFETY` times the largest |v'Delta v| measured where a product of A came in, and at least half of what it was in the solve
before. Neither the examples of C nor the vectors carried need show an eigenvector that has come up: a chain of such solves
should start from a search of A itself (`lab.curvature.eigen.lanczos`, cold) from time to time.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.krylov import Goal, Krylov, search
from lab.curvature.operators import LinearOperator
from lab.curvature.sides import BESIDE, SAFETY, Sides
from lab.curvature.vectors import dots
from lab.objective import memory_of
from lab.results import Eigenpairs

PATIENCE = 12
"""Products of A, for each wanted pair the first two free, after which C is not near enough and Lanczos goes on."""
ROOM = 96
"""Vectors in the basis after which Lanczos goes on, too; and products of C, at most, for the first of them."""
CARRIED = 8
"""Directions in which A - C is carried to the next solve ..."""
NUMBERS = 2**24
"""... and numbers that they may take."""
LEAST = 0.2
"""What must be left of an older direction beside the newer ones for it to be carried on."""


@dataclass(frozen=True)
class Knowledge:
    """What a solve hands to the next one: A - C in some directions, where to look, and how far C may be wrong elsewhere.

    basis (P, k) orthonormal; differences (P, k) = (A - C) basis; start (P, any) vectors near the eigenvectors that matter;
    delta the bound on what of A - C is not known, an estimate.
    """

    basis: Tensor
    differences: Tensor
    start: Tensor
    delta: float = 0.0


def learned(coarse: LinearOperator, basis: Tensor, images: Tensor, *, top: int = 1) -> Knowledge:
    """The knowledge in images (P, k) = A basis (P, k), the `top` wanted ones first, e.g. `Extremes.kept`.

    Cost: a product of `coarse` a vector, of the first `carried(P)`.

    >>> from lab.curvature.operators import of_matrix
    >>> learned(of_matrix(torch.tensor([2.0, 1.0])), torch.eye(2)[:, :1], torch.tensor([[3.0], [0.0]])).differences
    tensor([[1.],
            [0.]])
    """
    most = carried(coarse.size)
    basis, images = basis[:, :most], images[:, :most]
    return Knowledge(basis, images - (coarse @ basis), basis[:, :top])


def carried(size: int) -> int:
    """Directions in which a solve of this size hands on A - C.

    >>> carried(1000), carried(2**23)
    (8, 1)
    """
    return max(1, min(CARRIED, NUMBERS // (2 * size)))


def davidson(
    operator: LinearOperator,
    coarse: LinearOperator,
    *,
    top: int = 1,
    known: Knowledge | None = None,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    generator: torch.Generator | None = None,
) -> tuple[Eigenpairs, Knowledge | None]:
    """The `top` algebraically largest eigenpairs of `operator`, and the knowledge for the next solve, of an operator nearby.

    coarse       a cheap operator near it, e.g. the Hessian of the same loss over some of the examples, always the same.
    known        from the solve before (warm), or from a search of the operator itself by `learned`. None: the search is
                 made on `coarse`, from random vectors.
    tol          wanted error of each value, relative to the largest; `errors` are the distances of the two sides.
    Cost: `matvecs` products of `operator` (1 to 5 warm; 4 to 10 without knowledge) and 30 to 60 of `coarse`, as counted
    by it; memory 2 P numbers for each of these. Where `coarse` is not near enough, or of no use in so small a space, or
    memory for it is short, block Lanczos on `operator` has the last word, and the knowledge is None. As there: one warning
    where not converged, NaN where a product is not finite. Raises ValueError for operators of two sizes.

    >>> from lab.curvature.operators import of_matrix
    >>> h = 0.95 ** torch.arange(200.0)
    >>> pairs, known = davidson(of_matrix(h), of_matrix(1.01 * h))
    >>> round(pairs.values.item(), 3), pairs.matvecs < 5
    (1.0, True)
    """
    if operator.size != coarse.size:
        raise ValueError(f"a coarse operator on {coarse.size} entries for one on {operator.size}: expected the same")
    room = min(ROOM, int(memory_of(operator.device) // 4 // (2 * operator.dtype.itemsize * operator.size)))
    most = min(PATIENCE + 2 * (top - 1), max_matvecs // 2, max_matvecs - top)
    spent = 0
    if operator.size > ROOM and room >= 4 * (top + BESIDE) and 1 <= top <= most:
        sides, before = Sides(operator, coarse, top, tol), operator.matvecs
        if _solve(sides, known, generator, most, room):
            return sides.pairs(), _handed_on(sides)
        spent = operator.matvecs - before
    pairs = lanczos(operator, top=top, copies=False, tol=tol, max_matvecs=max_matvecs - spent, generator=generator).top
    return replace(pairs, matvecs=pairs.matvecs + spent), None


def _solve(sides: Sides, known: Knowledge | None, generator: torch.Generator | None, most: int, room: int) -> bool:
    """Bring the sides together by `most` products of A and a basis of `room` vectors; False where that is not enough."""
    if known is not None:
        sides.before.append(known.basis.T, known.differences.T)
    sides.widen(_search(sides, None if known is None else known.start, generator).T)
    while True:
        least = 0.0 if known is None else known.delta / 2
        sides.delta = max([least, *(SAFETY * abs(d) for d in sides.seen)])
        if not sides.settle(room) or not sides.finite:
            return False
        if sides.converged:
            return True
        if len(sides.V) >= most or sides.useless or not sides.look():
            return False


def _search(sides: Sides, start: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """(P, any) eigenvectors of M at and near the top, by block Lanczos: from random vectors, or from `start`."""
    coarse, before = sides.coarse, sides.before
    M = coarse
    if start is not None:
        M = LinearOperator(
            coarse.size, lambda v: (coarse @ v) + before.at(v[None])[0], dtype=coarse.dtype, device=coarse.device
        )
    space = Krylov(M, generator)
    search(space, Goal(sides.top, copies=False, tol=sides.tol, max_matvecs=ROOM), start)
    return space.ends(sides.top, 0) if space.finite else space.rows[:0].T


def _handed_on(sides: Sides) -> Knowledge:
    """A - C, as far as it is known, on V and on what was known before, in this order."""
    most, before, now = carried(sides.operator.size), sides.before, sides.now
    basis, differences = now.K.rows[:most], (now.D.rows + before.at(now.K.rows))[:most]  # (k, P)
    if len(before.K) and len(basis) < most:
        inside = dots(before.K.rows, basis).to(basis)  # (older, k)
        rest, change = before.K.rows - inside @ basis, before.D.rows - inside @ differences  # (older, P)
        squares, turn = torch.linalg.eigh(dots(rest, rest).cpu())  # what is left most of comes first
        chosen = torch.arange(len(squares) - 1, -1, -1)[: most - len(basis)]
        chosen = chosen[squares[chosen] > LEAST**2]
        turn = (turn[:, chosen] / squares[chosen].sqrt()).T.to(basis)  # (chosen, older)
        basis, differences = torch.cat([basis, turn @ rest]), torch.cat([differences, turn @ change])
    start = sides.B.combined(sides.s[:, : sides.top])  # (top, P), of the upper operator
    return Knowledge(basis.T, differences.T, start.T, sides.delta)

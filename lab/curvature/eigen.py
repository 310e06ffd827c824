"""Extreme eigenpairs of a symmetric operator A, each with its error and its cost, by block Lanczos.

Rayleigh-Ritz in a Krylov space: the eigenvalues theta of T = Q A Q' are never above those of A of the same rank and rise
with every product. The basis is that of `lab.curvature.basis`, what a restart keeps is said in `lab.curvature.krylov`, and
why the stopping rule bounds what may have been missed in `lab.curvature.stopping`. The error of a value comes after that:
with the residuals r_i = A v_i - theta_i v_i the top j values together are off by at most

    sum_i (lambda_i - theta_i) <= sum_i |r_i|^2 / gap        (Kato and Temple; gap: from theta_j to the next value)

the least of which over all j, and of |r_i|, is reported, but no more than tol where the search ended as it should.
"""

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lab.curvature.krylov import Goal, Krylov, cluster_errors, search
from lab.curvature.operators import LinearOperator
from lab.curvature.stopping import OVERLAP
from lab.results import Eigenpairs

COARSE_OVERLAP = 0.7
"""OVERLAP from the vectors of a coarse operator, which was searched as thoroughly as this one would have been."""


@dataclass(frozen=True)
class Extremes:
    """Both ends of a spectrum: the `top` pairs in descending, the `bottom` pairs in ascending order."""

    top: Eigenpairs
    bottom: Eigenpairs
    kept: tuple[Tensor, Tensor] | None = None
    """An orthonormal basis (P, k) near the top and its images A basis (P, k), where they were asked for."""

    @property
    def start(self) -> Tensor:
        """(P, top + bottom) Ritz vectors, to start the solve of a nearby operator from; no copy where one end is empty."""
        ends = [pairs.vectors for pairs in (self.top, self.bottom) if pairs.vectors.shape[1]]
        return ends[0] if len(ends) == 1 else torch.cat(ends, dim=1)


def lanczos(
    operator: LinearOperator,
    *,
    top: int = 1,
    bottom: int = 0,
    above: float | None = None,
    start: Tensor | None = None,
    coarse: LinearOperator | None = None,
    copies: bool = True,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    max_vectors: int | None = None,
    keep: int = 0,
    generator: torch.Generator | None = None,
) -> Extremes:
    """The `top` algebraically largest and the `bottom` smallest eigenpairs of `operator`.

    start      (P, any) vectors near the wanted ones, e.g. `Extremes.start` of a nearby operator: warm, few products. None:
               cold, and a value claimed to be converged is false with probability `DECEIVED`, whatever the operator.
    coarse     a cheap operator near this one, searched first; `operator` itself starts from what was found there.
    keep       Ritz vectors at the top to be returned with their images: `Extremes.kept`.
    generator  of the random vectors (default: a fixed seed). The other arguments are those of `lab.curvature.krylov.Goal`.
    Cost: one product a vector, as reported in `matvecs` (those of `coarse` not counted); memory m P numbers for m products.
    Not converged within `max_matvecs`: one warning, `converged=False`, and NaN for pairs there was no room for. A product
    that is not finite makes every value NaN. Raises ValueError for what cannot be.

    >>> from lab.curvature.operators import of_matrix
    >>> ends = lanczos(of_matrix(torch.tensor([5.0, 1.0, -9.0])), top=1, bottom=1)
    >>> round(ends.top.values.item(), 4), round(ends.bottom.values.item(), 4)
    (5.0, -9.0)
    """
    goal = Goal(top, bottom, above, copies, tol, max_matvecs, max_vectors)
    _require(goal, operator, start, keep)
    space = Krylov(operator, generator)
    certain, wanted = search(space, goal, start if coarse is None else _coarse_start(space, coarse, goal, start))
    return _extremes(space, replace(goal, top=wanted), certain, keep)


def predicted(last: Tensor, before: Tensor) -> Tensor:
    """Where eigenvectors (P, k) are going: 2 last - before R, with R the rotation that takes `before` nearest to `last`.

    Linear extrapolation of two measurements at equal distances, as a `start` for the third: where the surface changes
    smoothly 2 or 3 products in the place of 5; at the edge of stability neither better nor worse than `last`.

    >>> predicted(torch.tensor([[1.0], [0.5]]), torch.tensor([[-1.0], [0.0]]))  # the sign of an eigenvector is arbitrary
    tensor([[1.],
            [1.]])
    """
    u, _, v = torch.linalg.svd(before.double().T @ last.double())  # (k, k)
    return 2 * last - before @ (u @ v).to(before)


def _require(goal: Goal, operator: LinearOperator, start: Tensor | None, keep: int) -> None:
    """Raise ValueError for arguments that cannot be."""
    goal.require(operator.size)
    if start is not None and (start.dim() != 2 or len(start) != operator.size):
        raise ValueError(f"start of shape {tuple(start.shape)}: expected ({operator.size}, any number of vectors)")
    if keep < 0 or (keep and goal.max_vectors is not None):
        raise ValueError(f"keep={keep}, max_vectors={goal.max_vectors}: expected keep >= 0, and one of the two")


def _coarse_start(space: Krylov, coarse: LinearOperator, goal: Goal, start: Tensor | None) -> Tensor | None:
    """Start vectors for `space` by a search on the coarse operator."""
    first = Krylov(coarse, space.generator)
    certain, wanted = search(first, goal, start)
    if not first.finite:
        return start
    space.evidence.overlap = COARSE_OVERLAP if certain else OVERLAP
    return first.ends(wanted, goal.bottom).to(space.operator.dtype)


def _extremes(space: Krylov, goal: Goal, certain: bool, keep: int) -> Extremes:
    """The result of a search that ended, `certain` or not; with one warning where something went wrong."""
    upper = min(goal.top, len(space.theta))
    lower = min(goal.bottom, len(space.theta) - upper)
    upwards = torch.arange(len(space.theta)).flip(0)  # the order of the bottom
    tops, bottoms = space.s[:, :upper], space.s[:, upwards[:lower]]  # (m, k)
    if goal.max_vectors is None or not space.finite:
        vectors = space.combined(tops), space.combined(bottoms)  # (k, P)
    else:  # no room for them beside the basis
        space.rotate(torch.cat([tops, bottoms], 1))
        vectors = space.rows[:upper], space.rows[upper : upper + lower]
    most = goal.tol * space.scale if certain else math.inf
    top = _end(space, space.theta, space.norms, vectors[0], most, goal.top)
    bottom = _end(space, -space.theta[upwards], space.norms[upwards], vectors[1], most, goal.bottom)
    bottom = replace(bottom, values=-bottom.values)
    if not space.finite:
        warnings.warn("a product of the operator is not finite: every eigenvalue is NaN", stacklevel=3)
    elif not certain:
        worst = float(torch.cat([top.errors[:upper], bottom.errors[:lower]]).max()) / (space.scale or 1.0)
        warnings.warn(
            f"eigenvalues not converged: error {max(worst, 1.01 * goal.tol):.1e} of the largest after {space.matvecs} "
            f"products, wanted {goal.tol:.1e}; raise max_matvecs={goal.max_matvecs} or tol",
            stacklevel=3,
        )
    return Extremes(top, bottom, _kept(space, keep) if keep and space.finite else None)


def _end(space: Krylov, theta: Tensor, norms: Tensor, vectors: Tensor, most: float, wanted: int) -> Eigenpairs:
    """The first pairs of theta (m,), descending, with their `vectors` (k, P); NaN for the rest of the wanted."""
    count = len(vectors)
    least = torch.finfo(vectors.dtype).eps * space.scale  # round-off of the values themselves
    errors = cluster_errors(theta, norms)[:count].clamp(max=most).clamp(min=least)
    parts = theta[:count], vectors.T, norms[:count], errors
    values, vectors, norms, errors = (
        pad(part, (0, wanted - count), value=math.nan) if count < wanted else part for part in parts
    )
    return Eigenpairs(values, vectors, norms, errors, space.matvecs, math.isfinite(most))


def _kept(space: Krylov, count: int) -> tuple[Tensor, Tensor]:
    """The first Ritz vectors and their images (P, count), from A v = theta v + N'C's."""
    s = space.s[:, :count]  # (m, count)
    vectors = space.combined(s)  # (count, P)
    outside = (space.images[len(s) :] @ s).T.to(vectors)  # (count, b)
    return vectors.T, (space.theta[:count].to(vectors)[:, None] * vectors + outside @ space.following).T

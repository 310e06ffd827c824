"""Extreme eigenpairs of a symmetric operator, each with its error and its cost; when to stop: `lab.curvature.krylov`."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lab.curvature.krylov import COPIES, OVERLAP, Krylov, cluster_errors, search
from lab.curvature.operators import LinearOperator
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

    above        more than `top` where more lie above this level: as many, and the first one below it.
    start        (P, any) vectors near the wanted ones, e.g. `Extremes.start` of a nearby operator: warm, few products.
                 None: cold, a claim that is false with probability `DECEIVED` a pair, whatever the operator.
    coarse       a cheap operator near this one (products in bfloat16, or on a part of the examples): the search is made
                 on it, and `operator` itself has the last word, starting from what was found.
    copies       whether a repeated eigenvalue must be found as often as it occurs. False: one random vector whatever is
                 wanted, a quarter fewer products; right where no eigenvalue is repeated, as a rule in trained networks.
    tol          wanted error of each value, relative to the largest |theta| found.
    max_vectors  vectors of P numbers that a cold solve may hold, work space included (thick restart): 16 for the top 10
                 with copies=False cost a tenth more products, 22 with copies=True two to three times as many.
    keep         as many Ritz vectors at the top are returned with their images, wanted ones or not: `Extremes.kept`.
    generator    of the random vectors (default: a fixed seed).
    Cost: one product a vector, as reported in `matvecs` (those of `coarse` not counted); memory m P numbers for m products.
    A large negative eigenvalue is never returned as the top one. Not converged within `max_matvecs`: one warning,
    `converged=False`, and NaN for pairs there was no room for. A product that is not finite makes every value NaN.
    """
    if min(top, bottom) < 0 or not 1 <= top + bottom <= operator.size:
        raise ValueError(f"top={top}, bottom={bottom}: expected between 1 and {operator.size} eigenpairs in all")
    if max_matvecs < top + bottom or not 0 <= tol < math.inf:
        raise ValueError(
            f"max_matvecs={max_matvecs}, tol={tol}: expected at least {top + bottom} products and a finite tol >= 0"
        )
    block = COPIES if copies and (max(top, bottom) > 1 or above is not None) else 1
    if max_vectors is not None and max_vectors < (least := top + bottom + 6 * block):
        raise ValueError(f"max_vectors={max_vectors}: expected at least {least} for {top + bottom} pairs")
    if start is not None and (start.dim() != 2 or len(start) != operator.size):
        raise ValueError(f"start of shape {tuple(start.shape)}: expected ({operator.size}, any number of vectors)")
    if keep < 0 or (keep and max_vectors is not None):
        raise ValueError(f"keep={keep}, max_vectors={max_vectors}: expected keep >= 0, and one of the two")
    space = Krylov(operator, generator or torch.Generator().manual_seed(0))
    if coarse is not None:
        first = Krylov(coarse, space.generator)
        searched, wanted = search(first, top, bottom, above, start, block, tol, max_matvecs, max_vectors)
        if first.finite:
            start, space.overlap = (
                first.ends(wanted, bottom).to(operator.dtype),
                COARSE_OVERLAP if searched else OVERLAP,
            )
    certain, top = search(space, top, bottom, above, start, block, tol, max_matvecs, max_vectors)
    upper = min(top, len(space.theta))
    lower = min(bottom, len(space.theta) - upper)
    most = tol * space.scale if certain else math.inf
    if max_vectors is not None and space.finite:
        space.turn([*range(upper), *range(len(space.theta) - 1, len(space.theta) - 1 - lower, -1)])
    ends = _end(space, 1, top, upper, most), _end(space, -1, bottom, lower, most)
    if not space.finite:
        warnings.warn("a product of the operator is not finite: every eigenvalue is NaN", stacklevel=2)
    elif not certain:
        errors = torch.cat([ends[0].errors[:upper], ends[1].errors[:lower]])
        worst = float(errors.max()) / (space.scale or 1.0)
        warnings.warn(
            f"eigenvalues not converged: error {max(worst, 1.01 * tol):.1e} of the largest after {space.matvecs} "
            f"products, wanted {tol:.1e}; raise max_matvecs={max_matvecs} or tol",
            stacklevel=2,
        )
    kept = None
    if keep and space.finite:
        first_ones = torch.arange(min(keep, len(space.theta)))
        kept = space.pairs(first_ones).T, space.images(first_ones).T
    return Extremes(ends[0], ends[1], kept)


def predicted(last: Tensor, before: Tensor) -> Tensor:
    """Where eigenvectors (P, k) are going: 2 last - before R, with R the rotation that takes `before` nearest to `last`.

    Linear extrapolation of two measurements at equal distances, as a `start` for the third: where the surface changes
    smoothly 2 or 3 products in the place of 5; at the edge of stability neither better nor worse than `last`.
    """
    u, _, v = torch.linalg.svd(before.double().T @ last.double())
    return 2 * last - before @ (u @ v).to(before)


def _end(space: Krylov, sign: int, wanted: int, found: int, most: float) -> Eigenpairs:
    """The `found` pairs at the top (sign 1) or bottom (-1), errors at most `most`; NaN for the rest of the `wanted`."""
    inwards = torch.arange(len(space.theta))
    inwards = inwards if sign > 0 else inwards.flip(0)
    order = inwards[:found]
    least = torch.finfo(space.operator.dtype).eps * space.scale  # round-off of the values themselves
    errors = cluster_errors(sign * space.theta[inwards], space.norms[inwards])[:found].clamp(max=most).clamp(min=least)
    values, residuals, vectors = space.theta[order], space.norms[order], space.pairs(order).T
    if found < wanted:
        values, residuals, errors, vectors = (
            functional.pad(each, (0, wanted - found), value=math.nan) for each in (values, residuals, errors, vectors)
        )
    return Eigenpairs(values, vectors, residuals, errors, space.matvecs, math.isfinite(most))

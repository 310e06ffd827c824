"""What a point of a loss is: no critical point, or a minimum, a saddle, a maximum, or one the Hessian does not decide.

    not critical   |g| > gradient_tol, or a plateau
    minimum        every eigenvalue above +tolerance          maximum   every one below -tolerance
    saddle         some below -tolerance and some above +tolerance
    degenerate     some within tolerance of zero, and no opposite signs: higher derivatives decide

The gradient comes first. A small one alone does not make a critical point: on a plateau, L = e^-x, everything is small and
nothing vanishes. What counts is what following it would change: at the curvature h = |Hg|/|g| that it meets, a step -g/h
of length |g|/h takes |g|^2/(2h) off the loss. Where that is more than `PLATEAU` of |L| and the step longer than
`PLATEAU` times |w| (or 1, if that is more), the gradient is not done. (h is never larger than the largest |eigenvalue|, so
this is the stricter form of comparing |g|^2/lambda_max with the loss: a flat direction is not excused by a steep one beside
it. Where the gradient lies in the null space of H both are infinite.) A gradient that the rounding of w alone would make
counts as zero.

Eigenvalues by Lanczos from both ends, or all of them where the matrix is small. Ritz values lie inside the spectrum, so as
many eigenvalues as there are Ritz values below -tolerance are negative for sure (Cauchy): the index is at least that, and
exactly that once the solve has also found the first one that is not negative. Eigenvalues within tolerance = `tol` times
the largest |eigenvalue| are not told from zero; networks have many such (symmetries, examples fewer than weights).
Index against loss: Dauphin et al. 2014 (arXiv 1406.2572).
"""

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import Hessian, LinearOperator, hessian
from lab.curvature.vectors import norm
from lab.objective import Objective
from lab.results import ClassifiedPoint, Eigenpairs, Kind

PLATEAU = 1e-4
"""Share of the loss, or of the length of w, that following the gradient may still change at a critical point."""
ROUNDING = 10.0
"""Times the smallest gradient that can be told from zero at the precision of w."""


@dataclass(frozen=True)
class KnownSpectrum:
    """The known eigenpairs, ascending, and what they say of those that are not."""

    values: Tensor
    errors: Tensor
    vectors: Tensor
    tolerance: float
    index: int
    index_exact: bool
    nullity: int
    nullity_exact: bool
    positive: bool
    all_negative: bool
    matvecs: int
    converged: bool


def classify(
    objective: Objective,
    w: Tensor,
    *,
    gradient_tol: float = 1e-8,
    tol: float = 1e-4,
    dense: int = 500,
    max_matvecs: int = 400,
    generator: Generator | None = None,
) -> ClassifiedPoint:
    """Classify the point w (P,) of any objective, at the precision of w: float64 tells more eigenvalues from zero.

    gradient_tol  |g| above it: not critical, whatever the Hessian. In the unit of the loss per unit of w.
    tol           eigenvalues within tol x the largest |eigenvalue| of zero count as null; also what Lanczos resolves.
    dense         up to so many weights all eigenvalues are computed, at P Hessian products.
    max_matvecs   products that Lanczos may take; where they do not reach the last negative eigenvalue the index is a lower
                  bound (`index_exact` False), and where they leave the kind open it is "undetermined".
    Cost: one gradient, 1 + min(P, max_matvecs) products. Raises ValueError where the gradient is not finite.

    >>> from lab.landscapes.factorisation import Factorisation
    >>> found = classify(Factorisation(), torch.tensor([2.0, 0.5], dtype=torch.float64))
    >>> found.kind, found.index, found.nullity, [round(value, 6) + 0.0 for value in found.values.tolist()]
    ('degenerate', 0, 1, [0.0, 4.25])
    """
    H = hessian(objective, w)
    size = norm(H.gradient)
    if not math.isfinite(size):
        raise ValueError("the gradient is not finite: there is nothing to classify")
    gain, length = follow(H, size)
    few = len(w) <= max(dense, 2)  # Lanczos wants two ends
    ends = _all(H, tol) if few else _both_ends(H, tol, max_matvecs, generator)
    value = float(H.value)
    done = gain <= PLATEAU * abs(value) or length <= PLATEAU * max(1.0, norm(w))
    critical = size <= _rounding(w, value, ends) or (size <= gradient_tol and done)
    return _point(_kind(ends) if critical else "not critical", value, size, gain, length, ends)


def _point(kind: Kind, value: float, size: float, gain: float, length: float, ends: KnownSpectrum) -> ClassifiedPoint:
    return ClassifiedPoint(
        kind,
        value,
        size,
        gain,
        length,
        ends.index,
        ends.index_exact,
        ends.nullity,
        ends.nullity_exact,
        ends.values,
        ends.errors,
        ends.vectors,
        ends.tolerance,
        ends.matvecs + 1,
        ends.converged,
    )


def _rounding(w: Tensor, value: float, ends: KnownSpectrum) -> float:
    """|g| up to which it cannot be told from zero at the precision of w."""
    largest = float(ends.values.abs().max())
    return ROUNDING * torch.finfo(w.dtype).eps * (largest * norm(w) + math.sqrt(2 * largest * abs(value)))


def follow(H: Hessian, size: float) -> tuple[float, float]:
    """What a step along -g could take off the loss, and its length: |g|^2/(2h) and |g|/h, h = |Hg|/|g|. Cost: one product.

    (g'Hg/|g|^2 would not do: at a saddle curvatures of both signs cancel in it.)
    """
    if size == 0:
        return 0.0, 0.0
    h = norm(H @ (H.gradient / size))
    return (size**2 / (2 * h), size / h) if h > 0 else (math.inf, math.inf)


def _kind(ends: KnownSpectrum) -> Kind:
    if ends.index and ends.positive:
        return "saddle"
    if not ends.converged:
        return "undetermined"
    if ends.all_negative:
        return "maximum"
    return "minimum" if not ends.index and not ends.nullity else "degenerate"


def _all(H: LinearOperator, tol: float) -> KnownSpectrum:
    """Every eigenvalue; its error is the asymmetry of the products, which is their round-off."""
    matrix = H.dense().double()
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    largest = float(values.abs().max())
    error = float((matrix - matrix.T).norm()) / 2 + torch.finfo(H.dtype).eps * largest * H.size**0.5
    tolerance = max(tol * largest, error)
    index, positive = int((values < -tolerance).sum()), int((values > tolerance).sum())
    return KnownSpectrum(
        values,
        torch.full_like(values, error),
        vectors.to(H.dtype),
        tolerance,
        index,
        True,
        H.size - index - positive,
        True,
        positive > 0,
        index == H.size,
        H.size,
        True,
    )


def _both_ends(H: LinearOperator, tol: float, max_matvecs: int, generator: Generator | None) -> KnownSpectrum:
    """The largest, and from below all that are negative and the first that is not, as far as the products go."""
    top, bottom, tolerance, matvecs = _solved(H, tol, max_matvecs, generator)
    known = bottom.values.isfinite()
    lower, count = bottom.values[known], int(known.sum())
    index = int((lower < -tolerance).sum())
    exhausted = bottom.converged and (index < count or count == H.size)
    # Where more negative ones may hide, values near zero may be theirs: nothing is known of the nullity.
    null = int((lower - bottom.errors[known] <= tolerance).sum()) - index if exhausted else 0
    largest, error = float(top.values[0]), float(top.errors[0])
    all_negative = top.converged and largest + error < -tolerance
    beyond = exhausted and index + null < count
    if tolerance == 0.0:  # the zero matrix
        index, null, exhausted, beyond = 0, H.size, top.converged, top.converged
    upper = slice(None) if count < H.size else slice(0)
    return KnownSpectrum(
        torch.cat([lower, top.values[upper]]),
        torch.cat([bottom.errors[known], top.errors[upper]]),
        torch.cat([bottom.vectors[:, known], top.vectors[:, upper]], dim=1),
        tolerance,
        H.size if all_negative else index,
        all_negative or exhausted,
        null,
        all_negative or beyond,
        largest > tolerance,
        all_negative,
        matvecs,
        top.converged and exhausted,
    )


def _solved(
    H: LinearOperator, tol: float, max_matvecs: int, generator: Generator | None
) -> tuple[Eigenpairs, Eigenpairs, float, int]:
    """The largest eigenvalue; the lowest, or all below -tolerance where there are some; tolerance; products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `index_exact` and `converged` say it
        ends = lanczos(H, top=1, bottom=1, tol=tol, max_matvecs=max_matvecs, generator=generator)
        top, bottom = ends.top, ends.bottom
        tolerance = tol * float(torch.cat([top.values, bottom.values]).abs().max())
        left = max_matvecs - top.matvecs
        if not (float(bottom.values[0]) < -tolerance and left > 1):
            return top, bottom, tolerance, top.matvecs
        upside_down = LinearOperator(H.size, lambda v: -(H @ v), dtype=H.dtype, device=H.device)
        below = lanczos(upside_down, above=tolerance, tol=tol, max_matvecs=left, generator=generator).top
    if int((below.values > tolerance).sum()) >= 1:
        bottom = replace(below, values=-below.values)
    return top, bottom, tolerance, top.matvecs + below.matvecs

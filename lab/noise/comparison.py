"""Several symmetric matrices held against each other: traces, norms, cosines and distances, all from the same products.

    <A, B> = Tr AB = sum over q of (A q)'(B q)  +  E (A z)'(B z)      Tr A likewise, from q'A q and z'A z
    cos(A, B) = <A, B> / (|A| |B|),   distance(A, B) = |A - B| / |B|

with q an orthonormal basis, best of eigenvectors that carry much of the norm, and z random signs less their part in its
span: exact there, sampled in the rest (Hutchinson 1990; Meyer, Musco, Musco and Woodruff 2021). The errors of numerator
and denominator hang together, so those of ratios are by the jackknife over the z (Efron 1982): matrices that are multiples
of each other have a cosine of 1 with an error of 0. Where q and z would be no fewer than P, unit vectors make all exact.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from lab.curvature.vectors import COLUMNS
from lab.streams import random_signs

FEWEST = 5
"""Random vectors that an error can rest on."""


@dataclass(frozen=True)
class Comparison:
    """What q matrices have to do with each other, float64. Errors are one standard error, 0 where all is exact.

    traces, norms (q,) Tr A_i and |A_i|_F; cosines, distances (q, q), distances[i, j] = |A_i - A_j| / |A_j|, NaN beside a
    zero matrix; *_errors in the same shapes; vectors the products of every matrix that were taken.
    """

    traces: Tensor
    norms: Tensor
    cosines: Tensor
    distances: Tensor
    trace_errors: Tensor
    norm_errors: Tensor
    cosine_errors: Tensor
    distance_errors: Tensor
    vectors: int


def compare(
    products: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    basis: Tensor | None = None,
    vectors: int = 20,
    generator: torch.Generator | None = None,
) -> Comparison:
    """Compare q matrices on R^P, known by products(v) -> (q, P), the rows A_1 v .. A_q v; `like` (P,) gives size and dtype.

    basis (P, k): vectors of any length and angle. Errors ~ 1/sqrt(vectors), times the norms of what is left of the matrices
    outside the basis. Cost: k + vectors products of every matrix, P at most; memory (q + k) P numbers. Raises ValueError
    where `vectors` is too small to tell an error.

    >>> A, B = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([3.0, 0.0, 4.0])
    >>> found = compare(lambda v: torch.stack([A * v, B * v]), A)
    >>> [round(float(x), 2) for x in (found.norms[0], found.cosines[0, 1], found.distances[0, 1])]
    [5.0, 0.36, 1.13]
    """
    if vectors < FEWEST:
        raise ValueError(f"vectors={vectors}: expected at least {FEWEST}, on which an error can rest")
    size, generator = like.numel(), generator or torch.Generator().manual_seed(0)
    Q = like.new_zeros(size, 0) if basis is None else _orthonormal(basis.to(like))
    if size <= Q.shape[1] + vectors:
        units = torch.eye(size, dtype=like.dtype, device=like.device)
        return _compared(*_moments(products, units), None, None, size)

    def rest() -> Iterable[Tensor]:
        for _ in range(vectors):
            z = random_signs((size,), like, generator)
            z = z - Q @ (Q.T @ z)
            yield z - Q @ (Q.T @ z)

    found = [_moments(products, [z]) for z in rest()]
    drawn, grams = torch.stack([traces for traces, _ in found]), torch.stack([gram for _, gram in found])
    if Q.shape[1]:
        return _compared(*_moments(products, Q.T), drawn, grams, Q.shape[1] + vectors)
    return _compared(torch.zeros_like(drawn[0]), torch.zeros_like(grams[0]), drawn, grams, vectors)


def _moments(products: Callable[[Tensor], Tensor], along: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Sums over v of v'A_i v (q,), of (A_i v)'(A_j v) and of |A_i v - A_j v|^2 (2, q, q), float64: the distance of equals
    is not what is left of the products.
    """
    traces = gram = torch.zeros((), dtype=torch.float64)
    for v in along:
        rows = products(v)
        for piece, part in zip(rows.split(COLUMNS, dim=1), v.split(COLUMNS), strict=True):
            piece = piece.double()
            apart = torch.cdist(piece, piece, compute_mode="donot_use_mm_for_euclid_dist").square()
            traces = traces + (piece @ part.double()).cpu()
            gram = gram + torch.stack([piece @ piece.T, apart]).cpu()
    return traces, gram


def _compared(trace: Tensor, gram: Tensor, drawn: Tensor | None, grams: Tensor | None, vectors: int) -> Comparison:
    """The exact parts (q,), (2, q, q) and the samples (m, q), (m, 2, q, q) put together."""
    if drawn is None or grams is None:
        values = _quantities(trace, gram)
        errors = [torch.zeros_like(value) for value in values]
    else:
        num = len(drawn)
        values = _quantities(trace + drawn.mean(0), gram + grams.mean(0))
        left_out = _quantities(trace + (drawn.sum(0) - drawn) / (num - 1), gram + (grams.sum(0) - grams) / (num - 1))
        wider = float(stdtrit(num - 1, 0.975)) / 1.96
        errors = [wider * ((num - 1) * each.var(0, correction=0)).sqrt() for each in left_out]
    (a, b, c, d), (e, f, g, h) = values, errors
    return Comparison(a, b, c, d, e, f, g, h, vectors)


def _quantities(traces: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Traces, norms, cosines and distances of (..., q) and (..., 2, q, q)."""
    gram, apart = gram.unbind(-3)
    norms, apart = (
        gram.diagonal(dim1=-2, dim2=-1).sqrt(),
        apart.clamp(min=0).sqrt(),
    )  # left out, a sum may be below zero
    return traces, norms, gram / (norms[..., :, None] * norms[..., None, :]), apart / norms[..., None, :]


def _orthonormal(basis: Tensor) -> Tensor:
    """An orthonormal basis of the span of the finite columns, without directions that are round-off beside the rest."""
    q, r = torch.linalg.qr(basis[:, basis.isfinite().all(0)])
    left, singular, _ = torch.linalg.svd(r, full_matrices=False)
    return q @ left[:, singular > singular[:1] * torch.finfo(basis.dtype).eps ** 0.5]

"""Matrices of known spectra, and what is true of the pairs that are found of them."""

import torch
from torch import Tensor

from lab.curvature.eigen import Extremes
from lab.curvature.operators import LinearOperator, of_matrix

CPU = torch.device("cpu")


def rotated(h: Tensor, seed: int = 0) -> tuple[LinearOperator, Tensor]:
    """A dense symmetric matrix with the eigenvalues h, and it."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(h), len(h), dtype=h.dtype, generator=generator))[0]
    a = q @ torch.diag(h) @ q.T
    a = (a + a.T) / 2
    return of_matrix(a), a


def check_residuals(operator: LinearOperator, ends: Extremes) -> None:
    """Reported residuals are ||A v - theta v||, errors never exceed them, vectors are orthonormal."""
    largest = float(torch.cat([ends.top.values, ends.bottom.values]).abs().max())
    for pairs in (ends.top, ends.bottom):
        scale = max(1e-300, float(pairs.values.abs().max())) if len(pairs.values) else 1.0
        for theta, v, residual in zip(pairs.values, pairs.vectors.unbind(1), pairs.residuals, strict=True):
            assert abs(float((operator @ v - theta * v).norm() - residual)) < 1e-12 * scale
        assert (pairs.errors <= pairs.residuals.clamp(min=1e-15 * largest)).all()
        gram = pairs.vectors.T @ pairs.vectors
        assert torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-12)


SPECTRA = {
    "spread": torch.linspace(-1, 3, 60),
    "outliers": torch.cat([torch.tensor([9.0, 5.0, -4.0]), torch.linspace(-0.1, 0.1, 57)]),
    "more negative than positive": torch.cat([torch.tensor([1.0, 0.5]), torch.linspace(-50, 0.2, 58)]),
    "all negative": torch.linspace(-5, -1, 60),
    "rank two": torch.cat([torch.tensor([3.0, -2.0]), torch.zeros(58)]),
    "repeated": torch.cat([torch.full((3,), 4.0), torch.full((30,), 1.0), torch.full((27,), -2.0)]),
}

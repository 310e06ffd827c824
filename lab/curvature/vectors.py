"""Inner products of long vectors, accumulated in float64.

A float32 sum over millions of entries loses four digits. Here pieces of `COLUMNS` entries are multiplied in the dtype of
the vectors, as fast as ever, and the pieces are added up in float64.
"""

import math

import torch
from torch import Tensor

COLUMNS = 2**15
"""Entries multiplied at a time in the dtype of the vectors; the pieces are added in float64."""


def norm(v: Tensor) -> float:
    """|v| of v (P,), whatever its size: float32 squares end at 1e-45 and 3e38, vectors of 1e-23 and 1e20 are met.

    >>> norm(torch.full((10**6,), 0.5))
    500.0
    >>> norm(torch.tensor([3.0, 4.0], dtype=torch.float64) * 2.0**-600) / 2.0**-600
    5.0
    """
    square, limits = float(dot(v[None], v)), torch.finfo(v.dtype)
    if limits.tiny / limits.eps**2 < square < limits.max:
        return math.sqrt(square)
    largest = float(v.abs().max())  # squares that overflow, or vanish: once more in its own unit
    if not 0 < largest < math.inf:
        return largest
    return largest * math.sqrt(float(dot((v / largest)[None], v / largest)))


def dot(rows: Tensor, v: Tensor) -> Tensor:
    """rows (m, P) times v (P,): (m,) float64.

    >>> dot(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 4.0]))
    tensor([11.], dtype=torch.float64)
    """
    return dots(rows, v[None])[:, 0]


def dots(rows: Tensor, vectors: Tensor) -> Tensor:
    """rows (m, P) times vectors (k, P): every inner product, (m, k) float64.

    >>> dots(torch.eye(2), torch.tensor([[3.0, 4.0]]))
    tensor([[3.],
            [4.]], dtype=torch.float64)
    """
    total = torch.zeros(len(rows), len(vectors), dtype=torch.float64, device=rows.device)
    for begin in range(0, rows.shape[1], COLUMNS):
        piece = slice(begin, begin + COLUMNS)
        total += (rows[:, piece] @ vectors[:, piece].T).double()
    return total

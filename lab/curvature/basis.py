"""An orthonormal basis that grows, and a symmetric operator A seen through it: the one basis of all Krylov methods here.

    Q (n, P) orthonormal rows, the first m of them multiplied by A:     A Q_m' = Q_m'T + N'C'

T = Q_m A Q_m' (m, m) is A projected on them, N (n - m, P) are the rows after them, and C (m, n - m) is what the images have
along N. From T s = theta s follow the Ritz pairs: v = Q_m's with A v - theta v = N'C's, so that the length of a residual is
that of C's and costs no product. One multiplication more turns N into rows of Q_m and needs a new N.

Started from one vector this is textbook Lanczos. A q_j has components along q_{j-1}, q_j and q_{j+1} alone (the three-term
recurrence), T is tridiagonal and N one row; from b vectors T is banded and N has b rows. In floating point the recurrence
alone loses orthogonality exactly as Ritz vectors converge, and brings converged eigenvalues back as copies (Paige 1971).
So an image is orthogonalised against the last two blocks, which takes all of it but round-off, and then against all of Q
once more: "twice is enough" (Kahan and Parlett, in Parlett, The Symmetric Eigenvalue Problem, 1998, section 6.9).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from lab.curvature.linear import LinearOperator
from lab.curvature.vectors import COLUMNS, dot, dots, norm

ROOM = 64
"""Vectors for which room is made at first on a CPU, where memory that is not written to costs nothing."""
ROUND_OFF = 100
"""What an image has outside of the basis is round-off below so many machine epsilons of the largest image."""


class Rows:
    """A stack of vectors, `rows` (n, P), that grows; dtype and device are those of the operator."""

    def __init__(self, operator: LinearOperator):
        self._memory = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Tensor:
        return self._memory[: self._count]

    def reserve(self, count: int) -> None:
        """Room for so many vectors in all, at once: growing needs room for the old and the new stack together."""
        if count > len(self._memory):
            more = self._memory.new_empty(count - len(self._memory), self._memory.shape[1])
            self._memory = torch.cat([self._memory, more]) if len(self._memory) else more

    def append(self, vectors: Tensor) -> None:
        """More vectors, (k, P) or (P,)."""
        vectors = torch.atleast_2d(vectors)
        end = self._count + len(vectors)
        if end > len(self._memory):
            on_cpu = self._memory.device.type == "cpu"
            self.reserve(max(end, ROOM, 2 * self._count) if on_cpu else end + max(3, self._count // 2))
        self._memory[self._count : end] = vectors
        self._count = end

    def truncate(self, count: int) -> None:
        """Only the first `count` vectors."""
        self._count = count

    def combined(self, s: Tensor, total: Tensor | None = None) -> Tensor:
        """s'Q (k, P) of coordinates s (m, k), m <= n; added to `total` where it is given."""
        s, rows = s.to(self._memory), self.rows[: len(s)]
        return s.T @ rows if total is None else total.addmm_(s.T, rows)


class Basis(Rows):
    """Q, T = `t`, and C = `c` followed by as many columns for the lengths of what was dropped as round-off; `matvecs`
    products of A so far, `finite` unless one was not.

    >>> from lab.curvature.linear import of_matrix
    >>> basis = Basis(of_matrix(torch.tensor([3.0, 2.0, 1.0])))
    >>> basis.begin(torch.tensor([1.0, 1.0, 0.0]))
    True
    >>> for _ in range(2):
    ...     basis.expand()
    >>> torch.linalg.eigvalsh(basis.t).round(decimals=5).tolist(), len(basis.following)
    ([2.0, 3.0], 0)
    """

    def __init__(self, operator: LinearOperator):
        super().__init__(operator)
        self.operator, self.matvecs, self.finite = operator, 0, True
        self.t = torch.zeros(0, 0, dtype=torch.float64)
        self.c = torch.zeros(0, 0, dtype=torch.float64)
        self._last = 0  # where the block begins that was multiplied last
        self._largest = 0.0  # length of a column of T, a lower bound of |A|

    @property
    def following(self) -> Tensor:
        """N (n - m, P): the rows that A has not multiplied yet."""
        return self.rows[len(self.t) :]

    @property
    def images(self) -> Tensor:
        """[T; C'] (n, m), float64: the images A Q_m' in the basis."""
        count = len(self.following)
        return torch.cat([self.t, self.c[:, :count].T]) if len(self.t) else self.t.new_zeros(count, 0)

    def outside(self, v: Tensor, begin: int = 0, end: int | None = None) -> tuple[Tensor, Tensor]:
        """v (P,) or (k, P) less its components along the rows begin .. end, and these: (n,) or (k, n), float64."""
        rows = self.rows[begin:end]
        inside = dot(rows, v) if v.dim() == 1 else dots(rows, v).T  # (n,) or (k, n)
        return v - inside.to(v.dtype) @ rows, inside.cpu()

    def begin(self, v: Tensor) -> bool:
        """What v / |v| (P,) has outside of Q into N; False where v is zero, not finite, or in Q up to round-off."""
        v, before = v.to(self._memory), len(self)
        length = norm(v)
        if 0 < length < math.inf:
            outside, _ = self.outside(v / length)
            self.absorb(outside[None], torch.finfo(v.dtype).eps ** 0.5, math.inf)
        return len(self) > before

    def expand(self) -> None:
        """Multiply N, which becomes part of Q_m; the new N is an orthonormal basis of what the images have outside of Q."""
        begin, end = len(self.t), len(self)
        new = torch.stack([self.operator @ q for q in self.following])  # (b, P)
        self.matvecs += len(new)
        t = pad(self.t, (0, len(new), 0, len(new)))  # (m + b, m + b)
        for rows in (slice(self._last, end), slice(0, end)):  # all but round-off is in the last two blocks
            inside = dots(self.rows[rows], new)  # (rows, b)
            new.addmm_(inside.T.to(new), self.rows[rows], alpha=-1)
            t[rows, begin:] += inside.cpu()
        t[begin:, begin:] = (t[begin:, begin:] + t[begin:, begin:].T) / 2
        t[begin:, :begin] = t[:begin, begin:].T
        self.t, self._last, self.finite = t, begin, bool(t.isfinite().all())
        self.c = t.new_zeros(end, 2 * len(new))  # (m + b, 2b)
        if self.finite:
            self._largest = max(self._largest, float(t[:, begin:].norm(dim=0).max()))
            least = ROUND_OFF * torch.finfo(new.dtype).eps * self._largest
            self.c[begin:] = self.absorb(new, least, 1e-2 * self._largest)

    def absorb(self, vectors: Tensor, least: float, safe: float) -> Tensor:
        """Append what is longer than `least` of each of the vectors (k, P), orthogonal to Q, outside of those before it.

        What is shorter than `safe` may be round-off along Q, and is cleaned again. Returns (k, 2k) float64: coordinates
        along the rows appended, and the lengths of what was not.
        """
        begin, count = len(self), len(vectors)
        c = torch.zeros(count, 2 * count, dtype=torch.float64)
        for j, v in enumerate(vectors):
            added = len(self) - begin
            for _ in range(2):
                v, inside = self.outside(v, begin)
                c[j, :added] += inside
            length = norm(v)
            if length > least:
                v = self.outside(v / length)[0] if length < safe else v / length
            if length > least and norm(v) > 0.7 and len(self) < self.operator.size:
                c[j, added] = length
                self.append(v / norm(v))
            else:
                c[j, count + j] = length
        return c

    def project(self, images: Tensor) -> None:
        """T of N too, from its images (k, P) under A: for rows that come from elsewhere than `expand`."""
        t = dots(self.rows, images).cpu()  # (n, k)
        count = len(images)
        self.t = pad(self.t, (0, count, 0, count))  # (n, n)
        self.t[-count:], self.t[:, -count:] = t.T, t
        self.finite = bool(t.isfinite().all())

    def rotate(self, s: Tensor) -> None:
        """Q_m becomes the vectors s'Q_m of s (m, k), k <= m, piece by piece: no second basis is held. N stays."""
        s, count, following = s.T.to(self._memory), s.shape[1], self.following.clone()
        for begin in range(0, self.operator.size, COLUMNS):
            piece = slice(begin, begin + COLUMNS)
            self._memory[:count, piece] = s @ self._memory[: s.shape[1], piece]
        self.truncate(count)
        self.append(following)


def ritz(t: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (m,) of t (m, m), descending, and its eigenvectors (m, m), as columns.

    >>> ritz(torch.diag(torch.tensor([1.0, 3.0])))[0]
    tensor([3., 1.])
    """
    values, vectors = torch.linalg.eigh(t)
    return values.flip(0), vectors.flip(1)

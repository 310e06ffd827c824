"""The two sides between which the eigenvalues of A lie, in the method of `lab.curvature.davidson`.

    below   V orthonormal (j, P), where A V' is known:      V A V' = Z diag(theta) Z'
    above   B orthonormal (n, P), where C B' is known:      B (M + delta (1 - Pi)) B' = S diag(values) S'

    M = C + (terms of A - C known before) + (terms of A - C on V),    Pi = V'V

Everything is kept in the coordinates of B: with T = B C B', c = K B' and f = D B' for each pair (K, D), D = (A - C) K', the
upper matrix follows by small products, so that a new row of V or another delta costs no product of C.
"""

import math

import torch
from torch import Tensor

from lab.curvature.basis import Basis, Rows, ritz
from lab.curvature.krylov import cluster_errors
from lab.curvature.operators import LinearOperator
from lab.curvature.vectors import dot, dots, norm
from lab.results import Eigenpairs

BESIDE = 2
"""Pairs after the wanted ones that are followed too, so that one that overtakes is seen to come."""
LOOSE = 10.0
"""Error that they may have, in tolerances."""
SAFETY = 1.5
"""delta over the largest v'(A - M)v that was measured."""


class Secant:
    """K'D + D'K - K'(D K')K for orthonormal K (k, P) and D = K E (k, P): the symmetric matrix that agrees with E on K and is
    zero where neither K nor D reaches. In a basis B it is known by c = K B' and f = D B' (k, n).
    """

    def __init__(self, operator: LinearOperator):
        self.K, self.D = Basis(operator), Rows(operator)
        self.c = self.f = self.within = torch.zeros(0, 0, dtype=torch.float64)

    def append(self, vectors: Tensor, differences: Tensor, c: Tensor | None = None, f: Tensor | None = None) -> None:
        """More vectors (k, P) of K and D, with their coordinates (k, n) in the basis; none where that is empty still."""
        self.K.append(vectors)
        self.D.append(differences)
        within = dots(self.K.rows, self.D.rows).cpu()  # D K' (k, k)
        self.within = (within + within.T) / 2
        nothing = torch.zeros(len(vectors), self.c.shape[1], dtype=torch.float64)
        self.c = torch.cat([self.c, nothing if c is None else c])  # (k, n)
        self.f = torch.cat([self.f, nothing if f is None else f])  # (k, n)

    def widen(self, vectors: Tensor) -> None:
        """More vectors (m, P) of the basis."""
        self.c = torch.cat([self.c, dots(self.K.rows, vectors).cpu()], 1)
        self.f = torch.cat([self.f, dots(self.D.rows, vectors).cpu()], 1)

    def matrix(self) -> Tensor:
        """(n, n): this in the basis."""
        cross = self.f.T @ self.c  # (n, n)
        return cross + cross.T - self.c.T @ self.within @ self.c

    def times(self, s: Tensor, total: Tensor, delta: float = 0.0) -> Tensor:
        """This, less delta K'K, at the vectors of coordinates s (n, m), added to `total` (m, P)."""
        along = self.c @ s  # (k, m)
        self.D.combined(along, total)
        return self.K.combined(self.f @ s - self.within @ along - delta * along, total)

    def at(self, vectors: Tensor) -> Tensor:
        """(m, P): this at any vectors (m, P)."""
        along = dots(self.K.rows, vectors).cpu()  # (k, m)
        images = self.D.combined(along)  # (m, P)
        return self.K.combined(dots(self.D.rows, vectors).cpu() - self.within @ along, images)


class Sides:
    """Both sides. `before` is what was known of A - C on other vectors, `now` what is on V = now.K; `seen` every
    v'(A - M)v measured so far.
    """

    def __init__(self, operator: LinearOperator, coarse: LinearOperator, top: int, tol: float):
        self.operator, self.coarse, self.top, self.tol = operator, coarse, top, tol
        self.before, self.now = Secant(operator), Secant(operator)
        self.B, self.CB, self.AV = Basis(coarse), Rows(coarse), Rows(operator)
        self.values = self.errors = torch.zeros(0, dtype=torch.float64)  # above: (n,) and of the first few
        self.theta = torch.zeros(0, dtype=torch.float64)  # below: (j,)
        self.s = self.z = torch.zeros(0, 0, dtype=torch.float64)  # (n, n), (j, j)
        self.seen: list[float] = []
        self.delta, self.finite = 0.0, True

    @property
    def V(self) -> Basis:
        return self.now.K

    def widen(self, vectors: Tensor) -> bool:
        """Vectors (k, P) into B: a product of C each. False where all are in its span, up to a thousandth."""
        vectors, begin = vectors.to(self.B.rows), len(self.B)
        norms = torch.tensor([norm(v) for v in vectors])
        good = (norms > 0) & norms.isfinite()
        self.B.absorb(self.B.outside(vectors[good] / norms[good, None].to(vectors))[0], least=1e-3, safe=0.5)
        new = self.B.rows[begin:]  # (k or less, P)
        if not len(new):
            return False
        images = torch.stack([self.coarse @ v for v in new])
        self.CB.append(images)
        self.B.project(images)
        self.before.widen(new)
        self.now.widen(new)
        self.finite = self.B.finite
        return self.finite

    def settle(self, room: int) -> bool:
        """Widen B by residuals until the pairs above are certain enough; False where there is no more room."""
        wanted = self.tol * torch.tensor([0.5] * self.top + [LOOSE] * BESIDE, dtype=torch.float64)
        while self.finite and len(self.B):
            upper = self.upper()
            if not bool(upper.isfinite().all()):
                return False
            self.values, self.s = ritz(upper)
            count = min(self.top + BESIDE + 1, len(self.values))
            residuals = self.residuals(count)
            self.errors = cluster_errors(self.values[:count], torch.tensor([norm(r) for r in residuals]).double())
            excess = self.errors[: len(wanted)] / (self.scale * wanted[:count])
            if count > len(wanted) and bool((excess <= 1).all()):
                return True
            more = residuals[: len(excess)][excess > 1] if count > len(wanted) else residuals
            if len(self.B) + len(more) > room or not self.widen(more):
                return False
        return False

    def look(self) -> bool:
        """One product of A, at the first pair whose sides are too far apart; False where no pair leads out of V."""
        gaps = self.gaps()
        for i in sorted(range(self.top), key=lambda i: not float(gaps[i]) > self.tol * self.scale):
            x = self.s[:, i]  # (n,)
            for _ in range(2):
                x = x - self.now.c.T @ (self.now.c @ x)
            if (length := float(x.norm())) > 1e-2:
                self._learn(x / length)
                return True
        return False

    def _learn(self, x: Tensor) -> None:
        """A product of A at the vector of coordinates x (n,) in B, orthogonal to V."""
        v, _ = self.V.outside(self.B.combined(x[:, None])[0])  # (P,)
        v = v / norm(v)
        image = self.operator @ v
        self.finite = bool(image.isfinite().all())
        if not self.finite:
            return
        self.seen.append(float(dot(v[None], image)) - float(x @ self.lower() @ x))
        known = self.before.times(x[:, None], self.CB.combined(x[:, None]))  # (1, P)
        difference = image - known
        self.AV.append(image)
        self.now.append(v[None], difference, x[None], dots(difference, self.B.rows).cpu())
        self.V.project(image[None])
        self.theta, self.z = ritz(self.V.t)

    @property
    def scale(self) -> float:
        """The largest |eigenvalue| known of A; of the upper side as long as there is none."""
        values = self.theta if len(self.theta) else self.values
        return float(values.abs().max()) or 1.0

    @property
    def converged(self) -> bool:
        return len(self.V) >= self.top and bool((self.gaps() <= self.tol * self.scale).all())

    @property
    def useless(self) -> bool:
        """Whether C may be wrong by as much as the eigenvalues are large."""
        return len(self.V) > 0 and self.delta > self.scale

    def pairs(self) -> Eigenpairs:
        """Ritz pairs of A on V; errors: how far the sides are apart."""
        z, theta = self.z[:, : self.top], self.theta[: self.top]  # (j, top), (top,)
        vectors = self.V.combined(z)  # (top, P)
        residuals = self.AV.combined(z) - theta[:, None].to(vectors) * vectors
        norms = torch.tensor([norm(r) for r in residuals]).double()
        errors = torch.minimum(self.gaps(), norms).clamp(min=torch.finfo(vectors.dtype).eps * self.scale)
        return Eigenpairs(theta, vectors.T, norms, errors, len(self.V), True)

    def gaps(self) -> Tensor:
        """(top,) upper minus lower sides; infinite where V has fewer dimensions than pairs are wanted."""
        gaps = torch.full((self.top,), math.inf, dtype=torch.float64)
        count = min(self.top, len(self.theta))
        gaps[:count] = self.values[:count] + self.errors[:count] - self.theta[:count]
        return gaps

    def lower(self) -> Tensor:
        """B M B' (n, n)."""
        return self.B.t + self.before.matrix() + self.now.matrix()

    def upper(self) -> Tensor:
        """B (M + delta (1 - Pi)) B' (n, n)."""
        c = self.now.c  # (j, n)
        return self.lower() + self.delta * (torch.eye(len(self.B), dtype=torch.float64) - c.T @ c)

    def residuals(self, count: int) -> Tensor:
        """(count, P) residuals of the upper operator at its first Ritz vectors."""
        s = self.s[:, :count]  # (n, count)
        residuals = self.CB.combined(s)  # (count, P)
        self.B.combined(s * (self.delta - self.values[:count]), residuals)
        self.before.times(s, residuals)
        return self.now.times(s, residuals, self.delta)

"""Top eigenpairs with few products of an expensive operator A and many of a cheap one C near it.

For the Hessian of a network C is that of some of its examples: a product on a tenth of them costs a tenth.

    V orthonormal (P, j), where A V is known;  D = (A - C) V;  Pi = V V'
    M = C + D V' + V D' - V (V'D) V'                      agrees with A on V; as C does on the rest
    A = M + Delta,  Delta = (1 - Pi) (A - C) (1 - Pi)

    theta_i = lambda_i(V'A V)  <=  lambda_i(A)  <=  lambda_i(M + delta (1 - Pi))      wherever Delta <= delta  (Weyl)

The next product of A is spent on the eigenvector of the operator on the right, where the largest eigenvalue might still
be: optimism in the face of uncertainty. The solve ends when the two sides are within the tolerance of each other. The
right one costs products of C alone, by the method of Davidson (J. Comput. Phys. 17, 1975): Rayleigh-Ritz in a basis that
grows by residuals and keeps its images under C, so that a new column of V or another delta cost no product.

A - C is carried from one solve to the next, nearby: it changes more slowly than A. delta is an estimate, no theorem:
`SAFETY` times the largest |v'Delta v| seen where a product of A came in, and at least half of what it was in the solve
before. Neither the examples of C nor the vectors carried may show an eigenvector that has come up: a chain of such solves
should start from a search of A itself (`lab.curvature.eigen.lanczos`, cold) from time to time.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lab.curvature.eigen import lanczos
from lab.curvature.krylov import Krylov, cluster_errors, search
from lab.curvature.operators import LinearOperator
from lab.curvature.vectors import dot, dots, norm
from lab.objective import memory_of
from lab.results import Eigenpairs

BESIDE = 2
"""Pairs after the wanted ones that are followed too, so that one that overtakes is seen to come."""
LOOSE = 10.0
"""Error that they may have, in tolerances."""
SAFETY = 1.5
"""delta over the largest difference seen."""
PATIENCE = 12
"""Products of A, for each wanted pair the first two free, after which C is not near enough and Lanczos goes on."""
ROOM = 96
"""Vectors in the basis after which likewise."""
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
    """
    most = carried(coarse.size)
    basis, images = basis[:, :most], images[:, :most]
    return Knowledge(basis, images - (coarse @ basis), basis[:, :top])


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
    where not converged, NaN where a product is not finite.
    """
    if operator.size != coarse.size:
        raise ValueError(f"a coarse operator on {coarse.size} entries for one on {operator.size}: expected the same")
    room = min(ROOM, int(memory_of(operator.device) // 4 // (2 * operator.dtype.itemsize * operator.size)))
    most = min(PATIENCE + 2 * (top - 1), max_matvecs // 2, max_matvecs - top)
    if operator.size <= ROOM or room < 4 * (top + BESIDE) or top < 1 or most < top:
        return _by_lanczos(operator, top, 0, tol, max_matvecs, generator), None
    sides, before = _Sides(operator, coarse, top, tol, known), operator.matvecs
    sides.widen(_search(sides, None if known is None else known.start, generator).T)
    while True:
        least = 0.0 if known is None else known.delta / 2
        sides.delta = max([least, *(SAFETY * abs(d) for d in sides.seen)])
        if not sides.settle(room) or not sides.finite:
            break
        if sides.converged:
            return sides.pairs(), _handed_on(sides)
        if len(sides.V) >= most or sides.useless or not sides.look():
            break
    return _by_lanczos(operator, top, operator.matvecs - before, tol, max_matvecs, generator), None


class _Sides:
    """Both sides of the inequality: V with its images under A, and a basis B with its images under C, T = B'C B."""

    def __init__(self, operator: LinearOperator, coarse: LinearOperator, top: int, tol: float, known: Knowledge | None):
        self.operator, self.coarse, self.top, self.tol = operator, coarse, top, tol
        self.B, self.CB, self.AV = (_Rows(operator) for _ in range(3))
        self.before, self.now = _Secant(operator), _Secant(operator)
        if known is not None:
            self.before.append(known.basis.T, known.differences.T)
        self.T = torch.zeros(0, 0, dtype=torch.float64)
        self.values = self.errors = torch.zeros(0, dtype=torch.float64)
        self.s = torch.zeros(0, 0, dtype=torch.float64)
        self.theta, self.z = torch.zeros(0, dtype=torch.float64), self.s  # Ritz values of A on V, and their coordinates
        self.seen: list[float] = []
        self.delta = 0.0
        self.finite = True

    @property
    def V(self) -> "_Rows":
        return self.now.K

    def widen(self, vectors: Tensor) -> bool:
        """Vectors (k, P) into the basis: a product of C each. False where all are in its span, up to a thousandth."""
        new = self._outside(vectors.to(dtype=self.operator.dtype, device=self.operator.device))
        if not len(new):
            return False
        images = torch.stack([self.coarse @ v for v in new])
        self.B.append(new)
        self.CB.append(images)
        t = dots(self.B.rows, images).cpu()
        self.T = pad(self.T, (0, len(new), 0, len(new)))
        self.T[-len(new) :], self.T[:, -len(new) :] = t.T, t
        self.before.widen(new)
        self.now.widen(new)
        self.finite = bool(t.isfinite().all())
        return self.finite

    def _outside(self, vectors: Tensor) -> Tensor:
        """Orthonormal vectors (k, P) that with the basis span those given; fewer where these are dependent."""
        kept = vectors[:0]
        norms = torch.tensor([norm(v) for v in vectors])
        vectors = vectors[(norms > 0) & norms.isfinite()]
        vectors = vectors / norms[(norms > 0) & norms.isfinite(), None].to(vectors)
        vectors = vectors - dots(self.B.rows, vectors).T.to(vectors) @ self.B.rows
        for v in vectors:
            for _ in range(2):
                v = v - dot(kept, v).to(v) @ kept
            if (length := norm(v)) > 1e-3:
                v = v / length
                if length < 0.5:  # what is left may be round-off along the basis
                    v = v - dot(self.B.rows, v).to(v) @ self.B.rows
                kept = torch.cat([kept, v[None] / norm(v)])
        return kept

    def settle(self, room: int) -> bool:
        """Widen until the pairs of the upper operator are certain enough; False where there is no more room."""
        wanted = self.tol * torch.tensor([0.5] * self.top + [LOOSE] * BESIDE, dtype=torch.float64)
        while self.finite and len(self.B):
            upper = self._upper()
            if not bool(upper.isfinite().all()):
                return False
            values, s = torch.linalg.eigh(upper)
            self.values, self.s = values.flip(0), s.flip(1)
            count = min(self.top + BESIDE + 1, len(values))
            residuals = self._residuals(count)
            self.errors = cluster_errors(self.values[:count], torch.tensor([norm(r) for r in residuals]).double())
            excess = self.errors[: len(wanted)] / (self.scale * wanted[:count])
            if count > len(wanted) and bool((excess <= 1).all()):
                return True
            more = residuals[: len(excess)][excess > 1] if count > len(wanted) else residuals
            if len(values) + len(more) > room or not self.widen(more):
                return False
        return False

    def look(self) -> bool:
        """One product of A, at the first pair of the upper operator too far above; False where none leads out of V."""
        gaps = self._gaps()
        for i in sorted(range(self.top), key=lambda i: not float(gaps[i]) > self.tol * self.scale):
            x = self.s[:, i]
            for _ in range(2):
                x = x - self.now.c.T @ (self.now.c @ x)
            if (length := float(x.norm())) > 1e-2:
                self._learn(x / length)
                return True
        return False

    def _learn(self, x: Tensor) -> None:
        """A product of A at the vector of coordinates x (n,), orthogonal to V."""
        v = self.B.combined(x[:, None])[0]
        v = v - dot(self.V.rows, v).to(v) @ self.V.rows
        v = v / norm(v)
        image = self.operator @ v
        self.finite = bool(image.isfinite().all())
        if not self.finite:
            return
        self.seen.append(float(dot(v[None], image)) - float(x @ self._lower() @ x))
        self.AV.append(image[None])
        known = self.before.times(x[:, None], self.CB.combined(x[:, None]))
        difference = image - known
        self.now.append(v[None], difference, x[None], dots(difference, self.B.rows).cpu())
        theta, z = torch.linalg.eigh(_symmetric(dots(self.V.rows, self.AV.rows).cpu()))
        self.theta, self.z = theta.flip(0), z.flip(1)

    @property
    def scale(self) -> float:
        """The largest |eigenvalue| found of A, of the upper operator as long as there is none."""
        values = self.theta if len(self.theta) else self.values
        return float(values.abs().max()) or 1.0

    @property
    def converged(self) -> bool:
        return len(self.V) >= self.top and bool((self._gaps() <= self.tol * self.scale).all())

    @property
    def useless(self) -> bool:
        """Whether C may be wrong by all that has been found."""
        return len(self.V) > 0 and self.delta > self.scale

    def pairs(self) -> Eigenpairs:
        """Ritz pairs of A on V; errors: how far the upper operator is above."""
        theta, vectors = self.theta[: self.top], self.vectors()
        residuals = self.AV.combined(self.z[:, : self.top]) - theta[:, None].to(vectors) * vectors.T
        norms = torch.tensor([norm(r) for r in residuals]).double()
        least = torch.finfo(vectors.dtype).eps * self.scale
        errors = torch.minimum(self._gaps(), norms).clamp(min=least)
        return Eigenpairs(theta, vectors, norms, errors, len(self.V), True)

    def vectors(self) -> Tensor:
        """The wanted Ritz vectors (P, top) of A on V."""
        return self.V.combined(self.z[:, : self.top]).T

    def outlook(self) -> Tensor:
        """(P, top) eigenvectors of the upper operator."""
        return self.B.combined(self.s[:, : self.top]).T

    def _gaps(self) -> Tensor:
        """(top,) upper minus lower sides; infinite where V has fewer dimensions than pairs are wanted."""
        gaps = torch.full((self.top,), math.inf, dtype=torch.float64)
        found = min(self.top, len(self.theta))
        gaps[:found] = self.values[:found] + self.errors[:found] - self.theta[:found]
        return gaps

    def _lower(self) -> Tensor:
        """B'M B."""
        return self.T + self.before.matrix() + self.now.matrix()

    def _upper(self) -> Tensor:
        """B'(M + delta (1 - Pi)) B."""
        c = self.now.c
        return self._lower() + self.delta * (torch.eye(len(self.T), dtype=torch.float64) - c.T @ c)

    def _residuals(self, count: int) -> Tensor:
        """(count, P) residuals of the upper operator at its first Ritz vectors."""
        s = self.s[:, :count]
        residuals = self.CB.combined(s)
        self.B.combined(s * (self.delta - self.values[:count]), residuals)
        self.before.times(s, residuals)
        return self.now.times(s, residuals, self.delta)


class _Secant:
    """D K' + K D' - K (K'D) K', K orthonormal: as a matrix in a basis B, of which c = K'B and f = D'B are kept."""

    def __init__(self, operator: LinearOperator):
        self.K, self.D = _Rows(operator), _Rows(operator)
        self.c = self.f = self.within = torch.zeros(0, 0, dtype=torch.float64)

    def append(self, vectors: Tensor, differences: Tensor, c: Tensor | None = None, f: Tensor | None = None) -> None:
        """More vectors (k, P) of K and D, with their coordinates (k, n) in the basis; none where that is empty still."""
        self.K.append(vectors)
        self.D.append(differences)
        self.within = _symmetric(dots(self.K.rows, self.D.rows).cpu())
        nothing = torch.zeros(len(vectors), self.c.shape[1], dtype=torch.float64)
        self.c = torch.cat([self.c, nothing if c is None else c])
        self.f = torch.cat([self.f, nothing if f is None else f])

    def widen(self, vectors: Tensor) -> None:
        """More vectors (k, P) of the basis."""
        self.c = torch.cat([self.c, dots(self.K.rows, vectors).cpu()], 1)
        self.f = torch.cat([self.f, dots(self.D.rows, vectors).cpu()], 1)

    def matrix(self) -> Tensor:
        cross = self.f.T @ self.c
        return cross + cross.T - self.c.T @ self.within @ self.c

    def times(self, s: Tensor, total: Tensor, delta: float = 0.0) -> Tensor:
        """This, less delta K K', at the vectors of coordinates s (n, k), added to `total` (k, P)."""
        along = self.c @ s
        self.D.combined(along, total)
        return self.K.combined(self.f @ s - self.within @ along - delta * along, total)

    def at(self, vectors: Tensor) -> Tensor:
        """(k, P): this at any vectors (k, P)."""
        along = dots(self.K.rows, vectors).cpu()
        images = self.D.combined(along)
        return self.K.combined(dots(self.D.rows, vectors).cpu() - self.within @ along, images)


class _Rows:
    """A growing stack of vectors, `rows` (m, P). On a CPU memory that is not written to costs nothing."""

    def __init__(self, operator: LinearOperator):
        self._all = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Tensor:
        return self._all[: self._count]

    def append(self, vectors: Tensor) -> None:
        end = self._count + len(vectors)
        if end > len(self._all):
            more = self._all.new_empty(
                max(len(vectors), ROOM if self._all.device.type == "cpu" else 8), self._all.shape[1]
            )
            self._all = torch.cat([self.rows, more]) if self._count else more
        self._all[self._count : end] = vectors
        self._count = end

    def combined(self, s: Tensor, total: Tensor | None = None) -> Tensor:
        """Coordinates (m, k) as vectors (k, P); added to `total` where it is given."""
        if total is None:
            return s.T.to(self._all) @ self.rows
        return total.addmm_(s.T.to(self._all), self.rows)


def _search(sides: _Sides, start: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """(P, any) eigenvectors of the model at and near the top, by block Lanczos: from random vectors, or from `start`."""
    coarse, before = sides.coarse, sides.before
    model = coarse
    if start is not None:

        def apply(v: Tensor) -> Tensor:
            return (coarse @ v) + before.at(v[None])[0]

        model = LinearOperator(coarse.size, apply, dtype=coarse.dtype, device=coarse.device)
    space = Krylov(model, generator or torch.Generator().manual_seed(0))
    search(space, sides.top, 0, None, start, 1, sides.tol, ROOM, None)
    return (
        space.ends(sides.top, 0)
        if space.finite
        else torch.zeros(coarse.size, 0, dtype=coarse.dtype, device=coarse.device)
    )


def _by_lanczos(
    operator: LinearOperator, top: int, spent: int, tol: float, max_matvecs: int, generator: torch.Generator | None
) -> Eigenpairs:
    """The pairs by a search of the operator itself; what was `spent` before is counted."""
    left = max_matvecs - spent
    pairs = lanczos(operator, top=top, copies=False, tol=tol, max_matvecs=left, generator=generator).top
    return replace(pairs, matvecs=pairs.matvecs + spent)


def _handed_on(sides: _Sides) -> Knowledge:
    """A - C, as far as it is known, on V and on what was known before, in this order."""
    most, before, now = carried(sides.operator.size), sides.before, sides.now
    basis, differences = now.K.rows[:most], (now.D.rows + before.at(now.K.rows))[:most]
    if len(before.K) and len(basis) < most:
        inside = dots(before.K.rows, basis).to(basis)
        rest, change = before.K.rows - inside @ basis, before.D.rows - inside @ differences
        squares, turn = torch.linalg.eigh(dots(rest, rest).cpu())  # the most of it first
        kept = torch.arange(len(squares) - 1, -1, -1)[: most - len(basis)]
        kept = kept[squares[kept] > LEAST**2]
        turn = (turn[:, kept] / squares[kept].sqrt()).T.to(basis)
        basis, differences = torch.cat([basis, turn @ rest]), torch.cat([differences, turn @ change])
    return Knowledge(basis.T, differences.T, sides.outlook(), sides.delta)


def carried(size: int) -> int:
    """Directions in which a solve of this size hands on A - C."""
    return max(1, min(CARRIED, NUMBERS // (2 * size)))


def _symmetric(a: Tensor) -> Tensor:
    return (a + a.T) / 2

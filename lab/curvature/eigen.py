"""Extreme eigenpairs of a symmetric operator by Rayleigh-Ritz on a Krylov space grown from a block of start vectors.

    Q orthonormal (m, P),  T = Q A Q',  T s = theta s,  v = Q's,  r = A v - theta v

The space starts with at least three vectors (those of an earlier solve, a gradient, random ones to fill up) and grows by
the residuals of the Ritz pairs that are not yet certain; each new vector costs one product. A Q is kept beside Q, so T
and the residuals are computed and not recurred: nothing is assumed of the start vectors, and any warm start is welcome.

When to stop is where this differs from the usual way. Some eigenvalue lies within ||r|| of theta, but theta itself
converges like ||r||^2 / gap, so going on until ||r|| is small costs three times too much. The gap, though, is unknown,
and Ritz values flatter it: with two eigenvalues within 2 % of each other ||r||^2 / gap is small long before the larger
one has been seen. Hence (a) at least three start vectors, (b) a gap counted to the neighbour PLUS its residual, or the
two are one cluster, and (c) no rival: no pair below the wanted ones may reach above them within `RIVAL` residuals.
Tried on constructed spectra with clustered tops: `tests/curvature/test_eigen.py`.
Parlett, The Symmetric Eigenvalue Problem (1998), chapters 11 and 13; Knyazev, LOBPCG (2001) for the choice of directions.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.operators import LinearOperator
from lab.results import Eigenpairs

GUARD = 2
"""Start vectors, and pairs watched, beyond the wanted ones: with fewer the stopping rule can be deceived."""
RIVAL = 6.0
"""A guard pair that is not converged itself is a rival while theta + RIVAL ||r|| exceeds the last wanted value by more
than the tolerance. No proof: 3 of 3000 clustered spectra still deceive it, by up to 4.6 tolerances; with 3 it was 14."""
RIVAL_HINTED = 1.0
"""The same when the caller gave start vectors, a gradient or those of an earlier solve: the top is not to be found from
nothing. At 48 points along real trajectories no claim was false (worst 0.4 tolerances): 18 products cold, 9 warm."""
BURN_IN = 2
"""Rounds in which random start vectors are driven on whatever they show: at first they show nothing, for a random vector
has a component of only 1/sqrt(P) in the top eigenspace and so a small residual. One round beside given vectors."""
_COLUMNS = 2**15
"""Entries multiplied at a time in the dtype of the vectors; the pieces are added in float64."""


@dataclass(frozen=True)
class Extremes:
    """Both ends of a spectrum: the `top` pairs in descending, the `bottom` pairs in ascending order."""

    top: Eigenpairs
    bottom: Eigenpairs
    start: Tensor
    """(P, k) Ritz vectors to start the next solve from: the wanted ones and their guards."""


def lanczos(
    operator: LinearOperator,
    *,
    top: int = 1,
    bottom: int = 0,
    start: Tensor | None = None,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    generator: torch.Generator | None = None,
) -> Extremes:
    """The `top` algebraically largest and the `bottom` smallest eigenpairs of `operator`.

    start      (P, any) vectors to begin with, e.g. `Extremes.start` of a nearby operator or a gradient (which lies
               mostly in the top eigenspace); random ones are added until there are max(top, bottom) + 2.
    tol        wanted error of each value, relative to the largest |theta| found.
    generator  of the random start vectors (default: a fixed seed).
    Cost: one product a vector, as reported in `matvecs`; memory 2 m P numbers for m products.
    A large negative eigenvalue is never returned as the top one. Not converged within `max_matvecs`: one warning, and
    `converged=False`. A product that is not finite makes every value NaN.
    """
    if min(top, bottom) < 0 or not 1 <= top + bottom <= operator.size:
        raise ValueError(f"top={top}, bottom={bottom}: expected between 1 and {operator.size} eigenpairs in all")
    fewest = min(max(top, bottom) + GUARD, operator.size)
    if max_matvecs < fewest or not tol >= 0:
        raise ValueError(f"max_matvecs={max_matvecs}, tol={tol}: expected at least {fewest} products and tol >= 0")
    if start is not None and (start.dim() != 2 or len(start) != operator.size):
        raise ValueError(f"start of shape {tuple(start.shape)}: expected ({operator.size}, any number of vectors)")
    space = _Space(operator)
    for v in [] if start is None else start.unbind(1):
        if space.size < max_matvecs:
            space.add(v.to(dtype=operator.dtype, device=operator.device))
    hinted = space.size > 0
    rounds = BURN_IN if space.size >= fewest else int(hinted)
    generator, drawn = generator or torch.Generator().manual_seed(0), space.size < fewest
    while space.size < fewest and space.finite:
        space.add_random(generator)
    while True:
        reach = math.inf if rounds < BURN_IN else RIVAL_HINTED if hinted else RIVAL
        ends = _End(space, top, tol, reach), _End(space, bottom, tol, reach, sign=-1)
        rounds += 1
        settled = all(end.certain for end in ends) or space.exhausted
        if settled and not drawn and space.size < max_matvecs and all(end.invariant for end in ends):
            drawn, hinted, rounds = True, False, 0
            if space.add_random(generator):  # the given vectors cannot lead out of their span
                continue
        if settled or not space.finite:
            break
        room = max_matvecs - space.size
        residuals = [r for end in ends for r in end.residuals_to_add()][:room]
        if not sum(space.add(r) for r in residuals):
            settled = room > 0  # no direction left: the space is invariant, its pairs are exact
            break
    if not space.finite:
        warnings.warn("a product of the operator is not finite: every eigenvalue is NaN", stacklevel=2)
    elif not settled:
        worst = max(end.doubt for end in ends if end.wanted) / space.scale
        warnings.warn(
            f"eigenvalues not converged: error {worst:.1e} of the largest after {space.size} products, wanted "
            f"{tol:.1e}; raise max_matvecs={max_matvecs} or tol",
            stacklevel=2,
        )
    vectors = torch.cat([end.vectors(end.watched) for end in ends], dim=1)
    return Extremes(ends[0].pairs(settled), ends[1].pairs(settled), vectors)


class _Space:
    """An orthonormal basis Q, its image A Q and the projection T = Q A Q', growing by one vector at a time."""

    def __init__(self, operator: LinearOperator):
        self.operator, self.size, self.finite = operator, 0, True
        self._q = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._aq, self._t = self._q.clone(), torch.zeros(0, 0, dtype=torch.float64)
        self.theta, self.s = torch.zeros(0, dtype=torch.float64), self._t

    @property
    def scale(self) -> float:
        return float(self.theta.abs().max())

    @property
    def exhausted(self) -> bool:
        return self.size >= self.operator.size or self.scale == 0.0

    def add(self, v: Tensor) -> bool:
        """Make v orthogonal to the basis (twice is enough, Kahan and Parlett) and take it in; False if it lay within."""
        kept = 1.0
        for _ in range(2):
            norm = _norm(v)
            if not norm > 0:
                return False
            v = v / norm
            v = v - _dot(self._q[: self.size], v).to(v.dtype) @ self._q[: self.size]
            kept *= _norm(v)
        if not kept > torch.finfo(v.dtype).eps ** 0.5 or not self.finite:
            return False
        v = v / _norm(v)
        self._room()
        self._q[self.size], self._aq[self.size] = v, self.operator @ v
        self.size += 1
        column = _dot(self._q[: self.size], self._aq[self.size - 1]).cpu()
        t = torch.zeros(self.size, self.size, dtype=torch.float64)
        t[:-1, :-1], t[-1], t[:, -1] = self._t, column, column
        self._t, self.finite = t, bool(column.isfinite().all())
        if self.finite:
            theta, s = torch.linalg.eigh(t)
            self.theta, self.s = theta.flip(0), s.flip(1)
        else:
            self.theta, self.s = torch.full((self.size,), torch.nan, dtype=torch.float64), torch.eye(self.size).double()
        return True

    def add_random(self, generator: torch.Generator) -> bool:
        v = torch.randn(self.operator.size, generator=generator, dtype=torch.float64)
        return self.add(v.to(dtype=self.operator.dtype, device=self.operator.device))

    def lift(self, s: Tensor, *, image: bool = False) -> Tensor:
        """Coordinates (m, k) as vectors (k, P), or their images under A."""
        basis = (self._aq if image else self._q)[: self.size]
        return s.T.to(basis) @ basis

    def _room(self) -> None:
        if self.size == len(self._q):
            more = torch.empty(max(8, self.size), self.operator.size, dtype=self._q.dtype, device=self._q.device)
            self._q, self._aq = torch.cat([self._q, more]), torch.cat([self._aq, more])


class _End:
    """The wanted pairs and their guards at one end of the spectrum, with what is known of their errors."""

    def __init__(self, space: _Space, wanted: int, tol: float, reach: float, *, sign: int = 1):
        self.space, self.sign, self.reach = space, sign, reach
        self.wanted = min(wanted, space.size)
        self.watched = min(wanted + GUARD, space.size) if wanted else 0
        order = slice(None) if sign > 0 else slice(None, None, -1)
        self._s = space.s[:, list(range(space.size))[order]]
        self.theta = sign * (space.theta if sign > 0 else space.theta.flip(0))  # descending, at both ends
        self.residuals = space.lift(self._s[:, : self.watched], image=True)
        self.residuals -= sign * self.theta[: self.watched, None].to(self.residuals) * self.vectors(self.watched).T
        self.norms = torch.tensor([_norm(r) for r in self.residuals], dtype=torch.float64)
        self._tolerance = tol * space.scale
        errors = self._errors()
        self.errors = errors[: self.wanted]
        self.rivals = [
            j
            for j in range(self.wanted, self.watched)
            if errors[j] > self._tolerance and self._above(j) > self._tolerance
        ]

    @property
    def certain(self) -> bool:
        return not self.wanted or (not self.rivals and bool((self.errors <= self._tolerance).all()))

    @property
    def invariant(self) -> bool:
        """Whether the residuals are mere round-off: the space maps into itself."""
        return bool((self.norms <= 100 * torch.finfo(self.residuals.dtype).eps * self.space.scale).all())

    @property
    def doubt(self) -> float:
        """The largest error, or the farthest that a rival may reach above the last wanted value."""
        return max([float(self.errors.max()), *map(self._above, self.rivals)])

    def residuals_to_add(self) -> list[Tensor]:
        """The residuals of the pairs that keep this end from being certain; the first of them in any case."""
        if self.certain:
            return []
        doubtful = [i for i in range(self.wanted) if self.errors[i] > self._tolerance]
        return [self.residuals[i] for i in sorted({*(doubtful or [0]), *self.rivals})]

    def vectors(self, count: int) -> Tensor:
        """The first `count` Ritz vectors, (P, count)."""
        return self.space.lift(self._s[:, :count]).T

    def pairs(self, converged: bool) -> Eigenpairs:
        k, values = self.wanted, self.sign * self.theta[: self.wanted]
        if not self.space.finite:
            values, converged = torch.full_like(values, torch.nan), False
        return Eigenpairs(values, self.vectors(k), self.norms[:k], self.errors, self.space.size, converged)

    def _above(self, j: int) -> float:
        """How far guard j may reach above the last wanted value."""
        reach = float(self.norms[j]) * self.reach if self.norms[j] > 0 else 0.0
        return float(self.theta[j] - self.theta[self.wanted - 1]) + reach

    def _errors(self) -> Tensor:
        """Of every watched pair: min(||r_i||, min over clusters 0..j that hold i of sum ||r||^2 / gap below the cluster)."""
        errors = self.norms.clone()
        squares = self.norms.square().cumsum(0)
        for j in range(self.watched - 1):
            gap = self.theta[j] - self.theta[j + 1] - self.norms[j + 1]
            if gap > 0:
                errors[: j + 1] = torch.minimum(errors[: j + 1], squares[j] / gap)
        return errors


def _norm(v: Tensor) -> float:
    return float(_dot(v[None], v)) ** 0.5


def _dot(rows: Tensor, v: Tensor) -> Tensor:
    """rows (m, P) times v (P,) in float64 (m,): float32 sums over millions of entries lose four digits."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=v.device)
    for begin in range(0, v.numel(), _COLUMNS):
        piece = slice(begin, begin + _COLUMNS)
        total += (rows[:, piece] @ v[piece]).double()
    return total

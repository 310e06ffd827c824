"""Block Lanczos on a symmetric operator, and when to stop: a theorem where nothing is known beforehand.

    Q orthonormal (m, P),  T = Q A Q',  T s = theta s,  v = Q's,  r = A v - theta v

When to stop is the difficulty, not how to go on. theta converges like ||r||^2 / gap, so to wait for a small ||r|| costs
three times too much; but the gap is unknown, and Ritz values flatter it: of two eigenvalues within 2 % of each other the
larger may stay unseen while ||r||^2 / gap is tiny.

COLD (no start vectors): block Lanczos from random X = (x_1 .. x_b), entries N(0, 1). Then A Q' = Q'T + N'C' with N the
next block, and any eigenvector u of eigenvalue lambda obeys, with E = Q X,

    X'u = E' (lambda - T)^-1 C (N u),   |N u| <= 1                        (project A u = lambda u on Q)

so an eigenvector that has not been seen confines the Gaussian vector X'u ~ N(0, 1_b) to an ellipsoid that shrinks by a
factor with every product. The solve ends when that has probability below `DECEIVED` for every lambda above the last
wanted Ritz value + tol, except within tol of a Ritz value: for each wanted pair a bound on false claims for ANY operator,
a posteriori, where Kuczynski and Wozniakowski (SIAM J. Matrix Anal. 13, 1992) give one a priori. Up to b copies of an
eigenvalue can be seen and b - 1 told to be all, so b = 1 serves one wanted pair, b = 2 several.

WARM (start vectors that are nearly the wanted eigenvectors, those of a nearby operator): the same recursion from these
vectors, made orthonormal. Now |X'u| is the share of u in their span, and the solve ends when an unseen eigenvector above
could have a share of at most `OVERLAP`. That no such vector comes up from elsewhere between two measurements is an
assumption, so a warm chain should start cold again from time to time (`lab.probes.sharpness` does).

Both against spectra made to deceive them: `tests/curvature/test_eigen.py`. Parlett, The Symmetric Eigenvalue Problem
(1998), chapters 11 to 13; Wu and Simon (SIAM J. Matrix Anal. 22, 2000) for the thick restart.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lab.curvature.operators import LinearOperator
from lab.curvature.vectors import COLUMNS, dot, dots, norm

DECEIVED = 0.001
"""Cold: probability, over the random start vectors, below which an unseen eigenvalue is ruled out."""
COPIES = 2
"""Cold: random start vectors when more than one pair is wanted at an end, so that an eigenvalue and its copy are told
apart; one more is drawn whenever as many copies have been seen as vectors were drawn."""
OVERLAP = 0.1
"""Warm: the share that an unseen eigenvector above may have in the span of the start vectors. In 1000 clustered spectra
moved by 1 % of the top it was deceived 4 times, moved by 5 % twice, by 3.4 tolerances at most."""
NEAR = 0.02
"""Pairs of a coarse operator handed on beside the wanted ones: those within this of them, relative to the largest."""
ROOM = 64
"""Vectors for which room is made at first on a CPU, where memory that is not written to costs nothing."""


@dataclass
class Cycle:
    """What a cycle of a thick-restarted solve knew: T, C, the rows it began with, and its random vectors in coordinates."""

    t: Tensor
    c: Tensor
    begun: list[int] = field(default_factory=list)
    random: list[Tensor] = field(default_factory=list)


class Krylov:
    """Block Lanczos: an orthonormal basis Q, T = Q A Q', the next block N, and C with A Q' = Q'T + N'C'."""

    def __init__(self, operator: LinearOperator, generator: torch.Generator):
        self.operator, self.generator = operator, generator
        self.finite, self.matvecs, self.saturated, self.overlap = True, 0, False, OVERLAP
        self._basis = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._rows, self._done, self._local = 0, 0, 0  # rows: Q and N; done: Q; local: where the last block begins
        self._past: list[Cycle] = []
        self._turned: list[int] | None = None
        self._now = Cycle(torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.float64))
        self._given = 0
        self.theta = self.norms = torch.zeros(0, dtype=torch.float64)
        self.s = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def size_of_next(self) -> int:
        return self._rows - self._done

    @property
    def size_of_draw(self) -> int:
        """Random vectors wanted in the next block: for an invariant subspace, or a copy for every vector there was."""
        return int((self.size_of_next == 0 or self.saturated) and self._rows < self.operator.size)

    @property
    def scale(self) -> float:
        return float(self.theta.abs().max()) if self.finite else math.nan

    @property
    def exhausted(self) -> bool:
        """Whether Q is a basis of the whole space: the pairs are exact."""
        return self._done >= self.operator.size

    def reserve(self, rows: int) -> None:
        """Room for so many vectors in all, at once: growing needs room for the old and the new basis together."""
        if rows > len(self._basis):
            more = self._basis.new_empty(rows - len(self._basis), self.operator.size)
            self._basis = torch.cat([self._basis, more]) if len(self._basis) else more

    def begin(self, v: Tensor) -> None:
        """A given vector into the first block, unless it is zero, not finite or in the span of those before."""
        v = v.to(dtype=self.operator.dtype, device=self.operator.device)
        kept = 1.0
        for _ in range(2):
            length = norm(v)
            if not 0 < length < math.inf:
                return
            v = v / length
            v = v - dot(self._basis[: self._rows], v).to(v.dtype) @ self._basis[: self._rows]
            kept *= norm(v)
        if kept > torch.finfo(v.dtype).eps ** 0.5 and self._rows < self.operator.size:
            self._append(v / norm(v))
            self._now.begun.append(self._given)
            self._given += 1

    def draw(self, count: int) -> None:
        """Random vectors, N(0, 1), into the next block."""
        for _ in range(min(count, self.operator.size - self._rows)):
            device = self.generator.device
            v = torch.randn(self.operator.size, generator=self.generator, dtype=torch.float64, device=device)
            v = v.to(dtype=self.operator.dtype, device=self.operator.device)
            coordinates = torch.zeros(self._rows + 1, dtype=torch.float64)
            for _ in range(2):
                inside = dot(self._basis[: self._rows], v)
                v = v - inside.to(v.dtype) @ self._basis[: self._rows]
                coordinates[:-1] += inside.cpu()
            coordinates[-1] = norm(v)
            self._append(v / coordinates[-1].to(v))
            self._now.random.append(coordinates)

    def expand(self) -> None:
        """Multiply the next block, and make the one after it from what is orthogonal to everything so far."""
        begin, end, local = self._done, self._rows, self._local
        t = torch.zeros(end, end, dtype=torch.float64)
        t[:begin, :begin] = self._now.t
        new = torch.stack([self.operator @ q for q in self._basis[begin:end]])
        self.matvecs += len(new)
        for rows in (slice(local, end), slice(0, end)):  # all but round-off is in the last blocks
            inside = dots(self._basis[rows], new)
            new.addmm_(inside.T.to(new), self._basis[rows], alpha=-1)
            t[rows, begin:end] += inside.cpu()
        t[begin:end, begin:end] = (t[begin:end, begin:end] + t[begin:end, begin:end].T) / 2
        t[begin:end, :begin] = t[:begin, begin:end].T
        self._now.t, self._done, self._local = t, end, begin
        self.finite = bool(t.isfinite().all())
        if not self.finite:
            self.theta, self.norms, self.s = self.theta[:0], self.norms[:0], self.s[:0, :0]
            return
        theta, s = torch.linalg.eigh(t)
        self.theta, self.s = theta.flip(0), s.flip(1)
        c = torch.zeros(end, 2 * len(new), dtype=torch.float64)
        smallest = 100 * torch.finfo(self.operator.dtype).eps * self.scale
        for j, v in enumerate(new):
            accepted = self._basis[end : self._rows]
            for _ in range(2):
                inside = dot(accepted, v)
                v = v - inside.to(v.dtype) @ accepted
                c[begin + j, : len(accepted)] += inside.cpu()
            length = norm(v)
            v = v / length if length > smallest else v
            if smallest < length < 1e-2 * self.scale:  # what is left may be round-off along the basis
                v = v - dot(self._basis[: self._rows], v).to(v.dtype) @ self._basis[: self._rows]
            if length > smallest and norm(v) > 0.7 and self._rows < self.operator.size:
                c[begin + j, len(accepted)] = length
                self._append(v / norm(v))
            else:  # within the span up to round-off: counted, not followed
                c[begin + j, len(new) + j] = length
        self._now.c = c
        self.norms = (c.T @ self.s).norm(dim=0)

    def certain(self, wanted: int, tolerance: float, *, sign: int = 1) -> bool:
        """Whether every eigenvalue beyond the last of the `wanted` is within `tolerance` of a Ritz value, copies counted."""
        if wanted == 0:
            return True
        if self.scale == 0.0:  # where random vectors have no image the operator is zero; given ones prove nothing
            return self._draws > 0
        theta = sign * (self.theta if sign > 0 else self.theta.flip(0))
        tolerance = max(tolerance, 1e-12 * self.scale)
        level = float(theta[wanted - 1]) + tolerance
        if bool(((theta - level).abs() < 1e-3 * tolerance).any()):  # beside another Ritz value, not at it
            level += 2e-3 * tolerance
        vectors = self._draws or self._given
        near = (theta[:, None] - theta[None, :]).abs() <= tolerance
        # A copy that is missed shifts the ranks below it: harmless where the gaps there are small.
        gaps = theta[: wanted - 1] - theta[1:wanted]
        checks = [(level, 0)]
        for i in range(wanted):
            value = float(theta[i])
            if value > level and vectors > 1 and bool((gaps[i:] > tolerance).any()):
                checks.append((value + 1e-3 * tolerance, int(near[i].sum())))
            checks += [
                (edge, 0)
                for edge in (value - 1.001 * tolerance, value + 1.001 * tolerance)
                if edge > level and not bool(((theta - edge).abs() < tolerance).any())
            ]
        self.saturated = any(copies >= vectors for _, copies in checks)
        return all(self._ruled_out(sign * value, copies) for value, copies in checks)

    def restart(self, top: int, bottom: int, limit: int) -> None:
        """Keep the Ritz vectors at the wanted ends and the next block, forget the rest (Wu and Simon 2000)."""
        rest = limit - 3 * self.size_of_next - top - bottom  # of it the half is kept
        more = max(0, rest // 2)
        upper = top + (more if bottom == 0 else more // 2 if top else 0)
        lower = bottom + (more if top == 0 else more // 2 if bottom else 0)
        count, following = len(self.theta), self.size_of_next
        kept = [i for i in range(count) if i < upper or i >= count - lower]
        self._rotate(kept)
        for i in range(following):
            self._basis[len(kept) + i] = self._basis[count + i]
        self._now.c = self._now.c[:, :following]
        self._past.append(self._now)
        self._done, self._rows, self._local = len(kept), len(kept) + following, 0
        empty = torch.zeros(len(kept), 0, dtype=torch.float64)
        self._now = Cycle(torch.diag(self.theta[kept]), empty, list(range(len(kept), self._rows)))

    def ends(self, top: int, bottom: int) -> Tensor:
        """Ritz vectors (P, k) of the wanted ends and those `NEAR` them."""
        near, kept = NEAR * self.scale, torch.zeros(len(self.theta), dtype=torch.bool)
        if top:
            kept |= self.theta >= self.theta[:top].min() - near
        if bottom:
            kept |= self.theta <= self.theta[-bottom:].max() + near
        return self.lift(self.s[:, kept]).T

    def lift(self, s: Tensor) -> Tensor:
        """Coordinates (m, k) as vectors (k, P)."""
        return s.T.to(self._basis) @ self._basis[: len(s)]

    def pairs(self, order: Tensor) -> Tensor:
        """The Ritz vectors of these pairs (k, P): lifted, or where the basis was turned, rows of it."""
        if self._turned is None:
            return self.lift(self.s[:, order])
        begin = self._turned.index(int(order[0])) if len(order) else 0
        return self._basis[begin : begin + len(order)]

    def images(self, order: Tensor) -> Tensor:
        """A times the Ritz vectors of these pairs, (k, P), from what is known: A v = theta v + N'C's."""
        outside = self._now.c[:, : self.size_of_next].T @ self.s[:, order]
        following = self._basis[self._done : self._rows]
        return (
            self.theta[order].to(following)[:, None] * self.lift(self.s[:, order]) + outside.T.to(following) @ following
        )

    def turn(self, order: list[int]) -> None:
        """The basis into the Ritz vectors of these pairs, in place: the end of a solve that may hold few vectors."""
        self._rotate(order)
        self._turned = order

    @property
    def _draws(self) -> int:
        return sum(len(cycle.random) for cycle in (*self._past, self._now))

    def _ruled_out(self, value: float, copies: int) -> bool:
        """Whether there is hardly one more eigenvector of eigenvalue `value` than the `copies` that have been seen."""
        rows = None
        for cycle in (*self._past, self._now):
            size = len(cycle.t)
            shifted = value * torch.eye(size, dtype=torch.float64) - cycle.t
            through, singular = torch.linalg.solve_ex(shifted, cycle.c)
            if int(singular):  # a Ritz value of this cycle to the last bit
                return False
            parts = [through[cycle.begun] if rows is None else rows @ through[cycle.begun]]
            rows = torch.cat(parts + [(x @ through[: len(x)])[None] for x in cycle.random])
        assert rows is not None
        if self._draws:
            freedom = self._draws - copies
            lengths = torch.linalg.svdvals(rows[self._given :])
            if freedom <= 0 or copies >= len(lengths):
                return freedom > 0
            half = torch.tensor(freedom / 2, dtype=torch.float64)
            hidden = float(torch.special.gammainc(half, lengths[copies] ** 2 / 2))
            # The directions of the copies are random too: a factor of 1.6 was measured for one copy of two vectors.
            return hidden * (copies + 1) <= DECEIVED
        if self.size_of_next == 0:  # an invariant subspace tells nothing of the rest
            return False
        shares = torch.linalg.svdvals(rows)
        return copies < self._given and (copies >= len(shares) or float(shares[copies]) <= self.overlap)

    def _rotate(self, order: list[int]) -> None:
        """The first rows of the basis become the Ritz vectors of these pairs, piece by piece: no second basis is held."""
        turn, count = self.s[:, order].T.to(self._basis), len(self.theta)
        for begin in range(0, self.operator.size, COLUMNS):
            piece = slice(begin, begin + COLUMNS)
            self._basis[: len(order), piece] = turn @ self._basis[:count, piece]

    def _append(self, v: Tensor) -> None:
        if self._rows == len(self._basis):
            self.reserve(max(ROOM, 2 * self._rows) if v.device.type == "cpu" else self._rows + max(4, self._rows // 2))
        self._basis[self._rows] = v
        self._rows += 1


def cluster_errors(theta: Tensor, norms: Tensor) -> Tensor:
    """Of every pair: min(||r_i||, min over clusters 0..j that hold i of sum ||r||^2 / gap below the cluster); descending."""
    errors, squares = norms.clone(), norms.square().cumsum(0)
    for j in range(len(theta) - 1):
        gap = theta[j] - theta[j + 1] - norms[j + 1]
        if gap > 0:
            errors[: j + 1] = torch.minimum(errors[: j + 1], squares[j] / gap)
    return errors


def search(
    space: Krylov,
    top: int,
    bottom: int,
    above: float | None,
    start: Tensor | None,
    block: int,
    tol: float,
    max_matvecs: int,
    max_vectors: int | None,
) -> tuple[bool, int]:
    """Let `space` grow until both ends are certain (True) or the products are spent (False); and how many at the top."""
    for v in [] if start is None else start.unbind(1)[:max_matvecs]:
        space.begin(v)
    wanted, limit = top, math.inf
    if max_vectors is not None:
        limit = max_vectors - 2 * max(block, space.size_of_next)  # images of a block, and what is subtracted from them
        space.reserve(int(limit))
    if space.size_of_next == 0:
        space.draw(min(block, max_matvecs))
    while True:
        space.expand()
        if not space.finite:
            return False, top
        if above is not None:
            wanted = max(top, min(1 + int((space.theta > above).sum()), space.operator.size - bottom))
        tolerance, enough = tol * space.scale, len(space.theta) >= wanted + bottom
        if space.exhausted or (
            enough and space.certain(wanted, tolerance) and space.certain(bottom, tolerance, sign=-1)
        ):
            return True, wanted
        more = space.size_of_draw
        if space.matvecs + space.size_of_next + more > max_matvecs:
            return False, max(top, min(wanted, len(space.theta) - bottom))
        if len(space.theta) + 2 * space.size_of_next > limit:
            space.restart(wanted, bottom, int(limit))
        space.draw(more)

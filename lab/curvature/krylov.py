"""Block Lanczos that may start warm, draw random vectors on the way, and restart: the search of `lab.curvature.eigen`.

Textbook Lanczos on a basis (`lab.curvature.basis`), which grows by a block with every step until the evidence is enough
(`lab.curvature.stopping`). A random vector is drawn into the next block where the last images left none, because the
basis is invariant, and where as many copies of an eigenvalue were seen as vectors were drawn.

A thick restart (Wu and Simon, SIAM J. Matrix Anal. 22, 2000) bounds the memory: the basis becomes the Ritz vectors of the
wanted ends, some beside them, and N. Then A v_i = theta_i v_i + N'C's_i still has the form A Q' = Q'T + N'C', with
T = diag(theta): the recursion goes on as if it had been started there, and only the Ritz pairs in the middle are forgotten.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.basis import Basis, ritz
from lab.curvature.operators import LinearOperator
from lab.curvature.stopping import Cycle, Evidence
from lab.curvature.vectors import norm

COPIES = 2
"""Random start vectors when more than one pair is wanted at an end, so that an eigenvalue and its copy both show; one more
is drawn whenever as many copies have been seen as vectors were drawn."""
NEAR = 0.02
"""Pairs of a coarse operator handed on beside the wanted ones: those within this of them, relative to the largest."""


@dataclass(frozen=True)
class Goal:
    """The pairs that a search is for, and what it may spend.

    top, bottom  how many of the largest and of the smallest eigenvalues.
    above        more than `top` where more lie above this level: as many, and the first one below it.
    copies       whether a repeated eigenvalue must be found as often as it occurs. False: one random vector whatever is
                 wanted, a quarter fewer products; right where no eigenvalue is repeated, as a rule in trained networks.
    tol          wanted error of each value, relative to the largest |theta|.
    max_vectors  vectors of P numbers that a cold solve may hold, work space included (thick restart): 16 for the top 10
                 with copies=False cost a tenth more products, 22 with copies=True two to three times as many.
    """

    top: int = 1
    bottom: int = 0
    above: float | None = None
    copies: bool = True
    tol: float = 1e-3
    max_matvecs: int = 200
    max_vectors: int | None = None

    @property
    def block(self) -> int:
        """Random vectors that a cold search starts from."""
        return COPIES if self.copies and (max(self.top, self.bottom) > 1 or self.above is not None) else 1

    def require(self, size: int) -> None:
        """Raise ValueError where no operator on R^size can meet it."""
        both, tol = self.top + self.bottom, self.tol
        if min(self.top, self.bottom) < 0 or not 1 <= both <= size:
            raise ValueError(f"top={self.top}, bottom={self.bottom}: expected between 1 and {size} eigenpairs in all")
        if self.max_matvecs < both or not 0 <= tol < math.inf:
            raise ValueError(
                f"max_matvecs={self.max_matvecs}, tol={tol}: expected at least {both} products and a finite tol >= 0"
            )
        if self.max_vectors is not None and self.max_vectors < (least := both + 6 * self.block):
            raise ValueError(f"max_vectors={self.max_vectors}: expected at least {least} for {both} pairs")


class Krylov(Basis):
    """A basis that grows by blocks, with its Ritz pairs theta, s and their residual norms, and the evidence for them."""

    def __init__(self, operator: LinearOperator, generator: torch.Generator | None):
        super().__init__(operator)
        self.generator = generator or torch.Generator().manual_seed(0)
        self.evidence = Evidence()
        self.theta = self.norms = torch.zeros(0, dtype=torch.float64)  # (m,), descending in theta
        self.s = torch.zeros(0, 0, dtype=torch.float64)  # (m, m)

    @property
    def num_draws(self) -> int:
        """Random vectors wanted in N: for an invariant subspace, or a copy for every vector there was."""
        return int((not len(self.following) or self.evidence.saturated) and len(self) < self.operator.size)

    @property
    def scale(self) -> float:
        """The largest |theta|."""
        return float(self.theta.abs().max()) if self.finite else math.nan

    @property
    def exhausted(self) -> bool:
        """Whether Q is a basis of the whole space: the pairs are exact."""
        return len(self.t) >= self.operator.size

    def start(self, v: Tensor) -> None:
        """A given vector into the first N, where it is outside of those before."""
        if self.begin(v):
            self.evidence.now.begun.append(len(self) - 1)
            self.evidence.given += 1

    def draw(self, count: int) -> None:
        """Random vectors, N(0, 1), into N."""
        for _ in range(min(count, self.operator.size - len(self))):
            device = self.generator.device
            v = torch.randn(self.operator.size, generator=self.generator, dtype=torch.float64, device=device)
            v, first = self.outside(v.to(self.rows))
            v, second = self.outside(v)
            length = norm(v)
            self.append(v / length)
            self.evidence.now.random.append(torch.cat([first + second, torch.tensor([length], dtype=torch.float64)]))

    def expand(self) -> None:
        super().expand()
        if not self.finite:
            self.theta, self.norms, self.s = self.theta[:0], self.norms[:0], self.s[:0, :0]
            return
        self.theta, self.s = ritz(self.t)
        self.norms = (self.c.T @ self.s).norm(dim=0)
        now = self.evidence.now
        now.t, now.c, now.closed = self.t, self.c, not len(self.following)

    def certain(self, goal: Goal, wanted: int) -> bool:
        """Whether the `wanted` pairs at the top and those at the bottom are the outermost ones, within tol."""
        if len(self.theta) < wanted + goal.bottom:
            return False
        tol, evidence = goal.tol * self.scale, self.evidence
        return evidence.certain(self.theta, wanted, tol) and evidence.certain(
            -self.theta.flip(0), goal.bottom, tol, sign=-1
        )

    def restart(self, top: int, bottom: int, limit: int) -> None:
        """Keep the Ritz vectors at the wanted ends and N, forget the rest."""
        rest = limit - 3 * len(self.following) - top - bottom  # of it the half is kept
        more = max(0, rest // 2)
        upper = top + (more if bottom == 0 else more // 2 if top else 0)
        lower = bottom + (more if top == 0 else more // 2 if bottom else 0)
        count, following = len(self.theta), len(self.following)
        kept = [i for i in range(count) if i < upper or i >= count - lower]
        self.rotate(self.s[:, kept])
        now = self.evidence.now
        now.c = now.c[:, :following]
        self.evidence.past.append(now)
        self.t, self._last = torch.diag(self.theta[kept]), 0
        self.evidence.now = Cycle(begun=list(range(len(kept), len(self))))

    def ends(self, top: int, bottom: int) -> Tensor:
        """Ritz vectors (P, k) of the wanted ends and those `NEAR` them."""
        near, kept = NEAR * self.scale, torch.zeros(len(self.theta), dtype=torch.bool)
        if top:
            kept |= self.theta >= self.theta[:top].min() - near
        if bottom:
            kept |= self.theta <= self.theta[-bottom:].max() + near
        return self.combined(self.s[:, kept]).T


def search(space: Krylov, goal: Goal, start: Tensor | None) -> tuple[bool, int]:
    """Let `space` grow until both ends are certain (True) or the products are spent (False); and how many at the top."""
    limit = _prepare(space, goal, start)
    wanted, size = goal.top, space.operator.size
    while True:
        space.expand()
        if not space.finite:
            return False, goal.top
        if goal.above is not None:
            wanted = max(goal.top, min(1 + int((space.theta > goal.above).sum()), size - goal.bottom))
        if space.exhausted or space.certain(goal, wanted):
            return True, wanted
        draws = space.num_draws
        if space.matvecs + len(space.following) + draws > goal.max_matvecs:
            return False, max(goal.top, min(wanted, len(space.theta) - goal.bottom))
        if len(space.theta) + 2 * len(space.following) > limit:
            space.restart(wanted, goal.bottom, int(limit))
        space.draw(draws)


def _prepare(space: Krylov, goal: Goal, start: Tensor | None) -> float:
    """The first N, given or random; returns how many rows the basis may have."""
    for v in [] if start is None else start.unbind(1)[: goal.max_matvecs]:
        space.start(v)
    limit = math.inf
    if goal.max_vectors is not None:
        # images of a block, and what is subtracted from them
        limit = goal.max_vectors - 2 * max(goal.block, len(space.following))
        space.reserve(int(limit))
    if not len(space.following):
        space.draw(min(goal.block, goal.max_matvecs))
    return limit


def cluster_errors(theta: Tensor, norms: Tensor) -> Tensor:
    """Errors of Ritz values (m,), descending, from their residuals: min(|r_i|, sum of |r|^2 / gap below a cluster 0..j that
    holds i), the least over j.

    >>> cluster_errors(torch.tensor([5.0, 1.0]), torch.tensor([0.2, 0.0]))
    tensor([0.0100, 0.0000])
    """
    errors, squares = norms.clone(), norms.square().cumsum(0)
    for j in range(len(theta) - 1):
        gap = theta[j] - theta[j + 1] - norms[j + 1]
        if gap > 0:
            errors[: j + 1] = torch.minimum(errors[: j + 1], squares[j] / gap)
    return errors

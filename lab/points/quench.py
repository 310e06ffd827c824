"""To which minimum a point belongs: gradient descent until it is there.

    w <- w - lr grad L(w),   lr = `STRIDE` / lambda_max      until |g| < tol

A short quench labels wrongly: in a soft direction lambda the distance falls by exp(-lambda lr steps), so a thousand steps
can end on a slope that looks like a minimum. Descent runs until the gradient is small and the curvature positive; the last
digits are Newton's, whose steps must then be short against the way left to any other basin: they are taken only where the
Hessian is positive definite and predicts the gradient. What has not arrived is said to be so.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.objective import Objective
from lab.points.dense import LARGEST, Stationary, local
from lab.points.symmetry import Symmetry, nearest
from lab.progress import Tick, silent

STRIDE = 0.9
"""lr times the largest curvature: below 1 descent does not oscillate, and follows the gradient flow into its basin."""
LOOK = 100
"""Steps between two looks."""
ROUND_OFF = 1e-12
"""Relative change of a loss that means nothing."""
SHRINKS = 0.25
"""What a Newton step must make of the gradient, at most, for the quadratic model to hold."""
SAME = 1e-3
"""Points nearer than this, relative to 1 + |w|, are one minimum."""


@dataclass(frozen=True)
class Quenched:
    """Where points went: w (R, P), values (R,), gradient_norms (R,), converged (R,) bool; steps of descent."""

    w: Tensor
    values: Tensor
    gradient_norms: Tensor
    converged: Tensor
    steps: int

    def labels(self, minima: tuple[Stationary, ...], symmetry: Symmetry | None = None) -> Tensor:
        """Which of the minima each point went to, or to a symmetric image of it: (R,) long; -1: to none of them, -2: it has
        not converged.
        """
        return torch.tensor([self._label(r, minima, symmetry) for r in range(len(self.w))])

    def _label(self, r: int, minima: tuple[Stationary, ...], symmetry: Symmetry | None) -> int:
        if not bool(self.converged[r]):
            return -2
        for i, minimum in enumerate(minima):
            image = self.w[r] if symmetry is None else nearest(self.w[r], minimum.w, symmetry)
            if float((image - minimum.w).norm()) < SAME * (1 + float(minimum.w.norm())):
                return i
        return -1


def quench(
    objective: Objective,
    W: Tensor,
    *,
    lr: float | None = None,
    tol: float = 1e-10,
    max_steps: int = 20_000,
    tick: Tick = silent,
) -> Quenched:
    """Gradient descent from every row of W (R, P) until |g| < tol, all rows together.

    lr None: `STRIDE` over the largest curvature at the starts; a row whose loss rises takes steps half as long from then
    on. With up to `LARGEST` parameters Newton's method ends it, where it may. Cost: a gradient a step and row, and every
    `LOOK` steps a Hessian for rows under way. Rows that do not arrive within max_steps are not converged.
    """
    W = W.detach().clone()
    small = W.shape[1] <= LARGEST
    rate = torch.full((len(W), 1), STRIDE / _curvature(objective, W) if lr is None else lr).to(W)
    values, norms = objective.replica_values(W), torch.full((len(W),), math.inf).to(W)
    done = torch.zeros(len(W), dtype=torch.bool, device=W.device)
    steps = 0
    while True:
        under_way = (~done & W.isfinite().all(1)).nonzero()[:, 0]
        if len(under_way):
            arrived, polished = (
                polish(objective, W[under_way], tol) if small else _arrived(objective, W[under_way], tol)
            )
            W[under_way] = torch.where(arrived[:, None], polished, W[under_way])
            done[under_way] = arrived
        tick(max(float(done.double().mean()), steps / max_steps))
        if bool((done | ~W.isfinite().all(1)).all()) or steps >= max_steps:
            break
        for _ in range(LOOK):  # rows that have arrived stay where they are under descent, too
            W.addcmul_(rate, objective.replica_grads(W), value=-1)
        steps += LOOK
        now = objective.replica_values(W)
        rate[~(now <= values + ROUND_OFF * values.abs())] /= 2
        values = now
    norms = objective.replica_grads(W).norm(dim=1)
    return Quenched(W, objective.replica_values(W), norms, done & (norms < tol), steps)


def polish(objective: Objective, W: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """Which rows of W Newton's method may finish, (R,) bool, and where it brings them, (R, P).

    All the way the Hessian must be positive definite, and every step reduce the gradient by `SHRINKS`: the rows are then in
    the bowl of the minimum that they reach, and descent would end there as well.
    """
    W, sound = W.clone(), torch.ones(len(W), dtype=torch.bool, device=W.device)
    at, before = local(objective, W), torch.full((len(W),), math.inf).to(W)
    for _ in range(8):
        norms = at.gradients.norm(dim=1)
        factor, fails = torch.linalg.cholesky_ex(at.hessians)
        sound &= (fails == 0) & ((norms < SHRINKS * before) | (norms < tol))
        open_ = sound & (norms >= tol)
        if not bool(open_.any()):
            break
        step = torch.cholesky_solve(at.gradients[open_][:, :, None], factor[open_])[:, :, 0]
        W[open_] -= step
        before = norms
        at = local(objective, W)
    return sound & (at.gradients.norm(dim=1) < tol), W


def _arrived(objective: Objective, W: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    return objective.replica_grads(W).norm(dim=1) < tol, W


def _curvature(objective: Objective, W: Tensor) -> float:
    """The largest curvature at the rows, or, where Hessians are too large to form, at the first of them."""
    finite = W[W.isfinite().all(1)]
    if not len(finite):
        return 1.0
    if W.shape[1] <= LARGEST:
        return float(torch.linalg.eigvalsh(local(objective, finite).hessians).abs().max())
    top = lanczos(hessian(objective, finite[0]), generator=torch.Generator().manual_seed(0), tol=0.05).top
    return abs(float(top.values[0]))

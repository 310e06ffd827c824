"""Minima of a loss with few parameters: regularised Newton from many random starts, and what is one minimum.

    p = -V (|Lambda| + mu)^-1 V'g,    H = V Lambda V',    |p| at most `REACH`

goes downhill along every eigenvector, also where the curvature is negative; mu falls when a step lowers the loss and rises
when it does not (Levenberg 1944; Marquardt 1963; |H|: Dauphin et al. 2014). At the end mu = 0 and the step is Newton's:
|g| falls to round-off. All starts are moved together. A start that runs away (saturated neurons: the loss falls for ever,
towards infinite weights) converges to nothing and is counted as such.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lab.objective import Objective
from lab.points.dense import Stationary, local, stationary
from lab.points.symmetry import Symmetry, nearest

REACH = 0.3
"""Longest step of an iteration."""
CLOSE, ROUND_OFF = 1e-3, 1e-6
"""|g| below which mu is at most |g|, so that steps become Newton's; and below which a step is taken without comparing."""
SAME = 1e-4
"""Points nearer than this, up to symmetry, are one minimum."""


@dataclass(frozen=True)
class Minima:
    """points: the distinct minima, lowest first; counts: how many starts each was found from; lost: starts that converged
    to no minimum (to a saddle, a degenerate point, or to nothing at all).
    """

    points: tuple[Stationary, ...]
    counts: tuple[int, ...]
    lost: int


def descend(objective: Objective, W: Tensor, *, tol: float = 1e-10, max_steps: int = 300) -> Tensor:
    """Where regularised Newton goes from every row of W (R, P): (R, P). Rows with |g| < tol afterwards have converged.

    It need not be the nearest minimum: `lab.points.quench` follows gradient descent. Cost: a Hessian a step and row.
    """
    W = W.detach().clone()
    mu = torch.ones(len(W), dtype=W.dtype, device=W.device)
    moving, at = torch.arange(len(W), device=W.device), local(objective, W)
    for _ in range(max_steps):
        norms = at.gradients.norm(dim=1)
        left = norms >= tol
        if not bool(left.any()):
            break
        moving, norms, at = moving[left], norms[left], at.rows(left)
        there = W[moving] + newton_step(at.hessians, at.gradients, mu[moving])
        new = local(objective, there)
        # At round-off values no longer tell which point is lower: a step so short is taken.
        better = (new.values < at.values) | (norms < ROUND_OFF)
        W[moving[better]] = there[better]
        at = new.where(better, at)
        mu[moving] = torch.where(better, mu[moving] / 4, mu[moving] * 6 + 1e-8)
        mu[moving] = torch.where(norms < CLOSE, mu[moving].clamp(max=norms), mu[moving])
    return W


def newton_step(H: Tensor, g: Tensor, mu: Tensor) -> Tensor:
    """-(|H| + mu)^-1 g for matrices (R, P, P), (R, P), (R,), cut to the length `REACH`."""
    h, V = torch.linalg.eigh(H)
    along = (V.transpose(1, 2) @ g[:, :, None])[:, :, 0]
    size = (h.abs() + mu[:, None]).clamp(min=torch.finfo(g.dtype).eps)
    step = -(V @ (along / size)[:, :, None])[:, :, 0]
    return step * (REACH / step.norm(dim=1, keepdim=True)).clamp(max=1)


def find_minima(
    objective: Objective,
    generator: Generator,
    *,
    restarts: int = 48,
    spread: float = 1.0,
    symmetry: Symmetry | None = None,
    tol: float = 1e-10,
) -> Minima:
    """Minima reached from `restarts` starts N(0, spread^2), distinct up to `symmetry` (None: every point is its own).

    A minimum has |g| < tol and its smallest eigenvalue above 1e-6 of the largest. More restarts find more of them; that all
    are found is never certain: a thermal run and a converged quench tell of those that matter.
    """
    like = torch.empty(0, dtype=torch.float64, device=generator.device)
    W = spread * torch.randn(restarts, objective.num_params, generator=generator, dtype=like.dtype, device=like.device)
    found: list[Stationary] = []
    counts: list[int] = []
    lost = 0
    for w in descend(objective, W, tol=tol):
        point = stationary(objective, w)
        if not is_minimum(point, tol):
            lost += 1
            continue
        known = place_of(point, found, symmetry)
        if known is None:
            found.append(point)
            counts.append(1)
        else:
            counts[known] += 1
    order = sorted(range(len(found)), key=lambda i: found[i].value)
    return Minima(tuple(found[i] for i in order), tuple(counts[i] for i in order), lost)


def is_minimum(point: Stationary, tol: float) -> bool:
    """Whether the gradient vanishes and every curvature is positive, clearly."""
    low, high = float(point.eigenvalues[0]), float(point.eigenvalues[-1])
    return point.grad_norm < tol and low > 1e-6 * high


def place_of(point: Stationary, among: list[Stationary], symmetry: Symmetry | None) -> int | None:
    """Which of the known points this one is, up to symmetry; None: a new one."""
    for i, other in enumerate(among):
        # Points SAME apart differ in value by SAME^2 times the curvature; symmetric images not at all.
        if abs(point.value - other.value) <= SAME * (1 + abs(other.value)):
            image = point.w if symmetry is None else nearest(point.w, other.w, symmetry)
            if float((image - other.w).norm()) < SAME * (1 + float(other.w.norm())):
                return i
    return None

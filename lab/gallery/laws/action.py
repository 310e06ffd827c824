"""How unlikely the likeliest way out is: the least Freidlin-Wentzell action from a minimum to a saddle.

For small noise, dw = -g(w) dt + sqrt(eps D(w)) dW, the mean time to leave is exp(V / eps) to leading order, with

    V = min over paths from a to s of  int ( |b|_D |phi'|_D - <b, phi'>_D ) ds,    b = -g,   <x, y>_D = x' D^-1 y

(Freidlin and Wentzell; the action without time: Heymann and Vanden-Eijnden 2008). For SGD with batches of B out of N drawn
with replacement D is the covariance of the gradient of one example and eps = lr / B: log of the escape time rises by V for
every unit of B / lr. Where D = 1 the path runs straight up the gradient and V = 2 (L(s) - L(a)), so that eps = 2 T gives
the barrier over T back. D and g are those of the loss at the midpoints of the segments of a path: the error falls with the
square of their number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import grad, vmap

from lab.objective import NetworkObjective, Objective
from lab.points.dense import Field
from lab.points.string import equal_arcs

POINTS = 25
"""Points of a path."""
EVEN = 1e-2
"""Weight of the penalty on uneven segments, over the action: it only picks one of the many equal parametrisations."""


@dataclass(frozen=True)
class Action:
    """value V of the least action found along `path` (points, P); start: that of the path begun with."""

    value: float
    path: Tensor
    start: float
    evaluations: int
    converged: bool


def action(gradient: Field, diffusion: Field | None, path: Tensor) -> Tensor:
    """The action of a path (points, P): a scalar, differentiable in it. diffusion None: D = 1.

    Raises ValueError where D is singular along the path: noise does not reach all directions there, and the action of
    most paths is infinite.
    """
    return _segments(gradient, diffusion, path).sum()


def _segments(gradient: Field, diffusion: Field | None, path: Tensor) -> Tensor:
    """What each segment costs, (points - 1,), by the midpoint rule."""
    middle, step = (path[1:] + path[:-1]) / 2, path[1:] - path[:-1]
    drift = -gradient(middle)
    if diffusion is None:
        return drift.norm(dim=1) * step.norm(dim=1) - (drift * step).sum(1)
    factor, fails = torch.linalg.cholesky_ex(diffusion(middle))
    if bool((fails != 0).any()):
        raise ValueError(
            "the noise is singular along the path: it does not reach all directions, e.g. for N <= P examples"
        )
    pair = torch.linalg.solve_triangular(factor, torch.stack([drift, step], 2), upper=False)
    b, v = pair[:, :, 0], pair[:, :, 1]
    return b.norm(dim=1) * v.norm(dim=1) - (b * v).sum(1)


def least_action(
    gradient: Field,
    diffusion: Field | None,
    path: Tensor,
    *,
    points: int = POINTS,
    max_evaluations: int = 400,
    tol: float = 2e-3,
) -> Action:
    """The least action over paths between the ends of `path` (n, P), which it starts from, drawn with `points` points.

    Quasi-Newton (L-BFGS) with points drawn to equal arcs between rounds; ended when a round lowers the value by less than
    tol of it. What is found is the least action near the start, an upper bound of V. Cost: a few gradients of D for every
    point and evaluation.
    """
    x = resampled(path, points)
    start = float(action(gradient, diffusion, x).detach())
    value, spent, converged = start, 0, False
    while spent < max_evaluations and not converged:
        x, evaluations = _round(gradient, diffusion, x)
        spent += evaluations
        x = equal_arcs(x)
        now = float(action(gradient, diffusion, x).detach())
        converged = value - now < tol * abs(now)
        value = min(value, now)
    return Action(value, x, start, spent, converged)


def _round(gradient: Field, diffusion: Field | None, x: Tensor) -> tuple[Tensor, int]:
    """Some steps of L-BFGS on the inner points, with the penalty that keeps them apart."""
    inner, ends = x[1:-1].clone().requires_grad_(), (x[:1], x[-1:])
    scale = float(action(gradient, diffusion, x).detach())
    optimizer = torch.optim.LBFGS(
        [inner], max_iter=30, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0
    )
    count = 0

    def closure() -> Tensor:
        nonlocal count
        count += 1
        whole = torch.cat([ends[0], inner, ends[1]])
        lengths = (whole[1:] - whole[:-1]).norm(dim=1)
        uneven = ((lengths / lengths.mean().detach() - 1) ** 2).mean()
        cost = action(gradient, diffusion, whole) / scale + EVEN * uneven
        optimizer.zero_grad()
        (inner.grad,) = torch.autograd.grad(cost, inner)
        return cost

    optimizer.step(closure)  # type: ignore[arg-type]
    return torch.cat([ends[0], inner.detach(), ends[1]]), count


def resampled(path: Tensor, points: int) -> Tensor:
    """The path with so many points, at equal arcs."""
    fine = max(2, -(-4 * points // (len(path) - 1)))
    shares = torch.linspace(0, 1, fine + 1, dtype=path.dtype, device=path.device)[:-1, None]
    pieces = [start + shares * (end - start) for start, end in pairwise(path)]
    dense = equal_arcs(torch.cat([*pieces, path[-1:]]))
    at = torch.linspace(0, len(dense) - 1, points).to(dense)
    low = at.floor().long().clamp(max=len(dense) - 2)
    return dense[low] + (at - low)[:, None] * (dense[low + 1] - dense[low])


# --- the noise of mini-batches ----------


def example_covariance(objective: Objective) -> Callable[[Tensor], Tensor]:
    """W (R, P) -> D (R, P, P), the covariance of the gradient of one example, differentiable in W.

    Of a network on its examples, with weight decay around it or not (it does not change D). TypeError for others.
    """
    inner = getattr(objective, "inner", objective)
    if not isinstance(inner, NetworkObjective):
        raise TypeError(f"{type(inner).__name__} is not a network on examples: it has no noise of mini-batches")
    network = inner
    network.require_single_examples()

    def example(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return network.loss_of(w, x[None], y[None])

    every = vmap(vmap(grad(example), in_dims=(None, 0, 0)), in_dims=(0, None, None))

    def covariance(W: Tensor) -> Tensor:
        G = every(W, network.x, network.y)
        G = G - G.mean(1, keepdim=True)
        return G.transpose(1, 2) @ G / G.shape[1]

    return covariance


def chord_slope(barrier: float, D: Tensor, a: Tensor, s: Tensor) -> float:
    """2 dL / (t'D t), t the direction from a to s: the slope, were the noise of that one direction and constant."""
    t = (s - a) / (s - a).norm()
    return 2 * barrier / float(t @ D @ t)


def isotropic_slope(barrier: float, D: Tensor) -> float:
    """2 dL P / Tr D: the slope, were the noise isotropic with the same trace."""
    return 2 * barrier * len(D) / float(D.trace())

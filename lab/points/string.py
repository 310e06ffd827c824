"""The saddle between two minima: the string method, then Newton.

A chain of images from a to b goes downhill, phi_i <- phi_i - lr grad L(phi_i), and is drawn out again to equal arcs after
every step; it comes to rest on a path of least loss, whose highest point is the saddle (E, Ren and Vanden-Eijnden 2007,
"Simplified string method"). From the highest image Newton's method, which converges to points of any index, runs to
round-off. The result counts only if it is what the string saw: index 1, |g| at round-off, its loss that of the top of the
string, and gradient descent from its two sides ending in a and in b. Between the wrong two symmetric images of minima there
are passes too, much higher ones: take the nearest (`lab.points.symmetry`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.objective import Objective
from lab.points.dense import Stationary, local, stationary
from lab.points.quench import quench

NEWTON_STEPS = 100
CRITICAL = 1e-9
"""|g| at most, for what is called a saddle. Newton goes on to round-off."""
LOOK = 50
"""Steps of the string between two looks whether it is at rest."""
AT_REST = 2e-4
"""How far an image has moved since, at most, of the distance between a and b."""
KICK = 0.02
"""How far to the sides of the saddle, of its distance to the minima, gradient descent is started."""


@dataclass(frozen=True)
class Pass:
    """The way from a to b: the `string` (images, P) with its losses `values` (images,), and the saddle on it.

    saddle None where none was found; `failure` then says why, in a sentence.
    """

    string: Tensor
    values: Tensor
    saddle: Stationary | None
    failure: str = ""


def equal_arcs(points: Tensor) -> Tensor:
    """The same path (n, P), with its points at equal distances along it."""
    arcs = (points[1:] - points[:-1]).norm(dim=1).cumsum(0)
    arcs = torch.cat([arcs.new_zeros(1), arcs])
    wanted = torch.linspace(0, 1, len(points)).to(arcs) * arcs[-1]
    right = torch.searchsorted(arcs, wanted[1:-1]).clamp(1, len(points) - 1)
    share = ((wanted[1:-1] - arcs[right - 1]) / (arcs[right] - arcs[right - 1]))[:, None]
    inner = points[right - 1] + share * (points[right] - points[right - 1])
    return torch.cat([points[:1], inner, points[-1:]])


def string(
    objective: Objective, a: Tensor, b: Tensor, *, images: int = 25, steps: int = 1200, lr: float | None = None
) -> Tensor:
    """A path of least loss from a to b (P,) as (images, P), the ends held. lr None: 0.4 over the largest curvature at its
    ends, where gradient descent is stable. Ended earlier when it is at rest. Cost: `images` gradients a step. Raises
    ValueError where it diverges.
    """
    if lr is None:
        lr = 0.4 / float(torch.linalg.eigvalsh(local(objective, torch.stack([a, b])).hessians).max())
    points = a + torch.linspace(0, 1, images).to(a)[:, None] * (b - a)
    before = points
    for step in range(1, steps + 1):
        moved = points - lr * objective.replica_grads(points)
        points = equal_arcs(torch.cat([a[None], moved[1:-1], b[None]]))
        if step % LOOK == 0:
            if float((points - before).norm(dim=1).max()) < AT_REST * float((b - a).norm()):
                break
            before = points
    if not bool(points.isfinite().all()):
        raise ValueError(f"lr={lr:g}: the string diverged; use a smaller step")
    return points


def find_pass(
    objective: Objective,
    a: Tensor,
    b: Tensor,
    *,
    images: int = 25,
    steps: int = 1200,
    lr: float | None = None,
) -> Pass:
    """The saddle between the minima a and b (P,), or why there is none to be had. Cost: that of `string`, some Hessians,
    and gradient descent from both sides of the saddle.
    """
    points = string(objective, a, b, images=images, steps=steps, lr=lr)
    values = objective.replica_values(points)
    top = int(values[1:-1].argmax()) + 1
    between = _valleys(values)
    if between:
        lowest = min(between, key=lambda i: float(values[i]))
        return Pass(
            points,
            values,
            None,
            f"the path of least loss goes through another minimum, with a loss of about {float(values[lowest]):.4g}: a "
            "and b are not neighbours",
        )
    if top in (1, images - 2) and float(values[top]) <= max(float(values[0]), float(values[-1])):
        return Pass(points, values, None, "the loss along the string has no maximum: a or b is not a minimum")
    w = newton(objective, points[top])
    saddle = stationary(objective, w)
    return Pass(points, values, *_judged(objective, saddle, a, b, _crest(values, top), float(values[0])))


def newton(objective: Objective, w: Tensor, *, reach: float = 0.1, tol: float = 1e-14) -> Tensor:
    """Newton's method to the nearest critical point, of whatever index, until |g| < tol or no longer falls."""
    best, least, stuck = w.detach().clone(), float("inf"), 0
    w = best.clone()
    for _ in range(NEWTON_STEPS):
        at = local(objective, w[None])
        norm = float(at.gradients.norm())
        if norm < least:
            best, least, stuck = w.clone(), norm, 0
        else:
            stuck += 1
        if least < tol or stuck > 10 or not norm < float("inf"):
            break
        step = torch.linalg.lstsq(at.hessians[0], -at.gradients[0][:, None], driver="gelsd").solution[:, 0]
        w = w + step * min(1.0, reach / max(float(step.norm()), 1e-300))
    return best


def _valleys(values: Tensor) -> list[int]:
    """Images lower than the path is on both sides, by more than what separates neighbours at the top of a barrier."""
    v = values.tolist()
    depth = 1e-3 * (max(v) - min(v[0], v[-1]))
    return [
        i for i in range(1, len(v) - 1) if max(v[:i]) > v[i] + depth < max(v[i + 1 :]) and v[i] == min(v[i - 1 : i + 2])
    ]


def _crest(values: Tensor, top: int) -> float:
    """The maximum of the parabola through the highest image and its neighbours."""
    left, mid, right = (float(values[i]) for i in (top - 1, top, top + 1))
    bend = left - 2 * mid + right
    return mid - (right - left) ** 2 / (8 * bend) if bend < 0 else mid


def _judged(
    objective: Objective, saddle: Stationary, a: Tensor, b: Tensor, crest: float, foot: float
) -> tuple[Stationary | None, str]:
    """The saddle, if it is one and the one between a and b; else None and the reason."""
    if not saddle.grad_norm < CRITICAL:
        return None, f"Newton's method from the top of the string did not converge: |g| = {saddle.grad_norm:.1e}"
    if saddle.index != 1:
        return None, f"Newton's method from the top of the string went to a point of index {saddle.index}, not 1"
    climb = saddle.value - foot
    if not abs(saddle.value - crest) < 0.2 * abs(climb):
        return (
            None,
            f"the saddle found has the loss {saddle.value:.6g}, the top of the string {crest:.6g}: it is another",
        )
    u = saddle.vectors[:, 0]
    u = u if float(u @ (b - a)) > 0 else -u
    size = KICK * min(float((a - saddle.w).norm()), float((b - saddle.w).norm()))
    ends = quench(objective, torch.stack([saddle.w - size * u, saddle.w + size * u])).w
    for end, goal, name in zip(ends, (a, b), "ab", strict=True):
        if float((end - goal).norm()) > 1e-3 * (1 + float(goal.norm())):
            value = float(objective.value(end))
            return (
                None,
                f"gradient descent from the saddle on the side of {name} ends elsewhere, at a loss of {value:.6g}",
            )
    return saddle, ""

"""How fast replicas leave an unstable point, per step: growth of a length that is scaled back before it is large.

    renormalised   l = length(w - origin); whenever l > target: w <- origin + (w - origin) target/l, log(l/target) counted
    own exit       slope of log l of each replica from step `begin` to its own exit
    common time    the same up to the first exit of all, one time for everybody

The first goes on for as long as one likes in the linear regime and forgets how it began: it is the top Lyapunov exponent of
the run, to be held against `lab.noise.lyapunov.lyapunov`. Runs left to themselves have a window of some tens of
steps: alignment with the growing direction at its beginning (2 % too low for gradient descent from step 8), and at its end
stopping each replica when it gets out, which favours the growth it has just had. A common time is free of the latter. A
momentum buffer is scaled with the weights; lengths below the target are left alone, so that directions without curvature,
along which nothing decays, are never blown up: a stable run decays until round-off, and only the sign of its growth counts.
Benettin, Galgani, Giorgilli and Strelcyn (1980), for the exponent by renormalisation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, optim

from lab.escape.replicas import Replicas
from lab.objective import Objective
from lab.progress import Tick, silent
from lab.results import Estimate

Length = Callable[[Tensor], Tensor]
"""A length of the rows of W (R, P), measured from the origin: (R,), homogeneous of degree 1 in w - origin nearby."""


def root_loss(objective: Objective, origin: Tensor) -> Length:
    """sqrt(2 (L(w) - L(origin))), which is |f - y| / sqrt(N) where the loss is 1/2 |f - y|^2 and zero at the origin.

    Cost: a full loss a replica. Below round-off of L it is noise: at an interpolating minimum, whose loss is 0, it is good
    down to 1e-14.
    """
    least = objective.replica_values(origin[None])[0]
    return lambda W: (2 * (objective.replica_values(W) - least)).clamp(min=0).sqrt()


def renormalised_growth(
    replicas: Replicas,
    origin: Tensor,
    length: Length,
    *,
    steps: int = 200,
    burn_in: int = 60,
    target: float = 1e-8,
    every: int = 4,
    tick: Tick = silent,
) -> Estimate:
    """Growth of log length per step, mean over replicas, from step `burn_in` on. The replicas are moved.

    Lengths are measured, and scaled back to `target`, every `every` steps: what they grow to in between has to be small.

    Error: standard error over replicas, ~ 1/sqrt(replicas steps). Raises ValueError for burn_in >= steps and for optimisers
    whose step is not of degree 1 in the displacement (all but SGD, with or without momentum); NaN, not converged, where a
    replica is at the origin itself or not finite.
    """
    if not 0 <= burn_in < steps:
        raise ValueError(f"burn_in={burn_in}: expected 0 to {steps - 1}, fewer than the {steps} steps")
    if type(replicas.optimizer) is not optim.SGD:
        raise ValueError(
            f"{type(replicas.optimizer).__name__} is not homogeneous: growth by renormalisation is for SGD"
        )
    logs, begin = torch.zeros(len(replicas.W), dtype=torch.float64, device=replicas.W.device), torch.zeros(())
    for step in [*range(0, burn_in, every), *range(burn_in, steps, every)]:
        now = length(replicas.W)
        share = (target / now).clamp(max=1)
        if step == burn_in:
            begin = logs + now.double().log()
        logs -= share.double().log()
        _scale(replicas, origin, share)
        replicas.run(min(every, (burn_in if step < burn_in else steps) - step))
        tick((step + 1) / steps)
    growth = (logs + length(replicas.W).double().log() - begin) / (steps - burn_in)
    return _mean(growth, "renormalised")


def _scale(replicas: Replicas, origin: Tensor, share: Tensor) -> None:
    """Rows of W nearer to the origin by `share` (R,), momentum with them."""
    replicas.W.sub_(origin).mul_(share[:, None]).add_(origin)
    for state in replicas.optimizer.state.values():
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"].mul_(share[:, None])


def free_lengths(
    replicas: Replicas, length: Length, *, steps: int, until: float = math.inf, tick: Tick = silent
) -> Tensor:
    """Lengths (steps + 1, R) of replicas left to themselves, at most; fewer where all have passed `until` before."""
    rows, passed = [length(replicas.W)], torch.zeros(len(replicas.W), dtype=torch.bool, device=replicas.W.device)
    for step in range(steps):
        replicas.run(1)
        rows.append(length(replicas.W))
        passed |= ~(rows[-1] <= until)
        tick((step + 1) / steps)
        if bool(passed.all()):
            break
    return torch.stack(rows)


def exits(lengths: Tensor, threshold: float) -> Tensor:
    """First step (R,) at which each length was above `threshold` (or not finite); -1 for those that stayed."""
    outside = ~(lengths <= threshold)
    return torch.where(outside.any(0), outside.int().argmax(0), -1)


def free_growth(lengths: Tensor, threshold: float, *, begin: int = 8) -> tuple[Estimate, Estimate]:
    """Growth per step of lengths (steps + 1, R) from step `begin`: to each replica's own exit, and to a common time.

    The second uses the step before the first exit of all. NaN, not converged, where nobody left after `begin`, or somebody
    before; for own exits also where not all left: those who did grew faster than the others.
    """
    left = exits(lengths, threshold)
    out, nothing = left > begin, torch.full((1,), math.nan)
    if not bool(out.any()) or bool(((left >= 0) & ~out).any()):
        return _mean(nothing, "own exit"), _mean(nothing, "common time")
    logs, columns = lengths.double().log(), torch.arange(lengths.shape[1], device=lengths.device)
    own = (logs[left, columns] - logs[begin]) / (left - begin)
    last = max(int(left[out].min()) - 1, begin + 1)
    common = (logs[last] - logs[begin]) / (last - begin)
    return _mean(own if bool(out.all()) else nothing, "own exit"), _mean(common, "common time")


def _mean(growth: Tensor, method: str) -> Estimate:
    if not bool(growth.isfinite().all()):
        return Estimate(math.nan, math.nan, 0, method, False)
    error = float(growth.std()) / math.sqrt(len(growth)) if len(growth) > 1 else math.nan
    return Estimate(float(growth.mean()), error, 0, method)

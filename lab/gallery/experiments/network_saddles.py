"""What the experiments on saddles of a small network share: the network, runs that start at its saddle, what is refused."""

import math
from functools import lru_cache

import torch
from torch import Tensor, optim

from lab.data.halves import halves_loss
from lab.escape.network_saddle import NetworkSaddle, follow
from lab.escape.noises import Isotropic
from lab.escape.replicas import Replicas
from lab.escape.saddle import Departure, growth_factor, kick_growth
from lab.gallery.base import Surroundings
from lab.objective import NetworkObjective
from lab.points.dense import stationary
from lab.points.minima import descend
from lab.progress import Tick, silent
from lab.results import EscapeTimes, Estimate
from lab.settings import SettingError
from lab.streams import stream

INPUTS, OUTPUTS = 8, 2
RESTARTS, NEWTON_STEPS, BOUNDED = 12, 100, 10.0
"""Random starts of the smaller network, each for how long; weights longer than the last belong to saturated neurons."""
KICK, KICKED, GROWN = 1e-8, 16, 1e4
"""Of the control without noise: how far from the saddle, how many runs, and by what they may grow."""
SPREADS = 25
"""Standard deviations of the predicted time after its mean at which runs that stay are given up."""


@lru_cache(maxsize=4)
def smaller_minimum(examples: int) -> Tensor:
    """Weights of the best 8-1-2 network that is not saturated, float64 on the CPU. The same for every seed of a run."""
    loss = halves_loss(examples, INPUTS, OUTPUTS, 1)
    start = torch.randn(RESTARTS, loss.num_params, generator=stream(0, "smaller network"), dtype=torch.float64)
    ends = [stationary(loss, w) for w in descend(loss, 0.3 * start, max_steps=NEWTON_STEPS)]
    bounded = [e for e in ends if e.grad_norm < 1e-9 and e.eigenvalues[0] > 0 and float(e.w.norm()) < BOUNDED]
    if not bounded:
        raise SettingError(f"examples={examples}: no minimum of the smaller network was found from {RESTARTS} starts")
    return min(bounded, key=lambda end: end.value).w


@lru_cache(maxsize=8)
def halves_on(device: torch.device, examples: int, hidden: int) -> NetworkObjective:
    """Loss of the 8-hidden-2 network with its data there; one for all, so that its programs are recorded once."""
    loss = halves_loss(examples, INPUTS, OUTPUTS, hidden)
    return NetworkObjective(loss.model.to(device), loss.criterion, (loss.x.to(device), loss.y.to(device)))


def require_stable(saddle: NetworkSaddle, lr: float, momentum: float = 0.0) -> None:
    """Raise SettingError where steps along the most positive curvature grow."""
    edge = 2 * (1 + momentum) / float(saddle.point.eigenvalues[-1])
    if lr >= edge:
        raise SettingError(
            f"lr={lr:g}: steps at the saddle are stable below {edge:.3g}; beyond, what leaves follows the most positive "
            "curvature"
        )


def require_room(theory: Departure, name: str, radius: float) -> None:
    """Raise SettingError where the noise alone carries runs out: the law of the saddle has nothing to say there."""
    if not theory.crowding < 1:
        raise SettingError(
            f"radius={radius:g}: the noise ({name}) spreads over {theory.crowding:.0%} of it before the instability acts: "
            "no escape from a saddle; use a larger radius or less noise"
        )


def require_left(times: EscapeTimes, name: str, radius: float) -> None:
    """Raise SettingError where some stayed: the mean time of the others would be too short."""
    stayed = int((~times.exited).sum())
    if stayed:
        raise SettingError(
            f"radius={radius:g}: {stayed} of {len(times.times)} runs ({name}) did not get that far from the saddle in "
            f"{float(times.times.max()):g} steps; use a smaller radius"
        )


def log_growth(saddle: NetworkSaddle, lr: float, momentum: float = 0.0) -> float:
    """Growth per step along the most negative curvature."""
    return math.log(growth_factor(float(saddle.curvatures[0]), lr=lr, momentum=momentum))


def patience(theory: Departure) -> int:
    """Steps after which runs that stay are given up."""
    return int(theory.mean + SPREADS * theory.std) + 10


def sgd_runs(
    saddle: NetworkSaddle,
    W: Tensor,
    draws: torch.Generator,
    *,
    lr: float,
    momentum: float = 0.0,
    batch_size: int = 0,
    noise: float = 0.0,
) -> Replicas:
    """SGD from W (R, P) on the loss of the saddle: batches (0: the full one), and isotropic noise."""
    return Replicas(
        saddle.objective,
        W,
        lambda w: optim.SGD(w, lr=lr, momentum=momentum),
        batch_size=batch_size or None,
        noise=Isotropic(noise) if noise else None,
        generator=draws,
    )


def kicked(
    around: Surroundings,
    name: str,
    saddle: NetworkSaddle,
    *,
    lr: float,
    momentum: float = 0.0,
    most: float = math.inf,
    tick: Tick = silent,
) -> Estimate:
    """Growth of a tiny kick without noise, for at most so many steps."""
    draws = around.stream(f"{name}/kick")
    kicks = torch.randn(KICKED, len(saddle.w), generator=draws, dtype=saddle.w.dtype, device=saddle.w.device)
    runs = sgd_runs(saddle, saddle.w + KICK * kicks, draws, lr=lr, momentum=momentum)
    steps = max(6, int(min(most, int(math.log(GROWN) / log_growth(saddle, lr, momentum)))))
    return kick_growth(follow(runs, saddle.w, saddle.directions, steps=steps, tick=tick)[:, :, 0])

"""What can be wrong with an escape rate: why there is none (`reasons`), and what else its reader must know (`remarks`).

A rate exists where escape is slow against relaxation, is driven by noise, and starts in one basin. What is tested here:

    relaxation    tau = 1/(lr lambda_min), the smallest curvature that is not null; escape within 3 tau is no rate. Momentum
                  b makes lr here and below lr/(1 - b), and tau no shorter than that of the oscillation, -2/log b
    noise         C, the covariance of the gradient of one step, sampled at the start; C = 0: never by noise
    barrier       against T = (lr/2) t'Ct along the way t to the saddle (lr C/2 is the temperature of Langevin): > 2 T
    soft modes    sqrt(T/lambda_min) in the softest direction against .35 of the distance to the saddle
    stability     lr lambda_max below the threshold of the optimiser, else the exit is ballistic
    drift         a run without noise at lr/10 that is outside as well was under way already
    one state     replicas inside, quenched, are all in one minimum; times are exponential
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lab.escape.exits import Exit, Quench
from lab.objective import Decayed, NetworkObjective, Objective
from lab.results import ClassifiedPoint

if TYPE_CHECKING:
    from lab.escape.ensemble import Control, Dynamics, EnsembleEscape

NOISE_DRAWS = 256
"""Gradients of one step that the covariance of the noise is sampled with: standard error of a variance 9 %."""
SLOW = 3.0
"""Relaxation times that an escape must take."""
HIGH = 2.0
"""Temperatures that a barrier must be high."""
WIDE = 0.35
"""Share of the way to the saddle that the softest direction may fluctuate by."""
UNLIKELY = 1e-3
"""p below which the times are not exponential."""
FINITE_LR = 0.5
"""lr lambda_max from which on the discrete steps matter."""
LOUD = 0.1
"""Share of exits inside again at the next inspection from which on boundary crossings, not escapes, are counted."""
FEW = 5
ROUNDING = 100.0
"""Noise that moves the weights by less than this many roundings of theirs is none."""


@dataclass(frozen=True)
class WayOut:
    """A pass out of the basin: where (P,), its height above the start, and the unstable direction (P,)."""

    w: Tensor
    barrier: float
    direction: Tensor


@dataclass(frozen=True)
class StartingPoint:
    """The start: what kind of point, how fast it relaxes, how loud the noise is there.

    lr            lr (1 - dampening)/(1 - momentum) of the optimiser: what slow motion and temperatures go with
    relaxation    tau in steps; inf where no curvature is positive
    noise         trace of C; noise_soft u'Cu along the softest direction; silent: C moves nothing beyond round-off
    temperature   along the way to the saddle, NaN where none is known; barrier, distance: of the saddle, else NaN
    edge          lr lambda_max over the threshold of the optimiser: beyond 1 full-batch steps are unstable
    """

    critical: ClassifiedPoint
    lr: float
    lambda_min: float
    relaxation: float
    noise: float
    noise_soft: float
    silent: bool
    temperature: float
    barrier: float
    distance: float
    edge: float


def examine(
    objective: Objective,
    w: Tensor,
    dynamics: "Dynamics",
    critical: ClassifiedPoint,
    *,
    threshold: float | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    saddle: WayOut | None = None,
    generator: torch.Generator,
) -> StartingPoint:
    """What is known of the start w (P,). critical: `lab.points.critical.classify` of it. threshold: the largest stable
    sharpness of the optimiser, default 2/lr; momentum, dampening: its own. Cost: `NOISE_DRAWS` gradients of a batch.
    """
    lr, values = dynamics.lr * (1 - dampening) / (1 - momentum), critical.values.double()
    positive = values > critical.tolerance
    softest = int(torch.where(positive, values, math.inf).argmin()) if bool(positive.any()) else -1
    lambda_min = float(values[softest]) if softest >= 0 else 0.0
    noise = gradient_noise(objective, w, dynamics, generator)
    trace = float(noise.double().square().sum(1).mean())
    silent = lr * math.sqrt(trace) <= ROUNDING * torch.finfo(w.dtype).eps * max(1.0, float(w.norm()))
    soft = float((noise @ critical.vectors[:, softest].to(noise)).square().mean()) if softest >= 0 else math.nan
    barrier = temperature = distance = math.nan
    if saddle is not None:
        barrier, way = saddle.barrier, saddle.w - w
        distance, temperature = float(way.norm()), lr / 2 * float((noise @ (way / way.norm())).square().mean())
    return StartingPoint(
        critical,
        lr,
        lambda_min,
        max(-2 / math.log(momentum) if momentum else 0.0, 1 / (lr * lambda_min)) if lambda_min > 0 else math.inf,
        trace,
        soft,
        silent,
        temperature,
        barrier,
        distance,
        float(values.max()) / (threshold or 2 / dynamics.lr),
    )


def gradient_noise(objective: Objective, w: Tensor, dynamics: "Dynamics", generator: torch.Generator) -> Tensor:
    """The noise of the gradient of one step at w, as so many draws (n, P), of mean zero."""
    replicas = dynamics.replicas(objective, w.expand(NOISE_DRAWS, -1), generator)
    drawn = replicas.gradients()
    return drawn - objective.replica_grads(w[None]) if not replicas.is_quiet else torch.zeros_like(drawn)


# --- why there is no rate ----------


def beforehand(place: StartingPoint, exit: Exit | None = None) -> Iterator[str]:
    """What rules a rate out before anybody has moved, a sentence each."""
    if place.critical.kind == "not critical" and exit is not None and not isinstance(exit, Quench):
        yield (
            f"the start is not critical (|gradient| {place.critical.grad_norm:.2g}): the run is under way, and what it "
            "leaves is no basin"
        )
    if place.edge > 1:
        yield (
            f"the learning rate is {place.edge:.3g} times the largest that is stable at this sharpness: the exit is "
            "ballistic, along the unstable directions"
        )
    if place.silent:
        yield "the gradients have no noise here: never by noise (an interpolating minimum, or the full batch)"
    if place.critical.kind == "saddle" and not isinstance(exit, Quench):
        yield "the start is a saddle: replicas leave it from the first step on, in the time that their noise takes to grow"
    if place.barrier < HIGH * place.temperature:
        yield (
            f"the barrier {place.barrier:.3g} is only {place.barrier / place.temperature:.2g} times the noise "
            f"({place.temperature:.3g}) on the way to the saddle; below {HIGH:g} there is no rate"
        )
    wide = math.sqrt(place.lr * place.noise_soft / (2 * place.lambda_min)) if place.lambda_min > 0 else math.nan
    if wide > WIDE * place.distance:
        yield (
            f"soft modes: along the softest curvature {place.lambda_min:.2g} the noise spreads over {wide:.2g}, and the "
            f"saddle is {place.distance:.2g} away"
        )


def reasons(
    seen: "EnsembleEscape", place: StartingPoint, exit: Exit, elsewhere: tuple[int, int] | None
) -> Iterator[str]:
    """Sentences, each of which alone means that no rate exists."""
    yield from beforehand(place, exit)
    exits = int(seen.watched.times.exited.sum())
    mean = 1 / seen.fit.value if exits else math.inf
    if _left(seen.slow) and exits:
        yield f"without noise, at a tenth of the learning rate, it leaves as well (step {seen.slow.left:.0f}): drift"  # type: ignore[union-attr]
    elif _left(seen.quiet) and exits:
        yield f"without noise it leaves as well, at step {seen.quiet.left:.0f}"  # type: ignore[union-attr]
    if elsewhere is not None and elsewhere[0]:
        yield (
            f"{elsewhere[0]} of {elsewhere[1]} replicas counted inside lie in another minimum: the basin has more than two "
            "states on the way out"
        )
    if seen.watched.emptied:
        yield "all replicas had left during the burn-in, before they came to rest inside"
    elif mean < SLOW * place.relaxation and not place.critical.index:
        known = (
            f"{place.relaxation:.3g} steps" if math.isfinite(place.relaxation) else "unknown, no curvature is positive"
        )
        yield f"escape takes {mean:.3g} steps, relaxation inside {known}: what they leave is no stationary law"
    if seen.shape.p < UNLIKELY:
        when = "too early" if seen.shape.early > 0 else "too late"
        yield f"the times are not exponential (p = {seen.shape.p:.1g}: {when} for one rate)"


def _left(run: "Control | None") -> bool:
    return run is not None and math.isfinite(run.left)


# --- what else the reader must know ----------


def remarks(
    seen: "EnsembleEscape", place: StartingPoint, exit: Exit, dynamics: "Dynamics", objective: Objective
) -> Iterator[str]:
    """Sentences that qualify what was measured."""
    if exit.warning:
        yield exit.warning
    yield from _of_times(seen)
    yield from _of_start(seen, place, exit)
    yield from _of_ends(seen, place, exit, dynamics, objective)
    network = objective.inner if isinstance(objective, Decayed) else objective
    modules = network.modes.modules if isinstance(network, NetworkObjective) else []
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        yield "BatchNorm keeps its running statistics: what they would do in training is left out"
    if dynamics.sampling == "epoch" and dynamics.batch_size is not None:
        yield "the batches of an epoch make up for one another: there is less noise than D/B over many steps"


def _of_times(seen: "EnsembleEscape") -> Iterator[str]:
    """What the exits themselves say."""
    times, watched = seen.watched.times, seen.watched
    if watched.returned > LOUD:
        yield (
            f"{100 * watched.returned:.0f} % of those that left were inside again at the next inspection: passages of the "
            "boundary are counted, up to twice the rate of escape; put the exit further out, or inspect less often"
        )
    exits, failed = int(times.exited.sum()), int(times.failed.sum())
    if failed:
        yield f"{failed} of {len(times.times)} replicas diverged: counted as exits of their own kind, not in the rate"
    if 0 < exits < FEW:
        yield f"{exits} exits are few: the interval is honest, and wide"
    if exits and seen.fit.value * times.inspection > 0.5:
        yield f"inspections every {times.inspection:g} steps are too far apart for exits this fast"
    rates = [fit for _, fit in seen.refits if fit.exits >= FEW]
    if rates and max(r.low for r in rates) > min(r.high for r in rates):
        fits = ", ".join(f"{fit.value:.3g} at {start:.0f}" for start, fit in seen.refits if fit.exits)
        yield f"the rate depends on the burn-in ({fits} steps): it is not stationary"


def _of_start(seen: "EnsembleEscape", place: StartingPoint, exit: Exit) -> Iterator[str]:
    """What the start says."""
    if place.critical.nullity and not isinstance(exit, Quench):
        yield f"{place.critical.nullity} directions are flat: diffusion along them is no escape, and must not move the exit"
    if FINITE_LR < 2 * place.edge <= 2:
        yield f"lr lambda_max is {2 * place.edge:.2g}: compare with the discrete-time chain, not with the diffusion"
    if seen.slow is not None and seen.slow.least < seen.slow.start * 0.9 and place.critical.kind == "not critical":
        yield (
            f"the start is not at rest: gradient descent alone lowers the loss from {seen.slow.start:.3g} to "
            f"{seen.slow.least:.3g}"
        )


def _of_ends(
    seen: "EnsembleEscape", place: StartingPoint, exit: Exit, dynamics: "Dynamics", objective: Objective
) -> Iterator[str]:
    """What those that left say."""
    times, watched, exits = seen.watched.times, seen.watched, int(seen.watched.times.exited.sum())
    if isinstance(exit, Quench) and exit.unconverged:
        yield f"{exit.unconverged} of {exit.quenched} quenches had not come to rest: where they belong is not certain"
    if isinstance(exit, Quench) and exits:
        same = _same_loss(exit, watched.ends[times.exited.to(watched.ends.device)][:16])
        if same[0]:
            yield f"{same[0]} of {same[1]} exits lead to a minimum of the same loss: symmetric images may count as new ones"
    if not place.silent and exits:
        change = _noise_there(objective, dynamics, watched.ends[times.exited.to(watched.ends.device)][:8]) / place.noise
        if not 0.5 < change < 2:
            yield f"the noise of the gradient is {change:.2g} times as large outside as at the start: it changes on the way"


def _same_loss(exit: Quench, W: Tensor) -> tuple[int, int]:
    """How many of the ends of W have the loss of home, and of how many."""
    there, home = exit.ends(W).values, exit.objective.replica_values(exit.home[None])[0]
    return int(((there - home).abs() <= exit.tolerance * home.abs().clamp(min=exit.tolerance)).sum()), len(W)


def _noise_there(objective: Objective, dynamics: "Dynamics", W: Tensor) -> float:
    """Trace of the covariance of the gradient of one step, mean over the rows of W."""
    repeats = NOISE_DRAWS // len(W)
    at = W.repeat_interleave(repeats, 0)
    drawn = dynamics.replicas(objective, at, torch.Generator().manual_seed(0)).gradients()
    return float((drawn - objective.replica_grads(W).repeat_interleave(repeats, 0)).double().square().sum(1).mean())

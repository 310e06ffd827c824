"""The escape estimator: an ensemble of replicas is watched until most have left, and what that says is put into a rate.

    burn-in      who leaves takes over the place of one who has not (Fleming and Viot 1979), so that the clock starts from
                 the quasi-stationary law; default 3 / (lr lambda_min)
    watch        every so many steps all are looked at; the end at 90 % exits or at the budget, the rest is censored
    rate         exits over exposure, `lab.escape.survival.rate`; again at burn-in 0, 1 and 2 relaxation times
    controls     the same start without noise, at lr and at lr/10: what leaves there leaves without noise
    judgement    `lab.escape.warnings`: where one of its reasons applies there is no rate, whatever the fit says

A rate is -lim d log S/dt from the quasi-stationary law, and exists where escape is slow against relaxation inside.
Units: all times in steps; `lab.escape.survival.per_time` and `per_epoch` convert.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lab.escape.exits import Exit, Quench
from lab.escape.fleming_viot import EnsembleExits, fleming_viot
from lab.escape.replicas import MakeOptimizer, ReplicaNoise, Replicas
from lab.escape.survival import Exponentiality, after, exponentiality, rate
from lab.escape.warnings import StartingPoint, reasons, remarks
from lab.objective import Objective
from lab.progress import Tick, silent
from lab.results import EscapeTimes, Rate
from lab.sampling import Sampling

SLOWER = 10
"""The second control runs at lr over this, as many times as many steps."""
CONTROL_STEPS = 20_000
"""Steps of a control, at most."""
CHECKED = 32
"""Replicas that are quenched at the end to see where they were, at most."""


@dataclass(frozen=True)
class Dynamics:
    """How a run moves. make(lr) gives what makes the optimiser (`Replicas`); batch_size None: the whole set."""

    make: Callable[[float], MakeOptimizer]
    lr: float
    batch_size: int | None = None
    sampling: Sampling = "with_replacement"
    noise: ReplicaNoise | None = None

    def replicas(self, objective: Objective, W: Tensor, generator: torch.Generator) -> Replicas:
        """The rows of W (R, P), set in motion."""
        return Replicas(
            objective,
            W,
            self.make(self.lr),
            batch_size=self.batch_size,
            sampling=self.sampling,
            noise=self.noise,
            generator=generator,
        )

    def quiet(self, slower: float = 1.0) -> "Dynamics":
        """The same on the whole set, without noise, at lr/slower."""
        return replace(self, lr=self.lr / slower, batch_size=None, noise=None)


@dataclass(frozen=True)
class Control:
    """A run without noise from the same start: the step at which it was outside (NaN: never), of `steps`; the loss at the
    start and the least on the way; how far it went.
    """

    left: float
    steps: int
    start: float
    least: float
    moved: float


@dataclass(frozen=True)
class EnsembleEscape:
    """An ensemble's verdict. fit is the rate per step if there is one; reasons why there is none, each a sentence.

    refits     (burn-in in steps, rate) at 0, 1 and 2 relaxation times, from the start on
    quiet, slow   the controls at lr and lr/10; None where they were not wanted
    warnings   what the reader has to know besides
    """

    fit: Rate
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    watched: EnsembleExits
    refits: tuple[tuple[float, Rate], ...]
    shape: Exponentiality
    quiet: Control | None
    slow: Control | None

    @property
    def rate(self) -> Rate | None:
        """Exits per step with the exact interval; None where no rate exists."""
        return None if self.reasons else self.fit


def control(objective: Objective, w: Tensor, dynamics: Dynamics, exit: Exit, *, steps: int, every: int) -> Control:
    """One run of `dynamics` from w (P,), looked at as the ensemble is: does it leave?"""
    single = dynamics.replicas(objective, w[None], torch.Generator().manual_seed(0))
    start = least = float(objective.value(w))
    left = math.nan
    for begin in range(0, steps, every):
        single.run(min(every, steps - begin))
        least = min(least, float(objective.replica_values(single.W)[0]))
        if bool(exit.outside(single.W)[0]) or not bool(single.W.isfinite().all()):
            left = float(single.step)
            break
    return Control(left, single.step, start, least, float((single.W[0] - w).norm()))


def escape(
    objective: Objective,
    w: Tensor,
    dynamics: Dynamics,
    exit: Exit,
    place: StartingPoint,
    *,
    replicas: int = 64,
    every: int,
    budget: int,
    burn_in: int | None = None,
    stop: float = 0.9,
    controls: bool = True,
    home: Quench | None = None,
    generator: torch.Generator,
    tick: Tick = silent,
) -> EnsembleEscape:
    """R replicas from w (P,) under `dynamics` until they are outside by `exit`, and whether that is a rate.

    place    what is known of the start, `lab.escape.warnings.examine`; its relaxation time sets the burn-in (default three
             of them, at most a quarter of the budget).
    home     quenches some of those inside at the end of the burn-in: other minima are other states.
    Cost: replicas x (burn_in + budget) gradients of a batch, and those of the controls.
    """
    tau = place.relaxation
    burn = min(math.ceil(3 * tau), budget // 4) if burn_in is None and math.isfinite(tau) else burn_in
    burn = budget // 4 if burn is None else burn
    crowd = dynamics.replicas(objective, w.expand(replicas, -1), generator)
    watched = fleming_viot(crowd, exit, every=every, budget=budget, burn_in=burn, stop=stop, tick=tick)
    fit = rate(watched.times)
    quiet, slow = _controls(objective, w, dynamics, exit, watched, budget, every) if controls else (None, None)
    shape, refits = exponentiality(watched.times), _refits(watched.first, tau)
    seen = EnsembleEscape(fit, (), (), watched, refits, shape, quiet, slow)
    elsewhere = None if home is None else _elsewhere(home, exit, watched)
    return replace(
        seen,
        reasons=tuple(reasons(seen, place, exit, elsewhere)),
        warnings=tuple(remarks(seen, place, exit, dynamics, objective)),
    )


def _controls(
    objective: Objective, w: Tensor, dynamics: Dynamics, exit: Exit, watched: EnsembleExits, budget: int, every: int
) -> tuple[Control, Control]:
    """Without noise, at lr and lr/10, for as long as it takes half of those that leave."""
    left = watched.first.times[watched.first.exited]
    steps = min(max(int(left.median()) if len(left) else budget, 10 * every), CONTROL_STEPS)
    slow = min(SLOWER * steps, CONTROL_STEPS)
    return (
        control(objective, w, dynamics.quiet(), exit, steps=steps, every=every),
        control(objective, w, dynamics.quiet(SLOWER), exit, steps=slow, every=SLOWER * every),
    )


def _refits(first: EscapeTimes, tau: float) -> tuple[tuple[float, Rate], ...]:
    """Rates of those inside at 0, 1 and 2 relaxation times (rounded up to an inspection), on a clock that starts there."""
    fits = []
    for count in (0, 1, 2):
        inspections = count * tau / first.inspection if count else 0.0
        start = math.ceil(inspections) * first.inspection if math.isfinite(inspections) else math.inf
        if start < float(first.times.max()):
            fits.append((start, rate(after(first, start) if start else first)))
    return tuple(fits)


def _elsewhere(home: Quench, exit: Exit, watched: EnsembleExits) -> tuple[int, int]:
    """Of those inside at the end of the burn-in (some of them), how many are in another minimum than home; and how many
    were looked at.
    """
    W = watched.settled
    inside = W[(~exit.outside(W) & W.isfinite().all(1)).nonzero()[:CHECKED, 0]]
    return (int(home.outside(inside).sum()), len(inside)) if len(inside) else (0, 0)

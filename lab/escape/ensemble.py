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
from lab.escape.replicas import MakeOptimizer, Noise, Replicas
from lab.escape.survival import Exponentiality, after, exponentiality, rate
from lab.escape.warnings import Place, reasons, remarks
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
    noise: Noise | None = None

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
class Watched:
    """What was seen. times from the end of the burn-in on; first from the start on, of those that nobody replaced yet.

    settled   (R, P): where all were at the end of the burn-in
    ends      (R, P): where each replica was found outside, or is now
    returned  share of exits that were inside again at the next inspection; NaN where nobody looked
    emptied   all were outside at one inspection of the burn-in: `times` are then `first`, and there was no burn-in
    """

    times: EscapeTimes
    first: EscapeTimes
    settled: Tensor
    ends: Tensor
    returned: float
    emptied: bool


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
class Escape:
    """An ensemble's verdict. fit is the rate per step if there is one; reasons why there is none, each a sentence.

    refits     (burn-in in steps, rate) at 0, 1 and 2 relaxation times, from the start on
    quiet, slow   the controls at lr and lr/10; None where they were not wanted
    warnings   what the reader has to know besides
    """

    fit: Rate
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    watched: Watched
    refits: tuple[tuple[float, Rate], ...]
    shape: Exponentiality
    quiet: Control | None
    slow: Control | None

    @property
    def rate(self) -> Rate | None:
        """Exits per step with the exact interval; None where no rate exists."""
        return None if self.reasons else self.fit


def fleming_viot(
    replicas: Replicas,
    exit: Exit,
    *,
    every: int,
    budget: int,
    burn_in: int = 0,
    stop: float = 0.9,
    tick: Tick = silent,
) -> Watched:
    """Exits from the quasi-stationary law: moved until a share `stop` has left or `budget` steps are over.

    All are looked at every `every` steps. During burn_in steps, rounded up to a multiple of `every`, those that left, or
    are not finite, go on from places of others, drawn at random. The error of a time is half an inspection. Raises
    ValueError for settings that cannot be.
    """
    if every < 1 or budget < every or burn_in < 0 or not 0 < stop <= 1:
        raise ValueError(
            f"every={every}, budget={budget}, burn_in={burn_in}, stop={stop}: expected 1 <= every <= budget, burn_in >= 0 "
            "and 0 < stop <= 1"
        )
    burn_in = -(-burn_in // every) * every
    crowd = _Crowd(replicas, exit)
    for begin in range(0, burn_in, every):
        replicas.run(every)
        if crowd.replace(begin + every):
            break
        tick((begin + every) / (burn_in + budget))
    crowd.begin()
    for begin in range(0, budget, every):
        if crowd.emptied or float((~crowd.inside).double().mean()) >= stop:
            break
        steps = min(every, budget - begin)
        replicas.run(steps)
        crowd.look(begin + steps)
        tick((burn_in + begin + steps) / (burn_in + budget))
    return crowd.seen(every, burn_in)


class _Crowd:
    """Who is inside, who left when, and who was there from the start."""

    def __init__(self, replicas: Replicas, exit: Exit) -> None:
        self.replicas, self.exit = replicas, exit
        R, device = len(replicas.W), replicas.W.device
        self.inside = torch.ones(R, dtype=torch.bool, device=device)
        self.original, self.emptied, self.replaced = self.inside.clone(), False, 0
        self.first = _Times(R, device)
        self.times = _Times(R, device)
        self.ends = replicas.W.clone()
        self.last = torch.zeros_like(self.inside)
        self.back = self.seen_again = 0

    def replace(self, step: int) -> bool:
        """An inspection of the burn-in; whether all were outside."""
        failed = ~self.replicas.W.isfinite().all(1)
        out = self.exit.outside(self.replicas.W) & ~failed
        self.first.note(self.original & out, self.original & failed, step)
        gone = out | failed
        self.ends[self.original & out] = self.replicas.W[self.original & out]
        self.original &= ~gone
        if bool(gone.all()):
            self.emptied = True
            return True
        rows, sources = gone.nonzero()[:, 0], (~gone).nonzero()[:, 0]
        if len(rows):
            generator = self.replicas.generator
            drawn = torch.randint(len(sources), (len(rows),), generator=generator, device=generator.device)
            self.replicas.replace(rows, sources[drawn.to(sources.device)])
            self.replaced += len(rows)
        self.first.until(self.original, step)
        return False

    def begin(self) -> None:
        """The end of the burn-in."""
        self.started, self.settled = self.first.latest, self.replicas.W.clone()

    def look(self, step: int) -> None:
        """An inspection: first exits are noted, and who left before and is back is counted."""
        W, inside = self.replicas.W, self.inside
        failed = inside & ~W.isfinite().all(1)
        alive = inside & ~failed
        out = torch.zeros_like(inside)
        if self.exit.costly:
            if bool(alive.any()):
                out[alive] = self.exit.outside(W[alive])
        else:
            found = self.exit.outside(W)
            out = alive & found
            self.back += int((self.last & ~found & W.isfinite().all(1)).sum())
            self.seen_again += int(self.last.sum())
            self.last = out
        self.ends[out] = W[out]
        self.times.note(out, failed, step)
        self.first.note(out & self.original, failed & self.original, self.started + step)
        self.inside = alive & ~out
        self.times.until(self.inside, step)
        self.first.until(self.inside & self.original, self.started + step)

    def seen(self, every: int, burn_in: int) -> Watched:
        self.ends[self.inside] = self.replicas.W[self.inside]
        first = self.first.result(every, 0, 0)
        times = first if self.emptied else self.times.result(every, burn_in, self.replaced)
        returned = self.back / self.seen_again if self.seen_again else math.nan
        return Watched(times, first, self.settled, self.ends, returned, self.emptied)


class _Times:
    """Times, exits and failures of R replicas as they come in."""

    def __init__(self, R: int, device: torch.device) -> None:
        self.at = torch.zeros(R, dtype=torch.float64, device=device)
        self.out = torch.zeros(R, dtype=torch.bool, device=device)
        self.failed = self.out.clone()
        self.latest = 0

    def note(self, out: Tensor, failed: Tensor, step: int) -> None:
        self.at[out | failed] = step
        self.out |= out
        self.failed |= failed
        self.latest = step

    def until(self, inside: Tensor, step: int) -> None:
        self.at[inside] = step

    def result(self, every: int, burn_in: int, replaced: int) -> EscapeTimes:
        return EscapeTimes(self.at.cpu(), self.out.cpu(), self.failed.cpu(), float(every), float(burn_in), replaced)


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
    place: Place,
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
) -> Escape:
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
    quiet = slow = None
    if controls:
        left = watched.first.times[watched.first.exited]
        steps = int(left.median()) if len(left) else budget  # by when half of those that leave have left
        steps = min(max(steps, 10 * every), CONTROL_STEPS)
        quiet = control(objective, w, dynamics.quiet(), exit, steps=steps, every=every)
        slow = control(
            objective, w, dynamics.quiet(SLOWER), exit, steps=min(SLOWER * steps, CONTROL_STEPS), every=SLOWER * every
        )
    found = Escape(
        fit,
        (),
        (),
        watched,
        _refits(watched.first, tau),
        exponentiality(watched.times),
        quiet,
        slow,
    )
    elsewhere = None if home is None else _elsewhere(home, exit, watched)
    return replace(
        found,
        reasons=tuple(reasons(found, place, exit, elsewhere)),
        warnings=tuple(remarks(found, place, exit, dynamics, objective)),
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


def _elsewhere(home: Quench, exit: Exit, watched: Watched) -> tuple[int, int]:
    """Of those inside at the end of the burn-in (some of them), how many are in another minimum than home; and how many
    were looked at.
    """
    W = watched.settled
    inside = W[(~exit.outside(W) & W.isfinite().all(1)).nonzero()[:CHECKED, 0]]
    return (int(home.outside(inside).sum()), len(inside)) if len(inside) else (0, 0)

"""Exits from the quasi-stationary law: who leaves during the burn-in goes on from the place of one who has not.

Fleming and Viot, Some measure-valued Markov processes in population genetics theory (1979).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.escape.exits import Exit
from lab.escape.replicas import Replicas
from lab.progress import Tick, silent
from lab.results import EscapeTimes


@dataclass(frozen=True)
class EnsembleExits:
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


def fleming_viot(
    replicas: Replicas,
    exit: Exit,
    *,
    every: int,
    budget: int,
    burn_in: int = 0,
    stop: float = 0.9,
    tick: Tick = silent,
) -> EnsembleExits:
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
            outside = self.exit.outside(W)
            out = alive & outside
            self.back += int((self.last & ~outside & W.isfinite().all(1)).sum())
            self.seen_again += int(self.last.sum())
            self.last = out
        self.ends[out] = W[out]
        self.times.note(out, failed, step)
        self.first.note(out & self.original, failed & self.original, self.started + step)
        self.inside = alive & ~out
        self.times.until(self.inside, step)
        self.first.until(self.inside & self.original, self.started + step)

    def seen(self, every: int, burn_in: int) -> EnsembleExits:
        self.ends[self.inside] = self.replicas.W[self.inside]
        first = self.first.result(every, 0, 0)
        times = first if self.emptied else self.times.result(every, burn_in, self.replaced)
        returned = self.back / self.seen_again if self.seen_again else math.nan
        return EnsembleExits(times, first, self.settled, self.ends, returned, self.emptied)


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

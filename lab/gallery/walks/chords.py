"""The chord-step walk: on k lines through a point, jump to any point of the lines that is exactly `step` away.

The lines have half-length 1, cross at their middles at angles pi j / k, and their ends are joined (periodic). From
position t on a line the destinations on a line at angle a are the roots r = t cos a +- sqrt(step^2 - t^2 sin^2 a): two
on its own line and, close to the crossing, up to 2k in all; one of them is drawn with equal chance. So there ARE more ways
through the crossing, and the walker is found within one step of it more often than the share `step` of the length
would have it. But the region in which this is so is as large as the step: the excess is a ratio of order one on a mass
that vanishes with the step, a property of the rule and not of the geometry.

The excess has no closed form. Counting the ways (a law proportional to the number of destinations, as on a graph) is an
upper guess: being a destination is symmetric, but the jump between two lines stretches length by |dr/dt| != 1. Nor do
equal cells of [0, 1] resolve the law, which piles up at whole steps from the crossing: there r - step = -t^2 / (2 step).
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lab.progress import Tick, silent
from lab.results import Estimate

CHUNK = 1 << 14
"""Walkers that move together; each needs 2k numbers of 8 bytes a handful of times."""
RELAXATIONS = 12
"""Relaxation times of the burn-in: after a third of them the excess of k = 2, 3, 4 is still 3 % too low."""


@dataclass(frozen=True)
class ChordWalk:
    """k >= 2 lines through a point and chords of length `step`, in half-lengths of a line, 0 < step <= 1/4.

    Raises ValueError outside; the bound keeps the joined ends of the lines out of reach of the crossing.
    """

    k: int
    step: float

    def __post_init__(self) -> None:
        if self.k < 2 or not 0 < self.step <= 0.25:
            raise ValueError(f"k={self.k}, step={self.step}: expected k of at least 2 and a step in (0, 0.25]")

    @property
    def burn_in(self) -> int:
        """Steps until a uniform start is forgotten: RELAXATIONS times 2 / (pi step)^2, that of a walk around one line."""
        return math.ceil(RELAXATIONS * 2 / (math.pi * self.step) ** 2)

    def destinations(self, t: Tensor) -> Tensor:
        """(w, k, 2) positions on the lines at angles pi j / k from that of t (w,), j = 0 its own; NaN where none is."""
        angles = torch.pi * torch.arange(self.k, dtype=t.dtype, device=t.device) / self.k
        middle = t[:, None] * angles.cos()
        apart = (self.step**2 - (t[:, None] * angles.sin()) ** 2).sqrt()
        return torch.stack((middle + apart, middle - apart), dim=2)

    def moved(self, t: Tensor, generator: Generator) -> Tensor:
        """(w,) positions after one jump, each on the line it jumped to; which line that is makes no difference."""
        ways = self.destinations(t).flatten(1)
        lots = torch.rand(ways.shape, generator=generator, device=t.device).masked_fill(ways.isnan(), -1)
        chosen = ways.gather(1, lots.argmax(1, keepdim=True)).squeeze(1)
        return (chosen + 1) % 2 - 1

    def near_share(self, generator: Generator, *, walkers: int, steps: int, tick: Tick = silent) -> Estimate:
        """The share of time that walkers spend within one step of the crossing, after a burn-in from a uniform start.

        The share of the length is `step`. Standard error from the scatter of the walkers, which are independent. Cost:
        walkers x (burn_in + steps) jumps, on the device of the generator. Raises ValueError for fewer than 2 walkers.
        """
        if walkers < 2 or steps < 1:
            raise ValueError(f"walkers={walkers}, steps={steps}: expected at least 2 walkers and 1 step")
        device, total = generator.device, self.burn_in + steps
        near = torch.empty(walkers, dtype=torch.float64, device=device)
        for first in range(0, walkers, CHUNK):
            mine = near[first : first + CHUNK]
            t = 2 * torch.rand(len(mine), generator=generator, dtype=torch.float64, device=device) - 1
            seen = torch.zeros_like(t)
            for n in range(total):
                t = self.moved(t, generator)
                if n >= self.burn_in:
                    seen += t.abs() < self.step
                tick((first + len(mine) * (n + 1) / total) / walkers)
            mine.copy_(seen / steps)
        return Estimate(float(near.mean()), float(near.std() / walkers**0.5), 0, "walkers")

    def share_by_counting(self) -> float:
        """The share within one step if the law were proportional to the number of destinations: an upper guess.

        A line at angle a offers two destinations while |t| sin a <= step, so the share is
        k step / (1 + sum_j min(1, step / sin(pi j / k))), j = 1 .. k - 1.

        >>> ChordWalk(2, 0.1).share_by_counting()  # 2 x 0.1 / (1 + 0.1)
        0.1818...
        """
        others = (min(1.0, self.step / math.sin(math.pi * j / self.k)) for j in range(1, self.k))
        return self.k * self.step / (1 + sum(others))

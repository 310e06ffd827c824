"""First passages of walkers beside the chain that says exactly how they should leave: mean times, and slopes of their log.

mean time = lr * exposure / exits after the burn-in,     its error = mean time / sqrt(exits that the chain expects)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from lab.escape.passage import beyond, first_passages
from lab.escape.survival import Slope, after, of_counts, rate, slope
from lab.gallery.laws.nystrom import Chain
from lab.landscapes.base import Landscape
from lab.progress import Tick, silent
from lab.results import EscapeTimes, Estimate, Rate

FEW = 5
"""Exits below which a mean time says nothing."""


@dataclass(frozen=True)
class Passages:
    """Walkers that left along the first coordinate, beside the chain that says exactly how they should.

    times as simulated from the start; settled the same after the burn-in, at their own rate; rate of these, per step.
    """

    chain: Chain
    times: EscapeTimes
    settled: EscapeTimes
    rate: Rate

    @property
    def measured(self) -> bool:
        """Whether so many left that a mean time with an error says something; otherwise there is the interval of `rate`."""
        return self.rate.exits >= FEW

    @property
    def mean_time(self) -> Estimate:
        """1 / rate in units of lr * step; NaN where nobody left. Error 1 / sqrt(exits that the chain lets expect) of it.

        That of the exits seen would be too small where they are many by chance, and agreement rejected too often.
        """
        value = self.chain.lr / self.rate.value
        return Estimate(value, value / math.sqrt(self.rate.exposure * self.chain.rate), 0, "walkers")

    @property
    def exact(self) -> float:
        """The same of the chain."""
        return self.chain.lifetime

    @property
    def point(self) -> tuple[float, float]:
        """Mean time and its error, for a figure; NaN where too few left."""
        return (self.mean_time.value, self.mean_time.error) if self.measured else (math.nan, math.nan)


def time_ratio(slow: Passages, fast: Passages) -> Estimate:
    """Mean time over mean time; relative variances add up."""
    a, b = slow.mean_time, fast.mean_time
    ratio = a.value / b.value
    return Estimate(ratio, ratio * math.hypot(a.error / a.value, b.error / b.value), 0, "walkers")


def escapes(
    landscape: Landscape,
    chain: Chain,
    start: Tensor,
    *,
    diffusion: float | Callable[[Tensor], Tensor],
    scale: Tensor | None = None,
    walkers: int,
    budget: float,
    burn_in: float,
    max_steps: int,
    generator: Generator,
    tick: Tick = silent,
) -> Passages:
    """Walkers from `start` (P,) until they leave the chain's domain upwards.

    They are watched for `budget` mean times after a burn-in of that many units of time, for `max_steps` steps at most.
    """
    assert chain.domain.high is not None
    settle = math.ceil(burn_in / chain.lr)
    steps = min(max_steps, settle + math.ceil(min(budget / chain.rate, 1e15)))
    times = first_passages(
        landscape,
        start,
        beyond(chain.domain.high),
        lr=chain.lr,
        diffusion=diffusion,
        scale=scale,
        walkers=walkers,
        max_steps=steps,
        generator=generator,
        tick=tick,
    )
    settled = after(times, min(settle, steps - 1))
    return Passages(chain, times, settled, rate(settled))


def too_few(cells: Sequence[Passages]) -> list[str]:
    """The sentence on those without a mean time; none where all have one."""
    few = sum(not p.measured for p in cells)
    if not few:
        return []
    return [
        f"in {few} of {len(cells)} cells fewer than {FEW} walkers left within the budget, and no time is told there: "
        "raise budget, max_steps or walkers"
    ]


def slopes(x: Sequence[float], cells: Sequence[Passages]) -> tuple[Slope, Slope]:
    """The slope of log mean time against x: measured, and that of the exact times with the same weights."""
    exact = [of_counts(p.rate.exits, max(1, p.rate.exits) / p.chain.rate) for p in cells]
    return slope(x, [p.rate for p in cells]), slope(x, exact)

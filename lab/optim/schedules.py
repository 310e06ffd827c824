"""Learning-rate schedules: `factor(step, total)` multiplies the learning rate of update `step` = 0 .. total - 1.

    constant   1
    cosine     final + (1 - final) (1 + cos(pi step / total)) / 2
    step       gamma^(number of milestones <= step)
    warmup     min(1, (step + 1) / steps)                         of steps < 1: steps x total in their place, at least 1

A schedule is a pure function of the update, so a resumed run has the rate of the uninterrupted one, and the stability
threshold, read from the live optimiser, follows it. `cosine` and `step` equal torch's CosineAnnealingLR (T_max=total)
and MultiStepLR, stepped once per update.
"""

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

from lab.data.base import Count
from lab.settings import settings


def _increasing(milestones: tuple[int, ...]) -> tuple[int, ...]:
    if not milestones:
        raise ValueError("expected updates, e.g. [500,750]; without any use schedule=constant")
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ValueError("expected updates, strictly increasing, e.g. [500,750]")
    return milestones


@settings()
class Schedule(ABC):
    """A learning rate as a function of the update."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """The multiplier of the learning rate for update `step` (0-based) of `total`; positive.

        >>> schedules = Constant(), Cosine(final=0.5), Step(milestones=(500,)), Warmup(steps=1000)
        >>> [round(schedule.factor(500, 1000), 3) for schedule in schedules]
        [1.0, 0.75, 0.1, 0.501]
        """


@settings()
class Constant(Schedule):
    """The learning rate as it is: what the stability thresholds are stated for."""

    def factor(self, step: int, total: int) -> float:
        return 1.0


@settings()
class Cosine(Schedule):
    """Half a cosine, from the full learning rate to `final` of it at the end of the run.

    Update `total`, the one after the last, would have `final`: no update is wasted on a rate of zero.
    """

    final: Annotated[float, Field(ge=0, le=1, description="share of lr reached at the end")] = 0.0

    def factor(self, step: int, total: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / total)) / 2


@settings()
class Step(Schedule):
    """The learning rate times gamma at each milestone."""

    milestones: Annotated[
        tuple[Count, ...],
        AfterValidator(_increasing),
        Field(description="updates, strictly increasing: the first ones with the new rate"),
    ] = (500, 750)
    gamma: Annotated[float, Field(gt=0, allow_inf_nan=False, description="factor at each milestone")] = 0.1

    def factor(self, step: int, total: int) -> float:
        return self.gamma ** sum(milestone <= step for milestone in self.milestones)


@settings()
class Warmup(Schedule):
    """A linear warm-up from lr/steps to lr, then constant."""

    steps: Annotated[
        Count | Annotated[float, Field(gt=0, lt=1, strict=True)],
        Field(description="updates until the full learning rate; below 1: that share of the run"),
    ] = 100

    def factor(self, step: int, total: int) -> float:
        length = max(1.0, self.steps * total) if self.steps < 1 else self.steps
        return min(1.0, (step + 1) / length)

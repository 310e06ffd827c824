"""How much of their time walkers spend where: shares of time in boxes, with their standard errors.

The places of one walker at different times are correlated, walkers are not: the share of time of each walker is one
number, and the error is that of the mean of these, whatever the correlation in time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.flows.langevin import Langevin
from lab.progress import Tick, silent
from lab.results import Estimate


@dataclass(frozen=True)
class Occupation:
    """Shares of time (n, boxes) of every walker in every box; `accepted` the share of steps that were taken."""

    shares: Tensor
    accepted: float

    def of(self, box: int) -> Estimate:
        """The share of time in one box, with the standard error over walkers."""
        share = self.shares[:, box]
        return Estimate(float(share.mean()), float(share.std() / len(share) ** 0.5), 0, "walkers")


@dataclass(frozen=True)
class Boxes:
    """Indicator functions of boxes of half-width `half` around centres (boxes, P)."""

    centres: Tensor
    half: float

    def __call__(self, x: Tensor) -> Tensor:
        """Which of the boxes every walker x (n, P) is in: (n, boxes)."""
        within = torch.ones(len(x), len(self.centres), dtype=torch.bool, device=x.device)
        for i, centre in enumerate(self.centres.to(x).T):  # coordinate by coordinate: no (n, boxes, P)
            within &= (x[:, i, None] - centre).abs() <= self.half
        return within


def occupation(
    dynamics: Langevin,
    x: Tensor,
    where: Boxes,
    *,
    steps: int,
    burn_in: int = 0,
    every: int = 1,
    generator: torch.Generator,
    tick: Tick = silent,
) -> Occupation:
    """Move walkers x (n, P) in place by `burn_in` steps and by `steps` more, looking every `every` of these.

    Cost: that of the steps, and for each look a comparison a walker, box and coordinate.
    """
    dynamics.run(x, burn_in, generator)
    looks = max(1, steps // every)
    inside, accepted = torch.zeros(len(x), len(where.centres), device=x.device), 0.0
    for look in range(looks):
        accepted += dynamics.run(x, every, generator) / looks
        inside += where(x)
        tick((look + 1) / looks)
    return Occupation(inside.double() / looks, accepted)

"""What the experiments on one barrier share: walkers in cells, each beside the exact chain of its own steps."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from lab.gallery.base import Experiment, Verdict, exact
from lab.gallery.laws.nystrom import Chain
from lab.gallery.laws.passages import Passages, escapes
from lab.landscapes.base import Landscape
from lab.progress import Tick

LEAST = 2.0
"""Barriers below so many temperatures (exponents below it) have no rate: a walker does not settle before it leaves."""


Walkers = Annotated[int, Field(ge=20, le=10_000_000, description="in each cell")]
Budget = Annotated[
    float, Field(gt=0, le=20, description="mean times that a walker is watched; one that has not left then is censored")
]
MaxSteps = Annotated[int, Field(ge=1000, le=100_000_000, description="for which a walker is watched at most")]


class BarrierExperiment(Experiment):
    """What such an experiment sets, and how its walkers walk."""

    walkers: int
    budget: float
    max_steps: int

    def steps(self, chain: Chain, burn_in: float = 0.0) -> float:
        """For how many steps the walkers of a cell are watched, about; burn_in in units of time lr * step."""
        return min(self.max_steps, burn_in / chain.lr + self.budget / chain.rate)

    def walk(
        self,
        landscape: Landscape,
        chain: Chain,
        generator: Generator,
        tick: Tick,
        *,
        diffusion: float | Callable[[Tensor], Tensor],
        burn_in: float,
        scale: Tensor | None = None,
    ) -> Passages:
        """Walkers from the start of the chain along the first coordinate until they leave its domain."""
        start = torch.zeros(landscape.num_params, device=generator.device)
        start[0] = chain.start
        return escapes(
            landscape,
            chain,
            start,
            diffusion=diffusion,
            scale=scale,
            walkers=self.walkers,
            budget=self.budget,
            burn_in=burn_in,
            max_steps=self.max_steps,
            generator=generator,
            tick=tick,
        )


def mean_times(cells: Mapping[str, Passages]) -> list[Verdict]:
    """The mean time of every cell in which enough left, by its name, beside that of its chain."""
    return [exact(f"mean time, {name}", p.exact, p.mean_time) for name, p in cells.items() if p.measured]


def exits(cells: Mapping[str, Passages]) -> dict[str, float]:
    """How many left, by the name of the cell."""
    return {f"exits_{name}": p.rate.exits for name, p in cells.items()}

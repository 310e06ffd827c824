"""When walkers on a landscape first leave a region under SGD with Gaussian noise, inspected after every step.

    v <- b v + grad L(x) + s xi,    x <- x - lr v        torch's SGD; xi ~ N(0, 1) in every coordinate, s its size there

Times are whole steps, so those of two learning rates are compared as lr t. A diffusion inspected at every step leaves a
little later than one that is watched without pause; theory to compare with has to be that of the discrete chain.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.escape.passage import Outside, first_passages
from lab.landscapes.base import Landscape
from lab.progress import Tick, silent
from lab.results import EscapeTimes


@dataclass(frozen=True)
class Walkers:
    """SGD (or heavy ball) on `landscape`; noise s of the gradient, one number or (P,)."""

    landscape: Landscape
    lr: float
    noise: Tensor | float
    momentum: float = 0.0

    def move(self, x: Tensor, velocity: Tensor, xi: Tensor, generator: torch.Generator) -> None:
        """One step of x and velocity (n, P), in place; xi (n, P) is overwritten."""
        xi.normal_(generator=generator)
        velocity.mul_(self.momentum).add_(self.landscape.gradient(x)).add_(xi.mul_(self.noise))
        x.sub_(velocity, alpha=self.lr)

    def path(self, start: Tensor, generator: torch.Generator, *, steps: int) -> Tensor:
        """All places (steps + 1, n, P) of walkers that start at rest at `start` (n, P)."""
        x, velocity, xi = start.clone(), torch.zeros_like(start), torch.empty_like(start)
        seen = [start]
        for _ in range(steps):
            self.move(x, velocity, xi, generator)
            seen.append(x.clone())
        return torch.stack(seen)

    def first_exits(
        self,
        start: Tensor,
        outside: Outside,
        generator: torch.Generator,
        *,
        walkers: int,
        steps: int,
        tick: Tick = silent,
    ) -> EscapeTimes:
        """First step at which each of `walkers` from `start` (P,) at rest is outside, as `passage.first_passages`."""
        noise = torch.as_tensor(self.noise, dtype=start.dtype, device=start.device).expand(len(start))
        return first_passages(
            self.landscape,
            start,
            outside,
            lr=self.lr,
            diffusion=self.lr / 2,
            scale=noise**2,
            momentum=self.momentum,
            walkers=walkers,
            max_steps=steps,
            generator=generator,
            tick=tick,
        )

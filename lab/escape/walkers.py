"""When walkers on a landscape first leave a region under SGD with Gaussian noise, inspected after every step.

    v <- b v + grad L(x) + s xi,    x <- x - lr v        torch's SGD; xi ~ N(0, 1) in every coordinate, s its size there

Times are whole steps, so those of two learning rates are compared as lr t. A diffusion inspected at every step leaves a
little later than one that is watched without pause; theory to compare with has to be that of the discrete chain.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.landscapes.base import Landscape
from lab.results import EscapeTimes
from lab.walks.tick import Tick, silent

COMPRESS_EVERY = 32
"""Steps after which those that have left are dropped from what is computed."""
NUMBERS = 2**18
"""Coordinates moved at a time: they stay in the cache of one core."""
Region = Callable[[Tensor], Tensor]
"""Whether walkers (n, P) are outside: (n,) bool."""


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
        outside: Region,
        generator: torch.Generator,
        *,
        walkers: int,
        steps: int,
        tick: Tick = silent,
    ) -> EscapeTimes:
        """First step at which each of `walkers` from `start` (P,) at rest is outside, followed for `steps` at most.

        A walker that is not finite any more has failed, whatever `outside` says of it. Cost: a gradient of the landscape
        and P normal numbers a walker-step, for as long as the walker stays.
        """
        size = max(1, NUMBERS // len(start))
        found = []
        for begin in range(0, walkers, size):
            count = min(size, walkers - begin)

            def told(share: float, begin: int = begin, count: int = count) -> None:
                tick((begin + share * count) / walkers)

            found.append(self._first_exits(start.repeat(count, 1), outside, generator, steps, told))
        times, exited, failed = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return EscapeTimes(times, exited, failed)

    def _first_exits(
        self, x: Tensor, outside: Region, generator: torch.Generator, steps: int, tick: Tick
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Times, exited and failed of one chunk of walkers x (n, P)."""
        n, device = len(x), x.device
        times = torch.full((n,), float(steps), dtype=torch.float64, device=device)
        exited, failed = (torch.zeros(n, dtype=torch.bool, device=device) for _ in range(2))
        who, there = torch.arange(n, device=device), torch.ones(n, dtype=torch.bool, device=device)
        velocity, xi = torch.zeros_like(x), torch.empty_like(x)
        for step in range(1, steps + 1):
            self.move(x, velocity, xi, generator)
            lost = ~x.isfinite().all(1)
            ended = there & (outside(x) | lost)
            times[who[ended]] = step
            failed[who[ended & lost]] = True
            exited[who[ended & ~lost]] = True
            there &= ~ended
            if step % COMPRESS_EVERY == 0:
                x, velocity, who = x[there], velocity[there], who[there]
                xi, there = torch.empty_like(x), there[there]
                tick(max(step / steps, 1 - len(who) / n))
                if not len(who):
                    break
        tick(1.0)
        return times, exited, failed

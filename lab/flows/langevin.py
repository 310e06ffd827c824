"""Langevin dynamics of many walkers at once: dx = -grad L(x) dt + sqrt(2 T) dW, whose stationary law is exp(-L/T)/Z.

    euler    x <- x - h grad L(x) + sqrt(2 h T) xi                    Euler-Maruyama: biased by O(h), unstable beyond h H = 2
    mala     the same step as a proposal y, taken with probability    Roberts and Tweedie 1996: exact for every h
             min(1, exp(-(L(y) - L(x))/T) q(x|y) / q(y|x))

A kink or a crossing of valleys has no mass of its own: what Euler shows beyond Gibbs there is its step size, which MALA
does not have; but where h grad L overshoots, far up a steep wall, it refuses every step: start in the valleys. `diffusion`
makes the noise depend on the place (Ito): x <- x - h grad L + sqrt(2 h D(x)) xi.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lab.landscapes.base import Landscape

CHUNK = 2**14
"""Walkers moved at a time: their places, gradients and noise stay in the cache of one core."""

Boundary = Callable[[Tensor], Tensor | None]
"""Puts walkers (n, P) that have left back, in place; returns the signs by which their moves were mirrored, if any."""


def periodic(low: float, high: float) -> Boundary:
    """A torus: what leaves on one side comes in on the other."""

    def wrap(x: Tensor) -> None:
        x.sub_(low).remainder_(high - low).add_(low)

    return wrap


def reflecting(low: float, high: float) -> Boundary:
    """Walls: what has left by less than the width comes back by as much."""

    def fold(x: Tensor) -> Tensor:
        x.sub_(low).remainder_(2 * (high - low))
        mirrored = x > high - low
        torch.minimum(x, 2 * (high - low) - x, out=x)
        x.add_(low)
        return 1 - 2 * mirrored.to(x)

    return fold


@dataclass(frozen=True)
class Langevin:
    """Dynamics on `landscape` at temperature T with steps of h = `lr`.

    boundary   where walkers go that leave; None: the landscape confines them.
    diffusion  D(x): (n, P) -> (n, P) in place of T, for `euler` only.
    Raises ValueError for settings that cannot be.
    """

    landscape: Landscape
    temperature: float
    lr: float
    sampler: Literal["euler", "mala"] = "euler"
    boundary: Boundary | None = None
    diffusion: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.temperature >= 0 and math.isfinite(self.lr * self.temperature)):
            raise ValueError(f"lr={self.lr}, temperature={self.temperature}: expected lr > 0 and temperature >= 0")
        if self.sampler == "mala" and (self.diffusion is not None or self.temperature == 0):
            raise ValueError(
                "mala needs one temperature > 0 for all places; use sampler=euler for a diffusion that varies"
            )

    def run(self, x: Tensor, steps: int, generator: torch.Generator) -> float:
        """Move walkers x (n, P) by `steps` steps, in place. Returns the share of accepted steps (1 for euler).

        Cost: a gradient of the landscape and P normal numbers a walker-step; MALA an energy more.
        """
        accepted = 0.0
        for chunk in x.split(CHUNK):
            accepted += (self._euler if self.sampler == "euler" else self._mala)(chunk, steps, generator)
        return accepted / max(1, len(x) * steps)

    def _euler(self, x: Tensor, steps: int, generator: torch.Generator) -> float:
        noise, scale = torch.empty_like(x), math.sqrt(2 * self.lr * self.temperature)
        for _ in range(steps):
            noise.normal_(generator=generator)
            if self.diffusion is not None:
                noise.mul_((2 * self.lr * self.diffusion(x)).sqrt_())
                x.sub_(self.landscape.gradient(x), alpha=self.lr).add_(noise)
            else:
                x.sub_(self.landscape.gradient(x), alpha=self.lr).add_(noise, alpha=scale)
            if self.boundary is not None:
                self.boundary(x)
        return float(len(x) * steps)

    def _mala(self, x: Tensor, steps: int, generator: torch.Generator) -> float:
        """On a torus the way back is the way forth: windings around it, exp(-width^2/(4 h T)) of all, are left out."""
        noise, uniform = torch.empty_like(x), torch.empty(len(x), dtype=x.dtype, device=x.device)
        scale = math.sqrt(2 * self.lr * self.temperature)
        accepted = torch.zeros((), dtype=torch.int64, device=x.device)
        energy, slope = self.landscape.energy(x), self.landscape.gradient(x)
        for _ in range(steps):
            noise.normal_(generator=generator)
            move = noise * scale - self.lr * slope
            y = x + move
            mirror = None if self.boundary is None else self.boundary(y)
            if mirror is not None:  # the way back from behind the mirror
                move = move * mirror
            energy_there, slope_there = self.landscape.energy(y), self.landscape.gradient(y)
            # log q(x|y) - log q(y|x), with q(y|x) = N(x - h grad L(x), 2 h T).
            back = (move - self.lr * slope_there).square_().sum(-1) / (4 * self.lr * self.temperature)
            forth = noise.square().sum(-1) / 2
            gain = (energy - energy_there) / self.temperature - back + forth
            taken = uniform.uniform_(generator=generator).log_() < gain
            x.copy_(torch.where(taken[:, None], y, x))
            slope = torch.where(taken[:, None], slope_there, slope)
            energy = torch.where(taken, energy_there, energy)
            accepted += taken.sum()
        return float(accepted)

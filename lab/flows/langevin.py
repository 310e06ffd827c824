"""Langevin dynamics of many walkers at once: dx = -grad L(x) dt + sqrt(2 T) dW, whose stationary law is exp(-L/T)/Z.

    euler    x <- x - h grad L(x) + sqrt(2 h T) xi                    Euler-Maruyama: biased by O(h), unstable beyond h H = 2
    mala     the same step as a proposal y, taken with probability    Roberts and Tweedie 1996: exact for every h
             min(1, exp(-(L(y) - L(x))/T) q(x|y) / q(y|x))

A kink or a crossing of valleys has no mass of its own: what Euler shows beyond Gibbs there is its step size, which MALA
does not have; but where h grad L overshoots, far up a steep wall, it refuses every step: start in the valleys. `diffusion`
makes the noise depend on the place (Ito): x <- x - h grad L + sqrt(2 h D(x)) xi.

Where the time goes: the normal numbers. They are drawn in float32 whatever the walkers are (normal up to 5.7 standard
deviations, resolution 1e-7; in float64 they cost ten times as much), a chunk of walkers goes all its steps in the cache of
one core, coordinate by coordinate, and no step takes memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lab.landscapes.base import Landscape

CHUNK = 2**16
"""Numbers moved at a time on a CPU: places, gradients and noise of a chunk stay in the cache of one core."""
FEWEST = 256
"""Walkers in a chunk, at least: below that calling an operation costs more than carrying it out."""

Sampler = Literal["euler", "mala"]
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
    sampler: Sampler = "euler"
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
        for chunk in x.split(chunk_size(x)):
            walkers = chunk.T.contiguous().T  # every coordinate in one piece
            accepted += (self._euler if self.sampler == "euler" else self._mala)(walkers, steps, generator)
            chunk.copy_(walkers)
        return accepted / max(1, len(x) * steps)

    def _euler(self, x: Tensor, steps: int, generator: torch.Generator) -> float:
        noise, slope, scale = noise_like(x), torch.empty_like(x), math.sqrt(2 * self.lr * self.temperature)
        for _ in range(steps):
            noise.T.normal_(generator=generator)  # in one piece: otherwise ten times slower
            self.landscape.gradient_into(x, slope)
            if self.diffusion is None:
                x.sub_(slope, alpha=self.lr).add_(noise, alpha=scale)
            else:
                step = (2 * self.lr * self.diffusion(x)).sqrt_().mul_(noise)
                x.sub_(slope, alpha=self.lr).add_(step)
            if self.boundary is not None:
                self.boundary(x)
        return float(len(x) * steps)

    def _mala(self, x: Tensor, steps: int, generator: torch.Generator) -> float:
        """On a torus the way back is the way forth: windings around it, exp(-width^2/(4 h T)) of all, are left out."""
        noise, uniform = noise_like(x), torch.empty(len(x), dtype=torch.float32, device=x.device)
        scale, width = math.sqrt(2 * self.lr * self.temperature), 4 * self.lr * self.temperature
        accepted = torch.zeros((), dtype=torch.int64, device=x.device)
        move, there, slope, slope_there = (torch.empty_like(x) for _ in range(4))
        energy = self.landscape.energy(x)
        self.landscape.gradient_into(x, slope)
        for _ in range(steps):
            noise.T.normal_(generator=generator)  # in one piece: otherwise ten times slower
            torch.mul(slope, -self.lr, out=move).add_(noise, alpha=scale)
            torch.add(x, move, out=there)
            mirror = None if self.boundary is None else self.boundary(there)
            if mirror is not None:  # the way back from behind the mirror
                move.mul_(mirror)
            energy_there = self.landscape.energy(there)
            self.landscape.gradient_into(there, slope_there)
            # log q(x|y) - log q(y|x), with q(y|x) = N(x - h grad L(x), 2 h T).
            back = move.sub_(slope_there, alpha=self.lr).square().sum(-1)
            gain = back.div_(-width).add_(noise.square().sum(-1), alpha=0.5)
            gain.add_(energy, alpha=1 / self.temperature).sub_(energy_there, alpha=1 / self.temperature)
            taken = uniform.uniform_(generator=generator).log_() < gain
            torch.where(taken, energy_there, energy, out=energy)
            for i in range(x.shape[1]):  # a condition of one coordinate is in one piece
                torch.where(taken, there[:, i], x[:, i], out=x[:, i])
                torch.where(taken, slope_there[:, i], slope[:, i], out=slope[:, i])
            accepted += taken.sum()
        return float(accepted)


def chunk_size(x: Tensor) -> int:
    """How many of the walkers x (n, P) to move at a time: on an accelerator all of them."""
    return max(FEWEST, CHUNK // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))


def noise_like(x: Tensor) -> Tensor:
    """Room for the normal numbers of walkers x (n, P), float32, its coordinates in one piece each."""
    return torch.empty(x.shape[1], len(x), dtype=torch.float32, device=x.device).T

"""First passages by simulation: many walkers, each until it is first found outside, in one vectorised program.

    u <- b u - lr grad L(x) + sqrt(2 lr D(x)) xi,   x <- x + u        b momentum, else 0, as torch's SGD has it
    D = T, or D(x) of the place (Ito); SGD noise of covariance C / B is D = lr C / 2B

Steps go in blocks, in the cache: noise is drawn for a block at once, places of the whole block are tested for the exit at
its end, so that every step is inspected, and those that left are then taken out. Cost: a gradient and P normal numbers a
walker-step, 10 to 30 ns in one or two dimensions.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from lab.landscapes.base import Landscape
from lab.progress import Tick, silent
from lab.results import EscapeTimes

BLOCK = 2**17
"""Numbers of a block: walkers times steps times dimensions, at least SHORTEST steps."""
SHORTEST, LONGEST = 16, 512
CHUNK = 2**13
"""Walkers moved at a time."""


Outside = Callable[[Tensor], Tensor]
"""Places (..., P) -> (...) bool: whether a walker there is outside."""


def beyond(level: float) -> Outside:
    """Outside where the first coordinate is above a level."""
    return lambda x: x[..., 0] > level


def first_passages(
    landscape: Landscape,
    start: Tensor,
    outside: Outside,
    *,
    lr: float,
    diffusion: float | Callable[[Tensor], Tensor],
    walkers: int,
    max_steps: int,
    generator: Generator,
    scale: Tensor | None = None,
    momentum: float = 0.0,
    tick: Tick = silent,
) -> EscapeTimes:
    """Times, in steps, at which walkers from `start` (P,) are first found outside; censored after `max_steps`.

    diffusion  D: one number, or a function of places (n, P) to (n, P); scale (P,) multiplies it by direction.
    A walker whose place is not finite has failed. Device and precision are those of `start`.
    Raises ValueError for a start that is outside and for settings that cannot be.
    """
    if not (lr > 0 and max_steps > 0 and walkers > 0):
        raise ValueError(f"lr={lr}, max_steps={max_steps}, walkers={walkers}: expected numbers > 0")
    if bool(outside(start)):
        raise ValueError("the walkers start outside: expected a start inside")
    root = torch.ones_like(start) if scale is None else scale.sqrt()
    chunks = [min(CHUNK, walkers - begin) for begin in range(0, walkers, CHUNK)]
    chunked = []
    for i, size in enumerate(chunks):
        walk = _Walk(landscape, outside, lr, diffusion, root, momentum, generator)
        part = lambda share, i=i: tick((i + share) / len(chunks))  # noqa: E731
        chunked.append(walk.run(start.expand(size, -1).clone(), max_steps, part))
    times, exited, failed = (torch.cat(parts) for parts in zip(*chunked, strict=True))
    return EscapeTimes(times, exited, failed, inspection=1.0)


class _Walk:
    def __init__(
        self,
        landscape: Landscape,
        outside: Outside,
        lr: float,
        diffusion: float | Callable[[Tensor], Tensor],
        root: Tensor,
        momentum: float,
        generator: Generator,
    ) -> None:
        self.landscape, self.outside, self.lr, self.generator = landscape, outside, lr, generator
        self.diffusion, self.root, self.momentum = diffusion, root, momentum

    def run(self, x: Tensor, max_steps: int, tick: Tick) -> tuple[Tensor, Tensor, Tensor]:
        """Times (n,) on the CPU, whether exited, whether failed."""
        size = len(x)
        times = torch.full((size,), float(max_steps), dtype=torch.float64, device=x.device)
        exited, failed = (torch.zeros(size, dtype=torch.bool, device=x.device) for _ in range(2))
        inside, done, push = torch.arange(size, device=x.device), 0, torch.zeros_like(x)
        while done < max_steps and len(inside):
            length = min(max(SHORTEST, min(LONGEST, BLOCK // x.numel())), max_steps - done)
            path = self._block(x, push, length)
            over = self.outside(path)
            left = over.any(0) | ~path[-1].isfinite().all(-1)  # what is not finite stays so
            who, steps = inside[left], path[:, left]
            lost = ~steps.isfinite().all(-1)
            first = (over[:, left] | lost).byte().argmax(0)
            broken = lost.gather(0, first[None])[0]
            times[who] = (done + 1 + first).double()
            exited[who], failed[who] = ~broken, broken
            inside, x, push = inside[~left], path[-1][~left], push[~left]
            done += length
            tick(max(done / max_steps, 1 - len(inside) / size))
        tick(1.0)
        return times.cpu(), exited.cpu(), failed.cpu()

    def _block(self, x: Tensor, push: Tensor, length: int) -> Tensor:
        """The places (length, n, P) after each of the next steps; those that leave walk on to its end. push: u, in place."""
        path = torch.empty(length, *x.shape, dtype=x.dtype, device=x.device).normal_(generator=self.generator)
        D = self.diffusion
        path.mul_(self.root * math.sqrt(2 * self.lr * (1.0 if callable(D) else D)))
        for noise in path:
            if callable(D):
                noise.mul_(D(x).sqrt_())
            noise.sub_(self.landscape.gradient(x), alpha=self.lr)
            if self.momentum:
                noise.copy_(push.mul_(self.momentum).add_(noise))
            x = noise.add_(x)
        return path

"""Many walkers of constant-lr SGD on a quadratic, followed until they have settled: what stationary theory is held against.

quadratic      v <- b v + H w + xi,  w <- w - lr v        xi of any law, drawn anew for every walker and step
regression     w <- w - lr X_B'(X_B w - y_B)/m            mini-batches of m, with replacement; w about its minimum
running mean   mean <- k mean + (1 - k) w
"""

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from lab.noise.stationary import regression_covariance, stationary_covariance
from lab.progress import Tick, silent
from lab.results import Estimate

FORGOTTEN, INDEPENDENT = 6.0, 3.0
"""Relaxation times until the start is forgotten, variances to exp(-12), and between two looks at the walkers."""
TELL_EVERY = 50

Gradient = Callable[[Tensor], Tensor]
"""The noisy gradient of walkers w (n, d): (n, d), drawn anew at every call."""


@dataclass(frozen=True)
class Settled:
    """Walkers seen at times so far apart that they are independent: w and its running mean (looks x walkers, d)."""

    w: Tensor
    mean: Tensor

    def product(self, i: int, j: int) -> Estimate:
        """E w_i w_j with its standard error."""
        return average(self.w[:, i] * self.w[:, j])

    @property
    def covariance(self) -> Tensor:
        """E w w' (d, d), about the minimum."""
        return self.w.T @ self.w / len(self.w)


def average(values: Tensor) -> Estimate:
    """The mean of independent numbers (n,), with its standard error."""
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)), 0, "walkers")


def relaxation(H: Tensor, *, lr: float, momentum: float = 0.0) -> float:
    """Steps in which the slowest mode of the mean falls by e: -1 / log of the largest root of
    z^2 - (1 + b - lr h) z + b over the eigenvalues h of H (d, d).

    >>> round(relaxation(torch.eye(2), lr=0.1), 2), round(relaxation(torch.eye(2), lr=0.1, momentum=0.9), 2)
    (9.49, 18.98)
    """
    largest = 0.0
    for h in torch.linalg.eigvalsh(H.double()).tolist():
        middle = 1 + momentum - lr * h
        root = cmath.sqrt(middle * middle - 4 * momentum)
        largest = max(largest, abs(middle + root) / 2, abs(middle - root) / 2)
    return 1 / -math.log(largest) if 0 < largest < 1 else (0.0 if largest == 0 else math.inf)


def additive(H: Tensor, draw: Callable[[Tensor], Tensor]) -> Gradient:
    """H w + xi with xi = draw(w), (n, d) like w."""
    return lambda w: w @ H + draw(w)


@dataclass(frozen=True)
class Regression:
    """Mini-batch SGD on the mean of (x_i'w - y_i)^2/2 over x (N, d), y (N,), with replacement; w about the minimum."""

    x: Tensor
    y: Tensor
    batch_size: int
    lr: float

    @cached_property
    def H(self) -> Tensor:
        """The Hessian (d, d)."""
        H = self.x.T @ self.x / len(self.x)
        return (H + H.T) / 2

    @cached_property
    def law(self) -> Tensor:
        """The exact stationary covariance (d, d)."""
        return regression_covariance(self.x, self.y, lr=self.lr, batch_size=self.batch_size)

    @cached_property
    def additive_law(self) -> Tensor:
        """That of noise which does not depend on w, of the covariance that it has at the minimum."""
        g = self.x * self._noise[:, None]
        C = g.T @ g / len(g) / self.batch_size
        return stationary_covariance(self.H, (C + C.T) / 2, lr=self.lr)

    def settle(self, walkers: int, generator: Generator, *, looks: int, tick: Tick = silent) -> Settled:
        """Walkers that have settled."""
        start = torch.zeros(walkers, self.x.shape[1], dtype=self.x.dtype, device=self.x.device)
        slow = relaxation(self.H, lr=self.lr)
        return settle(self.gradient(generator), start, lr=self.lr, relaxation=slow, looks=looks, tick=tick)

    def gradient(self, generator: Generator) -> Gradient:
        """Of a mini-batch for every walker."""
        x, noise = self.x, self._noise

        def of(w: Tensor) -> Tensor:
            index = torch.randint(len(x), (len(w), self.batch_size), generator=generator, device=generator.device)
            batch = x[index.to(x.device)]
            residual = torch.einsum("nmd,nd->nm", batch, w) - noise[index.to(x.device)]
            return torch.einsum("nmd,nm->nd", batch, residual) / self.batch_size

        return of

    @cached_property
    def _noise(self) -> Tensor:
        """What the targets are above the best fit, (N,)."""
        return self.y - self.x @ torch.linalg.lstsq(self.x, self.y[:, None]).solution[:, 0]


def settle(
    gradient: Gradient,
    start: Tensor,
    *,
    lr: float,
    relaxation: float,
    looks: int,
    momentum: float = 0.0,
    decay: float = 0.0,
    tick: Tick = silent,
) -> Settled:
    """Walkers from `start` (n, d), seen `looks` times once they have settled; `decay` of their running mean.

    relaxation: in steps, that of the slowest mode; the running mean's own is added. Cost: a gradient for each of
    (6 + 3 looks) relaxation times.
    """
    slow = max(1.0, relaxation + (-1 / math.log(decay) if decay > 0 else 0.0))
    burn_in, every = math.ceil(FORGOTTEN * slow), math.ceil(INDEPENDENT * slow)
    w, velocity, mean, steps = start.clone(), torch.zeros_like(start), start.clone(), burn_in + every * looks
    seen = []
    for step in range(1, steps + 1):
        velocity = momentum * velocity + gradient(w) if momentum else gradient(w)
        w = w - lr * velocity
        mean = decay * mean + (1 - decay) * w if decay else w
        if step > burn_in and (step - burn_in) % every == 0:
            seen.append((w, mean))
        if step % TELL_EVERY == 0:
            tick(step / steps)
    tick(1.0)
    return Settled(*(torch.cat(parts).cpu() for parts in zip(*seen, strict=True)))


def climb(
    h: Tensor,
    noise: Tensor,
    *,
    time: float,
    steps: int,
    walkers: int,
    generator: Generator,
    tick: Tick = silent,
) -> tuple[Tensor, Tensor]:
    """E L after every step (steps + 1,), and L (walkers,) after the last, of dw = -h w dt + noise^(1/2) dW from w = 0.

    L = sum h w^2/2; h, noise (d,) curvatures and variances per unit of time. By Euler's method: biased by (time/steps) h.
    """
    dt, losses = time / steps, [0.0]
    w = torch.zeros(walkers, len(h), dtype=h.dtype, device=h.device)
    for step in range(steps):
        w = (1 - h * dt) * w + (noise * dt).sqrt() * torch.empty_like(w).normal_(generator=generator)
        losses.append(float(w.square().sum(0) @ h) / (2 * walkers))
        tick((step + 1) / steps)
    return torch.tensor(losses, dtype=torch.float64), (w.square() @ h / 2).cpu()

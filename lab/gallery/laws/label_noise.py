"""SGD on L(a, b) = (a b - y)^2/2, step by step, with the noise that stochastic gradients really have.

    a <- a + h e b,   b <- b + h e a,   e = xi - a b           label noise: labels y = xi ~ N(0, s^2), drawn at each step
                                        e = -a b |u|^2/B       mini-batches of B inputs u ~ N(0, 1) of labels 0

Label noise does not vanish on the valleys b = 0 and a = 0 of the minima, and is no heat either: it moves along the valley
downhill in sharpness a^2 + b^2, to the crossing, where log|a +- b| falls on average (Blanc et al. 2020; Damian et al. 2021).
Mini-batch noise at interpolation vanishes with the loss and leaves walkers where they arrive. h = `lr`, s = `std`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.integrate import quad
from scipy.special import dawsn, lambertw
from torch import Tensor

from lab.flows.langevin import Boundary, chunk_size

SMALL = 0.02
"""h s below which the growth at the crossing is its series, right to 105/8 (h s)^8."""


@dataclass(frozen=True)
class FactorSGD:
    """SGD with steps of `lr` on (a b - y)^2/2, many walkers (n, 2) at once.

    noise      label: labels N(0, std^2) of one example; minibatch: batch_size inputs N(0, 1) with labels 0.
    boundary   where walkers go that leave.
    Raises ValueError for settings that cannot be.
    """

    lr: float
    std: float = 0.0
    noise: Literal["label", "minibatch"] = "label"
    batch_size: int = 1
    boundary: Boundary | None = None

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.std >= 0 and self.batch_size >= 1 and math.isfinite(self.lr * self.std)):
            raise ValueError(
                f"lr={self.lr}, std={self.std}, batch_size={self.batch_size}: expected lr > 0, std >= 0, batch_size >= 1"
            )

    def run(self, x: Tensor, steps: int, generator: torch.Generator) -> None:
        """Move walkers x (n, 2) by `steps` steps, in place. Cost: a normal number (minibatch: B of them) a walker-step."""
        for chunk in x.split(chunk_size(x)):
            walkers = chunk.T.contiguous().T
            self._run(walkers, steps, generator)
            chunk.copy_(walkers)

    def _run(self, x: Tensor, steps: int, generator: torch.Generator) -> None:
        a, b = x[:, 0], x[:, 1]
        label = self.noise == "label"
        noise = x.new_empty(1 if label else self.batch_size, len(x))
        error, old = torch.empty_like(a), torch.empty_like(a)
        for _ in range(steps):
            noise.normal_(generator=generator)  # float64 for walkers in float64: log|1 + h xi| feels the resolution
            torch.mul(a, b, out=error).mul_(-self.lr)
            if label:
                error.add_(noise[0], alpha=self.lr * self.std)
            else:
                error.mul_(noise.square_().mean(0))
            old.copy_(a)
            a.addcmul_(error, b)
            b.addcmul_(error, old)
            if self.boundary is not None:
                self.boundary(x)


def valley_drift(start: float, lr: float, std: float, steps: np.ndarray) -> np.ndarray:
    """a after `steps` of label noise on the valley b = 0: da/dt = -h^2 s^2 a/(2 - h a^2), from a = start; t in steps.

    b is an AR(1) process of variance h s^2/(2 - h a^2), which a slow a sees as a force. Solved: with u = h a^2/2,
    u e^-u falls as e^(-h^2 s^2 t), so u = -W_0(-u_0 e^(-u_0 - h^2 s^2 t)), Lambert's W. Good while |a| is well above the
    spread of b, with a relative error of the order of h s^2/a^2. Raises ValueError beyond sqrt(2/h), where b is unstable.

    >>> valley_drift(2.0, 0.1, 0.5, np.array([100, 800])).round(4).tolist()
    [1.7196, 0.6733]
    """
    u = lr * start**2 / 2
    if not 0 <= u < 1:
        raise ValueError(f"start={start}: the valley is unstable beyond sqrt(2/lr) = {math.sqrt(2 / lr):.4g}")
    return math.copysign(1.0, start) * _valley(u * np.exp(-u - (lr * std) ** 2 * np.asarray(steps)), lr)


def drift_time(start: float, end: float, lr: float, std: float) -> float:
    """Steps in which the drift takes a from `start` down to `end`, both positive: the inverse of `valley_drift`."""
    u, v = lr * start**2 / 2, lr * end**2 / 2
    return (math.log(u / v) - u + v) / (lr * std) ** 2


def drift_share(half_width: float, box: float, lr: float, std: float, steps: np.ndarray) -> np.ndarray:
    """P(|a|, |b| < box) after `steps` of label noise, from a uniform start in the square |a|, |b| < half_width.

    Gradient flow to a valley, where walkers arrive at sqrt|a^2 - b^2|, then `valley_drift`: all are in who arrive within A,
    from where the drift reaches `box` in that time. Good for small h, and while `box` is well above the spread
    sqrt(h s^2/2) of a valley.
    """
    u, v = lr * half_width**2 / 2, lr * box**2 / 2
    grown = np.minimum(np.log(v) - v + (lr * std) ** 2 * np.asarray(steps), np.log(u) - u)
    reach = np.minimum(_valley(np.exp(grown), lr), half_width)
    return np.array([flow_share(half_width, float(r)) for r in np.atleast_1d(reach)])


def _valley(shrunk: np.ndarray, lr: float) -> np.ndarray:
    """a from u e^-u, u = h a^2/2 < 1."""
    return np.sqrt(-2 * lambertw(-shrunk).real / lr)


def crossing_growth(lr: float, std: float) -> float:
    """E log|1 + h xi|: the mean growth of log|a + b| (or of log|a - b|) a step at the crossing, where a b is negligible.

    Negative below h s = 1.5 or so: the crossing attracts almost every walker, though E (a + b)^2 grows. To leading order
    -(h s)^2/2. Since the principal value of E 1/(m + z) is sqrt(2) D(m/sqrt 2), with Dawson's D, and m = 1/(h s),
    it is log(h s) - (gamma + log 2)/2 + 2 times the integral of D from 0 to m/sqrt 2; error below 1e-10.

    >>> round(crossing_growth(0.5, 0.5), 5)
    -0.0352
    """
    s = lr * std
    if s < SMALL:
        return -(s**2) / 2 - 3 * s**4 / 4 - 5 * s**6 / 2
    whole = quad(dawsn, 0, 1 / (s * math.sqrt(2)), limit=400, epsabs=1e-12)[0]
    return math.log(s) - (np.euler_gamma + math.log(2)) / 2 + 2 * whole


def flow_share(half_width: float, box: float) -> float:
    """P(|a|, |b| < box) after gradient flow of (a b)^2/2 from a uniform start in the square |a|, |b| < half_width.

    a^2 - b^2 is kept, and a b goes to 0: who ends there starts with |a^2 - b^2| < box^2.
    """
    c, r = half_width, box
    root = math.sqrt(c * c - r * r)
    return 1 - (c * root - r * r * math.log((c + root) / r)) / c**2

"""How long SGD stays at a saddle, from its descending directions alone. How fast it was seen to leave: `seen_growth`.

    along an eigenvector of curvature -c < 0          x <- x + b (x - x_before) + lr (c x - g + s xi),   xi ~ N(0, 1)
    larger root z, smaller root z' of                 z^2 - (1 + b + lr c) z + b = 0        b = 0: z = 1 + lr c, z' = 0
    x - z' x_before is a first-order recursion, so    x -> A z^t,   A ~ N(m, w^2),   w = lr s z / ((z - z') sqrt(z^2 - 1))
    where x starts, and the gradient g there          m = z (1 - z') / (z - z') (x_0 - g/c),   about the saddle at g/c
    first step with |x| > r                           E t = E log(r / |A|) / log z + 1/2
    k directions of the same c and s, m = 0           E log|A| = log w + (psi(k/2) + log 2)/2,   Var log|A| = psi'(k/2)/4

(k = 1: psi(1/2) + log 2 = -(gamma + log 2), and the spread of t is pi / (sqrt(8) log z).) The 1/2 and 1/12 of the variance
are what counting whole steps adds. Time grows as log(1/s) / log z: slowly with little noise, and with none in these
directions never ends; the dimension of the rest does not enter. Exact as lr s -> 0 for a quadratic saddle; where the noise
fills part of the radius from the start the mean is too low by 0.3 % at `crowding` 0.1 and 1 % at 0.2 (0.2 % for k = 1); at
0.45 it is off by -5 to 1 % for k = 1, 7 % for k = 3, 11 % for k = 30.
s is the standard deviation of the gradient of one step: s^2 = u'Du times `lab.sampling.batch_factor`, with u'Du from
`lab.noise.alignment.variances`.

The slope of log E[x^2] / 2 over time is no estimate of log z where runs start at the saddle itself: E x^2 grows as
z^(2t) - 1, steeper than z^(2t) for as long as the run is there to be seen, by factors 1.02 to 2 in practice. Use
`kick_growth` without noise and `autoregression` with it.
Kifer (1981), Day (1995) for the law of the exit time; Polyak (1964) for the roots of the heavy ball.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.special import digamma, polygamma
from scipy.stats import chi2, ncx2
from torch import Tensor

POINTS = 2**13
"""Quasi-random points behind an expectation without closed form, in each of `SHIFTS` scramblings."""
SHIFTS = 8
NEWTON = 60
"""Steps of Newton's method for the time of one amplitude: monotone, for a convex function; a handful are needed."""


@dataclass(frozen=True)
class Departure:
    """When |x| first exceeds a radius: mean and std in steps; both infinite (`never`) where no noise and no slope reaches
    any descending direction. error: the numerical one of the mean, 0 for a closed form; method in a word.

    slope     of the mean against log(1/noise), 1 / log z: for small noise, started at the saddle; else NaN.
    crowding  what the noise spreads in the time of the instability, w sqrt(k), over the radius: the theory wants << 1.
    """

    mean: float
    std: float
    slope: float
    crowding: float
    error: float
    method: str

    @property
    def never(self) -> bool:
        return math.isinf(self.mean)

    def __str__(self) -> str:
        if self.never:
            return "never by noise"
        return f"{self.mean:.4g} steps, spread {self.std:.3g}"


@dataclass(frozen=True)
class SaddleDescent:
    """The descending directions of a saddle under SGD (or heavy ball) of constant lr with noise of constant size.

    curvatures   (k,) eigenvalues of the Hessian there, negative; with weight decay add it to them.
    noise        (k,) standard deviation of the gradient of one step along each, >= 0; one number stands for all.
    gradient     (k,) of the loss along each at the point from which x is counted: 0 at a critical point.
    start        (k,) where x starts, at rest.
    Raises ValueError for a curvature that is not negative or other settings that cannot be.
    """

    curvatures: Sequence[float]
    noise: Sequence[float] | float
    lr: float
    momentum: float = 0.0
    gradient: Sequence[float] | float = 0.0
    start: Sequence[float] | float = 0.0

    def __post_init__(self) -> None:
        if not (self.lr > 0 and 0 <= self.momentum < 1):
            raise ValueError(f"lr={self.lr}, momentum={self.momentum}: expected lr > 0 and 0 <= momentum < 1")
        if not len(self.curvatures) or not max(self.curvatures) < 0:
            raise ValueError(f"curvatures={[float(c) for c in self.curvatures]}: expected one or more, all negative")
        if not bool((self.spreads >= 0).all() & self.means.isfinite().all()):
            raise ValueError(f"noise={self.noise}: expected standard deviations >= 0, one or as many as curvatures")

    @cached_property
    def factors(self) -> Tensor:
        """z (k,) float64: what each direction grows by in a step."""
        roots = [growth_factor(float(c), lr=self.lr, momentum=self.momentum) for c in self.curvatures]
        return torch.tensor(roots, dtype=torch.float64)

    @cached_property
    def spreads(self) -> Tensor:
        """w (k,): standard deviation of the amplitudes that the noise makes."""
        z, other = self.factors, self.momentum / self.factors
        return self.lr * self._each(self.noise) * z / ((z - other) * (z * z - 1).sqrt())

    @cached_property
    def means(self) -> Tensor:
        """m (k,): the amplitudes without noise."""
        z, other = self.factors, self.momentum / self.factors
        away = self._each(self.start) - self._each(self.gradient) / -self._each(self.curvatures)
        return z * (1 - other) / (z - other) * away

    def time(self, radius: float) -> Departure:
        """Mean and spread of the first step at which the distance from x = 0 exceeds `radius`.

        Closed form for k directions alike; otherwise an integral over the amplitudes by a scrambled Sobol sequence. Where
        there is a gradient, amplitudes are about the saddle, and its distance from x = 0 is neglected beside r. Without
        noise the first step is exact. Raises ValueError for radius <= 0.
        """
        if not radius > 0:
            raise ValueError(f"radius={radius}: expected r > 0")
        crowding = float(self.spreads.norm()) / radius
        if not float(self.spreads.max()) > 0:
            return self._by_drift(radius, crowding)
        log_z = float(self.factors[self.spreads > 0].max().log())
        slope = 1 / log_z if not bool(self.means.any()) else math.nan
        if self._alike:
            log, variance = log_chi(len(self.factors), float((self.means / self.spreads).square().sum()))
            mean, std = (math.log(radius / float(self.spreads[0])) - log) / log_z + 0.5, math.sqrt(variance) / log_z
            if std > 1:  # spread over steps enough for 1/2 to be what rounding up adds
                std = math.hypot(std, 1 / math.sqrt(12))
            else:
                mean, std = self._whole_steps(radius, math.ceil(mean + 50 * std + 2))
            return Departure(mean, std, slope, crowding, 0.0, "closed form")
        times = self._sample(radius).ceil().clamp(min=1)
        error = float(times.mean(1).std()) / math.sqrt(SHIFTS)
        return Departure(float(times.mean()), float(times.std()), slope, crowding, error, "quasi-random")

    def survival(self, steps: Tensor, radius: float) -> Tensor:
        """P(still within `radius` after so many steps), of the shape of `steps`; 1 where it never ends. As `time`."""
        steps = steps.double()
        if not float(self.spreads.max()) > 0:
            return (steps < self.time(radius).mean).double()
        if self._alike:
            square = (radius / float(self.spreads[0]) * float(self.factors[0]) ** -steps) ** 2
            k, offset = len(self.factors), float((self.means / self.spreads).square().sum())
            law = ncx2(k, offset) if offset else chi2(k)
            return torch.from_numpy(law.cdf(square.numpy()))
        times = self._sample(radius).flatten().sort().values
        return 1 - torch.searchsorted(times, steps, right=True).double() / len(times)

    @property
    def _alike(self) -> bool:
        return bool((self.factors == self.factors[0]).all() & (self.spreads == self.spreads[0]).all())

    def _each(self, values: Sequence[float] | float) -> Tensor:
        given = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
        if given.dim() > 1 or (given.dim() == 1 and len(given) != len(self.curvatures)):
            raise ValueError(f"{len(given)} values for {len(self.curvatures)} descending directions; expected as many")
        return given.expand(len(self.curvatures))

    def _by_drift(self, radius: float, crowding: float) -> Departure:
        if not bool(self.means.any()):
            return Departure(math.inf, math.inf, math.nan, crowding, 0.0, "never")
        mean = float(self._times(self.means[None], radius)[0].ceil().clamp(min=1))
        return Departure(mean, 0.0, math.nan, crowding, 0.0, "drift alone")

    def _whole_steps(self, radius: float, last: int) -> tuple[float, float]:
        """Mean and standard deviation of whole steps: E t = sum P(t > n), E t^2 = sum (2 n + 1) P(t > n)."""
        n = torch.arange(last).double()
        stays = self.survival(n, radius)
        mean = float(stays.sum())
        return mean, math.sqrt(max(0.0, float((2 * n + 1) @ stays) - mean * mean))

    def _sample(self, radius: float) -> Tensor:
        """Times (SHIFTS, POINTS) of quasi-random amplitudes, whole steps not yet counted."""
        rows = []
        for seed in range(SHIFTS):
            uniform = torch.quasirandom.SobolEngine(len(self.factors), scramble=True, seed=seed).draw(
                POINTS, dtype=torch.float64
            )
            tiny = torch.finfo(torch.float64).eps
            normal = math.sqrt(2) * torch.erfinv(2 * uniform.clamp(tiny, 1 - tiny) - 1)
            rows.append(self._times(self.means + self.spreads * normal, radius))
        return torch.stack(rows)

    def _times(self, amplitudes: Tensor, radius: float) -> Tensor:
        """t (n,) with sum_i A_i^2 z_i^(2t) = r^2 for amplitudes (n, k): log of the sum is convex and rises, so Newton's
        method comes down on it from the right, monotonically.
        """
        log_z = self.factors.log()
        logs = 2 * amplitudes.abs().log()
        target = 2 * math.log(radius)
        t = ((target - logs) / (2 * log_z)).min(1).values  # each direction alone would take longer: from the right
        for _ in range(NEWTON):
            terms = logs + 2 * log_z * t[:, None]
            total = terms.logsumexp(1)
            step = (total - target) / (2 * (terms.softmax(1) * log_z).sum(1))
            t = t - step
            if bool((step.abs() <= 1e-10 * (1 + t.abs())).all()):
                break
        return t


def growth_factor(curvature: float, *, lr: float, momentum: float = 0.0) -> float:
    """z > 1, by which x grows in a step along an eigenvector of negative curvature: the larger root of
    z^2 - (1 + b + lr |curvature|) z + b, so 1 + lr |curvature| without momentum.

    >>> growth_factor(-0.5, lr=0.1), round(growth_factor(-0.5, lr=0.1, momentum=0.9), 4)
    (1.05, 1.2)
    """
    middle = 1 + momentum + lr * abs(curvature)
    if not curvature < 0:
        raise ValueError(f"curvature={curvature}: expected a negative one, along which it descends")
    return (middle + math.sqrt(middle * middle - 4 * momentum)) / 2


def noise_std(variances: Tensor, *, factor: float, scale: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard deviation (k,) float64 of the gradient of one step along k directions: sqrt(factor u'Du).

    variances u'Du of one example (`lab.noise.alignment.variances`), factor that of `sampling.batch_factor`. What is
    round-off is zero, so that "never" can be told from "late": u'Du below (1000 eps)^2 of `scale`, the mean of |g_i|^2, with
    eps that of `dtype`, in which the gradients were computed.

    >>> noise_std(torch.tensor([0.08, 1e-31]), factor=1 / 8, scale=1.0)
    tensor([0.1000, 0.0000], dtype=torch.float64)
    """
    variances = variances.detach().double().cpu()
    floor = (1000 * torch.finfo(dtype).eps) ** 2 * scale
    return torch.where(variances > floor, factor * variances, 0.0).sqrt()


def log_chi(k: int, offset: float = 0.0) -> tuple[float, float]:
    """Mean and variance of log|Z| for Z ~ N(m, 1) in k dimensions, offset = |m|^2.

    |Z|^2 is chi-square with k + 2 J degrees of freedom, J Poisson of mean offset/2. Error: round-off.

    >>> mean, variance = log_chi(1)
    >>> round(mean, 6), round(variance, 6)  # -(gamma + log 2)/2 and pi^2/8
    (-0.635181, 1.233701)
    """
    if offset > 2e4:  # m dominates: log|m| + (k - 2)/(2 |m|^2), variance 1/|m|^2, to relative 1/|m|^2
        return 0.5 * math.log(offset) + (k - 2) / (2 * offset), 1 / offset
    j = torch.arange(int(offset / 2 + 12 * math.sqrt(offset / 2) + 30)).double()
    weights = (j * math.log(offset / 2) - torch.lgamma(j + 1) - offset / 2).exp() if offset else (j == 0).double()
    means = torch.from_numpy(digamma(k / 2 + j.numpy()) + math.log(2))
    mean = float(weights @ means)
    variance = float(weights @ (torch.from_numpy(polygamma(1, k / 2 + j.numpy())) + (means - mean).square()))
    return mean / 2, variance / 4


# --- how fast a run was seen to leave ----------

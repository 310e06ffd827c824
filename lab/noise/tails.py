"""How heavy the tail of a sample is, and whether it is Gaussian: for gradient noise, with the errors such claims need.

    tail_index      alpha of P(X > x) ~ x^-alpha: 1 / mean of log X_(i)/X_(k+1) over the k largest; Hill (1975)
    extreme_index   gamma > 0 heavy (1/alpha), 0 as Gaussian, < 0 bounded; Dekkers, Einmahl and de Haan (1989)
    stable_index    alpha of a symmetric alpha-stable law, 2 for a Gaussian; Mohammadi et al. (2015), corollary 2.4
    stable          numbers with such a law, to draw; Chambers, Mallows and Stuck (1976)
    gaussianity     excess kurtosis, and a test of stated level, of projections; Panigrahi et al. (2019, arXiv 1910.09626)

A caveat that every number here carries. Hill's estimator gives some alpha for any sample, a Gaussian one too (6 for the
largest twentieth of 2000): read it beside gamma. And each takes its sample to be identically distributed. The coordinates
of a gradient are not: thrown into one sample, Gaussian coordinates of different variance look alpha-stable with alpha well
below 2, which is how Simsekli et al. (2019, arXiv 1901.06053) found heavy tails and what Xie et al. (2021, arXiv
2006.08815) object to. So samples should run over examples or batches along fixed directions, never over coordinates; and
the noise of a finite set is bounded, so that "heavy" says how far its largest examples reach, not what lies beyond them.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lab.results import Estimate

SHARE = 0.05
"""Largest values that the tail is read from, as a share of the sample."""
FEWEST = 10
"""Largest values that an estimate rests on at least; its error is about 1/sqrt of it, 30 %."""
GROUPS = 20
"""Groups of the jackknife behind the error of a kurtosis."""


@dataclass(frozen=True)
class Gaussianity:
    """What projections say. kurtosis: excess kurtosis, 0 for a Gaussian, mean over the directions, its error over the draws.

    rejected  share of directions for which Shapiro and Wilk's test rejects at `level`: about `level` for Gaussian noise.
    p_value   of all directions together, the smallest times their number (Bonferroni), valid however they depend.
    """

    kurtosis: Estimate
    rejected: float
    p_value: float
    level: float


def tail_index(values: Tensor, *, share: float = SHARE) -> Estimate:
    """Hill's estimate of alpha in P(X > x) ~ x^-alpha from the k largest of `values` (n,), a `share` of them.

    Moments of order below alpha exist: alpha < 2 would be noise without a variance. Standard error alpha/sqrt(k). Biased
    where the tail is no power law; for a Gaussian it grows without bound with n (see `extreme_index`). NaN, not converged,
    where the largest values do not differ or are not positive. Raises ValueError for fewer than 2 x `FEWEST` values.

    >>> x = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64) ** (-1 / 3)  # the quantiles of a Pareto law of index 3
    >>> found = tail_index(x)
    >>> round(found.value, 1), round(found.error, 1)
    (3.0, 0.4)
    """
    logs = _excesses(values, share)
    mean = float(logs.mean())
    if not 0 < mean < math.inf:
        return Estimate(math.nan, math.nan, 0, "hill", False)
    return Estimate(1 / mean, 1 / mean / math.sqrt(len(logs)), 0, "hill")


def extreme_index(values: Tensor, *, share: float = SHARE) -> Estimate:
    """The extreme value index gamma of `values` (n,) from the largest `share`: M1 + 1 - 1/2 / (1 - M1^2/M2).

    M1, M2 the means of the first and second power of log X_(i)/X_(k+1). gamma = 1/alpha > 0 for a power law, 0 for
    exponential and Gaussian tails (approached from below, slowly: -0.1 for 2000 values), < 0 for a bounded sample. Error:
    the asymptotic one, sqrt((1 + gamma^2)/k) for gamma >= 0. NaN and raises as `tail_index`.
    """
    logs = _excesses(values, share)
    first, second = float(logs.mean()), float(logs.square().mean())
    if not (0 < first < math.inf and second > first**2 * (1 + 1e-9)):
        return Estimate(math.nan, math.nan, 0, "moment", False)
    g = first + 1 - 0.5 / (1 - first**2 / second)
    variance = 1 + g**2
    if g < 0:
        ratio = (1 - 2 * g) / (1 - 3 * g)
        variance = (1 - g) ** 2 * (1 - 2 * g) * (4 - 8 * ratio + (5 - 11 * g) * ratio / (1 - 4 * g))
    return Estimate(g, math.sqrt(variance / len(logs)), 0, "moment")


def stable_index(values: Tensor) -> Estimate:
    """alpha of a symmetric alpha-stable law, 2 if Gaussian, from `values` (n,) independent and identically distributed.

    A sum of K such numbers is K^(1/alpha) times one: 1/alpha = (mean log|sum of K| - mean log|one|) / log K, with about
    sqrt(n) sums of K = sqrt(n) values, from whose spread comes the error. Only for identically distributed values: NOT for
    the coordinates of a gradient (see the head of this file). Raises ValueError for fewer than 100 values.
    """
    values = _sample(values, 100)
    K = math.isqrt(len(values))
    groups = values[: K * K].reshape(K, K)
    parts = (groups.sum(1).abs().log() - groups.abs().log().mean(1)) / math.log(K)
    inverse = float(parts.mean())
    if not 0 < inverse < math.inf:
        return Estimate(math.nan, math.nan, 0, "stable", False)
    return Estimate(1 / inverse, float(parts.std()) / math.sqrt(K) / inverse**2, 0, "stable")


def stable(like: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Independent symmetric alpha-stable numbers, as many as in `like`: characteristic function exp(-|t|^alpha).

    alpha = 2 is a Gaussian of variance 2; below 2 there is no variance, from 1 on down no mean. A sum of a_i times such
    numbers is (sum |a_i|^alpha)^(1/alpha) times one. Chambers, Mallows and Stuck (1976). Raises ValueError outside 0 < alpha
    <= 2.
    """
    if not 0 < alpha <= 2:
        raise ValueError(f"alpha={alpha}: expected 0 < alpha <= 2")
    angle = math.pi * (torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float64) - 0.5)
    wait = torch.empty_like(angle).exponential_(generator=generator)
    body = torch.sin(alpha * angle) / torch.cos(angle) ** (1 / alpha)
    return (body * (torch.cos((1 - alpha) * angle) / wait) ** ((1 - alpha) / alpha)).to(like)


def stable_width(values: Tensor, alpha: float) -> Estimate:
    """s of values (n,) distributed as s times `stable` numbers: log s = mean log|x| - gamma (1/alpha - 1).

    A scale where there is no variance; alpha = 2: the standard deviation over sqrt(2). Error ~ 1/sqrt(n).
    """
    logs = _sample(values, 2).abs().log()
    width = math.exp(float(logs.mean()) - float(np.euler_gamma) * (1 / alpha - 1))
    return Estimate(width, width * float(logs.std()) / math.sqrt(len(logs)), 0, "stable", math.isfinite(width))


def gaussianity(projections: Tensor, *, level: float = 0.05) -> Gaussianity:
    """Whether noise is Gaussian, from n independent draws of it along q directions: projections (n, q).

    The kurtosis is averaged over directions; its error is the delete-a-group jackknife's over the draws, so directions may
    depend on each other, as those of noise of low rank do. n draws see an excess kurtosis of about 5/sqrt(n) along a
    direction. A batch of m independent examples has 1/m of the excess of one. Directions without noise do not count; NaN
    where none has any. Raises ValueError for fewer than 2 x `GROUPS` draws or more than 5000, the limit of the test.
    """
    if projections.dim() != 2 or not 2 * GROUPS <= len(projections) <= 5000:
        raise ValueError(
            f"projections of shape {tuple(projections.shape)}; expected ({2 * GROUPS} to 5000 draws, directions)"
        )
    centred = projections.detach().double() - projections.detach().double().mean(0)
    scale = projections.abs().double().amax(0)
    centred = centred[:, centred.abs().amax(0) > 1e-12 * scale]
    if not centred.numel() or not bool(centred.isfinite().all()):
        nothing = Estimate(math.nan, math.nan, 0, "jackknife", False)
        return Gaussianity(nothing, math.nan, math.nan, level)
    p = [float(stats.shapiro(column.cpu().numpy()).pvalue) for column in centred.unbind(1)]
    rejected = sum(value < level for value in p) / len(p)
    return Gaussianity(excess_kurtosis(centred), rejected, min(1.0, len(p) * min(p)), level)


def excess_kurtosis(draws: Tensor) -> Estimate:
    """Mean over the columns of the excess kurtosis, unbiased for Gaussian draws; the jackknife's error over the rows."""

    def of(rows: Tensor) -> float:
        n = len(rows)
        centred = rows - rows.mean(0)
        raw = n * centred.pow(4).sum(0) / centred.square().sum(0).square()
        return float((((n + 1) * raw - 3 * (n - 1)) * (n - 1) / ((n - 2) * (n - 3))).mean())

    keep = torch.arange(len(draws), device=draws.device) % GROUPS
    left_out = torch.tensor([of(draws[keep != group]) for group in range(GROUPS)], dtype=torch.float64)
    error = math.sqrt((GROUPS - 1) * float(left_out.var(correction=0)))
    return Estimate(of(draws), error, 0, "jackknife")


def _excesses(values: Tensor, share: float) -> Tensor:
    """log X_(i)/X_(k+1) of the k largest values, k the `share` of them but at least `FEWEST`."""
    if not 0 < share < 1:
        raise ValueError(f"share={share}: expected a share of the sample, above 0 and below 1")
    values = _sample(values, 2 * FEWEST)
    k = min(max(FEWEST, round(share * len(values))), len(values) - 1)
    largest = values.topk(k + 1).values
    return (largest[:-1] / largest[-1].clamp(min=0)).log()


def _sample(values: Tensor, fewest: int) -> Tensor:
    if values.dim() != 1 or len(values) < fewest:
        raise ValueError(f"a sample of shape {tuple(values.shape)}; expected ({fewest} or more values)")
    return values.detach().double()

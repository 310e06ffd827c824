"""Rates out of escape times: censored maximum likelihood, the survival curve, and whether there is a rate at all.

    rate             k / T, T = sum of all the time watched; interval [chi2_{a/2, 2k} / 2T, chi2_{1-a/2, 2k+2} / 2T]
    survival         S(t) = prod_{t_i <= t} (1 - d_i / n_i);   Var log S = sum d_i / (n_i (n_i - d_i))
    exponential?     under a constant rate exits are a Poisson process in exposure: u_i = T(t_i) / T is uniform
    slope            log tau against x (B / lr) with weights k, for Var log(k / T) = 1 / k

A rate needs the time of those that stayed as much as of those that left. The mean over the ones that left has no function
here: stopped at 1/rate it is 0.418 of the truth, however many replicas there are, and falls with the budget.
Epstein and Sobel (1953); Kaplan and Meier (1958); Greenwood (1926); Barlow and Campo (1975) for the uniform law.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.special import gammaincinv
from scipy.stats import binomtest, chi2, kstwo, norm
from torch import Tensor

from lab.results import EscapeTimes, Rate

# --- rates ----------


def rate(times: EscapeTimes, *, level: float = 0.95) -> Rate:
    """Exits per step: k / T by maximum likelihood with censoring, and its exact interval.

    T adds what every replica was watched, whether it left or not; an exit found by an inspection is taken to have happened
    in the middle of the interval before it (error of the rate (rate inspection)^2 / 12). Failed replicas are censored.
    Error: 1 / sqrt(k) of the rate. No exit: value NaN, high the one-sided bound. The interval is exact for replicas that
    are independent and forget when they started: see `exponentiality`.

    >>> left = torch.tensor([True, True, False, False])
    >>> times = EscapeTimes(torch.tensor([10.0, 30.0, 40.0, 40.0]), left, torch.zeros(4, dtype=torch.bool))
    >>> events = rate(times)
    >>> round(events.value, 6), round(events.low, 6), round(events.high, 6)
    (0.016667, 0.002018, 0.060206)
    """
    _check(times, level)
    ended = int((times.exited | times.failed).sum())
    exposure = float(times.times.double().sum()) - ended * times.inspection / 2
    return of_counts(int(times.exited.sum()), exposure, level=level)


def of_counts(exits: int, exposure: float, *, level: float = 0.95, unit: str = "step") -> Rate:
    """The rate of `exits` events in an exposure > 0, with its exact interval."""
    if not exposure > 0:
        raise ValueError(f"exposure={exposure}: expected replicas that were watched for a time > 0")
    a = 1 - level
    if exits == 0:
        return Rate(math.nan, 0.0, -math.log(a) / exposure, 0, exposure, level, unit)
    low = float(gammaincinv(exits, a / 2)) / exposure  # chi2_{q, 2k} / 2 is the quantile of the gamma law of order k
    high = float(gammaincinv(exits + 1, 1 - a / 2)) / exposure
    return Rate(exits / exposure, low, high, exits, exposure, level, unit)


def per_time(events: Rate, lr: float) -> Rate:
    """The same per unit of time lr * step, in which rates of different learning rates are compared."""
    return _in_units(events, lr, "lr * step")


def per_epoch(events: Rate, steps_per_epoch: float) -> Rate:
    """The same per pass through the data."""
    return _in_units(events, 1 / steps_per_epoch, "epoch")


def _in_units(events: Rate, units: float, unit: str) -> Rate:
    """units: how many of the new ones an old one is."""
    scaled = {name: getattr(events, name) / units for name in ("value", "low", "high")}
    return replace(events, **scaled, exposure=events.exposure * units, unit=unit)


def words(events: Rate) -> str:
    """A rate as one says it: never a number where nothing was seen.

    >>> words(of_counts(0, 1000.0)), words(of_counts(64, 4000.0))
    ('below 0.0030 per step (95 %; no exit in 1e+03)', '0.0160 [0.0123, 0.0204] per step (64 exits)')
    """
    if not events.exits:
        return (
            f"below {events.high:#.2g} per {events.unit} ({100 * events.level:g} %; no exit in {events.exposure:.3g})"
        )
    plural = "s" if events.exits > 1 else ""
    return (
        f"{events.value:#.3g} [{events.low:#.3g}, {events.high:#.3g}] per {events.unit} ({events.exits} exit{plural})"
    )


def after(times: EscapeTimes, start: float) -> EscapeTimes:
    """Those still inside at `start`, on a clock that starts there: what a longer burn-in would have seen.

    A rate that drifts with `start` is none yet. Raises ValueError where nobody is left.
    """
    inside = times.times > start
    if not bool(inside.any()):
        raise ValueError(f"nobody is left inside after {start:g} steps; use an earlier start")
    return replace(
        times,
        times=times.times[inside] - start,
        exited=times.exited[inside],
        failed=times.failed[inside],
        burn_in=times.burn_in + start,
    )


# --- several at once ----------


def pooled(rates: Sequence[Rate]) -> Rate:
    """One rate of several measurements of the same thing: exits and exposures add up."""
    _alike(rates)
    first = rates[0]
    return of_counts(sum(r.exits for r in rates), sum(r.exposure for r in rates), level=first.level, unit=first.unit)


def against(rates: Sequence[Rate], expected: Sequence[float]) -> Rate:
    """Exits over the exits expected of these rates: 1 where theory is right, with the exact interval of all together.

    expected: a rate for each, in the same unit.
    """
    _alike(rates)
    if len(rates) != len(expected) or not all(value > 0 for value in expected):
        raise ValueError(f"{len(rates)} rates against {len(expected)}: expected a rate > 0 for each")
    total = sum(r.exposure * value for r, value in zip(rates, expected, strict=True))
    return of_counts(sum(r.exits for r in rates), total, level=rates[0].level, unit="expected exit")


def same_rate(rates: Sequence[Rate]) -> float:
    """The p-value of all being one rate: exact (binomial) for two, by the likelihood ratio for more.

    Given all exits, those of each are multinomial with shares of the exposure. NaN where nobody left anywhere.
    """
    _alike(rates)
    exits, exposure = [r.exits for r in rates], [r.exposure for r in rates]
    if not sum(exits):
        return math.nan
    if len(rates) == 2:
        return float(binomtest(exits[0], sum(exits), exposure[0] / sum(exposure)).pvalue)
    means = [sum(exits) * t / sum(exposure) for t in exposure]
    ratio = 2 * sum(k * math.log(k / mean) for k, mean in zip(exits, means, strict=True) if k)
    return float(chi2.sf(ratio, len(rates) - 1))


def _alike(rates: Sequence[Rate]) -> None:
    units = {(r.unit, r.level) for r in rates}
    if len(units) != 1:
        raise ValueError(f"rates in {sorted(units)}: expected one or more of the same unit and level")


@dataclass(frozen=True)
class Slope:
    """log tau = intercept + value x: slope with standard error and interval; p of the line being right (NaN: two points).

    points is how many had exits and count.
    """

    value: float
    error: float
    low: float
    high: float
    intercept: float
    p: float
    points: int


def slope(x: Sequence[float], rates: Sequence[Rate], *, level: float = 0.95) -> Slope:
    """The slope of log mean time (-log rate) against x, weighted by exits: Var log rate = 1 / k.

    x: B / lr, or barrier / temperature. Measurements without exits are left out. p is that of chi2 about the line with
    points - 2 degrees of freedom: where it is small log tau is curved and the slope is no action. Raises ValueError for
    fewer than two different x with exits.
    """
    _alike(rates)
    kept = [(float(a), r) for a, r in zip(x, rates, strict=True) if r.exits]
    if len({a for a, _ in kept}) < 2:
        raise ValueError(f"{len(kept)} of {len(rates)} measurements with exits: expected at least two, at different x")
    at = torch.tensor([a for a, _ in kept], dtype=torch.float64)
    y = -torch.tensor([r.value for _, r in kept], dtype=torch.float64).log()
    k = torch.tensor([r.exits for _, r in kept], dtype=torch.float64)
    middle, height = float((k * at).sum() / k.sum()), float((k * y).sum() / k.sum())
    spread = float((k * (at - middle) ** 2).sum())
    value = float((k * (at - middle) * (y - height)).sum()) / spread
    error = spread**-0.5
    rest = float((k * (y - height - value * (at - middle)) ** 2).sum())
    wide = float(norm.ppf((1 + level) / 2)) * error
    p = float(chi2.sf(rest, len(kept) - 2)) if len(kept) > 2 else math.nan
    return Slope(value, error, value - wide, value + wide, height - value * middle, p, len(kept))


# --- the curve ----------


@dataclass(frozen=True)
class Survival:
    """Share still inside: at times (n,) of exits, ascending, survival (n,) just after each, and its standard error.

    log_error (n,) is that of log survival; both NaN where nobody is left. at_risk (n,) replicas just before.
    """

    times: Tensor
    survival: Tensor
    error: Tensor
    log_error: Tensor
    at_risk: Tensor


def kaplan_meier(times: EscapeTimes) -> Survival:
    """The survival curve without any model, failed replicas censored; Greenwood's standard error.

    For a constant rate log S is a straight line of slope -rate: drawn beside it, that is the check by eye.
    """
    _check(times)
    t, left = times.times.double().cpu(), times.exited.cpu()
    at = t[left].unique()
    # Replicas watched up to t: all whose own time is not before it; exits at t count before censorings at t.
    ordered = t.sort().values
    risk = len(t) - torch.searchsorted(ordered, at)
    exits = torch.searchsorted(t[left].sort().values, at, right=True).diff(prepend=torch.zeros(1, dtype=torch.long))
    survival = (1 - exits / risk.double()).cumprod(0)
    log_error = (exits / (risk * (risk - exits).double())).cumsum(0).sqrt()
    log_error[survival == 0] = math.nan
    return Survival(at, survival, survival * log_error, log_error, risk)


@dataclass(frozen=True)
class Exponentiality:
    """Whether exits come at a constant rate: p of Kolmogorov and Smirnov, early the share of exposure, CV of the times.

    p        uniform on [0, 1] under a constant rate, also with censoring; small: no single rate (NaN: fewer than 3 exits).
    early    z of exits coming too early (> 0: a rate that falls, by several states inside) or too late (< 0: a delay)
    cv       standard deviation over mean of the times, 1 for an exponential; beyond the last one watched the curve is
             continued by it
    """

    p: float
    early: float
    cv: float


def exponentiality(times: EscapeTimes) -> Exponentiality:
    """Tests a constant rate on the exits alone, in the clock in which censoring does no harm: the exposure of all.

    With a constant rate exits are a Poisson process in T(t) = int_0^t (replicas inside) ds, so T(t_i) / T(last exit) of all
    but the last are uniform, exactly without censoring or when stopped at an exit, and nearly with a fixed budget. No rate
    is fitted, so no correction of Lilliefors' kind is due. Exits found by one inspection are spread over its interval.
    """
    _check(times)
    t, left = times.times.double().cpu(), times.exited.cpu()
    k = int(left.sum())
    if k < 3:
        return Exponentiality(math.nan, math.nan, math.nan)
    t = _spread(t, left, times.inspection)
    ordered = t.sort().values
    exits = t[left].sort().values
    done = torch.cat([torch.zeros(1), ordered.cumsum(0)]).to(t)
    past = torch.searchsorted(ordered, exits)  # replicas gone before
    clock = done[past] + (len(t) - past) * exits
    u = clock[:-1] / clock[-1]
    steps = torch.arange(k, dtype=u.dtype) / (k - 1)
    distance = float(torch.maximum(steps[1:] - u, u - steps[:-1]).max())
    p = float(kstwo.sf(distance, k - 1))
    return Exponentiality(p, float(0.5 - u.mean()) * math.sqrt(12 * (k - 1)), _cv(t, left))


def _spread(t: Tensor, left: Tensor, inspection: float) -> Tensor:
    """Exits of one inspection at the middles of as many equal parts of the interval before it."""
    at, which, counts = t[left].unique(return_inverse=True, return_counts=True)
    order = which.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[which[order]]
    out = t.clone()
    out[left] = at[which] - inspection + inspection * (place + 0.5) / counts[which]
    return out


def _cv(t: Tensor, left: Tensor) -> float:
    """From E t = int S, E t^2 = 2 int t S, with S of Kaplan and Meier and beyond it an exponential of the fitted rate."""
    curve = kaplan_meier(EscapeTimes(t, left, torch.zeros_like(left)))
    end = float(t.max())
    edges = torch.cat([torch.zeros(1).to(t), curve.times, t.max()[None]])
    level = torch.cat([torch.ones(1).to(t), curve.survival])
    first = float((level * edges.diff()).sum())
    second = float((level * edges.square().diff()).sum())
    beyond, mean = float(level[-1]), float(t.sum()) / int(left.sum())
    first += beyond * mean
    second += 2 * beyond * mean * (end + mean)
    return math.sqrt(max(0.0, second - first**2)) / first


def _check(times: EscapeTimes, level: float = 0.95) -> None:
    if not times.times.shape == times.exited.shape == times.failed.shape or times.times.dim() != 1:
        raise ValueError(f"times {tuple(times.times.shape)}: expected (R,), and as many exited and failed")
    if not len(times.times) or not bool((times.times.isfinite() & (times.times >= 0)).all()):
        raise ValueError("times: expected numbers of steps >= 0, one a replica")
    if bool((times.exited & times.failed).any()):
        raise ValueError("a replica is both exited and failed; a failure is an exit of its own kind")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a confidence between 0 and 1, e.g. 0.95")

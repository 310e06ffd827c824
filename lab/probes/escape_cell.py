"""What is known of one learning rate and batch size of an escape measurement, in numbers and as a row of the sweep."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.escape.ensemble import EnsembleEscape
from lab.escape.growth import Descending, Thrown
from lab.escape.saddle import Departure
from lab.escape.survival import per_epoch, per_time
from lab.results import EscapeTimes, Rate, numbered, with_errors

COLUMNS = (
    *("lr", "batch_size", "replicas", "exits", "rate", "rate_low", "rate_high", "mean_time", "mean_time_error"),
    *("time_theory", "lyapunov", "lyapunov_error", "growth", "growth_error", "critical_lr", "landed"),
)
"""Of the array escape/sweep; times in steps, rates per step, NaN where there is none."""


@dataclass(frozen=True)
class EscapeCell:
    """One learning rate and batch size (0: all of `total` examples).

    ensemble     of the replicas; thrown: at a minimum that fits; theory: of the exit from a saddle.
    directions   growth there, and the spread of the gradient of a step.
    reasons      why there is no rate, where nobody was watched because that was known before.
    barrier      height of the saddle to the nearest minimum beyond, temperature: the noise on the way to it;
    rate_theory  Langer's, per step, under isotropic noise.
    """

    lr: float
    batch_size: int
    total: int
    ensemble: EnsembleEscape | None = None
    thrown: Thrown | None = None
    theory: Departure | None = None
    directions: tuple[tuple[Descending, float], ...] = ()
    reasons: tuple[str, ...] = ()
    barrier: float = math.nan
    temperature: float = math.nan
    rate_theory: float = math.nan

    @property
    def name(self) -> str:
        return f"lr {self.lr:.3g}, batch {self.batch_size or 'full'}"

    @property
    def rate(self) -> Rate | None:
        """Per step; None where there is none."""
        return self.ensemble.rate if self.ensemble else None

    @property
    def watched(self) -> bool:
        """Whether any replicas were; not where it was known before that all would do the same."""
        return self.ensemble is not None or self.thrown is not None

    @property
    def times(self) -> EscapeTimes:
        """When replicas left, from the end of the burn-in; from the kick at a minimum that fits."""
        if self.thrown is not None:
            return self.thrown.times
        if self.ensemble is not None:
            return self.ensemble.watched.times
        nobody = torch.zeros(2, dtype=torch.bool)
        return EscapeTimes(nobody.double(), nobody, nobody)

    @property
    def mean_time(self) -> tuple[float, float]:
        """Mean and standard error where all left, else NaN: the mean of those that did is no mean."""
        out = self.times.exited
        if not bool(out.all()) or len(out) < 2:
            return math.nan, math.nan
        return float(self.times.times.mean()), float(self.times.times.std()) / math.sqrt(len(out))

    @property
    def per_epoch(self) -> float:
        """Steps in a pass through the data."""
        return self.total / self.batch_size if self.batch_size else 1.0

    def numbers(self) -> dict[str, float]:
        """By quantity; NaN where nothing was measured."""
        numbers, gone = dict[str, float](), self.thrown
        if self.watched:
            numbers |= {"exits": float(self.times.exited.sum()), "failures": float(self.times.failed.sum())}
        if (rate := self.rate) is not None:
            units = {"": rate, "_per_time": per_time(rate, self.lr), "_per_epoch": per_epoch(rate, self.per_epoch)}
            for unit, in_it in units.items():
                numbers |= {f"rate{unit}": in_it.value, f"rate_low{unit}": in_it.low, f"rate_high{unit}": in_it.high}
        if math.isfinite(self.barrier):
            numbers |= {"barrier": self.barrier, "rate_theory": self.rate_theory}
        if self.theory is not None or gone is not None:
            numbers |= with_errors({"time": self.mean_time})
        if self.theory is not None and not self.theory.never:
            numbers |= {"time_theory": self.theory.mean}
        if self.directions:
            first, spread = self.directions[0]
            numbers |= numbered({"growth": first.noisy}) | {"growth_kick": first.kick.value}
            numbers |= {"growth_theory": first.theory, "noise_along": spread}
        if gone is not None:
            numbers |= numbered({"growth": gone.growth}) | {"growth_theory": gone.exponent.value}
            numbers |= {"critical_lr": gone.critical, "landed": mean(gone.landed)}
        return numbers

    def row(self) -> list[float]:
        """In the order of `COLUMNS`."""
        gone, rate, (average, error) = self.thrown, self.rate, self.mean_time
        known = {"lr": self.lr, "batch_size": self.batch_size, "replicas": 0.0}
        known |= {"mean_time": average, "mean_time_error": error}
        if self.watched:
            known |= {"replicas": len(self.times.times), "exits": float(self.times.exited.sum())}
        if rate is not None:
            known |= {"rate": rate.value, "rate_low": rate.low, "rate_high": rate.high}
        if gone is not None:
            known |= {"lyapunov": gone.exponent.value, "lyapunov_error": gone.exponent.error}
            known |= {"growth": gone.growth.value, "growth_error": gone.growth.error}
            known |= {"time_theory": gone.expected, "critical_lr": gone.critical, "landed": mean(gone.landed)}
        if self.theory is not None:
            known |= {"time_theory": self.theory.mean}
        return [known.get(name, math.nan) for name in COLUMNS]


def mean(x: Tensor) -> float:
    """NaN of nothing."""
    return float(x.mean()) if len(x) else math.nan

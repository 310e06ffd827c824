"""Runs that belong together: which settings tell them apart, and the mean over those that differ in the seed only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.compare.run import Run
from lab.compare.strangers import Plain
from lab.run.identity import PLACE

SEED = "seed"
"""The setting over which repeated runs are averaged."""
CONFIDENCE = 0.95
"""Of intervals over seeds."""


@dataclass(frozen=True)
class SeedMean:
    """The mean of n runs that differ in the seed: its standard error (0 of a single run), and low and high, the ends of the
    95 % interval of Student's t; NaN where n is 1, everything where none has a value.
    """

    value: float
    error: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> "SeedMean":
        """Of the values that are finite.

        >>> mean = SeedMean.of([1.0, 3.0, math.nan])
        >>> mean.value, mean.error, mean.n, round(mean.high - mean.value, 3)  # t = 12.706 at one degree of freedom
        (2.0, 1.0, 2, 12.706)
        """
        n = sum(map(math.isfinite, values))
        value, error = mean_and_error(values)
        if n < 2:
            return SeedMean(value, error, math.nan, math.nan, n)
        from scipy.stats import t

        reach = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
        return SeedMean(value, error, value - reach, value + reach, n)


def differing(runs: Sequence[Run], *, but: Sequence[str | None] = ()) -> list[str]:
    """The settings that are not the same in all runs, in order, less the seed and those in `but`: of the cells of one grid
    as they were typed, of any other runs as they were recorded.
    """
    left_out = {SEED, *but}
    kinds = {frozenset(run.overrides) for run in runs}
    if len(kinds) > 1 or kinds == {frozenset()}:
        return [name for name in varying(runs) if name not in left_out]
    names = dict.fromkeys(name for run in runs for name in run.overrides)
    return [n for n in names if n not in left_out and len({run.overrides.get(n) for run in runs}) > 1]


def varying(runs: Sequence[Run]) -> list[str]:
    """The recorded settings that are not the same in all runs, less those that are no matter of the result (threads, names,
    loggers). Where the runs have several cards of a group, the settings that not all of these cards have are left out.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in PLACE)
    found = [n for n in names if len({key(run.settings.get(n, ...)) for run in runs}) > 1]
    return [n for n in found if all(n in run.settings for run in runs) or not {*_heads(n)} & {*found}]


def grouped(runs: Sequence[Run], settings: Sequence[str]) -> dict[str, list[Run]]:
    """The runs by the label that `settings` give them, in order of appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label(settings), []).append(run)
    return groups


def over_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs that have all settings but the seed in common, in order of appearance."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        left_out = {SEED, *PLACE}
        same = frozenset((name, key(value)) for name, value in run.settings.items() if name not in left_out)
        groups.setdefault(same, []).append(run)
    return [*groups.values()]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of repeated runs and its standard error (0 for a single one), without those that diverged; NaN of none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return math.nan, math.nan
    mean = sum(known) / len(known)
    if len(known) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1) / len(known))


def key(value: Plain | Any) -> Any:
    """A value to compare by: 1 and 1.0 are one, 1 and true are not, NaN is itself."""
    return (isinstance(value, bool), "nan" if value != value else value)


def _heads(name: str) -> Mapping[str, None]:
    """The groups that a setting is in."""
    parts = name.split(".")
    return dict.fromkeys(".".join(parts[:i]) for i in range(1, len(parts)))

"""Runs on the plane of two settings: which cell each belongs to, and what it has to say, a number, a word, or why neither.

Runs of a cell may differ in the seed only; their numbers are averaged, with the 95 % interval of Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lab.compare.conditions import resolved
from lab.compare.groups import SeedMean, over_seeds, varying
from lab.compare.run import FIELDS, Run, as_typed, short
from lab.compare.strangers import Plain
from lab.settings import SettingError

State = Literal["value", "diverged", "failed", "interrupted", "running", "missing", "no value"]
ORDER: tuple[State, ...] = ("failed", "interrupted", "running", "missing")
"""States of runs that are not over, the one first that a cell with several of them has."""
MOST = 900
"""Cells of a plane that can be drawn and read."""
LOG_FROM = 2
"""Values of a setting from which on its axis is logarithmic, where all are positive numbers."""


@dataclass(frozen=True)
class PlaneCell:
    """One combination of two settings. state "value": mean of a number, or word, the most frequent of a text among n; lost:
    how many runs beside those diverged.
    """

    x: int
    y: int
    state: State
    mean: SeedMean
    word: str = ""
    lost: int = 0
    step: int = 0


@dataclass(frozen=True)
class PlaneAxis:
    """The values of one setting, in order: positions are numbers where all are, else places in the order of appearance."""

    setting: str
    positions: Sequence[float]
    labels: Sequence[str]

    @cached_property
    def log(self) -> bool:
        """Whether the axis is logarithmic."""
        return len(self.positions) >= LOG_FROM and all(at > 0 for at in self.positions) and self.numeric

    numeric: bool = True

    @staticmethod
    def of(setting: str, runs: Sequence[Run]) -> "PlaneAxis":
        """From the values that some runs have."""
        texts = dict.fromkeys(text_of(run, setting) for run in runs)
        numbers: dict[float, str] = {}
        for run in runs:
            numbers.setdefault(run.number(setting), text_of(run, setting))
        if all(map(math.isfinite, numbers)):
            ordered = sorted(numbers)
            return PlaneAxis(setting, ordered, [numbers[at] for at in ordered])
        return PlaneAxis(setting, [float(i) for i in range(len(texts))], [*texts], numeric=False)

    def place(self, run: Run) -> int:
        """Which of the values a run has."""
        return (
            self.positions.index(run.number(self.setting))
            if self.numeric
            else self.labels.index(text_of(run, self.setting))
        )


@dataclass(frozen=True)
class Plane:
    """The cells of two settings, row by row, for one quantity."""

    x: PlaneAxis
    y: PlaneAxis
    quantity: str
    cells: Sequence[PlaneCell]

    @staticmethod
    def of(runs: Sequence[Run], quantity: str, x: PlaneAxis, y: PlaneAxis, *, share: float) -> "Plane":
        """quantity: a tag, of which the mean over the last `share` of each run is taken, or a result.

        Raises SettingError where runs of a cell differ in more than the seed, and for more than `MOST` cells.
        """
        if len(x.positions) * len(y.positions) > MOST:
            raise SettingError(
                f"{len(x.positions)} values of {x.setting} and {len(y.positions)} of {y.setting} are more than {MOST} "
                "cells; choose among the runs"
            )
        cells: dict[tuple[int, int], list[Run]] = {}
        for run in runs:
            cells.setdefault((x.place(run), y.place(run)), []).append(run)
        for group in cells.values():
            require_seeds(group, x.setting, y.setting)
        places = [(i, j) for j in range(len(y.positions)) for i in range(len(x.positions))]
        return Plane(x, y, quantity, [_cell(at, cells.get(at, []), quantity, share) for at in places])

    @property
    def known(self) -> list[PlaneCell]:
        """The cells that have a value."""
        return [cell for cell in self.cells if cell.state == "value"]

    @property
    def words(self) -> list[str]:
        """The words among the values; [] where they are numbers."""
        return list(dict.fromkeys(cell.word for cell in self.known if cell.word))

    def where(self, cell: PlaneCell) -> str:
        """A cell in words: batch_size=16, lr=0.1."""
        return f"{short(self.x.setting)}={self.x.labels[cell.x]}, {short(self.y.setting)}={self.y.labels[cell.y]}"


def setting_of(runs: Sequence[Run], name: str) -> str:
    """The whole name of a setting that runs have. Raises SettingError for none."""
    return resolved(name, dict.fromkeys([*(n for run in runs for n in run.settings), *FIELDS]))


def value_of(run: Run, quantity: str, share: float) -> Plain:
    """A tag late in a run, or a result; None of a run that diverged, or never had it."""
    if run.diverged:
        return None
    late = run.late(quantity, share)
    return late if late == late else run.results.get(quantity)


def text_of(run: Run, setting: str) -> str:
    """The value of a setting as one types it."""
    value = run.get(setting)
    return as_typed(value) if value is not None else run.overrides.get(setting, "null")


def require_seeds(group: Sequence[Run], x: str, y: str) -> None:
    """Raise SettingError where runs of a cell differ in a setting of the training other than the seed."""
    if len(over_seeds(group)) > 1:
        others = [name for name in varying(group) if name not in (x, y, "seed") and not name.startswith("probe.")]
        if others:
            raise SettingError(
                f"several runs with the same {x} and {y} differ in {', '.join(others[:4])}: draw a panel each, "
                f'compare.panels={others[0]}, or choose, runs.where("{others[0]}={text_of(group[0], others[0])}")'
            )


def _cell(at: tuple[int, int], group: Sequence[Run], quantity: str, share: float) -> PlaneCell:
    """What the runs of a cell amount to; of several with one seed the first that has a value counts."""
    over = [run for run in group if run.status in ("finished", "diverged")]
    values: dict[Plain, Plain] = {}
    for run in over:
        if (value := value_of(run, quantity, share)) is not None:
            values.setdefault(run.get("seed"), value)
    lost = sum(run.diverged for run in over)
    numbers = [float(v) for v in values.values() if isinstance(v, int | float) and math.isfinite(v)]
    texts = [v for v in values.values() if isinstance(v, str)]
    mean = SeedMean.of(numbers)
    if texts:
        word = max(texts, key=texts.count)
        return PlaneCell(*at, "value", SeedMean(math.nan, 0.0, math.nan, math.nan, len(texts)), word, lost)
    if numbers:
        return PlaneCell(*at, "value", mean, lost=lost)
    first: State = next((state for state in ORDER if any(run.status == state for run in group)), "missing")
    state: State = "diverged" if lost else "no value" if over else first
    return PlaneCell(*at, state, mean, lost=lost, step=max((run.step for run in group), default=0))

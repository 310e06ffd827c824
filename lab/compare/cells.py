"""One run of many: its overrides, its summary and its curves, as read from its folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lab.run.folder import RunFolder

SEED = "seed"
"""The setting over which repeated runs are averaged."""


@dataclass(frozen=True)
class GridCell:
    """A finished run in `folder`, made with `overrides` (setting -> value, as typed)."""

    folder: RunFolder
    overrides: Mapping[str, str]

    @staticmethod
    def read(folder: Path, overrides: Sequence[str]) -> "GridCell":
        """From overrides such as "data.batch_size=32"."""
        pairs = (override.lstrip("+").partition("=") for override in overrides)
        return GridCell(RunFolder(folder), {name: value for name, _, value in pairs})

    @property
    def name(self) -> str:
        return self.folder.path.name

    @cached_property
    def diverged(self) -> bool:
        return self.folder.read("status").get("status") == "diverged"

    @cached_property
    def parent(self) -> dict[str, Any]:
        """Where the run began: folder, step and changes, as in provenance.json; {} for one that began at step 0."""
        return dict(self.folder.read("provenance").get("parent", {}))

    @property
    def begin(self) -> int:
        """The first step of the run: what its curves have before is of its parent."""
        return int(self.parent.get("step", 0))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What provenance.json says of the data."""
        return self.folder.read("provenance")["data"]

    @cached_property
    def series(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values by tag."""
        return self.folder.all_series()

    def late(self, tag: str, share: float) -> float:
        """The mean of `tag` over the last `share` of the run, of the last measurement at least; NaN where the run
        diverged or never measured it.
        """
        steps, values = self.series.get(tag, ([], []))
        if self.diverged or not values:
            return math.nan
        end = self.folder.read("status")["step"]
        since = self.begin + (1 - share) * (end - self.begin)
        kept = [value for step, value in zip(steps, values, strict=True) if step >= since] or values[-1:]
        return sum(kept) / len(kept)

    def number(self, setting: str) -> float:
        """The value of a setting as a number, a batch of "full" in examples; NaN for what is none."""
        value = self.overrides.get(setting, "")
        if value == "full":
            return float(self.facts["examples"])
        try:
            return float(value)
        except ValueError:
            return math.nan

    def label(self, settings: Sequence[str]) -> str:
        """The values of some settings, e.g. "batch_size=32, lr=0.1"."""
        return ", ".join(f"{short(s)}={self.overrides[s]}" for s in settings if s in self.overrides)


def short(setting: str) -> str:
    """The last word of a setting: batch_size of data.batch_size."""
    return setting.replace("/", ".").rpartition(".")[2]


def differing(cells: Sequence[GridCell], *, but: Sequence[str | None] = ()) -> list[str]:
    """The settings that are not the same in all cells, in order, less the seed and those in `but`."""
    names = dict.fromkeys(name for cell in cells for name in cell.overrides)
    left_out = {SEED, *but}
    return [n for n in names if n not in left_out and len({cell.overrides.get(n) for cell in cells}) > 1]


def grouped(cells: Sequence[GridCell], settings: Sequence[str]) -> dict[str, list[GridCell]]:
    """The cells by the label that `settings` give them, in order of appearance."""
    groups: dict[str, list[GridCell]] = {}
    for cell in cells:
        groups.setdefault(cell.label(settings), []).append(cell)
    return groups


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of repeated runs and its standard error (0 for a single one), without those that diverged; NaN of none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return math.nan, math.nan
    mean = sum(known) / len(known)
    if len(known) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1) / len(known))

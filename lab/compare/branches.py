"""Runs that begin from checkpoints of another one: what each change did from there on, beside the run that went on.

As one does by hand to see what learning rate and batch size do to the sharpness: Jastrzebski et al. 2020 (arXiv 2002.09572),
Andreyev and Beneventano 2024 (arXiv 2412.20553). A column for every checkpoint, a row for every quantity, a color for every
change; runs that differ in the seed only are thin lines around their mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from matplotlib.axes import Axes
from pydantic import Field

from lab.compare.base import Compared, RunComparison, literal, new_figure, number, require_tags
from lab.compare.curves import binned
from lab.compare.groups import SEED, mean_and_error
from lab.compare.run import Run, short
from lab.run.summary import change
from lab.settings import SettingError, settings

QUARTER = 0.25
"""Share of a branch, at its end, that is averaged over."""
REACH = 2.5
"""A threshold beyond so many times the largest value is not drawn: it would squeeze the curves."""
UNCHANGED = "nothing changed"
Curve = tuple[Sequence[int], Sequence[float]]


@dataclass(frozen=True)
class BranchPoint:
    """A checkpoint, and the runs that begin from it by what was changed; `origin`: its run, as far as it is there."""

    folder: str
    step: int
    branches: Mapping[str, Sequence[Run]]

    @cached_property
    def origin(self) -> Run:
        return Run.read(self.folder)

    @cached_property
    def cells(self) -> list[Run]:
        return [cell for group in self.branches.values() for cell in group]

    @property
    def end(self) -> int:
        """The last step of the longest branch."""
        return max(cell.step for cell in self.cells)

    def curve(self, tag: str) -> Curve:
        """Of the parent: its own as far as it is there, else what its children have of it."""
        steps, values = self.origin.series.get(tag, ([], []))
        if steps:
            return steps, values
        steps, values = self.cells[0].series.get(tag, ([], []))
        return cut(steps, values, 0, self.step - 1)

    def went_on(self, tag: str) -> float:
        """The mean of the parent over the steps that the end of the branches is averaged over; NaN where it was over."""
        since = self.step + (1 - QUARTER) * (self.end - self.step)
        _, values = cut(*self.curve(tag), since, self.end)
        return sum(values) / len(values) if values else math.nan


@settings()
class Branches(RunComparison):
    """Runs that begin from checkpoints of another one: its curves with theirs leaving them, a column for each checkpoint."""

    tags: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="a row each; sharpness has its threshold, dashed, sharpness/ratio the edge, 1"),
    ] = ("sharpness/lambda_max", "train/loss")

    def compare(self, cells: Sequence[Run], title: str) -> Compared:
        if not all(cell.parent for cell in cells) or not cells:
            raise SettingError("compare=branches compares runs that begin from another one; add from=RUN@100,RUN@500")
        require_tags(self.tags, cells, "compare.tags")
        places = _places(cells)
        labels = list(dict.fromkeys(label for place in places for label in place.branches))
        figure = new_figure(1.2 + 4.4 * len(places), 0.9 + 2.7 * len(self.tags), title)
        rows = figure.subplots(len(self.tags), len(places), sharex="col", sharey="row", squeeze=False)
        for tag, row in zip(self.tags, rows, strict=True):
            for place, axis in zip(places, row, strict=True):
                self._draw(axis, tag, place, labels)
            self._scale(row, tag, places)
        for axis, place in zip(rows[0], places, strict=True):
            several = len({one.folder for one in places}) > 1
            axis.set_title(f"from step {place.step}" + (f" of {place.folder}" if several else ""), fontsize=10)
        for axis in rows[-1]:
            axis.set_xlabel("step (updates)")
        handles = {
            label: line for axis in rows.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return Compared(figure, paragraph(places), {cell.path: _ends(cell, self.tags) for cell in cells})

    def _draw(self, axis: Axes, tag: str, place: BranchPoint, labels: Sequence[str]) -> None:
        """The parent, in black until the branches leave it and dotted after, and a color for every change."""
        steps, values = place.curve(tag)
        left = max(0, 2 * place.step - place.end)
        axis.plot(
            *_shown(tag, cut(steps, values, left, place.step)), color="0.2", lw=1.4, label="the run they begin from"
        )
        went_on = _shown(tag, cut(steps, values, place.step, place.end))
        axis.plot(*went_on, color="0.2", lw=1.3, ls=":", zorder=3, label="as it went on")
        axis.axvline(place.step, color="0.45", lw=1, ls="-.")
        for label, group in place.branches.items():
            _branches(axis, tag, place, group, label, f"C{labels.index(label)}")
        if tag == _compared(place.cells[0]):
            limits = cut(*place.curve("sharpness/threshold"), left, place.end)
            axis.plot(*limits, color="0.5", lw=1.1, ls="--", label="threshold, in the color of its run")
        if tag == "sharpness/ratio":
            axis.axhline(1, color="0.5", lw=1.1, ls="--", label="the edge")

    def _scale(self, row: Sequence[Axes], tag: str, places: Sequence[BranchPoint]) -> None:
        """A loss on a log axis, a sharpness from zero; as far as runs come that did not diverge, with thresholds near."""
        row[0].set_ylabel(literal(tag))
        for axis in row:
            axis.grid(alpha=0.25)
        cells = [cell for place in places for cell in place.cells if not cell.diverged]
        curves = [place.curve(tag) for place in places] + [cell.series.get(tag, ([], [])) for cell in cells]
        values = [value for _, points in curves for value in points]
        if tag.endswith("/loss"):
            row[0].set_yscale("log")
            if low := [value for value in values if value > 0]:
                row[0].set_ylim(min(low) / 1.3, 1.3 * max(low))
        elif tag.startswith(("sharpness/", "batch_sharpness/")) and values:
            limits = [value for cell in cells for value in cell.series.get("sharpness/threshold", ([], []))[1]]
            near = (
                [limit for limit in limits if limit < REACH * max(values)]
                if tag == _compared(places[0].cells[0])
                else []
            )
            row[0].set_ylim(min(0, *values), 1.12 * max([*values, *near, *([1] if tag == "sharpness/ratio" else [])]))


def _branches(axis: Axes, tag: str, place: BranchPoint, group: Sequence[Run], label: str, color: str) -> None:
    """The runs of one change: each of them thin, their mean, and a cross at the top where one diverged."""
    curves = {cell.path: cut(*cell.series.get(tag, ([], [])), place.step, place.end) for cell in group}
    whole = [curves[cell.path] for cell in group if not cell.diverged]
    for cell in group:
        if len(group) > 1 or cell.diverged:
            axis.plot(*_shown(tag, curves[cell.path]), color=color, lw=0.7, alpha=0.4)
        if cell.diverged:
            at = [cell.step], [0.95]
            axis.plot(*at, ls="", marker="x", color=color, transform=axis.get_xaxis_transform(), label="diverged")
    axis.plot(*_shown(tag, mean(whole)), color=color, lw=1.7, label=literal(label))
    if tag == _compared(group[0]):
        limits = [cut(*cell.series.get("sharpness/threshold", ([], [])), place.step, place.end) for cell in group]
        axis.plot(*mean(limits), color=color, lw=1.1, ls="--")


def paragraph(places: Sequence[BranchPoint]) -> str:
    """What each change did to the sharpness, the phase and the loss, beside the parent over the same steps."""
    parts = ["Means over the last quarter of each branch, +- their standard error over seeds."]
    several = len({place.folder for place in places}) > 1
    for place in places:
        sharpness = _compared(place.cells[0]) or "sharpness/lambda_max"
        name = short(sharpness.replace("/", "."))
        before = {tag: place.went_on(tag) for tag in (sharpness, "sharpness/ratio", "train/loss")}
        parts.append(
            f"From step {place.step}{f' of {place.folder}' if several else ''}: {_parent(name, *before.values())}"
        )
        for label, group in place.branches.items():
            told = [
                _moved(name, group, sharpness, before[sharpness], ratio=True),
                _phases(group),
                _moved("loss", group, "train/loss", before["train/loss"]),
            ]
            parts.append(f"{label}: {', '.join(filter(None, told))};")
        parts[-1] = parts[-1].removesuffix(";") + "."
    return " ".join(parts) + _factors(places)


def _parent(name: str, sharpness: float, ratio: float, loss: float) -> str:
    if not math.isfinite(loss):
        return "the run itself was over by then."
    measured = f"{name} {sharpness:.3g}" + (f" ({ratio:.2f} x threshold)" if math.isfinite(ratio) else "") + ", "
    return f"the run that went on has {measured if math.isfinite(sharpness) else ''}loss {loss:.3g}."


def _moved(name: str, group: Sequence[Run], tag: str, before: float, *, ratio: bool = False) -> str:
    """A quantity at the end of the branches, over that of the parent, and over the threshold."""
    if not any(tag in cell.series for cell in group):
        return ""
    value, error = mean_and_error([cell.late(tag, QUARTER) for cell in group])
    if not math.isfinite(value):
        return f"{name} {number(value, group)}"
    spread = f" +- {error:.1g}" if error > 0 else ""
    factor = [f"{value / before:.2f} of the parent's"] if math.isfinite(before) and before > 0 else []
    over = mean_and_error([cell.late("sharpness/ratio", QUARTER) for cell in group])[0] if ratio else math.nan
    notes = factor + ([f"{over:.2f} x its threshold"] if math.isfinite(over) else [])
    return f"{name} {value:.3g}{spread}" + (f" ({', '.join(notes)})" if notes else "")


def _phases(group: Sequence[Run]) -> str:
    """How many of the branches ended in which phase, and after how many steps they came to the edge."""
    summaries = [cell.summary for cell in group]
    found = [summary["phase"] for summary in summaries if summary.get("phase")]
    if not found:
        return ""
    counts = {phase: found.count(phase) for phase in dict.fromkeys(found)}
    told = " and ".join(f"{phase}{f' in {n} of {len(group)}' if len(group) > 1 else ''}" for phase, n in counts.items())
    entries = [float(s["entry_step"] - c.begin) for s, c in zip(summaries, group, strict=True) if s.get("entry_step")]
    mean_entry, error = mean_and_error([entry for entry in entries if entry >= 0])
    if not math.isfinite(mean_entry):
        return told
    return f"{told} (reached after {mean_entry:.0f}{f' +- {error:.0f}' if error > 0 else ''} steps)"


def _factors(places: Sequence[BranchPoint]) -> str:
    """By what factor each change moved the sharpness, over all checkpoints that it was made at."""
    factors: dict[str, list[float]] = {}
    for place in places:
        tag = _compared(place.cells[0]) or "sharpness/lambda_max"
        for label, group in place.branches.items():
            value = mean_and_error([cell.late(tag, QUARTER) for cell in group])[0] / place.went_on(tag)
            if label != UNCHANGED and math.isfinite(value):
                factors.setdefault(label, []).append(value)
    if not factors or len(places) < 2:
        return ""
    told = [f"{label} by {_span(values)}" for label, values in factors.items()]
    return f" Against the run that went on, the sharpness is multiplied under {', '.join(told)}."


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _places(cells: Sequence[Run]) -> list[BranchPoint]:
    """The checkpoints that the cells begin from, in order of their steps, each with its cells by what was changed."""
    found: dict[tuple[str, int], dict[str, list[Run]]] = {}
    for cell in cells:
        branches = found.setdefault((str(cell.parent["folder"]), cell.begin), {})
        branches.setdefault(_label(cell.parent), []).append(cell)
    return [BranchPoint(*key, found[key]) for key in sorted(found, key=lambda key: (key[0], key[1]))]


def _label(parent: Mapping[str, Any]) -> str:
    """What was changed, less the seed and the length, by the last words of the settings."""
    changes = {name: pair for name, pair in parent["changes"].items() if name not in (SEED, "steps")}
    shown = {name: pair for name, pair in changes.items() if "." not in name or name.partition(".")[0] not in changes}
    return " and ".join(change(name, *values, short=short(name)) for name, values in shown.items()) or UNCHANGED


def _compared(cell: Run) -> str | None:
    """Which sharpness is held against the threshold."""
    quantity = cell.summary.get("quantity")
    return str(quantity) if quantity else None


def _ends(cell: Run, tags: Sequence[str]) -> dict[str, float]:
    return {tag: value for tag in tags if (value := cell.late(tag, QUARTER)) == value}


def cut(steps: Sequence[int], values: Sequence[float], low: float, high: float) -> Curve:
    """The points of a curve from step `low` to `high`.

    >>> cut([1, 2, 3], [0.1, 0.2, 0.3], 2, 3)
    ([2, 3], [0.2, 0.3])
    """
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if low <= step <= high]
    return [step for step, _ in kept], [value for _, value in kept]


def mean(curves: Sequence[Curve]) -> Curve:
    """The mean at the steps that all of them have.

    >>> mean([([1, 2], [0.0, 1.0]), ([2, 3], [3.0, 9.0])])
    ([2], [2.0])
    """
    points = [dict(zip(*curve, strict=True)) for curve in curves if curve[0]]
    steps = sorted(set.intersection(*map(set, points))) if points else []
    return steps, [sum(one[step] for one in points) / len(points) for step in steps]


def _shown(tag: str, curve: Curve) -> tuple[Sequence[float], Sequence[float]]:
    """Training curves, of every batch, as means over bins; what is measured as it is."""
    return binned(*curve) if tag.startswith("train/") else ([float(step) for step in curve[0]], curve[1])

"""Quantities against the step, a panel for each value of one setting and a line for every run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from matplotlib.axes import Axes
from pydantic import Field

from lab.compare.base import Compared, Panels, RunComparison, literal, new_figure, number, require_tags, settled
from lab.compare.findings import Paragraph, find
from lab.compare.groups import differing, grouped
from lab.compare.line_colors import LineColors, columns_of
from lab.compare.run import Run
from lab.settings import settings

QUARTER = 0.25


@settings()
class Curves(RunComparison):
    """Quantities against the step: a panel for each value of one setting, a line for every run of the grid."""

    tags: Annotated[tuple[str, ...], Field(min_length=1, description="what is drawn, each in its own line style")] = (
        "train/accuracy",
        "test/accuracy",
    )
    over: Annotated[
        str | None,
        Field(description="tag by which all are divided, e.g. sharpness/threshold (1 is the edge); null: none"),
    ] = None
    panels: Panels = None
    level: Annotated[float | None, Field(description="a horizontal line at this value; null: none")] = None
    ylabel: Annotated[str | None, Field(description="name of the vertical axis; null: the tags")] = None
    finding: Paragraph = None

    def compare(self, cells: Sequence[Run], title: str) -> Compared:
        require_tags(self.tags, cells, "compare.tags")
        require_tags([self.over] if self.over else [], cells, "compare.over")
        panels = grouped(cells, [self.panels] if self.panels else [])
        look = LineColors.of(cells, differing(cells, but=[self.panels]))
        entries = look.entries(self.tags, diverged=any(cell.diverged for cell in cells))
        width = 1.5 + 4.2 * len(panels) + (0.9 if look.scale else 0)
        figure = new_figure(width, 4.1 + columns_of(entries, width)[1], title)
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (name, members) in zip(row, panels.items(), strict=True):
            for cell in members:
                self._draw(axis, cell, look)
            if self.level is not None:
                axis.axhline(self.level, color="tab:red", ls="--", lw=1.3)
            axis.set(xlabel="step (updates)", title=literal(name) or None)
            axis.grid(alpha=0.25)
        self._limit(row[0], cells)
        row[0].set_ylabel(self.ylabel or literal(", ".join(self.tags) + (f" / {self.over}" if self.over else "")))
        look.show(figure, list(row), entries)
        values = {cell.path: {tag: self.ratio(cell, tag) for tag in self.tags} for cell in cells}
        return Compared(figure, find(self.finding, cells) or self._means(cells, values), _finite(values))

    def ratio(self, cell: Run, tag: str) -> float:
        """The mean over the last quarter, divided by that of `over`."""
        value = settled(cell, tag, QUARTER)
        return value / settled(cell, self.over, QUARTER) if self.over else value

    def points(self, cell: Run, tag: str) -> tuple[Sequence[int], Sequence[float]]:
        """The curve of a run, divided by `over` at the steps that have both."""
        steps, values = cell.series.get(tag, ([], []))
        if not self.over:
            return steps, values
        scale = dict(zip(*cell.series.get(self.over, ([], [])), strict=True))
        both = [(step, value / scale[step]) for step, value in zip(steps, values, strict=True) if scale.get(step)]
        return [step for step, _ in both], [value for _, value in both]

    def _draw(self, axis: Axes, cell: Run, look: LineColors) -> None:
        """The lines of one run; many points (a batch of every step) become means over bins. A color for every label, or,
        where there is one, for every tag; a cross at the end of a run that diverged.
        """
        for i, tag in enumerate(self.tags):
            color = look.color(cell) if len(look.labels) > 1 else f"C{i}"
            steps, values = binned(*self.points(cell, tag))
            style = look.style(cell, i, len(self.tags))
            axis.plot(steps, values, ls=style, color=color, lw=1.3, marker="." if len(steps) == 1 else "")
            if cell.diverged and steps:
                axis.plot(steps[-1:], [0.97], ls="", marker="x", color=color, transform=axis.get_xaxis_transform())

    def _limit(self, axis: Axes, cells: Sequence[Run]) -> None:
        """From zero, where nothing is below it, as far as the runs come that did not diverge. Once all are drawn: it ends
        the scaling of the axes, which are shared.
        """
        drawn = [binned(*self.points(cell, tag))[1] for cell in cells if not cell.diverged for tag in self.tags]
        values = [value for points in drawn for value in points]
        if min(values, default=0.0) >= 0:
            axis.set_ylim(bottom=0)
        if values and any(cell.diverged for cell in cells):
            low, high = min(0.0, *values), max([*values, *([self.level] if self.level is not None else [])])
            axis.set_ylim(low, high + 0.1 * (high - low or 1.0))

    def _means(self, cells: Sequence[Run], values: dict[Path, dict[str, float]]) -> str:
        settings, divided = differing(cells), f" / {self.over}" if self.over else ""
        parts = [
            f"{cell.label(settings) or cell.name}: {', '.join(number(v, [cell]) for v in values[cell.path].values())}"
            for cell in cells
        ]
        return f"Means over the last quarter of {', '.join(tag + divided for tag in self.tags)}. {'; '.join(parts)}."


def binned(steps: Sequence[int], values: Sequence[float], most: int = 80) -> tuple[list[float], list[float]]:
    """At most `most` points: means of as many neighbours as that takes.

    >>> binned([0, 1, 2, 3], [1.0, 3.0, 5.0, 7.0], most=2)
    ([0.5, 2.5], [2.0, 6.0])
    """
    size = -(-len(steps) // most) or 1
    starts = range(0, len(steps), size)

    def means(numbers: Sequence[float]) -> list[float]:
        return [sum(numbers[i : i + size]) / len(numbers[i : i + size]) for i in starts]

    return means(steps), means(values)


def _finite(values: dict[Path, dict[str, float]]) -> dict[Path, dict[str, float]]:
    return {path: {tag: v for tag, v in numbers.items() if v == v} for path, numbers in values.items()}

"""Quantities against the step, a panel for each value of one setting and a line for every run."""

from collections.abc import Sequence
from typing import Annotated

from matplotlib.axes import Axes
from pydantic import Field

from lab.compare.base import Compared, Panels, RunComparison, new_figure, number, require_tags
from lab.compare.findings import Paragraph, find
from lab.compare.groups import differing, grouped
from lab.compare.run import Run
from lab.settings import settings

STYLES = ("-", "--", ":", "-.")
QUARTER = 0.25


@settings()
class Curves(RunComparison):
    """Quantities against the step: a panel for each value of one setting, a line for every run of the grid."""

    tags: Annotated[tuple[str, ...], Field(description="what is drawn, each in its own line style")] = (
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
        figure = new_figure(1.5 + 4.2 * len(panels), 4.6, title)
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        others = differing(cells, but=[self.panels])
        labels = list(grouped(cells, others))
        for axis, (name, members) in zip(row, panels.items(), strict=True):
            for cell in members:
                self._draw(axis, cell, cell.label(others), labels)
            if self.level is not None:
                axis.axhline(self.level, color="tab:red", ls="--", lw=1.3)
            axis.set(xlabel="step (updates)", title=name or None)
            axis.grid(alpha=0.25)
        row[0].set_ylim(bottom=0)  # once all are drawn: it ends the scaling of the axes, which are shared
        row[0].set_ylabel(self.ylabel or ", ".join(self.tags) + (f" / {self.over}" if self.over else ""))
        handles = {label: line for axis in row for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=max(2, len(labels)), frameon=False, fontsize=9
        )
        values = {cell.name: {tag: self.ratio(cell, tag) for tag in self.tags} for cell in cells}
        return Compared(figure, find(self.finding, cells) or self._means(cells, values), _finite(values))

    def ratio(self, cell: Run, tag: str) -> float:
        """The mean over the last quarter, divided by that of `over`."""
        value = cell.late(tag, QUARTER)
        return value / cell.late(self.over, QUARTER) if self.over else value

    def _draw(self, axis: Axes, cell: Run, label: str, labels: list[str]) -> None:
        """The lines of one run; many points (a batch of every step) become means over bins. A color for every label, or,
        where there is one run in a panel, for every tag.
        """
        for i, tag in enumerate(self.tags):
            color = f"C{labels.index(label) if len(labels) > 1 else i}"
            style = STYLES[i % len(STYLES)] if len(labels) > 1 else "-"
            steps, values = cell.series.get(tag, ([], []))
            if self.over:
                scale = dict(zip(*cell.series.get(self.over, ([], [])), strict=True))
                values = [v / scale[s] for s, v in zip(steps, values, strict=True) if s in scale]
                steps = [s for s in steps if s in scale]
            legend = f"{label}: {tag}" if label else tag
            legend += " (diverged)" if cell.diverged else ""
            axis.plot(*binned(steps, values), ls=style, color=color, lw=1.3, label=legend)

    def _means(self, cells: Sequence[Run], values: dict[str, dict[str, float]]) -> str:
        settings, divided = differing(cells), f" / {self.over}" if self.over else ""
        parts = [
            f"{cell.label(settings) or cell.name}: {', '.join(number(v, [cell]) for v in values[cell.name].values())}"
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


def _finite(values: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {tag: v for tag, v in numbers.items() if v == v} for name, numbers in values.items()}

"""A quantity at the end of the runs against a number that was set: a line for every combination of the other settings."""

import math
from collections.abc import Sequence
from typing import Annotated

from matplotlib.axes import Axes
from pydantic import Field

from lab.compare.base import Compared, Panels, RunComparison, literal, new_figure, number, require_tags, settled
from lab.compare.findings import Paragraph, find
from lab.compare.groups import differing, grouped, mean_and_error
from lab.compare.run import Run, short
from lab.settings import SettingError, settings

MARKERS = "osD^vP"
CROSS = 0.06
"""Height of a line of crosses, as a share of the axis."""


@settings()
class FinalValues(RunComparison):
    """The last value of a quantity against a number that was set: a line for every combination of the other settings.

    The horizontal axis is logarithmic; runs that diverged are marked below.
    """

    tag: Annotated[str, Field(description="what is drawn")] = "test/accuracy"
    x: Annotated[
        str, Field(description="a setting with positive numbers; of data.batch_size, full is the number of examples")
    ] = "data.batch_size"
    panels: Panels = None
    finding: Paragraph = None

    def compare(self, cells: Sequence[Run], title: str) -> Compared:
        require_tags([self.tag], cells, "compare.tag")
        if not all(cell.number(self.x) > 0 for cell in cells):
            raise SettingError(f"compare.x={self.x} is no positive number in every run; compare=bars takes any setting")
        panels = grouped(cells, [self.panels] if self.panels else [])
        figure = new_figure(1.5 + 4.2 * len(panels), 4.6, title)
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        others = differing(cells, but=[self.x, self.panels])
        labels = list(grouped(cells, others))
        parts, lowest = [], 0
        for axis, (name, members) in zip(row, panels.items(), strict=True):
            for label, line in grouped(members, others).items():
                places = {
                    x: [c for c in line if c.number(self.x) == x] for x in sorted({c.number(self.x) for c in line})
                }
                points = {x: mean_and_error([settled(c, self.tag, 0) for c in at]) for x, at in places.items()}
                lost = [x for x, at in places.items() if all(c.diverged for c in at)]
                place = labels.index(label)
                self._draw(axis, points, lost, label, place)
                lowest = max(lowest, place + 1 if lost else 0)
                values = ", ".join(f"{number(points[x][0], at)} ({x:g})" for x, at in places.items())
                parts.append(": ".join(filter(None, (", ".join(filter(None, (name, label))), values))))
            axis.set(xlabel=literal(self.x), title=literal(name) or None, xscale="log")
            ticks = sorted({cell.number(self.x) for cell in cells})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
        low, high = row[0].get_ylim()
        row[0].set_ylim(low - lowest * CROSS / (1 - lowest * CROSS) * (high - low), high)  # room for the crosses
        row[0].set_ylabel(literal(f"{self.tag} at the end"))
        handles = {label: line for axis in row for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        if any(handles):
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        sentence = find(self.finding, cells) or f"{self.tag} at the end ({short(self.x)}). {'; '.join(parts)}."
        ends = {c.path: {self.tag: settled(c, self.tag, 0)} if not c.diverged else {} for c in cells}
        return Compared(figure, sentence, ends)

    def _draw(
        self, axis: Axes, points: dict[float, tuple[float, float]], lost: Sequence[float], label: str, place: int
    ) -> None:
        """Mean and standard error over seeds by x, and below, one line for every label, a cross where runs diverged."""
        color, marker = f"C{place}", MARKERS[place % len(MARKERS)]
        known = {x: y for x, y in points.items() if math.isfinite(y[0])}
        means, errors = [y for y, _ in known.values()], [error for _, error in known.values()]
        axis.errorbar(list(known), means, yerr=errors, color=color, marker=marker, ms=5, lw=1.3, label=literal(label))
        height, below = (place + 0.5) * CROSS, axis.get_xaxis_transform()
        if lost:
            axis.plot(lost, [height] * len(lost), ls="", marker="x", ms=7, mew=2, color=color, transform=below)
            axis.annotate(
                "diverged",
                (lost[0], height),
                xycoords=below,
                xytext=(-8, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8,
                color=color,
            )

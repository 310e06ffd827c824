"""Quantities at the end of the runs as bars: a panel for each, a bar for every setting."""

import math
from collections.abc import Sequence
from typing import Annotated

from matplotlib.axes import Axes
from pydantic import Field

from lab.compare.base import Compared, RunComparison, literal, new_figure, number, require_tags, settled
from lab.compare.findings import Paragraph, find
from lab.compare.groups import differing, grouped, mean_and_error
from lab.compare.run import Run, short
from lab.settings import settings


@settings()
class Bars(RunComparison):
    """Quantities at the end of the runs of a grid as bars; runs that differ in the seed only make one bar with its error."""

    tags: Annotated[tuple[str, ...], Field(min_length=1, description="a panel each")] = ("test/accuracy",)
    share: Annotated[
        float,
        Field(ge=0, le=1, description="of the run, at its end, that is averaged over; the last measurement at least"),
    ] = 0.25
    finding: Paragraph = None

    def compare(self, cells: Sequence[Run], title: str) -> Compared:
        require_tags(self.tags, cells, "compare.tags")
        settings = differing(cells)
        groups = grouped(cells, settings)
        labels = [label if len(settings) > 1 else label.partition("=")[2] for label in groups]
        figure = new_figure(1.5 + 3.6 * len(self.tags), 1.6 + 0.42 * len(groups), title)
        row = figure.subplots(1, len(self.tags), sharey=True, squeeze=False)[0]
        parts = []
        for axis, tag in zip(row, self.tags, strict=True):
            bars = [mean_and_error([settled(c, tag, self.share) for c in group]) for group in groups.values()]
            numbers = [number(bar[0], group) for bar, group in zip(bars, groups.values(), strict=True)]
            self._draw(axis, bars, numbers)
            axis.set_xlabel(literal(tag))
            errors = [f" +- {error:.1g}" if error > 0 else "" for _, error in bars]
            parts.append(
                f"{tag}: {', '.join(f'{n}{e} ({x})' for n, e, x in zip(numbers, errors, labels, strict=True))}"
            )
        row[0].set_yticks(range(len(groups)), [*map(literal, labels)])
        row[0].set_ylabel(literal(", ".join(map(short, settings))))
        row[0].invert_yaxis()
        sentence = f"Means over the last {100 * self.share:.0f} % of each run. {'; '.join(parts)}."
        values = {c.path: {t: v for t in self.tags if (v := settled(c, t, self.share)) == v} for c in cells}
        return Compared(figure, find(self.finding, cells) or sentence, values)

    def _draw(self, axis: Axes, bars: Sequence[tuple[float, float]], numbers: Sequence[str]) -> None:
        """A bar for every mean with its error, and its number (or why there is none) at its end."""
        heights = [mean if math.isfinite(mean) else 0.0 for mean, _ in bars]
        errors = [error if math.isfinite(error) else 0.0 for _, error in bars]
        drawn = axis.barh(range(len(bars)), heights, xerr=errors if any(errors) else None, color="C0", alpha=0.85)
        axis.bar_label(drawn, labels=numbers, padding=3, fontsize=9)
        axis.margins(x=0.25)
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)

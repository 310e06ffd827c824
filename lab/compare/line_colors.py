"""Colors of many lines, so that each can be told: a palette for a few, a color scale for the values of a number.

Up to ten kinds of runs have a color each. Of more, the numeric setting with the most values is a color scale; what else
tells the runs apart is a line style, where it has four values at most, and is said to be left open, where it has more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.compare.base import literal
from lab.compare.groups import grouped
from lab.compare.run import Run, as_typed, short

FEW = 10
"""Kinds of runs with a color of a palette each."""
STYLES = ("-", "--", ":", "-.")
DECADE = 10.0
"""A scale over so much is logarithmic."""
DARK, BRIGHT = 0.0, 0.92
"""The part of the color map that is seen on white."""
LETTER, HANDLE = 0.075, 0.55
"""Inches of a letter and of a line with its gaps in a legend."""
ROW = 0.2
"""Inches of a row of a legend."""
ENTRIES = 36
"""Entries of a legend at most."""


@dataclass(frozen=True)
class LineColors:
    """What the lines of runs look like. labels: the kinds of runs; setting: that on the color scale, "" for a palette; rest:
    the labels of what else tells runs apart; ticks: of the
    scale, where these are few.
    """

    settings: Sequence[str]
    labels: Sequence[str]
    setting: str
    rest: Sequence[str]
    scale: ScalarMappable | None
    ticks: Mapping[float, str] = field(default_factory=dict)

    @staticmethod
    def of(runs: Sequence[Run], settings: Sequence[str]) -> "LineColors":
        """For runs that these settings tell apart."""
        labels = list(grouped(runs, settings))
        values = {name: sorted({run.number(name) for run in runs}) for name in settings} if len(labels) > FEW else {}
        numeric = {name: found for name, found in values.items() if all(map(math.isfinite, found)) and len(found) > 1}
        if not numeric:
            return LineColors(settings, labels, "", (), None)
        name = max(numeric, key=lambda one: len(numeric[one]))
        rest = list(grouped(runs, [one for one in settings if one != name]))
        ticks = {run.number(name): as_typed(run.get(name)) for run in runs}
        return LineColors(settings, labels, name, rest, _scale(numeric[name]), ticks if len(ticks) <= FEW else {})

    def color(self, run: Run) -> str:
        """Of the lines of a run."""
        if self.scale is not None:
            return to_hex(self.scale.to_rgba(np.array([run.number(self.setting)]))[0])
        place = self.labels.index(run.label(self.settings))
        return f"C{place}" if len(self.labels) <= FEW else to_hex(colormaps["turbo"]((place + 0.5) / len(self.labels)))

    def style(self, run: Run, tag: int, tags: int) -> str:
        """By tag where there are several, else by what the color does not say."""
        if tags > 1:
            return STYLES[tag % len(STYLES)] if len(self.labels) > 1 else "-"
        if self.setting and 1 < len(self.rest) <= len(STYLES):
            return STYLES[self.rest.index(run.label([name for name in self.settings if name != self.setting]))]
        return "-"

    def entries(self, tags: Sequence[str], *, diverged: bool) -> list[Line2D]:
        """What a legend says: labels by color, tags by style."""
        made: list[Line2D] = []
        several = len(tags) > 1
        if self.scale is None and len(self.labels) > 1:
            places = range(len(self.labels))
            colors = [f"C{i}" if len(places) <= FEW else _turbo(i, len(places)) for i in places]
            made = [_line(label or "as set", color=c) for label, c in zip(self.labels, colors, strict=True)][:ENTRIES]
            if len(self.labels) > ENTRIES:
                made.append(_line(f"... {len(self.labels)} in all", alpha=0.0))
        elif self.scale is not None and not several and 1 < len(self.rest) <= len(STYLES):
            made = [_line(label, color="0.3", ls=STYLES[i]) for i, label in enumerate(self.rest)]
        elif self.scale is not None and len(self.rest) > 1:
            others = [short(name) for name in self.settings if name != self.setting]
            made = [_line(f"lines of one color differ in {', '.join(others)}", alpha=0.0)]
        if several:
            single = len(self.labels) < 2
            look = [{"color": f"C{i}"} if single else {"color": "0.3", "ls": STYLES[i % 4]} for i in range(len(tags))]
            made += [_line(tag, **style) for tag, style in zip(tags, look, strict=True)]
        elif not made:
            made = [_line(tag, color="C0") for tag in tags]
        return made + ([_line("diverged", color="0.3", ls="", marker="x")] if diverged else [])

    def show(self, figure: Figure, axes: Sequence[Axes], entries: Sequence[Line2D]) -> None:
        """The legend below, in as many columns as fit, and the color scale at the right."""
        if self.scale is not None:
            bar = figure.colorbar(self.scale, ax=list(axes), label=literal(self.setting), pad=0.02)
            bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            if self.ticks:
                bar.set_ticks(list(self.ticks), labels=[*map(literal, self.ticks.values())])
                bar.ax.minorticks_off()
        columns, _ = columns_of(entries, figure.get_figwidth())
        figure.legend(handles=list(entries), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def columns_of(entries: Sequence[Line2D], width: float) -> tuple[int, float]:
    """How many columns of a legend fit into `width` inches, and how high it is then (inches)."""
    longest = max((len(str(entry.get_label())) for entry in entries), default=0)
    columns = max(1, min(len(entries), int(width / (LETTER * longest + HANDLE))))
    return columns, ROW * -(-len(entries) // columns)


def _scale(values: Sequence[float]) -> ScalarMappable:
    """Colors of the values of a setting."""
    low, high = values[0], values[-1]
    norm = LogNorm(low, high) if low > 0 and high >= DECADE * low else Normalize(low, high)
    shades = colormaps["viridis"](np.linspace(DARK, BRIGHT, 256))
    return ScalarMappable(norm, ListedColormap(shades))


def _turbo(place: int, count: int) -> str:
    return to_hex(colormaps["turbo"]((place + 0.5) / count))


def _line(label: str, **style: Any) -> Line2D:
    return Line2D([], [], label=literal(label), **{"lw": 1.5} | style)

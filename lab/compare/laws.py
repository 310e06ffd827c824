"""Scaling laws over many runs: the points of all runs, the line of each group of them, and its exponent with an interval.

escape     log escape time against B/lr (Arrhenius; the slope is an action: Mori et al. 2022, arXiv 2105.09557)
sharpness  lambda_max late in the run against B, for each learning rate
accuracy   test accuracy at the end against the steps that were made
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from lab.compare.base import Compared, literal, new_figure
from lab.compare.fit import Form, LineFit, fit
from lab.compare.groups import grouped
from lab.compare.line_colors import LineColors, columns_of
from lab.compare.plane import setting_of, value_of
from lab.compare.run import Run
from lab.settings import SettingError

QUARTER = 0.25
TICKS = 9
"""Values on an axis that are its ticks."""
INVERSE = "1/"
"""Before a quantity: one over it."""


@dataclass(frozen=True)
class ScalingLaw:
    """What is held against what. x, per: settings or fields, x / per where `per` is not ""; y: tags or results, the first
    that a run has, "1/tag" for one over it; form: what is fitted; by: settings whose values have a line each.
    """

    y: Sequence[str]
    x: str
    form: Form
    name: str
    per: str = ""
    by: Sequence[str] = ()

    @property
    def across(self) -> str:
        """The name of the horizontal axis."""
        return f"{self.x} / {self.per}" if self.per else self.x

    def point(self, run: Run) -> tuple[float, float]:
        """x and y of a run that is finished; NaN for what it has not."""
        if run.status != "finished":
            return math.nan, math.nan
        x = run.number(self.x) / (run.number(self.per) or math.nan if self.per else 1.0)
        for name in self.y:
            value = value_of(run, name.removeprefix(INVERSE), QUARTER)
            if isinstance(value, int | float) and math.isfinite(value):
                return x, float(value) if not name.startswith(INVERSE) else 1 / value if value else math.nan
        return x, math.nan


LAWS: Mapping[str, ScalingLaw] = {
    "escape": ScalingLaw(
        ("escape/time", "1/escape/rate"), "data.batch_size", "exponential", "escape time (steps)", per="optimizer.lr"
    ),
    "sharpness": ScalingLaw(("sharpness/lambda_max",), "data.batch_size", "power", "lambda_max", by=("optimizer.lr",)),
    "accuracy": ScalingLaw(("test/accuracy",), "step", "logarithmic", "test accuracy"),
}
"""The laws that are fitted without being asked for."""


def fits(runs: Sequence[Run], law: ScalingLaw) -> dict[str, LineFit | str]:
    """The line of every group, by its label, or why there is none. Raises SettingError for a setting that no run has."""
    found: dict[str, LineFit | str] = {}
    for label, group in grouped(runs, [setting_of(runs, name) for name in law.by]).items():
        x, y = zip(*map(law.point, group), strict=True)
        try:
            found[label] = fit(x, y, form=law.form)
        except SettingError as error:
            found[label] = str(error)
    return found


def scaling_law(runs: Sequence[Run], law: ScalingLaw | str, title: str = "") -> Compared:
    """The points of all runs and the lines through them, on the axes that make the law straight; in words, the slopes.

    Raises SettingError for a law, or a setting, that there is not, and where no run that is finished has a point.
    """
    if isinstance(law, str):
        if law not in LAWS:
            raise SettingError(f"there is no law {law!r}; expected one of {', '.join(LAWS)}, or a ScalingLaw")
        law = LAWS[law]
    points = {run: point for run in runs if all(map(math.isfinite, point := law.point(run)))}
    if not points:
        raise SettingError(f"{law.name} against {law.across}: no finished run has both")
    runs = list(points)
    by = [setting_of(runs, name) for name in law.by]
    look, lines = LineColors.of(runs, by), fits(runs, law)
    entries = look.entries([law.name], diverged=False) if by else []
    figure = new_figure(6.6, 4.4 + columns_of(entries, 6.6)[1], title or f"{law.name} against {law.across}")
    axis = figure.subplots()
    for run, (x, y) in points.items():
        axis.plot([x], [y], ls="", marker="o", ms=5, color=look.color(run) if by else "C0")
    for label, group in grouped(runs, by).items():
        line = lines[label]
        if isinstance(line, LineFit):
            at = np.array([points[run][0] for run in group])
            at = (
                np.linspace(at.min(), at.max(), 50)
                if law.form == "exponential"
                else np.geomspace(at.min(), at.max(), 50)
            )
            axis.plot(at, line.at([*map(float, at)]), color=look.color(group[0]) if by else "0.3", lw=1.2)
    axis.set(xlabel=literal(law.across), ylabel=literal(law.name))
    axis.set_xscale("linear" if law.form == "exponential" else "log")
    axis.set_yscale("linear" if law.form == "logarithmic" else "log")
    _ticks(axis.xaxis, sorted({x for x, _ in points.values()}), log=law.form != "exponential")
    _ticks(axis.yaxis, [], log=law.form != "logarithmic")
    axis.grid(alpha=0.25)
    if entries:
        look.show(figure, [axis], entries)
    return Compared(figure, sentence(law, lines), {run.path: {law.y[0]: y} for run, (_, y) in points.items()})


def _ticks(axis: Axis, values: Sequence[float], *, log: bool) -> None:
    """Plain numbers on a log axis: the few values that there are, else 1, 2, 5 of every decade."""
    if not log:
        return
    if 0 < len(values) <= TICKS:
        axis.set_ticks(list(values))
    elif not values:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def sentence(law: ScalingLaw, lines: Mapping[str, LineFit | str]) -> str:
    """The slopes with their intervals, or why there are none."""
    told = [
        ": ".join(filter(None, (label, line.words() if isinstance(line, LineFit) else f"no line, {line}")))
        for label, line in lines.items()
    ]
    return f"{law.name} against {law.across}, {law.form} law with 95 % intervals: {'; '.join(told)}."

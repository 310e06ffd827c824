"""The phase diagram: a quantity over the plane of two settings, with lines of equal lr/B over batch size and learning rate,
as in Jastrzebski et al. 2017 (arXiv 1711.04623).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from matplotlib.figure import Figure
from pydantic import Field

from lab.compare.base import Compared, RunComparison, new_figure
from lab.compare.groups import grouped
from lab.compare.map_drawing import draw, legend, size_of
from lab.compare.plane import Plane, PlaneAxis, setting_of, value_of
from lab.compare.run import LATE, Run
from lab.settings import SettingError, settings

QUARTER = 0.25
PANELS: Mapping[str, str] = {
    "sharpness/ratio": "sharpness over its threshold",
    "batch_sharpness/ratio": "batch sharpness over its threshold",
    "train/loss": "training loss",
    "test/accuracy": "test accuracy",
    "entry_step": "step at which the edge is reached",
    "phase": "phase at the end",
}
"""What a phase diagram shows, by tag or result, and how it is called."""


@settings()
class Heatmap(RunComparison):
    """A quantity over the plane of two settings, its value in every cell; means over seeds, with n and a 95 % interval.

    Cells that diverged, failed, were interrupted, still run or are missing are marked. Axes of positive numbers are
    logarithmic; over batch size and learning rate there are lines of equal lr/B. For a text, as phase, colors are words.
    """

    tag: Annotated[str, Field(description="what is drawn: a tag, or a result such as phase or entry_step")] = (
        "sharpness/ratio"
    )
    x: Annotated[str, Field(description="the setting on the horizontal axis; a batch of full is its examples")] = (
        "data.batch_size"
    )
    y: Annotated[str, Field(description="the setting on the vertical axis")] = "optimizer.lr"
    share: Annotated[
        float,
        Field(
            ge=0, le=1, description="of a run, at its end, that a tag is averaged over; the last measurement at least"
        ),
    ] = QUARTER
    panels: Annotated[str | None, Field(description="a setting whose values get a panel each; null: one panel")] = None

    def compare(self, cells: Sequence[Run], title: str) -> Compared:
        if not cells:
            raise SettingError("there are no runs to compare")
        for name in ("x", "y", "panels"):
            if (setting := getattr(self, name)) is not None:
                require_setting(cells, setting, f"compare.{name}")
        require_any([self.tag], cells, "compare.tag")
        panels = grouped(cells, [setting_of(cells, self.panels)] if self.panels else [])
        planes = {
            name or called(self.tag): plane(group, self.tag, x=self.x, y=self.y, share=self.share, among=cells)
            for name, group in panels.items()
        }
        texts = [": ".join(filter(None, (name if self.panels else "", sentence(p)))) for name, p in planes.items()]
        tagged = any(self.tag in run.series for run in cells)
        late = f"mean over the last {100 * self.share:.0f} % of each run" if tagged and self.share else "at the end"
        values = {run.path: {self.tag: n} for run in cells if (n := _number(run, self.tag, self.share)) == n}
        return Compared(figure_of(planes, title), f"{self.tag}, {late}: {' '.join(texts)}", values)


def phase_diagrams(
    runs: Sequence[Run],
    quantities: Mapping[str, str] = PANELS,
    *,
    x: str = "data.batch_size",
    y: str = "optimizer.lr",
    share: float = QUARTER,
    title: str = "",
) -> Figure:
    """Several quantities over the plane of two settings, a panel each: {tag or result: name}. Those that no run has are left
    out. Raises SettingError where none is left, for a setting that no run has, and where runs of a cell differ in more than
    the seed.
    """
    planes = {name: plane(runs, tag, x=x, y=y, share=share) for tag, name in quantities.items()}
    require_any(quantities, runs, "quantities")
    return figure_of({name: one for name, one in planes.items() if one.known} or planes, title)


def plane(
    runs: Sequence[Run], tag: str, *, x: str, y: str, share: float = QUARTER, among: Sequence[Run] | None = None
) -> Plane:
    """The cells of two settings, named as one likes; `among`: the runs whose values of them are the axes, where more."""
    if not runs:
        raise SettingError("there are no runs to draw")
    every = runs if among is None else among
    across, up = (PlaneAxis.of(setting_of(every, name), every) for name in (x, y))
    if across.setting == up.setting:
        raise SettingError(f"x and y are both {up.setting}; a plane has two settings")
    return Plane.of(runs, tag.removeprefix(LATE), across, up, share=share)


def figure_of(planes: Mapping[str, Plane], title: str) -> Figure:
    """A panel for each plane, under its name, three in a row at most, and one legend of the marks."""
    columns = min(3, len(planes))
    rows = -(-len(planes) // columns)
    width, height = size_of(next(iter(planes.values())))
    figure = new_figure(columns * width, rows * height + 0.5, title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, one) in zip(axes, planes.items(), strict=False):
        draw(axis, one, name)
    for axis in axes[len(planes) :]:
        axis.remove()
    legend(figure, planes.values())
    return figure


def require_any(tags: Iterable[str], runs: Sequence[Run], setting: str) -> None:
    """Raise SettingError for quantities that none of the runs that are finished knows, not even as one without a value."""
    done, tags = [run for run in runs if run.status == "finished"], [tag.removeprefix(LATE) for tag in tags]
    if done and not any(tag in run.series or tag in run.results for run in done for tag in tags):
        known = sorted({name for run in done for name in run.series if not name.startswith(("error/", "cost/"))})
        raise SettingError(
            f"{setting}: no run has {', '.join(tags)}; choose of {', '.join(known)}, or a result such as phase"
        )


def require_setting(runs: Sequence[Run], name: str, knob: str) -> None:
    """Raise SettingError, which names the knob, for a setting that no run has."""
    try:
        setting_of(runs, name)
    except SettingError as error:
        raise SettingError(f"{knob}: {error}") from None


def called(tag: str) -> str:
    """What a quantity is called."""
    return PANELS.get(tag, tag)


def sentence(one: Plane) -> str:
    """Where the quantity is lowest and highest, or how often each word is there, and how many cells have none."""
    known, parts = one.known, list[str]()
    if one.words:
        parts = [f"{word} in {sum(c.word == word for c in known)} of {len(one.cells)} cells" for word in one.words]
    elif known:
        low, high = min(known, key=lambda c: c.mean.value), max(known, key=lambda c: c.mean.value)
        parts = [f"from {low.mean.value:.3g} ({one.where(low)}) to {high.mean.value:.3g} ({one.where(high)})"]
        if seeds := max(cell.mean.n for cell in known) - 1:
            parts.append(f"means over up to {seeds + 1} seeds")
    others = [cell.state for cell in one.cells if cell.state != "value"]
    parts += [f"{others.count(state)} {state}" for state in dict.fromkeys(others)]
    return f"{'; '.join(parts)}."


def _number(run: Run, tag: str, share: float) -> float:
    value = value_of(run, tag, share)
    return float(value) if isinstance(value, int | float) else float("nan")

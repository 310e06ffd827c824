"""Phase diagrams of a report: a quantity over the plane of two settings, where every cell leads to the rows of its runs.

Where only one setting varies there is no plane, and the quantities are drawn against it.
"""

from collections.abc import Iterator, Sequence

from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lab.compare.bars import Bars
from lab.compare.base import Compared
from lab.compare.ends import FinalValues
from lab.compare.groups import differing, grouped
from lab.compare.heatmap import PANELS, called, figure_of, plane, sentence
from lab.compare.plane import Plane, PlaneCell, setting_of
from lab.compare.run import LATE, Run, as_typed
from lab.report.content import Chapter, Link, Picture, run_id
from lab.report.svg import FIXED
from lab.settings import SettingError

MOST_PLANES = 4
"""Combinations of the other settings that get phase diagrams of their own."""
X, Y = "data.batch_size", "optimizer.lr"
"""The usual axes."""


def diagrams(runs: Sequence[Run], tags: Sequence[str] | None, x: str | None, y: str | None) -> Iterator[Chapter]:
    """A figure for every quantity: the usual ones, or `tags`; over `x` and `y`, or the usual axes, or what varies instead.

    Raises SettingError for an axis that no run has.
    """
    varied = differing(runs)
    across, up = axes_of(runs, x, y)
    rest = [name for name in varied if name not in (across, up)]
    groups = grouped(runs, rest)
    if across and up and len(groups) <= MOST_PLANES:
        yield _over_plane(runs, groups, tags or tuple(PANELS), across, up)
    elif across and up:
        others = f"the runs differ in {', '.join(rest)} as well"
        cure = f"choose x= and y= of {', '.join(varied)}, or fewer runs by where="
        yield Chapter(f"Phase diagrams over {across} and {up}", f"None: {others}. For diagrams {cure}.")
    elif across:
        yield _against(runs, tags or tuple(PANELS), across)


def axes_of(runs: Sequence[Run], x: str | None, y: str | None) -> tuple[str, str]:
    """The settings along both axes: those that are asked for, else batch size and rate, else what else varies; "" for none.

    Raises SettingError for one that no run has.
    """
    asked = []
    for name, value in (("x", x), ("y", y)):
        try:
            asked.append(setting_of(runs, value) if value is not None else "")
        except SettingError as error:
            raise refused(name, str(value), error) from None
    across, up = asked
    if across and across == up:
        raise SettingError(f"x={x} y={y}: expected two different settings")
    left = [name for name in (X, Y, *differing(runs)) if name in differing(runs) and name not in asked]
    across = across or next((name for name in left if name != Y), "")
    up = up or next((name for name in [Y, *left] if name in left and name != across), "")
    return across or up, up if across else ""


def refused(setting: str, value: str, error: SettingError) -> SettingError:
    """The same error with the setting that was typed, in the words of this command."""
    return SettingError(f"{setting}={value}: {str(error).replace('runs.columns', 'table.csv of a report')}")


def _over_plane(runs: Sequence[Run], groups: dict[str, list[Run]], tags: Sequence[str], x: str, y: str) -> Chapter:
    heading, pictures = f"Phase diagrams over {x} and {y}", list[Picture]()
    for label, group in groups.items():
        for tag in tags:
            try:
                one = plane(group, tag, x=x, y=y)
            except SettingError as error:
                return Chapter(heading, f"None: {error}.")
            if one.known:
                title = ": ".join(filter(None, (label, called(tag.removeprefix(LATE)))))
                pictures.append(_diagram(one, group, runs, f"diagram-{len(pictures) + 1}", title))
    return Chapter(heading, "" if pictures else "None: nothing of what they show was measured.", pictures)


def _against(runs: Sequence[Run], tags: Sequence[str], setting: str) -> Chapter:
    """Ends of the runs against one number, or as bars."""
    over, pictures = [run for run in runs if run.status in ("finished", "diverged")], list[Picture]()
    number = all(run.number(setting) > 0 for run in over)
    for tag in tags:
        if any(tag in run.series for run in over if not run.diverged):
            made: Compared = (FinalValues(tag=tag, x=setting) if number else Bars(tags=(tag,))).compare(over, "")
            pictures.append(Picture(f"end-{len(pictures) + 1}", called(tag), made.sentence, made.figure))
    return Chapter(f"At the end, against {setting}", "" if pictures else "Nothing was measured.", pictures)


def _diagram(one: Plane, group: Sequence[Run], runs: Sequence[Run], name: str, heading: str) -> Picture:
    figure, links, members = figure_of({"": one}, ""), dict[str, Link](), dict[tuple[int, int], list[int]]()
    number = {run: at for at, run in enumerate(runs)}
    for run in group:
        members.setdefault((one.x.place(run), one.y.place(run)), []).append(number[run])
    for cell, patch in zip(one.cells, figure.axes[0].patches, strict=False):
        if here := members.get((cell.x, cell.y)):
            rows = [run_id(at) for at in here]
            links[f"#{rows[0]}"] = Link(rows, _tooltip(one, cell, [runs[at] for at in here]))
            patch.set_url(f"#{rows[0]}")
    _fix(figure, one)
    return Picture(name, heading, sentence(one), figure, links)


def _tooltip(one: Plane, cell: PlaneCell, runs: Sequence[Run]) -> str:
    """A cell in words, for who points at it."""
    seeds = ", ".join(as_typed(run.get("seed")) for run in runs)
    value = cell.word or (f"{cell.mean.value:.4g}" if cell.state == "value" else cell.state)
    return f"{one.where(cell)}: {value} (seed {seeds})"


def _fix(figure: Figure, one: Plane) -> None:
    """Keep what lies on a coloured ground as it is drawn, on a light page and on a dark one."""
    axes, bars = figure.axes[0], figure.axes[1:]
    fixed = [*axes.lines, *(mesh for bar in bars for mesh in bar.collections)]
    for cell, patch, text in zip(one.cells, axes.patches, axes.texts, strict=False):
        red, green, blue = (to_hex(patch.get_facecolor())[i : i + 2] for i in (1, 3, 5))
        fixed += [patch, text] if cell.state == "value" or not red == green == blue else []
    for number, artist in enumerate(fixed):
        artist.set_gid(f"{FIXED}-{number}")

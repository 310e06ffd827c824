"""The figures of a report: phase diagrams, curves, fits and spectra, as far as the runs have what they show."""

from collections.abc import Iterator, Sequence

from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lab.compare.curves import Curves
from lab.compare.groups import differing, grouped
from lab.compare.heatmap import PANELS, called, figure_of, plane, sentence
from lab.compare.plane import Plane, PlaneCell
from lab.compare.run import Run, as_typed
from lab.report.content import Chapter, Link, Picture, run_id
from lab.report.settings import ReportSettings
from lab.report.svg import FIXED
from lab.settings import SettingError

MOST_PLANES = 4
"""Combinations of the other settings that get phase diagrams of their own."""
CURVES = ("sharpness/ratio", "train/loss")


def chapters(runs: Sequence[Run], settings: ReportSettings) -> list[Chapter]:
    """All of them, the phase diagrams first."""
    return [_diagrams(runs, settings), *_curves(runs, settings)]


def _diagrams(runs: Sequence[Run], settings: ReportSettings) -> Chapter:
    """A diagram for every quantity, and for every combination of settings off the two axes."""
    heading = f"Phase diagrams over {settings.x} and {settings.y}"
    varied = differing(runs)
    if not {settings.x, settings.y} & {*varied}:
        return Chapter(heading, f"The runs differ in neither; {_axes(varied)}")
    groups = grouped(runs, [name for name in varied if name not in (settings.x, settings.y)])
    if len(groups) > MOST_PLANES:
        others = [name for name in varied if name not in (settings.x, settings.y)]
        return Chapter(heading, f"None: the runs differ in {', '.join(others)} as well; {_axes(varied)}")
    pictures = list[Picture]()
    for label, group in groups.items():
        for tag in settings.tags or PANELS:
            try:
                one = plane(group, tag, x=settings.x, y=settings.y)
            except SettingError as error:
                return Chapter(heading, f"None: {error}.")
            if one.known:
                name = f"diagram-{len(pictures) + 1}"
                pictures.append(_diagram(one, group, runs, name, ": ".join(filter(None, (label, called(tag))))))
    return Chapter(heading, "" if pictures else "None: nothing of what they show was measured.", pictures)


def _axes(varied: Sequence[str]) -> str:
    """How others are chosen."""
    return f"choose x= and y= of {', '.join(varied)}, or fewer runs by where=." if varied else "they are all alike."


def _diagram(one: Plane, group: Sequence[Run], runs: Sequence[Run], name: str, heading: str) -> Picture:
    figure = figure_of({"": one}, "")
    members: dict[tuple[int, int], list[int]] = {}
    for number, run in enumerate(runs):
        if run in group:
            members.setdefault((one.x.place(run), one.y.place(run)), []).append(number)
    links = {}
    for number, cell in enumerate(one.cells):
        if here := members.get((cell.x, cell.y)):
            links[f"#{run_id(here[0])}"] = Link(
                [run_id(at) for at in here], _tooltip(one, cell, [runs[at] for at in here])
            )
            figure.axes[0].patches[number].set_url(f"#{run_id(here[0])}")
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


def _curves(runs: Sequence[Run], settings: ReportSettings) -> Iterator[Chapter]:
    pictures = []
    for i, tag in enumerate(settings.tags or CURVES):
        c = Curves(tags=(tag,), level=1.0 if tag == "sharpness/ratio" else None).compare(runs, tag)
        pictures.append(Picture(f"curves-{i + 1}", tag, c.sentence, c.figure))
    yield Chapter("Through training", "", pictures)

"""The figures of a report, as far as the runs have what they show: phase diagrams, curves, fits, spectra."""

import math
from collections.abc import Iterator, Sequence

from lab.compare.curves import Curves
from lab.compare.groups import differing, grouped
from lab.compare.heatmap import called
from lab.compare.laws import LAWS, scaling_law
from lab.compare.run import Run
from lab.compare.spectra import side_by_side
from lab.report.content import Chapter, Picture
from lab.report.diagrams import diagrams
from lab.report.settings import ReportSettings
from lab.settings import SettingError

CURVES = ("sharpness/ratio", "batch_sharpness/ratio", "train/loss", "test/accuracy")
"""Curves that are drawn without being asked for."""
MOST_CURVES = 30
"""Lines in a figure."""
EDGE = ("sharpness/ratio", "batch_sharpness/ratio")
"""Ratios to a threshold: the edge is 1."""


def chapters(runs: Sequence[Run], settings: ReportSettings) -> list[Chapter]:
    """All of them, the phase diagrams first. Raises SettingError for an axis that no run has."""
    found = [*diagrams(runs, settings.tags, settings.x, settings.y), *_curves(runs, settings.tags or CURVES)]
    return [*found, *_fits(runs), *_spectra(runs)]


def _curves(runs: Sequence[Run], tags: Sequence[str]) -> Iterator[Chapter]:
    """A figure for every tag; of many runs, one seed of some cells at equal distances."""
    pictures = list[Picture]()
    for tag in tags:
        with_it = [run for run in runs if tag in run.series]
        if not with_it:
            continue
        drawn = chosen(with_it)
        made = Curves(tags=(tag,), level=1.0 if tag in EDGE else None, ylabel=called(tag)).compare(drawn, "")
        axes = made.figure.axes[0]
        values = [value for run in drawn if not run.diverged for value in run.series[tag][1] if value > 0]
        if tag.endswith("loss") and values and max(values) > 10 * min(values):
            axes.set_yscale("log")
            axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
        told = "" if len(drawn) == len(with_it) else f"{len(drawn)} of {len(with_it)} runs, one seed of a cell."
        sentence = " ".join(filter(None, (told, "Dashed: 1, the edge of stability." if tag in EDGE else "")))
        pictures.append(Picture(f"curve-{len(pictures) + 1}", called(tag), sentence, made.figure))
    if pictures:
        yield Chapter("Through training", "", pictures)


def chosen(runs: Sequence[Run], most: int = MOST_CURVES) -> list[Run]:
    """All runs where these are few enough, else the first of each cell, at equal distances."""
    if len(runs) <= most:
        return [*runs]
    cells = [group[0] for group in grouped(runs, differing(runs)).values()]
    return cells[:: math.ceil(len(cells) / most)]


def _fits(runs: Sequence[Run]) -> Iterator[Chapter]:
    """The scaling laws that some runs have points of, at more than one place."""
    pictures = list[Picture]()
    for name, law in LAWS.items():
        points = {law.point(run) for run in runs}
        if len({x for x, y in points if math.isfinite(x) and math.isfinite(y)}) < 2:
            continue
        try:
            made = scaling_law(runs, law)
        except SettingError:  # a setting by which its lines are told apart is none of these runs'
            continue
        made.figure.suptitle("")
        pictures.append(Picture(f"fit-{name}", f"{law.name} against {law.across}", made.sentence, made.figure))
    if pictures:
        yield Chapter("Scaling laws", "", pictures)


def _spectra(runs: Sequence[Run]) -> Iterator[Chapter]:
    try:
        made = side_by_side([group[0] for group in grouped(runs, differing(runs)).values()])
    except SettingError:  # none was measured
        return
    made.figure.suptitle("")
    yield Chapter(
        "Spectra of the Hessian", "", [Picture("spectra", "Density through training", made.sentence, made.figure)]
    )

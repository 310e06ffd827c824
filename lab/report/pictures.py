"""The figures of a report: phase diagrams, curves, fits and spectra, as far as the runs have what they show."""

from collections.abc import Sequence

from lab.compare.curves import Curves
from lab.compare.run import Run
from lab.report.content import Chapter, Picture
from lab.report.settings import ReportSettings

CURVES = ("sharpness/ratio", "train/loss")


def chapters(runs: Sequence[Run], settings: ReportSettings) -> list[Chapter]:
    pictures = []
    for i, tag in enumerate(settings.tags or CURVES):
        c = Curves(tags=(tag,), level=1.0 if tag == "sharpness/ratio" else None).compare(runs, tag)
        pictures.append(Picture(f"curves-{i + 1}", tag, c.sentence, c.figure))
    return [Chapter("Through training", "", pictures)]

"""What a comparison of runs offers: a figure, a paragraph, and the numbers behind both."""

import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from matplotlib.figure import Figure
from pydantic import Field

from lab.compare.run import Run
from lab.run.figures import blank
from lab.settings import SettingError

Panels = Annotated[str | None, Field(description="a setting whose values get a panel each; null: one panel")]
LETTERS_PER_INCH = 11
"""Of a title in eleven points."""


@dataclass(frozen=True)
class Compared:
    """The outcome: a figure, one plain paragraph, and for every run by its folder its numbers by tag."""

    figure: Figure
    sentence: str
    values: dict[Path, dict[str, float]] = field(default_factory=dict)


class RunComparison(ABC):
    """A card of `conf/compare/`: settings that say what of the runs is shown, and how."""

    @abstractmethod
    def compare(self, cells: Sequence[Run], title: str) -> Compared:
        """The finished or diverged `cells` side by side. Raises SettingError for a tag that none of them has."""


def require_tags(tags: Sequence[str], cells: Sequence[Run], setting: str) -> None:
    """Raise SettingError for a tag of a setting without a single value in the cells that did not diverge, and for none."""
    if not cells:
        raise SettingError("there are no runs to compare")
    known = {tag for cell in cells for tag in cell.series}
    for tag in tags:
        if tag not in known and not all(cell.diverged for cell in cells):
            choice = f"choose of {', '.join(sorted(_quantities(known)))}" if known else "none has measured anything yet"
            raise SettingError(f"{setting}: no run has {tag}; {choice}")


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, in inches, under a title folded to its width."""
    lines = textwrap.wrap(title, int(LETTERS_PER_INCH * width))
    figure = blank(width, height + 0.18 * (len(lines) - 1))
    figure.suptitle("\n".join(lines), fontsize=11, parse_math=False)
    return figure


def literal(text: str) -> str:
    """A text that may hold a name of somebody's, for a figure: what stands between two dollars is no formula."""
    return text.replace("$", r"\$")


def number(value: float, cells: Sequence[Run]) -> str:
    """Three digits; of what is not there, why: the runs it is of diverged, are not over, or never measured it."""
    if value == value:
        return f"{value:.3g}"
    others = [cell.status for cell in cells if cell.status not in ("finished", "diverged")]
    return "diverged" if all(c.diverged for c in cells) else others[0] if others else "not measured"


def settled(run: Run, tag: str, share: float) -> float:
    """The mean of a tag late in a run that is finished; NaN of any other, whose end is not known."""
    return run.late(tag, share) if run.status == "finished" else math.nan


def _quantities(tags: set[str]) -> set[str]:
    return {tag for tag in tags if not tag.startswith(("error/", "cost/"))}

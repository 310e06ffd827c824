"""How the runs stand, as a short table on the terminal, the sentences of the report, and where it lies."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.compare.run import Run
from lab.compare.runs import Runs
from lab.compare.strangers import shown
from lab.report.content import Report
from lab.report.story import ENDED
from lab.report.writing import PAGE, TABLE, TEXT, near

MOST = 30
"""Rows on a terminal; runs that are not over come first where there are more."""
COLUMNS = {
    "step": "step",
    "sharpness/ratio": "lambda / threshold",
    "train/loss": "train loss",
    "test/accuracy": "test accuracy",
}
"""Numbers that the terminal shows: the last value of each."""
STYLES = {"finished": "green", "running": "blue", "diverged": "yellow", "failed": "red", "interrupted": "yellow"}
WIDE = 200
"""Letters of a line where no terminal limits it."""


def tell(runs: Runs, report: Report, folder: Path) -> None:
    """The table and the sentences; what is left out goes to stderr."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    console.print(table(runs))
    if len(runs) > MOST:
        print(f"{len(runs) - MOST} more runs are in the report.")
    print(f"\n{', '.join(f'{count} {status}' for status, count in report.statuses)}.")
    for text in report.sentences:
        print(f"  {shown(text)}")
    for path, reason in report.left_out:
        lost = near(Path(os.path.normpath(folder / path)))
        print(f"left out: {shown(str(lost))}: {shown(reason)}", file=sys.stderr)


def table(runs: Runs) -> Table:
    """A row for every run that is not over, and as many of the others as fit."""
    names = [name for name in COLUMNS if name == "step" or any(run.get(name) is not None for run in runs)]
    made = Table("run", "status", *[COLUMNS[name] for name in names], box=None)
    for run in _first(runs):
        label = run.label(runs.varying) or run.name
        cells = [Text(_number(run.number(name)), justify="right") for name in names]
        made.add_row(Text(shown(label)), Text(run.status, style=STYLES.get(run.status, "")), *cells)
    return made


def tell_files(folder: Path) -> None:
    """Where to look."""
    print()
    for what, name in (("page", PAGE), ("markdown", TEXT), ("table", TABLE)):
        print(f"  {what:<10}{shown(str(folder / name))}", flush=True)


def _first(runs: Sequence[Run]) -> list[Run]:
    if len(runs) <= MOST:
        return [*runs]
    return sorted(runs, key=lambda run: run.status in ENDED)[:MOST]


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4g}"

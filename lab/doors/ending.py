"""How a grid ended: what became of every cell, the last line, and the exit code."""

import sys
import traceback
from pathlib import Path

from lab.doors.grid import Grid
from lab.doors.request import Request
from lab.run.folder import RunFolder
from lab.run.underway import reason_of
from lab.settings import SettingError

REFUSED, FAILED = 2, 1
"""Exit codes of a grid in which a cell was refused for its settings, or failed otherwise."""
STATES = ("finished", "diverged", "unfinished", "failed", "refused")
OVER = {"finished", "diverged"}
TRACEBACK = "traceback.txt"
"""In the folder of a run of a grid: where in the code its error came from."""


class CellError(Exception):
    """What ended a cell in another process, in one line."""


def state(grid: Grid, cell: Request) -> str:
    """finished, diverged, failed, refused for its settings, or unfinished."""
    if (error := grid.failures.get(cell.folder)) is not None:
        return kind(error, cell)
    status = str(RunFolder(cell.folder).read("status").get("status"))
    return status if status in STATES else "unfinished"


def kind(error: Exception, cell: Request) -> str:
    """refused, where the settings of a cell cannot be right, else failed, as where the disk is full in the midst of it."""
    began = RunFolder(cell.folder).read("status").get("status") == "failed"
    return "refused" if isinstance(error, SettingError) and not began else "failed"


def reason(error: Exception) -> str:
    """Why a cell was not made, in one line."""
    if isinstance(error, SettingError | CellError):
        return " ".join(str(error).split())
    return reason_of(error)


def keep_traceback(error: Exception, folder: Path) -> None:
    """Leave the traceback of what ended a run in its folder, where it has one; else say it. A slip of the user has none."""
    if isinstance(error, SettingError):
        return
    text = "".join(traceback.format_exception(error))
    if (folder / "status.json").exists():
        (folder / TRACEBACK).write_text(text)
    else:
        print(text, file=sys.stderr, end="", flush=True)


def close(grid: Grid, undrawn: SettingError | None = None) -> None:
    """Say what ended the cells that are not made, and in the last line how many are; leave with an exit code where one was
    refused or has failed. undrawn: why the figure over them was refused, as their settings are.
    """
    states = [state(grid, cell) for cell in grid.asked]
    for cell, its in zip(grid.asked, states, strict=True):
        if (error := grid.failures.get(cell.folder)) is not None:
            trace = cell.folder / TRACEBACK
            where = f" ({trace})" if its == "failed" and trace.exists() else ""
            print(f"{its}: {grid.label(cell)}: {reason(error)}{where}", file=sys.stderr, flush=True)
    if undrawn is not None:
        print(f"error: {reason(undrawn)}", file=sys.stderr, flush=True)
    counts = [f"{states.count(one)} {one}" for one in STATES if one in states]
    again = "" if {*states} <= {*OVER, "refused"} else "; the same command goes on with what is not finished"
    print(f"{len(states)} cell{'s' * (len(states) != 1)}: {', '.join(counts)}{again}", flush=True)
    if "failed" in states:
        sys.exit(FAILED)
    if "refused" in states or undrawn is not None:
        sys.exit(REFUSED)

"""A grid while it is made: a table of its cells on a terminal, redrawn; elsewhere a line for every change of a cell.

It reads the folders of the runs, whoever makes them: this process, others of this machine, or jobs of a cluster.
"""

import math
import sys
from collections import Counter
from dataclasses import replace
from threading import Event, RLock, Thread
from time import monotonic
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from lab.doors.ending import kind, reason, state
from lab.doors.grid import Failure, Grid, Launch
from lab.doors.request import Request
from lab.run.progress import in_time, shown_elsewhere
from lab.run.standing import OVER, Follower, Standing
from lab.run.summary import decimals

GLANCE_SECONDS = 1.0
LINE_SECONDS = 60.0
"""Seconds between lines, where there is no terminal, that say how far the cells in hand are."""
FRAME = 6
"""Lines of a terminal that are not rows of the table."""
STYLES = {"running": "cyan", "finished": "green", "diverged": "yellow", "failed": "red", "refused": "red"}
ORDER = ("running", "failed", "refused", "diverged", "finished", "waiting")
"""Which rows come first where not all have room."""


class GridWatch:
    """Tells, while the block runs, how the cells of a grid stand."""

    def __init__(self, grid: Grid, console: Console | None = None):
        self.grid, self.console = grid, console or Console(stderr=True)
        self._followers = {cell.folder: Follower(cell.folder) for cell in grid.asked}
        self._last = {cell.folder: Standing(state(grid, cell)) for cell in grid.asked if cell.folder in grid.done}
        self._states = {cell.folder: self.standing(cell).state for cell in grid.asked}
        self._lock, self._stop, self._line_due = RLock(), Event(), monotonic() + LINE_SECONDS
        self._thread = Thread(target=self._watch, daemon=True)
        self._live = Live(
            get_renderable=self.table,
            console=self.console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> "GridWatch":
        if self.console.is_terminal:
            self._live.start()
        else:
            self.grid.tell = self.glance
            self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        if self.console.is_terminal:
            self._live.stop()
        else:
            self.grid.tell = lambda: None
            self._thread.join()
            self.glance()

    def standing(self, cell: Request) -> Standing:
        """How a cell stands: what the process knows that makes it, and what its folder says."""
        if (error := self.grid.failures.get(cell.folder)) is not None:
            return Standing(kind(error, cell), reason=reason(error))
        if (last := self._last.get(cell.folder)) is not None:
            return last
        now = self._followers[cell.folder].look()
        if cell.folder in self.grid.running:
            return replace(now, state="running")
        if now.state in OVER:
            self._last[cell.folder] = now
        return now

    def glance(self) -> None:
        """A line for every cell that has begun or ended since the last time, and now and then how far the others are."""
        with self._lock:
            now = {cell.folder: self.standing(cell) for cell in self.grid.asked}
            for cell in self.grid.asked:
                stands, before = now[cell.folder].state, self._states[cell.folder]
                if stands not in (before, "waiting"):
                    self._print(self.line(cell, now[cell.folder]))
                    self._line_due = monotonic() + LINE_SECONDS
                self._states[cell.folder] = stands
            if monotonic() >= self._line_due:
                self._print(self.summary([*now.values()]))
                self._line_due = monotonic() + LINE_SECONDS

    def line(self, cell: Request, now: Standing) -> str:
        """What has become of a cell: it has begun, or how it ended."""
        if now.state == "running":
            return f"{self.grid.number(cell)}{self.grid.time_left(', about {:.0f} s to go')}: {self.grid.label(cell)}"
        step, loss, ratio, _ = numbers(now)
        values = [f"step {step}" if step else "", f"loss {loss}" if loss else ""]
        values += [f"lambda/threshold {ratio}" if ratio else "", now.reason if now.state != "finished" else ""]
        end = f"{self.grid.number(cell)} {now.state}: {self.grid.label(cell)}"
        return ": ".join(filter(None, (end, ", ".join(filter(None, values)))))

    def summary(self, standings: list[Standing]) -> str:
        """How many cells stand how, how far those in hand are, and the time that all may still take."""
        counts = Counter(standing.state for standing in standings)
        parts = [f"{counts[one]} {one}" for one in ORDER[::-1] if counts[one]]
        steps = [numbers(one)[0] for one in standings if one.state == "running"][:4]
        at = f" (at step {', '.join(steps)})" if any(steps) else ""
        return f"{', '.join(parts)}{at}{self.grid.time_left(', about {:.0f} s to go')}"

    def table(self) -> Table:
        """The cells as rows, as many as the terminal has room for."""
        standings = [self.standing(cell) for cell in self.grid.asked]
        rows = [*zip(self.grid.asked, standings, strict=True)]
        room = max(3, self.console.height - FRAME)
        kept = sorted(range(len(rows)), key=lambda i: ORDER.index(rows[i][1].state))[:room]
        table = Table(box=None, pad_edge=False, caption=self.summary(standings), caption_justify="left")
        table.add_column("cell", overflow="ellipsis", no_wrap=True)
        for name in ("status", "step", "loss", "lambda/threshold", "time left"):
            table.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
        for cell, standing in (rows[i] for i in sorted(kept)):
            style = STYLES.get(standing.state, "dim")
            table.add_row(escape(self.grid.label(cell)), f"[{style}]{standing.state}[/]", *numbers(standing))
        return table

    def _watch(self) -> None:
        while not self._stop.wait(GLANCE_SECONDS):
            self.glance()

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def numbers(now: Standing) -> tuple[str, str, str, str]:
    """Step of how many, loss, lambda over threshold, and the time that is left, "" for what is not known."""
    step = f"{now.step}/{now.total}" if now.total else str(now.step or "")
    loss = f"{now.loss:.4g}" if math.isfinite(now.loss) else ""
    ratio = decimals(now.ratio, 3) if math.isfinite(now.ratio) else ""
    left = in_time(now.left) if math.isfinite(now.left) else ""
    return step, loss, ratio, left


def watched(launch: Launch, *, lines: bool = True) -> Launch:
    """The same launcher, while it is told how the cells stand. Where all are over there is nothing to tell, and nothing
    without a terminal where it tells of itself (`lines` False).
    """

    def made(grid: Grid, run: Any) -> list[Failure]:
        watch = GridWatch(grid)
        if not grid.left() or not (lines or watch.console.is_terminal):
            return launch(grid, run)
        with watch, shown_elsewhere():
            return launch(grid, run)

    return made

"""How far a simulation is and how long it may still take: a bar on a terminal, lines elsewhere, both on stderr."""

from collections.abc import Mapping
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from lab.progress import Tick
from lab.run.progress import is_shown_elsewhere

LINE_SECONDS = 5.0
"""Seconds between lines when the output is not a terminal."""
SURE_SECONDS = 1.0
"""Seconds of pace before a time is told."""


class StageProgress:
    """While the block runs, tells the part in hand, the share that is done and the time that is left.

    stages: the parts in order, each with a guess of its seconds; only their ratios matter once something is done.
    """

    def __init__(self, what: str, stages: Mapping[str, float], *, bar: bool = True, console: Console | None = None):
        self.what, self.stages = what, dict(stages)
        self.console = console or Console(stderr=True)
        self.on_terminal = bar and self.console.is_terminal and not is_shown_elsewhere()
        columns = (BarColumn(bar_width=16), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Bar(
            *columns, TextColumn("{task.fields[left]}  {task.description}"), console=self.console, transient=True
        )
        self._task = self._bar.add_task(what, total=1.0, left="")
        self._begin = self._line_due = monotonic()
        self._name, self._share = what, 0.0

    def __enter__(self) -> "StageProgress":
        self._begin = monotonic()
        self._line_due = self._begin + LINE_SECONDS
        if self.on_terminal:
            self._bar.start()
        else:
            self._print(f"simulating {self.what}: {', '.join(self.stages)}")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.on_terminal:
            self._bar.stop()

    def stage(self, name: str) -> Tick:
        """Begin the part `name`; the answer is to be called with the share of it that is done."""
        names, weights = list(self.stages), list(self.stages.values())
        before, weight = sum(weights[: names.index(name)]), self.stages[name]
        self._name = name

        def tick(share: float) -> None:
            self._share = (before + weight * min(1.0, share)) / sum(weights)
            self._show()

        tick(0.0)
        return tick

    def left(self) -> str:
        """The time that is left, by the pace so far; nothing before there is a pace."""
        spent = monotonic() - self._begin
        if spent < SURE_SECONDS or self._share <= 0:
            return ""
        return f"{max(1.0, spent * (1 / self._share - 1)):.0f} s to go"

    def text(self) -> str:
        """The line for where there is no terminal."""
        left = self.left()
        return f"{self.what}: {100 * self._share:.0f} %{', ' if left else ''}{left}: {self._name}"

    def _show(self) -> None:
        if self.on_terminal:
            self._bar.update(self._task, completed=self._share, description=self._name, left=self.left())
        elif monotonic() >= self._line_due:
            self._print(self.text())
            self._line_due = monotonic() + LINE_SECONDS

    def _print(self, text: str) -> None:
        if not is_shown_elsewhere():
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

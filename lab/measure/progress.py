"""How far a measurement is and how long it may still take: a bar on a terminal, lines elsewhere, both on stderr."""

from collections.abc import Callable
from threading import Event, Thread
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 10.0
"""Seconds between lines when the output is not a terminal."""
GLANCE_SECONDS = 0.2


class MatvecProgress:
    """While the block runs, tells how many of about `expected` Hessian products are done, and the time that is left.

    expected  0: nobody knows; then it tells the time spent.
    products  how many are done; asked from a thread of its own.
    seconds   what the whole may take, as long as no product has told better.
    """

    def __init__(
        self,
        what: str,
        expected: int,
        seconds: float,
        products: Callable[[], int],
        *,
        console: Console | None = None,
    ):
        self.what, self.expected, self.seconds, self.products = what, expected, seconds, products
        self.console = console or Console(stderr=True)
        # The name comes last: it is long, and a narrow terminal cuts it.
        columns = BarColumn(bar_width=10), TimeElapsedColumn(), TextColumn("{task.fields[pace]}  {task.description}")
        self._bar = Bar(*columns, console=self.console, transient=True)
        self._task: TaskID | None = None
        self._stop, self._thread = Event(), Thread(target=self._watch, daemon=True)
        self._begin = monotonic()

    def __enter__(self) -> "MatvecProgress":
        self._begin = monotonic()
        if self.console.is_terminal:
            self._task = self._bar.add_task(escape(self.what), total=self._total(), pace=self.pace())
            self._bar.start()
        else:
            self._print(f"measuring {self.text() if self.expected else self.what}")
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._task is not None:
            self._bar.stop()

    def text(self) -> str:
        """What is measured, and how far it is."""
        return f"{self.what}: {self.pace()}"

    def pace(self) -> str:
        """How far it is, and the time left by the pace so far."""
        done, spent = self.products(), monotonic() - self._begin
        if not self.expected:
            return f"{f'{done} products, ' if done else ''}{_time(spent)} so far"
        if not done:
            return f"about {_time(self.seconds)}"
        total = max(self.expected, done + 1)
        return f"{done} of about {total} products, {_time(spent / done * (total - done))} to go"

    def _total(self) -> int | None:
        """What the bar is drawn against; None: a bar that only moves."""
        return max(self.expected, self.products() + 1) if self.expected else None

    def _watch(self) -> None:
        line_due = self._begin + LINE_SECONDS
        while not self._stop.wait(GLANCE_SECONDS):
            if self._task is not None:
                self._bar.update(self._task, completed=self.products(), total=self._total(), pace=self.pace())
            elif monotonic() >= line_due:
                self._print(self.text())
                line_due = monotonic() + LINE_SECONDS

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def _time(seconds: float) -> str:
    """A time to wait, in the unit a person would take.

    >>> _time(0.2), _time(42), _time(600), _time(7200)
    ('1 s', '42 s', '10 min', '2.0 h')
    """
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

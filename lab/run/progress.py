"""How far a measurement is and how long it may still take: a bar on a terminal, lines elsewhere, both on stderr.

A run has one live bar, that of its training: what is measured meanwhile is told in its text (`into`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
PATIENCE = 2.0
"""Seconds (s) after which work that is a part of something else is told of."""


class _Shown:
    """Whether somebody else shows how far the runs of this process are."""

    elsewhere = False


@contextmanager
def shown_elsewhere() -> Iterator[None]:
    """In the block neither bars nor lines say how far a run is: the table of a grid does."""
    before, _Shown.elsewhere = _Shown.elsewhere, True
    try:
        yield
    finally:
        _Shown.elsewhere = before


def is_shown_elsewhere() -> bool:
    """Whether to say nothing of how far a run is."""
    return _Shown.elsewhere


class MatvecProgress:
    """While the block runs, tells how many of about `expected` Hessian products are done, and the time that is left.

    expected  0: nobody knows; then it tells the time spent.
    products  how many are done; asked from a thread of its own.
    seconds   what the whole may take, as long as no product has told better.
    verb      what is done to `what`, in lines.
    patience  seconds (s) until anything is told.
    into      where the text goes, in the place of a bar of its own; "" when the block ends. None: a bar, or lines.
    lines     lines also on a terminal.
    """

    def __init__(
        self,
        what: str,
        expected: int = 0,
        seconds: float = 0.0,
        products: Callable[[], int] = lambda: 0,
        *,
        verb: str = "measuring",
        patience: float = 0.0,
        into: Callable[[str], object] | None = None,
        lines: bool = False,
        console: Console | None = None,
    ):
        self.what, self.expected, self.seconds, self.products = what, expected, seconds, products
        self.verb, self.patience, self.into, self.lines = verb, patience, into, lines
        self.console = console or Console(stderr=True)
        # The name comes last: it is long, and a narrow terminal cuts it.
        columns = BarColumn(bar_width=10), TimeElapsedColumn(), TextColumn("{task.fields[pace]}  {task.description}")
        self._bar = Bar(*columns, console=self.console, transient=True)
        self._task: TaskID | None = None
        self._stop, self._thread = Event(), Thread(target=self._watch, daemon=True)
        self._begin = self._line_due = monotonic()
        self._told = False

    def __enter__(self) -> "MatvecProgress":
        self._begin = monotonic()
        if self.patience <= 0:
            self.glance()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._task is not None:
            self._bar.stop()
        if self._told and self.into is not None:
            self.into("")

    def glance(self) -> None:
        """Tell how it stands, where it is time to."""
        now = monotonic()
        if now - self._begin < self.patience or is_shown_elsewhere():
            return
        first, self._told = not self._told, True
        if self.into is not None:
            self.into(self.text())
        elif self.console.is_terminal and not self.lines:
            if first:
                self._task = self._bar.add_task(escape(self.what), total=self._total(), pace=self.pace())
                self._bar.start()
            elif self._task is not None:
                self._bar.update(self._task, completed=self.products(), total=self._total(), pace=self.pace())
        elif first or now >= self._line_due:
            self._print(f"{self.verb} {self.text() if self.expected else self.what}" if first else self.text())
            self._line_due = now + LINE_SECONDS

    def text(self) -> str:
        """What is measured, and how far it is."""
        return f"{self.what}: {self.pace()}"

    def pace(self) -> str:
        """How far it is, and the time left by the pace so far."""
        done, spent = self.products(), monotonic() - self._begin
        if not self.expected:
            of = f" of about {in_time(self.seconds)}" if self.seconds > spent else " so far"
            return f"{f'{done} products, ' if done else ''}{in_time(spent)}{of}"
        if not done:
            return f"about {in_time(self.seconds)}"
        total = max(self.expected, done + 1)
        return f"{done} of about {total} products, {in_time(spent / done * (total - done))} to go"

    def _total(self) -> int | None:
        """What the bar is drawn against; None: a bar that only moves."""
        return max(self.expected, self.products() + 1) if self.expected else None

    def _watch(self) -> None:
        while not self._stop.wait(GLANCE_SECONDS):
            self.glance()

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def waiting(what: str, verb: str, *, console: Console | None = None) -> MatvecProgress:
    """Tells of work of unknown length once it has taken `PATIENCE`: "loading the images"."""
    return MatvecProgress(what, verb=verb, patience=PATIENCE, console=console)


def in_time(seconds: float) -> str:
    """A time to wait, in the unit a person would take.

    >>> in_time(0.2), in_time(42), in_time(600), in_time(7200)
    ('1 s', '42 s', '10 min', '2.0 h')
    """
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

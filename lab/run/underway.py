"""Runs that are under way in this process with no door around them: what becomes of them where the process ends first.

A plain loop may forget to close its run, raise, or be stopped by Ctrl-C or SIGTERM. Whoever has a run open enlists it here,
and dismisses it when it is over; a process that was forked off, as a worker that loads data is, ends no run.
"""

import atexit
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Protocol


class Underway(Protocol):
    """A run that is under way."""

    def stopped(self, reason: str) -> None:
        """Note at once why it ends, and nothing else: SIGTERM leaves no time."""

    def left(self, reason: str) -> None:
        """Nobody has closed it: end it, because of `reason`, "" where nothing is known to have gone wrong."""


class _Open:
    """The runs of this process by folder, and the error that Python had reported before the first of them."""

    runs: dict[Path, Underway] = {}
    error_before: Any = None
    pid = 0


def enlist(folder: Path, run: Underway) -> None:
    """`run` is under way in `folder`. One of this process that was left open there is ended first: a cell of a notebook is
    run again, and the run it had begun is over.
    """
    path = folder.absolute()
    if (older := _Open.runs.get(path)) is not None and older is not run:
        older.left("begun anew")
    if not _Open.runs:
        _Open.error_before, _Open.pid = _uncaught(), os.getpid()
        _listen()
    _Open.runs[path] = run


def dismiss(folder: Path) -> None:
    """The run in `folder` is over."""
    _Open.runs.pop(folder.absolute(), None)
    if not _Open.runs and _in_main_thread() and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def reason_of(error: BaseException) -> str:
    """What `status.json` says of a run that an exception ended."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return "interrupted"
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _listen() -> None:
    """SIGTERM is heard only where it would end the process: a handler of somebody's own stays."""
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, frame: Any) -> None:
    """Note it, and end as SIGTERM does."""
    if os.getpid() == _Open.pid:
        for run in [*_Open.runs.values()]:
            run.stopped("interrupted")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


@atexit.register
def _at_exit() -> None:
    """Close what was left open."""
    if os.getpid() != _Open.pid:
        return
    error = _uncaught()
    reason = "" if error is None or error is _Open.error_before else reason_of(error)
    for run in [*_Open.runs.values()]:
        run.left(reason)


def _uncaught() -> Any:
    """The last exception that ended the program or a cell of a notebook."""
    return getattr(sys, "last_value", None)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()

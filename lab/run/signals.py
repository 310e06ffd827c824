"""SIGTERM, as preemption sends it: where it ends a process at once, and where it waits for a whole state.

A run is stopped between two updates, where its state can be saved, and in the midst of what changes nothing: a
measurement, an evaluation. Outside of runs SIGTERM closes what is open, as Ctrl-C does. SIGUSR1 and SIGUSR2, by which
Slurm warns of a time limit, do the same.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks a process to stop; below, SIGTERM stands for all of them."""
TERMINATED = 128 + signal.SIGTERM
"""The exit code of a process that one of them ended."""


class _Run:
    """Whether a run is under way in this process, and whether SIGTERM has come meanwhile."""

    under_way = False
    asked = False


def asked() -> bool:
    """Whether SIGTERM has come since the run began: it stops before its next update."""
    return _Run.asked


def leave() -> NoReturn:
    """End the process as SIGTERM does, after whatever is open has been closed."""
    raise SystemExit(TERMINATED)


@contextmanager
def noted() -> Iterator[None]:
    """Around a run: SIGTERM is noted, and what happens then is up to whoever looks at `asked`."""

    def note() -> None:
        _Run.asked = True

    _Run.under_way, _Run.asked = True, False
    try:
        with _on_sigterm(note):
            yield
    finally:
        _Run.under_way = _Run.asked = False


@contextmanager
def ended() -> Iterator[None]:
    """SIGTERM ends the block at once, between two operations of Python, with SystemExit."""
    with _on_sigterm(leave):
        yield


@contextmanager
def cut_off() -> Iterator[None]:
    """Around what changes nothing: as `ended` within a run that has `noted`, of no effect elsewhere."""
    if not _Run.under_way:
        yield
        return
    with ended():
        if asked():  # before the handler was there
            leave()
        yield


@contextmanager
def _on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Do `act` on SIGTERM within the block. Only a main thread can handle signals; elsewhere all stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: act()) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

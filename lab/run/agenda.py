"""What is due at which step: the one place that knows, so that the steps in between can run as one chunk.

Events (probe, evaluation, checkpoint) happen BEFORE the update of their step. A chunk [begin, end) is a run of updates
with events at `begin` only; chunks are also cut so that a progress bar moves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

MAX_CHUNK = 50
"""Updates per chunk at most."""


class Steps(NamedTuple):
    """The updates begin, ..., end - 1. A tuple: Lightning takes batches apart, and stumbles over frozen dataclasses."""

    begin: int
    end: int


@dataclass(frozen=True)
class Agenda:
    """The updates begin..total - 1 of a run. `events` say whether something is due before a step; `log_every` is the
    rhythm of the training curves (None: none), which needs no event."""

    begin: int
    total: int
    events: tuple[Callable[[int], bool], ...] = ()
    log_every: int | None = 1

    def __iter__(self) -> Iterator[Steps]:
        begin = self.begin
        while begin < self.total:
            end = begin + 1
            while end < self.total and end - begin < MAX_CHUNK and not any(due(end) for due in self.events):
                end += 1
            yield Steps(begin, end)
            begin = end

    def logs(self, step: int) -> bool:
        """Whether the training curves get a point at `step`."""
        return self.log_every is not None and step % self.log_every == 0


def every(period: int | None, *, first: int = 0) -> Callable[[int], bool]:
    """The rhythm first <= step = 0 mod period; never where `period` is None."""
    return lambda step: period is not None and step >= first and step % period == 0

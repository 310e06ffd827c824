"""What a command says of the jobs of its grid, on stderr."""

import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lab.doors.grid import Grid
from lab.doors.slurm.queue import JobState
from lab.doors.slurm.record import JobRecord
from lab.doors.slurm.watch import WatchedCell

USUAL = ("", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Cleaning")
"""Why jobs wait that need nobody's attention."""
LASTING = 60.0
"""Seconds after which any other reason is told."""


def say(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)


def number(cells: int) -> str:
    """So many cells.

    >>> number(1), number(2)
    ('1 cell', '2 cells')
    """
    return f"{cells} cell{'s' * (cells != 1)}"


def ids(cells: Iterable[WatchedCell]) -> list[str]:
    """The jobs and arrays that the cells are in, each once."""
    return list(dict.fromkeys(watched.job.partition("_")[0] for watched in cells))


def announce(
    grid: Grid, found: Sequence[WatchedCell], new: Sequence[WatchedCell], refused: int, record: JobRecord
) -> None:
    """How many cells there are, what was found and submitted, and what to type."""
    done = len(grid.cells) - len(found) - len(new) - refused
    counts = [f"{done} finished"] * (done > 0) + [f"{len(found)} still with Slurm"] * bool(found)
    if new:
        arrays = ids(new)
        counts.append(f"{len(new)} submitted to Slurm as job{'s' * (len(arrays) > 1)} {', '.join(arrays)}")
    say(f"{number(len(grid.cells))}: {', '.join(counts)}")
    if found or new:
        say(f"  what the jobs print   {record.log('JOB')}")
        say(f"  to end them           scancel {' '.join(ids([*found, *new]))}")


def report(grid: Grid, waiting: Sequence[WatchedCell], standing: Mapping[str, JobState]) -> None:
    """How the jobs stand, by a command that does not wait for them."""
    counts = Counter(standing[watched.job].runs for watched in waiting if watched.job in standing)
    if counts:
        say(f"  now                   {counts[True]} run, {counts[False]} wait in the queue")
    if waiting:
        say(f"  how they stand        the same command again, python -m lab.report {grid.folder}, or squeue --me")


class Reasons:
    """Why jobs wait, told where it may be that they wait in vain."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def look(self, states: Iterable[JobState]) -> None:
        """Say the reasons that have been there for `LASTING`, each once."""
        now = time.monotonic()
        here = {s.reason for s in states if not (s.over or s.runs) and s.reason not in USUAL}
        self._since = {reason: self._since.get(reason, now) for reason in here}
        for reason, since in self._since.items():
            if since + LASTING < now:
                say(f"{time.strftime('%H:%M:%S')}  jobs still wait: {reason}; see squeue --me")
                self._since[reason] = math.inf


def leaving(waiting: Sequence[WatchedCell]) -> str:
    """The last line of a command that is stopped while jobs are left."""
    jobs = f"{len(waiting)} jobs go on" if len(waiting) > 1 else "a job goes on"
    return f"interrupted; {jobs}, and the same command finds what is left; scancel {' '.join(ids(waiting))} ends it"

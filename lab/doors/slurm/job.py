"""What a job of Slurm does: one cell, as it would be made in a grid on this machine.

The exit code says what the script around it (`lab.doors.slurm.batch`) has to do: after `signals.TERMINATED` the state of the
run is saved, and the job is queued again where Slurm has not ended it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from lab.doors.request import Request
from lab.run import signals
from lab.run.folder import RunFolder
from lab.settings import SettingError

REFUSED = 2
"""The exit code of a run that would be refused again."""


@dataclass(frozen=True)
class CellJob:
    """A cell and the function that makes it. It is sent as the name of that function and plain values.

    seconds  the time that a job has until Slurm warns it, at least: warnings may come up to a minute too soon.
    """

    run: Callable[[Request], Any]
    cell: Request
    seconds: float

    def __call__(self) -> None:
        """Make the run. Ends the process with `REFUSED` for what a user has to mend, told in one line, and with
        `signals.TERMINATED` where it was asked to stop.
        """
        begin, before = monotonic(), saved_step(self.cell)
        with signals.ended():
            try:
                self.run(self.cell)
            except SettingError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                sys.exit(REFUSED)
            except SystemExit as stop:
                if stop.code == signals.TERMINATED and monotonic() - begin >= self.seconds:
                    self._require_progress(before)
                raise

    def _require_progress(self, before: int) -> None:
        """Queued again without a step more, the run would never end."""
        if saved_step(self.cell) <= before:
            print("error: the time limit is too short for a single step; give the jobs more time", file=sys.stderr)
            sys.exit(REFUSED)


def saved_step(cell: Request) -> int:
    """The step that the run would go on from; 0 where none is saved."""
    try:
        return int(RunFolder(cell.folder).read("status").get("step", 0))
    except SettingError:
        return 0

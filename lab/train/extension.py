"""A run that is made longer by its own command: which there are, and where the longer run would have been another one.

Updates, batches and measurements are functions of the step, so a finished run goes on from its last checkpoint as if it had
never ended. What looks at the end does not: a schedule whose rates depend on the total.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lab.run.folder import RunFolder
from lab.run.length import Lengthening, growth
from lab.settings import SettingError

if TYPE_CHECKING:
    from lab.doors.parts import Settings


def lengthened(folder: RunFolder, plain: Mapping[str, Any]) -> Lengthening | None:
    """How much longer the run of the folder is to be made; None where it is not, or where it has diverged: updates
    after that there are none.
    """
    return growth(folder, plain) if folder.read("status").get("status") != "diverged" else None


def tell_diverged(folder: RunFolder, plain: Mapping[str, Any]) -> None:
    """A line on stderr where more steps are asked for of a run that diverged."""
    status = folder.read("status")
    if status.get("status") == "diverged" and growth(folder, plain) is not None:
        print(
            f"{folder.path} diverged at step {status['step']}: there is nothing to lengthen",
            file=sys.stderr,
        )


def require_extendable(folder: RunFolder, settings: "Settings", plain: Mapping[str, Any]) -> None:
    """Raise SettingError, one line, where the steps made so far would have been others in the longer run."""
    grown, done = lengthened(folder, plain), folder.read("status").get("step", 0)
    if grown is None:
        return
    factor, card = settings.schedule.factor, type(settings.schedule).__name__.lower()
    if all(factor(step, grown.before) == factor(step, grown.now) for step in range(done)):
        return
    last = done - 1
    rates = [factor(last, total) for total in grown]
    raise SettingError(
        f"{folder.path} cannot be lengthened from {grown.before} to {grown.now} updates: schedule={card} looks at the end, "
        f"and its factor of step {last} would have been {rates[1]:.3g}, not {rates[0]:.3g}; from={folder.path} "
        f"steps={grown.now} begins a new run at its end, or choose another hydra.run.dir for a whole one"
    )

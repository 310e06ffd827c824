"""A run that is made longer by its own command: which there are, and where the longer run would have been another one.

Updates, batches and measurements are functions of the step, so a finished run goes on from its last checkpoint as if it had
never ended. What looks at the end does not: a schedule whose rates depend on the total, and a budget of measurements, which
is spread over the whole run.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lab.run.folder import RunFolder, saved_step
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
    grown, done = lengthened(folder, plain), saved_step(folder)
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


def tell_budget(folder: RunFolder, settings: "Settings", plain: Mapping[str, Any]) -> None:
    """A line on stderr where the measurements made so far are those of a shorter run, whose budget was spread over it."""
    grown = lengthened(folder, plain)
    if grown is None or settings.budget is None:
        return
    account = folder.read("summary").get("budget")
    if account is None:  # killed: nobody has said yet
        what = "may not all be"
    elif bound(account["decisions"], {probe.name: probe.rhythm for probe in settings.probes}):
        what = "are not all"
    elif account["spent"] * grown.now > settings.budget.allowed(_step(account, grown.before), grown.now) * grown.before:
        what = "may not all be"  # the longer run would have begun to save at its first step
    else:
        return
    print(
        f"{folder.path}: weights go on bit for bit; measurements so far were made by a budget for {grown.before} steps, and "
        f"{what} those of a run of {grown.now} steps",
        file=sys.stderr,
    )


def bound(decisions: Iterable[str], rhythms: Mapping[str, int]) -> bool:
    """Whether a budget has changed anything, by its decisions in summary.json: a rhythm more seldom than that of the card
    (`rhythms`), or a part of the probe set.
    """
    usual = {f"step 0 on {name} every {rhythm} steps" for name, rhythm in rhythms.items()}
    return any(re.sub(r"^step \d+", "step 0", line) not in usual for line in decisions)


def _step(account: Mapping[str, Any], steps: int) -> float:
    """Seconds of a training step; 0 where the budget counts products."""
    return (account["training_seconds"] or 0.0) / steps

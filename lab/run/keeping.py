"""Checkpoints that stay, beside the newest two: those of chosen steps, and the best so far.

    step_0000100.ckpt   the state before update 100, for trainer.keep=[100] or every:50
    best.ckpt           the state of the evaluation with the lowest test loss (without a test set: training loss); best.json
                        says which step, quantity and value

What the end of a run adds to the evaluations at their rhythm, a longer run would not have: where it is the best, the one
before stays as previous_best.ckpt, and is put back when the run is made longer.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from lab.run import checkpoints
from lab.run.checkpoints import State
from lab.run.folder import RunFolder
from lab.settings import SettingError

EXPECTED = "expected steps, e.g. [100,500], every:200, best, or a list of these"


def _words(value: Any) -> Any:
    """Refuse what names no checkpoints."""
    for word in value if isinstance(value, list | tuple) else [] if value is None else [value]:
        step = isinstance(word, int) and not isinstance(word, bool) and word >= 0
        if not step and not (isinstance(word, str) and re.fullmatch(r"best|every:0*[1-9]\d*", word)):
            raise ValueError(EXPECTED)
    return value


Keep = Annotated[
    int | str | tuple[int | str, ...] | None,
    BeforeValidator(_words),
    Field(
        description="checkpoints that stay: [100,500] (before these updates) | every:200 | best (lowest test loss, without "
        "a test set training loss, at an evaluation) | a list of these; null: the newest two"
    ),
]
"""The setting `trainer.keep`."""


@dataclass(frozen=True)
class Kept:
    """Which states stay.

    >>> kept = Kept.of([3, "every:4"])
    >>> [step for step in range(10) if kept.due(step)], kept.best
    ([3, 4, 8], False)
    """

    steps: frozenset[int]
    periods: tuple[int, ...]
    best: bool

    @staticmethod
    def of(value: Any) -> "Kept":
        """As it is set."""
        words = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
        periods = tuple(int(word.partition(":")[2]) for word in words if isinstance(word, str) and word != "best")
        return Kept(frozenset(word for word in words if isinstance(word, int)), periods, "best" in words)

    def due(self, step: int) -> bool:
        """Whether the state before update `step` stays."""
        return step in self.steps or any(step > 0 and step % period == 0 for period in self.periods)

    def require_within(self, total: int, *, begin: int = 0) -> None:
        """Raise SettingError for a step that a run from update `begin` to `total` does not come to."""
        if before := [step for step in sorted(self.steps) if step < begin]:
            raise SettingError(f"trainer.keep names step {before[0]}, and the run begins at step {begin}; leave it out")
        if beyond := [step for step in sorted(self.steps) if step > total]:
            raise SettingError(f"trainer.keep names step {beyond[0]}, and the run ends at step {total}; leave it out")


class Keeper:
    """Writes the checkpoints of a run that stay. `record` says what the best is; a checkpoint of the run holds it."""

    def __init__(self, folder: RunFolder, kept: Kept):
        self.folder, self.kept = folder, kept
        self.record: dict[str, Any] = {}

    def keep(self, state: State) -> None:
        """The state of its step."""
        checkpoints.save(self.folder.checkpoints / f"step_{state['step']:07d}.ckpt", state)

    def offer(self, quantity: str, value: float, state: Callable[[], State], *, regular: bool) -> None:
        """An evaluation, which is kept where its value is the lowest so far; regular: one of the rhythm of the run."""
        if not math.isfinite(value) or value >= self.record.get("value", math.inf):
            return
        best, made = self.folder.checkpoints / "best.ckpt", state()
        record = {"step": made["step"], "quantity": quantity, "value": value}
        if not regular and best.exists():
            best.replace(best.with_name("previous_best.ckpt"))
        checkpoints.save(best, made | {"best": record})
        self.folder.write("checkpoints/best", record)
        self.record = record

    def recall(self, record: Mapping[str, Any]) -> None:
        """Take up the best as a checkpoint knows it; one that only the end of the run has found goes."""
        self.record = dict(record)
        before = self.folder.checkpoints / "previous_best.ckpt"
        if record and before.exists():
            if checkpoints.load(before)["step"] == record["step"]:
                before.replace(before.with_name("best.ckpt"))
                self.folder.write("checkpoints/best", record)
            else:
                before.unlink()


def finding(folder: RunFolder) -> list[str]:
    """Which state was the best, in a sentence, where the best is kept."""
    record = folder.read("checkpoints/best")
    if not record:
        return []
    return [f"best.ckpt is step {record['step']}, whose {record['quantity']} was the lowest, {record['value']:.4g}."]

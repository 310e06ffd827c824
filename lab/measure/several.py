"""Several checkpoints, one after the other: what was measured before is taken as it is, a bad one stops no other."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from lab.doors.errors import OF_HYDRA, explain
from lab.measure.training import refusal
from lab.run.folder import RunFolder
from lab.run.identity import PLACE, differences
from lab.settings import SettingError

if TYPE_CHECKING:
    from lab.measure.carry import CheckpointResult

MACHINE = (*PLACE, "trainer.accelerator")
"""Settings in which a measurement may differ from the one before and be the same."""
NAMED = 3
"""Run folders without a checkpoint that are named."""


class Several:
    """The measurements of `files` by `measure`, which is handed what says that it begins, and returns the result and whether
    it was there already.
    """

    def __init__(
        self, files: Sequence[Path], measure: Callable[[Path, Callable[[], None]], "tuple[CheckpointResult, bool]"]
    ):
        self.files, self.measure = files, measure
        self.done: list[tuple[Path, CheckpointResult]] = []
        self.before, self.slips, self._seconds = 0, dict[str, Path](), list[float]()

    def carry_out(self) -> None:
        """All of them. What is wrong with all alike, as a setting that was typed, is told once."""
        for number, file in enumerate(self.files, 1):
            begin, line = monotonic(), f"checkpoint {number} of {len(self.files)}{self._left(number)}: {file}"
            try:
                result, again = self.measure(file, partial(print, line, file=sys.stderr, flush=True))
            except SettingError as error:
                self._slip(str(error), file)
            except OF_HYDRA as error:
                self._slip(explain(error, "measure", refusal, sys.argv[1:]), file)
            except Exception as error:  # of a file that anybody may have made
                self._slip(f"{file}: {type(error).__name__}: {' '.join(str(error).split())}", file)
            else:
                self.done.append((file, result))
                self.before += again
                if not again:
                    self._seconds.append(monotonic() - begin)

    def _left(self, number: int) -> str:
        """How long the rest will take, judged by those measured; nothing is known before the first."""
        if not self._seconds:
            return ""
        left = (len(self.files) - number + 1) * math.fsum(self._seconds) / len(self._seconds)
        return f", about {left:.0f} s to go" if left < 120 else f", about {left / 60:.0f} min to go"

    def _slip(self, text: str, file: Path) -> None:
        if text not in self.slips:
            print(f"error: {text}", file=sys.stderr, flush=True)
            self.slips[text] = file

    @property
    def sentence(self) -> str:
        """How many were measured."""
        before = f", {self.before} of them before" if self.before else ""
        return f"{len(self.done)} of {len(self.files)} checkpoints measured{before}."


def without_checkpoint(runs: Sequence[Path]) -> str:
    """A line about run folders that hold no checkpoint yet; "" for none."""
    if not runs:
        return ""
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    return f"without a checkpoint, left out: {', '.join(map(str, runs[:NAMED]))}{more}"


def digest(file: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file; "" for one that cannot be read."""
    try:
        with file.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    except OSError:
        return ""


def kept(folder: RunFolder, file: Path, settings: Mapping[str, Any]) -> "CheckpointResult | None":
    """What the folder holds, where it is the measurement of this very file by these settings, whole; else None."""
    from lab.measure.carry import CheckpointResult

    if folder.read("status").get("status") != "finished":
        return None
    provenance, summary = folder.read("provenance"), folder.read("summary")
    before, now = provenance.get("settings"), json.loads(json.dumps(settings))
    values = summary.get("values")
    if not isinstance(before, dict) or not isinstance(values, dict) or summary.get("failures") != []:
        return None
    if provenance.get("checkpoint_sha256") != digest(file) or {*differences(before, now)} - {*MACHINE}:
        return None
    return CheckpointResult(
        summary.get("step", 0), summary.get("threshold_formula", ""), summary.get("weights", 0), values
    )

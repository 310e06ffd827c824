"""How far a run is, as read from its folder while a process writes there: status.json and what metrics.jsonl has grown by.

For somebody who watches: every look reads only what is new, so that a look at many runs is cheap. What amounts to a run once
it is over is read elsewhere.
"""

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from lab.run.folder import RunFolder
from lab.run.length import updates
from lab.settings import SettingError

OVER = ("finished", "diverged", "failed")
MOST_READ = 2**18
"""Bytes at the end of metrics.jsonl that a look reads at most."""
LOSS, RATIO = "train/loss", "sharpness/ratio"


@dataclass(frozen=True)
class Standing:
    """state: waiting, running, finished, diverged or failed; loss, ratio: the last values, NaN for none; total: the updates
    in all, None where nobody knows; left: the time (s) that the rest takes by the pace since it has been watched, NaN while
    that is not known; reason: why it ended.
    """

    state: str = "waiting"
    step: int = 0
    total: int | None = None
    loss: float = math.nan
    ratio: float = math.nan
    left: float = math.nan
    reason: str = ""


@dataclass
class Follower:
    """Follows the run in a folder. What it finds there at first is of a process before, and counts once it changes."""

    path: Path
    latest: dict[str, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = self._stamp("status.json")
        self._facts: tuple[Any, int | None] = (None, None)
        self._place: tuple[int, int] = (0, 0)
        self._pace: tuple[float, int] | None = None

    def look(self) -> Standing:
        """How the run stands now."""
        if self._stamp("status.json") == self._before:
            return Standing(total=self._total())
        status = self._read("status")
        self._follow()
        word, step = status.get("status"), _whole(status.get("step"))
        state = str(word) if word in ("running", *OVER) else "waiting"
        step = max(step, *(seen for seen, _ in self.latest.values()), 0) if state == "running" else step
        loss, ratio = (self.latest.get(tag, (0, math.nan))[1] for tag in (LOSS, RATIO))
        total = self._total()
        left = self._left(step, total) if state == "running" else math.nan
        return Standing(state, step, total, loss, ratio, left, str(status.get("reason", "")))

    def _left(self, step: int, total: int | None) -> float:
        now = monotonic()
        if self._pace is None or step < self._pace[1]:
            self._pace = now, step
        begin, first = self._pace
        return (now - begin) / (step - first) * (total - step) if total is not None and step > first else math.nan

    def _total(self) -> int | None:
        """The updates in all, which provenance.json is asked for as often as it changes."""
        if (stamp := self._stamp("provenance.json")) != self._facts[0]:
            facts, total = self._read("provenance"), None
            if "data" in facts and isinstance(facts.get("settings"), dict):
                with suppress(TypeError, ValueError, AttributeError):
                    total = updates(facts["settings"], facts["data"].get("examples"))
            self._facts = stamp, total
        return self._facts[1]

    def _follow(self) -> None:
        """Read the whole lines that metrics.jsonl has grown by; all of it where it is another file."""
        with suppress(OSError), (self.path / "metrics.jsonl").open("rb") as file:
            number, size = (stat := (self.path / "metrics.jsonl").stat()).st_ino, stat.st_size
            inode, begin = self._place
            if inode != number or size < begin:
                self.latest, begin = {}, 0
            begin = max(begin, size - MOST_READ)
            file.seek(begin)
            text = file.read(size - begin)
            whole = text.rfind(b"\n") + 1
            self._place = number, begin + whole
            for line in text[:whole].splitlines():
                with suppress(ValueError, TypeError, KeyError):
                    entry = json.loads(line)
                    self.latest[entry["tag"]] = int(entry["step"]), float(entry["value"])

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return RunFolder(self.path).read(name)
        except (SettingError, OSError):
            return {}

    def _stamp(self, name: str) -> Any:
        with suppress(OSError):
            stat = (self.path / name).stat()
            return stat.st_ino, stat.st_mtime_ns
        return None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0

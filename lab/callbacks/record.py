"""The run folder of a loop of somebody's own: what `lab.train` leaves there, but no checkpoints: the model is not ours."""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

from pytorch_lightning.loggers import Logger

from lab.callbacks.dashboard import Board, flush
from lab.callbacks.metrics import MetricsLogger
from lab.callbacks.outcome import show_outcome, show_waterfall
from lab.run import underway
from lab.run.closing import closing_words
from lab.run.folder import RunFolder
from lab.run.identity import flat
from lab.run.summary import sentence
from lab.settings import SettingError

LINE_SECONDS = 10.0
"""Seconds between lines of progress, and between notes of how far the run is."""
MAKER = "lab.watch"
"""Who made a folder, in its provenance."""


class Record:
    """What is written of a run: nothing, where `path` is None, or where another process writes it.

    loggers  metrics.jsonl with arrays and figures, and TensorBoard; empty while the run has not begun.
    """

    def __init__(self, path: Path | str | None):
        self.folder = None if path is None else RunFolder(Path(path).expanduser(), chosen_by="folder")
        self.loggers = list[Logger]()
        self.settings: Mapping[str, Any] = {}
        self.step, self.failure, self.lines = 0, "", False
        self._open, self._due, self._begin = ExitStack(), 0.0, (0.0, 0)

    def begin(
        self, run: underway.Underway, step: int, provenance: Callable[[], Mapping[str, Any]], *, resumed: bool
    ) -> None:
        """Own the folder from now on, and go on from `step`: measurements from there on are dropped. Raises SettingError
        where it holds another run, unless that one is resumed, or belongs to another process.
        """
        self.step, self._due, self._begin = step, monotonic() + LINE_SECONDS, (monotonic(), step)
        if (folder := self.folder) is None:
            return
        underway.enlist(folder.path, run)
        try:
            self._open.enter_context(folder.owned())
            before = self._before(folder, resumed=resumed)
        except BaseException:
            underway.dismiss(folder.path)
            self._open.close()
            raise
        if before:
            print(before, file=sys.stderr, flush=True)
        if not resumed:
            for old in (folder.path / "summary.json", folder.path / "status.json", *folder.figures.glob("*.png")):
                old.unlink(missing_ok=True)
        folder.start_clock()
        folder.forget_from(step)
        facts = provenance()
        self.settings = facts["settings"]
        folder.write("provenance", {"made_by": MAKER, **facts})
        folder.status("running", step=step)
        board = Board(folder.path, begin=step)
        self.loggers = [board, MetricsLogger(folder)]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        for logger in self.loggers:
            logger.log_metrics(dict(values), step=step)

    def reached(self, step: int, text: Callable[[], str], total: int | None) -> None:
        """So many updates are made: every 10 s that is noted, and told in a line where the loop has asked for lines."""
        self.step = step
        if monotonic() < self._due:
            return
        self._due = monotonic() + LINE_SECONDS
        if self.folder is not None:
            self.folder.status("running", step=step)
            flush(self.loggers)
        if self.lines:
            seconds, first = self._begin
            rest = (monotonic() - seconds) / max(1, step - first) * (total - step) if total else 0.0
            of, to_go = (f"/{total}", f"  {max(0.0, rest):.0f} s to go") if total else ("", "")
            print(f"step {step}{of}  {text()}{to_go}", file=sys.stderr, flush=True)

    def stopped(self, reason: str) -> None:
        """The run ends, or seems to end, because of `reason`."""
        self.failure = reason
        if self.loggers and self.folder is not None:
            self.folder.status("failed", step=self.step, reason=reason)

    def going_on(self) -> None:
        """It has not ended: the error was caught."""
        if self.failure:
            self.failure = ""
            if self.loggers and self.folder is not None:
                self.folder.status("running", step=self.step)

    def close(self, summary: dict[str, Any]) -> None:
        """Draw, write and say what the run amounts to; how it ended stands in the status."""
        ended = f"The run ended at step {summary['steps']}: {self.failure}.\n" if self.failure else ""
        if (folder := self.folder) is None or not self.loggers:
            print(f"\n{ended}{sentence(summary)}\n", flush=True)
            return
        try:
            summary |= {"seconds": folder.seconds}
            show_waterfall(folder, self.loggers, summary["steps"])
            show_outcome(folder, self.loggers, flat(dict(self.settings)), summary)
            for logger in self.loggers:
                logger.finalize("success")
            folder.write("summary", summary)
            state = "failed" if self.failure else "diverged" if summary["reason"] else "finished"
            folder.status(state, step=summary["steps"], reason=self.failure or summary["reason"])
            print(f"\n{ended}{closing_words(folder, summary)}\n", flush=True)
        finally:
            self.loggers = []
            self._open.close()
            underway.dismiss(folder.path)

    def _before(self, folder: RunFolder, *, resumed: bool) -> str:
        """What is to be said of the run that the folder holds."""
        provenance, status = folder.read("provenance"), folder.read("status")
        if provenance and provenance.get("made_by") != MAKER:
            raise SettingError(f"{folder.path} holds a run that lab.watch has not made; choose another folder")
        if resumed or not provenance:
            return ""
        if folder.finished:
            raise SettingError(
                f"{folder.path} holds a run that is over, at step {status.get('step')}; choose another folder, remove this "
                "one, or go on from a saved state by watch.load_state_dict"
            )
        reason = f" ({status['reason']})" if status.get("reason") else ""
        return (
            f"{folder.path} held a run that stopped at step {status.get('step', 0)}{reason}: this one takes its place"
        )

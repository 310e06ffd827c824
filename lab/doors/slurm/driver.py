"""`launcher=slurm`: submit the cells of a grid, and wait until they are made.

Jobs need no command that waits for them. One that is stopped, or does not wait, is repeated: it finds the jobs that are
still there, says how they stand, and submits what is missing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.doors.ending import CellError
from lab.doors.grid import Failure, Grid
from lab.doors.launchers import chosen
from lab.doors.request import Request
from lab.doors.slurm import batch, lines, queue
from lab.doors.slurm.card import SlurmCard
from lab.doors.slurm.job import saved_step
from lab.doors.slurm.queue import JobState, QueueSilent
from lab.doors.slurm.record import JobRecord, name_of
from lab.doors.slurm.watch import JobVerdict, WatchedCell, verdict
from lab.settings import SettingError

SHARED_DELAY = 60.0
"""Seconds that a file may take from a node to this machine over a network file system."""


def submitted(grid: Grid, run: Any) -> list[Failure]:
    """Every cell as a job of Slurm; the failures of those that are over. Raises SettingError where none can be submitted."""
    settings = chosen(grid.config.hydra.launcher)
    batch.require_slurm()
    if all(cell.folder in grid.done for cell in grid.cells):
        lines.say(f"{lines.number(len(grid.cells))}: all finished, nothing is submitted")
        return []
    record = JobRecord(grid.folder)
    try:
        return SlurmLauncher(grid, run, settings, record).make()
    finally:
        record.remove_if_unused()


@dataclass
class SlurmLauncher:
    """One command that has the cells of a grid made by Slurm, with the settings of a card.

    waiting   the cells whose jobs are not over.
    failures  of those that are.
    """

    grid: Grid
    run: Callable[[Request], Any]
    card: SlurmCard
    record: JobRecord
    waiting: list[WatchedCell] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = f"lab-{self.grid.folder.name}"[:60]

    def make(self) -> list[Failure]:
        """Find the jobs that are there, submit the cells that have none, and wait."""
        with self.record.held():
            known, standing = self.record.read(), self._jobs()
            for cell in self.grid.cells:
                if cell.folder not in self.grid.done and (job := known.get(name_of(cell))) is not None:
                    self._find(cell, job, standing.get(job))
            found = list(self.waiting)
            taken = {watched.cell.folder for watched in found} | self.grid.done
            self._submit([cell for cell in self.grid.cells if cell.folder not in taken])
        lines.announce(self.grid, found, self.waiting[len(found) :], len(self.failures), self.record)
        if self.card.wait:
            self._wait()
        else:
            lines.report(self.grid, self.waiting, standing)
        self.grid.note_done(*self.grid.cells)
        return self.failures

    def _jobs(self) -> dict[str, JobState]:
        """The jobs that Slurm has of this name; it is asked again for as long as the card has patience."""
        begin = time.monotonic()
        while True:
            try:
                return {job: state for job, state in queue.jobs().items() if state.name == self.name}
            except QueueSilent as error:
                if time.monotonic() - begin > self.card.patience:
                    raise SettingError(
                        f"squeue has not answered for {self.card.patience:g} s ({error}); jobs that are there go on, and "
                        "the same command finds them"
                    ) from None
                time.sleep(self.card.poll)

    def _find(self, cell: Request, job: str, state: JobState | None) -> None:
        """The job that a former command has submitted for a cell: watch it, or say what became of it."""
        if state is not None and not state.over:
            self.waiting.append(WatchedCell(cell, self.grid.label(cell), job, saved_step(cell)))
        elif (found := verdict(cell, job, state, self.record, self.grid.over)).kind in ("killed", "failed"):
            lines.say(f"{self.grid.label(cell)}: {found.text} (job {job}); submitted again")

    def _submit(self, cells: Sequence[Request]) -> None:
        """New jobs for the cells, in arrays of the size that Slurm allows. Call while the record is held."""
        size = batch.max_array() if len(cells) > 1 else 1
        parts = [cells[begin : begin + size] for begin in range(0, len(cells), size)]
        share = max(1, self.card.parallel // max(1, len(parts)))  # each array has a limit of its own
        executor = batch.executor(self.record.folder, self.card, self.name, share)
        for part in parts:
            try:
                jobs = batch.submit(part, self.run, executor, self.card)
            except batch.Refusal as refusal:
                if not self.waiting:
                    raise SettingError(str(refusal)) from None
                lines.say(f"{lines.number(len(part))} not submitted; {refusal}")
                self.failures += [(cell, CellError(f"not submitted; {refusal}")) for cell in part]
                continue
            self.record.note({name_of(cell): job for cell, job in zip(part, jobs, strict=True)})
            for cell, job in zip(part, jobs, strict=True):
                self.waiting.append(WatchedCell(cell, self.grid.label(cell), job, saved_step(cell)))

    def _wait(self) -> None:
        """Until no job is left."""
        if self.waiting:
            lines.say("This command waits for them. Without it they go on, and the same command finds them.")
        reasons = lines.Reasons()
        try:
            while self.waiting:
                standing = self._jobs()
                for watched in list(self.waiting):
                    self._look(watched, standing.get(watched.job))
                self.grid.jobs = max(1, len(self.grid.running))
                reasons.look(standing[watched.job] for watched in self.waiting if watched.job in standing)
                if self.waiting:
                    time.sleep(self.card.poll)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(lines.leaving(self.waiting)) from None
        except SystemExit:
            lines.say(lines.leaving(self.waiting))
            raise

    def _look(self, watched: WatchedCell, state: JobState | None) -> None:
        """Say what is new of a cell, and do what is to be done."""
        found = verdict(watched.cell, watched.job, state, self.record, self.grid.over)
        if found.kind == "unclear":
            watched.since = watched.since or time.monotonic()
            if time.monotonic() - watched.since < SHARED_DELAY:
                return
            found = JobVerdict("failed", found.text)
        if found.kind == "killed":
            self._again(watched, found.text)
        elif found.kind in ("made", "failed"):
            self._over(watched, found)
        elif found.kind == "waits" and self.grid.running.pop(watched.cell.folder, None) is not None:
            watched.tell(f"was stopped and is queued again, to go on from step {saved_step(watched.cell)}")
        elif found.kind == "runs":
            if watched.cell.folder not in self.grid.running:
                self.grid.begin(watched.cell)
            watched.tell(f"{found.text} (job {watched.job})")

    def _over(self, watched: WatchedCell, found: JobVerdict) -> None:
        """Nothing more will come of the job."""
        self.waiting.remove(watched)
        if found.kind == "failed":
            self.failures.append((watched.cell, error := CellError(found.text)))
            self.grid.end(watched.cell, error)
            watched.tell(f"failed: {found.text}; see {self.record.log(watched.job)}")
        else:
            self.grid.end(watched.cell)
            watched.tell(f"{found.text}; {len(self.waiting)} to go")

    def _again(self, watched: WatchedCell, text: str) -> None:
        """The job was killed: another one, unless it has been tried often enough, or another command has been quicker."""
        step = saved_step(watched.cell)
        tries = watched.tries + 1 if step <= watched.step else 0
        if tries > self.card.retries:
            self._over(watched, JobVerdict("failed", f"{text}, {tries} times in a row"))
            return
        with self.record.held():
            job = self.record.read().get(name_of(watched.cell), watched.job)
            if job == watched.job:
                executor = batch.executor(self.record.folder, self.card, self.name, 1)
                try:
                    (job,) = batch.submit([watched.cell], self.run, executor, self.card)
                except batch.Refusal as refusal:
                    self._over(watched, JobVerdict("failed", f"{text}, and is not submitted again; {refusal}"))
                    return
                self.record.note({name_of(watched.cell): job})
        watched.job, watched.step, watched.tries = job, step, tries
        watched.tell(f"{text}; submitted again as job {job}")

"""What becomes of a cell, by what squeue says of its job and what stands in its run folder.

The run folder has the word: what is finished there is finished, whatever Slurm says. A run that failed by itself would fail
again and is told; one that was killed is submitted again.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lab.doors.request import Request
from lab.doors.slurm.queue import JobState
from lab.doors.slurm.record import JobRecord
from lab.run.folder import RunFolder
from lab.settings import SettingError

Kind = Literal["waits", "runs", "made", "killed", "failed", "unclear"]
RAISED = 1
"""The exit code of a run that ended in an exception."""
CAUSES = {
    "OUT_OF_MEMORY": "it ran out of memory",
    "TIMEOUT": "it reached its time limit before its state was saved",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node failed",
    "PREEMPTED": "it was preempted",
}


@dataclass(frozen=True)
class JobVerdict:
    """How a cell stands, and in words what there is to say of it."""

    kind: Kind
    text: str = ""


@dataclass
class WatchedCell:
    """A cell with its job. step: what was saved when that was submitted; tries: how often in a row it was killed with no
    step more; since: when (s) it began to be unclear.
    """

    cell: Request
    label: str
    job: str
    step: int
    tries: int = 0
    said: str = ""
    since: float | None = None

    def tell(self, text: str) -> None:
        """A line with the time of day, where it says something new."""
        if text != self.said:
            self.said = text
            print(f"{time.strftime('%H:%M:%S')}  {self.label}: {text}", file=sys.stderr, flush=True)


def verdict(
    cell: Request, job: str, state: JobState | None, record: JobRecord, over: Callable[[Request], bool]
) -> JobVerdict:
    """state: None where Slurm does not know the job; over: whether the folder of a cell holds its run, finished."""
    if state is not None and not state.over:
        if state.runs:
            return JobVerdict("runs", f"runs on {state.node}" if state.node else "runs")
        return JobVerdict("waits", state.reason)
    try:
        status, made = RunFolder(cell.folder).read("status"), over(cell)
    except SettingError as error:
        return JobVerdict("failed", str(error))
    word, step = status.get("status"), status.get("step", 0)
    if made:
        return JobVerdict("made", f"diverged at step {step}" if word == "diverged" else "finished")
    at = f"at step {step}" if step else "before its first step was saved"
    if state is None:
        if word == "running":
            return JobVerdict("killed", f"ended {at}, and Slurm does not say why")
        return JobVerdict(
            "failed", "Slurm does not know the job any more; it was cancelled while it waited, or forgotten"
        )
    if state.state == "CANCELLED":
        return JobVerdict("failed", f"cancelled {at}")
    if state.state == "COMPLETED":
        return JobVerdict("unclear", "Slurm says COMPLETED, and the run folder holds no finished run")
    if state.state == "DEADLINE":
        return JobVerdict("failed", "Slurm ended it at its deadline")
    if state.state == "FAILED" and 0 < state.exit_code <= 128:
        own = status.get("reason", "") if word == "failed" and state.exit_code == RAISED else ""
        words = own or record.last_words(job).removeprefix("error: ") or f"exit code {state.exit_code}"
        return JobVerdict("failed", " ".join(words.split()))
    signal = f"killed by signal {state.exit_code - 128}" if state.exit_code > 128 else f"ended as {state.state}"
    return JobVerdict("killed", f"{CAUSES.get(state.state, signal)} {at}")

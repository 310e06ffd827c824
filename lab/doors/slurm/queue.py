"""How the jobs of a user stand, as squeue says. Without accounting Slurm forgets a job some minutes after its end."""

import os
import subprocess
from dataclasses import dataclass

OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
)
"""States that a job does not leave."""
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
"""States in which a job has not begun, or has to begin again."""
COLUMNS = {"JobArrayID": 40, "State": 24, "exit_code": 12, "Reason": 60, "NodeList": 60, "Name": 80}
LIMIT = 60
"""Seconds that squeue may take."""


class QueueSilent(Exception):
    """squeue has not answered; the message is what it said."""


@dataclass(frozen=True)
class JobState:
    """A job: its state in Slurm's word, its exit code (128 + n after signal n), why it waits or ended, where it runs."""

    state: str
    exit_code: int = 0
    reason: str = ""
    node: str = ""
    name: str = ""

    @property
    def over(self) -> bool:
        """Whether it will not run again."""
        return self.state in OVER

    @property
    def runs(self) -> bool:
        """Whether it has a node; also while it is signalled, suspended, or ends."""
        return not self.over and self.state not in WAITING


def jobs() -> dict[str, JobState]:
    """The jobs of this user by id, `12` or `12_3` in an array. Raises QueueSilent."""
    columns = ",".join(f"{name}:.{width}" for name, width in COLUMNS.items())
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--Format={columns}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueSilent(str(error)) from None
    if asked.returncode:
        raise QueueSilent(" ".join(asked.stderr.split()))
    return read_queue(asked.stdout)


def read_queue(text: str) -> dict[str, JobState]:
    """What squeue prints in columns of fixed width.

    >>> read_queue("%40s%24s%12s%60s%60s%80s" % ("6_4", "FAILED", 137 << 8, "NonZeroExitCode", "vm", "grid"))
    {'6_4': JobState(state='FAILED', exit_code=137, reason='NonZeroExitCode', node='vm', name='grid')}
    """
    found = {}
    for line in text.splitlines():
        cells, begin = list[str](), 0
        for width in COLUMNS.values():
            cells.append(line[begin : begin + width].strip())
            begin += width
        job, state, code, reason, node, name = cells
        status = int(code) if code.isdecimal() else 0
        exit_code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        found[job] = JobState(state, exit_code, reason.replace("None", ""), node, name)
    return found

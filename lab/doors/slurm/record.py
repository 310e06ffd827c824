"""Which job has which cell of the grids in a folder: `.slurm/jobs.json` there, beside the scripts and logs of the jobs.

Who looks for jobs and submits new ones holds the lock, so that two commands at once do not submit a cell twice.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.doors.request import Request
from lab.run.folder import RunFolder, replace
from lab.settings import SettingError

TOOLS = ("srun:", "slurmstepd", "submitit ", "scontrol:")
"""How lines of a log begin that say nothing about the run."""


class JobRecord:
    """The jobs of the grids in `grids`. Raises SettingError where nothing can be written there."""

    def __init__(self, grids: Path):
        self.folder = grids / ".slurm"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise SettingError(
                f"{self.folder} cannot be written ({error.strerror}); choose another hydra.sweep.dir"
            ) from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for whoever holds it, and hold it for the block."""
        with (self.folder / "lock").open("a") as lock:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> dict[str, str]:
        """The newest job of every cell, by the name of its folder; {} where the file is damaged."""
        try:
            content = json.loads((self.folder / "jobs.json").read_text())
        except (OSError, ValueError):
            return {}
        return {str(name): str(job) for name, job in content.items()} if isinstance(content, dict) else {}

    def note(self, jobs: Mapping[str, str]) -> None:
        """Keep these jobs, in the place of former ones of their cells. Call while it is `held`."""
        replace(self.folder / "jobs.json", (json.dumps(self.read() | dict(jobs), indent=1) + "\n").encode())

    def remove_if_unused(self) -> None:
        """Leave nothing behind where no job was submitted."""
        if self.folder.is_dir() and {file.name for file in self.folder.iterdir()} <= {"lock"}:
            (self.folder / "lock").unlink(missing_ok=True)
            RunFolder(self.folder).remove_if_empty()

    def log(self, job: str) -> Path:
        """What the job has printed."""
        return self.folder / f"{job}_0_log.out"

    def last_words(self, job: str) -> str:
        """The last line of its log, of the run itself where that has said anything; "" where there is none."""
        try:
            with self.log(job).open("rb") as log:
                log.seek(max(0, log.seek(0, 2) - 20000))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        written = [line.strip() for line in lines if line.strip()]
        own = [line for line in written if not line.startswith(TOOLS)] or written
        return "".join(c if c.isprintable() else " " for c in own[-1]) if own else ""


def name_of(cell: Request) -> str:
    """What a cell is called in the record."""
    return cell.folder.name

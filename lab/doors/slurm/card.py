"""The settings of `launcher=slurm`."""

from math import ceil
from typing import Annotated

from pydantic import Field, model_validator

from lab.settings import settings

OURS = ("array", "error", "job-name", "open-mode", "output", "requeue", "signal", "time")
"""Options of sbatch that the jobs rest on."""
FORMS = "minutes, or as sbatch has it: minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes"
Word = str | int | float | bool


@settings()
class SlurmCard:
    """Every cell of a grid is a job of Slurm. A job that is preempted, or comes to its time limit, saves its run, is queued
    again and goes on; the command waits for all of them, and may be stopped and repeated.
    """

    partition: Annotated[str | None, Field(description="where the jobs run | null: where the cluster puts them")] = None
    time: Annotated[
        int | str,
        Field(
            description="limit of a job, after which its run is saved and queued again: minutes, or 2:00:00, or 1-12"
        ),
    ] = 60
    cpus: Annotated[int, Field(gt=0, description="CPU cores of a job")] = 2
    memory: Annotated[float | None, Field(gt=0, description="GB of a job | null: what the cluster gives")] = 8.0
    gpus: Annotated[int, Field(ge=0, description="GPUs of a job; a run uses one")] = 0
    options: Annotated[
        dict[str, Word],
        Field(default_factory=dict, description="further ones of sbatch by their long names: options.account=physics"),
    ]
    parallel: Annotated[int, Field(gt=0, description="jobs that run at once, at most")] = 64
    warning: Annotated[
        int, Field(ge=10, description="seconds before the limit at which a run is saved, at most a quarter of it")
    ] = 120
    retries: Annotated[
        int, Field(ge=0, description="times in a row that a run which was killed is submitted again without getting on")
    ] = 2
    wait: Annotated[
        bool, Field(description="false: return after submission; the same command then says how the jobs stand")
    ] = True
    poll: Annotated[float, Field(gt=0, description="seconds between two looks at the queue")] = 10.0
    patience: Annotated[
        float,
        Field(gt=0, description="seconds without an answer of squeue after which the command gives up, not the jobs"),
    ] = 900.0

    @model_validator(mode="after")
    def _sound(self) -> "SlurmCard":
        if self.minutes == 0:
            raise ValueError(f"time={self.time}: expected {FORMS}; more than none")
        for name in self.options:
            if name.replace("_", "-") in OURS:
                raise ValueError(f"options: {name} is not for you to set, the jobs rest on it; leave it out")
        return self

    @property
    def minutes(self) -> int:
        """The time limit (min), rounded up as Slurm does. Raises ValueError for what is no time."""
        days, dash, clock = str(self.time).rpartition("-")
        try:
            parts = [int(part) for part in clock.split(":")]
            if not (len(parts) <= 3 and min(parts) >= 0 and bool(days) == bool(dash)):
                raise ValueError
            if dash:
                hours, minutes, seconds = [*parts, 0, 0][:3]
            else:
                hours, minutes, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
            return ceil(int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60)
        except ValueError:
            raise ValueError(f"time={self.time}: expected {FORMS}") from None

    @property
    def warned(self) -> int:
        """Seconds before the time limit at which a run is saved."""
        return min(self.warning, self.minutes * 15)

"""What a user sets: typed, range-checked, and refused in one line.

Every card of `conf/` is one pydantic dataclass. `CARD` is the configuration they share: unknown names are refused and
values are checked against the annotated types and ranges (`Annotated[float, Field(gt=0)]`). Settings that contradict
each other, or the data, raise `SettingError` with one line: what came, what was expected, what to do.
"""

import os

from pydantic import ConfigDict

CARD = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class SettingError(ValueError):
    """A value the user chose cannot be right. The message is one line that names the setting and the cure."""


def usable_cpus() -> int:
    """The CPUs this process may use: a container, taskset or SLURM may grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

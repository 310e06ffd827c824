"""What measuring costs in a run: shown while it is spent."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lab.probes.base import Probe, Snapshot

Working = Callable[[str, int, float, Callable[[], int]], AbstractContextManager[Any]]
"""What stands around work that may take long: what it is, about how many Hessian products (0: not known) and seconds it
takes (0.0: not known), and a function that says how many products are done. `ProgressCallback` has one that shows it."""


class Costs:
    """What the measurements of a run cost."""

    def __init__(self) -> None:
        self.working: Working = lambda what, expected, seconds, products: nullcontext()

    def around(self, probe: Probe, snapshot: Snapshot) -> AbstractContextManager[Any]:
        """What stands around a measurement."""
        before = snapshot.matvecs
        what, expected = f"{probe.name} at step {snapshot.step}", probe.expected_matvecs(snapshot.rule)
        return self.working(what, expected, 0.0, lambda: max(0, snapshot.matvecs - before))

"""What measuring costs in a run: foretold before the first measurement, and shown while it is spent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info

from lab.probes.base import Probe, Snapshot, Value
from lab.probes.bench import Bench
from lab.probes.forecast import Cost, Speed, foretold
from lab.run.progress import PATIENCE, MatvecProgress, in_time

Working = Callable[[str, int, float, Callable[[], int]], AbstractContextManager[Any]]
"""What stands around work that may take long: what it is, about how many Hessian products (0: not known) and seconds it
takes (0.0: not known), and a function that says how many products are done. `ProgressCallback` has one that shows it."""
WORTH_A_LINE = 10.0
"""Seconds of all measurements of a probe in a run above which they are foretold, as are single ones above `PATIENCE`."""
NOTHING = Cost(0, 0, 0.0)


@dataclass(frozen=True)
class Outlook:
    """How a probe will measure: seconds of the first and of later ones, steps between them; how, why: words for a line."""

    first: float
    after: float
    every: int
    how: str = ""
    why: str = ""


class Costs:
    """What the measurements of a run cost, where nothing limits them.

    working, tell  where progress is shown and lines go.
    clock    seconds of training and of measurements: on a CPU those of the thread that makes both, which other programs do
             not lengthen, on a GPU those of the wall.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.working: Working = lambda what, expected, seconds, products: nullcontext()
        self.tell: Callable[[str], object] = rank_zero_info
        self.clock: Callable[[], float] = thread_time
        self.total: int | None = None
        self.seconds: dict[str, float] = {}
        self.speed: Speed | None = None
        self.expected: dict[str, Cost] = {}

    def begin(self, total: int | None, device: torch.device, step: int = 0) -> None:
        """A run of so many steps, None where nobody knows, begins at `step` or goes on there."""
        self.total = total
        if device.type == "cuda" and self.clock is thread_time:
            self.clock = perf_counter

    def step_begins(self, step: int) -> None:
        """Training goes on at `step`, after what was measured there."""

    def step_ends(self, step: int) -> None:
        """Training has come to `step`."""

    def wanted(self, probes: Sequence[Probe], step: int, *, ratio: float) -> list[Probe]:
        """Those of the probes that are due at `step` that measure there. ratio: lambda_max over the threshold, as known."""
        return list(probes)

    def waits(self, probe: Probe) -> bool:
        """Whether a probe that was due waits for the end of the run."""
        return False

    def foretell(self, probes: Sequence[Probe], here: Snapshot) -> list[Probe]:
        """Before first measurements: what they will cost, in a line where that is much. Returns those that measure here."""
        if new := [probe for probe in probes if probe.name not in self.expected]:
            if self.speed is None:
                with suppress(Exception), torch.random.fork_rng([]):  # the probe will meet it, and say so
                    self.speed = Speed.timed(self.bench, here, self.clock)
            for probe in new:
                self.expected[probe.name] = self.foretold(probe, here)
            self.plan(new, here)
            for probe in new:
                self._say(probe, here, self.outlook(probe, here))
        return [probe for probe in probes if here.ended or not self.waits(probe)]

    def plan(self, probes: Sequence[Probe], here: Snapshot) -> None:
        """How probes will measure, before they do for the first time."""

    def outlook(self, probe: Probe, here: Snapshot) -> Outlook:
        """What is expected of a probe."""
        return Outlook(self.expected[probe.name].seconds, self.foretold(probe, here, warm=True).seconds, probe.rhythm)

    def foretold(self, probe: Probe, here: Snapshot, *, warm: bool = False) -> Cost:
        """By the settings as they are; `NOTHING` where nobody knows."""
        with suppress(Exception):
            return foretold(probe, self.bench, here, self.speed, warm=warm)
        return NOTHING

    @contextmanager
    def around(self, probe: Probe, here: Snapshot) -> Iterator[None]:
        """What stands around a measurement."""
        before, begin = here.matvecs, self.clock()
        expected = self.outlook(probe, here).first if probe.name in self.expected else 0.0
        matvecs, what = probe.expected_matvecs(here.rule), f"{probe.name} at step {here.step}"
        with self.working(what, matvecs, expected, lambda: max(0, here.matvecs - before)):
            yield
        self.seconds[probe.name] = self.clock() - begin

    def made(self, probes: Sequence[Probe], values: Mapping[str, Value], here: Snapshot, seconds: float) -> None:
        """The measurements of a step are made, in so many seconds with all around them."""

    def summary(self) -> dict[str, Any] | None:
        """What was spent, of what, and what was decided; None without a budget."""
        return None

    def notes(self) -> list[str]:
        """What there is to know of the numbers, in sentences."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    def training_seconds(self, steps: int) -> float:
        """Of so many steps, as far as is known."""
        return self.speed.step * steps if self.speed else 0.0

    def _say(self, probe: Probe, here: Snapshot, outlook: Outlook) -> None:
        """What a probe will cost, where that is more than is waited for without a word."""
        first, after, every, steps = outlook.first, outlook.after, outlook.every, max(0, (self.total or 0) - here.step)
        whole = first + after * (steps // every)
        if first <= PATIENCE and whole <= WORTH_A_LINE:
            return
        matvecs = probe.expected_matvecs(here.rule)
        products = f"about {matvecs:.0f} products, " if matvecs else "about "
        when = "the end" if self.waits(probe) else f"step {here.step}"
        text = f"{probe.name}{outlook.how} at {when}: {products}{in_time(first)}"
        if steps >= every:
            text += f"; then {in_time(after)} every {every} steps"
        training = self.training_seconds(steps)
        text += f": {_part(whole / training)} of the training" if training > 0 else ""
        self.tell(text + outlook.why)


def in_lines(what: str, expected: int, seconds: float, products: Callable[[], int]) -> MatvecProgress:
    """A `Working` where there is no bar of a training."""
    return MatvecProgress(what, expected, seconds, products, patience=PATIENCE)


def _part(ratio: float) -> str:
    """A share: 12 %, from one on 4.5 times the time."""
    return f"{100 * ratio:.0f} %" if ratio < 1 else f"{ratio:.1f} times the time"

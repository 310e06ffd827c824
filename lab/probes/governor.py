"""What a run may spend on its measurements, and what is measured when, so that it keeps to that.

    allowed = share x (training time of the whole run), or SECONDS where that is more;   or so many Hessian products

Training time is foretold from the steps made so far. A probe is asked at each step of its rhythm (a candidate) whether it
measures there. What is left, less what the ends of the run and the probes of a typed rhythm will take, is spread over
the candidates that are left:

    stretch = (what all of them would take) / (what is left for them)

At most 1: every candidate is measured. Above: every m-th, m the odd number nearest to `stretch`, so that a probe of an odd
rhythm does not meet one phase of a period of 2; half of `stretch` near the threshold, double far below it. Where that leaves
fewer than `ENOUGH` measurements the dearest probe is given a smaller probe set first, before the first measurement. A probe
one measurement of which is beyond all that is allowed is measured once, at the end of the run, unless it has to be first.

No clock in here: times, or products, are handed in, and all that is known is plain values, kept in the checkpoint.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.probes.budget import Budget

ENOUGH = 20
"""Measurements of a probe in a run for which its probe set becomes smaller."""
NEAR, FAR, DENSER = 0.7, 0.4, 2.0
"""From this ratio to the threshold on measurements are so many times denser, below the other one as much sparser ..."""
SAVED = 0.5
"""... denser only as long as this share of the first rate is left, so that the end of a run has measurements, too."""

KEPT = ("spent", "trained", "steps", "guess", "rate")
"""Numbers that go into the checkpoint as they are."""


@dataclass(frozen=True)
class Offer:
    """A way to measure: expected cost of the first measurement and of later ones; examples of a part of the probe set, None
    for all of it; numbers in the place of "auto", by setting."""

    first: float
    after: float
    examples: int | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Course:
    """A probe in the run: steps of its rhythm, whether that was typed (fixed), whether the end is measured, too; its offers,
    the whole probe set first; patient: may wait for the end. chosen: the offer in use; first, after: its costs as known;
    last: step measured last; count: measurements; said: the stretch noted last; settled: looked at again.
    """

    every: int
    fixed: bool
    at_end: bool
    offers: list[Offer]
    chosen: int = 0
    first: float = math.nan
    after: float = math.nan
    last: int = -1
    count: int = 0
    said: float = 1.0
    settled: bool = False
    patient: bool = False

    @property
    def offer(self) -> Offer:
        """The one in use."""
        return self.offers[self.chosen]

    def take(self, offer: int, scale: float = 1.0) -> None:
        """Measure by this offer, whose costs turned out `scale` times as large as expected."""
        self.chosen = offer
        self.first, self.after = self.offer.first * scale, self.offer.after * scale


class Ledger:
    """What a run has spent on its probes, by name, and what it has left. All costs are in the unit of the budget: seconds or
    products.

    total  steps of the run.  guess  seconds of a training step, before the first one.
    """

    def __init__(self, budget: Budget, total: int):
        self.budget, self.total = budget, total
        self.courses: dict[str, Course] = {}
        self.spent, self.trained, self.steps, self.guess = 0.0, 0.0, 0, 0.0

    def train(self, seconds: float, steps: int) -> None:
        """So many steps were made, in so much time."""
        self.trained, self.steps = self.trained + seconds, self.steps + steps

    @property
    def step_seconds(self) -> float:
        """Time of a training step (s): the mean so far, before the first one a guess."""
        return self.trained / self.steps if self.steps else self.guess

    @property
    def allowed(self) -> float:
        return self.budget.allowed(self.step_seconds, self.total)

    def extra(self, cost: float) -> None:
        """Spent beside the measurements: on what is looked at before the first, on what is drawn and written."""
        self.spent += cost

    @property
    def ends(self) -> float:
        """What the measurements take that are made in any case."""
        return sum(course.first for course in self.courses.values() if not course.count) + self.reserved

    def enough(self, step: int) -> float:
        """What is left for measurements, over what is wanted for them at least; below 1 it is too little."""
        left, room = max(1, self.total - step), self.room(step)
        wanted = sum(c.after * min(ENOUGH, left // c.every) for c in self.courses.values() if not c.fixed)
        return math.copysign(math.inf, room) if wanted <= 0 else room / wanted

    def stretch(self, step: int) -> float:
        """What all candidates from `step` on would take, over what there is for them."""
        left = max(1, self.total - step)
        demand = sum(course.after / course.every for course in self.courses.values() if not course.fixed) * left
        room = self.room(step)
        if demand <= 0:
            return 1.0
        return demand / room if room > 0 else math.inf

    def room(self, step: int) -> float:
        """What is left for the candidates of the probes whose rhythm was not typed."""
        fixed = sum(course.after / course.every for course in self.courses.values() if course.fixed)
        first = sum(course.first for course in self.courses.values() if not course.count)
        return self.allowed - self.spent - first - self.reserved - fixed * max(0, self.total - step)

    @property
    def reserved(self) -> float:
        """What the end of the run will take."""
        return sum(course.after for course in self.courses.values() if course.at_end)


class Governor(Ledger):
    """Decides what is measured, of the probes by name.

    >>> governor = Governor(Budget(products=100), total=1300)
    >>> governor.begin({"sharpness": Course(13, False, True, [Offer(10.0, 10.0)])})
    >>> steps = [t for t in range(0, 1300, 13) if governor.wants("sharpness", t) and not governor.made("sharpness", t, 10)]
    >>> len(steps), steps[:3]  # and the end
    (9, [0, 143, 286])
    """

    def __init__(self, budget: Budget, total: int):
        super().__init__(budget, total)
        self.rate = math.nan
        self.decisions: list[list[Any]] = []

    def begin(self, courses: Mapping[str, Course], *, step: int = 0) -> None:
        """Take on probes before their first measurement, and choose by which offer they measure."""
        for name, course in courses.items():
            self.courses[name] = course
            course.take(0)
        self._choose(list(courses), step)
        for name in courses:
            stretch = math.inf if self.waits(name) else self.stretch(step)
            self._note(name, step, 1.0 if self.courses[name].fixed else max(1.0, stretch))

    def wants(self, name: str, step: int, *, ratio: float = math.nan) -> bool:
        """Whether a probe measures at `step`, a candidate of its rhythm. ratio: lambda_max over the threshold, if known."""
        course = self.courses[name]
        if self.waits(name):
            return False
        if course.count and not course.settled and (self.steps or self.budget.share is None):
            self._look_again(name, step)
        if course.fixed or not course.count:
            return True
        stretch = min(self._denser(self.stretch(step), step, ratio), 2.0 * self.total + 1)
        times = self._times(stretch)
        if not course.said / 2 < stretch < 2 * course.said:
            self._note(name, step, stretch)
        waited = (step - course.last) // course.every
        if stretch > 1 and (waited < times or waited % 2 == 0):
            return False
        return self.spent + course.after + self.reserved <= self.allowed

    def waits(self, name: str) -> bool:
        """Whether a probe is measured at the end of the run only: once, for that alone is beyond the budget."""
        course = self.courses[name]
        return course.patient and not course.fixed and not course.count and course.first > self.allowed

    def made(self, name: str, step: int, cost: float, *, end: bool = False) -> None:
        """A measurement of this cost was made."""
        course, self.spent = self.courses[name], self.spent + cost
        if course.count == 0:
            scale = cost / course.first if course.first > 0 else 1.0
            course.take(course.chosen, scale)
            course.first = cost
            course.after = cost if not math.isfinite(course.after) else course.after
        elif not end:
            course.after = cost if course.count == 1 else (course.after + cost) / 2
        course.count, course.last = course.count + 1, step
        if not math.isfinite(self.rate):
            self.rate = self.room(step) / max(1, self.total - step)

    def times(self, name: str, step: int) -> int:
        """Every how many of its candidates a probe is measured from here on, as far as is known."""
        stretch = math.inf if self.waits(name) else self.stretch(step)
        return 1 if self.courses[name].fixed else self._times(stretch)

    def _times(self, stretch: float) -> int:
        """Every how many candidates are measured; more than there are where nothing is left."""
        most = 2 * self.total + 1
        return most if stretch > most else 2 * max(0, round((stretch - 1) / 2)) + 1

    def _denser(self, stretch: float, step: int, ratio: float) -> float:
        """The stretch, at least 1, by the distance to the threshold."""
        if stretch <= 1:
            return 1.0
        if ratio >= NEAR and self.room(step) / max(1, self.total - step) >= SAVED * self.rate:
            stretch /= DENSER
        elif ratio < FAR:
            stretch *= DENSER
        return max(1.0, stretch)

    def _choose(self, names: Sequence[str], step: int) -> None:
        """Smaller probe sets for the dearest of these probes, until there is enough."""
        while self.enough(step) < 1:
            courses = [self.courses[name] for name in names]
            smaller = [course for course in courses if course.chosen + 1 < len(course.offers)]
            if not smaller:
                return
            course = max(smaller, key=lambda course: course.first + course.after)
            scale = course.first / course.offer.first if course.offer.first > 0 else 1.0
            course.take(course.chosen + 1, scale)

    def _look_again(self, name: str, step: int) -> None:
        """Once, when costs and steps have been seen: whether the probe set that was chosen is hopeless."""
        course = self.courses[name]
        course.settled = True
        if self.enough(step) < 1 / 4 and course.chosen + 1 < len(course.offers):
            self._choose([name], step)
            course.count, course.settled = 0, True
            self._note(name, step, course.said)

    def _note(self, name: str, step: int, stretch: float) -> None:
        course = self.courses[name]
        course.said = min(stretch, 2.0 * self.total + 1)
        times = 0 if self.waits(name) else self._times(stretch)
        self.decisions.append([step, name, course.chosen, times * course.every])

    def state_dict(self) -> dict[str, Any]:
        """All that was decided and spent, as plain values."""
        return {name: getattr(self, name) for name in KEPT} | {
            "decisions": [list(one) for one in self.decisions],
            "courses": {name: asdict(course) for name, course in self.courses.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back, and go on by what was decided."""
        for name in KEPT:
            setattr(self, name, state[name])
        self.decisions = [list(one) for one in state["decisions"]]
        self.courses = {
            name: Course(**{**kept, "offers": [Offer(**offer) for offer in kept["offers"]]})
            for name, kept in state["courses"].items()
        }

"""The costs of a run kept to a budget: what `lab.probes.governor` decides is carried out, told and kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lab.callbacks.account import account, beyond, caveats, manner, words
from lab.callbacks.costs import Costs, Outlook
from lab.callbacks.offers import offered
from lab.objective import NetworkObjective
from lab.probes.base import Probe, Snapshot, Value
from lab.probes.bench import Bench
from lab.probes.budget import Budget
from lab.probes.forecast import Cost
from lab.probes.governor import Course, Governor
from lab.probes.nested import FEWEST, Nested, batch_of, sizes
from lab.settings import SettingError


class Budgeting(Costs):
    """What the measurements of a run cost, at most `budget`, but for the first and the last one of each probe."""

    def __init__(self, bench: Bench, budget: Budget):
        super().__init__(bench)
        self.budget = budget
        self.governor = Governor(budget, 1)
        self._begun, self._step, self._heard = 0.0, 0, 0
        self._meant: dict[str, str] = {}

    def begin(self, total: int | None, device: torch.device, step: int = 0) -> None:
        """A run from step 0 has a budget of its own. Raises SettingError where nobody knows how long it is."""
        super().begin(total, device, step)
        if step == 0:
            self.governor, self._heard = Governor(self.budget, 1), 0
            self.expected.clear()
        if total is None:
            raise SettingError(
                f"budget={self.budget} needs to know how long the run is: give the number of its steps, or budget=None"
            )
        self.governor.total = total

    def step_begins(self, step: int) -> None:
        self._begun, self._step = self.clock(), step

    def step_ends(self, step: int) -> None:
        self.governor.train(self.clock() - self._begun, step - self._step)

    def wanted(self, probes: Sequence[Probe], step: int, *, ratio: float) -> list[Probe]:
        """Steps before a measurement, whose weights are wanted too, are no candidates."""
        wanted = []
        _reach(self.governor, step, self.tell)
        for probe in probes:
            candidate = probe.name in self.governor.courses and step % probe.rhythm == 0
            if not candidate or self.governor.wants(probe.name, step, ratio=ratio):
                wanted.append(probe)
        for probe in wanted:
            self._rule(probe)
        self._hear()
        return wanted

    def plan(self, probes: Sequence[Probe], here: Snapshot) -> None:
        """The offers of the probes, in the unit of the budget, to the governor; a resumed run has its own already."""
        new = {probe.name: self._course(probe, here) for probe in probes if probe.name not in self.governor.courses}
        self.governor.guess = self.governor.guess or (self.speed.step if self.speed else 0.0)
        self.governor.begin(new, step=here.step)
        for probe in probes:
            self._rule(probe)
        self._heard = len(self.governor.decisions)
        if new and self.governor.ends > self.governor.allowed:
            self.tell(beyond(self.governor, list(new)))

    def outlook(self, probe: Probe, here: Snapshot) -> Outlook:
        """As the governor sees it."""
        if (course := self.governor.courses.get(probe.name)) is None:
            return super().outlook(probe, here)
        whole, why = self._whole, ""
        how = f" {text}" if (text := manner(course.offer, whole)) else ""
        share = (course.offer.examples or whole) / whole
        if self.budget.products is None:
            first, after = course.first, course.after
        else:
            first, after = (share * self.foretold(probe, here, warm=warm).seconds for warm in (False, True))
        every = course.every * self.governor.times(probe.name, here.step)
        if every > course.every or how:
            why = f" ({self.budget.named}; {self.budget.none}: all of them every {course.every} steps)"
        return Outlook(first, after, every, how, why)

    def made(self, probes: Sequence[Probe], values: Mapping[str, Value], here: Snapshot, seconds: float) -> None:
        for probe in probes:
            if f"cost/{probe.name}/seconds" in values and probe.name in self.governor.courses:
                spent = self.seconds.get(probe.name, 0.0)
                seconds -= spent
                cost = (
                    spent
                    if self.budget.products is None
                    else _products(probe, values, self.bench, self.expected[probe.name].products)
                )
                self.governor.made(probe.name, here.step, cost, end=here.ended)
        if self.budget.products is None:
            self.governor.extra(max(0.0, seconds))

    def waits(self, probe: Probe) -> bool:
        return probe.name in self.governor.courses and self.governor.waits(probe.name)

    def training_seconds(self, steps: int) -> float:
        return self.governor.step_seconds * steps if self.governor.steps else super().training_seconds(steps)

    def summary(self) -> dict[str, Any]:
        return account(self.governor, self._whole)

    def notes(self) -> list[str]:
        return caveats(self.governor, self._whole, self._meant)

    def state_dict(self) -> dict[str, Any]:
        return self.governor.state_dict() | {"unit": self._in}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        known = state and all("numbers" in o for course in state["courses"].values() for o in course["offers"])
        if known and state.get("unit", self._in) == self._in:  # what was spent in another unit is not known in this one
            self.governor.load_state_dict(state)
            self._heard = len(self.governor.decisions)

    def _course(self, probe: Probe, here: Snapshot) -> Course:
        def costs(other: Probe) -> tuple[float, float]:
            first, after = (self._unit(self.foretold(other, here, warm=warm)) for warm in (False, True))
            return first, after

        def look(part: int) -> float:
            loss, product = self.bench.objective("auto"), self.speed.product * self._whole if self.speed else 0.0
            few = FEWEST * batch_of(loss) if isinstance(loss, NetworkObjective) else 1
            return 2 * self._unit(Cost(1, 1, product)) * max(part, few) / self._whole

        offers = offered(probe, self._sizes(), costs, look)
        return Course(probe.rhythm, probe.every != "auto", probe.at_end, offers, patient=not probe.first)

    def _unit(self, cost: Cost) -> float:
        return cost.seconds if self.budget.products is None else cost.products

    @property
    def _in(self) -> str:
        return "seconds" if self.budget.products is None else "products"

    @property
    def _whole(self) -> int:
        return self._sizes()[0]

    def _sizes(self) -> list[int]:
        try:
            return sizes(self.bench.objective("auto"))
        except Exception:  # the network is run for it: the probe will meet it, and say so
            return [self.bench.num_train]

    def _rule(self, probe: Probe) -> None:
        """The settings of the offer that was chosen."""
        course = self.governor.courses.get(probe.name)
        if course is None or not course.chosen:
            return
        if ((offer := course.offer).examples or 0) > self._whole:  # other data than those of a state that was loaded
            return
        part = {} if offer.examples is None else {"examples": Nested(offer.examples)}
        if course.count == 0 and part and probe.ruled.get("examples") not in (None, part["examples"]):
            probe.load_state_dict({})  # vectors and differences of another loss
        probe.ruled, self._meant[probe.name] = {**offer.numbers, **part}, probe.halves if part else ""

    def _hear(self) -> None:
        """Tell what was decided since it was told last."""
        for line in words(self.governor, self._whole, self.governor.decisions[self._heard :]):
            self.tell(f"{self.budget.named}: from {line}")
        self._heard = len(self.governor.decisions)


def _reach(governor: Governor, step: int, tell: Callable[[str], object]) -> None:
    """A run that goes on beyond its end has twice as many steps, and says so."""
    while step > governor.total:
        governor.total *= 2
        tell(
            f"the run goes on beyond the steps it was said to have: what is left of budget={governor.budget} is spread over "
            f"{governor.total} of them"
        )


def _products(probe: Probe, values: Mapping[str, Value], bench: Bench, expected: float) -> float:
    """What a measurement took, in products over the set "auto": those it reports, else as many as were expected."""
    matvecs = values.get(f"cost/{probe.name}/matvecs")
    if not isinstance(matvecs, float | int) or not math.isfinite(matvecs):
        return expected
    part, whole = (bench.objective(size).num_examples for size in (probe.settled().probe_set, "auto"))
    return float(matvecs) * (part or 1) / (whole or 1)


def costs_of(bench: Bench, budget: Budget | None) -> Costs:
    """What the measurements of a run cost; at most a budget."""
    return Costs(bench) if budget is None else Budgeting(bench, budget)

"""What a budget for measurements has come to, in words and for `summary.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lab.objective.laws import listed
from lab.probes.governor import Governor, Offer
from lab.run.progress import in_time

LINES = 10
"""Decisions in the summary of a run, at most, for each probe: the first and the last ones."""


def account(governor: Governor, whole: int) -> dict[str, Any]:
    """What was spent, what might have been, and all that was decided. whole: the examples of the probe set "auto"."""
    timed = governor.budget.products is None
    lines: list[str] = []
    for name in governor.courses:
        own = words(governor, whole, [one for one in governor.decisions if one[1] == name])
        lines += own if len(own) <= LINES else [*own[: LINES // 2], "...", *own[-LINES // 2 :]]
    return {
        "budget": str(governor.budget),
        "unit": "seconds" if timed else "products",
        "spent": governor.spent,
        "allowed": governor.allowed,
        "training_seconds": governor.trained if timed else None,
        "share": governor.spent / governor.trained if timed and governor.trained else None,
        "first": {  # measurement of each probe
            name: {"foretold": course.offer.first, "spent": course.first}
            for name, course in governor.courses.items()
            if course.count
        },
        "decisions": lines,
    }


def words(governor: Governor, whole: int, decisions: Sequence[Sequence[Any]]) -> list[str]:
    """A line for each decision."""
    return [
        f"step {step} on {name} {_when(governor, name, step, every)}"
        + (f", {how}" if (how := manner(governor.courses[name].offers[chosen], whole)) else "")
        for step, name, chosen, every in decisions
    ]


def _when(governor: Governor, name: str, step: int, every: int) -> str:
    """When a probe is measured from a decision on: the first of one that does not wait stands before a measurement there."""
    course = governor.courses[name]
    if every and (every <= governor.total or every == course.every):
        return f"every {every} steps"
    at_end = course.at_end
    if not every or next(one[0] for one in governor.decisions if one[1] == name) < step:
        return "at the end only" if at_end or not every else "no more"
    return "once and at the end" if at_end else "once"


def manner(offer: Offer, whole: int) -> str:
    """How it measures, where that is not by the settings: on 250 of 2000 examples with tol=0.03; else ""."""
    numbers = ", ".join(f"{name}={number:g}" for name, number in offer.numbers.items())
    part = f"on {offer.examples} of {whole} examples" if offer.examples else ""
    return " ".join(filter(None, (part, f"with {numbers}" if numbers else "")))


def caveats(governor: Governor, whole: int, meant: Mapping[str, str]) -> list[str]:
    """On how many examples probes measured, where the budget chose these; what their numbers are (`meant`).

    Also which of them waited for the end and have measured nothing, as where a run diverged.
    """
    measured = [
        f"Probe {name} measured {how} ({governor.budget.named})" + (f": {text}" if (text := meant[name]) else "")
        for name, course in governor.courses.items()
        if course.last >= 0 and (how := manner(course.offer, whole)) and name in meant
    ]
    return measured + [
        f"Probe {name} has measured nothing: once is beyond {governor.budget.named}, and that is made where a run ends only"
        for name in governor.courses
        if governor.waits(name)
    ]


def beyond(governor: Governor, names: Sequence[str]) -> str:
    """That what is measured in any case is more than the budget, and what of it waits for the end."""
    timed = governor.budget.products is None
    every = f"{governor.budget.setting}={governor.budget.none}"
    spent, allowed = (in_time(x) if timed else f"{x:.0f} products" for x in (governor.ends, governor.allowed))
    late = [name for name in names if governor.waits(name)]
    waiting = f"; one of {listed(late)} is beyond that, and waits for the end of the run" if late else ""
    return (
        f"{governor.budget.named} allows {allowed}, and the first and the last measurement of {listed(names)} "
        f"take about {spent}: these are made{waiting}; {every} makes all that are due"
    )

"""What a budget for measurements has come to, in words and for `summary.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lab.probes.governor import Governor
from lab.run.progress import in_time

LINES = 10
"""Decisions in the summary of a run, at most, for each probe: the first and the last ones."""


def account(governor: Governor, sizes: Sequence[int]) -> dict[str, Any]:
    """What was spent, what might have been, and all that was decided. sizes: those that the probe set may have."""
    timed = governor.budget.products is None
    lines: list[str] = []
    for name in governor.courses:
        own = words(governor, sizes, [one for one in governor.decisions if one[1] == name])
        lines += own if len(own) <= LINES else [*own[: LINES // 2], "...", *own[-LINES // 2 :]]
    return {
        "budget": str(governor.budget),
        "unit": "seconds" if timed else "products",
        "spent": governor.spent,
        "allowed": governor.allowed,
        "training_seconds": governor.trained if timed else None,
        "share": governor.spent / governor.trained if timed and governor.trained else None,
        "decisions": lines,
    }


def words(governor: Governor, sizes: Sequence[int], decisions: Sequence[Sequence[Any]]) -> list[str]:
    """A line for each decision."""
    return [
        f"step {step} on {name} "
        + (f"every {every} steps" if every <= governor.total else "at the end only")
        + (f", on {sizes[chosen]} of {sizes[0]} examples" if chosen else "")
        for step, name, chosen, every in decisions
    ]


def caveats(governor: Governor, sizes: Sequence[int], meant: Mapping[str, str]) -> list[str]:
    """On how many examples probes measured, where the budget chose these; and what their numbers are (`meant`)."""
    return [
        f"Probe {name} measured on {sizes[course.chosen]} of {sizes[0]} examples ({governor.budget.named}): "
        f"{meant[name]}"
        for name, course in governor.courses.items()
        if course.chosen and name in meant
    ]


def beyond(governor: Governor, names: Sequence[str]) -> str:
    """That what is measured in any case is more than the budget."""
    timed = governor.budget.products is None
    every = f"{governor.budget.setting}={governor.budget.none}"
    spent, allowed = (in_time(x) if timed else f"{x:.0f} products" for x in (governor.ends, governor.allowed))
    return (
        f"{governor.budget.named} allows {allowed}, and the first and the last measurement of {' and '.join(names)} "
        f"take about {spent}: these are made; {every} makes all that are due"
    )

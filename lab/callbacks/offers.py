"""The ways in which a probe can measure more cheaply than by its settings, the dearest first."""

import copy
from collections.abc import Callable, Mapping, Sequence

from lab.probes.base import Probe
from lab.probes.governor import Offer
from lab.probes.nested import Nested


def offered(
    probe: Probe, sizes: Sequence[int], costs: Callable[[Probe], tuple[float, float]], look: Callable[[int], float]
) -> list[Offer]:
    """By its settings; on parts of the probe set, where what it finds there says something of the whole; with the fewest
    numbers. No setting that was typed is another in any of them.

    sizes  of the probe set, the whole first.  costs  of the first measurement and of later ones by some settings, over the
    whole.  look  what it costs to look at the examples that a part of this size leaves out.
    """
    divisible = probe.halves and getattr(probe, "examples", None) == "auto"
    ways: list[tuple[int | None, dict[str, float]]] = [(None, {})]
    ways += [(part, _free(probe, probe.loose)) for part in sizes[1:] if divisible]
    if fewest := _free(probe, probe.fewest):
        ways.append((ways[-1][0], fewest))
    offers = []
    for part, numbers in ways:
        other = copy.copy(probe)
        other.ruled = {**numbers, **({} if part is None else {"examples": Nested(part)})}
        share, more = (1.0, 0.0) if part is None else (part / sizes[0], look(part))
        first, after = (share * cost + more for cost in costs(other))
        offers.append(Offer(first, after, part, numbers))
    return offers


def _free(probe: Probe, numbers: Mapping[str, float]) -> dict[str, float]:
    """Those of settings that were not typed."""
    return {name: number for name, number in numbers.items() if getattr(probe, name) == "auto"}

"""Where runs come from, as their provenance.json has it: commands, code, data, seeds, machine, versions, settings."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lab.compare.run import Run, as_typed
from lab.compare.strangers import Plain, Unreadable, flattened, read_json
from lab.report.content import Fact

FIELDS = {
    "made by": "kind",
    "code (git commit, + hash of what was changed since)": "git",
    "hash of the data": "data",
    "seed": "seed",
    "machine": "machine",
    "began from": "parent",
}
"""Fields of a run, by what they are called in a report."""


def facts(runs: Sequence[Run]) -> Iterator[Fact]:
    """One for each thing that is known of at least one run."""
    named = {text: counted(run.origin.get(field) for run in runs) for text, field in FIELDS.items()}
    named["versions"] = counted(map(_versions, runs))
    named["seconds of computing"] = _seconds(runs)
    named["settings that all runs share"] = _shared(runs)
    yield from (Fact(name, values) for name, values in named.items() if values)


def commands(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """The exact commands, each with the number of runs that it made."""
    return counted(run.origin.get("command") for run in runs)


def counted(values: Iterable[Plain]) -> list[tuple[str, int]]:
    """Different values, and how many runs have each, without those that have none."""
    return [*Counter(as_typed(value) for value in values if value is not None).items()]


def _versions(run: Run) -> str | None:
    """The versions of the packages, in one text."""
    try:
        versions = read_json(run.path, "provenance.json").get("versions")
    except Unreadable:  # it has changed since the run was read
        return None
    found = flattened(versions) if isinstance(versions, dict) else {}
    return ", ".join(f"{name} {as_typed(version)}" for name, version in found.items()) or None


def _seconds(runs: Sequence[Run]) -> list[tuple[str, int]]:
    known = [seconds for run in runs if (seconds := run.number("seconds")) == seconds]
    return [(f"{sum(known):.0f} in all, {max(known):.0f} of the longest run", len(known))] if known else []


def _shared(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """What is the same in all runs, as it is typed."""
    first, *rest = [run.settings for run in runs]
    same = [n for n in first if all(n in of and as_typed(of[n]) == as_typed(first[n]) for of in rest)]
    return [(" ".join(f"{name}={as_typed(first[name])}" for name in sorted(same)), len(runs))] if same else []

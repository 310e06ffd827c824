"""What a set of runs amounts to, in sentences: what they are, what they differ in, how they stand, and what stands out."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from lab.compare.groups import SEED, SeedMean, differing, grouped
from lab.compare.run import QUARTER, Run, as_typed

RATIO = "sharpness/ratio"
EDGE = 0.95
"""lambda_max over its threshold from which on a run is at the edge of stability, or past it."""
MOST = 6
"""Things that a sentence names one by one."""
STATUSES = ("finished", "diverged", "running", "interrupted", "failed", "missing")
ENDED = ("finished", "diverged")
BEST = (("test/accuracy", max, "test accuracy"), ("test/loss", min, "test loss"), ("train/loss", min, "training loss"))


def statuses(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """How many runs stand how, those of which there are any."""
    count = Counter(run.status for run in runs)
    order = [*STATUSES, *sorted(count.keys() - {*STATUSES})]
    return [(status, count[status]) for status in order if count[status]]


def told(runs: Sequence[Run]) -> list[str]:
    """A sentence for each thing there is to say."""
    return [*_what(runs), *_differences(runs), *_unfinished(runs), *_edge(runs), *_phases(runs), *_best(runs)]


def listed(texts: Sequence[str], most: int = MOST) -> str:
    """Some texts in a sentence; of many the first, and how many more.

    >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], most=2)
    ('a, b and c', 'a, b and 1 more')
    """
    shown = list(texts[:most]) + ([f"{len(texts) - most} more"] if len(texts) > most else [])
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1]))) if shown else ""


def values_of(runs: Sequence[Run], setting: str) -> list[str]:
    """The values of a setting, numbers in ascending order."""
    found = {as_typed(run.settings.get(setting)): run.number(setting) for run in runs}
    return sorted(
        found, key=lambda text: (math.isnan(found[text]), found[text] if found[text] == found[text] else 0, text)
    )


def _what(runs: Sequence[Run]) -> Iterator[str]:
    parts = []
    for setting, text in (("model", "{} on"), ("data", "{}"), ("loss", "with {}"), ("optimizer", "by {}")):
        values = [value for value in values_of(runs, setting) if value != "null"]
        if values:
            parts.append(text.format(listed(values)))
    steps = [value for value in values_of(runs, "steps") if value != "null"]
    length = f", for {listed(steps)} steps" if steps else ""
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs"
    yield f"{count}{': ' if parts else ''}{' '.join(parts)}{length}."


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) < 2:
        return
    settings = differing(runs)
    parts = [f"{setting} ({_values(runs, setting)})" for setting in settings[:MOST]]
    parts += [f"{len(settings) - MOST} other settings"] if len(settings) > MOST else []
    seeds = values_of(runs, "seed")
    parts += [f"seed ({len(seeds)} of them)"] if len(seeds) > 1 else []
    yield f"They differ in {listed(parts, MOST + 2)}." if parts else "They differ in no setting."


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    """Which runs diverged, go on, or broke."""
    for status in STATUSES[1:]:
        if some := [run for run in runs if run.status == status]:
            verb = "diverged" if status == "diverged" else f"{'is' if len(some) == 1 else 'are'} {status}"
            reasons = [reason for reason in dict.fromkeys(run.reason for run in some) if reason]
            why = f" ({listed(reasons, 2)})" if status != "diverged" and reasons else ""
            steps = sorted({run.step for run in some})
            at = f", at step {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "")
            yield f"{len(some)} of {len(runs)} {verb}{at if status != 'missing' else ''}{why}: {named(some, runs)}."


def named(some: Sequence[Run], runs: Sequence[Run]) -> str:
    """Some of the runs: by what they and no others have, else by what tells each apart, with the number of seeds where it is
    not all of a cell; of many how many cells they are.
    """
    settings = differing(runs)
    if len(some) == len(runs):
        return "all of them"
    cells, those, texts = grouped(runs, settings), grouped(some, settings), []
    rules = [_rule(some, runs, setting) for setting in settings] if len(those) > 1 else []
    if text := next(filter(None, rules), ""):
        return text
    for label, group in those.items():
        seeds = f" ({len(group)} of {len(cells[label])} seeds)" if len(group) < len(cells[label]) else ""
        texts.append((label or group[0].name) + seeds)
    return "; ".join(texts) if len(texts) <= MOST else f"in {len(texts)} of {len(cells)} cells"


def _rule(some: Sequence[Run], runs: Sequence[Run], setting: str) -> str:
    """The values of a setting that some runs have and no others, "" where there are none such or too many to be named."""
    rest = [run for run in runs if run not in some]
    here, there = ([run.number(setting) for run in part] for part in (some, rest))
    if all(map(math.isfinite, (*here, *there))):
        if min(here) > max(there):
            return f"all with {setting} >= {min(here):g}"
        if max(here) < min(there):
            return f"all with {setting} <= {max(here):g}"
    values = [run.settings.get(setting) for run in some]
    if {*map(as_typed, values)} & {as_typed(run.settings.get(setting)) for run in rest}:
        return ""
    texts = values_of(some, setting)
    return f"all with {setting}={' or '.join(texts)}" if len(texts) <= MOST else ""


def _values(runs: Sequence[Run], setting: str) -> str:
    """The values that a setting has; of many their range."""
    texts = values_of(runs, setting)
    numbers = [value for run in runs if (value := run.number(setting)) == value]
    if len(texts) > MOST and len(numbers) == len(runs):
        return f"{len(texts)} values from {min(numbers):g} to {max(numbers):g}"
    return listed(texts, MOST)


def _edge(runs: Sequence[Run]) -> Iterator[str]:
    """Who came to the edge of stability, and the range of the ratio."""
    ratios = {run: run.late(RATIO, QUARTER) for run in runs}
    known = sorted((run for run in ratios if math.isfinite(ratios[run])), key=lambda run: ratios[run])
    if not known:
        return
    over = [run for run in known if ratios[run] >= EDGE]
    where = f": {named(over, known)}" if over and len(over) < len(known) else ""
    yield (
        f"{len(over) or 'None'} of the {len(known)} runs that did not diverge ended at the edge of stability or past it "
        f"(lambda_max at least {EDGE} of its threshold, mean over the last quarter){where}."
    )
    if len(known) > 1:
        settings = [*differing(runs), SEED]
        low, high = (f"{ratios[run]:.2g} ({run.label(settings) or run.name})" for run in (known[0], known[-1]))
        yield f"lambda_max over its threshold goes from {low} to {high}."


def _phases(runs: Sequence[Run]) -> Iterator[str]:
    count = Counter(phase for run in runs if isinstance(phase := run.results.get("phase"), str) and phase)
    if len(count) > 1 or (count and len(runs) > 1):
        yield f"Phases at the end: {listed([f'{number} {phase}' for phase, number in count.most_common()])}."


def _best(runs: Sequence[Run]) -> Iterator[str]:
    """Which setting came out best, with the interval of its mean over seeds."""
    groups = grouped([run for run in runs if run.status == "finished"], differing(runs))
    for tag, better, name in BEST:
        means = {label: SeedMean.of([run.late(tag, 0) for run in group]) for label, group in groups.items()}
        known = {label: mean for label, mean in means.items() if mean.n}
        if len(known) > 1:
            label = better(known, key=lambda one: known[one].value)
            mean = known[label]
            of = f" (95 % interval {mean.low:.3g} to {mean.high:.3g}, {mean.n} seeds)" if mean.n > 1 else ""
            yield f"The {'highest' if better is max else 'lowest'} {name} at the end is {mean.value:.3g}{of}, with {label}."
            return

"""A report out of runs: which columns the table has, which figures are drawn, and what the runs have in common."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lab.compare.groups import SEED
from lab.compare.run import Run, as_typed, short
from lab.compare.runs import Runs
from lab.compare.strangers import Unreadable, flattened, plain, read_json, shown
from lab.report.content import Fact, Report, RunRow, Value
from lab.report.pictures import chapters
from lab.report.settings import ReportSettings
from lab.report.story import statuses, told

RESULTS = {
    "phase": "phase",
    "late/sharpness/ratio": "lambda / threshold",
    "late/batch_sharpness/ratio": "batch sharpness / (2/lr)",
    "late/sharpness/lambda_max": "lambda_max",
    "entry_step": "edge reached at step",
    "late/train/loss": "train loss",
    "test/loss": "test loss",
    "test/accuracy": "test accuracy",
    "step": "steps",
    "seconds": "seconds",
    "reason": "reason",
}
"""What the table shows of every run, as far as one of them has it, and its heading; table.csv has all."""
MOST_PARTS = 6
"""Folders within folders in the name of a run."""
MOST_SETTINGS = 12
"""Columns of settings."""


def build(runs: Runs, left_out: Sequence[tuple[str, str]], settings: ReportSettings, folder: Path) -> Report:
    """The report of some runs that goes to `folder`, from where its links lead."""
    columns = columns_of(runs, settings.tags or ())
    names = short_names(runs)
    rows = [
        RunRow(name, os.path.relpath(run.path.absolute(), folder.absolute()) if run.path.exists() else "", run.status, [run.get(name) for name, _ in columns])
        for name, run in zip(names, runs, strict=True)
    ]
    return Report(
        title=title(runs),
        sentences=told(runs),
        statuses=statuses(runs),
        chapters=chapters(runs, settings),
        columns=columns,
        rows=rows,
        facts=list(facts(runs)),
        commands=counted(run.origin.get("command") for run in runs),
        left_out=left_out,
    )


def columns_of(runs: Runs, tags: Sequence[str]) -> list[tuple[str, str]]:
    """Name and heading of the settings in which the runs differ, then of results."""
    settings = [name for name in runs.varying if name != SEED][:MOST_SETTINGS]
    seeds = [SEED] if SEED in runs.varying else []
    results = [name for name in dict.fromkeys((*RESULTS, *tags)) if any(run.get(name) not in (None, "") for run in runs)]
    names = [*settings, *seeds, *(name for name in results if name not in settings)]
    shorts = Counter(map(short, names))
    return [(name, RESULTS.get(name) or (short(name) if shorts[short(name)] == 1 and "/" not in name else name)) for name in names]


def short_names(runs: Sequence[Run]) -> list[str]:
    """What a run is called in the table: the name of its folder less the words that all have, with the folders above it as
    far as names are alike.
    """
    parts = [run.path.absolute().parts for run in runs]
    depth = 1
    while depth < MOST_PARTS and len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    words = [[shown(word) for word in part[-1].split(",")] for part in parts]
    common = set(words[0]).intersection(*words) if len(words) > 1 else set()
    own = [",".join(word for word in of if word not in common) or ",".join(of) for of in words]
    return ["/".join([*map(shown, part[-depth:-1]), name]) for part, name in zip(parts, own, strict=True)]


def title(runs: Sequence[Run]) -> str:
    """The runs by the last part of the folder that holds them all."""
    places = {run.path.absolute().parent for run in runs}
    name = shown(Path(os.path.commonpath(places)).name) if places else ""
    return f"{name}: {len(runs)} run{'s' * (len(runs) != 1)}" if len(runs) != 1 or not name else f"{name}: {shown(runs[0].name)}"


def facts(runs: Sequence[Run]) -> Iterator[Fact]:
    """Code, data, seeds, machine, versions, and what all runs were set to."""
    recorded = [_recorded(run) for run in runs]
    named = {
        "code (git commit + hash of changes)": [run.origin.get("git") for run in runs],
        "data": [_text(run.settings.get("data")) for run in runs],
        "hash of the data": [run.origin.get("data") for run in runs],
        "seed": [run.origin.get("seed") for run in runs],
        "machine": [run.origin.get("machine") for run in runs],
        "versions": [" ".join(f"{name} {version}" for name, version in versions.items()) or None for versions in recorded],
        "made by": [f"lab.{kind}" if (kind := run.origin.get("kind")) else None for run in runs],
        "begun from": [run.origin.get("parent") for run in runs],
    }
    for name, values in named.items():
        if found := counted(values):
            yield Fact(name, found)
    if seconds := [run.number("seconds") for run in runs if run.number("seconds") == run.number("seconds")]:
        yield Fact("seconds of computing", [(f"{sum(seconds):.0f} in all, {max(seconds):.0f} the longest run", len(runs))])
    same = [name for name in runs[0].settings if len({as_typed(run.settings.get(name)) for run in runs}) == 1] if runs else []
    if same:
        yield Fact("settings that all runs share", [(" ".join(f"{name}={as_typed(runs[0].settings[name])}" for name in sorted(same)), len(runs))])


def counted(values: Iterable[object]) -> list[tuple[str, int]]:
    """Different values, and how many runs have each, without those that have none."""
    return [*Counter(as_typed(plain(value)) for value in values if value is not None).items()]


def _recorded(run: Run) -> dict[str, Value]:
    """The versions of the packages."""
    try:
        versions = read_json(run.path, "provenance.json").get("versions")
    except Unreadable:  # it has changed since the run was read
        return {}
    return dict(flattened(versions)) if isinstance(versions, dict) else {}


def _text(value: Value) -> str | None:
    return None if value is None else str(value)

"""A report out of runs: what they amount to, the figures, the columns of the table, where the runs come from."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lab.compare.groups import SEED
from lab.compare.run import Run, short
from lab.compare.runs import Runs
from lab.compare.runs import runs as runs_in
from lab.compare.strangers import shown
from lab.report.content import Report, RunRow
from lab.report.diagrams import refused
from lab.report.facts import commands, facts
from lab.report.pictures import chapters
from lab.report.settings import ReportSettings, ReportWords
from lab.report.story import statuses, told
from lab.report.writing import is_report, near
from lab.settings import SettingError

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
MOST_SETTINGS = 12
"""Columns of settings."""
MOST_PARTS = 6
"""Folders within folders in the name of a run."""


def gather(asked: ReportWords, folder: Path) -> tuple[Runs, Report]:
    """The runs that are asked for, in order, and their report that goes to `folder`. Raises SettingError where there are
    none, and for what none of them has.
    """
    found, settings = runs_in(*asked.paths), asked.settings
    lost = [(address(path, folder), reason) for path, reason in found.left_out if not is_report(path)]
    if not found:
        told = [f"{shown(str(near(path)))} {reason}" for path, reason in found.left_out[:1]]
        more = [f"and {len(found.left_out) - 1} more"] if len(found.left_out) > 1 else []
        raise SettingError(f"no run is there: {', '.join([*told, *more])}")
    runs = found.where(*settings.where)
    if not runs:
        raise SettingError(f"where=[{','.join(settings.where)}]: none of the {len(found)} runs meets it")
    if settings.tags is not None:
        settings = replace(settings, tags=tuple(_whole(runs, "tags", tag) for tag in settings.tags))
    runs = in_order(runs, settings.sort)
    return runs, build(runs, lost, settings, folder)


def build(runs: Runs, left_out: Sequence[tuple[str, str]], settings: ReportSettings, folder: Path) -> Report:
    """The report of some runs that goes to `folder`, from where its links lead."""
    columns = columns_of(runs, settings.tags or ())
    return Report(
        title=title(runs),
        sentences=told(runs),
        statuses=statuses(runs),
        chapters=chapters(runs, settings),
        columns=columns,
        rows=[
            RunRow(
                name,
                address(run.path, folder) if run.path.exists() else "",
                run.status,
                [run.get(column) for column, _ in columns],
            )
            for name, run in zip(short_names(runs), runs, strict=True)
        ],
        facts=[*facts(runs)],
        commands=commands(runs),
        left_out=left_out,
    )


def in_order(runs: Runs, by: str | None) -> Runs:
    """The runs by a column, or by the settings that vary, the seed last. Raises SettingError for no such column."""
    if by is not None:
        _whole(runs, "sort", by.removeprefix("-"))
    asked = [by] if by is not None else []
    return runs.sort(*asked, *(name for name in runs.varying if name != SEED), SEED, "name")


def _whole(runs: Runs, setting: str, name: str) -> str:
    """The whole name of a column. Raises SettingError, with the setting that was typed, for one that no run has."""
    try:
        return runs.column(name)
    except SettingError as error:
        raise refused(setting, name, error) from None


def columns_of(runs: Runs, tags: Sequence[str]) -> list[tuple[str, str]]:
    """Name and heading of the settings in which the runs differ, then of results."""
    settings = [name for name in runs.varying if name != SEED][:MOST_SETTINGS]
    settings += [SEED] if SEED in runs.varying else []
    there = [name for name in (*RESULTS, *tags) if any(run.get(name) not in (None, "") for run in runs)]
    names = list(dict.fromkeys([*settings, *there]))
    shorts = Counter(map(short, settings))
    return [(name, RESULTS.get(name) or (short(name) if shorts[short(name)] == 1 else name)) for name in names]


def address(path: Path, folder: Path) -> str:
    """A path as seen from the folder of the report."""
    return os.path.relpath(path.absolute(), folder.absolute())


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
    """How many runs, below the last part of the folder that holds them all."""
    place = shown(Path(os.path.commonpath([run.path.absolute().parent for run in runs])).name)
    what = f"{len(runs)} runs" if len(runs) > 1 else runs[0].name
    return f"{place}: {what}" if place else what

"""What a report consists of, before it is a page: sentences, pictures, a table, and where the runs came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

Value = bool | int | float | str | None
"""What a cell of the table holds."""


@dataclass(frozen=True)
class Link:
    """Part of a figure that stands for runs: their rows in the table, and what it says when it is pointed at."""

    rows: Sequence[str]
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and the sentence below it. `name` is that of its file, of letters and digits; links: where
    parts of the figure lead, by their address in the page.
    """

    name: str
    heading: str
    sentence: str
    figure: Figure
    links: Mapping[str, Link] = field(default_factory=dict)


@dataclass(frozen=True)
class Chapter:
    """Pictures under one heading, after a sentence; without pictures the sentence says why."""

    heading: str
    sentence: str = ""
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class RunRow:
    """One run in the table: the name it is shown by, the folder relative to the page, its status, and a value a column."""

    name: str
    path: str
    status: str
    values: Sequence[Value]


@dataclass(frozen=True)
class Fact:
    """Something that all runs share, or some: in how many (of all) it holds is said where they differ."""

    name: str
    values: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Report:
    """title, then what is to be known first; statuses: how many runs are in each; the table, whose columns have a name and a
    heading; what the runs are made of; the exact commands; folders that are no run, each with the reason.
    """

    title: str
    sentences: Sequence[str]
    statuses: Sequence[tuple[str, int]]
    chapters: Sequence[Chapter]
    columns: Sequence[tuple[str, str]]
    rows: Sequence[RunRow]
    facts: Sequence[Fact]
    commands: Sequence[tuple[str, int]]
    left_out: Sequence[tuple[str, str]]


def run_id(number: int) -> str:
    """The name of a row of the page, where links lead."""
    return f"run{number}"


def written(value: Value) -> str:
    """A value as a table shows it: four digits.

    >>> written(0.123456), written(None), written(True), written(150), written(1e-9)
    ('0.1235', '', 'true', '150', '1e-09')
    """
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)

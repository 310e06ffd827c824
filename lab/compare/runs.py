"""Many runs as one table: `lab.runs("outputs/**")`.

    runs = lab.runs("outputs/**")
    runs.where("status=finished", lr=0.1).sort("-sharpness/ratio").to_csv("table.csv")

A run is a row; a column is a field (name, status, seconds, ...), a setting (optimizer.lr) or a result (phase, the last value
of a tag, late/<tag>: its mean over the last quarter). What is no run, or is damaged, is left out and named.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, overload

from lab.compare.conditions import Where, resolved
from lab.compare.groups import SeedMean, over_seeds, varying
from lab.compare.run import FIELDS, Run, as_typed, short
from lab.compare.search import folders
from lab.compare.strangers import Plain, Unreadable, plain, shown
from lab.run.folder import replace
from lab.settings import SettingError

BRIEF = (
    *("phase", "late/sharpness/ratio", "late/batch_sharpness/ratio"),
    *("late/train/loss", "test/accuracy", "seconds"),
)
"""Results that a short table has, where there are any."""
SHOWN = 60
"""Rows that a notebook or a terminal is shown."""
RISKY = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet takes for a formula."""


class Runs(Sequence[Run]):
    """Runs in an order, with what was left out: (path, the reason in one line)."""

    def __init__(self, runs: Iterable[Run] = (), left_out: Iterable[tuple[Path, str]] = ()):
        self._runs, self.left_out = tuple(runs), tuple(left_out)

    @staticmethod
    def read(cells: Mapping[Path, Sequence[str] | None]) -> "Runs":
        """The runs of folders, each with its overrides (None: those of its command); one that is not there is missing."""
        made, left_out = [], []
        for path, overrides in cells.items():
            try:
                made.append(Run.read(path, overrides))
            except Unreadable as error:
                left_out.append((path, str(error)))
        return Runs(made, left_out)

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> "Runs": ...
    def __getitem__(self, index: int | slice) -> "Run | Runs":
        return self._with(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __add__(self, other: "Runs") -> "Runs":
        return Runs([*self, *other], [*self.left_out, *other.left_out])

    def where(self, *conditions: str | Callable[[Run], bool], **values: Any) -> "Runs":
        """The runs that meet all conditions: texts such as "optimizer.lr<=0.1", functions of a run, lr=0.1 by name, also by
        the last word of one, where it is the only such. Raises SettingError for a name that no run has.
        """
        texts = [Where.of(condition) for condition in conditions if isinstance(condition, str)]
        texts += [
            Where(name, "=", plain([*value] if isinstance(value, tuple) else value)) for name, value in values.items()
        ]
        named = [Where(self.column(one.name), one.sign, one.value) for one in texts] if self else []
        functions = [condition for condition in conditions if not isinstance(condition, str)]
        kept = [run for run in self if all(one.met(run) for one in named) and all(f(run) for f in functions)]
        return self._with(kept)

    def sort(self, *by: str) -> "Runs":
        """In the order of one column, or several; "-seconds" from the largest. Numbers come before texts, no value last."""
        ordered = [*self]
        for name in reversed(by):
            column, down = self.column(name.removeprefix("-")) if self else "", name.startswith("-")
            ordered.sort(key=lambda run: _place(run, column), reverse=down)
            ordered.sort(key=lambda run: run.get(column) is None)
        return self._with(ordered)

    def column(self, name: str) -> str:
        """The whole name of a column. Raises SettingError for none."""
        return resolved(name, self.columns)

    @cached_property
    def varying(self) -> list[str]:
        """The settings that are not the same in all runs; the seed is one of them."""
        return varying(self)

    @cached_property
    def columns(self) -> list[str]:
        """Every column: fields, then settings, those that vary first, then results."""
        settings = dict.fromkeys([*self.varying, *(name for run in self for name in run.settings)])
        results = dict.fromkeys(sorted({name for run in self for name in run.results}))
        return list(dict.fromkeys([*FIELDS, *settings, *results]))

    @property
    def brief(self) -> list[str]:
        """The columns of a short table: name or what varies, status, phase, ratios, loss, accuracy, seconds."""
        known = {name for run in self for name in (*run.results, "seconds")}
        return [*(self.varying or ["name"]), "status", *(name for name in BRIEF if name in known)]

    def rows(self, columns: Sequence[str] | None = None) -> list[dict[str, Plain]]:
        """A row for each run, its values by column; of all columns, or of some by name."""
        names = self.columns if columns is None else [self.column(name) for name in columns]
        return [{name: run.get(name) for name in names} for run in self]

    def to_csv(self, path: Path | str, columns: Sequence[str] | None = None) -> Path:
        """Write the table, replacing the file as a whole. What is not there is empty; a text that a spreadsheet would take
        for a formula has an apostrophe before it. Raises SettingError where the file cannot be written.
        """
        rows, file = self.rows(columns), Path(path).expanduser()
        names = [*rows[0]] if rows else list(self.columns)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([[_cell(name) for name in names], *([_cell(v) for v in row.values()] for row in rows)])
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace(file, text.getvalue().encode())
        except OSError as error:
            raise SettingError(f"{shown(str(file))} cannot be written ({error.strerror})") from None
        return file

    def frame(self, columns: Sequence[str] | None = None) -> Any:
        """The table as a pandas.DataFrame. Raises SettingError where pandas is not installed."""
        try:
            from pandas import DataFrame
        except ImportError:
            raise SettingError(
                "runs.frame() needs pandas: pip install pandas; runs.rows() gives the same as dictionaries"
            ) from None
        return DataFrame(self.rows(columns))

    def over_seeds(self) -> list["Runs"]:
        """The runs that have all settings but the seed in common."""
        return [self._with(group) for group in over_seeds(self)]

    def mean(self, name: str) -> SeedMean:
        """Mean, standard error and interval of a number over the runs that are finished and have it."""
        column = self.column(name)
        return SeedMean.of([run.number(column) for run in self if run.status == "finished"])

    def texts(self, columns: Sequence[str] | None = None) -> list[list[str]]:
        """Short names and short values as texts, for a table that is looked at: the names, then a row for each run."""
        names = list(columns or self.brief)
        head = [name if sum(short(n) == short(name) for n in names) > 1 else short(name) for name in names]
        return [head, *([_brief(run.get(name)) for name in names] for run in self)]

    def __str__(self) -> str:
        head, *rows = self.texts()
        widths = [max(map(len, column)) for column in zip(head, *rows[:SHOWN], strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows[:SHOWN]]] if self else []
        return "\n".join([*lines, *self._rest()]) or "no runs"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self.texts()
        body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows[:SHOWN])
        heads = "".join(f"<th>{escape(name)}</th>" for name in head)
        return f"<table><tr>{heads}</tr>{body}</table>" + "".join(f"<p>{escape(line)}</p>" for line in self._rest())

    def _rest(self) -> list[str]:
        """What is not in the rows that are shown."""
        more = [f"... {len(self)} runs in all"] if len(self) > SHOWN else []
        lost = [f"left out: {shown(str(path))} {reason}" for path, reason in self.left_out[:SHOWN]]
        return more + lost + ([f"... {len(self.left_out)} left out in all"] if len(self.left_out) > SHOWN else [])

    def _with(self, runs: Iterable[Run]) -> "Runs":
        return Runs(runs, self.left_out)


def runs(*places: str | Path) -> Runs:
    """The runs in folders: of a run, of a sweep, of anything that has runs below it; globs and several places will do.

        lab.runs("outputs/**"), lab.runs("outputs/train/*lr=0.1*", "/elsewhere/grid")

    Works while they are going on, and imports and resolves nothing that a folder says. 0.5 ms a run, and 1 us for each line
    of metrics.jsonl once a result is asked for.
    """
    made, left_out = list[Run](), list[tuple[Path, str]]()
    for path, reason in folders(places):
        try:
            if reason:
                raise Unreadable(reason)
            made.append(Run.read(path))
        except Unreadable as error:
            left_out.append((path, str(error)))
    return Runs(made, left_out)


def _place(run: Run, column: str) -> tuple[bool, float, str]:
    number = run.number(column)
    return (number != number, number if number == number else 0.0, as_typed(run.get(column)))


def _cell(value: Plain) -> Any:
    """A value of a CSV file."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(RISKY) else value
    return "" if value is None else as_typed(value) if isinstance(value, bool) else value


def _brief(value: Plain) -> str:
    """A value of a table that is looked at."""
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else as_typed(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."

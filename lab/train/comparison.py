"""What a grid amounts to once it is over: a table of its cells, a figure over them, and a paragraph.

The figure is the one that the settings ask for by `compare=`. Where they ask for none, it is chosen by what the cells differ
in, seeds aside: one number makes `ends`, two settings a `heatmap`, anything else `curves`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lab.doors.ending import OVER, reason, state
from lab.doors.grid import Grid
from lab.doors.pages import cell_name
from lab.doors.request import Request
from lab.run.cards import card, card_names

if TYPE_CHECKING:
    from lab.compare import Run, RunComparison, Runs
    from lab.compare.strangers import Plain

RATIO, LOSS = "sharpness/ratio", "train/loss"
"""What is drawn where nobody asks: the first where it was measured, else the second."""
COLUMNS = {
    "status": "status",
    "phase": "phase",
    "late/sharpness/ratio": "lambda/threshold",
    "late/batch_sharpness/ratio": "batch sharpness/threshold",
    "late/train/loss": "loss",
    "test/accuracy": "accuracy",
    "seconds": "seconds",
}
"""Of the table, behind what the cells differ in, as far as there is something in them, and what they are called there."""
MORE = ("reason", "step", "path")
"""Of its file besides."""
MOST_ROWS = 60
"""Rows that are printed; all are in the file."""
HEATMAP, SEED, BATCH = "heatmap", "seed", "data.batch_size"


def compare(grid: Grid) -> None:
    """Print and write the table, and the figure over the cells that are over; the others are named. Raises SettingError for
    what none of the runs has measured.
    """
    from lab.compare import carry_out

    runs, names = runs_of(grid), swept(grid.asked)
    _tell_table(runs, names, _file(grid, []))
    ended = [run for run in runs if run.status in OVER]
    asked, words = grid.head.values.get("compare"), [word.lstrip("+") for word in grid.head.overrides]
    if not ended or (asked is None and (len(runs) == 1 or grid.head.cards.get("compare") == "none")):
        return
    comparison = card(asked, "compare") if asked is not None else chosen(runs, names)
    drawn = sorted((word for word in words if word.startswith("compare")), key=lambda word: word.partition("=")[0])
    kind = card_names("compare")[f"{type(comparison).__module__}.{type(comparison).__name__}"]
    place = _file(grid, drawn or ([] if asked is not None else [f"compare={kind}"]))
    head = grid.head
    title = head.title(head.values.get("name") or head.cards.get("experiment") or "sweep")
    compared = carry_out(comparison, runs if kind == HEATMAP else ended, place, title)
    others = [run.status for run in runs if run.status not in OVER]
    others = [status for status in others if status == "refused"] if kind == HEATMAP else others  # it names the rest
    print(f"\n{compared.sentence}{_left_out(others, len(runs))}\n")
    print(f"  figure    {place}.png" + (f"    ({kind}; compare= draws another)" if asked is None else ""))
    print(f"  numbers   {place}.json", flush=True)


def runs_of(grid: Grid) -> "Runs":
    """The cells as data; what the grid knows of one that was refused, or has failed, is its status."""
    from lab.compare import Runs

    runs = Runs.read({cell.folder: cell.overrides for cell in grid.asked})
    begun = next((run for run in runs if run.settings), None)
    made = [run if run.settings else _not_begun(run, begun) for run in runs]
    errors = [grid.failures.get(run.path) for run in made]
    states = {cell.folder: state(grid, cell) for cell in grid.asked}
    known = [
        run if error is None else replace(run, status=states[run.path], reason=reason(error))
        for run, error in zip(made, errors, strict=True)
    ]
    return Runs(known, runs.left_out)


def _not_begun(run: "Run", other: "Run | None") -> "Run":
    """A cell of which nothing is there yet: its settings are those of another cell but for what was typed."""
    settings = {name: _plain(text) for name, text in run.overrides.items()}
    if other is not None:
        run = replace(run, facts=other.facts)
        settings = {**other.settings, **settings}
    return replace(run, settings=settings, origin={SEED: settings.get(SEED)})


def _plain(text: str) -> "Plain":
    """A value as it was typed, as a number where it is one.

    >>> _plain("0.1"), _plain("true"), _plain("full"), _plain("[8,8]")
    (0.1, True, 'full', '[8,8]')
    """
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def swept(cells: Sequence[Request]) -> list[str]:
    """The settings that the cells differ in, as they were typed."""
    along = zip(*(cell.overrides for cell in cells), strict=True)
    return [words[0].partition("=")[0].lstrip("+") for words in along if len(set(words)) > 1]


def chosen(runs: "Runs", names: Sequence[str]) -> "RunComparison":
    """The comparison that shows most of cells that differ in these settings."""
    from lab.compare.curves import Curves
    from lab.compare.ends import FinalValues
    from lab.compare.heatmap import Heatmap

    tag = RATIO if any(RATIO in run.series for run in runs) else LOSS
    settings = [name for name in names if name != SEED]
    if len(settings) == 1 and all(run.number(settings[0]) > 0 for run in runs if run.status in OVER):
        return FinalValues(tag=tag, x=settings[0])
    if len(settings) == 2:
        across = BATCH if BATCH in settings else settings[0]
        return Heatmap(tag=tag, x=across, y=next(name for name in settings if name != across))
    return Curves(tags=(tag,), level=1.0 if tag == RATIO else None)


def _file(grid: Grid, words: Sequence[str]) -> Path:
    """Where a figure goes, less its ending."""
    return grid.folder / "figures" / cell_name(",".join(filter(None, (grid.head.names, *words))))


def _tell_table(runs: "Runs", names: Sequence[str], file: Path) -> None:
    """Print the cells as a table, and write it."""
    columns = [*(names or ["name"]), *(name for name in COLUMNS if any(run.get(name) is not None for run in runs))]
    head, *rows = runs.texts(columns)
    head = [COLUMNS.get(name, text) for name, text in zip(columns, head, strict=True)]
    widths = [max(map(len, column)) for column in zip(head, *rows[:MOST_ROWS], strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows[:MOST_ROWS]]]
    more = [f"... {len(runs)} cells in all"] if len(runs) > MOST_ROWS else []
    print("\n" + "\n".join([*lines, *more]) + "\n")
    print(f"  table     {runs.to_csv(file.with_name(f'{file.name}.csv'), [*columns, *MORE])}", flush=True)


def _left_out(states: Sequence[str], cells: int) -> str:
    """A sentence that names the cells without a value by what became of them.

    >>> _left_out(["failed", "refused", "failed"], 16)
    ' Not in it: 2 failed, 1 refused of 16 cells.'
    """
    counts = ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(states))
    return f" Not in it: {counts} of {cells} cells." if states else ""

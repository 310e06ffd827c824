"""metrics.jsonl as arrays by tag, in one pass: a line {"step": t, "tag": "...", "value": x} each, whatever else there is.

Lines that are no measurement, and a last one that is only half written, are passed over and counted. 1 us and 16 bytes
a line.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lab.compare.strangers import MAX_ENTRIES, MAX_METRICS, Unreadable, number, opened, shown

LONGEST = 4096
"""Bytes of a line."""
TOGETHER = 4096
"""Lines that are parsed at once."""
FILE = "metrics.jsonl"
Series = dict[str, tuple[Sequence[int], Sequence[float]]]
"""Steps and values by tag."""


def require_measurements(folder: Path) -> None:
    """Raise Unreadable where the metrics of a folder are a link outside, no file, too large, or binary. Looks at 1 kB."""
    with opened(folder, FILE, MAX_METRICS) as handle:
        if handle and b"\0" in handle.read(1024):
            raise Unreadable(f"{FILE} is binary")


def read_series(folder: Path) -> tuple[Series, int]:
    """Steps and finite values by tag, and how many lines are no measurement. Raises Unreadable as above, and for a file with
    more tags than a run has.
    """
    series: dict[str, tuple[array[int], array[float]]] = {}
    passed_over = 0
    with opened(folder, FILE, MAX_METRICS) as handle:
        for lines in _chunks(handle) if handle else ():
            for point in _parsed(lines):
                if not isinstance(point, dict):
                    passed_over += 1
                    continue
                step, tag, value = point.get("step"), point.get("tag"), number(point.get("value"))
                if type(step) is not int or not 0 <= step < 2**62 or not isinstance(tag, str) or value != value:
                    passed_over += 1
                    continue
                if (pair := series.get(tag)) is None:
                    if len(series) >= MAX_ENTRIES:
                        raise Unreadable(f"{FILE} has more than {MAX_ENTRIES} tags")
                    pair = series[tag] = (array("q"), array("d"))
                pair[0].append(step)
                pair[1].append(value)
    return {shown(tag): pair for tag, pair in series.items()}, passed_over


def _chunks(handle: IO[bytes]) -> Iterator[list[bytes]]:
    """Lines, many at a time; one that is too long for a measurement is null in its place."""
    while lines := list(islice(_lines(handle), TOGETHER)):
        yield lines


def _lines(handle: IO[bytes]) -> Iterator[bytes]:
    fresh = True
    while piece := handle.readline(LONGEST):
        ended = piece.endswith(b"\n") or len(piece) < LONGEST
        if ended:
            yield piece if fresh else b"null"
        fresh = ended


def _parsed(lines: list[bytes]) -> Iterator[Any]:
    """The values of lines of JSON, None for what is none. All at once where all are sound, which is three times as fast."""
    try:
        yield from json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        for line in lines:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None

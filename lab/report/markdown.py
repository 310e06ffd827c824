"""The same report as Markdown, as a forge shows it, with figures as PNG files beside it."""

import html
import re
from collections.abc import Iterator

from lab.report.content import Fact, Report, RunRow, written
from lab.report.markup import clean, link
from lab.report.page import times

MOST_ROWS = 100
"""Rows of a table that a forge still shows well."""
FIGURES = "figures"
"""Folder of the PNG files, beside the report."""


def picture_file(name: str) -> str:
    """The file of a picture, told from what else may lie in a folder of figures."""
    return f"{FIGURES}/report-{name}.png"


def markdown(report: Report) -> str:
    """The whole text. Whatever comes from a run is escaped: it is neither markup nor HTML."""
    return "\n".join(_lines(report)) + "\n"


def plain(text: str) -> str:
    """A text without the signs that Markdown and HTML read, on one line.

    >>> plain("a_b <i>|`x`")
    'a\\\\_b &lt;i&gt;\\\\|\\\\`x\\\\`'
    """
    line = " ".join(clean(text).split())
    line = re.sub(r"([\\`*_\[\]|~#$@!])", r"\\\1", html.escape(line, quote=False))
    return re.sub(r"(?<=\w)://", "&#58;//", line)  # a forge makes a link of an address


def code(text: str) -> str:
    """A text as code on one line, whatever it holds.

    >>> code("a`b")
    '``a`b``'
    """
    line = " ".join(clean(text).split())
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def _lines(report: Report) -> Iterator[str]:
    yield f"# {plain(report.title)}\n"
    yield ", ".join(f"{count} {status}" for status, count in report.statuses) + ".\n"
    for text in report.sentences:
        yield f"- {plain(text)}"
    for chapter in report.chapters:
        yield f"\n## {plain(chapter.heading)}\n"
        if chapter.sentence:
            yield f"{plain(chapter.sentence)}\n"
        for picture in chapter.pictures:
            yield f"### {plain(picture.heading)}\n"
            yield f"![{plain(picture.heading)}]({picture_file(picture.name)})\n"
            yield f"{plain(picture.sentence)}\n"
    yield from _table(report)
    yield from _origin(report)
    if report.left_out:
        yield "\n## Left out\n"
        yield from (f"- {code(path)}: {plain(reason)}" for path, reason in report.left_out)


def _table(report: Report) -> Iterator[str]:
    yield "\n## Runs\n"
    more = f"The first {MOST_ROWS} of {len(report.rows)}; all of them" if len(report.rows) > MOST_ROWS else "All of it"
    yield f"{more}, with every setting and result: [table.csv](table.csv).\n"
    heads = ["run", "status", *(heading for _, heading in report.columns)]
    yield f"| {' | '.join(map(plain, heads))} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(_cells(row))} |" for row in report.rows[:MOST_ROWS])


def _cells(row: RunRow) -> list[str]:
    name = f"[{plain(row.name)}](<{link(row.path)}>)" if row.path else plain(row.name)
    return [name, row.status, *(plain(written(value)) for value in row.values)]


def _origin(report: Report) -> Iterator[str]:
    yield "\n## Where the runs come from\n"
    yield "| | |\n|---|---|"
    yield from (f"| {plain(fact.name)} | {_values(fact, len(report.rows))} |" for fact in report.facts)
    yield "\n### Exact commands\n"
    shown = report.commands[:MOST_ROWS]
    lines = "\n".join(" ".join(clean(command).split("\n")) + times(runs) for command, runs in shown)
    fence = "`" * max(3, max(map(len, re.findall("`+", lines)), default=0) + 1)
    yield f"{fence}sh\n{lines}\n{fence}"
    if len(report.commands) > len(shown):
        yield f"\n{len(report.commands) - len(shown)} more are in index.html."


def _values(fact: Fact, runs: int) -> str:
    parts = [f"{code(value)}{f' ({count} of {runs} runs)' if count != runs else ''}" for value, count in fact.values]
    return "<br>".join(parts).replace("|", "\\|")

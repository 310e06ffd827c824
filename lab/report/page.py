"""A report as one HTML file: style, script and figures are inside, and the browser is told to fetch nothing."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from xml.etree.ElementTree import Element

from lab.report.content import Chapter, Fact, Report, RunRow, Value, run_id, written
from lab.report.markup import add, link, node, text_of
from lab.report.svg import PIXELS, inlined

GENERATOR = "lab.report"
"""By this name a page of ours is known again."""
LONG = 40
"""Characters of a text from which on a cell of the table is folded."""
FOLDED = 400
"""Characters of a fact from which on it is shown when it is asked for."""
MOST_COMMANDS = 12
"""Commands that are shown without being asked for."""
SHRUNK = 0.9
"""Share of its size that a figure may be shrunk to, to have another one beside it."""


def page(report: Report) -> str:
    """The whole page. The same report is the same page, byte for byte."""
    here = Path(__file__)
    style, script = (here.with_name(f"page.{kind}").read_text() for kind in ("css", "js"))
    head = node(
        "head",
        node("meta", charset="utf-8"),
        _policy(script),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="generator", content=GENERATOR),
        node("meta", name="referrer", content="no-referrer"),
        node("title", report.title),
        _verbatim("style", style),
    )
    body = node(
        "body",
        node("header", node("h1", report.title), _counts(report), _answer(report.sentences)),
        node("main", *_chapters(report.chapters), *_runs(report), *_origin(report), *_left_out(report)),
        _verbatim("script", script),
    )
    return "<!doctype html>\n" + text_of(node("html", head, body, lang="en")) + "\n"


def _policy(script: str) -> Element:
    """Nothing is fetched, sent or framed, and no script runs but the one of the page."""
    digest = b64encode(sha256(script.encode()).digest()).decode()
    allowed = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return node("meta", http_equiv="Content-Security-Policy", content=allowed)


def _verbatim(tag: str, text: str) -> Element:
    """A style or a script of ours, which HTML does not escape."""
    made = Element(tag)
    made.text = text
    return made


def _counts(report: Report) -> Element:
    entries = [
        node("li", node("span", status, class_=f"status {status}"), f" {count}") for status, count in report.statuses
    ]
    return node("ul", *entries, class_="counts", aria_label="runs by status")


def _answer(sentences: Sequence[str]) -> Element:
    return node("ul", *(node("li", text) for text in sentences), class_="answer")


def _chapters(chapters: Sequence[Chapter]) -> list[Element]:
    """Each with its figures, as many beside each other as find room."""
    made, number = list[Element](), 0
    for chapter in chapters:
        widest = max((picture.figure.get_size_inches()[0] for picture in chapter.pictures), default=0.0)
        pictures = node("div", class_="pictures", style=f"--least:{SHRUNK * widest * PIXELS:.0f}px")
        for picture in chapter.pictures:
            number += 1
            drawing = node("div", inlined(picture, f"figure{number}"))
            caption = node(
                "figcaption",
                *(
                    [picture.sentence]
                    if len(picture.sentence) <= FOLDED
                    else [_folded("In numbers", node("p", picture.sentence), shown=False)]
                ),
            )
            add(pictures, node("figure", node("h3", picture.heading), drawing, caption))
        note = node("p", chapter.sentence) if chapter.sentence else None
        made.append(node("section", node("h2", chapter.heading), note, pictures if chapter.pictures else None))
    return made


def _runs(report: Report) -> list[Element]:
    """The table, a row for every run."""
    named = [("name", "run"), ("status", "status"), *report.columns]
    heads = [node("th", heading, scope="col", title=name) for name, heading in named]
    table = node(
        "table",
        node("thead", node("tr", *heads)),
        node("tbody", *(_row(number, row) for number, row in enumerate(report.rows))),
        id="runs",
    )
    whole = node("a", "table.csv", href="table.csv")
    note = node(
        "p", node("span", f"{len(report.rows)} runs", id="shown"), ". All settings and results: ", whole, class_="note"
    )
    return [node("section", node("h2", "Runs"), note, node("div", table, class_="scroll", tabindex=0))]


def _row(number: int, row: RunRow) -> Element:
    name = node("a", row.name, href=link(row.path)) if row.path else row.name
    status = node("td", node("span", row.status, class_=f"status {row.status}"), data_v=row.status)
    return node("tr", node("td", name, title=row.name), status, *map(_cell, row.values), id=run_id(number))


def _cell(value: Value) -> Element:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = written(value)
    exact = repr(value) if number and text and repr(value) != text else None
    kind = "number" if number else "long" if len(text) > LONG else None
    return node("td", text, class_=kind, data_v=exact)


def _origin(report: Report) -> list[Element]:
    """Commands, code, data, seeds, machine, versions."""
    runs, count = len(report.rows), len(report.commands)
    rows = [node("tr", node("th", fact.name, scope="row"), node("td", *_values(fact, runs))) for fact in report.facts]
    commands = "\n".join(f"{command}{times(runs)}" for command, runs in report.commands)
    return [
        node(
            "section",
            node("h2", "Where the runs come from"),
            node("div", node("table", node("tbody", *rows), class_="facts"), class_="scroll"),
            node("h3", "Exact commands"),
            _folded(f"{count} command{'s' * (count != 1)}", node("pre", commands), shown=count <= MOST_COMMANDS),
        )
    ]


def _values(fact: Fact, runs: int) -> list[Element | str]:
    parts = list[Element | str]()
    for value, count in fact.values:
        code = node("code", value)
        parts += [node("br")] if parts else []
        parts += [code if len(value) <= FOLDED else _folded(f"{value[:LONG]} ...", code, shown=False)]
        parts += [f" ({count} of {runs} runs)"] if count != runs else []
    return parts


def _folded(summary: str, inner: Element, *, shown: bool) -> Element:
    return node("details", node("summary", summary), inner, open=shown)


def times(runs: int) -> str:
    """How many runs a command has made, behind it, where it is not one."""
    return "" if runs == 1 else f"    # {runs} runs"


def _left_out(report: Report) -> list[Element]:
    if not report.left_out:
        return []
    entries = [node("li", node("code", path), f": {reason}") for path, reason in report.left_out]
    return [node("section", node("h2", "Left out"), node("ul", *entries))]

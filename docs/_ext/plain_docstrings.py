"""Docstrings of the lab are plain text; here they become reStructuredText, without a mark in the code.

A name, two spaces and a text are an item of a list, continued where a line is indented. Other indented lines, a
formula or a table, stay as they stand, and so does a doctest. The rest is prose: its special characters are escaped, and
`names` are code.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ITEM = re.compile(r"^(?P<name>\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*) {2,}(?P<text>\S.*)$")


def prose(line: str) -> str:
    """One line of prose; a name in backquotes is code, and what reStructuredText would read as a mark is a letter."""
    parts = line.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\*|`_])", r"\\\1", line)
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([\\*|_])", r"\\\1", part) for i, part in enumerate(parts))


def converted(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText.

    >>> converted(["The |w|.", "k   number", "    of them.", "tol  error."])
    ['The \\\\|w\\\\|.', '', '``k``', '    number of them.', '', '``tol``', '    error.', '']
    """
    text, at = list[str](), 0
    while at < len(lines):
        line = lines[at]
        if line.startswith(">>>"):
            text.append("")
            while at < len(lines) and lines[at].strip():
                text.append(lines[at])
                at += 1
            text.append("")
        elif line.startswith(" ") and line.strip():
            text += ["", "::", ""]
            while at < len(lines) and (lines[at].startswith(" ") or not lines[at].strip()):
                text.append("  " + lines[at])
                at += 1
            text.append("")
        elif item := ITEM.match(line):
            words = [item["text"]]
            at += 1
            while at < len(lines) and lines[at].startswith(" "):
                words.append(lines[at].strip())
                at += 1
            if text and text[-1]:
                text.append("")
            text += [f"``{item['name']}``", "    " + prose(" ".join(words)), ""]
        else:
            text.append(prose(line))
            at += 1
    return text


def convert(_: "Sphinx", what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Sphinx calls this with every docstring, and reads `lines` afterwards."""
    lines[:] = converted(lines)


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

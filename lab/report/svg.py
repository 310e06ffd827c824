"""Figures of matplotlib as elements of a page: names of their own, no address outside, colours that follow light and dark.

A grey, of which text, axes and grids are, is a mixture of the page's ink and paper: black is ink, white is paper. A dark
colour, which would not be seen on a dark page, has some ink. What lies on a coloured cell must not turn with the page:
artists whose gid begins with `fixed` stay as they are drawn.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree.ElementTree import Element, fromstring

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from lab.report.content import Picture
from lab.report.markup import UNSEEN, node

NAMESPACE = re.compile(r"\{[^}]*\}")
HEX = re.compile(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})\b")
LUMINANCE = 0.3, 0.59, 0.11
"""Of red, green and blue."""
DARK = 0.3
"""Luminance below which a colour is not seen on a dark page."""
MOST_INK = 45
"""Per cent of ink in the darkest colour."""
REFERENCE = re.compile(r"url\(#([^)]*)\)")
FONT = re.compile(r"font-family: 'DejaVu Sans'[^;\"]*; ?")
"""That of all texts but formulas: the style sheet of the page has it."""
FIXED = "fixed"
SMALLEST = 0.7
"""Share of its size that a figure is shrunk to on a narrow screen; from there on it scrolls."""
PIXELS = 96
"""Of a page, in an inch."""


@contextmanager
def harmless(figure: Figure) -> Iterator[None]:
    """Within the block the figure can be drawn whatever its labels hold: dollar signs that are no formula, letters that the
    font does not have.
    """
    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # made here, not when it is drawn
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text() and not _is_formula(text.get_text()):
            text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


@contextmanager
def _bare_texts(figure: Figure) -> Iterator[None]:
    """Within the block texts are without outlines, for which matplotlib would draw every letter as a path: the style sheet
    has one for what lies on a coloured ground.
    """
    effects = {text: text.get_path_effects() for text in figure.findobj(Text)}
    for text in effects:
        text.set_path_effects([])
    try:
        yield
    finally:
        for text, own in effects.items():
            text.set_path_effects(own)


def _is_formula(text: str) -> bool:
    try:
        MathTextParser("path").parse(text)
    except ValueError:
        return False
    return True


def inlined(picture: Picture, name: str) -> Element:
    """The figure as an <svg> whose ids begin with `name`, one of the page's own; the sentence is read to the blind."""
    buffer, figure = io.BytesIO(), picture.figure
    # The salt makes the ids, and so the bytes, the same each time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), harmless(figure), _bare_texts(figure):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # it is laid out; the next time it is drawn at half the price
    root = fromstring(UNSEEN.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue().decode()))
    _strip(root)
    turning = set[str]()
    _rename(root, name, turning)
    width = figure.get_size_inches()[0] * PIXELS
    variables = "".join(f"--c{color}:{mixture(color)};" for color in sorted(turning))
    shape = f"width:{width:.0f}px;min-width:{SMALLEST * width:.0f}px;"
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    about = UNSEEN.sub(" ", f"{picture.heading}. {picture.sentence}")
    root.attrib |= {
        "style": variables + shape,
        "role": "group" if picture.links else "img",
        "aria-label": about,
        "class": "figure",
    }
    for element in root.iter("a"):
        if link := picture.links.get(element.get("href", "")):
            element.set("data-runs", " ".join(link.rows))
            element.insert(0, node("title", link.text))
    return root


def _strip(root: Element) -> None:
    """Plain names, no metadata, no style sheet (it would hold for the whole page)."""
    for element in root.iter():
        element.tag = NAMESPACE.sub("", element.tag)
        element.tail = None if not (element.tail or "").strip() else element.tail
        element.text = None if not (element.text or "").strip() else element.text
        for key in [key for key in element.attrib if "{" in key]:
            element.set(NAMESPACE.sub("", key), element.attrib.pop(key))
        for child in list(element):
            if NAMESPACE.sub("", child.tag) in ("metadata", "style"):
                element.remove(child)


def _rename(element: Element, name: str, turning: set[str], *, fixed: bool = False) -> None:
    """Ids and references below the name of the figure, links inside the page only, colours that turn as variables."""

    def turned(match: re.Match[str]) -> str:
        color = match[0].removeprefix("#")
        if mixture(color) is None:
            return match[0]
        turning.add(color)
        return f"var(--c{color})"

    if not fixed and element.get("id", "").startswith(FIXED):
        fixed = True
        element.set("fill", "#000000")  # what matplotlib leaves out
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == "href" and value.startswith("#"):
            element.set(key, value if element.tag == "a" else f"#{name}-{value[1:]}")
        elif key == "target" or (key == "href" and not value.startswith("data:image/png;base64,")):
            del element.attrib[key]
        elif key in ("style", "fill", "stroke", "clip-path"):
            value = FONT.sub("", value)
            value = value if fixed else HEX.sub(turned, value)
            element.set(key, REFERENCE.sub(rf"url(#{name}-\1)", value))
    for child in element:
        _rename(child, name, turning, fixed=fixed)


def mixture(color: str) -> str | None:
    """What a colour of six hexadecimal digits is on a light and on a dark page; None for one that stays.

    >>> mixture("b0b0b0"), mixture("440154"), mixture("1f77b4")
    ('color-mix(in srgb,var(--ink) 31%,var(--paper))', 'color-mix(in srgb,var(--ink) 27%,#440154)', None)
    """
    parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    if len({*parts}) == 1:
        return f"color-mix(in srgb,var(--ink) {100 * (1 - parts[0]):.0f}%,var(--paper))"
    light = sum(weight * part for weight, part in zip(LUMINANCE, parts, strict=True))
    return f"color-mix(in srgb,var(--ink) {MOST_INK * (1 - light / DARK):.0f}%,#{color})" if light < DARK else None

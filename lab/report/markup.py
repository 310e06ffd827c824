"""HTML as a tree of elements: text enters it as text, so that no name of a run, tag or figure can become markup."""

import re
from urllib.parse import quote
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
"""Characters that steer a terminal, a browser or the direction of a line, or are none."""


def clean(text: str) -> str:
    """Text of a stranger as text alone: what steers a terminal or the direction of writing becomes a replacement sign.

    >>> clean("red \\x1b[31m, end")
    'red �[31m, end'
    """
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def node(tag: str, *children: Child, **attributes: str | int | bool | None) -> Element:
    """An element with its children; None is none. Attributes: `_` stands for `-`, and at the end of a name for nothing.

    >>> text_of(node("p", "1 < 2, ", node("b", "so"), " it is", class_="note", hidden=True))
    '<p class="note" hidden="">1 &lt; 2, <b>so</b> it is</p>'
    """
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            made.set(name.rstrip("_").replace("_", "-"), "" if value is True else clean(str(value)))
    return add(made, *children)


def add(made: Element, *children: Child) -> Element:
    """The same element with more children behind those that it has."""
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif child:
            last = made[-1] if len(made) else None
            if last is None:
                made.text = (made.text or "") + clean(child)
            else:
                last.tail = (last.tail or "") + clean(child)
    return made


def text_of(made: Element) -> str:
    """An element as HTML."""
    return tostring(made, encoding="unicode", method="html")


def link(path: str) -> str:
    """A relative path as the address of a link: it never names a scheme or a server.

    >>> link("javascript:alert(1)"), link("../a b/#1?"), link("//host/x")
    ('./javascript%3Aalert%281%29', '../a%20b/%231%3F', './host/x')
    """
    parts = quote(path.lstrip("/") if path.startswith("//") else path, safe="/=,+@-_.~", errors="surrogateescape")
    return parts if parts.startswith(("./", "../", "#")) else f"./{parts.lstrip('/')}"

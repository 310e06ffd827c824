"""Mathematics as MathML, which browsers draw themselves: no script, no font and no server is needed to read a formula."""

import re

from docutils import nodes
from latex2mathml.converter import convert as mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
SPACING = {
    r"<mo>([a-z]{2,})</mo>": r"<mi>\1</mi>",  # max, log: names, which a browser else sets as operators
    r'<mo stretchy="false">&#x0007C;</mo>': r'<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>',
    r"<mo>&#x022A4;</mo>": r"<mi>&#x022A4;</mi>",
    r"<mi>(log|det)</mi>": r'<mi>\1</mi><mspace width="0.15em"/>',
}
"""What the converter writes, and what browsers space as a printer would: |x|, log x, x' as a transpose."""


def formula(node: nodes.Element, display: str) -> str:
    """`node` as a <math> element; what the converter does not know is a warning, and so ends `make docs`."""
    try:
        text = mathml(node.astext(), display=display)
    except Exception as error:
        logger.warning("%s: the formula %r cannot be drawn", error, node.astext(), location=node)
        return ""
    if re.search(r"&amp;|\\", text):
        logger.warning("the formula %r holds what the converter leaves as it is", node.astext(), location=node)
    for written, wanted in SPACING.items():
        text = re.sub(written, wanted, text)
    return text


def inline(writer: nodes.NodeVisitor, node: nodes.Element) -> None:
    writer.body.append(formula(node, "inline"))  # type: ignore[attr-defined]
    raise nodes.SkipNode


def block(writer: nodes.NodeVisitor, node: nodes.Element) -> None:
    writer.body.append(f'<div class="formula">{formula(node, "block")}</div>')  # type: ignore[attr-defined]
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

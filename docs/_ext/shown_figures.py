"""Figures that an example ends a block with, as `result.figure()`: shown as a notebook would show them.

sphinx-gallery finds the figures of pyplot by itself; those of the lab are no part of pyplot.
"""

from typing import Any
from weakref import WeakSet

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

LAST = "___"
"""The name under which sphinx-gallery keeps the value of the last expression of a block."""
SHOWN: WeakSet[Figure] = WeakSet()
"""Figures that stand on a page: a block without a last expression leaves that of an earlier one in place."""


def shown(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The reStructuredText of the figure at the end of this block; "" where there is none."""
    figure = block_vars["example_globals"].get(LAST)
    if not isinstance(figure, Figure) or hasattr(figure, "number") or figure in SHOWN:
        return ""
    SHOWN.add(figure)
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=100)
    return str(figure_rst([path], gallery_conf["src_dir"]))


def _get_sg_image_scraper() -> Any:
    """What sphinx-gallery asks a module for that is named among its scrapers."""
    return shown

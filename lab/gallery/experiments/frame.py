"""The frame of a simulation's figure: a panel for every drawing, the title above them, a pale grid."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Draw = Callable[[Axes, Mapping[str, np.ndarray]], None]
"""Draws the arrays of a run into one panel, with its labels, title and legend."""


def panels(
    arrays: Mapping[str, np.ndarray],
    title: str,
    *rows: Sequence[Draw],
    size: tuple[float, float],
    widths: Sequence[float] | None = None,
    gridless: Collection[Draw] = (),
    box: bool = True,
) -> Figure:
    """Rows of as many panels each, `size` in inches; widths of the columns over each other (None: all the same).

    gridless: drawings without a grid, as of a landscape. box False: a panel has its left and its lower side only.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False, width_ratios=widths)
    figure.suptitle(title, fontsize=11)
    for axis, draw in zip(axes.flat, chain(*rows), strict=True):
        draw(axis, arrays)
        if draw not in gridless:
            axis.grid(alpha=0.25)
        if not box:
            axis.spines[["top", "right"]].set_visible(False)
    return figure

"""The figure of a simulation: a panel for every drawing, and what each panel repeats (measured points, theory, names)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]
Draw = Callable[[Axes, Arrays], None]
"""Draws the arrays of a run into one panel, with its labels, title and legend."""
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")


def panels(
    arrays: Arrays,
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


def points(axis: Axes, x: Any, values: Any, color: str = "tab:blue", label: str | None = None, **style: Any) -> None:
    """Measured values (n, 2) with their standard errors at x (n,), as dots."""
    look: dict[str, Any] = {"ls": "", "marker": "o", "ms": 5} | style
    axis.errorbar(x, *np.asarray(values).T, color=color, label=label, **look)


def law(axis: Axes, x: Any, y: Any, label: str | None = None, color: str = "tab:red", **style: Any) -> None:
    """What theory says, as a dashed line."""
    look: dict[str, Any] = {"ls": "--", "lw": 1.2} | style
    axis.plot(x, y, color=color, label=label, **look)


def caption(axis: Axes, title: str, legend: Any, *, small: float = 9, columns: int = 1) -> None:
    """The title of a panel, and its legend at the place of that name."""
    axis.set_title(title, fontsize=10)
    axis.legend(loc=legend, frameon=False, fontsize=small, ncols=columns)


def plain_ticks(axis: Axes, x: np.ndarray) -> None:
    """The values of x as plain numbers on a logarithmic axis, and no others."""
    axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.set_xticks([], minor=True)

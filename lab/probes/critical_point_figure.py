"""The pictures of critical points: the eigenvalues of one, and index against loss of several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.results import ClassifiedPoint

KINDS = ("not critical", "minimum", "saddle", "maximum", "degenerate", "undetermined")
"""The classes; critical_point/kind is the place of one in this list."""
COLORS = ("0.6", "tab:blue", "tab:red", "tab:purple", "tab:orange", "tab:olive")


@dataclass(frozen=True)
class Point:
    """A dot of the figure of index against loss; kind as the tag `kind`, exact 0 where the index is a lower bound."""

    loss: float
    fraction: float
    kind: float
    exact: float


def index_against_loss(points: Sequence[Point], title: str) -> Figure:
    """Share of negative eigenvalues against the loss, a dot for every point; hollow where it is not critical."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    for code, (kind, color) in enumerate(zip(KINDS, COLORS, strict=True)):
        for exact, marker, bound in ((True, "o", ""), (False, "^", " (at least)")):
            mine = [p for p in points if p.kind == code and p.exact == exact]
            face = color if code else "none"
            if mine:
                places = [p.loss for p in mine], [100 * p.fraction for p in mine]
                axis.plot(*places, marker, color=color, mfc=face, ms=6, alpha=0.8, label=kind + bound)
    if all(p.loss > 0 for p in points) and max(p.loss for p in points) > 10 * min(p.loss for p in points):
        axis.set_xscale("log")
    axis.set(xlabel="loss", ylabel="negative eigenvalues (% of all)")
    axis.set_title(f"index against loss, {title}", fontsize=11)
    top = max(100 * p.fraction for p in points) or 1.0
    axis.set_ylim(-0.03 * top, 1.05 * top)
    axis.grid(alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def eigenvalue_figure(point: ClassifiedPoint, title: str) -> Figure:
    """The known eigenvalues in order, with error bars, and the band that is not told from zero."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis, count = figure.subplots(), len(point.values)
    every = count == point.vectors.shape[0]
    _draw_eigenvalues(axis, point, every)
    known = "all" if every else f"the {count} known of {point.vectors.shape[0]}"
    index = f"index {'' if point.index_exact else '>= '}{point.index}"
    null = f"nullity {'' if point.nullity_exact else '>= '}{point.nullity}"
    axis.set(xlabel=f"rank ({known} eigenvalues, ascending)", ylabel="eigenvalue of the Hessian")
    axis.set_title(f"{title}: {point.kind}, {index}, {null}", fontsize=11)
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _draw_eigenvalues(axis: Axes, point: ClassifiedPoint, every: bool) -> None:
    values, ranks = point.values.cpu(), torch.arange(1, len(point.values) + 1)
    groups = (
        ("negative", values < -point.tolerance, "tab:red"),
        ("not told from zero", values.abs() <= point.tolerance, "0.5"),
        ("positive", values > point.tolerance, "tab:blue"),
    )
    for name, mine, color in groups:
        if bool(mine.any()):
            errors = point.errors.cpu()[mine]
            size = 3 if every and len(values) > 60 else 6
            axis.errorbar(ranks[mine], values[mine], errors, color=color, ls="", marker="o", ms=size, label=name)
    if point.tolerance > 0 and math.isfinite(point.tolerance):
        axis.set_yscale("symlog", linthresh=10 * point.tolerance, linscale=1.0)
        axis.axhspan(-point.tolerance, point.tolerance, color="0.5", alpha=0.2, lw=0)
    axis.axhline(0, color="k", lw=0.6)

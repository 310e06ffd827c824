"""How a plane of two settings is drawn: cells with their values, marks for cells without one, and lines of equal lr/B."""

import math
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from lab.compare.base import literal
from lab.compare.plane import Plane, PlaneAxis, PlaneCell
from lab.compare.run import short
from lab.run.summary import decimals

MARKS = {
    "diverged": ("#b33c3c", "xx"),
    "failed": ("#8c6d8c", "//"),
    "interrupted": ("#a8935b", "\\\\"),
    "running": ("#9fc5e8", ".."),
    "missing": ("#ffffff", ""),
    "no value": ("#d9d9d9", ""),
}
"""Face and hatch of a cell without a value."""
NOTES = {"no value": "no value: never reached, or not measured"}
"""What the legend says of a mark beside its name."""
WORDS = {
    "below the edge": "#7fb2d9",
    "progressive sharpening": "#f2c45a",
    "edge of stability": "#e8793a",
    "above the edge": "#c44e8a",
    "catapult": "#8e63b0",
    "interpolated before the edge": "#74b37c",
}
"""Colors of the phases; other words have those of a palette."""
CASING = [Stroke(linewidth=1.8, foreground="white", alpha=0.6), Normal()]
"""Around a dark line, which is seen on dark cells then."""
LEVELS = 6
"""Lines of equal lr/B at most."""
WIDE = 10
"""A color bar over so much is logarithmic: the largest value over the smallest."""
ROUND_OFF = 1e-12
"""An interval so small, relative to the value, is one of equal numbers."""
LONG = 1e5
"""A whole number from which on it is written with a power of ten."""
LETTERS = 12
"""In a line of a cell."""
LUMINANCE = 0.3, 0.59, 0.11
"""Of red, green and blue."""
WIDEST = 9.0
"""Of the cells of a panel (inches)."""
CROWDED = 32
"""Of the narrowest cells across a panel, from which on they have no text: there are colors."""
SMALL_FROM = 10
"""Cells in a row from which on their text is small and without errors."""


def size_of(one: Plane) -> tuple[float, float]:
    """Width and height of a panel (inches), in which the narrowest cell has room for a number."""
    wide, high = (_cells_across(axis) for axis in (one.x, one.y))
    return 2.1 + min(WIDEST, 0.68 * max(4.0, wide)), 1.3 + min(WIDEST, 0.55 * max(4.0, high))


def _cells_across(axis: PlaneAxis) -> float:
    """How many of the narrowest cells an axis is long."""
    edges = np.array(borders(axis))
    edges = np.log2(edges) if axis.log else edges
    return float((edges[-1] - edges[0]) / np.diff(edges).min())


def draw(axis: Axes, one: Plane, name: str) -> None:
    """The cells of a plane on an axis under a name, with a color bar where the values are numbers."""
    across, up = borders(one.x), borders(one.y)
    scale = None if one.words else _scale(one)
    crowded = max(_cells_across(one.x), _cells_across(one.y)) > CROWDED
    small = max(len(one.x.positions), len(one.y.positions)) > SMALL_FROM
    for cell in one.cells:
        corner, far = (across[cell.x], up[cell.y]), (across[cell.x + 1], up[cell.y + 1])
        face, hatch = _face(cell, scale, one.words)
        size = far[0] - corner[0], far[1] - corner[1]
        axis.add_patch(Rectangle(corner, *size, facecolor=face, hatch=hatch, edgecolor="0.55", lw=0.5))
        middle = _middle(corner[0], far[0], one.x.log), _middle(corner[1], far[1], one.y.log)
        bright = float(np.dot(to_rgb(face), LUMINANCE)) > 0.5
        axis.text(
            *middle,
            "" if crowded else _text(cell, small),
            ha="center",
            va="center",
            fontsize=6 if small else 7 if cell.state != "value" or cell.word else 8,
            color="black" if bright else "white",
            path_effects=[Stroke(linewidth=2.5, foreground=face), Normal()],
            linespacing=1.1,
            parse_math=False,
            zorder=4,
        )
    _axes(axis, one, across, up)
    axis.set_title(name, fontsize=10, parse_math=False, pad=16 if _is_lr_over_batch(one) else 6)
    _equal_ratios(axis, one)
    if scale is not None and axis.figure is not None:
        _color_bar(axis, scale, clipped=_is_ratio(one))


def _axes(axis: Axes, one: Plane, across: Sequence[float], up: Sequence[float]) -> None:
    """Both axes, with the values of the settings as ticks."""
    for of, edges, set_scale, set_limits, set_ticks, set_name in (
        (one.x, across, axis.set_xscale, axis.set_xlim, axis.set_xticks, axis.set_xlabel),
        (one.y, up, axis.set_yscale, axis.set_ylim, axis.set_yticks, axis.set_ylabel),
    ):
        if of.log:
            set_scale("log")
        set_limits(edges[0], edges[-1])
        set_ticks(list(of.positions), [*map(literal, of.labels)], fontsize=8)
        set_name(literal(of.setting))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", rotation=45 if max(map(len, one.x.labels)) > 6 else 0)


def _color_bar(axis: Axes, scale: ScalarMappable, *, clipped: bool) -> None:
    """The scale beside its panel, in plain numbers; clipped: values may be beyond its end."""
    assert axis.figure is not None
    bar = axis.figure.colorbar(scale, ax=axis, extend="max" if clipped else "neither", pad=0.09)
    bar.ax.tick_params(labelsize=8, which="both")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if isinstance(scale.norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, planes: Iterable[Plane]) -> None:
    """The marks and the words that are there, below."""
    planes = list(planes)
    words = list(dict.fromkeys(word for one in planes for word in one.words))
    states = dict.fromkeys(cell.state for one in planes for cell in one.cells if cell.state != "value")
    patches: list[Artist] = [
        Patch(facecolor=color, edgecolor="0.55", label=literal(word)) for word, color in colors_of(words).items()
    ]
    patches += [
        Patch(facecolor=MARKS[state][0], hatch=MARKS[state][1], edgecolor="0.55", label=NOTES.get(state, state))
        for state in states
    ]
    if any(_is_lr_over_batch(one) for one in planes):
        patches.append(Line2D([], [], color="0.25", ls="--", lw=1, label="equal lr / batch size"))
    if any(cell.mean.n > 1 and not cell.word for one in planes for cell in one.known):
        patches.append(Patch(facecolor="none", label="\u00b1: 95 % interval over n seeds"))
    if any(cell.lost for one in planes for cell in one.known):
        patches.append(Patch(facecolor="none", label="lost: runs beside those, which diverged"))
    if patches:
        figure.legend(
            handles=patches, loc="outside lower center", ncols=min(4, len(patches)), frameon=False, fontsize=9
        )


def colors_of(words: Sequence[str]) -> dict[str, str]:
    """A color for every word."""
    others = [word for word in words if word not in WORDS]
    palette = [f"C{i % 10}" for i in range(len(others))]
    return {word: WORDS.get(word) or palette[others.index(word)] for word in words}


def borders(axis: PlaneAxis) -> list[float]:
    """Where the cells begin and end: in the middle between two values, on a log axis the geometric one.

    >>> borders(PlaneAxis("b", [1.0, 4.0, 16.0], ["1", "4", "16"]))
    [0.5, 2.0, 8.0, 32.0]
    """
    at = np.log2(axis.positions) if axis.log else np.array(axis.positions, float)
    if len(at) == 1:
        ends = np.array([at[0] - 0.5, at[0] + 0.5])
    else:
        middle = (at[1:] + at[:-1]) / 2
        ends = np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])
    return [float(end) for end in (np.exp2(ends) if axis.log else ends)]


def levels(low: float, high: float) -> list[float]:
    """Round numbers 1, 2, 5 x 10^k between two, powers of ten where these are enough.

    >>> levels(0.002, 3.0)
    [0.01, 0.1, 1.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1.0,), (1.0, 2.0, 5.0)):
        found = [digit * 10.0**k for k in decades for digit in digits if low < digit * 10.0**k < high]
        if len(found) > 1:
            break
    return [float(f"{one:.3g}") for one in found[:: -(-len(found) // LEVELS) or 1]]


def _equal_ratios(axis: Axes, one: Plane) -> None:
    """Lines of equal lr/B, each with its value where it leaves the plane."""
    if not _is_lr_over_batch(one) or not (one.x.log and one.y.log):
        return
    swapped = short(one.x.setting) == "lr"
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    ends = (left / high, right / low) if swapped else (low / right, high / left)
    x = np.geomspace(left, right, 200)
    for level in levels(*ends):
        y = x / level if swapped else x * level
        inside = (y >= low) & (y <= high)
        if inside.sum() < len(x) / 10:
            continue
        axis.plot(x[inside], y[inside], color="0.15", lw=0.9, ls="--", path_effects=CASING)
        at = -1
        axis.annotate(f"{level:g}", (x[inside][at], y[inside][at]), fontsize=7, color="0.15", ha="left", va="bottom",
                      xytext=(1, 1), textcoords="offset points", annotation_clip=False)  # fmt: skip


def _is_lr_over_batch(one: Plane) -> bool:
    return {short(one.x.setting), short(one.y.setting)} == {"lr", "batch_size"}


def _is_ratio(one: Plane) -> bool:
    return one.quantity.endswith(("ratio", "ratio_of_means", "mean_of_ratios"))


def _scale(one: Plane) -> ScalarMappable | None:
    """Colors of numbers: around 1, the edge, for ratios; logarithmic where they span a decade; else linear."""
    values = [cell.mean.value for cell in one.known]
    if not values:
        return None
    low, high = min(values), max(values)
    if _is_ratio(one):
        return ScalarMappable(TwoSlopeNorm(1.0, 0.0, 2.0), colormaps["RdBu_r"])
    if low > 0 and high > WIDE * low:
        return ScalarMappable(LogNorm(low, high), colormaps["viridis"])
    return ScalarMappable(Normalize(low, high if high > low else low + 1), colormaps["viridis"])


def _face(cell: PlaneCell, scale: ScalarMappable | None, words: Sequence[str]) -> tuple[str, str]:
    if cell.state != "value":
        return MARKS[cell.state]
    if scale is None:
        return colors_of(words)[cell.word], ""
    return to_hex(scale.to_rgba(np.array([cell.mean.value]))[0]), ""


def _text(cell: PlaneCell, small: bool) -> str:
    """What stands in a cell: its value, interval and n, how many runs of it diverged; or its state, and the step."""
    if cell.state != "value":
        step = f"\nstep {cell.step}" if cell.state == "running" and not small else ""
        return {"missing": "", "no value": "-"}.get(cell.state, cell.state) + step
    mean, name = cell.mean, "" if small else textwrap.fill(cell.word, LETTERS)
    value = f"{mean.value:.0f}" if mean.value % 1 == 0 and abs(mean.value) < LONG else decimals(mean.value)
    lines, lost = [name if cell.word else value], f"{cell.lost} lost" if cell.lost else ""
    if mean.n > 1 and not small:
        reach = (mean.high - mean.low) / 2
        reach = 0.0 if reach < ROUND_OFF * abs(mean.value) else float(f"{reach:.1g}")
        lines += [*([] if cell.word else [f"\u00b1{reach:g}"]), ", ".join(filter(None, [f"n={mean.n}", lost]))]
    elif lost:
        lines += [lost]
    return "\n".join(filter(None, lines))


def _middle(low: float, high: float, log: bool) -> float:
    return math.sqrt(low * high) if log else (low + high) / 2

"""The figures of a run, as functions of what is on disk."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

Series = Mapping[str, tuple[list[int], list[float]]]
Arrays = Mapping[str, np.ndarray]

CURVATURE = "loss / weight$^2$"
"""The unit of an eigenvalue of the Hessian, and of 2/lr, which it is held against."""
EIGENVALUE = f"eigenvalue ({CURVATURE})"
THRESHOLD = "stability threshold"
BATCH = "batch_sharpness/ratio_of_means"
REACH = 2.5
"""A threshold beyond so many times the largest eigenvalue is told and not drawn: it would squeeze the spectrum."""
SQUEEZED = 10.0
"""The larger of sharpness and threshold over the smaller one from which on only a log axis shows both."""
DECADES = 1e2
"""A log axis ends at most so many times below the smaller one."""
COLUMNS, LINES = 84, 4
"""Characters in a line of a title, and lines; what is more is told by dots."""
PLAIN = 1e-3, 1e5
"""Numbers in between are written without a power of ten."""
SHORT = 60
"""Characters up to which a title has large letters."""


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches, that can be drawn without a screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def edge_figure(series: Series, summary: Mapping[str, Any]) -> Figure:
    """Loss above, sharpness with its threshold below, over the steps of the run.

    The sharpness has a log axis where threshold and sharpness would not both be seen on a linear one.
    """
    figure, whole = blank(8, 6.4), series
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    series, before = _apart(series, summary)
    _losses(above, series, summary)
    quantity = summary["quantity"]
    preconditioned = quantity == "sharpness/preconditioned"
    name = r"$\lambda_{\max}(P^{-1}H)$" if preconditioned else r"$\lambda_{\max}(H)$"
    if quantity in series and not preconditioned:
        for tag in sorted(t for t in series if t.startswith("sharpness/lambda_") and t[-1].isdigit()):
            below.plot(*series[tag], color="tab:blue", lw=0.8, alpha=0.5)
    _line(below, series, quantity, color="tab:blue", marker=".", lw=1.3, label=name)
    _band(below, series, quantity, color="tab:blue", alpha=0.2, lw=0)
    _line(below, series, "sharpness/midpoint", color="tab:cyan", marker=".", lw=1, label="at midpoints")
    if not preconditioned:
        slope = r"$g'Hg/|g|^2$"
        _line(below, series, "sharpness/directional", dot=".", color="tab:orange", lw=0.8, alpha=0.8, label=slope)
        _line(below, series, BATCH, color="tab:purple", lw=0.8, label="batch sharpness")
    thresholds = {f"{value:.4g}" for value in series.get("sharpness/threshold", ([], []))[1]}
    formula, threshold = f"threshold {summary['threshold_formula']}", "sharpness/threshold"
    if "sharpness/clipped_threshold" in series:
        _line(below, series, threshold, color="tab:red", ls=":", lw=1, label="that of steps that are not clipped")
        threshold = "sharpness/clipped_threshold"
    elif len(thresholds) == 1:
        formula += f" = {thresholds.pop()}"
    _line(below, series, threshold, color="tab:red", ls="--", lw=1.5, label=formula)
    if summary["entry_step"] is not None:
        below.axvline(summary["entry_step"], color="0.4", lw=1.2, ls=":", label="edge of stability reached")
    unit = "preconditioned, 1 / weight" if preconditioned else CURVATURE
    below.set(xlabel="step (updates)", ylabel=f"sharpness ({unit})")
    _before(above, before, {"train/loss": "-", "test/loss": "-"}, summary)
    _before(below, before, {quantity: "-", "sharpness/threshold": "--"}, summary, label=True)
    _scale(below, whole, quantity)
    _finish(figure, above, below)
    return figure


def training_figure(series: Series, summary: Mapping[str, Any]) -> Figure:
    """Loss above, accuracy below, over the steps of a run whose sharpness was not measured; the norm of the gradient where
    there is no accuracy, as of real targets.
    """
    figure = blank(8, 5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    series, before = _apart(series, summary)
    _losses(above, series, summary)
    if {"train/accuracy", "test/accuracy"} & series.keys():
        _line(below, series, "train/accuracy", color="0.25", lw=1, label="train accuracy, batch of the step")
        _line(below, series, "test/accuracy", color="tab:green", lw=1, marker=".", label="test accuracy")
        below.set(xlabel="step (updates)", ylabel="accuracy (share of examples)", ylim=(0, 1.05))
    else:
        _line(below, series, "train/grad_norm", color="tab:blue", lw=0.9, label="norm of the gradient")
        below.set(xlabel="step (updates)", ylabel="norm of the gradient")
    _before(above, before, {"train/loss": "-", "test/loss": "-"}, summary)
    _before(below, before, {"train/accuracy": "-", "test/accuracy": "-"}, summary, label=True)
    _finish(figure, above, below)
    return figure


def spectrum_figure(arrays: Arrays, title: str) -> Figure:
    """The density of eigenvalues on a log scale, and how many lie above a value: plateaus are gaps in the spectrum.

    arrays: as `probes.spectrum.SpectrumResult.arrays`. Outliers are those of the top eigenvalues above the bulk edge.
    """
    figure = blank(7.5, 7)
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    grid, values, top, size = arrays["grid"], arrays["values"], arrays["top"], float(arrays["size"])
    lone = 1 / (size * np.sqrt(2 * np.pi) * float(arrays["sigma"]))  # the peak that one eigenvalue makes
    floor = lone / 20
    above.semilogy(grid, values.clip(floor / 10), color="tab:blue", lw=1.3, label="density")
    if np.isfinite(arrays["low"]).all():
        low, high = arrays["low"].clip(floor / 10), arrays["high"].clip(floor / 10)
        above.fill_between(grid, low, high, color="tab:blue", alpha=0.25, lw=0, label="one standard error")
    outliers = top[top > arrays["edge"]]
    if len(outliers):
        marks = np.interp(outliers, grid, values.clip(lone)) * 1.6
        label = f"{len(outliers)} outliers" if len(outliers) < len(top) else f"outliers (the {len(top)} computed)"
        above.plot(outliers, marks, ls="", marker="v", ms=6, color="tab:orange", label=label)
        above.axvline(float(arrays["edge"]), color="0.6", lw=0.8, ls=":", label="bulk edge")
    above.set(xlabel=EIGENVALUE, ylabel="density of eigenvalues (weight$^2$ / loss)", title=title)
    above.set_ylim(floor, values.max() * 40)
    x, count = _count(arrays)
    below.loglog(x, count, drawstyle="steps-pre", color="tab:blue", lw=1.3)
    below.set(xlabel=EIGENVALUE, ylabel="eigenvalues above", ylim=(0.7, None))
    below.set_xlim(left=float(arrays["sigma"]) / 4)  # closer to zero the quadrature does not see
    _threshold_lines(above, below, arrays)
    for axis in (above, below):
        axis.grid(alpha=0.25)
    above.legend(loc="upper right", ncols=2, fontsize=9, edgecolor="none")
    return figure


def waterfall_figure(measurements: Mapping[int, Arrays]) -> Figure:
    """The density through training, one strip a measurement, with the top eigenvalues and the threshold on it.

    measurements: step -> arrays, as `RunFolder.all_arrays("spectrum")`.
    """
    figure = blank(8, 6)
    axis = figure.subplots()
    steps = list(measurements)
    left = min(float(a["grid"].min()) for a in measurements.values())
    right = max(float(a["grid"].max()) for a in measurements.values())
    thresholds = [(t, float(a["threshold"])) for t, a in measurements.items() if "threshold" in a]
    right = max([right, *(1.05 * x for _, x in thresholds if x < REACH * right)])
    x = np.linspace(left, right, 1200)
    rows = [np.interp(x, a["grid"], a["values"], left=0, right=0) * float(a["size"]) for a in measurements.values()]
    lone = min(1 / (np.sqrt(2 * np.pi) * float(a["sigma"])) for a in measurements.values())
    heights = np.log10(np.clip(np.stack(rows), lone / 20, None))
    mesh = axis.pcolormesh(_edges(x), _edges(np.array(steps, float)), heights, cmap="viridis", rasterized=True)
    figure.colorbar(mesh, ax=axis, label="log10 of eigenvalues per unit of curvature")
    for i, (step, a) in enumerate(measurements.items()):
        tops = a["top"][a["top"] > a["edge"]]
        label = "outliers" if i == 0 else None
        axis.plot(tops, [step] * len(tops), ls="", marker=".", ms=4, color="tab:orange", label=label, clip_on=False)
    if thresholds:
        low, high = min(y for _, y in thresholds), max(y for _, y in thresholds)
        levels = "" if low < right else f" {low:.4g}" if low == high else f" {low:.4g} to {high:.4g}"
        label = f"{THRESHOLD}{levels}" + (", off to the right" if levels else "")
        axis.plot(*zip(*((y, t) for t, y in thresholds), strict=True), color="tab:red", ls="--", label=label)
    axis.set(xlabel=EIGENVALUE, ylabel="step (updates)", title="Hessian spectrum through training", xlim=(left, right))
    axis.set_ylim(bottom=max(0.0, _edges(np.array(steps, float))[0]))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _losses(axis: Axes, series: Series, summary: Mapping[str, Any]) -> None:
    """Train and test loss on a log scale, under the title of the run and its phase."""
    if {"train/loss", "test/loss"} & series.keys():
        axis.set_yscale("log")
    _line(axis, series, "train/loss", color="0.25", lw=0.9, label="train loss")
    _line(axis, series, "test/loss", color="tab:green", lw=1.2, marker=".", label="test loss")
    axis.set_ylabel(f"loss ({summary['loss_unit']})")
    lines = wrap(summary["title"], COLUMNS, max_lines=LINES, placeholder=" ...", break_on_hyphens=False)
    title = "\n".join([*lines, *filter(None, [summary["phase"]])])
    axis.set_title(title, fontsize=11 if len(summary["title"]) <= SHORT else 9, parse_math=False)


def _count(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Positive values in ascending order and the number of eigenvalues at or above each, averaged over the vectors."""
    nodes, weights = arrays["nodes"].ravel(), arrays["weights"].ravel()
    order = np.argsort(nodes)[::-1]
    x, count = nodes[order], np.cumsum(weights[order]) * float(arrays["size"]) / len(arrays["nodes"])
    return x[x > 0][::-1], count[x > 0][::-1]


def _threshold_lines(above: Axes, below: Axes, arrays: Arrays) -> None:
    """The threshold, where it is not so far off that it would squeeze the spectrum; there the legend tells it."""
    if "threshold" not in arrays:
        return
    threshold = float(arrays["threshold"])
    below.axvline(threshold, color="tab:red", ls="--", lw=1.5)
    label = f"{THRESHOLD} {threshold:.4g}"
    if threshold < REACH * float(arrays["grid"].max()):
        above.axvline(threshold, color="tab:red", ls="--", lw=1.5, label=label)
    else:
        above.plot([], [], color="tab:red", ls="--", lw=1.5, label=f"{label}, off to the right")


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of the cells around `centres`, in their middle."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _line(axis: Axes, series: Series, tag: str, *, dot: str = "o", **style: Any) -> None:
    """The curve of a tag, if there is one; a dot where a single point would leave no line: a run that diverged at once."""
    if tag in series:
        steps, values = series[tag]
        axis.plot(steps, values, **{"marker": dot if len(steps) == 1 else ""} | style)


def _band(axis: Axes, series: Series, tag: str, **style: Any) -> None:
    """The errors of the values of a tag, where there are any."""
    values, errors = (dict(zip(*series.get(f"{head}{tag}", ([], [])), strict=True)) for head in ("", "error/"))
    if steps := sorted(values.keys() & errors.keys()):
        middle, spread = (np.array([of[step] for step in steps]) for of in (values, errors))
        axis.fill_between(steps, middle - spread, middle + spread, **style)


def _apart(series: Series, summary: Mapping[str, Any]) -> tuple[Series, Series]:
    """The series of the run, and what they have of the run that it began from: the steps before its first."""
    begin = summary.get("parent", {}).get("step", 0)
    parts: list[dict[str, tuple[list[int], list[float]]]] = [{}, {}]
    for tag, (steps, values) in series.items():
        for part, first in zip(parts, (False, True), strict=True):
            points = [(s, v) for s, v in zip(steps, values, strict=True) if (s < begin) == first]
            if points:
                part[tag] = [s for s, _ in points], [v for _, v in points]
    return parts[0], parts[1]


def _before(
    axis: Axes, before: Series, styles: Mapping[str, str], summary: Mapping[str, Any], *, label: bool = False
) -> None:
    """What the run has of its parent, in grey, and a line where it began; nothing for a run that began at step 0."""
    if "parent" not in summary:
        return
    for i, (tag, style) in enumerate(styles.items()):
        name = "its parent" if label and i == 0 and tag in before else None
        _line(axis, before, tag, color="0.72", lw=1.1, ls=style, zorder=1, label=name)
    step = summary["parent"]["step"]
    axis.axvline(step, color="0.45", lw=1.1, ls="-.", label=f"begins at step {step}" if label else None)


def _scale(axis: Axes, series: Series, quantity: str) -> None:
    """What shows the sharpness and the threshold, linear from zero or logarithmic; wild values of others are cut off."""
    tags = (quantity, "sharpness/threshold", BATCH)
    sharpness, threshold, batch = ([v for v in series.get(tag, ([], []))[1] if np.isfinite(v)] for tag in tags)
    shown = sharpness + threshold
    if not shown:
        return
    high = max(shown)
    low = min([*threshold, max(sharpness, default=high)])
    if 0 < low < high / SQUEEZED:
        drawn = quantity != "sharpness/preconditioned"
        along = series.get("sharpness/directional", ([], []))[1] if drawn else []
        least = min(value for value in [*shown, *along] if value > 0)
        axis.set_yscale("log", nonpositive="mask")
        bottom = max(least, low / DECADES)
        margin = max(2.0, (high / bottom) ** 0.05)
        axis.set_ylim(bottom / margin, high * margin)
    else:
        axis.set_ylim(min([0.0, *shown]), 1.15 * max([high, *(value for value in batch if value < 2 * high)]))


def _number(axis: Axes) -> None:
    """Plain numbers at a log axis of less than two decades, where powers of ten are one mark or none."""
    low, high = axis.get_ylim()
    if axis.get_yscale() == "log" and high < 100 * low and PLAIN[0] < low and high < PLAIN[1]:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, above: Axes, below: Axes) -> None:
    """Grids, whole steps, and one legend below both axes, where it hides nothing."""
    for axis in (above, below):
        axis.grid(alpha=0.25)
        _number(axis)
    below.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    left, right = below.get_xlim()
    if right - left < 1:  # a single step
        below.set_xlim((left + right - 1) / 2, (left + right + 1) / 2)
    handles, labels = (a + b for a, b in zip(*(x.get_legend_handles_labels() for x in (above, below)), strict=True))
    columns = len(labels) if len(labels) <= 4 else -(-len(labels) // 2)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def save(figure: Figure, file: Path) -> Path:
    """Write a PNG, making the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    return file

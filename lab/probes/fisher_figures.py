"""The pictures of the Fisher probe, drawn from its arrays: all matrices at one step, and their course through training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MATRICES = ("true", "sampled", "empirical", "covariance", "gauss_newton", "hessian", "residual")
NAMES = (
    "true Fisher F",
    "sampled Fisher",
    "empirical Fisher",
    "covariance D",
    "Gauss-Newton G",
    "Hessian H",
    "residual H - G",
)
COLORS = ("black", "tab:olive", "tab:orange", "tab:red", "tab:gray", "tab:blue", "tab:green")
REMEMBERED = ("traces", "trace_errors", "cosines", "cosine_errors")
"""The arrays that `training_figure` draws, flattened into one row a measurement behind its step."""
CURVES: dict[str, dict[str, Any]] = {
    "hessian": {"marker": ".", "lw": 1.3},
    "gauss_newton": {"lw": 5, "alpha": 0.35},
    "true": {"ls": "--", "lw": 1.2},
    "sampled": {"ls": "", "marker": "x", "ms": 5},
    "empirical": {"marker": ".", "lw": 1.3},
    "covariance": {"ls": ":", "lw": 1.6},
}
"""How the curves are drawn, what lies under another first; R is the gap of H and G."""


def matrices_figure(arrays: Mapping[str, Tensor], title: str) -> "Figure":
    """The cosines of all pairs as a table in color; beside every row its trace and its largest eigenvalue."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    table, traces, tops = figure.subplots(1, 3, width_ratios=(7, 4, 4))
    cosines, errors = arrays["cosines"].numpy(), arrays["cosine_errors"].numpy()
    image = table.imshow(np.where(np.isfinite(cosines), cosines, 0), cmap="RdBu_r", vmin=-1, vmax=1)
    for i, j in np.ndindex(cosines.shape):
        text = _rounded(float(cosines[i, j]), float(errors[i, j]))
        table.text(
            j, i, text, ha="center", va="center", fontsize=9, color="white" if abs(cosines[i, j]) > 0.6 else "black"
        )
    rows = range(len(MATRICES))
    table.set_yticks(rows, NAMES)
    table.set_xticks(rows, NAMES, rotation=35, ha="right", rotation_mode="anchor")
    table.set_title("cosine Tr(AB) / (|A| |B|); sampled: with the labels drawn", fontsize=10)
    figure.colorbar(image, ax=table, shrink=0.8)
    _bars(traces, arrays["traces"].numpy(), arrays["trace_errors"].numpy(), "trace")
    low = arrays["bottom"].numpy()
    if np.isfinite(low).any():
        tops.plot(low, rows, ls="", marker="|", ms=14, mew=2, color="0.3", label="smallest")
        tops.legend(frameon=False, fontsize=9, loc="lower right")
    _bars(tops, arrays["top"][:, 0].numpy(), None, "largest eigenvalue")
    figure.suptitle(title, fontsize=11)
    return figure


def training_figure(history: Tensor) -> "Figure":
    """Traces above, cosines with the true Fisher below, over the steps; rows of `history` as of `REMEMBERED`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    from lab.run.figures import CURVATURE

    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps, past = history[:, 0].numpy(), {name: part.numpy() for name, part in remembered(history).items()}
    for name, style in CURVES.items():
        i = MATRICES.index(name)
        style = {"color": COLORS[i], "label": NAMES[i], **style}
        above.errorbar(steps, past["traces"][:, i], past["trace_errors"][:, i], **style)
        below.errorbar(steps, past["cosines"][:, 0, i], past["cosine_errors"][:, 0, i], **style)
    drawn = past["traces"][:, [MATRICES.index(name) for name in CURVES]]
    above.set(yscale="log" if (drawn > 0).all() else "symlog", ylabel=f"trace ({CURVATURE})")
    above.set_title("Fisher against Hessian through training", fontsize=11)
    above.yaxis.set_major_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    above.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    below.set(xlabel="step (updates)", ylabel="cosine with the true Fisher")
    for axis in (above, below):
        axis.grid(alpha=0.25)
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def remembered(history: Tensor) -> dict[str, Tensor]:
    """The arrays of `REMEMBERED`, (measurements, 7) and (measurements, 7, 7), from rows (step, arrays flattened)."""
    num = len(MATRICES)
    sizes = [num, num, num * num, num * num]
    parts = dict(zip(REMEMBERED, history[:, 1:].split(sizes, dim=1), strict=True))
    return {name: part if part.shape[1] == num else part.unflatten(1, (num, num)) for name, part in parts.items()}


def _bars(axis: "Axes", values: np.ndarray, errors: np.ndarray | None, name: str) -> None:
    """Horizontal bars beside the rows of the table, their numbers written at the end."""
    from lab.run.figures import CURVATURE

    rows = range(len(values))
    axis.barh(rows, values, xerr=errors, color=COLORS, alpha=0.75, height=0.65)
    axis.axvline(0, color="0.3", lw=0.8)
    span = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    for row, value in zip(rows, values, strict=True):
        if np.isfinite(value):
            axis.text(max(value, 0) + 0.03 * span, row, f"{value:.3g}", va="center", fontsize=9)
    axis.set(ylim=(len(values) - 0.5, -0.5), yticks=[], title=f"{name} ({CURVATURE})")
    axis.title.set_fontsize(10)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.2 * (high - low))  # room for the numbers


def _rounded(value: float, error: float) -> str:
    """A cosine to two digits, fewer where its error allows no more; empty where it was not measured."""
    if not np.isfinite(value):
        return "none"
    return f"{value:.2f}" if error < 0.05 else f"{value:.1f}"

"""The figures of a run, as functions of what is on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Series = Mapping[str, tuple[list[int], list[float]]]


def edge_figure(series: Series, summary: Mapping[str, Any]) -> Figure:
    """Loss above, sharpness with its threshold below, over the steps of the run."""
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    steps, losses = series.get("train/loss", ([], []))
    above.semilogy(steps, losses, color="0.25", lw=0.9, marker=_dot(steps), label="train loss")
    if "test/loss" in series:
        above.semilogy(*series["test/loss"], color="tab:green", lw=1.2, marker=".", label="test loss")
    above.set_ylabel(f"loss ({summary['loss_unit']})")
    above.set_title(f"{summary['title']}\n{summary['phase']}", fontsize=11)

    quantity = summary["quantity"]
    preconditioned = quantity == "sharpness/preconditioned"
    name = r"$\lambda_{\max}(P^{-1}H)$" if preconditioned else r"$\lambda_{\max}(H)$"
    if quantity in series:
        if not preconditioned:
            for tag in sorted(t for t in series if t.startswith("sharpness/lambda_") and t[-1].isdigit()):
                below.plot(*series[tag], color="tab:blue", lw=0.8, alpha=0.5)
        below.plot(*series[quantity], color="tab:blue", marker=".", lw=1.3, label=name)
    if "sharpness/midpoint" in series:
        below.plot(*series["sharpness/midpoint"], color="tab:cyan", marker=".", lw=1, label="at midpoints")
    if "sharpness/directional" in series and not preconditioned:
        below.plot(*series["sharpness/directional"], color="tab:orange", lw=0.8, alpha=0.8, label=r"$g'Hg/|g|^2$")
    if "sharpness/threshold" in series:
        label = f"threshold {summary['threshold_formula']}"
        steps, thresholds = series["sharpness/threshold"]
        below.plot(steps, thresholds, color="tab:red", ls="--", lw=1.5, marker=_dot(steps), label=label)
    if summary["entry_step"] is not None:
        below.axvline(summary["entry_step"], color="0.6", lw=0.8, ls=":", label="edge of stability reached")
    below.set(xlabel="step (updates)", ylabel="sharpness (1 / learning rate)")
    below.set_ylim(*_range(series, quantity))
    for axis, place in ((above, "upper right"), (below, "lower right")):
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc=place, frameon=False, ncols=2, fontsize=9)
    return figure


def _dot(steps: list[int]) -> str:
    """A marker where a single point would leave no line: a run that diverged at once."""
    return "o" if len(steps) == 1 else ""


def _range(series: Series, quantity: str) -> tuple[float, float]:
    """From zero to what shows the sharpness and the threshold; wild values of other curves are cut off."""
    shown = [v for tag in (quantity, "sharpness/threshold") for v in series.get(tag, ([], []))[1] if np.isfinite(v)]
    return (min(0.0, *shown), 1.15 * max(shown)) if shown else (0.0, 1.0)


def save(figure: Figure, file: Path) -> Path:
    """Write a PNG, making the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    return file

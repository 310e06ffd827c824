"""The picture of docs/results/noise_spectra.md: the eigenvalues of the Hessian and of the gradient noise through training.

    python scripts/results_spectra.py RUN FIGURE.png

Two panels of the largest eigenvalues against the step, of H and of D, on one scale of decades, and between D and H: the
cosine of the two matrices, and the noise along the top eigenvectors of H over their curvature, with what theory says.
"""

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.run.figures import CURVATURE, blank, save
from lab.run.folder import RunFolder

LARGEST = 20
"""Eigenvalues that are drawn."""


def draw(run: RunFolder) -> Figure:
    """The three panels."""
    figure = blank(12, 4.2)
    hessian, noise, both = figure.subplots(1, 3)
    series = run.all_series()
    tags = ["spectrum/lambda_max", *(f"spectrum/lambda_{i}" for i in range(2, LARGEST + 1))]
    lines = [series[tag] for tag in tags if tag in series]
    eigenvalues = {step: arrays["eigenvalues"] for step, arrays in run.all_arrays("noise").items()}
    ranked(hessian, lines, "Hessian H", f"eigenvalue ({CURVATURE})")
    if "sharpness/threshold" in series:
        hessian.plot(*series["sharpness/threshold"], color="tab:red", ls="--", lw=1.3, label="2/lr")
    lines = [([*eigenvalues], [float(values[i]) for values in eigenvalues.values()]) for i in range(LARGEST)]
    ranked(noise, lines, "noise covariance D of one example", "eigenvalue (gradient$^2$)")
    both.plot(*series["noise/cosine"], color="tab:green", marker=".", label="cosine of D and H")
    both.plot(*series["noise/slope"], color="tab:blue", marker=".", label="u'Du / u'Hu along the top of H")
    both.plot(*series["noise/slope_theory"], color="tab:red", ls="--", label="2L/K, residuals of one size")
    both.set(title="D beside H", ylim=(0, None))
    both.legend(frameon=False, fontsize=9)
    for axis in (hessian, noise, both):
        axis.set_xlabel("step (updates)")
        axis.grid(alpha=0.25)
    return figure


def ranked(axis: Axes, lines: list[tuple[list[int], list[float]]], title: str, unit: str) -> None:
    """A line for each eigenvalue: the largest nine, as many as classes less one, in color, the others in grey."""
    for i, (steps, values) in reversed([*enumerate(lines)]):
        label = {0: "the largest", 8: "to the ninth", 9: f"to number {len(lines)}"}.get(i)
        axis.plot(steps, values, color="tab:blue" if i < 9 else "0.6", lw=1.5 if i == 0 else 0.9, label=label)
    axis.set(title=title, ylabel=unit, yscale="log")
    axis.legend(frameon=False, fontsize=9)


if __name__ == "__main__":
    save(draw(RunFolder(Path(sys.argv[1]))), Path(sys.argv[2]))

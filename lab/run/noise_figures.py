"""The figures of the gradient noise, as functions of what is on disk: the arrays of `lab.probes.noise`."""

from collections.abc import Mapping
from typing import get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lab.run.figures import CURVATURE
from lab.sampling import Sampling, batch_factor, cross_factor

Arrays = Mapping[str, np.ndarray]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
"""In the order of the rows of `draws_*`."""
COLOURS = {"with_replacement": "tab:blue", "without_replacement": "tab:orange", "epoch": "tab:green"}
MARKS = {"with_replacement": "o", "without_replacement": "s", "epoch": "^"}


def alignment_figure(arrays: Arrays, title: str) -> Figure:
    """The variance of the noise along eigenvectors of H against their curvature, with the fitted slope and the theory.

    arrays: curvature, variance, variance_error (k,); slope, slope_error, theory, mean_variance scalars (theory may be NaN).
    On logarithmic axes, so that the small curvature of negative directions shows: lines through the origin are parallel.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    curvature, variance, error = (arrays[name] for name in ("curvature", "variance", "variance_error"))
    slope, theory, mean = (float(arrays[name]) for name in ("slope", "theory", "mean_variance"))
    axis.set(xscale="log", yscale="log", title=title)
    for side, colour, name in ((curvature > 0, "tab:blue", "top"), (curvature < 0, "tab:purple", "most negative")):
        shown = side & (variance > 0)
        if shown.any():
            bars = np.stack([error[shown].clip(max=0.99 * variance[shown]), error[shown]])
            label = f"{name} eigenvectors of H ± 1 s.e."
            axis.errorbar(abs(curvature[shown]), variance[shown], bars, fmt="o", color=colour, label=label, zorder=3)
    x = np.array([0.7, 1.4]) * [abs(curvature).min(), abs(curvature).max()]
    if np.isfinite(slope):
        label = f"fit to the top: {slope:.3g} ± {float(arrays['slope_error']):.1g} times the curvature"
        axis.plot(x, slope * x, color="tab:blue", lw=1.2, label=label)
    if np.isfinite(theory):
        label = "1, well-specified likelihood" if theory == 1 else f"{theory:.3g}, 2L/K or a well-specified likelihood"
        axis.plot(x, theory * x, color="tab:red", ls="--", lw=1.5, label=f"theory: {label}")
    axis.axhline(mean, color="0.5", ls=":", lw=1.2, label=f"mean over all directions {mean:.2g}")
    axis.set_xlabel(rf"curvature $|\lambda|=|u'Hu|$ ({CURVATURE})")
    axis.set_ylabel(r"noise of one example $u'Du$ (gradient$^2$)")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False, ncols=2)
    return figure


def eigenvalue_figure(arrays: Arrays, title: str) -> Figure:
    """The eigenvalues of D by rank. arrays: eigenvalues (k,) descending, and trace, effective_rank, rank_bound."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    values, trace = arrays["eigenvalues"], float(arrays["trace"])
    values = values[values > 1e-12 * values.max(initial=0)]
    axis.loglog(range(1, len(values) + 1), values, color="tab:blue", marker=".", lw=1, label="eigenvalues of D")
    rank = float(arrays["effective_rank"])
    if np.isfinite(rank):
        axis.axvline(rank, color="tab:orange", lw=1.2, ls="--", label=f"effective rank {rank:.3g}")
    axis.axvline(float(arrays["rank_bound"]), color="0.5", lw=1.2, ls=":", label="largest rank possible")
    axis.set(xlabel="index", ylabel=r"eigenvalue (gradient$^2$)", title=f"{title}; top {_shares(values, trace)}")
    axis.grid(alpha=0.25)
    axis.legend(loc="lower left", frameon=False, fontsize=9)
    return figure


def draws_figure(arrays: Arrays, title: str) -> Figure:
    """Lemma 1: variance of drawn mini-batch gradients against the batch size, and covariance of two of them.

    arrays: draws_sizes (S,); draws_variance, draws_variance_error, draws_cross, draws_cross_error (3, S), in units of Tr D,
    rows in the order of `SAMPLINGS`; draws_examples the number N they are drawn from.
    """
    figure = Figure(figsize=(8, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(4, 2, 3))
    N, sizes = int(arrays["draws_examples"]), arrays["draws_sizes"]
    m = np.unique(np.geomspace(1, sizes.max(), 60).round().astype(int))
    above.loglog(
        m, [batch_factor(N, int(i), "with_replacement") for i in m], "-", color="tab:blue", label="theory: 1/m"
    )
    without = [batch_factor(N, int(i), "without_replacement") for i in m]
    above.loglog(m, without, "--", color="tab:orange", label="theory: (N - m) / (m (N - 1))")
    _points(above, arrays, "variance", np.ones((len(SAMPLINGS), len(sizes))))
    above.set(ylabel=r"$E\,|g_B-g|^2$ / Tr D", title=title)
    middle.axhline(1, color="0.4", lw=1.2)
    _points(middle, arrays, "variance", np.array([[batch_factor(N, int(i), s) for i in sizes] for s in SAMPLINGS]))
    middle.set_ylabel("measured / theory")
    below.axhline(0, color="tab:blue", lw=1.2, label="theory: 0, independent batches")
    cross = cross_factor(N, "epoch")
    below.axhline(cross, color="tab:green", ls="--", lw=1.2, label=f"theory: -1/(N - 1) = {cross:.2g}, one epoch")
    _points(below, arrays, "cross", np.ones((len(SAMPLINGS), len(sizes))))
    below.set(xlabel=f"batch size m (examples, of N = {N})", ylabel=r"$E\,(g_B-g)'(g_{B'}-g)$ / Tr D")
    low, high = below.get_ylim()
    below.set_ylim(low - 0.6 * (high - low), high)  # room for the legend
    above.legend(loc="lower left", fontsize=8.5, frameon=False)
    below.legend(
        *(part[:2] for part in below.get_legend_handles_labels()), loc="lower left", fontsize=8.5, frameon=False
    )
    for axis in (above, middle, below):
        axis.grid(alpha=0.25)
    return figure


def _points(axis: Axes, arrays: Arrays, what: str, unit: np.ndarray) -> None:
    """Measured values (3, S) over `unit`, with two standard errors, the samplings side by side."""
    for i, sampling in enumerate(SAMPLINGS):
        x = arrays["draws_sizes"] * 1.06 ** (i - 1)
        value, error = arrays[f"draws_{what}"][i] / unit[i], 2 * arrays[f"draws_{what}_error"][i] / unit[i]
        known = np.isfinite(value)
        label = f"measured ± 2 s.e.: {sampling.replace('_', ' ')}"
        fmt, colour = MARKS[sampling], COLOURS[sampling]
        axis.errorbar(x[known], value[known], error[known], fmt=fmt, ms=5, color=colour, capsize=2, label=label)


def _shares(values: np.ndarray, trace: float) -> str:
    """How much of the trace the largest eigenvalues hold."""
    few = min(10, len(values))
    share = 100 * values[:few].sum() / trace if trace > 0 else 0.0
    return f"{few} hold {share:.0f} % of Tr D"

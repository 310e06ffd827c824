"""The pictures of the gradient noise: along eigenvectors of H, by eigenvalue, and of drawn batches against Lemma 1."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lab.noise.covariance import NoiseSpectrum
from lab.run.figures import CURVATURE
from lab.sampling import SAMPLINGS, batch_factor, cross_factor

if TYPE_CHECKING:
    from lab.probes.noise_result import NoiseAlong

COLORS = {"with_replacement": "tab:blue", "without_replacement": "tab:orange", "epoch": "tab:green"}
MARKS = {"with_replacement": "o", "without_replacement": "s", "epoch": "^"}


def alignment_figure(noise: "NoiseAlong", title: str) -> Figure:
    """The variance of the noise along eigenvectors of H against their curvature, with the fitted slope and the theory.

    On logarithmic axes, so that the small curvature of negative directions shows: lines through the origin are parallel.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    curvature, variance, error = (
        x.cpu().numpy() for x in (noise.curvature, noise.variance.variance, noise.variance.error)
    )
    slope, theory, mean = noise.variance.slope, noise.theory, noise.mean
    axis.set(xscale="log", yscale="log", title=title)
    for side, color, name in ((curvature > 0, "tab:blue", "top"), (curvature < 0, "tab:purple", "most negative")):
        shown = side & (variance > 0)
        if shown.any():
            bars = np.stack([error[shown].clip(max=0.99 * variance[shown]), error[shown]])
            label = f"{name} eigenvectors of H ± 1 s.e."
            axis.errorbar(abs(curvature[shown]), variance[shown], bars, fmt="o", color=color, label=label, zorder=3)
    x = np.array([0.7, 1.4]) * [abs(curvature).min(), abs(curvature).max()]
    if np.isfinite(slope):
        label = f"fit to the top: {slope:.3g} ± {noise.variance.slope_error:.1g} times the curvature"
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


def eigenvalue_figure(spectrum: NoiseSpectrum, title: str) -> Figure:
    """The eigenvalues of D by rank."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    values, rank = spectrum.values.cpu().numpy(), spectrum.effective_rank
    values = values[values > 1e-12 * values.max(initial=0)]
    axis.loglog(range(1, len(values) + 1), values, color="tab:blue", marker=".", lw=1, label="eigenvalues of D")
    if np.isfinite(rank):
        axis.axvline(rank, color="tab:orange", lw=1.2, ls="--", label=f"effective rank {rank:.3g}")
    axis.axvline(spectrum.rank_bound, color="0.5", lw=1.2, ls=":", label="largest rank possible")
    title = f"{title}; top {_shares(values, spectrum.trace)}"
    axis.set(xlabel="index", ylabel=r"eigenvalue (gradient$^2$)", title=title)
    axis.grid(alpha=0.25)
    axis.legend(loc="lower left", frameon=False, fontsize=9)
    return figure


def draws_figure(draws: Mapping[str, Tensor], title: str) -> Figure:
    """Lemma 1: variance of drawn mini-batch gradients against the batch size, and covariance of two of them.

    draws: sizes (S,); variance, cross (3, S) with their errors, rows as `SAMPLINGS`; examples the number they come from.
    """
    figure = Figure(figsize=(8, 8.5), layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(4, 2, 3))
    N, sizes = int(draws["examples"]), draws["sizes"].numpy()
    variance, cross = ((draws[name], draws[f"{name}_error"]) for name in ("variance", "cross"))
    m = np.unique(np.geomspace(1, sizes.max(), 60).round().astype(int))
    replaced, without = ([batch_factor(N, int(i), s) for i in m] for s in ("with_replacement", "without_replacement"))
    above.loglog(m, replaced, "-", color="tab:blue", label="theory: 1/m")
    above.loglog(m, without, "--", color="tab:orange", label="theory: (N - m) / (m (N - 1))")
    _points(above, sizes, *variance, np.ones((len(SAMPLINGS), len(sizes))))
    above.set(ylabel=r"$E\,|g_B-g|^2$ / Tr D", title=title)
    middle.axhline(1, color="0.4", lw=1.2)
    _points(middle, sizes, *variance, np.array([[batch_factor(N, int(i), s) for i in sizes] for s in SAMPLINGS]))
    middle.set_ylabel("measured / theory")
    below.axhline(0, color="tab:blue", lw=1.2, label="theory: 0, independent batches")
    theory = cross_factor(N, "epoch")
    below.axhline(theory, color="tab:green", ls="--", lw=1.2, label=f"theory: -1/(N - 1) = {theory:.2g}, one epoch")
    _points(below, sizes, *cross, np.ones((len(SAMPLINGS), len(sizes))))
    below.set(xlabel=f"batch size m (examples, of N = {N})", ylabel=r"$E\,(g_B-g)'(g_{B'}-g)$ / Tr D")
    low, high = below.get_ylim()
    below.set_ylim(low - 0.6 * (high - low), high)  # room for the legend
    above.legend(loc="lower left", fontsize=8.5, frameon=False)
    lines = (part[:2] for part in below.get_legend_handles_labels())
    below.legend(*lines, loc="lower left", fontsize=8.5, frameon=False)
    for axis in (above, middle, below):
        axis.grid(alpha=0.25)
    return figure


def _points(axis: Axes, sizes: np.ndarray, values: Tensor, errors: Tensor, unit: np.ndarray) -> None:
    """Measured values (3, S) over `unit`, with two standard errors, the samplings side by side."""
    for i, sampling in enumerate(SAMPLINGS):
        x = sizes * 1.06 ** (i - 1)
        value, error = values[i].numpy() / unit[i], 2 * errors[i].numpy() / unit[i]
        known = np.isfinite(value)
        label = f"measured ± 2 s.e.: {sampling.replace('_', ' ')}"
        fmt, color = MARKS[sampling], COLORS[sampling]
        axis.errorbar(x[known], value[known], error[known], fmt=fmt, ms=5, color=color, capsize=2, label=label)


def _shares(values: np.ndarray, trace: float) -> str:
    """How much of the trace the largest eigenvalues hold."""
    few = min(10, len(values))
    share = 100 * values[:few].sum() / trace if trace > 0 else 0.0
    return f"{few} hold {share:.0f} % of Tr D"

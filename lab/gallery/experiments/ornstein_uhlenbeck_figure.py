"""The figure of ornstein_uhlenbeck, from its arrays: variances, running means, a valley, sizes of noise and tails."""

import numpy as np
import torch
from torch import Tensor

from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels, points
from lab.noise.stationary import averaging_factor
from lab.results import Estimate

KINDS = ("isotropic", "aligned")
COLORS = {"isotropic": "tab:orange", "aligned": "tab:blue"}


def draw(arrays: Arrays, title: str) -> Figure:
    above, below = (_draw_ratio, _draw_mean, _draw_valley), (_draw_climb, _draw_sizes, _draw_tails)
    return panels(arrays, title, above, below, size=(14, 8))


def relative(measured: Estimate, theory: Tensor | float) -> tuple[float, float]:
    """A measured number and its error over the theory."""
    return measured.value / float(theory), measured.error / float(theory)


def tail(w: Tensor) -> np.ndarray:
    """(2, n): |w| in units of its median, and the share of walkers beyond it."""
    size = (w.abs() / w.abs().median()).sort(descending=True).values
    rank = np.unique(np.geomspace(1, len(size), 60).astype(int)) - 1
    return np.stack([size[torch.from_numpy(rank)].numpy(), (rank + 1) / len(size)])


def _draw_ratio(axis: Axes, arrays: Arrays) -> None:
    x = np.linspace(0, 1.05 * max(arrays["product"].max(), arrays["batch_product"].max()), 50)
    axis.axhline(1, color="tab:red", ls="--", lw=1.2, label="exact (discrete)")
    law(axis, x, 1 - x / 2, "continuous formula", ls=":", lw=1.4)
    points(axis, arrays["product"], arrays["ratio"], "tab:blue", "SGD")
    points(axis, arrays["product"], arrays["ball"], "tab:green", "heavy ball", marker="^", ms=6, mfc="none")
    points(axis, arrays["batch_product"], arrays["batch"], "tab:purple", "real mini-batches", marker="s")
    axis.plot(
        arrays["batch_product"],
        arrays["additive"],
        color="tab:purple",
        ls="",
        marker="x",
        ms=7,
        label="additive noise instead",
    )
    axis.set(xlabel="lr x curvature", ylabel="variance of w / exact", ylim=(0, 1.3))
    caption(axis, "stationary variance", "lower left")


def _draw_mean(axis: Axes, arrays: Arrays) -> None:
    decay, rho = float(arrays["decay"]), np.linspace(-0.995, 0.995, 300)
    axis.semilogy(
        rho, [averaging_factor(decay, float(r)) for r in rho], color="tab:red", ls="--", lw=1.2, label="exact"
    )
    points(axis, 1 - arrays["product"], arrays["mean"], "tab:blue", "walkers")
    axis.set(xlabel="rho = 1 - lr x curvature", ylabel="variance of the mean / of w")
    caption(axis, f"running mean of the weights, decay {decay:g}", "upper left")


def _draw_valley(axis: Axes, arrays: Arrays) -> None:
    h = arrays["valley"]
    for kind in KINDS:
        axis.loglog(h, arrays[f"settled_{kind}"], color=COLORS[kind], ls="--", lw=1.2)
        points(axis, h, arrays[f"seen_{kind}"], COLORS[kind], f"{kind} noise")
    law(axis, [], [], "exact", "k")
    axis.set(xlabel="curvature h", ylabel="stationary variance of w")
    caption(axis, "a valley, noise of the same trace", "upper right")


def _draw_climb(axis: Axes, arrays: Arrays) -> None:
    for kind in KINDS:
        law(axis, arrays["times"], arrays[f"climb_law_{kind}"], color=COLORS[kind])
        axis.plot(
            arrays["times"][::10],
            arrays[f"climb_{kind}"][::10],
            color=COLORS[kind],
            ls="",
            marker="o",
            ms=4,
            label=f"{kind} noise",
        )
    law(axis, [], [], "Tr[(1 - exp(-2Ht)) S]/4", "k")
    axis.set(xlabel="time (lr x steps)", ylabel="E L(t), from the minimum")
    axis.set_ylim(0, 1.45 * max(float(arrays[f"climb_law_{kind}"].max()) for kind in KINDS))
    caption(axis, "climbing out of the same valley", "upper left")


def _draw_sizes(axis: Axes, arrays: Arrays) -> None:
    a = arrays["multiples"]
    law(axis, a, arrays["markov"], "Markov, from above")
    law(axis, a, arrays["paley_zygmund"], "Paley-Zygmund, from below", ls=":", lw=1.4)
    axis.plot(a, arrays["larger"], color="tab:blue", lw=1.6, label="draws v ~ N(0, C)")
    axis.set(xlabel="a", ylabel="P(|v|^2 > a Tr C)", ylim=(0, 1.05))
    caption(axis, "how likely is large noise?", "upper right")


def _draw_tails(axis: Axes, arrays: Arrays) -> None:
    alpha = float(arrays["alpha"])
    names = {"gaussian": "Gaussian noise", "batches": "real mini-batches", "stable": f"noise of index {alpha:g}"}
    for (name, label), color in zip(names.items(), ("tab:blue", "tab:purple", "tab:green"), strict=True):
        axis.loglog(*arrays[f"tail_{name}"], color=color, lw=1.4, label=label)
    size, share = arrays["tail_stable"]
    if alpha < 2:
        line = np.geomspace(np.median(size), size[0], 20)
        middle = len(size) // 3
        law(axis, line, share[middle] * (line / size[middle]) ** -alpha, f"slope -{alpha:g}", "k", lw=1.0)
    axis.set(xlabel="|w| / median", ylabel="share of walkers beyond", xlim=(0.1, None))
    caption(axis, "tails of the stationary law", "upper right")

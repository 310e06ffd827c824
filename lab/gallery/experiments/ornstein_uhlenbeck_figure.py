"""The figure of ornstein_uhlenbeck, from its arrays: variances, running means, a valley, sizes of noise and tails."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lab.gallery.experiments.frame import panels
from lab.noise.stationary import averaging_factor
from lab.results import Estimate

KINDS = ("isotropic", "aligned")
COLORS = {"isotropic": "tab:orange", "aligned": "tab:blue"}


def draw(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
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


def _draw_ratio(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    x = np.linspace(0, 1.05 * max(arrays["product"].max(), arrays["batch_product"].max()), 50)
    axis.axhline(1, color="tab:red", ls="--", lw=1.2, label="exact (discrete)")
    axis.plot(x, 1 - x / 2, color="tab:red", ls=":", lw=1.4, label="continuous formula")
    axis.errorbar(arrays["product"], *arrays["ratio"].T, color="tab:blue", ls="", marker="o", ms=5, label="SGD")
    axis.errorbar(
        arrays["product"], *arrays["ball"].T, color="tab:green", ls="", marker="^", ms=6, mfc="none", label="heavy ball"
    )
    axis.errorbar(
        arrays["batch_product"],
        *arrays["batch"].T,
        color="tab:purple",
        ls="",
        marker="s",
        ms=5,
        label="real mini-batches",
    )
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
    axis.set_title("stationary variance", fontsize=10)
    axis.legend(loc="lower left", frameon=False, fontsize=9)


def _draw_mean(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    decay, rho = float(arrays["decay"]), np.linspace(-0.995, 0.995, 300)
    axis.semilogy(
        rho, [averaging_factor(decay, float(r)) for r in rho], color="tab:red", ls="--", lw=1.2, label="exact"
    )
    axis.errorbar(1 - arrays["product"], *arrays["mean"].T, color="tab:blue", ls="", marker="o", ms=5, label="walkers")
    axis.set(xlabel="rho = 1 - lr x curvature", ylabel="variance of the mean / of w")
    axis.set_title(f"running mean of the weights, decay {decay:g}", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_valley(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    h = arrays["valley"]
    for kind in KINDS:
        axis.loglog(h, arrays[f"settled_{kind}"], color=COLORS[kind], ls="--", lw=1.2)
        axis.errorbar(h, *arrays[f"seen_{kind}"].T, color=COLORS[kind], ls="", marker="o", ms=5, label=f"{kind} noise")
    axis.plot([], [], color="k", ls="--", lw=1.2, label="exact")
    axis.set(xlabel="curvature h", ylabel="stationary variance of w")
    axis.set_title("a valley, noise of the same trace", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_climb(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    for kind in KINDS:
        axis.plot(arrays["times"], arrays[f"climb_law_{kind}"], color=COLORS[kind], ls="--", lw=1.2)
        axis.plot(
            arrays["times"][::10],
            arrays[f"climb_{kind}"][::10],
            color=COLORS[kind],
            ls="",
            marker="o",
            ms=4,
            label=f"{kind} noise",
        )
    axis.plot([], [], color="k", ls="--", lw=1.2, label="Tr[(1 - exp(-2Ht)) S]/4")
    axis.set(xlabel="time (lr x steps)", ylabel="E L(t), from the minimum")
    axis.set_ylim(0, 1.45 * max(float(arrays[f"climb_law_{kind}"].max()) for kind in KINDS))
    axis.set_title("climbing out of the same valley", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_sizes(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    a = arrays["multiples"]
    axis.plot(a, arrays["markov"], color="tab:red", ls="--", lw=1.2, label="Markov, from above")
    axis.plot(a, arrays["paley_zygmund"], color="tab:red", ls=":", lw=1.4, label="Paley-Zygmund, from below")
    axis.plot(a, arrays["larger"], color="tab:blue", lw=1.6, label="draws v ~ N(0, C)")
    axis.set(xlabel="a", ylabel="P(|v|^2 > a Tr C)", ylim=(0, 1.05))
    axis.set_title("how likely is large noise?", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_tails(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    alpha = float(arrays["alpha"])
    names = {"gaussian": "Gaussian noise", "batches": "real mini-batches", "stable": f"noise of index {alpha:g}"}
    for (name, label), color in zip(names.items(), ("tab:blue", "tab:purple", "tab:green"), strict=True):
        axis.loglog(*arrays[f"tail_{name}"], color=color, lw=1.4, label=label)
    size, share = arrays["tail_stable"]
    if alpha < 2:
        line = np.geomspace(np.median(size), size[0], 20)
        middle = len(size) // 3
        axis.plot(
            line, share[middle] * (line / size[middle]) ** -alpha, color="k", ls="--", lw=1.0, label=f"slope -{alpha:g}"
        )
    axis.set(xlabel="|w| / median", ylabel="share of walkers beyond", xlim=(0.1, None))
    axis.set_title("tails of the stationary law", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)

"""The figure of stability_radius, from its arrays: exit times, radii, and linear stability."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.gallery.experiments.frame import panels

Kind = Literal["aligned", "isotropic"]
KINDS: tuple[Kind, ...] = ("aligned", "isotropic")
NAMES = {"aligned": "noise ~ h", "isotropic": "noise the same"}
COLORS = {"aligned": "tab:blue", "isotropic": "tab:orange"}


def draw(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
    return panels(arrays, title, (_draw_times, _draw_radii, _draw_linear), size=(13.5, 4.8))


def _logarithmic(axis: Axes, h: np.ndarray) -> None:
    """Both axes, the curvatures in plain numbers."""
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(h, [f"{each:g}" for each in h])
    axis.set_xticks([], minor=True)


def _draw_times(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    h, longest = arrays["h"], float(arrays["longest"])
    radius = arrays["settings"][0]
    for i, kind in enumerate(KINDS):
        axis.plot(h, arrays["mean"][i], color=COLORS[kind], ls="--", lw=1.2)
        error = arrays["measured_error"][i]
        axis.errorbar(h, arrays["measured"][i], error, color=COLORS[kind], ls="", marker="o", ms=5, label=NAMES[kind])
    axis.axhline(longest, color="0.5", lw=0.8, ls=":", label="watched until here")
    axis.plot([], [], color="k", ls="--", lw=1.2, label="exact, discrete chain")
    axis.set(xlabel="curvature h", ylabel=f"mean time out of |x| < {radius:g} (lr x steps)")
    _logarithmic(axis, h)
    axis.set_ylim(0.1 * float(arrays["mean"].min()), min(float(arrays["mean"].max()) * 3, 100 * longest))
    axis.set_title("every radius is left", fontsize=10)
    axis.legend(loc="lower left", frameon=False, fontsize=9)


def _draw_radii(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    h, (_, share, horizon, _) = arrays["h"], arrays["settings"]
    for i, kind in enumerate(KINDS):
        axis.plot(h, arrays["radius"][i], color=COLORS[kind], ls="--", lw=1.2)
        error = arrays["reached_error"][i]
        axis.errorbar(h, arrays["reached"][i], error, color=COLORS[kind], ls="", marker="o", ms=5, label=NAMES[kind])
    axis.plot(h, arrays["radius"][0, 0] * h[0] / h, color="tab:red", ls=":", lw=1.4, label="the claim, 1/h")
    axis.plot([], [], color="k", ls="--", lw=1.2, label="exact, discrete chain")
    axis.set(xlabel="curvature h", ylabel=f"radius in which {share:.0%} stay")
    _logarithmic(axis, h)
    axis.set_title(f"over a time of {horizon:g} (lr x steps)", fontsize=10)
    axis.legend(loc="lower left", frameon=False, fontsize=9)


def _draw_linear(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    grid, size = arrays["grid"], int(arrays["settings"][3])
    axis.axhline(0, color="k", lw=0.8)
    axis.plot(grid, arrays["mean_square"], color="tab:red", ls="--", lw=1.2, label="mean square, exact")
    axis.plot(grid, arrays["typical"], color="tab:blue", ls="--", lw=1.2, label="typical run, exact")
    axis.errorbar(
        arrays["tried"], *arrays["seen"].T, color="tab:blue", ls="", marker="o", ms=5, label="typical run, measured"
    )
    for edge, color in zip(arrays["edges"], ("tab:red", "tab:blue", "0.4"), strict=True):
        axis.axvline(edge, color=color, lw=0.8, ls=":")
    axis.plot([], [], color="0.4", lw=0.8, ls=":", label="edges (grey: full batch)")
    height = 1.2 * float(np.abs(arrays["mean_square"]).max())
    axis.set(xlabel="learning rate", ylabel="growth of log|x - x*| a step", ylim=(-1.2 * height, height))
    axis.set_title(f"noise that vanishes at the minimum, batches of {size}", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)

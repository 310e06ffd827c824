"""The figure of stability_radius, from its arrays: exit times, radii, and linear stability."""

from typing import Literal

import numpy as np

from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels, points

Kind = Literal["aligned", "isotropic"]
KINDS: tuple[Kind, ...] = ("aligned", "isotropic")
NAMES = {"aligned": "noise ~ h", "isotropic": "noise the same"}
COLORS = {"aligned": "tab:blue", "isotropic": "tab:orange"}


def draw(arrays: Arrays, title: str) -> Figure:
    return panels(arrays, title, (_draw_times, _draw_radii, _draw_linear), size=(13.5, 4.8))


def _logarithmic(axis: Axes, h: np.ndarray) -> None:
    """Both axes, the curvatures in plain numbers."""
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(h, [f"{each:g}" for each in h])
    axis.set_xticks([], minor=True)


def _draw_times(axis: Axes, arrays: Arrays) -> None:
    h, longest = arrays["h"], float(arrays["longest"])
    radius = arrays["settings"][0]
    for i, kind in enumerate(KINDS):
        law(axis, h, arrays["mean"][i], color=COLORS[kind])
        error = arrays["measured_error"][i]
        axis.errorbar(h, arrays["measured"][i], error, color=COLORS[kind], ls="", marker="o", ms=5, label=NAMES[kind])
    axis.axhline(longest, color="0.5", lw=0.8, ls=":", label="watched until here")
    law(axis, [], [], "exact, discrete chain", "k")
    axis.set(xlabel="curvature h", ylabel=f"mean time out of |x| < {radius:g} (lr x steps)")
    _logarithmic(axis, h)
    axis.set_ylim(0.1 * float(arrays["mean"].min()), min(float(arrays["mean"].max()) * 3, 100 * longest))
    caption(axis, "every radius is left", "lower left")


def _draw_radii(axis: Axes, arrays: Arrays) -> None:
    h, (_, share, horizon, _) = arrays["h"], arrays["settings"]
    for i, kind in enumerate(KINDS):
        law(axis, h, arrays["radius"][i], color=COLORS[kind])
        error = arrays["reached_error"][i]
        axis.errorbar(h, arrays["reached"][i], error, color=COLORS[kind], ls="", marker="o", ms=5, label=NAMES[kind])
    law(axis, h, arrays["radius"][0, 0] * h[0] / h, "the claim, 1/h", ls=":", lw=1.4)
    law(axis, [], [], "exact, discrete chain", "k")
    axis.set(xlabel="curvature h", ylabel=f"radius in which {share:.0%} stay")
    _logarithmic(axis, h)
    caption(axis, f"over a time of {horizon:g} (lr x steps)", "lower left")


def _draw_linear(axis: Axes, arrays: Arrays) -> None:
    grid, size = arrays["grid"], int(arrays["settings"][3])
    axis.axhline(0, color="k", lw=0.8)
    law(axis, grid, arrays["mean_square"], "mean square, exact")
    law(axis, grid, arrays["typical"], "typical run, exact", "tab:blue")
    points(axis, arrays["tried"], arrays["seen"], "tab:blue", "typical run, measured")
    for edge, color in zip(arrays["edges"], ("tab:red", "tab:blue", "0.4"), strict=True):
        axis.axvline(edge, color=color, lw=0.8, ls=":")
    law(axis, [], [], "edges (grey: full batch)", "0.4", ls=":", lw=0.8)
    height = 1.2 * float(np.abs(arrays["mean_square"]).max())
    axis.set(xlabel="learning rate", ylabel="growth of log|x - x*| a step", ylim=(-1.2 * height, height))
    caption(axis, f"noise that vanishes at the minimum, batches of {size}", "upper left")

"""The figure of `singular_langevin`: two walkers, the valley, Euler against MALA, and finite time."""

import numpy as np
import torch

from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels
from lab.gallery.landscapes.sections import Section, draw_contours


def draw(arrays: Arrays, title: str) -> Figure:
    above, below = (_draw_plane, _draw_profile), (_draw_ratio, _draw_time)
    return panels(arrays, title, above, below, size=(11, 8.6), gridless=(_draw_plane,))


def _draw_plane(axis: Axes, arrays: Arrays) -> None:
    grid = torch.from_numpy(arrays["grid"])
    shown = Section.whole(grid, grid, torch.from_numpy(arrays["loss"]))
    path = torch.from_numpy(arrays["path"])
    draw_contours(axis, shown, {"from the crossing": path[:, 0], "from the valley": path[:, 1]})
    half = float(arrays["box"])
    axis.plot([-half, half, half, -half, -half], [-half, -half, half, half, -half], color="tab:red", lw=1.5)
    axis.set_title(f"two walkers, lr = {arrays['lr'][0]:g}; red: the box at the crossing", fontsize=10)


def _draw_profile(axis: Axes, arrays: Arrays) -> None:
    lr, centres = arrays["lr"], arrays["centres"]
    s = np.cbrt(centres[:, 1]) if arrays["cusp"] else centres[:, 0]
    law(axis, s, arrays["profile_gibbs"], "theory: Gibbs by quadrature", lw=1.5, zorder=3)
    shown = [(0, -1, "tab:orange", "o"), (0, 0, "tab:green", "v"), (1, -1, "tab:blue", "s")]
    for sampler, i, color, marker in shown if len(lr) > 1 else shown[::2]:
        label = f"{'MALA' if sampler else 'Euler'}, lr = {lr[i]:g}"
        axis.plot(s, arrays["profile"][sampler, i], color=color, ls="", marker=marker, ms=5, label=label)
    top = max(arrays["profile_gibbs"].max(), arrays["profile"].max())
    where = "s on the valley (s^2, s^3)" if arrays["cusp"] else "x of the centre of the box on the valley y = 0"
    axis.set(
        xlabel=where, ylabel=f"share of time in a box of half-width {float(arrays['box']):g}", ylim=(0, 1.45 * top)
    )
    caption(axis, "along the valley", "upper right")


def _draw_ratio(axis: Axes, arrays: Arrays) -> None:
    lr = arrays["lr"]
    for i, (name, color, marker) in enumerate((("Euler", "tab:orange", "o"), ("MALA", "tab:blue", "s"))):
        value, error = arrays["ratio"][i].T
        axis.errorbar(lr, value, error, color=color, marker=marker, ms=5, capsize=2, lw=1, label=name)
    axis.axhline(1, color="tab:red", ls="--", lw=1.5, label="theory: Gibbs")
    axis.set_xscale("log")
    low, high = min(0.0, arrays["ratio"][..., 0].min()), max(1.2, arrays["ratio"][..., 0].max())
    axis.set(
        xlabel="step size lr", ylabel="time in the box at the crossing / Gibbs", ylim=(low, low + 1.35 * (high - low))
    )
    caption(axis, "the excess or deficit is the step size of Euler", "upper left")


def _draw_time(axis: Axes, arrays: Arrays) -> None:
    truth = arrays["profile_gibbs"][len(arrays["profile_gibbs"]) // 2]
    starts = (("at the crossing", "tab:purple", "o"), ("anywhere (uniform)", "tab:green", "v"))
    for (name, color, marker), curve in zip(starts, arrays["in_time"], strict=True):
        axis.errorbar(
            arrays["times"], *curve.T, color=color, marker=marker, ms=4, capsize=2, lw=1, label=f"started {name}"
        )
    axis.axhline(truth, color="tab:red", ls="--", lw=1.5, label="theory: Gibbs")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set(xlabel=f"time lr x steps (Euler, lr = {arrays['lr'][0]:g})", ylabel="P(in the box at the crossing)")
    lowest = arrays["in_time"][..., 0]
    axis.set_ylim(0.5 * lowest[lowest > 0].min(), 2)
    caption(axis, "the excess of a start at the crossing is finite time", "upper right")

"""The panels of the figure of `central_flow_toy`, each from the saved arrays of a run."""

import numpy as np
import torch

from lab.gallery.frame import Arrays, Axes, caption, law
from lab.gallery.landscapes.edge_toy import CYCLE_BOUND, EdgeToy
from lab.gallery.landscapes.sections import draw_contours, window
from lab.landscapes.factorisation import Factorisation


def draw_level(axis: Axes, arrays: Arrays) -> None:
    t, edge = np.arange(len(arrays["early"])), 2 / float(arrays["lr"])
    axis.axhline(edge, color="k", ls="--", lw=1, label="2/lr")
    axis.plot(t, arrays["plain"][:, 1], color="0.6", lw=1.3, label="gradient flow")
    axis.plot(t, arrays["early"][:, 1], color="tab:blue", lw=1.2, label="gradient descent")
    law(axis, t, arrays["central"][:, 1], "theory: central flow", ls="-.", lw=1.6)
    high = max(arrays["plain"][:, 1].max(), arrays["early"][:, 1].max())
    low = arrays["early"][:, 1].min()
    axis.set(xlabel="step", ylabel="y, the sharpness", ylim=(low - 0.05 * (high - low), high + 0.5 * (high - low)))
    caption(axis, "the sharpness stays at the edge", "upper left", columns=2)


def draw_variance(axis: Axes, arrays: Arrays) -> None:
    t = arrays["descent_steps"]
    axis.plot(t, arrays["descent"][:, 0] ** 2, color="tab:blue", lw=0.8, label="$x^2$ of gradient descent")
    name = f"$x^2$ of averaged weights, decay {float(arrays['average']):g}"
    axis.plot(t, arrays["averaged"] ** 2, color="tab:green", lw=1, label=name)
    axis.axhline(
        float(arrays["square"]), color="tab:red", ls="-.", lw=1.6, label=r"theory: $\sigma^2$ of the central flow"
    )
    top = max(float(arrays["square"]), arrays["descent"][:, 0].max() ** 2, arrays["descent"][:, 0].min() ** 2)
    axis.set(xlabel="step", ylabel="$x^2$", ylim=(-0.02 * top, 1.5 * top))
    caption(axis, "the oscillation has the variance that holds it there", "upper right")


def draw_plane(axis: Axes, arrays: Arrays) -> None:
    path, edge = torch.from_numpy(arrays["early"]), 2 / float(arrays["lr"])
    reach = 1.2 * max(float(path[:, 0].abs().max()), float(arrays["square"]) ** 0.5)
    low, high = float(path[:, 1].min()), float(max(path[:, 1].max(), arrays["plain"][:, 1].max()))
    margin = 0.15 * (high - low)
    toy = EdgeToy(pull=float(arrays["pull"]), goal=edge + float(arrays["past"]))
    shown = window(toy, [-reach, low - margin], [reach, high + 2.5 * margin])
    draw_contours(axis, shown, {"gradient descent": path})
    axis.axhline(edge, color="tab:red", ls="-.", lw=1.4)
    axis.set_title(f"its first {len(path) - 1} steps; red: y = 2/lr", fontsize=10)


def draw_growth(axis: Axes, arrays: Arrays) -> None:
    past, growth = arrays["growth_theory"].T
    law(axis, past, growth, "theory: linearised cycle", ls="-", lw=1.4)
    ratio, _, measured = arrays["growth"].T
    axis.plot(ratio, measured, color="tab:blue", ls="", marker="o", ms=6, label="gradient descent, nudged")
    axis.axhline(0, color="0.5", lw=0.8)
    axis.axvline(CYCLE_BOUND, color="k", ls=":", lw=1, label="bound 1/2")
    axis.set(xlabel="lr (y* - 2/lr)", ylabel="growth of log|y - 2/lr| a step")
    caption(axis, "the cycle of period 2 is stable below 1/2", "upper left")


def draw_noise(axis: Axes, arrays: Arrays) -> None:
    std, level, error, square, square_error = arrays["noise"].T
    edge, past = 2 / float(arrays["lr"]), float(arrays["past"])
    low = min([edge, *level[np.isfinite(level)]])
    y = np.linspace(low - 0.1 * past, edge + past, 50)
    law(axis, y, 2 * float(arrays["pull"]) * (edge + past - y), "theory: 2 k (y* - E y)", ls="-", lw=1.4)
    axis.axvline(edge, color="k", ls="--", lw=1, label="2/lr")
    axis.errorbar(level, square, square_error, error, color="tab:blue", ls="", marker="o", ms=5, label="walkers")
    for one, x, z in zip(std, level, square, strict=True):
        axis.annotate(f"  noise {one:g}", (x, z), fontsize=8, color="tab:blue", va="bottom")
    axis.set(xlabel="E y, mean sharpness", ylabel="$E\\,x^2$", ylim=(0, None))
    caption(axis, "with noise on the gradient: less sharp, same balance", "lower left")


def draw_factor(axis: Axes, arrays: Arrays) -> None:
    paths = {
        f"lr = {lr:g} (edge {2 / lr:.3g})": torch.from_numpy(path)
        for lr, path in zip(arrays["factor_lr"], arrays["factor"], strict=True)
    }
    paths["gradient flow"] = torch.from_numpy(arrays["smooth"])
    draw_contours(axis, window(Factorisation(), [2.0, -0.1], [3.4, 0.9]), paths, names=("a", "b"))
    axis.set_title("$(1 - ab)^2/2$: the learning rate chooses the minimum", fontsize=10)

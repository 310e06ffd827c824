"""The figure of `label_noise`: walkers under each noise, shares of the box, the valley, growth at the crossing."""

import torch

from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels, points
from lab.gallery.landscapes.sections import Section, draw_contours

NOISES = ("label", "minibatch", "langevin")
COLORS = ("tab:orange", "tab:green", "tab:blue")


def draw(arrays: Arrays, title: str) -> Figure:
    above, below = (_draw_plane, _draw_shares), (_draw_valley, _draw_growth)
    return panels(arrays, title, above, below, size=(11, 8.6), gridless=(_draw_plane,))


def _draw_plane(axis: Axes, arrays: Arrays) -> None:
    grid = torch.from_numpy(arrays["grid"])
    shown = Section.whole(grid, grid, torch.from_numpy(arrays["loss"]))
    axis.set_prop_cycle(color=COLORS)
    paths = dict(zip((f"{noise} noise" for noise in NOISES), torch.from_numpy(arrays["paths"]), strict=True))
    draw_contours(axis, shown, paths, names=("a", "b"))
    half = float(arrays["box"])
    axis.plot([-half, half, half, -half, -half], [-half, -half, half, half, -half], color="tab:red", lw=1.5)
    axis.set_title("a walker under each noise; red: the box at the crossing", fontsize=10)


def _draw_shares(axis: Axes, arrays: Arrays) -> None:
    for i, (noise, color, marker) in enumerate(zip(NOISES, COLORS, ("o", "v", "s"), strict=True)):
        axis.errorbar(
            arrays["steps"],
            arrays["shares"][i],
            arrays["share_errors"][i],
            color=color,
            ls="",
            marker=marker,
            ms=5,
            label=noise,
        )
    law(axis, arrays["dense_steps"], arrays["driven"], "theory: flow, then drift", ls="-", lw=1.4)
    axis.axhline(float(arrays["gibbs"]), color="tab:red", ls="--", lw=1.2, label="theory: Gibbs")
    axis.axhline(float(arrays["flow"]), color="k", ls=":", lw=1, label="gradient flow alone (lr to 0)")
    axis.set_xscale("log")
    axis.set_yscale("log")
    low = min(arrays["shares"][arrays["shares"] > 0].min(initial=1.0), float(arrays["flow"]))
    axis.set(xlabel="steps", ylabel="share of walkers in the box at the crossing", ylim=(low / 2, 2))
    caption(axis, "the noise decides who ends at the crossing", "upper left")


def _draw_valley(axis: Axes, arrays: Arrays) -> None:
    law(axis, arrays["dense_times"], arrays["drift"], "theory: drift", ls="-", lw=1.4)
    law(axis, arrays["dense_times"], arrays["leading"], "leading order in lr", "k", ls=":", lw=1)
    points(axis, arrays["times"], arrays["valley"], COLORS[0], "mean of walkers")
    axis.set(xlabel="steps of label noise on the valley b = 0", ylabel="E a", ylim=(0, 1.15 * arrays["drift"][0]))
    caption(axis, "down the valley", "upper right")


def _draw_growth(axis: Axes, arrays: Arrays) -> None:
    scale = arrays["dense_scales"]
    law(axis, scale, arrays["growth_theory"], r"theory: E log|1 + lr $\xi$|", ls="-", lw=1.4)
    law(axis, scale, -(scale**2) / 2, "leading order, $-(lr\\,s)^2/2$", "k", ls=":", lw=1)
    points(axis, arrays["scales"], arrays["growth"], COLORS[0], "walkers")
    axis.axhline(0, color="0.5", lw=0.8)
    low, high = arrays["growth_theory"].min(), arrays["growth_theory"].max()
    axis.set(xlabel="lr s", ylabel="growth of log|a + b| a step", ylim=(1.3 * low, high + 0.8 * (high - low)))
    caption(axis, "at the crossing: attracts below 0, repels above", "upper left")

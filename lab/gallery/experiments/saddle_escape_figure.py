"""The figure of saddle_escape, from its arrays: exit times, who is still there, more ways down, growth of a kick."""

import math

import numpy as np

from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels, points

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")


def draw(arrays: Arrays, title: str) -> Figure:
    above, below = (_draw_noises, _draw_inside), (_draw_directions, _draw_growth)
    return panels(arrays, title, above, below, size=(10.5, 7.8))


def _draw_noises(axis: Axes, arrays: Arrays) -> None:
    axis.semilogx(arrays["sizes"], arrays["law"], color="tab:red", ls="--", lw=1.2, label="law, slope 1 / log z")
    points(axis, arrays["noise"], arrays["left"], "tab:blue", "quadratic saddle")
    noise, law, mean, error = arrays["factorisation"]
    axis.errorbar(
        noise, mean, error, color="tab:green", ls="", marker="s", ms=6, mfc="none", label="factorisation, half way"
    )
    axis.plot(noise, law, color="tab:green", ls="", marker="_", ms=14, label="law at that radius")
    axis.set(xlabel="noise of the gradient (standard deviation)", ylabel="mean time to leave (steps)", ylim=(0, None))
    caption(axis, "less noise stays longer, by a logarithm", "lower left")


def _draw_inside(axis: Axes, arrays: Arrays) -> None:
    steps, every = arrays["steps"], max(1, len(arrays["steps"]) // 40)
    for i, noise in enumerate(arrays["noise"]):
        color = COLORS[i % len(COLORS)]
        axis.plot(steps, arrays["inside_law"][i], color=color, lw=1.2)
        axis.plot(
            steps[::every], arrays["inside"][i][::every], color=color, ls="", marker=".", ms=5, label=f"noise {noise:g}"
        )
    if arrays["furthest"] == 0:
        law(axis, steps, np.ones(len(steps)), "none downwards: never", "k", ls=":", lw=1.5)
    axis.set(xlabel="t (steps)", ylabel="P(still at the saddle after t)", ylim=(-0.03, 1.08))
    caption(axis, "points: walkers, lines: law", "lower left")


def _draw_directions(axis: Axes, arrays: Arrays) -> None:
    axis.semilogx(arrays["numbers"], arrays["many_law"], color="tab:red", ls="--", lw=1.2, label="law, psi(k/2)")
    points(axis, arrays["directions"], arrays["many"], "tab:blue", "walkers")
    axis.set(xlabel="descending directions k", ylabel="mean time to leave (steps)")
    axis.set_ylim(0, 1.1 * float(arrays["many"][:, 0].max()))
    caption(axis, f"more ways down, noise {float(arrays['middle']):g}", "lower left")


def _draw_growth(axis: Axes, arrays: Arrays) -> None:
    kicked, log_z = arrays["kicked"], float(arrays["log_z"])
    steps = np.arange(len(kicked))
    axis.semilogy(steps, kicked, color="tab:blue", lw=0.7, alpha=0.6)
    axis.plot([], [], color="tab:blue", lw=0.7, label="deep linear network, kicked")
    line = np.exp(log_z * (steps - steps[-1])) * np.median(kicked[-1])
    law(axis, steps, line, f"growth by z = {math.exp(log_z):.4g} a step")
    axis.set(xlabel="t (steps)", ylabel="|x_-| / size of the kick")
    caption(axis, "without noise: growth of a kick", "upper left")

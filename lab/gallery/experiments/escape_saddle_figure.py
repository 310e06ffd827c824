"""The figure of `escape_saddle`: mean times against the batch size, and who is still there."""

import matplotlib
import numpy as np

from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels


def draw(arrays: Arrays, title: str) -> Figure:
    return panels(arrays, title, (_draw_means, _draw_curves), size=(11, 4.8), widths=(1, 1.15), box=False)


def _draw_means(axis: Axes, arrays: Arrays) -> None:
    noise, line = arrays["noise"], arrays["line"]
    axis.semilogx(*line, color="tab:red", lw=1.6, ls="--", label="theory: curvature, learning rate and u'Du alone")
    for chosen, marker, label in ((noise[:, 1] > 0, "o", "mini-batches"), (noise[:, 1] == 0, "D", "isotropic noise")):
        x, _, mean, error, _ = noise[chosen].T
        axis.errorbar(x, mean, 2 * error, color="tab:blue", ls="", marker=marker, ms=7, mec="w", capsize=2, label=label)
    for x, _, mean, _, theory in noise:
        axis.annotate(f"x {mean / theory:.3f}", (x, mean), (0, 11), textcoords="offset points", ha="center", fontsize=9)
    axis.set(xlabel="batch size (isotropic: that of as much noise along u)", ylim=(0, 1.3 * np.nanmax(line[1])))
    axis.set(ylabel=f"mean steps until {float(arrays['radius']):g} away from the saddle")
    caption(axis, "numbers: measured over theory; bars: 2 standard errors", "lower right")


def _draw_curves(axis: Axes, arrays: Arrays) -> None:
    shades = matplotlib.colormaps["plasma"](np.linspace(0.05, 0.8, len(arrays["noise"])))
    steps = np.arange(arrays["survival"].shape[1])
    for (_, size, *_), times, theory, shade in zip(
        arrays["noise"], arrays["times"], arrays["survival"], shades, strict=True
    ):
        still = 1 - np.searchsorted(np.sort(times), steps, side="right") / len(times)
        axis.step(steps, still, where="post", color=shade, lw=1.8, label=f"batch {int(size)}" if size else "isotropic")
        law(axis, steps, theory, color=shade, lw=1.1)
    law(axis, [], [], "theory", "0.3", lw=1.1)
    axis.set(xlabel="t (steps)", ylabel="share of runs still at the saddle after t", ylim=(0, 1.03), xlim=(0, None))
    caption(axis, "who is still there", "upper right")

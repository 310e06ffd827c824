"""The figure of `escape_ballistic`: growth against the exponent of the random product, and where what left has landed."""

import matplotlib
import numpy as np

from lab.gallery.frame import Arrays, Axes, Figure, law, panels

BAND = 0.3
"""Height of the strip of the runs that stay, beside that of the growth."""
Color = tuple[float, ...]


def draw(arrays: Arrays, title: str) -> Figure:
    """From the arrays of a run: cells (lr, batch, exponent, moments, growth, error, left), edges, ends."""
    return panels(arrays, title, (_draw_growth, _draw_landing), size=(11.8, 5.3), widths=(1.2, 1), box=False)


def _colors(sizes: np.ndarray) -> dict[int, Color]:
    """Dark for small batches, light for large ones, black for the full one (0)."""
    batches = [int(size) for size in sizes if size]
    shades = matplotlib.colormaps["plasma"](np.linspace(0.05, 0.75, len(batches)))
    return {size: tuple(shade) for size, shade in zip(batches, shades, strict=True)} | {0: (0.0, 0.0, 0.0, 1.0)}


def _draw_growth(axis: Axes, arrays: Arrays) -> None:
    sizes, cells = arrays["edges"][:, 0].astype(int), arrays["cells"]
    colors = _colors(sizes)
    most = max(0.1, float(np.nanmax(cells[:, (2, 4)])))
    axis.axhspan(-BAND * most, 0, color="0.94", lw=0, zorder=0)
    axis.axhline(0, color="0.3", lw=0.8)
    for i, (size, critical, mean_square, _) in enumerate(arrays["edges"]):
        lr, _, exponent, moments, growth, error, left = cells[cells[:, 1] == size].T
        color, out = colors[int(size)], exponent > 0
        _draw_theory(axis, size, critical, mean_square, (lr, exponent, moments), color)
        axis.errorbar(
            lr[out], growth[out], error[out], color=color, ls="", marker="o", ms=7, mec="w", mew=0.8, zorder=5
        )
        row = -BAND * most * (i + 1) / (len(sizes) + 1)
        for marker, chosen in (("s", ~out & (left == 0)), ("X", ~out & (left > 0))):
            axis.plot(lr[chosen], np.full(chosen.sum(), row), color=color, ls="", marker=marker, ms=6, mfc="none")
        at = growth[out][-1] if out.any() else row
        name = axis.annotate(
            f"B = {int(size) or 'full'}", (lr[-1], at), (10, 0), textcoords="offset points", color=color
        )
        name.set(va="center", fontsize=10, fontweight="bold")
    axis.plot([], [], color="0.3", ls="", marker="o", ms=7, mec="w", label="runs of the network, batch size B")
    law(axis, [], [], "theory: Lyapunov exponent of linearised steps", "0.3", ls="-", lw=1.8)
    law(axis, [], [], r"second moments: $\frac{1}{2}\,\log\rho$", "0.3", ls=":", lw=1.3)
    axis.plot([], [], color="0.3", ls="", marker="s", mfc="none", ms=6, label="no run left (theory: they stay)")
    span = cells[:, 0].max() - 0.9 * arrays["edges"][:, 1:3].min()
    axis.set(xlim=(0.9 * min(cells[:, 0].min(), arrays["edges"][:, 2].min()), cells[:, 0].max() + 0.16 * span))
    axis.set(xlabel=r"learning rate (units of $2/S$, the edge of gradient descent)", ylim=(-BAND * most, 1.45 * most))
    axis.set(
        ylabel="growth of the distance (log per step)", yticks=[t for t in axis.get_yticks() if 0 <= t < 1.4 * most]
    )
    axis.set_title("How fast runs leave: as the exponent says, not the second moments", fontsize=10.5)
    axis.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_theory(
    axis: Axes,
    size: float,
    critical: float,
    mean_square: float,
    at: tuple[np.ndarray, np.ndarray, np.ndarray],
    color: Color,
) -> None:
    """The exponent from where it passes through zero, and log(rho)/2 likewise, through the learning rates that were run."""
    lr, exponent, moments = at
    if size == 0:
        fine = np.linspace(critical, max(lr.max(), critical), 200)
        axis.plot(fine, np.log(2 * fine - 1), color=color, lw=1.8)
        return
    for begin, value, style, width in ((critical, exponent, "-", 1.8), (mean_square, moments, ":", 1.3)):
        above = (value > 0) & (lr > begin)
        axis.plot([begin, *lr[above]], [0.0, *value[above]], color=color, ls=style, lw=width)


def _draw_landing(axis: Axes, arrays: Arrays) -> None:
    sizes, critical, mean_square, start = arrays["edges"].T
    colors, ends, x = _colors(sizes), arrays["ends"], np.arange(len(sizes))
    axis.plot(x, critical, color="0.2", lw=1.8, marker="_", ms=22, label="theory: critical value (exponent = 0)")
    law(axis, x, mean_square, "second moments bounded below", "0.2", ls=":", lw=1.3)
    for i, size in enumerate(sizes.astype(int)):
        color, kept = colors[size], ends[i][np.isfinite(ends[i])]
        axis.plot(x[i], start[i], color=color, ls="", marker="o", ms=8, mfc="w", mew=1.6, zorder=4)
        if not len(kept):
            continue
        mean = kept.mean()
        axis.annotate(
            "",
            (x[i], mean),
            (x[i], start[i]),
            arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.4, "shrinkA": 6},
        )
        spread = [[mean - kept.min()], [kept.max() - mean]]
        axis.errorbar(x[i], mean, spread, color=color, marker="o", ms=8, capsize=4, zorder=5)
        axis.annotate(
            f"{mean / critical[i]:.2f}", (x[i], mean), (9, -13), textcoords="offset points", color="0.15", fontsize=9.5
        )
    axis.plot([], [], color="0.3", ls="", marker="o", ms=8, mfc="w", mew=1.6, label="start, at the minimum that fits")
    axis.plot([], [], color="0.3", ls="", marker="o", ms=8, label="landed (bar: all runs; number: landed / theory)")
    axis.set(xticks=x, xticklabels=[str(int(size)) if size else "full" for size in sizes], xlim=(-0.4, len(x) - 0.4))
    axis.set(xlabel="batch size B (examples)", ylabel="S lr / 2 (sharpness, units of 2 / learning rate)")
    axis.set(ylim=(0, 1.38 * max(start)))
    axis.set_title("Where they land: just below the critical sharpness", fontsize=10.5)
    axis.legend(loc="upper left", frameon=False, fontsize=9)

"""The figure of `escape_kramers_sgd`: the time to leave against B / lr with its theories, and four noises side by side."""

import numpy as np

from lab.gallery.frame import Arrays, Axes, caption


def draw_line(axis: Axes, arrays: Arrays) -> None:
    """Log of the mean time against B / lr: SGD at several learning rates, and what three theories say of the slope."""
    x = arrays["x"]
    reach = x.max() - x.min()
    _draw_slopes(axis, arrays, np.linspace(x.min() - 0.12 * reach, x.max() + 0.12 * reach, 50))
    _times(axis, x, arrays["rates"], "tab:blue", "o", f"SGD, lr {float(arrays['lr']):g}")
    at, colors = float(arrays["middle"][0] / arrays["lr"]), ("tab:orange", "tab:green", "tab:purple", "tab:brown")
    for i, lr in enumerate(arrays["other_lrs"]):
        label = f"SGD, lr {lr:g} (same B / lr, drawn aside)"
        aside = np.array([at + 0.03 * reach * (i + 1)])
        _times(axis, aside, arrays["same"][i : i + 1], colors[i % 4], "sD^v"[i % 4], label)
    axis.set_yscale("log")
    axis.set(xlabel="batch size / learning rate  B / lr", ylabel="mean time to leave (lr * steps)")
    top, bottom = axis.get_ylim()[1], axis.get_ylim()[0]
    axis.set_ylim(bottom, top * (top / bottom) ** 0.45)  # room for the legend
    caption(axis, "SGD leaves a minimum by the path of least action (number: slope of the log)", "upper left")


def _draw_slopes(axis: Axes, arrays: Arrays, grid: np.ndarray) -> None:
    """Lines of the slopes of theory and of the fit, through the middle of what was measured."""
    x, (value, low, high) = arrays["x"], arrays["rates"].T
    seen = np.isfinite(np.where(np.isfinite(low), value, np.nan))
    if not seen.any():
        return
    weights = 1 / np.log(high[seen] / low[seen]) ** 2
    middle, height = np.average(x[seen], weights=weights), np.average(-np.log(value[seen]), weights=weights)
    theories = (
        ("theory: least action in the noise of SGD", "tab:red", "-", 2.2),
        ("straight path, noise of the minimum", "0.45", "--", 1.4),
        ("isotropic noise, same trace", "0.45", ":", 1.8),
    )
    for slope, (name, color, style, width) in zip(arrays["slopes"], theories, strict=True):
        line = np.exp(height + slope * (grid - middle))
        axis.plot(grid, line, color=color, ls=style, lw=width, label=f"{name}: {slope:.3f}")
    fit, least, most, _ = arrays["fitted"]
    if np.isfinite(fit):
        pivot, spread = np.exp(height + fit * (grid - middle)), np.exp((most - least) / 2 * np.abs(grid - middle))
        label = f"measured slope: {fit:.3f} [{least:.3f}, {most:.3f}]"
        axis.fill_between(grid, pivot / spread, pivot * spread, color="tab:blue", alpha=0.15, lw=0, label=label)


def _times(axis: Axes, x: np.ndarray, rates: np.ndarray, color: str, mark: str, label: str) -> None:
    """Mean times with their intervals; lower bounds as arrows."""
    value, low, high = rates.T
    seen = np.isfinite(low) & np.isfinite(value)
    tau = 1 / value[seen]
    bars = [tau - 1 / high[seen], 1 / low[seen] - tau]
    axis.errorbar(x[seen], tau, bars, color=color, marker=mark, ms=7, capsize=3, ls="", label=label, zorder=5)
    axis.plot(x[~seen], 1 / high[~seen], color=color, marker="^", ms=9, mfc="none", ls="")


def draw_kinds(axis: Axes, arrays: Arrays) -> None:
    """Rates of four noises of equal trace beside each other; hatched where replicas do not wait."""
    names = ["SGD, mini-batches", *(str(kind) for kind in arrays["kinds"])]
    found, places = np.vstack([arrays["middle"][None, 1:], arrays["kind_rates"]]), np.arange(len(names))[::-1]
    seen = np.isfinite(found[:, 1])
    least, most = (found[seen, 1].min(), found[seen, 2].max()) if seen.any() else (0.1, 1.0)
    axis.set_xscale("log")
    axis.set_xlim(least / 4, most * 6)
    colors = ("tab:blue", "tab:red", "0.55", "0.75")
    for y, (v, low, high), color, counted, loose in zip(places, found, colors, seen, arrays["hasty"], strict=True):
        if counted:
            look = {"color": "none", "edgecolor": "0.4", "hatch": "///"} if loose else {"color": color, "alpha": 0.75}
            axis.barh(y, v, 0.6, **look)
            axis.errorbar(v, y, xerr=[[v - low], [high - v]], color="k", capsize=3, lw=1.2)
        if loose or not counted:
            word = "no barrier:\nno rate" if loose else "no exit seen"
            axis.text(1.15 * high if counted else least / 3, y, word, va="center", fontsize=9)
    axis.set_ylim(-0.5, len(names) - 0.5)
    axis.set_yticks(places, names)
    axis.set(xlabel="exits per lr * step", ylabel="noise of the gradient")
    axis.set_title(f"four noises of one trace, B / lr = {float(arrays['middle'][0] / arrays['lr']):g}", fontsize=10)
    axis.grid(alpha=0.25, axis="x")

"""The figure of an escape measurement: who is still inside, and the sweep beside theory."""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.escape.survival import Slope, kaplan_meier, per_time, slope
from lab.probes.escape_cell import EscapeCell, mean

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


def escape_figure(cells: Sequence[EscapeCell], title: str) -> Figure:
    """Left: who is still inside, on a logarithmic axis, with the line of the fitted rate. Right: the sweep, with theory."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = cells[: len(COLORS)]
    for cell, color in zip(shown, COLORS, strict=False):
        _curve(left, cell, color)
    left.set(
        xlabel="steps (dotted: mean time by theory)",
        ylabel="share still inside",
        yscale="log",
        ylim=(0.5 / len(cells[0].times.times), 1.2),
    )
    more = f" (the first {len(shown)} of {len(cells)})" if len(shown) < len(cells) else ""
    left.set_title(title + more)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    if cells[0].thrown is not None:
        _growth(right, cells)
    elif cells[0].theory is not None:
        _saddle(right, cells)
    else:
        _sweep(right, cells)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    return figure


def sweep_slope(cells: Sequence[EscapeCell]) -> Slope | None:
    """log of the mean escape time in units of lr * step against B/lr; None where fewer than two points have a rate."""
    kept = [
        (cell.batch_size / cell.lr, per_time(cell.rate, cell.lr)) for cell in cells if cell.rate and cell.rate.exits
    ]
    if len({x for x, _ in kept}) < 2:
        return None
    return slope([x for x, _ in kept], [rate for _, rate in kept])


def _curve(axis: Axes, cell: EscapeCell, color: str) -> None:
    curve = kaplan_meier(cell.times)
    end = float(cell.times.times.max())
    t = torch.cat([torch.zeros(1), curve.times, torch.tensor([end])])
    S = torch.cat([torch.ones(1), curve.survival, curve.survival[-1:] if len(curve.survival) else torch.ones(1)])
    nobody = "" if bool(cell.times.exited.any()) else ": none left"
    axis.step(t, S, where="post", color=color, lw=1.5, label=cell.name + nobody)
    if cell.rate is not None and cell.rate.exits:
        line = torch.linspace(0, end, 50)
        axis.plot(line, (-cell.rate.value * line).exp(), color=color, ls="--", lw=1, label="its rate")
    elif cell.thrown is not None and math.isfinite(cell.thrown.expected) and cell.thrown.expected < 1.5 * end:
        axis.axvline(cell.thrown.expected, color=color, ls=":", lw=1)
    elif cell.theory is not None and not cell.theory.never:
        axis.axvline(cell.theory.mean, color=color, ls=":", lw=1)


def _growth(axis: Axes, cells: Sequence[EscapeCell]) -> None:
    """Growth of the network against the exponent; how sharp it is where it ends is written beside the point."""
    out = [(cell, cell.thrown) for cell in cells if cell.thrown and cell.thrown.exponent.value > 0]
    stay = [(cell, cell.thrown) for cell in cells if cell.thrown and not cell.thrown.exponent.value > 0]
    top = max([0.05, *(1.15 * gone.exponent.value for _, gone in out)])
    axis.plot([0, top], [0, top], color="0.4", ls="--", lw=1.2, label="theory: growth = Lyapunov exponent")
    colors = dict(zip((cell.name for cell in cells), COLORS * len(cells), strict=False))
    for cell, gone in out:
        color = colors[cell.name]
        x, y = gone.exponent, gone.growth
        label = cell.name
        if len(gone.landed):
            label += f": then at {mean(gone.landed):.2f} of the critical sharpness"
            label += f" ({gone.settled} of {len(gone.landed)} at rest again)"
        axis.errorbar(x.value, y.value, y.error, x.error, "o", color=color, ms=6, label=label)
    if stay:
        text = "stable, exponent below 0:\n" + "\n".join(
            f"{cell.name}: {int(gone.times.exited.sum())} of {len(gone.times.exited)} left" for cell, gone in stay
        )
        axis.text(0.03, 0.97, text, transform=axis.transAxes, fontsize=8, va="top")
    axis.set(xlim=(0, 1.15 * top), ylim=(-0.1 * top, 1.15 * top), title="growth of those that are thrown out")
    axis.set(xlabel="Lyapunov exponent of the linearised steps (per step)", ylabel="growth of the network (per step)")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _saddle(axis: Axes, cells: Sequence[EscapeCell]) -> None:
    known = [(cell, *cell.mean_time) for cell in cells if cell.theory and not cell.theory.never]
    known = [(cell, average, error) for cell, average, error in known if math.isfinite(average)]
    ends = [cell.theory.mean for cell, _, _ in known if cell.theory] or [1.0]
    axis.plot([0, 1.15 * max(ends)], [0, 1.15 * max(ends)], color="0.4", ls="--", lw=1.2, label="theory")
    for (cell, average, error), color in zip(known, COLORS * len(known), strict=False):
        assert cell.theory is not None
        axis.errorbar(cell.theory.mean, average, error, fmt="o", color=color, label=cell.name)
    never = [cell.name for cell in cells if cell.theory and cell.theory.never]
    if never:
        axis.text(0.05, 0.75, "never by noise:\n" + "\n".join(never), transform=axis.transAxes, fontsize=9, va="top")
    axis.set(xlabel="exit time by theory (steps)", ylabel="mean exit time (steps)", title="exit from the saddle")
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def _sweep(axis: Axes, cells: Sequence[EscapeCell]) -> None:
    known = [cell for cell in cells if cell.rate and cell.rate.exits]
    for cell, color in zip(cells, COLORS * len(cells), strict=False):
        if cell in known:
            rate = per_time(cell.rate, cell.lr)  # type: ignore[arg-type]
            bars = [[1 / rate.value - 1 / rate.high], [1 / rate.low - 1 / rate.value]]
            axis.errorbar((cell.batch_size or cell.total) / cell.lr, 1 / rate.value, bars, fmt="o", color=color)
    fitted = sweep_slope(cells)
    if fitted is not None:
        at = [cell.batch_size / cell.lr for cell in known]
        x = torch.linspace(min(at), max(at), 50)
        label = f"slope {fitted.value:.3g} [{fitted.low:.3g}, {fitted.high:.3g}]"
        axis.plot(x, (fitted.intercept + fitted.value * x).exp(), color="0.4", ls="--", lw=1.2, label=label)
        axis.legend(fontsize=8, frameon=False, loc="upper left")
    axis.set(xlabel="B / lr", ylabel="mean escape time (lr x steps)", title="escape time over the sweep")
    if known:
        axis.set_yscale("log")
    else:
        axis.set(xticks=[], yticks=[])
        axis.text(
            0.5, 0.5, "no rate in any cell:\nthe finding says why", transform=axis.transAxes, ha="center", va="center"
        )

"""What an escape measurement found, cell by cell of its sweep: numbers, sentences, and the figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.escape.ensemble import Escape
from lab.escape.growth import Descending, Thrown
from lab.escape.saddle import Departure
from lab.escape.survival import Slope, kaplan_meier, per_epoch, per_time, slope, words
from lab.noise.lyapunov import sign
from lab.results import CriticalPoint, EscapeTimes, Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    *("lr", "batch_size", "replicas", "exits", "rate", "rate_low", "rate_high", "mean_time", "mean_time_error"),
    *("time_theory", "lyapunov", "lyapunov_error", "growth", "growth_error", "critical_lr", "landed"),
)
"""Of the array escape/sweep; times in steps, rates per step, NaN where there is none."""
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


@dataclass(frozen=True)
class Cell:
    """One learning rate and batch size (0: all of `total` examples). found: the ensemble; thrown: at a minimum that fits;
    theory: of the exit from a saddle; directions: growth there, and the spread of the gradient of a step. reasons: why
    there is no rate, where nobody was watched because that was known before. barrier, temperature: height of the saddle to
    the nearest minimum beyond, and the noise on the way to it; rate_theory: Langer's, per step, under isotropic noise.
    """

    lr: float
    batch_size: int
    total: int
    found: Escape | None
    thrown: Thrown | None
    theory: Departure | None
    directions: tuple[tuple[Descending, float], ...]
    reasons: tuple[str, ...]
    barrier: float = math.nan
    temperature: float = math.nan
    rate_theory: float = math.nan

    @property
    def name(self) -> str:
        return f"lr {self.lr:.3g}, batch {self.batch_size or 'full'}"

    @property
    def rate(self) -> Rate | None:
        """Per step; None where there is none."""
        return self.found.rate if self.found else None

    @property
    def watched(self) -> bool:
        """Whether any replicas were; not where it was known before that all would do the same."""
        return self.found is not None or self.thrown is not None

    @property
    def times(self) -> EscapeTimes:
        """When replicas left, from the end of the burn-in; from the kick at a minimum that fits."""
        if self.thrown is not None:
            return self.thrown.times
        if self.found is not None:
            return self.found.watched.times
        nobody = torch.zeros(2, dtype=torch.bool)
        return EscapeTimes(nobody.double(), nobody, nobody)

    @property
    def mean_time(self) -> tuple[float, float]:
        """Mean and standard error where all left, else NaN: the mean of those that did is no mean."""
        out = self.times.exited
        if not bool(out.all()) or len(out) < 2:
            return math.nan, math.nan
        return float(self.times.times.mean()), float(self.times.times.std()) / math.sqrt(len(out))

    @property
    def per_epoch(self) -> float:
        """Steps in a pass through the data."""
        return self.total / self.batch_size if self.batch_size else 1.0

    def numbers(self) -> dict[str, float]:
        """By tag; NaN where nothing was measured."""
        values = dict[str, float]()
        if self.watched:
            values |= {"escape/exits": float(self.times.exited.sum())}
            values |= {"escape/failures": float(self.times.failed.sum())}
        rate, (mean, error) = self.rate, self.mean_time
        if rate is not None:
            units = {"": rate, "_per_time": per_time(rate, self.lr), "_per_epoch": per_epoch(rate, self.per_epoch)}
            for unit, in_it in units.items():
                named = {"rate": in_it.value, "rate_low": in_it.low, "rate_high": in_it.high}
                values |= {f"escape/{name}{unit}": number for name, number in named.items()}
        if math.isfinite(self.barrier):
            values |= {"escape/barrier": self.barrier, "escape/rate_theory": self.rate_theory}
        if self.theory is not None or self.thrown is not None:
            values |= {"escape/time": mean, "error/escape/time": error}
        if self.theory is not None and not self.theory.never:
            values |= {"escape/time_theory": self.theory.mean}
        if self.directions:
            first, spread = self.directions[0]
            values |= {
                "escape/growth": first.noisy.value,
                "error/escape/growth": first.noisy.error,
                "escape/growth_kick": first.kick.value,
                "escape/growth_theory": first.theory,
                "escape/noise_along": spread,
            }
        if self.thrown is not None:
            values |= {
                "escape/growth": self.thrown.growth.value,
                "error/escape/growth": self.thrown.growth.error,
                "escape/growth_theory": self.thrown.exponent.value,
                "escape/critical_lr": self.thrown.critical,
                "escape/landed": _mean(self.thrown.landed),
            }
        return values

    def row(self) -> list[float]:
        """In the order of `COLUMNS`."""
        rate, gone = self.rate, self.thrown
        return [
            *(self.lr, self.batch_size),
            *((len(self.times.times), float(self.times.exited.sum())) if self.watched else (0, math.nan)),
            *((rate.value, rate.low, rate.high) if rate else (math.nan,) * 3),
            *self.mean_time,
            self.theory.mean if self.theory else gone.expected if gone else math.nan,
            *(
                (gone.exponent.value, gone.exponent.error, gone.growth.value, gone.growth.error)
                if gone
                else (math.nan,) * 4
            ),
            *((gone.critical, _mean(gone.landed)) if gone else (math.nan,) * 2),
        ]


def _mean(x: Tensor) -> float:
    return float(x.mean()) if len(x) else math.nan


def sweep_slope(cells: Sequence[Cell]) -> Slope | None:
    """log of the mean escape time in units of lr * step against B/lr; None where fewer than two points have a rate."""
    kept = [
        (cell.batch_size / cell.lr, per_time(cell.rate, cell.lr)) for cell in cells if cell.rate and cell.rate.exits
    ]
    if len({x for x, _ in kept}) < 2:
        return None
    return slope([x for x, _ in kept], [rate for _, rate in kept])


# --- sentences ----------


def told(point: CriticalPoint, cells: Sequence[Cell], *, fits: bool, kind: str) -> str:
    """What was found, in plain sentences."""
    said = [_place(point, cells, fits, kind)]
    for cell in cells:
        if cell.thrown is not None:
            said.append(f"{cell.name}: {_thrown(cell, cell.thrown)}.")
        elif cell.theory is not None:
            said.append(f"{cell.name}: {_left(cell, cell.theory)}.")
        else:
            said.append(f"{cell.name}: {_rate(cell)}.")
    fitted = sweep_slope(cells)
    if fitted is not None:
        curved = f"; a straight line is excluded (p = {fitted.p:.1g})" if fitted.p < 1e-2 else ""
        said.append(
            f"log escape time against B/lr has the slope {fitted.value:.3g} [{fitted.low:.3g}, {fitted.high:.3g}] over "
            f"{fitted.points} points{curved}."
        )
    remarks = dict.fromkeys(warning for cell in cells if cell.found for warning in cell.found.warnings)
    said += [f"Note: {remark}." for remark in remarks]
    return " ".join(said)


def _place(point: CriticalPoint, cells: Sequence[Cell], fits: bool, kind: str) -> str:
    where = {"not critical": "no critical point", "undetermined": "a critical point of unknown kind"}.get(
        point.kind, f"a {point.kind}" if point.kind != "degenerate" else "a degenerate critical point"
    )
    text = f"Escape from {where} (loss {point.value:.3g}, |gradient| {point.gradient_norm:.2g}"
    text += f", index {'' if point.index_exact else 'at least '}{point.index}" if point.index else ""
    if fits:
        text += "), which fits every example: mini-batches have no noise there and no rate exists; runs stay, or are "
        return text + "thrown out by unstable steps, found by the loss."
    return text + f"), exits by {kind}."


def _thrown(cell: Cell, gone: Thrown) -> str:
    exponent = f"Lyapunov exponent {gone.exponent.value:.3g} +- {gone.exponent.error:.1g} a step"
    exponent += "" if sign(gone.exponent) else ", of undecided sign"
    left, R = int(gone.times.exited.sum()), len(gone.times.exited)
    edge = f"lr is {cell.lr / gone.critical:.3g} x the critical one"
    if not gone.exponent.value > 0:
        return f"{exponent}, {edge}: {left} of {R} left in {float(gone.times.times.max()):.0f} steps"
    text = f"{exponent}, {edge}; the network grew by {gone.growth.value:.3g} +- {gone.growth.error:.1g}"
    mean, error = cell.mean_time
    if math.isfinite(mean):
        text += f" and left after {mean:.4g} +- {error:.1g} steps (the exponent: {gone.expected:.4g})"
    else:
        text += f", {left} of {R} left (the exponent: after {gone.expected:.4g} steps)"
    if len(gone.landed):
        text += f"; after the budget they are at {_mean(gone.landed):.3f} of the critical sharpness"
        text += f" ({gone.settled} of {len(gone.landed)} at rest again)"
    return text


def _left(cell: Cell, theory: Departure) -> str:
    mean, error = cell.mean_time
    left, R = int(cell.times.exited.sum()), len(cell.times.exited)
    if theory.never and left == 0:
        text = f"never by noise (u'Du = 0): 0 of {R} left in {float(cell.times.times.max()):.0f} steps"
    elif math.isfinite(mean):
        ratio = "" if theory.never else f" (theory {theory.mean:.4g}, ratio {mean / theory.mean:.3f})"
        text = f"all left, after {mean:.4g} +- {error:.1g} steps{ratio}"
    else:
        text = f"{left} of {R} left within {float(cell.times.times.max()):.0f} steps (theory: {theory})"
    for i, (grown, spread) in enumerate(cell.directions[:3]):
        text += f"; direction {i + 1} (curvature {grown.curvature:.3g}, noise {spread:.2g}): growth "
        text += f"{grown.kick.value:.4g} from a kick, {grown.theory:.4g} by theory"
        if math.isfinite(grown.noisy.value) and spread > 0:
            text += f", {grown.noisy.value:.3g} +- {grown.noisy.error:.1g} under noise"
    return text


def _rate(cell: Cell) -> str:
    found = cell.found
    if found is None:
        return f"no rate: {'; '.join(cell.reasons)}"
    left, R = int(cell.times.exited.sum()), len(cell.times.exited)
    way = ""
    if math.isfinite(cell.barrier):
        way = f"; the nearest minimum beyond lies over a barrier of {cell.barrier:.4g}, the noise on the way is "
        way += f"{cell.temperature:.3g}"
    if found.rate is None:
        return f"no rate: {'; '.join(found.reasons)} ({left} of {R} left in {float(cell.times.times.max()):.0f} steps){way}"
    if math.isfinite(cell.rate_theory):
        way += f", and Langer's rate {cell.rate_theory:.3g} per step"
    text = words(found.rate)
    if found.rate.exits:
        others = (per_time(found.rate, cell.lr), per_epoch(found.rate, cell.per_epoch))
        text += "".join(f", {rate.value:.3g} per {rate.unit}" for rate in others)
        text += f"; p = {found.shape.p:.2g} for one rate" if math.isfinite(found.shape.p) else ""
    return text + way


# --- the figure ----------


def figure(cells: Sequence[Cell], title: str) -> "Figure":
    """Left: who is still inside, on a logarithmic axis, with the line of the fitted rate. Right: the sweep, with theory."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12, 5), layout="constrained")
    left, right = drawn.subplots(1, 2)
    shown = cells[: len(COLOURS)]
    for cell, colour in zip(shown, COLOURS, strict=False):
        _curve(left, cell, colour)
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
    return drawn


def _curve(axis: "Axes", cell: Cell, colour: str) -> None:
    curve = kaplan_meier(cell.times)
    end = float(cell.times.times.max())
    t = torch.cat([torch.zeros(1), curve.times, torch.tensor([end])])
    S = torch.cat([torch.ones(1), curve.survival, curve.survival[-1:] if len(curve.survival) else torch.ones(1)])
    nobody = "" if bool(cell.times.exited.any()) else ": none left"
    axis.step(t, S, where="post", color=colour, lw=1.5, label=cell.name + nobody)
    if cell.rate is not None and cell.rate.exits:
        line = torch.linspace(0, end, 50)
        axis.plot(line, (-cell.rate.value * line).exp(), color=colour, ls="--", lw=1, label="its rate")
    elif cell.thrown is not None and math.isfinite(cell.thrown.expected) and cell.thrown.expected < 1.5 * end:
        axis.axvline(cell.thrown.expected, color=colour, ls=":", lw=1)
    elif cell.theory is not None and not cell.theory.never:
        axis.axvline(cell.theory.mean, color=colour, ls=":", lw=1)


def _growth(axis: "Axes", cells: Sequence[Cell]) -> None:
    """Growth of the network against the exponent; how sharp it is where it ends is written beside the point."""
    out = [(cell, cell.thrown) for cell in cells if cell.thrown and cell.thrown.exponent.value > 0]
    stay = [(cell, cell.thrown) for cell in cells if cell.thrown and not cell.thrown.exponent.value > 0]
    top = max([0.05, *(1.15 * gone.exponent.value for _, gone in out)])
    axis.plot([0, top], [0, top], color="0.4", ls="--", lw=1.2, label="theory: growth = Lyapunov exponent")
    colours = dict(zip((cell.name for cell in cells), COLOURS * len(cells), strict=False))
    for cell, gone in out:
        colour = colours[cell.name]
        x, y = gone.exponent, gone.growth
        told = cell.name
        if len(gone.landed):
            told += f": then at {_mean(gone.landed):.2f} of the critical sharpness"
            told += f" ({gone.settled} of {len(gone.landed)} at rest again)"
        axis.errorbar(x.value, y.value, y.error, x.error, "o", color=colour, ms=6, label=told)
    if stay:
        text = "stable, exponent below 0:\n" + "\n".join(
            f"{cell.name}: {int(gone.times.exited.sum())} of {len(gone.times.exited)} left" for cell, gone in stay
        )
        axis.text(0.03, 0.97, text, transform=axis.transAxes, fontsize=8, va="top")
    axis.set(xlim=(0, 1.15 * top), ylim=(-0.1 * top, 1.15 * top), title="growth of those that are thrown out")
    axis.set(xlabel="Lyapunov exponent of the linearised steps (per step)", ylabel="growth of the network (per step)")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _saddle(axis: "Axes", cells: Sequence[Cell]) -> None:
    known = [(cell, *cell.mean_time) for cell in cells if cell.theory and not cell.theory.never]
    known = [(cell, mean, error) for cell, mean, error in known if math.isfinite(mean)]
    ends = [cell.theory.mean for cell, _, _ in known if cell.theory] or [1.0]
    axis.plot([0, 1.15 * max(ends)], [0, 1.15 * max(ends)], color="0.4", ls="--", lw=1.2, label="theory")
    for (cell, mean, error), colour in zip(known, COLOURS * len(known), strict=False):
        assert cell.theory is not None
        axis.errorbar(cell.theory.mean, mean, error, fmt="o", color=colour, label=cell.name)
    never = [cell.name for cell in cells if cell.theory and cell.theory.never]
    if never:
        axis.text(0.05, 0.75, "never by noise:\n" + "\n".join(never), transform=axis.transAxes, fontsize=9, va="top")
    axis.set(xlabel="exit time by theory (steps)", ylabel="mean exit time (steps)", title="exit from the saddle")
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def _sweep(axis: "Axes", cells: Sequence[Cell]) -> None:
    known = [cell for cell in cells if cell.rate and cell.rate.exits]
    for cell, colour in zip(cells, COLOURS * len(cells), strict=False):
        if cell in known:
            rate = per_time(cell.rate, cell.lr)  # type: ignore[arg-type]
            bars = [[1 / rate.value - 1 / rate.high], [1 / rate.low - 1 / rate.value]]
            axis.errorbar((cell.batch_size or cell.total) / cell.lr, 1 / rate.value, bars, fmt="o", color=colour)
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

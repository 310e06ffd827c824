"""Escape over a barrier by noise of constant size: a quartic double well, and what Kramers' law is worth there.

    x <- x - lr (L'(x) + sqrt(C / B) xi),    L = (x^2 - 1)^2 / 4,    T = lr C / 2B,    barrier 1/4

The mean time is a function of B / lr, as long as lr is small: log tau grows by 2 barrier / C for each unit, a little less
because of the prefactor. Reaching the top is not yet leaving: half of those turn back, so that the rate to the top is twice
the rate of escape. The truth of a simulation is the chain of its own steps (`lab.gallery.laws.nystrom`), not the
differential equation (`lab.gallery.laws.kramers`), and not the asymptote.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from lab.escape.survival import Slope, exponentiality, kaplan_meier
from lab.gallery.base import Measured, Outcome, Surroundings, Verdict, about, exact, paragraph, shown
from lab.gallery.experiments.barrier import LEAST, BarrierExperiment, Budget, MaxSteps, Walkers, exits, mean_times
from lab.gallery.frame import COLORS, Arrays, Axes, Figure, caption, law, panels, plain_ticks, points
from lab.gallery.laws.kramers import Domain, escape_rate, kramers_time, on
from lab.gallery.laws.nystrom import Chain
from lab.gallery.laws.passages import Passages, slopes, time_ratio, too_few
from lab.landscapes.double_well import DoubleWell
from lab.progress import Tick
from lab.settings import settings

LANDSCAPE = DoubleWell(())
WELL, TOP = 2.0, 1.0
"""Curvatures at the minimum and, but for the sign, at the top."""
BURN_IN = 5.0
"""Units of time lr * step, ten times the relaxation in the well, before the clock starts."""
PER_STEP = 4e-8


@settings()
class Kramers(BarrierExperiment):
    """Escape over a barrier by constant noise: log time against B / lr, to the top and beyond it, at small and large lr.

    Kramers 1940; theory by the exact chain of the steps, which at lr = 0.4 leaves 1.6 times as fast as the differential
    equation, and at the top of the barrier sees the walker late. The asymptote is drawn, 7 to 14 % below the truth.
    """

    name: ClassVar[str] = "kramers"

    batch_over_lr: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1e4)], ...],
        Field(description="B / lr: two or more, at least four barriers over C"),
    ] = (14.0, 20.0, 28.0, 36.0)
    noise: Annotated[
        float, Field(gt=0, le=1e4, description="C, variance of the gradient of one example: temperature lr C / 2B")
    ] = 2.8
    lr: Annotated[
        tuple[Annotated[float, Field(ge=1e-3, le=0.5)], ...],
        Field(description="learning rates at which every B / lr is simulated"),
    ] = (0.05, 0.1, 0.2, 0.4)
    walkers: Walkers = 2000
    budget: Budget = 1.0
    max_steps: MaxSteps = 1_000_000

    def __post_init__(self) -> None:
        self.require_different("batch_over_lr", "[14,20,28]", least=2)
        self.require_different("lr", "[0.05,0.4]")
        low = min(self.batch_over_lr)
        if self.height(low) < LEAST:
            raise ValueError(
                f"batch_over_lr={low:g}: the barrier is {self.height(low):.2g} temperatures, and below {LEAST:g} there is "
                f"no rate; expected B / lr of {self.noise * LEAST / 2 / LANDSCAPE.barrier:.3g} or more"
            )

    def temperature(self, batch_over_lr: float) -> float:
        """T = C lr / 2B."""
        return self.noise / (2 * batch_over_lr)

    def height(self, batch_over_lr: float) -> float:
        """The barrier in temperatures."""
        return LANDSCAPE.barrier / self.temperature(batch_over_lr)

    @cached_property
    def cells(self) -> dict[tuple[float, float], Chain]:
        """The chain of every (B / lr, lr), left at the other well."""
        return {(b, lr): self.chain(b, lr) for lr in sorted(self.lr) for b in sorted(self.batch_over_lr)}

    def chain(self, batch_over_lr: float, lr: float, end: float = 1.0) -> Chain:
        return Chain(on(LANDSCAPE, self.temperature(batch_over_lr)), lr, Domain(high=end), -1.0)

    def stages(self) -> dict[str, float]:
        each = PER_STEP * self.walkers + 4e-5
        steps = [self.steps(chain, BURN_IN) for chain in self.cells.values()]
        return {"to the other well": each * sum(steps), "to the top": each * sum(steps[: len(self.batch_over_lr)]) / 2}

    def simulate(self, around: Surroundings) -> Outcome:
        def walk(chain: Chain, part: str, i: int, tick: Tick) -> Passages:
            diffusion, draws = float(chain.process.diffusion(torch.zeros(()))), around.stream(f"{self.name}/{part}", i)
            return self.walk(LANDSCAPE, chain, draws, tick, diffusion=diffusion, burn_in=BURN_IN)

        x, rates, order = sorted(self.batch_over_lr), sorted(self.lr), list(self.cells)
        return Crossed(
            self,
            around.each("to the other well", order, lambda c, tick: walk(self.cells[c], "well", order.index(c), tick)),
            around.each("to the top", x, lambda b, tick: walk(self.chain(b, rates[0], 0.0), "top", x.index(b), tick)),
            x,
            rates,
        ).outcome()

    def continuous(self, batch_over_lr: float) -> float:
        return 1 / escape_rate(on(LANDSCAPE, self.temperature(batch_over_lr)), Domain(high=1.0), start=-1.0)

    def asymptote(self, batch_over_lr: float) -> float:
        return kramers_time(self.height(batch_over_lr), WELL, TOP)

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return panels(arrays, title, (_draw_survival, _draw_line, _draw_finite), size=(13.5, 4.8))


@dataclass(frozen=True)
class Crossed(Measured):
    """Walkers to the other well by (B / lr, lr), and to the top by B / lr, at the smallest learning rate."""

    card: Kramers
    wells: dict[tuple[float, float], Passages]
    tops: dict[float, Passages]
    x: list[float]
    rates: list[float]

    @cached_property
    def lines(self) -> dict[float, tuple[Slope, Slope]]:
        """Slopes of log tau against B / lr by learning rate, measured and exact, where two cells or more have a time."""
        cells = {lr: [self.wells[b, lr] for b in self.x] for lr in self.rates}
        return {lr: slopes(self.x, line) for lr, line in cells.items() if sum(p.measured for p in line) > 1}

    @property
    def both(self) -> list[float]:
        """The B / lr at which the times to the other well and to the top can be compared."""
        return [b for b in self.x if self.tops[b].measured and self.wells[b, self.rates[0]].measured]

    def rows(self) -> list[Verdict]:
        card = self.card
        finest = self.rates[0]
        rows = mean_times({f"B/lr = {b:g}, lr = {lr:g}": p for (b, lr), p in self.wells.items()})
        for b in self.both:
            well, top = self.wells[b, finest], self.tops[b]
            name = f"well / top, B/lr = {b:g}, lr = {finest:g}"
            rows.append(exact(name, well.exact / top.exact, time_ratio(well, top)))
        for lr, (measured, theory) in self.lines.items():
            rows += [
                exact(f"slope of log tau, lr = {lr:g}", theory.value, measured),
                about("  against 2 barrier / C", 2 * LANDSCAPE.barrier / card.noise, measured),
            ]
        return rows

    def arrays(self) -> dict[str, object]:
        card = self.card
        x, rates, wells, tops = self.x, self.rates, self.wells, self.tops
        grid, middle = np.linspace(x[0], x[-1], 12), x[(len(x) - 1) // 2]
        between = np.unique([*np.geomspace(rates[0], rates[-1], 9), *rates])
        return {
            "batch_over_lr": x,
            "lr": rates,
            "times": [[wells[b, lr].point for b in x] for lr in rates],
            "exact": [[wells[b, lr].exact for b in x] for lr in rates],
            "top_times": [tops[b].point for b in x],
            "top_exact": [tops[b].exact for b in x],
            "grid": grid,
            "continuous": [card.continuous(b) for b in grid],
            "asymptote": [card.asymptote(b) for b in grid],
            "continuous_at": [card.continuous(b) for b in x],
            "fine_lr": between,
            "fine": [[card.chain(b, lr).lifetime for lr in between] for b in x],
            "survival_at": middle,
            **_curves("well", wells[middle, rates[0]]),
            **_curves("top", tops[middle]),
        }

    def values(self) -> dict[str, float]:
        cells = {f"{b:g}_{lr:g}": p for (b, lr), p in self.wells.items()}
        fits = {f"exponential_p_{name}": exponentiality(p.settled).p for name, p in cells.items() if p.rate.exits > 2}
        return fits | exits(cells)

    def sentence(self) -> str:
        card = self.card
        fine, x = self.rates[0], self.x
        sentences = [
            f"{card.walkers} walkers in each cell, in a double well with a barrier of "
            f"{card.height(x[0]):.3g} to {card.height(x[-1]):.3g} temperatures"
        ]
        if fine in self.lines:
            measured, theory = self.lines[fine]
            sentences.append(
                f"at lr = {fine:g} log tau grows by {shown(measured)} for each unit of B / lr (theory: {theory.value:.4f} "
                f"by the exact chain of these steps, 2 barrier / C = {2 * LANDSCAPE.barrier / card.noise:.4f} in the limit)"
            )
        if self.both:
            b = self.both[len(self.both) // 2]
            well, top = self.wells[b, fine], self.tops[b]
            sentences.append(
                f"the top is reached {well.mean_time.value / top.mean_time.value:.2f} times as fast as the other well "
                f"(exact for these steps {well.exact / top.exact:.2f}, for small steps 2: half of those who reach it turn "
                "back), so that a rate has to say which exit is meant"
            )
        ends = [(b, lr) for b, lr in self.wells if lr == self.rates[-1] and self.wells[b, lr].measured]
        if ends:
            b, lr = ends[-1]
            p = self.wells[b, lr]
            sentences.append(
                f"at B / lr = {b:g} and lr = {lr:g} escape takes {shown(p.mean_time)} in units of lr * step, exactly "
                f"{p.exact:.4g} by the chain, {card.continuous(b):.4g} by the differential equation and "
                f"{card.asymptote(b):.4g} by Kramers' asymptote"
            )
        return paragraph([*sentences, *too_few(list(self.wells.values()))])


def _curves(name: str, p: Passages) -> dict[str, np.ndarray]:
    """The survival curve with one standard error, against the exact one, in units of lr * step from the start."""
    lr, every, count = p.chain.lr, max(1, int(p.times.times.max()) // 200), 200
    arrays = {name: np.zeros((3, 0))}
    if int(p.times.exited.sum()):
        curve = kaplan_meier(p.times)
        keep = np.unique(np.linspace(0, len(curve.times) - 1, 400).astype(int))
        columns = (lr * curve.times, curve.survival, curve.error.nan_to_num(0.0))
        arrays[name] = np.stack([column.numpy()[keep] for column in columns])
    times = lr * every * np.arange(count + 1)
    return {f"{name}_curve": np.stack([times, p.chain.survival(every, count).numpy()])} | arrays


def _draw_survival(axis: Axes, arrays: Arrays) -> None:
    for name, color, where in (("top", "tab:orange", "to the top"), ("well", "tab:blue", "to the other well")):
        t, share, error = arrays[name]
        axis.fill_between(t, share - 2 * error, share + 2 * error, color=color, alpha=0.3, lw=0, step="post")
        axis.step(t, share, color=color, lw=1, where="post", label=f"walkers, {where}")
        label = "exact chain" if name == "well" else None
        law(axis, arrays[f"{name}_curve"][0], arrays[f"{name}_curve"][1], label, "k", lw=1)
    title = f"survival, B/lr = {float(arrays['survival_at']):g}, lr = {arrays['lr'][0]:g}"
    axis.set(xlabel="time (lr * step)", ylabel="share that has not left", yscale="log")
    caption(axis, title, "lower left")
    lowest = min(arrays["well_curve"][1].min(), arrays["top_curve"][1].min())
    axis.set_ylim(max(0.5 * lowest, 1e-3), 1.1)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")


def _draw_line(axis: Axes, arrays: Arrays) -> None:
    x, grid = arrays["batch_over_lr"], arrays["grid"]
    law(axis, grid, arrays["continuous"], "theory, lr to 0 (quadrature)", ls="-")
    law(axis, grid, arrays["asymptote"], "Kramers' asymptote", "0.5", ls=":", lw=1.3)
    for i, lr in enumerate(arrays["lr"]):
        color = COLORS[i % len(COLORS)]
        law(axis, x, arrays["exact"][i], "exact chain" if i == 0 else None, color, lw=1)
        points(axis, x, arrays["times"][i], color, f"walkers, lr = {lr:g}")
    points(axis, x, arrays["top_times"], label="to the top", marker="^", mfc="none", ms=6)
    law(axis, x, arrays["top_exact"], color=COLORS[0], lw=1)
    title = "log time is a straight line in B / lr"
    axis.set(xlabel="B / lr", ylabel="mean time (lr * step)", yscale="log")
    caption(axis, title, "upper left", small=8)


def _draw_finite(axis: Axes, arrays: Arrays) -> None:
    lr = arrays["lr"]
    for j, b in enumerate(arrays["batch_over_lr"]):
        color, limit = COLORS[j % len(COLORS)], arrays["continuous_at"][j]
        law(axis, arrays["fine_lr"], arrays["fine"][j] / limit, color=color, lw=1)
        beside = lr * 1.04 ** (j - (len(arrays["batch_over_lr"]) - 1) / 2)  # side by side, to be told apart
        points(axis, beside, arrays["times"][:, j] / limit, color, f"B/lr = {b:g}")
    axis.axhline(1, color="tab:red", lw=1.2, label="lr to 0")
    title = "finite learning rate (dashed: exact chain)"
    axis.set(xlabel="learning rate", ylabel="mean time / that for lr to 0", xscale="log")
    caption(axis, title, "lower left")
    plain_ticks(axis, lr)

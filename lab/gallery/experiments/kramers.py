"""Escape over a barrier by noise of constant size: a quartic double well, and what Kramers' law is worth there.

    x <- x - lr (L'(x) + sqrt(C / B) xi),    L = (x^2 - 1)^2 / 4,    T = lr C / 2B,    barrier 1/4

The mean time is a function of B / lr, as long as lr is small: log tau grows by 2 barrier / C for each unit, a little less
because of the prefactor. Reaching the top is not yet leaving: half of those turn back, so that the rate to the top is twice
the rate of escape. The truth of a simulation is the chain of its own steps (`lab.gallery.laws.nystrom`), not the
differential equation (`lab.gallery.laws.kramers`), and not the asymptote.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from lab.escape.survival import Slope, exponentiality, kaplan_meier
from lab.gallery.experiments.base import (
    Budget,
    Comparison,
    Experiment,
    MaxSteps,
    Outcome,
    Surroundings,
    Walkers,
    paragraph,
    with_error,
)
from lab.gallery.experiments.frame import panels
from lab.gallery.laws.kramers import Domain, escape_rate, kramers_time, on
from lab.gallery.laws.nystrom import Chain
from lab.gallery.laws.passages import Passages, escapes, slopes, time_ratio, untold
from lab.landscapes.double_well import DoubleWell
from lab.progress import Tick
from lab.settings import settings

LANDSCAPE = DoubleWell(())
WELL, TOP = 2.0, 1.0
"""Curvatures at the minimum and, but for the sign, at the top."""
BURN_IN = 5.0
"""Units of time lr * step, ten times the relaxation in the well, before the clock starts."""
LEAST = 2.0
"""Barriers below so many temperatures have no rate: a walker does not settle before it leaves."""
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
PER_STEP = 4e-8


@settings()
class Kramers(Experiment):
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
        if len(set(self.batch_over_lr)) < max(2, len(self.batch_over_lr)):
            raise ValueError("batch_over_lr: expected two or more different values, e.g. [14,20,28]")
        if not self.lr or len(set(self.lr)) < len(self.lr):
            raise ValueError("lr: expected one or more different values, e.g. [0.05,0.4]")
        low = min(self.batch_over_lr)
        if self._height(low) < LEAST:
            raise ValueError(
                f"batch_over_lr={low:g}: the barrier is {self._height(low):.2g} temperatures, and below {LEAST:g} there is "
                f"no rate; expected B / lr of {self.noise * LEAST / 2 / LANDSCAPE.barrier:.3g} or more"
            )

    def temperature(self, batch_over_lr: float) -> float:
        """T = C lr / 2B."""
        return self.noise / (2 * batch_over_lr)

    def _height(self, batch_over_lr: float) -> float:
        """The barrier in temperatures."""
        return LANDSCAPE.barrier / self.temperature(batch_over_lr)

    @cached_property
    def cells(self) -> dict[tuple[float, float], Chain]:
        """The chain of every (B / lr, lr), left at the other well."""
        return {(b, lr): self._chain(b, lr, 1.0) for lr in sorted(self.lr) for b in sorted(self.batch_over_lr)}

    def _chain(self, batch_over_lr: float, lr: float, end: float) -> Chain:
        return Chain(on(LANDSCAPE, self.temperature(batch_over_lr)), lr, Domain(high=end), -1.0)

    def _steps(self, chain: Chain) -> float:
        return min(self.max_steps, BURN_IN / chain.lr + self.budget / chain.rate)

    def stages(self) -> dict[str, float]:
        each = PER_STEP * self.walkers + 4e-5
        steps = [self._steps(chain) for chain in self.cells.values()]
        return {"to the other well": each * sum(steps), "to the top": each * sum(steps[: len(self.batch_over_lr)]) / 2}

    def simulate(self, around: Surroundings) -> Outcome:
        wells = {
            cell: self._walk(around, chain, "well", i, tick)
            for i, ((cell, chain), tick) in enumerate(around.over("to the other well", list(self.cells.items())))
        }
        finest = min(self.lr)
        tops = {
            b: self._walk(around, self._chain(b, finest, 0.0), "top", i, tick)
            for i, (b, tick) in enumerate(around.over("to the top", sorted(self.batch_over_lr)))
        }
        return self._outcome(wells, tops)

    def _walk(self, around: Surroundings, chain: Chain, part: str, i: int, tick: Tick) -> Passages:
        return escapes(
            LANDSCAPE,
            chain,
            torch.tensor([-1.0], device=around.device),
            diffusion=float(chain.process.diffusion(torch.zeros(()))),
            walkers=self.walkers,
            budget=self.budget,
            burn_in=BURN_IN,
            max_steps=self.max_steps,
            generator=around.stream(f"{self.name}/{part}", i),
            tick=tick,
        )

    def _outcome(self, wells: dict[tuple[float, float], Passages], tops: dict[float, Passages]) -> Outcome:
        x, rates = sorted(self.batch_over_lr), sorted(self.lr)
        names = {cell: f"B/lr = {cell[0]:g}, lr = {cell[1]:g}" for cell in wells}
        seen = {cell: p for cell, p in wells.items() if p.told}
        times = [Comparison.of(f"mean time, {names[cell]}", p.exact, p.mean_time) for cell, p in seen.items()]
        both = [b for b in x if tops[b].told and wells[b, rates[0]].told]
        factors = [_factor(b, rates[0], wells[b, rates[0]], tops[b]) for b in both]
        lined = {lr: slopes(x, [wells[b, lr] for b in x]) for lr in rates if sum((b, lr) in seen for b in x) > 1}
        lines = [
            c
            for lr, (measured, exact) in lined.items()
            for c in (
                Comparison(f"slope of log tau, lr = {lr:g}", exact.value, measured.value, measured.error),
                Comparison(
                    "  against 2 barrier / C",
                    2 * LANDSCAPE.barrier / self.noise,
                    measured.value,
                    measured.error,
                    approximate=True,
                ),
            )
        ]
        grid = np.linspace(x[0], x[-1], 12)
        shown = self._shown()
        return Outcome(
            self._finding(wells, tops, lined, both),
            [*times, *factors, *lines],
            {
                "batch_over_lr": np.array(x),
                "lr": np.array(rates),
                "times": np.array([[wells[b, lr].point for b in x] for lr in rates]),
                "exact": np.array([[wells[b, lr].exact for b in x] for lr in rates]),
                "top_times": np.array([tops[b].point for b in x]),
                "top_exact": np.array([tops[b].exact for b in x]),
                "grid": grid,
                "continuous": np.array([self._continuous(b) for b in grid]),
                "asymptote": np.array([self._asymptote(b) for b in grid]),
                "continuous_at": np.array([self._continuous(b) for b in x]),
                "fine_lr": shown,
                "fine": np.array([[self._chain(b, lr, 1.0).lifetime for lr in shown] for b in x]),
                "survival_at": np.array(self._middle()),
                **_curves("well", wells[self._middle(), rates[0]]),
                **_curves("top", tops[self._middle()]),
            },
            {
                f"exponential_p_{b:g}_{lr:g}": exponentiality(p.settled).p
                for (b, lr), p in wells.items()
                if p.rate.exits > 2
            }
            | {f"exits_{b:g}_{lr:g}": p.rate.exits for (b, lr), p in wells.items()},
        )

    def _middle(self) -> float:
        """The B / lr whose survival curves are drawn."""
        return sorted(self.batch_over_lr)[(len(self.batch_over_lr) - 1) // 2]

    def _shown(self) -> np.ndarray:
        """Learning rates at which the chain is drawn between those simulated."""
        return np.unique([*np.geomspace(min(self.lr), max(self.lr), 9), *self.lr])

    def _continuous(self, batch_over_lr: float) -> float:
        return 1 / escape_rate(on(LANDSCAPE, self.temperature(batch_over_lr)), Domain(high=1.0), start=-1.0)

    def _asymptote(self, batch_over_lr: float) -> float:
        return kramers_time(self._height(batch_over_lr), WELL, TOP)

    def _finding(
        self,
        wells: dict[tuple[float, float], Passages],
        tops: dict[float, Passages],
        lined: dict[float, tuple[Slope, Slope]],
        both: list[float],
    ) -> str:
        fine, x = min(self.lr), sorted(self.batch_over_lr)
        said = [
            f"{self.walkers} walkers in each cell, in a double well with a barrier of "
            f"{self._height(x[0]):.3g} to {self._height(x[-1]):.3g} temperatures"
        ]
        if fine in lined:
            measured, exact = lined[fine]
            said.append(
                f"at lr = {fine:g} log tau grows by {with_error(measured.value, measured.error)} for each unit of B / lr "
                f"(theory: {exact.value:.4f} by the exact chain of these steps, 2 barrier / C = "
                f"{2 * LANDSCAPE.barrier / self.noise:.4f} in the limit)"
            )
        if both:
            b = both[len(both) // 2]
            well, top = wells[b, fine], tops[b]
            ratio = well.mean_time.value / top.mean_time.value
            said.append(
                f"the top is reached {ratio:.2f} times as fast as the other well (exact for these steps "
                f"{well.exact / top.exact:.2f}, for small steps 2: half of those who reach it turn back), so that a rate "
                f"has to say which exit is meant"
            )
        ends = [(b, lr) for b, lr in wells if lr == max(self.lr) and wells[b, lr].told]
        if ends:
            b, lr = ends[-1]
            p, mean = wells[b, lr], wells[b, lr].mean_time
            said.append(
                f"at B / lr = {b:g} and lr = {lr:g} escape takes {with_error(mean.value, mean.error)} in units of "
                f"lr * step, exactly {p.exact:.4g} by the chain, {self._continuous(b):.4g} by the differential equation "
                f"and {self._asymptote(b):.4g} by Kramers' asymptote"
            )
        return paragraph([*said, *untold(list(wells.values()))])

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return panels(arrays, title, (_draw_survival, _draw_line, _draw_finite), size=(13.5, 4.8))


def _factor(b: float, lr: float, well: Passages, top: Passages) -> Comparison:
    """Mean time to the other well over that to the top."""
    exact = well.exact / top.exact
    return Comparison.of(f"well / top, B/lr = {b:g}, lr = {lr:g}", exact, time_ratio(well, top))


def _curves(name: str, p: Passages) -> dict[str, np.ndarray]:
    """The survival curve with one standard error, against the exact one, in units of lr * step from the start."""
    lr, every, count = p.chain.lr, max(1, int(p.times.times.max()) // 200), 200
    exact = p.chain.survival(every, count).numpy()
    arrays = {f"{name}_curve": np.stack([lr * every * np.arange(count + 1), exact])}
    if int(p.times.exited.sum()):
        curve = kaplan_meier(p.times)
        keep = np.unique(np.linspace(0, len(curve.times) - 1, 400).astype(int))
        columns = (lr * curve.times, curve.survival, curve.error.nan_to_num(0.0))
        arrays[name] = np.stack([column.numpy()[keep] for column in columns])
    else:
        arrays[name] = np.zeros((3, 0))
    return arrays


def _draw_survival(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    for name, color, said in (("top", "tab:orange", "to the top"), ("well", "tab:blue", "to the other well")):
        t, share, error = arrays[name]
        axis.fill_between(t, share - 2 * error, share + 2 * error, color=color, alpha=0.3, lw=0, step="post")
        axis.step(t, share, color=color, lw=1, where="post", label=f"walkers, {said}")
        axis.plot(*arrays[f"{name}_curve"], color="k", lw=1, ls="--", label="exact chain" if name == "well" else None)
    shown = arrays["well_curve"][1]
    axis.set(xlabel="time (lr * step)", ylabel="share that has not left", yscale="log")
    axis.set_ylim(max(0.5 * min(shown.min(), arrays["top_curve"][1].min()), 1e-3), 1.1)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_title(f"survival, B/lr = {float(arrays['survival_at']):g}, lr = {arrays['lr'][0]:g}", fontsize=10)
    axis.legend(loc="lower left", frameon=False, fontsize=9)


def _draw_line(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    x, grid = arrays["batch_over_lr"], arrays["grid"]
    axis.semilogy(grid, arrays["continuous"], color="tab:red", lw=1.2, label="theory, lr to 0 (quadrature)")
    axis.semilogy(grid, arrays["asymptote"], color="0.5", ls=":", lw=1.3, label="Kramers' asymptote")
    for i, lr in enumerate(arrays["lr"]):
        color = COLORS[i % len(COLORS)]
        axis.semilogy(x, arrays["exact"][i], color=color, ls="--", lw=1, label="exact chain" if i == 0 else None)
        axis.errorbar(x, *arrays["times"][i].T, color=color, ls="", marker="o", ms=5, label=f"walkers, lr = {lr:g}")
    axis.errorbar(x, *arrays["top_times"].T, color=COLORS[0], ls="", marker="^", mfc="none", ms=6, label="to the top")
    axis.semilogy(x, arrays["top_exact"], color=COLORS[0], ls="--", lw=1)
    axis.set(xlabel="B / lr", ylabel="mean time (lr * step)")
    axis.set_title("log time is a straight line in B / lr", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=8)


def _draw_finite(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    lr = arrays["lr"]
    for j, b in enumerate(arrays["batch_over_lr"]):
        color, limit = COLORS[j % len(COLORS)], arrays["continuous_at"][j]
        axis.semilogx(arrays["fine_lr"], arrays["fine"][j] / limit, color=color, ls="--", lw=1)
        beside = lr * 1.04 ** (j - (len(arrays["batch_over_lr"]) - 1) / 2)  # side by side, to be told apart
        axis.errorbar(
            beside, *(arrays["times"][:, j].T / limit), color=color, ls="", marker="o", ms=5, label=f"B/lr = {b:g}"
        )
    axis.axhline(1, color="tab:red", lw=1.2, label="lr to 0")
    axis.set(xlabel="learning rate", ylabel="mean time / that for lr to 0")
    axis.set_xticks(lr, [f"{value:g}" for value in lr])
    axis.set_xticks([], minor=True)
    axis.set_title("finite learning rate (dashed: exact chain)", fontsize=10)
    axis.legend(loc="lower left", frameon=False, fontsize=9)

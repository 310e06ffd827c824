"""Polya's question: does a random walk on the lattice come back? Exact curves for every n, and walkers beside them.

In one and two dimensions it does with probability 1, in two only after very long (42 % are still away after 100 steps);
from three on it may be lost. A simulation of n steps sees P(back by n), which falls short of P(back ever) by a tail of
order n^(1 - d/2); without it the measured probability is wrong however many walkers there are. `lab.gallery.walks.polya`.
"""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from lab.gallery.base import Experiment, Outcome, Surroundings, exact, shown, with_error
from lab.gallery.frame import COLORS, Arrays, Axes, Figure, caption, law, panels, points
from lab.gallery.walks.polya import Returns, first_return, first_returns, return_probability
from lab.progress import Tick
from lab.settings import settings

NUM_TIMES = 12
"""Steps at which walkers are held against the exact curve in the figure."""


@settings()
class Polya(Experiment):
    """Does a walk on the lattice come back? Exact return probabilities for every number of steps, and walkers beside them.

    Polya 1921: surely in one and two dimensions, with probability 0.3405 in three, 0.1932 in four. A simulation of n steps
    sees less, by a tail of order n^(1 - d/2), which is computed and added.
    """

    name: ClassVar[str] = "polya"

    dimensions: Annotated[tuple[Annotated[int, Field(ge=1, le=30)], ...], Field(description="of the lattices")] = (
        1,
        2,
        3,
        4,
        5,
    )
    steps: Annotated[int, Field(ge=2, le=10_000, description="for which a walker is followed")] = 1000
    walkers: Annotated[int, Field(ge=100, le=100_000_000, description="in each dimension")] = 30_000

    def __post_init__(self) -> None:
        self.require_different("dimensions", "[1,2,3]")

    def stages(self) -> dict[str, float]:
        away = [1 - min(0.9, return_probability(d)) for d in self.dimensions]
        curves = sum(2e-8 * d * self.steps**2 for d in self.dimensions)
        return {"exact curves": curves, "walkers": 6e-8 * self.walkers * self.steps * sum(away)}

    def simulate(self, around: Surroundings) -> Outcome:
        def curve(d: int, tick: Tick) -> np.ndarray:
            back = np.cumsum(first_return(d, self.steps))
            tick(1.0)
            return back

        def walk(d: int, tick: Tick) -> Returns:
            generator = around.stream(f"{self.name}/walkers", d)
            return first_returns(d, generator, walkers=self.walkers, steps=self.steps, tick=tick)

        dimensions = sorted(self.dimensions)
        curves, returns = around.each("exact curves", dimensions, curve), around.each("walkers", dimensions, walk)
        ever = {d: return_probability(d) for d in dimensions}
        by_now = [
            exact(f"back by step {self.steps}, d = {d}", curves[d][-1], r.by(self.steps)) for d, r in returns.items()
        ]
        in_all = [exact(f"back ever, d = {d}", ever[d], r.ever()) for d, r in returns.items() if d > 2]
        times = np.unique(np.geomspace(2, self.steps, NUM_TIMES).astype(int) // 2 * 2)
        arrays = {
            "dimensions": dimensions,
            "n": 2 * np.arange(1, self.steps // 2 + 1),
            "exact": list(curves.values()),
            "times": times,
            "measured": [[r.by(int(n)) for n in times] for r in returns.values()],
            "ever": list(ever.values()),
            "measured_ever": [_ever(r) for r in returns.values()],
        }
        values = {f"missing_after_the_last_step_d_{d}": float(ever[d] - curves[d][-1]) for d in returns}
        return Outcome(self._finding(curves, returns, ever), [*by_now, *in_all], arrays, values)

    def _finding(self, curves: dict[int, np.ndarray], returns: dict[int, Returns], ever: dict[int, float]) -> str:
        parts = []
        for d, r in returns.items():
            seen = r.by(self.steps)
            part = f"d = {d}: {shown(seen)} are back (exact {curves[d][-1]:.4f})"
            if d > 2:
                part += f", with the tail {with_error(r.ever().value, seen.error)} ever (theory {ever[d]:.4f})"
            parts.append(part)
        lost = [d for d in returns if d > 2]
        moral = []
        if len(lost) < len(returns):
            moral.append("In one and two dimensions every walk returns in the end, in two very slowly")
        if lost:
            d = lost[0]
            moral.append(
                f"in {d} dimensions a share of {1 - ever[d]:.3f} never does, and what {self.steps} steps miss of the "
                f"returns, {ever[d] - curves[d][-1]:.2g}, has to be added"
            )
        closing = "; ".join(moral)
        return (
            f"{self.walkers} walks of up to {self.steps} steps from the origin of each lattice. {'; '.join(parts)}. "
            f"{closing[0].upper()}{closing[1:]}."
        )

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return panels(arrays, title, (_draw_curves, _draw_totals), size=(10.5, 4.8), widths=(3, 2))


def _ever(r: Returns) -> tuple[float, float, float]:
    """Seen, with the tail (below three dimensions there is none to add: the same), and the standard error."""
    seen = r.by(r.steps)
    return seen.value, r.ever().value if r.d > 2 else seen.value, seen.error


def _draw_curves(axis: Axes, arrays: Arrays) -> None:
    for i, d in enumerate(arrays["dimensions"]):
        color = COLORS[i % len(COLORS)]
        axis.semilogx(arrays["n"], arrays["exact"][i], color=color, lw=1.2)
        points(axis, arrays["times"], arrays["measured"][i], color, f"d = {d}", marker=".", ms=6)
        if d > 2:
            axis.axhline(arrays["ever"][i], color=color, lw=0.9, ls=":")
    law(axis, [], [], "exact (renewal)", "k", ls="-")
    law(axis, [], [], "ever (Bessel integral)", "k", lw=0.9, ls=":")
    axis.set(xlabel="n (steps)", ylabel="P(back at the origin by step n)", ylim=(0, 1.4), yticks=np.linspace(0, 1, 6))
    caption(axis, "points: walkers", "upper left", columns=3)


def _draw_totals(axis: Axes, arrays: Arrays) -> None:
    d, ever = arrays["dimensions"], arrays["measured_ever"]
    grid = np.arange(1, max(6, int(d.max())) + 1)
    law(axis, grid, [return_probability(int(x)) for x in grid], "theory", marker="_", ms=14, lw=1.5)
    points(axis, d[d > 2], ever[d > 2, 1:], label="walkers and tail")
    axis.plot(d, ever[:, 0], color="tab:blue", ls="", marker="x", ms=7, label=f"back by step {int(arrays['n'][-1])}")
    axis.set(xlabel="dimensions d", ylabel="P(back ever)", ylim=(0, 1.05), xticks=grid[:: max(1, len(grid) // 10)])
    caption(axis, "probability ever to return", "upper right")

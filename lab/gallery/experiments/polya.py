"""Polya's question: does a random walk on the lattice come back? Exact curves for every n, and walkers beside them.

In one and two dimensions it does with probability 1, in two only after very long (42 % are still away after 100 steps);
from three on it may be lost. A simulation of n steps sees P(back by n), which falls short of P(back ever) by a tail of
order n^(1 - d/2); without it the measured probability is wrong however many walkers there are. `lab.gallery.walks.polya`.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.frame import panels
from lab.gallery.walks.polya import Returns, first_return, first_returns, return_probability
from lab.settings import settings

NUM_TIMES = 12
"""Steps at which walkers are held against the exact curve in the figure."""
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")


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
        if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions):
            raise ValueError("dimensions: expected one or more different numbers, e.g. [1,2,3]")

    def stages(self) -> dict[str, float]:
        away = [1 - min(0.9, return_probability(d)) for d in self.dimensions]
        exact = sum(2e-8 * d * self.steps**2 for d in self.dimensions)
        return {"exact curves": exact, "walkers": 6e-8 * self.walkers * self.steps * sum(away)}

    def simulate(self, around: Surroundings) -> Outcome:
        dimensions = sorted(self.dimensions)
        exact = {}
        for d, tick in around.over("exact curves", dimensions):
            exact[d] = np.cumsum(first_return(d, self.steps))
            tick(1.0)
        found = {
            d: first_returns(
                d, around.stream(f"{self.name}/walkers", d), walkers=self.walkers, steps=self.steps, tick=tick
            )
            for d, tick in around.over("walkers", dimensions)
        }
        return self._outcome(exact, found)

    def _outcome(self, exact: dict[int, np.ndarray], found: dict[int, Returns]) -> Outcome:
        ever = {d: return_probability(d) for d in found}
        times = np.unique(np.geomspace(2, self.steps, NUM_TIMES).astype(int) // 2 * 2)
        by = np.array([[(r.by(int(n)).value, r.by(int(n)).error) for n in times] for r in found.values()])
        last = [
            Comparison.of(f"back by step {self.steps}, d = {d}", exact[d][-1], r.by(self.steps))
            for d, r in found.items()
        ]
        total = [Comparison.of(f"back ever, d = {d}", ever[d], r.ever()) for d, r in found.items() if d > 2]
        return Outcome(
            self._finding(exact, found, ever),
            [*last, *total],
            {
                "dimensions": np.array(list(found)),
                "n": 2 * np.arange(1, self.steps // 2 + 1),
                "exact": np.stack(list(exact.values())),
                "times": times,
                "measured": by,
                "ever": np.array(list(ever.values())),
                "measured_ever": np.array([_ever(r) for r in found.values()]),
            },
            {f"missing_after_the_last_step_d_{d}": float(ever[d] - exact[d][-1]) for d in found},
        )

    def _finding(self, exact: dict[int, np.ndarray], found: dict[int, Returns], ever: dict[int, float]) -> str:
        parts = []
        for d, r in found.items():
            seen, share = r.by(self.steps), f"{exact[d][-1]:.4f}"
            said = f"d = {d}: {with_error(seen.value, seen.error)} are back (exact {share})"
            if d > 2:
                said += f", with the tail {with_error(r.ever().value, seen.error)} ever (theory {ever[d]:.4f})"
            parts.append(said)
        lost = [d for d in found if d > 2]
        moral = []
        if len(lost) < len(found):
            moral.append("In one and two dimensions every walk returns in the end, in two very slowly")
        if lost:
            d = lost[0]
            moral.append(
                f"in {d} dimensions a share of {1 - ever[d]:.3f} never does, and what {self.steps} steps miss of the "
                f"returns, {ever[d] - exact[d][-1]:.2g}, has to be added"
            )
        closing = "; ".join(moral)
        return (
            f"{self.walkers} walks of up to {self.steps} steps from the origin of each lattice. {'; '.join(parts)}. "
            f"{closing[0].upper()}{closing[1:]}."
        )

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return panels(arrays, title, (_draw_curves, _draw_totals), size=(10.5, 4.8), widths=(3, 2))


def _ever(r: Returns) -> tuple[float, float, float]:
    """Seen, with the tail (below three dimensions there is none to add: the same), and the standard error."""
    seen = r.by(r.steps)
    return seen.value, r.ever().value if r.d > 2 else seen.value, seen.error


def _draw_curves(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    n = arrays["n"]
    for i, d in enumerate(arrays["dimensions"]):
        color = COLORS[i % len(COLORS)]
        axis.semilogx(n, arrays["exact"][i], color=color, lw=1.2)
        axis.errorbar(arrays["times"], *arrays["measured"][i].T, color=color, ls="", marker=".", ms=6, label=f"d = {d}")
        if d > 2:
            axis.axhline(arrays["ever"][i], color=color, lw=0.9, ls=":")
    axis.plot([], [], color="k", lw=1.2, label="exact (renewal)")
    axis.plot([], [], color="k", lw=0.9, ls=":", label="ever (Bessel integral)")
    axis.set(xlabel="n (steps)", ylabel="P(back at the origin by step n)", ylim=(0, 1.4), yticks=np.linspace(0, 1, 6))
    axis.set_title("points: walkers", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9, ncols=3)


def _draw_totals(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    d, (seen, whole, error) = arrays["dimensions"], arrays["measured_ever"].T
    grid = np.arange(1, max(6, int(d.max())) + 1)
    axis.plot(
        grid, [return_probability(int(x)) for x in grid], color="tab:red", ls="--", marker="_", ms=14, label="theory"
    )
    lost = d > 2
    axis.errorbar(
        d[lost], whole[lost], error[lost], color="tab:blue", ls="", marker="o", ms=5, label="walkers and tail"
    )
    axis.plot(d, seen, color="tab:blue", ls="", marker="x", ms=7, label=f"back by step {int(arrays['n'][-1])}")
    axis.set(xlabel="dimensions d", ylabel="P(back ever)", ylim=(0, 1.05), xticks=grid[:: max(1, len(grid) // 10)])
    axis.set_title("probability ever to return", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)

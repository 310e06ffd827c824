"""k polygons glued at a point: is the crossing a trap? Stationary law, return times, refinement, and the chord-step walk.

The walker is k times as often at the crossing as at any other corner, exactly, because it has k times as many neighbours.
But a polygon is a circle only when its corners are many, and then the crossing has mass 1/m, which vanishes, while the mass
near it (within a fixed part of the length) tends to the share of the length: no atom, no trap. The walk that jumps by
chords of fixed length does favour the crossing, within a distance of one step. Exact laws: `lab.gallery.walks.graphs`.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.frame import panels
from lab.gallery.walks.chords import ChordWalk
from lab.gallery.walks.graphs import HUB, Walk, glued_polygons
from lab.gallery.walks.wander import Occupation, Walkers
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import settings

RADIUS = 0.1
"""The neighbourhood of the crossing, as a part of the length of a polygon on either side: 2 RADIUS of all length."""
SECONDS_PER_MOVE = 1.2e-7
SECONDS_PER_JUMP = 2.5e-7


@settings()
class WalkPolygons(Experiment):
    """A walk on k polygons glued at a point: is the crossing a trap? Stationary law, return times, refinement, chord steps.

    The walker is k times as often at the crossing as at another corner, because that has k times the neighbours (stationary
    law proportional to degree; mean return time by Kac 1947). Refining the polygons takes the mass of the crossing to zero
    like 1 / m: no trap. A walk by chords of fixed length has an excess near the crossing, whose mass vanishes with the
    chord.
    """

    name: ClassVar[str] = "walk_polygons"

    k: Annotated[int, Field(ge=2, le=50, description="polygons glued at a corner; lines through a point")] = 3
    m: Annotated[int, Field(ge=3, le=2000, description="corners of each polygon (even: the chain has period 2)")] = 8
    refine: Annotated[
        tuple[Annotated[int, Field(ge=3, le=2000)], ...],
        Field(description="numbers of corners at which the mass at the crossing is measured as well"),
    ] = (10, 30, 100, 300)
    walkers: Annotated[int, Field(ge=2, le=10_000_000, description="on polygons, from the stationary law")] = 2000
    steps: Annotated[int, Field(ge=2, description="steps of each")] = 3000
    returns: Annotated[int, Field(ge=2, le=10_000_000, description="walkers followed back to the crossing")] = 100_000
    chord_steps: Annotated[
        tuple[Annotated[float, Field(gt=0, le=0.25)], ...],
        Field(description="lengths of a chord, in half-lengths of a line"),
    ] = (0.2, 0.1474, 0.0737, 0.0371)
    chord_walkers: Annotated[int, Field(ge=2, le=10_000_000, description="walkers by chords")] = 1000
    chord_time: Annotated[int, Field(ge=1, description="steps, after a burn-in of 24 / (pi x chord)^2 steps")] = 1000

    def __post_init__(self) -> None:
        for name in ("refine", "chord_steps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected one or more different values, e.g. [10,100] or [0.1,0.05]")

    def stages(self) -> dict[str, float]:
        move = SECONDS_PER_MOVE * self.walkers * self.steps
        jumps = sum(self.chord_time + ChordWalk(self.k, step).burn_in for step in self.chord_steps)
        return {
            "walkers on polygons": move,
            "returns to the crossing": SECONDS_PER_MOVE * self.returns * self.m,
            "refined polygons": move * len(self.refine),
            "chord steps": SECONDS_PER_JUMP * self.k * self.chord_walkers * jumps,
        }

    def simulate(self, around: Surroundings) -> Outcome:
        walk = Walk(glued_polygons(self.k, self.m))
        seen = Walkers(walk, around.stream(f"{self.name}/occupation")).occupation(
            walkers=self.walkers, steps=self.steps, tick=around.stage("walkers on polygons")
        )
        back = Walkers(walk, around.stream(f"{self.name}/returns")).first_returns(
            HUB, walkers=self.returns, tick=around.stage("returns to the crossing")
        )
        refined = [self._refined(around, m, tick) for m, tick in around.over("refined polygons", sorted(self.refine))]
        chords = [
            chord.near_share(
                around.stream(f"{self.name}/chords/{chord.step}"),
                walkers=self.chord_walkers,
                steps=self.chord_time,
                tick=tick,
            )
            for chord, tick in around.over("chord steps", [ChordWalk(self.k, s) for s in sorted(self.chord_steps)])
        ]
        return self._outcome(walk, seen, back.double().cpu(), refined, chords)

    def _refined(self, around: Surroundings, m: int, tick: Tick) -> tuple[Estimate, Estimate]:
        """The mass at the crossing and that within RADIUS of a polygon's length from it, at m corners."""
        walk = Walk(glued_polygons(self.k, m))
        seen = Walkers(walk, around.stream(f"{self.name}/refined", m)).occupation(
            walkers=self.walkers, steps=self.steps, tick=tick
        )
        return seen.at(_nodes(walk, 0)), seen.at(_nodes(walk, _reach(m)))

    def _outcome(
        self,
        walk: Walk,
        seen: Occupation,
        back: torch.Tensor,
        refined: list[tuple[Estimate, Estimate]],
        chords: list[Estimate],
    ) -> Outcome:
        n, pi = len(walk.nodes), walk.stationary()
        hub = seen.at(_nodes(walk, 0))
        ratio = Estimate(
            hub.value * (n - 1) / (1 - hub.value), hub.error * (n - 1) / (1 - hub.value) ** 2, 0, "walkers"
        )
        degree = Estimate(2 + 2 * (self.k - 1) * hub.value, 2 * (self.k - 1) * hub.error, 0, "walkers")
        times = Estimate(float(back.mean()), float(back.std() / len(back) ** 0.5), 0, "walkers")
        t = np.arange(int(back.quantile(0.9995)) + 1)
        fine, steps = sorted(self.refine), sorted(self.chord_steps)
        lattice = [
            Comparison.of("mass at the crossing", 1 / self.m, hub),
            Comparison.of("crossing / other corner", self.k, ratio),
            Comparison.of("steps between visits of the crossing", walk.return_times()[HUB], times),
            Comparison.of("mean degree that the walker sees", walk.edge_mean_degree_by_variance(), degree),
            *(
                Comparison.of(f"mass at the crossing, m = {m}", 1 / m, at)
                for m, (at, _) in zip(fine, refined, strict=True)
            ),
            *(
                Comparison.of(f"mass within {RADIUS:g} of it, m = {m}", near_mass(m), near)
                for m, (_, near) in zip(fine, refined, strict=True)
            ),
        ]
        counted = [ChordWalk(self.k, step).share_by_counting() for step in steps]
        upper = [
            Comparison.of(f"mass within a chord of {step:g}", count, share, approximate=True)
            for step, count, share in zip(steps, counted, chords, strict=True)
        ]
        return Outcome(
            self._finding(walk, ratio, times, refined, chords),
            [*lattice, *upper],
            {
                "pi": pi,
                "shares": seen.shares().cpu().numpy(),
                "errors": seen.errors().cpu().numpy(),
                "survival": walk.return_survival(HUB, int(t[-1])),
                "away": 1 - np.searchsorted(back.sort().values.numpy(), t, side="right") / len(back),
                "returns": np.array((len(back), times.value)),
                "m": np.array(fine),
                "crossing": np.array([(at.value, at.error) for at, _ in refined]),
                "near": np.array([(near.value, near.error) for _, near in refined]),
                "chord_steps": np.array(steps),
                "chords": np.array([(share.value, share.error) for share in chords]),
                "k": np.array(self.k),
                "corners": np.array(self.m),
            },
            {
                "period": walk.period,
                "eigenvector_minus_formula": float(np.abs(walk.stationary_by_eigenvector() - pi).max()),
                "return_time_by_hitting": walk.return_time_by_hitting(HUB),
                "edge_mean_degree": walk.edge_mean_degree(),
            },
        )

    def _finding(
        self,
        walk: Walk,
        ratio: Estimate,
        times: Estimate,
        refined: list[tuple[Estimate, Estimate]],
        chords: list[Estimate],
    ) -> str:
        (coarse, _), (fine, near) = refined[0], refined[-1]
        small, m = min(self.chord_steps), sorted(self.refine)
        alternates = "; on average over time, for all cycles are even and the chain has period 2" * (walk.period == 2)
        vanishes = (
            f"as m goes from {m[0]} to {m[-1]}, that mass falls from {coarse.value:.3g} to {fine.value:.3g} (theory 1/m: "
            f"{1 / m[0]:.3g}, {1 / m[-1]:.3g})"
            if len(m) > 1
            else f"at m = {m[0]} that mass is {fine.value:.3g} (theory 1/m: {1 / m[0]:.3g})"
        )
        return (
            f"{self.k} polygons of {self.m} corners glued at one: the walker is {with_error(ratio.value, ratio.error)} "
            f"times as often at the crossing as at another corner (theory, mass proportional to degree: {self.k}"
            f"{alternates}), and comes back to it every {with_error(times.value, times.error)} steps (theory, Kac: "
            f"{self.m}). This is no trap: {vanishes}, and the mass within {RADIUS:g} of a polygon's length from the "
            f"crossing tends to its share of the length, {2 * RADIUS:g} (measured {with_error(near.value, near.error)}, "
            f"theory {near_mass(m[-1]):.4g}). A walk by chords of length {small:g} on {self.k} lines is within one chord "
            f"of the crossing {chords[0].value / small:.2f} times as often as the share of the length says (counting "
            f"destinations would say {ChordWalk(self.k, small).share_by_counting() / small:.2f}), but on a mass of "
            f"{chords[0].value:.3g} that vanishes with the chord: an effect of the step size, not of the geometry."
        )

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        above, below = (_draw_occupation, _draw_refinement), (_draw_returns, _draw_chords)
        return panels(arrays, title, above, below, size=(10.5, 7.6))


def near_mass(m: int) -> float:
    """The exact mass within RADIUS of a polygon's length from the crossing: the hub and `reach` corners on 2k arms.

    >>> near_mass(10), near_mass(100)
    (0.3, 0.21)
    """
    return (1 + 2 * _reach(m)) / m


def _reach(m: int) -> int:
    """Corners within RADIUS of the length m of a polygon, on one side."""
    return int(RADIUS * m + 1e-9)


def _nodes(walk: Walk, distance: int) -> torch.Tensor:
    return torch.from_numpy(walk.within(HUB, distance))


def _draw_occupation(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    shares, errors, pi = arrays["shares"], arrays["errors"], arrays["pi"]
    nodes = np.arange(len(pi))
    axis.step(nodes, pi, where="mid", color="tab:red", lw=1.2, ls="--", label="theory: degree / (2 x edges)")
    axis.errorbar(nodes, shares, errors, color="tab:blue", ls="", marker=".", ms=5, lw=1, label="walkers")
    axis.set(xlabel="corner (0: the crossing)", ylabel="share of time", ylim=(0, 1.25 * pi.max()))
    axis.set_title(f"{int(arrays['k'])} polygons of {int(arrays['corners'])} corners", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_refinement(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    m = arrays["m"]
    grid = np.unique(np.geomspace(max(3, m.min() / 1.3), m.max() * 1.3, 400).astype(int))
    axis.loglog(grid, 1 / grid, color="tab:red", ls="--", lw=1.2, label="theory: 1 / m")
    axis.errorbar(m, *arrays["crossing"].T, color="tab:blue", ls="", marker="o", ms=5, label="at the crossing")
    axis.loglog(grid, [near_mass(int(x)) for x in grid], color="0.6", lw=1, label=f"theory: within {RADIUS:g} of it")
    axis.errorbar(m, *arrays["near"].T, color="tab:green", ls="", marker="s", ms=5, label=f"within {RADIUS:g} of it")
    axis.axhline(2 * RADIUS, color="k", lw=0.8, ls=":", label="share of the length")
    axis.set(xlabel="corners m of each polygon", ylabel="share of time", ylim=(None, 2))
    axis.set_title("finer polygons: the mass of the crossing vanishes", fontsize=10)
    axis.legend(loc="lower left", frameon=False, fontsize=9)


def _draw_returns(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    survival, measured, (walkers, mean) = arrays["survival"], arrays["away"], arrays["returns"]
    t, error = np.arange(len(survival)), np.sqrt(measured * (1 - measured) / walkers)
    axis.fill_between(
        t, (measured - 2 * error).clip(1e-9), measured + 2 * error, color="tab:blue", alpha=0.3, step="mid", lw=0
    )
    axis.step(t, measured, where="mid", color="tab:blue", lw=1.6, label="walkers (band: 2 standard errors)")
    axis.step(
        t, survival, where="mid", color="tab:red", ls="--", lw=1.2, label="theory: powers of the transition matrix"
    )
    axis.axvline(mean, color="tab:blue", lw=0.8, ls=":", label=f"mean of walkers {mean:.2f}")
    axis.set(xlabel="t (steps)", ylabel="P(not back by step t)", yscale="log", ylim=(survival[-1] / 2, 8))
    axis.set_title(f"first return to the crossing; Kac: mean {int(arrays['corners'])}", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_chords(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    k, steps, (shares, errors) = int(arrays["k"]), arrays["chord_steps"], arrays["chords"].T
    grid = np.linspace(0, min(0.25, 1.15 * steps.max()), 200)[1:]
    counted = [ChordWalk(k, float(s)).share_by_counting() for s in grid]
    axis.plot(grid, counted, color="tab:red", ls="--", lw=1.2, label="if proportional to the destinations")
    axis.errorbar(steps, shares, errors, color="tab:blue", marker="o", ms=5, lw=0.8, label="walkers (x their excess)")
    for step, share in zip(steps, shares, strict=True):
        axis.annotate(f" x{share / step:.2f}", (step, share), va="top", fontsize=9)
    axis.plot(grid, grid, color="k", lw=0.8, ls=":", label="share of the length")
    axis.set(xlabel="length of a chord (half-lengths of a line)", ylabel="share of time within one chord")
    axis.set(xlim=(0, grid[-1]), ylim=(0, 1.3 * max(counted)))
    axis.set_title(f"chord steps on {k} lines: an excess on a vanishing mass", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)

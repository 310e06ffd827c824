"""k polygons glued at a point: is the crossing a trap? Stationary law, return times, refinement, and the chord-step walk.

The walker is k times as often at the crossing as at any other corner, exactly, because it has k times as many neighbours.
But a polygon is a circle only when its corners are many, and then the crossing has mass 1/m, which vanishes, while the mass
near it (within a fixed part of the length) tends to the share of the length: no atom, no trap. The walk that jumps by
chords of fixed length does favour the crossing, within a distance of one step. Exact laws: `lab.gallery.walks.graphs`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from lab.gallery.base import Experiment, Measured, Outcome, Surroundings, Verdict, about, exact, shown
from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels, points
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
        self.require_different("refine", "[10,100]")
        self.require_different("chord_steps", "[0.1,0.05]")

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
        walk, part = Walk(glued_polygons(self.k, self.m)), "walkers on polygons"
        visits = self._visits(walk, around.stream(f"{self.name}/occupation"), around.stage(part))
        returning = Walkers(walk, around.stream(f"{self.name}/returns"))
        back = returning.first_returns(HUB, walkers=self.returns, tick=around.stage("returns to the crossing"))

        def refined(m: int, tick: Tick) -> tuple[Estimate, Estimate]:
            fine = Walk(glued_polygons(self.k, m))
            seen = self._visits(fine, around.stream(f"{self.name}/refined", m), tick)
            return seen.at(_nodes(fine, 0)), seen.at(_nodes(fine, _reach(m)))

        def by_chords(step: float, tick: Tick) -> Estimate:
            draws = around.stream(f"{self.name}/chords/{step}")
            return ChordWalk(self.k, step).near_share(
                draws, walkers=self.chord_walkers, steps=self.chord_time, tick=tick
            )

        fine = around.each("refined polygons", sorted(self.refine), refined)
        chords = around.each("chord steps", sorted(self.chord_steps), by_chords)
        return Visited(self, walk, visits, back.double().cpu(), fine, chords).outcome()

    def _visits(self, walk: Walk, generator: torch.Generator, tick: Tick) -> Occupation:
        return Walkers(walk, generator).occupation(walkers=self.walkers, steps=self.steps, tick=tick)

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        above, below = (_draw_occupation, _draw_refinement), (_draw_returns, _draw_chords)
        return panels(arrays, title, above, below, size=(10.5, 7.6))


@dataclass(frozen=True)
class Visited(Measured):
    """Where walkers on the polygons were, their times of return, and by refinement the mass at and near the crossing; by
    length of the chord the mass within one of it.
    """

    card: WalkPolygons
    walk: Walk
    visits: Occupation
    back: torch.Tensor
    refined: dict[int, tuple[Estimate, Estimate]]
    chords: dict[float, Estimate]

    @cached_property
    def hub(self) -> Estimate:
        """The mass at the crossing."""
        return self.visits.at(_nodes(self.walk, 0))

    @property
    def ratio(self) -> Estimate:
        """Visits of the crossing over those of another corner."""
        hub, others = self.hub, len(self.walk.nodes) - 1
        return Estimate(hub.value * others / (1 - hub.value), hub.error * others / (1 - hub.value) ** 2, 0, "walkers")

    @property
    def between(self) -> Estimate:
        """Mean steps between visits of the crossing."""
        return Estimate(float(self.back.mean()), float(self.back.std() / len(self.back) ** 0.5), 0, "walkers")

    def rows(self) -> list[Verdict]:
        k, hub = self.card.k, self.hub
        degree = Estimate(2 + 2 * (k - 1) * hub.value, 2 * (k - 1) * hub.error, 0, "walkers")
        return [
            exact("mass at the crossing", 1 / self.card.m, hub),
            exact("crossing / other corner", k, self.ratio),
            exact("steps between visits of the crossing", self.walk.return_times()[HUB], self.between),
            exact("mean degree that the walker sees", self.walk.edge_mean_degree_by_variance(), degree),
            *(exact(f"mass at the crossing, m = {m}", 1 / m, at) for m, (at, _) in self.refined.items()),
            *(
                exact(f"mass within {RADIUS:g} of it, m = {m}", near_mass(m), near)
                for m, (_, near) in self.refined.items()
            ),
            *(
                about(f"mass within a chord of {step:g}", ChordWalk(k, step).share_by_counting(), share)
                for step, share in self.chords.items()
            ),
        ]

    def arrays(self) -> dict[str, object]:
        back, t = self.back, np.arange(int(self.back.quantile(0.9995)) + 1)
        return {
            "pi": self.walk.stationary(),
            "shares": self.visits.shares(),
            "errors": self.visits.errors(),
            "survival": self.walk.return_survival(HUB, int(t[-1])),
            "away": 1 - np.searchsorted(back.sort().values.numpy(), t, side="right") / len(back),
            "returns": (len(back), self.between.value),
            "m": list(self.refined),
            "crossing": [at for at, _ in self.refined.values()],
            "near": [near for _, near in self.refined.values()],
            "chord_steps": list(self.chords),
            "chords": list(self.chords.values()),
            "k": self.card.k,
            "corners": self.card.m,
        }

    def values(self) -> dict[str, float]:
        walk = self.walk
        return {
            "period": walk.period,
            "eigenvector_minus_formula": float(np.abs(walk.stationary_by_eigenvector() - walk.stationary()).max()),
            "return_time_by_hitting": walk.return_time_by_hitting(HUB),
            "edge_mean_degree": walk.edge_mean_degree(),
        }

    def sentence(self) -> str:
        card, m, (small, least) = self.card, list(self.refined), next(iter(self.chords.items()))
        (coarse, _), (fine, near) = self.refined[m[0]], self.refined[m[-1]]
        alternates = "; on average over time, for all cycles are even and the chain has period 2" * (
            self.walk.period == 2
        )
        vanishes = (
            f"as m goes from {m[0]} to {m[-1]}, that mass falls from {coarse.value:.3g} to {fine.value:.3g} (theory 1/m: "
            f"{1 / m[0]:.3g}, {1 / m[-1]:.3g})"
            if len(m) > 1
            else f"at m = {m[0]} that mass is {fine.value:.3g} (theory 1/m: {1 / m[0]:.3g})"
        )
        return (
            f"{card.k} polygons of {card.m} corners glued at one: the walker is {shown(self.ratio)} "
            f"times as often at the crossing as at another corner (theory, mass proportional to degree: {card.k}"
            f"{alternates}), and comes back to it every {shown(self.between)} steps (theory, Kac: "
            f"{card.m}). This is no trap: {vanishes}, and the mass within {RADIUS:g} of a polygon's length from the "
            f"crossing tends to its share of the length, {2 * RADIUS:g} (measured {shown(near)}, "
            f"theory {near_mass(m[-1]):.4g}). A walk by chords of length {small:g} on {card.k} lines is within one chord "
            f"of the crossing {least.value / small:.2f} times as often as the share of the length says (counting "
            f"destinations would say {ChordWalk(card.k, small).share_by_counting() / small:.2f}), but on a mass of "
            f"{least.value:.3g} that vanishes with the chord: an effect of the step size, not of the geometry."
        )


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


def _draw_occupation(axis: Axes, arrays: Arrays) -> None:
    shares, errors, pi = arrays["shares"], arrays["errors"], arrays["pi"]
    nodes = np.arange(len(pi))
    axis.step(nodes, pi, where="mid", color="tab:red", lw=1.2, ls="--", label="theory: degree / (2 x edges)")
    axis.errorbar(nodes, shares, errors, color="tab:blue", ls="", marker=".", ms=5, lw=1, label="walkers")
    axis.set(xlabel="corner (0: the crossing)", ylabel="share of time", ylim=(0, 1.25 * pi.max()))
    caption(axis, f"{int(arrays['k'])} polygons of {int(arrays['corners'])} corners", "upper right")


def _draw_refinement(axis: Axes, arrays: Arrays) -> None:
    m = arrays["m"]
    grid = np.unique(np.geomspace(max(3, m.min() / 1.3), m.max() * 1.3, 400).astype(int))
    axis.loglog(grid, 1 / grid, color="tab:red", ls="--", lw=1.2, label="theory: 1 / m")
    points(axis, m, arrays["crossing"], "tab:blue", "at the crossing")
    axis.loglog(grid, [near_mass(int(x)) for x in grid], color="0.6", lw=1, label=f"theory: within {RADIUS:g} of it")
    points(axis, m, arrays["near"], "tab:green", f"within {RADIUS:g} of it", marker="s")
    axis.axhline(2 * RADIUS, color="k", lw=0.8, ls=":", label="share of the length")
    axis.set(xlabel="corners m of each polygon", ylabel="share of time", ylim=(None, 2))
    caption(axis, "finer polygons: the mass of the crossing vanishes", "lower left")


def _draw_returns(axis: Axes, arrays: Arrays) -> None:
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
    caption(axis, f"first return to the crossing; Kac: mean {int(arrays['corners'])}", "upper right")


def _draw_chords(axis: Axes, arrays: Arrays) -> None:
    k, steps, (shares, errors) = int(arrays["k"]), arrays["chord_steps"], arrays["chords"].T
    grid = np.linspace(0, min(0.25, 1.15 * steps.max()), 200)[1:]
    counted = [ChordWalk(k, float(s)).share_by_counting() for s in grid]
    law(axis, grid, counted, "if proportional to the destinations")
    axis.errorbar(steps, shares, errors, color="tab:blue", marker="o", ms=5, lw=0.8, label="walkers (x their excess)")
    for step, share in zip(steps, shares, strict=True):
        axis.annotate(f" x{share / step:.2f}", (step, share), va="top", fontsize=9)
    law(axis, grid, grid, "share of the length", "k", ls=":", lw=0.8)
    axis.set(xlabel="length of a chord (half-lengths of a line)", ylabel="share of time within one chord")
    axis.set(xlim=(0, grid[-1]), ylim=(0, 1.3 * max(counted)))
    caption(axis, f"chord steps on {k} lines: an excess on a vanishing mass", "upper left")

"""Random walks in d dimensions: how far, at which angle, and how flat they look to a principal component analysis.

The simple random walk gets as far in 10 dimensions as in one: sqrt(n), because each step moves one coordinate. Its length
and its angle to another walk are far from sharp at d = 10 (spread 23 %, cosines 1 / sqrt(d) = 0.32). And most of its
variance lies in two principal components, in any number of dimensions: a flat-looking trajectory is no evidence of a valley.
Laws: `lab.gallery.walks.lattice`, `lab.gallery.walks.shares`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from lab.gallery.base import (
    Experiment,
    Measured,
    Outcome,
    Surroundings,
    Verdict,
    about,
    exact,
    shown,
    with_error,
)
from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels
from lab.gallery.walks.lattice import Ends, FreeWalk, Kind, wander
from lab.gallery.walks.shares import components, cosines, first_order_share, limit_shares, mean_share, walk_shares
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import settings

TOP = 2
"""Principal components whose share is told."""
CLAIMED = 0.8
"""What is commonly said of them: "more than 80 % of the variance"."""
THIN = 0.05
"""A shell is called thin when distances spread by less than this part of their mean, from 200 dimensions on."""
NUM_TIMES = 25
"""Numbers of steps at which the distance is measured."""
SECONDS_PER_NUMBER = {"one_coordinate": 5e-9, "all_coordinates": 1.5e-8, "gaussian": 1.5e-8}


@settings()
class WalkDimensions(Experiment):
    """Random walks in d dimensions: how far, at which angle, and how flat they look to principal component analysis.

    The root mean square distance is sqrt(n) in any dimension when a step moves one coordinate, sqrt(n d) when it moves all.
    Two principal components hold 81 % of a walk's variance in 10 dimensions and 76 % in many (Antognini and Sohl-Dickstein
    2018, arXiv 1806.08805): what a trajectory of training shows has to be held against this.
    """

    name: ClassVar[str] = "walk_dimensions"

    d: Annotated[int, Field(ge=2, le=10_000, description="dimensions, where distances and angles are measured")] = 10
    steps: Annotated[int, Field(ge=2, le=100_000, description="length of every walk")] = 1000
    walkers: Annotated[int, Field(ge=100, le=100_000_000, description="of the same measurement")] = 20_000
    kind: Annotated[
        Kind, Field(description="one_coordinate: one by +-1 | all_coordinates: each by +-1 | gaussian: each by N(0, 1)")
    ] = "one_coordinate"
    pca_dimensions: Annotated[
        tuple[Annotated[int, Field(ge=2, le=10_000)], ...],
        Field(description="dimensions in which single walks are analysed"),
    ] = (3, 5, 10, 20, 50, 200)
    pca_walks: Annotated[int, Field(ge=2, le=1_000_000, description="walks in each of them")] = 200

    def __post_init__(self) -> None:
        self.require_different("pca_dimensions", "[3,10,200]")

    def stages(self) -> dict[str, float]:
        rank = [min(d, self.steps) for d in self.pca_dimensions]
        return {
            "walkers": SECONDS_PER_NUMBER[self.kind] * self.walkers * self.steps * self.d,
            "principal components": self.pca_walks
            * sum(4e-7 * r**2 + 2e-9 * r**3 + 2e-9 * self.steps * r for r in rank),
        }

    def simulate(self, around: Surroundings) -> Outcome:
        walk = FreeWalk(self.d, self.steps, self.kind)
        times = torch.from_numpy(np.unique(np.geomspace(1, self.steps, NUM_TIMES).round().astype(np.int64)))
        draws, tick = around.stream(f"{self.name}/walkers"), around.stage("walkers")
        ends = wander(walk, draws, walkers=self.walkers, times=times, tick=tick)

        def shares(d: int, tick: Tick) -> torch.Tensor:
            flat, draws = FreeWalk(d, self.steps, self.kind), around.stream(f"{self.name}/pca", d)
            return walk_shares(flat, draws, walks=self.pca_walks, top=TOP, tick=tick).cpu()

        each = around.each("principal components", sorted(self.pca_dimensions), shares)
        one = FreeWalk(max(self.pca_dimensions), self.steps, self.kind)
        return Wandered(
            self, walk, ends, each, components(one, around.stream(f"{self.name}/one walk"), top=TOP)
        ).outcome()

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        above, below = (_draw_growth, _draw_shell), (_draw_components, _draw_shares)
        return panels(arrays, title, above, below, size=(10.5, 7.6))


@dataclass(frozen=True)
class Wandered(Measured):
    """Where walks end, the shares (walks, TOP) of the first components by number of dimensions, and components of one."""

    card: WalkDimensions
    walk: FreeWalk
    ends: Ends
    shares: dict[int, torch.Tensor]
    one: torch.Tensor

    @cached_property
    def distances(self) -> torch.Tensor:
        return self.ends.distances().cpu()

    @cached_property
    def cosines(self) -> torch.Tensor:
        return self.ends.cosines().cpu()

    @cached_property
    def limits(self) -> torch.Tensor:
        """The shares of the components in many dimensions."""
        return limit_shares(self.card.steps + 1)

    @cached_property
    def means(self) -> dict[int, Estimate]:
        """The mean share of the first components."""
        return {d: mean_share(share) for d, share in self.shares.items()}

    @property
    def above(self) -> dict[int, float]:
        """The part of the walks whose first components hold more than is claimed."""
        return {d: float((share.sum(1) > CLAIMED).double().mean()) for d, share in self.shares.items()}

    def rows(self) -> list[Verdict]:
        card, walk, ends = self.card, self.walk, self.ends
        mean_square = Estimate(float(ends.mean_square[-1]), float(ends.error[-1]), 0, "walkers")
        return [
            exact(f"mean square distance, n = {card.steps}, d = {card.d}", walk.mean_square(), mean_square),
            about("median distance", walk.median(), ends.median()),
            about("mean distance", walk.mean(), _mean(self.distances)),
            about("relative spread of distance", walk.spread(), _spread(self.distances)),
            exact("mean square cosine of two walks", 1 / card.d, _mean(self.cosines.square())),
            *(
                about(f"share of {TOP} components, d = {d}", first_order_share(card.steps + 1, d, TOP), share)
                for d, share in self.means.items()
            ),
        ]

    def arrays(self) -> dict[str, object]:
        edges = np.linspace(0, float(self.distances.max()) * 1.02, 61)
        return {
            "times": self.ends.times,
            "mean_square": self.ends.mean_square,
            "mean_square_error": self.ends.error,
            "distances": np.histogram(self.distances, edges, density=True)[0],
            "distance_edges": edges,
            "cosines": np.histogram(self.cosines, np.linspace(-1, 1, 61), density=True)[0],
            "pca_dimensions": list(self.means),
            "shares": list(self.means.values()),
            "above": list(self.above.values()),
            "components": self.one,
            "d": self.card.d,
            "n": self.card.steps,
            "kind": self.card.kind,
        }

    def values(self) -> dict[str, float]:
        return {
            "std_of_one_coordinate": float(self.ends.ends.double().std(0).mean()),
            "limit_share": float(self.limits[:TOP].sum()),
            "limit_share_first": float(self.limits[0]),
        } | {f"above_{CLAIMED:g}_d_{d}": share for d, share in self.above.items()}

    def sentence(self) -> str:
        card, walk, ends = self.card, self.walk, self.ends
        root, measured = walk.mean_square() ** 0.5, float(ends.mean_square[-1]) ** 0.5
        law, single = ("sqrt(n)", "sqrt(n / d)") if walk.step_square == 1 else ("sqrt(n d)", "sqrt(n)")
        low, high = min(self.means), max(self.means)
        several = f"{100 * self.means[low].value:.1f} % in {low} dimensions"
        if len(self.means) > 1:
            several += f" and {100 * self.means[high].value:.1f} % in {high}"
        thick = walk.spread() > THIN
        shell = f"This is {'no' if thick else 'a'} thin shell, and walks are {'not' if thick else 'nearly'} orthogonal"
        return (
            f"{card.walkers} walks ({card.kind}) of {card.steps} steps in {card.d} dimensions: the root mean square "
            f"distance is {with_error(measured, float(ends.error[-1]) / (2 * measured))} (theory {law} = {root:.4g}), the "
            f"median {shown(ends.median())} (theory {walk.median():.4g}); {single} = "
            f"{root / card.d**0.5:.3g} is the size of a single coordinate. {shell}: distances "
            f"spread by {100 * _spread(self.distances).value:.1f} % around their mean (theory {100 * walk.spread():.1f} %) "
            f"and cosines between two walks by {float(self.cosines.std()):.3f} (theory 1 / sqrt(d) = {card.d**-0.5:.3f}). "
            f"Of the variance of a walk two principal components hold, on average, {several} (theory for many dimensions: "
            f"{100 * float(self.limits[:TOP].sum()):.1f} %): a walk without any landscape looks flat."
        )


def _mean(values: torch.Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5), 0, "walkers")


def _spread(values: torch.Tensor) -> Estimate:
    """Standard deviation over mean, with the error of a sample of nearly Gaussian values."""
    spread = float(values.std() / values.mean())
    return Estimate(spread, spread * (1 / (2 * len(values)) + spread**2 / len(values)) ** 0.5, 0, "walkers")


def _walk(arrays: Arrays) -> FreeWalk:
    return FreeWalk(int(arrays["d"]), int(arrays["n"]), str(arrays["kind"]))  # type: ignore[arg-type]


def _draw_growth(axis: Axes, arrays: Arrays) -> None:
    walk = _walk(arrays)
    n, square, error = arrays["times"], arrays["mean_square"], arrays["mean_square_error"]
    one, every = FreeWalk(walk.d, walk.n), FreeWalk(walk.d, walk.n, "all_coordinates")
    for kind, style, name in ((one, "--", r"$\sqrt{n}$"), (every, "-.", r"$\sqrt{n d}$")):
        mine = kind.step_square == walk.step_square
        label = (
            f"theory: {name}" if mine else f"{name}: {'all coordinates' if kind is every else 'one coordinate'} a step"
        )
        axis.loglog(n, np.sqrt(kind.step_square * n), color="tab:red" if mine else "0.6", ls=style, lw=1.2, label=label)
    if walk.step_square == 1:  # otherwise it is the line sqrt(n)
        axis.loglog(n, np.sqrt(n / walk.d), color="k", lw=0.8, ls=":", label=r"$\sqrt{n / d}$: size of one coordinate")
    axis.errorbar(
        n, np.sqrt(square), error / (2 * np.sqrt(square)), color="tab:blue", ls="", marker=".", label="walkers"
    )
    axis.set(xlabel="n (steps)", ylabel="root mean square distance (steps)")
    caption(axis, f"distance from the start, d = {walk.d}", "upper left")


def _draw_shell(axis: Axes, arrays: Arrays) -> None:
    walk = _walk(arrays)
    edges, scale = arrays["distance_edges"], walk.mean()
    r = np.linspace(0, edges[-1], 400)
    axis.stairs(
        arrays["distances"] * scale, edges / scale, color="tab:blue", fill=True, alpha=0.35, label="distance / mean"
    )
    law(axis, r / scale, walk.density(r) * scale, "theory: chi law", "tab:blue", lw=1.3)
    grid, cells = np.linspace(-1, 1, 402)[1:-1], np.linspace(-1, 1, len(arrays["cosines"]) + 1)
    axis.stairs(arrays["cosines"], cells, color="tab:orange", fill=True, alpha=0.35, label="cosine of two walks")
    law(axis, grid, walk.cosine_density(grid), "theory", "tab:orange", lw=1.3)
    highest = max(arrays["distances"].max() * scale, arrays["cosines"].max())
    axis.set(xlabel="distance / theoretical mean, or cosine", ylabel="density", ylim=(0, 1.45 * highest))
    caption(axis, f"distances and angles in {walk.d} dimensions after n = {walk.n}", "upper left", columns=2)


def _draw_components(axis: Axes, arrays: Arrays) -> None:
    found, n = arrays["components"], int(arrays["n"])
    limit, t = cosines(n + 1, found.shape[1]).numpy(), np.arange(n + 1)
    for i, color in enumerate(("tab:blue", "tab:green")):
        axis.plot(t, found[:, i], color=color, lw=1, label=f"component {i + 1} of one walk")
        label = "theory, many dimensions: cosines" if i == 0 else None
        law(axis, t, limit[:, i], label)
    axis.set(xlabel="step of the walk", ylabel="component (root mean square 1)", ylim=(-2, 3.4))
    caption(axis, f"one walk in {int(arrays['pca_dimensions'].max())} dimensions, analysed", "upper right")


def _draw_shares(axis: Axes, arrays: Arrays) -> None:
    d, (shares, errors), points = arrays["pca_dimensions"], arrays["shares"].T, int(arrays["n"]) + 1
    grid = np.unique(np.geomspace(d.min(), d.max() * 1.2, 60).astype(int))
    first = [first_order_share(points, int(x), TOP) for x in grid]
    axis.semilogx(grid, first, color="tab:red", ls="--", lw=1.2, label="theory, first order in 1/d")
    axis.axhline(float(limit_shares(points)[:TOP].sum()), color="tab:red", lw=1, label="theory, many dimensions")
    axis.axhline(CLAIMED, color="k", lw=0.8, ls=":", label=f"{100 * CLAIMED:.0f} %")
    axis.errorbar(d, shares, errors, color="tab:blue", ls="", marker="o", ms=5, capsize=2, label="mean of walks")
    for x, share, above in zip(d, shares, arrays["above"], strict=True):
        axis.annotate(f" {100 * above:.0f} %", (x, share), va="bottom", fontsize=8, color="tab:blue")
    axis.set(xlabel="dimensions d (blue: walks above 80 %)", ylabel=f"share of variance in {TOP} components")
    axis.set(ylim=(0.7, 1.02))
    axis.set_xticks(d, [str(x) for x in d])
    axis.set_xticks([], minor=True)
    caption(axis, "principal components of a walk without landscape", "upper right")

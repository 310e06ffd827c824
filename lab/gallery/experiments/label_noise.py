"""Label noise against heat: which noise of the gradient takes walkers to the crossing of two valleys of minima?

On L = (a b - y)^2/2 the minima are the axes, which cross at 0. Langevin noise goes to Gibbs, where the crossing holds its
share of low energy; mini-batch noise at interpolation vanishes on the valleys and leaves walkers where they arrive; label
noise, of labels y = xi drawn at each step, never vanishes and drives every walker down the valley into the crossing. The
noise decides, not the landscape. `lab.gallery.laws.label_noise`.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from lab.flows.langevin import Langevin, reflecting
from lab.flows.occupation import Boxes
from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.frame import panels
from lab.gallery.landscapes.sections import Section, draw_contours, window
from lab.gallery.laws.label_noise import FactorSGD, crossing_growth, drift_share, drift_time, flow_share, valley_drift
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.gibbs import gibbs, inside
from lab.results import Estimate
from lab.settings import settings

NOISES = ("label", "minibatch", "langevin")
COLORS = ("tab:orange", "tab:green", "tab:blue")
NUM_TIMES = 24
RELAXATIONS = 4
"""Relaxation times of the valley after which Langevin walkers are held against Gibbs in standard errors."""
TINY = 1e-100
"""Distance from the crossing where the growth is measured: there a b is nothing beside the noise."""
GROWTH_STEPS = 200
MOVES = 400
"""Places of a drawn trajectory."""

Scale = Annotated[float, Field(ge=0.01, le=3)]


@settings()
class LabelNoise(Experiment):
    """Which noise takes walkers to the crossing of two valleys? Label noise does, mini-batch and Langevin noise do not.

    On (a b - y)^2/2 all label-noise walkers are within 0.2 of the crossing after 8000 steps, 7 % of the Langevin walkers
    are (their Gibbs share), and 5 % under mini-batch noise at interpolation, which vanishes on the valleys. Beside it the
    drift along the valley against its equation, and the growth of log|a + b| at the crossing.
    """

    name: ClassVar[str] = "label_noise"

    lr: Annotated[float, Field(gt=0, le=1, description="step size")] = 0.1
    std: Annotated[float, Field(gt=0, le=10, description="s, standard deviation of the labels")] = 0.5
    start: Annotated[
        float, Field(gt=0, le=100, description="a, where the walkers on the valley b = 0 begin; below .9 sqrt(2/lr)")
    ] = 2.0
    walkers: Annotated[int, Field(ge=100, le=10_000_000, description="for each measurement")] = 4000
    steps: Annotated[int, Field(ge=50, le=10_000_000, description="of the walkers from uniform places")] = 8000
    half_width: Annotated[float, Field(gt=0, le=100, description="of their square, with reflecting walls")] = 2.0
    box: Annotated[float, Field(gt=0, le=50, description="half-width of the box at the crossing")] = 0.2
    batch_size: Annotated[int, Field(ge=1, le=1000, description="of the mini-batches")] = 1
    temperature: Annotated[float, Field(gt=0, le=10, description="T of the Langevin walkers")] = 0.01
    scales: Annotated[tuple[Scale, ...], Field(description="lr s at which the growth at the crossing is measured")] = (
        0.25,
        0.5,
        1.0,
        1.5,
        2.0,
    )

    def __post_init__(self) -> None:
        stable = (2 / self.lr) ** 0.5
        if not self.start < 0.9 * stable:
            raise ValueError(
                f"start={self.start:g}: valleys are stable below sqrt(2/lr) = {stable:.3g}; expected less than .9 of it"
            )
        if not self.half_width < 0.9 * stable:
            raise ValueError(
                f"half_width={self.half_width:g}: valleys are stable below {stable:.3g}; expected less than .9 of it"
            )
        if not self.box < self.half_width:
            raise ValueError(f"box={self.box:g}: expected less than half_width={self.half_width:g}")
        if self.lr * self.std**2 > self.start**2 / 4:
            raise ValueError(
                f"std={self.std:g}: the spread of a valley, sqrt(lr/2) std, is not small beside start={self.start:g}"
            )
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError("scales: expected one or more different numbers, e.g. [0.25,1.0]")

    def stages(self) -> dict[str, float]:
        work = 2.5e-8 * self.walkers
        return {
            "down the valley": work * self._valley_steps(),
            "growth at the crossing": 3 * work * GROWTH_STEPS * len(self.scales),
            "into the crossing": work * self.steps * (5 + self.batch_size),
        }

    def _valley_steps(self) -> int:
        """Until a third of the start is left, or the steps are over."""
        return max(1, min(self.steps, round(drift_time(self.start, self.start / 3, self.lr, self.std))))

    def simulate(self, around: Surroundings) -> Outcome:
        tick = around.stage("down the valley")
        times = np.unique(np.linspace(0, self._valley_steps(), NUM_TIMES // 2 + 1).round().astype(int))[1:]
        valley = self._down(times, around)
        tick(1.0)
        growth = {
            scale: self._growth(scale, around.stream(f"{self.name}/growth", i))
            for i, (scale, tick) in enumerate(around.over("growth at the crossing", sorted(self.scales)))
        }
        steps = np.unique(np.geomspace(min(10, self.steps), self.steps, NUM_TIMES).round().astype(int))
        shares = self._into(steps, around)
        return self._outcome(times, valley, growth, steps, shares, self._paths(around))

    def _dynamics(self, noise: str) -> FactorSGD | Langevin:
        walls = reflecting(-self.half_width, self.half_width)
        if noise == "langevin":
            return Langevin(Factorisation(target=0.0), self.temperature, self.lr, "mala", boundary=walls)
        return FactorSGD(self.lr, self.std, noise, self.batch_size, walls)  # type: ignore[arg-type]

    def _down(self, times: np.ndarray, around: Surroundings) -> list[Estimate]:
        generator, sgd, at = around.stream(f"{self.name}/valley"), FactorSGD(self.lr, self.std), 0
        x, found = torch.tensor([[self.start, 0.0]], device=around.device).repeat(self.walkers, 1), []
        for n in times.tolist():
            sgd.run(x, n - at, generator)
            found.append(_mean(x[:, 0].double()))
            at = n
        return found

    def _growth(self, scale: float, generator: torch.Generator) -> Estimate:
        """Mean growth of log|a + b| a step, from a place where the noise is all there is."""
        x = torch.full((self.walkers, 2), TINY, dtype=torch.float64, device=generator.device)
        before = x.sum(1).abs().log()
        FactorSGD(self.lr, scale / self.lr).run(x, GROWTH_STEPS, generator)
        return _mean((x.sum(1).abs().log() - before) / GROWTH_STEPS)

    def _into(self, steps: np.ndarray, around: Surroundings) -> np.ndarray:
        """Shares (noises, times) of walkers in the box, from the same places."""
        anywhere = torch.empty(self.walkers, 2, device=around.device)
        anywhere.uniform_(-self.half_width, self.half_width, generator=around.stream(f"{self.name}/places"))
        where, shares = Boxes(torch.zeros(1, 2), self.box), []
        for noise, tick in around.over("into the crossing", NOISES):
            x, at, generator = anywhere.clone(), 0, around.stream(f"{self.name}/{noise}")
            dynamics, seen = self._dynamics(noise), []
            for n in steps.tolist():
                dynamics.run(x, n - at, generator)
                seen.append(float(where(x).double().mean()))
                at = n
                tick(n / self.steps)
            shares.append(seen)
        return np.array(shares)

    def _paths(self, around: Surroundings) -> np.ndarray:
        """A trajectory (noises, MOVES, 2) under each noise from one place."""
        found = []
        for noise in NOISES:
            x = self.half_width * torch.tensor([[0.8, 0.55]], device=around.device)
            dynamics, generator, path = self._dynamics(noise), around.stream(f"{self.name}/path {noise}"), [x.clone()]
            for _ in range(MOVES - 1):
                dynamics.run(x, max(1, self.steps // (2 * MOVES)), generator)
                path.append(x.clone())
            found.append(torch.cat(path).cpu().numpy())
        return np.stack(found)

    def _outcome(
        self,
        times: np.ndarray,
        valley: list[Estimate],
        growth: dict[float, Estimate],
        steps: np.ndarray,
        shares: np.ndarray,
        paths: np.ndarray,
    ) -> Outcome:
        c, r = self.half_width, self.box
        law = gibbs(Factorisation(target=0.0), self.temperature, [-c, -c], [c, c], at=[(0.0,)] * 2, cuts=[(-r, r)] * 2)
        share = law.mean(inside([-r, -r], [r, r]))
        drift = valley_drift(self.start, self.lr, self.std, times)
        ends = [Estimate(p, (p * (1 - p) / self.walkers) ** 0.5, 0, "walkers") for p in shares[:, -1].tolist()]
        heat = Estimate(ends[2].value, (share * (1 - share) / self.walkers) ** 0.5, 0, "walkers")
        relaxed = self.lr * self.steps > RELAXATIONS * (2 * c / np.pi) ** 2 / self.temperature
        dense = np.geomspace(steps[0], steps[-1], 200)
        driven = drift_share(c, r, self.lr, self.std, dense)
        half = int(np.argmin(np.abs(drift_share(c, r, self.lr, self.std, steps) - 0.5)))
        rows = [
            *(
                Comparison.of(
                    f"E a after {times[i]} steps of label noise on the valley", drift[i], valley[i], approximate=True
                )
                for i in sorted({len(times) // 2, len(times) - 1})
            ),
            *(
                Comparison.of(
                    f"growth of log|a + b| a step at the crossing, lr s = {scale:g}", crossing_growth(1.0, scale), one
                )
                for scale, one in growth.items()
            ),
            Comparison(
                f"share in the box at step {steps[half]}, label noise",
                float(drift_share(c, r, self.lr, self.std, steps[half : half + 1])[0]),
                float(shares[0, half]),
                float((shares[0, half] * (1 - shares[0, half]) / self.walkers) ** 0.5),
                approximate=True,
            ),
            Comparison.of(f"share in the box at step {self.steps}, Langevin", share, heat, approximate=not relaxed),
        ]
        seen = window(Factorisation(target=0.0), [-c, -c], [c, c])
        scale = np.linspace(0.01, 1.1 * max(2.0, *self.scales), 200)
        return Outcome(
            self._finding(times, valley, drift, growth, ends, share),
            rows,
            {
                "times": times,
                "valley": np.array([(one.value, one.error) for one in valley]),
                "dense_times": np.linspace(0, times[-1], 200),
                "drift": valley_drift(self.start, self.lr, self.std, np.linspace(0, times[-1], 200)),
                "leading": self.start * np.exp(-((self.lr * self.std) ** 2) * np.linspace(0, times[-1], 200) / 2),
                "scales": np.array(list(growth)),
                "growth": np.array([(one.value, one.error) for one in growth.values()]),
                "dense_scales": scale,
                "growth_theory": np.array([crossing_growth(1.0, float(one)) for one in scale]),
                "steps": steps,
                "shares": shares,
                "share_errors": np.sqrt(shares * (1 - shares) / self.walkers),
                "dense_steps": dense,
                "driven": driven,
                "gibbs": np.array(share),
                "flow": np.array(flow_share(c, r)),
                "grid": seen.columns.numpy(),
                "loss": seen.values.numpy(),
                "paths": paths,
                "box": np.array(r),
            },
            {"gibbs_share": share, "gradient_flow_share": flow_share(c, r)}
            | {f"share_{noise}": float(end) for noise, end in zip(NOISES, shares[:, -1], strict=True)},
        )

    def _finding(
        self,
        times: np.ndarray,
        valley: list[Estimate],
        drift: np.ndarray,
        growth: dict[float, Estimate],
        ends: list[Estimate],
        share: float,
    ) -> str:
        own = crossing_growth(self.lr, self.std)
        scale, one = next(iter(growth.items()))
        pull = "attracts" if own < 0 else "repels"
        moral = (
            "The crossing attracts by label noise, not by Brownian motion."
            if ends[0].value > 2 * max(ends[1].value, share)
            else "In so many steps label noise has not yet gathered the walkers."
            if own < 0
            else "At so large an lr s the crossing repels."
        )
        return (
            f"{self.walkers} walkers on (a b - y)^2/2 from the same uniform places: after {self.steps} steps "
            f"{100 * ends[0].value:.1f} % are within {self.box:g} of the crossing under label noise, "
            f"{100 * ends[1].value:.1f} % under mini-batch noise, which vanishes where they arrive, and "
            f"{100 * ends[2].value:.1f} % under Langevin noise (theory, Gibbs at T = {self.temperature:g}: "
            f"{100 * share:.1f} %). Down the valley from a = {self.start:g} label noise drifts to a = "
            f"{with_error(valley[-1].value, valley[-1].error)} in {times[-1]} steps (theory {drift[-1]:.4f}); at the "
            f"crossing log|a + b| grows by {with_error(one.value, one.error)} a step at lr s = {scale:g} (theory "
            f"{crossing_growth(1.0, scale):.5f}), and at this lr and s by {own:.3g}: it {pull}. {moral}"
        )

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        above, below = (_draw_plane, _draw_shares), (_draw_valley, _draw_growth)
        return panels(arrays, title, above, below, size=(11, 8.6), gridless=(_draw_plane,))


def _mean(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5), 0, "walkers")


def _draw_plane(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    grid = torch.from_numpy(arrays["grid"])
    shown = Section.whole(grid, grid, torch.from_numpy(arrays["loss"]))
    axis.set_prop_cycle(color=COLORS)
    paths = dict(zip((f"{noise} noise" for noise in NOISES), torch.from_numpy(arrays["paths"]), strict=True))
    draw_contours(axis, shown, paths, names=("a", "b"))
    half = float(arrays["box"])
    axis.plot([-half, half, half, -half, -half], [-half, -half, half, half, -half], color="tab:red", lw=1.5)
    axis.set_title("a walker under each noise; red: the box at the crossing", fontsize=10)


def _draw_shares(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    for i, (noise, color, marker) in enumerate(zip(NOISES, COLORS, ("o", "v", "s"), strict=True)):
        axis.errorbar(
            arrays["steps"],
            arrays["shares"][i],
            arrays["share_errors"][i],
            color=color,
            ls="",
            marker=marker,
            ms=5,
            label=noise,
        )
    axis.plot(arrays["dense_steps"], arrays["driven"], color="tab:red", lw=1.4, label="theory: flow, then drift")
    axis.axhline(float(arrays["gibbs"]), color="tab:red", ls="--", lw=1.2, label="theory: Gibbs")
    axis.axhline(float(arrays["flow"]), color="k", ls=":", lw=1, label="gradient flow alone (lr to 0)")
    axis.set_xscale("log")
    axis.set_yscale("log")
    low = min(arrays["shares"][arrays["shares"] > 0].min(initial=1.0), float(arrays["flow"]))
    axis.set(xlabel="steps", ylabel="share of walkers in the box at the crossing", ylim=(low / 2, 2))
    axis.set_title("the noise decides who ends at the crossing", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_valley(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    axis.plot(arrays["dense_times"], arrays["drift"], color="tab:red", lw=1.4, label="theory: drift")
    axis.plot(arrays["dense_times"], arrays["leading"], color="k", ls=":", lw=1, label="leading order in lr")
    axis.errorbar(
        arrays["times"], *arrays["valley"].T, color=COLORS[0], ls="", marker="o", ms=5, label="mean of walkers"
    )
    axis.set(xlabel="steps of label noise on the valley b = 0", ylabel="E a", ylim=(0, 1.15 * arrays["drift"][0]))
    axis.set_title("down the valley", fontsize=10)
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_growth(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    scale = arrays["dense_scales"]
    axis.plot(scale, arrays["growth_theory"], color="tab:red", lw=1.4, label=r"theory: E log|1 + lr $\xi$|")
    axis.plot(scale, -(scale**2) / 2, color="k", ls=":", lw=1, label="leading order, $-(lr\\,s)^2/2$")
    axis.errorbar(arrays["scales"], *arrays["growth"].T, color=COLORS[0], ls="", marker="o", ms=5, label="walkers")
    axis.axhline(0, color="0.5", lw=0.8)
    low, high = arrays["growth_theory"].min(), arrays["growth_theory"].max()
    axis.set(xlabel="lr s", ylabel="growth of log|a + b| a step", ylim=(1.3 * low, high + 0.8 * (high - low)))
    axis.set_title("at the crossing: attracts below 0, repels above", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)

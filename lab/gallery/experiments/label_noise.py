"""Label noise against heat: which noise of the gradient takes walkers to the crossing of two valleys of minima?

On L = (a b - y)^2/2 the minima are the axes, which cross at 0. Langevin noise goes to Gibbs, where the crossing holds its
share of low energy; mini-batch noise at interpolation vanishes on the valleys and leaves walkers where they arrive; label
noise, of labels y = xi drawn at each step, never vanishes and drives every walker down the valley into the crossing. The
noise decides, not the landscape. `lab.gallery.laws.label_noise`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from lab.flows.langevin import Langevin, reflecting
from lab.flows.occupation import Boxes
from lab.gallery.base import Experiment, Measured, Outcome, Surroundings, Verdict, about, exact, shown
from lab.gallery.experiments.label_noise_figure import NOISES, draw
from lab.gallery.frame import Arrays, Figure
from lab.gallery.landscapes.sections import window
from lab.gallery.laws.label_noise import FactorSGD, crossing_growth, drift_share, drift_time, flow_share, valley_drift
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.gibbs import gibbs, inside
from lab.noise.settling import average
from lab.results import Estimate
from lab.settings import settings

ORIGIN = Factorisation(target=0.0)
"""The landscape whose valleys of minima are the axes."""
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
        self.require_different("scales", "[0.25,1.0]")

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
        return Gathered(self, times, valley, growth, steps, shares, self._paths(around)).outcome()

    def _dynamics(self, noise: str) -> FactorSGD | Langevin:
        walls = reflecting(-self.half_width, self.half_width)
        if noise == "langevin":
            return Langevin(ORIGIN, self.temperature, self.lr, "mala", boundary=walls)
        return FactorSGD(self.lr, self.std, noise, self.batch_size, walls)  # type: ignore[arg-type]

    def _down(self, times: np.ndarray, around: Surroundings) -> list[Estimate]:
        generator, sgd, at = around.stream(f"{self.name}/valley"), FactorSGD(self.lr, self.std), 0
        x, found = torch.tensor([[self.start, 0.0]], device=around.device).repeat(self.walkers, 1), []
        for n in times.tolist():
            sgd.run(x, n - at, generator)
            found.append(average(x[:, 0].double()))
            at = n
        return found

    def _growth(self, scale: float, generator: torch.Generator) -> Estimate:
        """Mean growth of log|a + b| a step, from a place where the noise is all there is."""
        x = torch.full((self.walkers, 2), TINY, dtype=torch.float64, device=generator.device)
        before = x.sum(1).abs().log()
        FactorSGD(self.lr, scale / self.lr).run(x, GROWTH_STEPS, generator)
        return average((x.sum(1).abs().log() - before) / GROWTH_STEPS)

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

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return draw(arrays, title)


@dataclass(frozen=True)
class Gathered(Measured):
    """E a of the valley after `times` steps, growth at the crossing by lr s, shares (noises, steps) in the box, and a path
    (noises, MOVES, 2) under each noise.
    """

    card: LabelNoise
    times: np.ndarray
    valley: list[Estimate]
    growth: dict[float, Estimate]
    steps: np.ndarray
    shares: np.ndarray
    paths: np.ndarray

    @cached_property
    def gibbs_share(self) -> float:
        """The share of the box under Gibbs."""
        c, r = self.card.half_width, self.card.box
        law = gibbs(ORIGIN, self.card.temperature, [-c, -c], [c, c], at=[(0.0,)] * 2, cuts=[(-r, r)] * 2)
        return law.mean(inside([-r, -r], [r, r]))

    def drift(self, times: np.ndarray) -> np.ndarray:
        """E a on the valley, by theory."""
        return valley_drift(self.card.start, self.card.lr, self.card.std, times)

    def driven(self, steps: np.ndarray) -> np.ndarray:
        """The share of the box under label noise, by theory."""
        return drift_share(self.card.half_width, self.card.box, self.card.lr, self.card.std, steps)

    def error(self, share: Any) -> Any:
        """The standard error of shares of the walkers."""
        return (share * (1 - share) / self.card.walkers) ** 0.5

    def rows(self) -> list[Verdict]:
        card, last = self.card, len(self.times) - 1
        drift, driven = self.drift(self.times), self.driven(self.steps)
        half = int(np.argmin(np.abs(driven - 0.5)))
        share = float(self.shares[0, half])
        gathered = Estimate(share, float(self.error(self.shares[0, half])), 0, "walkers")
        heat = Estimate(float(self.shares[2, -1]), self.error(self.gibbs_share), 0, "walkers")
        relaxed = card.lr * card.steps > RELAXATIONS * (2 * card.half_width / np.pi) ** 2 / card.temperature
        name = f"share in the box at step {card.steps}, Langevin"
        return [
            *(
                about(f"E a after {self.times[i]} steps of label noise on the valley", drift[i], self.valley[i])
                for i in sorted({len(self.times) // 2, last})
            ),
            *(
                exact(
                    f"growth of log|a + b| a step at the crossing, lr s = {scale:g}", crossing_growth(1.0, scale), one
                )
                for scale, one in self.growth.items()
            ),
            about(f"share in the box at step {self.steps[half]}, label noise", driven[half], gathered),
            (exact if relaxed else about)(name, self.gibbs_share, heat),
        ]

    def arrays(self) -> dict[str, object]:
        card = self.card
        c, dense, along = (
            card.half_width,
            np.geomspace(self.steps[0], self.steps[-1], 200),
            np.linspace(0, self.times[-1], 200),
        )
        seen, scale = window(ORIGIN, [-c, -c], [c, c]), np.linspace(0.01, 1.1 * max(2.0, *card.scales), 200)
        return {
            "times": self.times,
            "valley": self.valley,
            "dense_times": along,
            "drift": self.drift(along),
            "leading": card.start * np.exp(-((card.lr * card.std) ** 2) * along / 2),
            "scales": list(self.growth),
            "growth": list(self.growth.values()),
            "dense_scales": scale,
            "growth_theory": [crossing_growth(1.0, float(one)) for one in scale],
            "steps": self.steps,
            "shares": self.shares,
            "share_errors": self.error(self.shares),
            "dense_steps": dense,
            "driven": self.driven(dense),
            "gibbs": self.gibbs_share,
            "flow": flow_share(c, card.box),
            "grid": seen.columns,
            "loss": seen.values,
            "paths": self.paths,
            "box": card.box,
        }

    def values(self) -> dict[str, float]:
        ends = {f"share_{noise}": float(end) for noise, end in zip(NOISES, self.shares[:, -1], strict=True)}
        flow = flow_share(self.card.half_width, self.card.box)
        return {"gibbs_share": self.gibbs_share, "gradient_flow_share": flow} | ends

    def sentence(self) -> str:
        card, share, (label, batch, heat) = self.card, self.gibbs_share, self.shares[:, -1].tolist()
        own = crossing_growth(card.lr, card.std)
        scale, one = next(iter(self.growth.items()))
        moral = (
            "The crossing attracts by label noise, not by Brownian motion."
            if label > 2 * max(batch, share)
            else "In so many steps label noise has not yet gathered the walkers."
            if own < 0
            else "At so large an lr s the crossing repels."
        )
        return (
            f"{card.walkers} walkers on (a b - y)^2/2 from the same uniform places: after {card.steps} steps "
            f"{100 * label:.1f} % are within {card.box:g} of the crossing under label noise, "
            f"{100 * batch:.1f} % under mini-batch noise, which vanishes where they arrive, and "
            f"{100 * heat:.1f} % under Langevin noise (theory, Gibbs at T = {card.temperature:g}: "
            f"{100 * share:.1f} %). Down the valley from a = {card.start:g} label noise drifts to a = "
            f"{shown(self.valley[-1])} in {self.times[-1]} steps (theory {self.drift(self.times)[-1]:.4f}); at the "
            f"crossing log|a + b| grows by {shown(one)} a step at lr s = {scale:g} (theory "
            f"{crossing_growth(1.0, scale):.5f}), and at this lr and s by {own:.3g}: it "
            f"{'attracts' if own < 0 else 'repels'}. {moral}"
        )

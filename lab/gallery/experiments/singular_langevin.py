"""Do crossings of valleys of minima attract Brownian motion? Langevin dynamics against Gibbs, step size by step size.

The stationary law of dx = -grad L dt + sqrt(2 T) dW is exp(-L/T)/Z whatever the kinks of L, and gives a box at the crossing
its share of low energy and no more. What a simulation shows beyond that is its step size (Euler-Maruyama on the product
x^2 y^2) or the little time since it was started at the crossing; with the Metropolis test (MALA) the step size does
nothing. `lab.flows.langevin`, `lab.gallery.landscapes.crossings`, the truth by quadrature: `lab.landscapes.gibbs`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lab.flows.langevin import Boundary, Langevin, Sampler, periodic, reflecting
from lab.flows.occupation import Boxes, Occupation, occupation
from lab.gallery.base import Experiment, Measured, Outcome, Surroundings, Verdict, about, exact, shown
from lab.gallery.experiments.singular_langevin_figure import draw
from lab.gallery.frame import Arrays, Figure
from lab.gallery.landscapes.crossings import Cusp, MinCrossing, ProductCrossing, ThreeLines
from lab.gallery.landscapes.sections import window
from lab.landscapes.base import Landscape
from lab.landscapes.gibbs import Gibbs, gibbs, inside
from lab.results import Estimate
from lab.settings import settings

LANDSCAPES: dict[str, type[Landscape]] = {
    "min_crossing": MinCrossing,
    "product_crossing": ProductCrossing,
    "three_lines": ThreeLines,
    "cusp": Cusp,
}
SAMPLERS: tuple[Sampler, ...] = ("euler", "mala")
STEEP = 2.5e-4
"""Temperature over alpha below which the quadrature would need finer panels than it has."""
PANELS = 32
NUM_BOXES = 19
"""Boxes along the valley, the crossing in the middle one."""
FAR = 14
"""The box of these that stands for a valley, half way out."""
LOOKS = 200
"""Times at which a walker is looked for."""
NUM_TIMES = 25
MOVES = 500
"""Places of a drawn trajectory."""
WALKER_STEPS = {"euler": 5e7, "mala": 1.5e7}
"""A second, for the progress bar."""

Lr = Annotated[float, Field(gt=0, le=1)]


@settings()
class SingularLangevin(Experiment):
    """Do crossings of valleys attract Brownian motion? Langevin dynamics against Gibbs by quadrature, step size by step
    size.

    They do not: with the Metropolis test (mala) the box at the crossing holds its Gibbs share at every step size. Euler
    shows an excess on product_crossing (1.5 at lr 0.005) and a deficit on min_crossing (0.84), both of which vanish with
    the step; and whoever starts at the crossing sees an excess until a time of about 0.3.
    """

    name: ClassVar[str] = "singular_langevin"

    surface: Annotated[
        Literal["min_crossing", "product_crossing", "three_lines", "cusp"],
        Field(description="min_crossing | product_crossing | three_lines | cusp, on the square [-1, 1]^2"),
    ] = "product_crossing"
    alpha: Annotated[
        Annotated[float, Field(gt=0, le=1e6)] | None, Field(description="its steepness; null: that of conf/landscape")
    ] = None
    temperature: Annotated[float, Field(gt=0, le=1e3, description="T of exp(-L/T)/Z")] = 1.0
    lr: Annotated[tuple[Lr, ...], Field(description="step sizes")] = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3, 9e-3)
    walkers: Annotated[int, Field(ge=100, le=10_000_000, description="of each sampler and step size")] = 2000
    steps: Annotated[int, Field(ge=50, le=10_000_000, description="each; the first fifth is not looked at")] = 5000
    start: Annotated[
        Literal["gibbs", "uniform", "crossing"],
        Field(description="gibbs | uniform | crossing: where they begin; mala is exact from the first step with gibbs"),
    ] = "gibbs"
    boundary: Annotated[
        Literal["reflecting", "periodic"],
        Field(description="reflecting | periodic (min_crossing and product_crossing only)"),
    ] = "reflecting"
    box: Annotated[float, Field(ge=0.01, le=0.25, description="half-width of the boxes")] = 0.1

    def __post_init__(self) -> None:
        if not self.lr or len(set(self.lr)) < len(self.lr):
            raise ValueError("lr: expected one or more different step sizes, e.g. [0.0001,0.005]")
        alpha = self._landscape().alpha  # type: ignore[attr-defined]
        if self.temperature < STEEP * alpha:
            raise ValueError(
                f"temperature={self.temperature:g} is too low for alpha={alpha:g}: valleys narrower than the quadrature "
                f"resolves; expected at least {STEEP * alpha:g}"
            )
        if self.boundary == "periodic" and self.surface not in ("min_crossing", "product_crossing"):
            raise ValueError(f"boundary=periodic: {self.surface} differs from side to side; use boundary=reflecting")

    def _landscape(self) -> Landscape:
        """The landscape itself."""
        kind = LANDSCAPES[self.surface]
        return kind() if self.alpha is None else kind(alpha=self.alpha)  # type: ignore[call-arg]

    def stages(self) -> dict[str, float]:
        work = self.walkers * self.steps
        each = {str(sampler): len(self.lr) * work / WALKER_STEPS[sampler] for sampler in SAMPLERS}
        return {"Gibbs by quadrature": 2.0, **each, "finite time": 2 * work / WALKER_STEPS["euler"]}

    def simulate(self, around: Surroundings) -> Outcome:
        tick = around.stage("Gibbs by quadrature")
        surface, where = self._landscape(), Boxes(self.valley(), self.box)
        edges = [sorted({*(c - self.box), *(c + self.box)}) for c in where.centres.T.numpy()]
        law = gibbs(surface, self.temperature, [-1, -1], [1, 1], at=[(0.0,)] * 2, cuts=edges, panels=PANELS)
        truth = np.array([law.mean(inside(c - self.box, c + self.box)) for c in where.centres.numpy()])
        tick(1.0)
        lrs, walks = sorted(self.lr), dict[tuple[Sampler, float], Occupation]()
        for sampler in SAMPLERS:
            for i, (lr, tick) in enumerate(around.over(sampler, lrs)):
                generator = around.stream(f"{self.name}/{sampler}", i)
                walks[sampler, lr] = occupation(
                    self._dynamics(surface, sampler, lr),
                    self._start(self.start, law, generator),
                    where,
                    steps=self.steps - self.steps // 5,
                    burn_in=self.steps // 5,
                    every=max(1, self.steps // LOOKS),
                    generator=generator,
                    tick=tick,
                )
        times, curves = self._in_time(surface, law, around)
        return AtCrossing(self, surface, truth, walks, times, curves, self._path(surface, lrs[0], around)).outcome()

    def valley(self) -> Tensor:
        """Centres (NUM_BOXES, 2) of boxes along the valley: of the x-axis, or of the cusp (s^2, s^3)."""
        end = (1 - self.box) ** (0.5 if self.surface == "cusp" else 1.0)
        s = torch.linspace(-end, end, NUM_BOXES, dtype=torch.float64)
        s[NUM_BOXES // 2] = 0.0
        return torch.stack([s**2, s**3] if self.surface == "cusp" else [s, torch.zeros_like(s)], dim=1)

    def _dynamics(self, surface: Landscape, sampler: Sampler, lr: float) -> Langevin:
        walls: Boundary = (reflecting if self.boundary == "reflecting" else periodic)(-1.0, 1.0)
        return Langevin(surface, self.temperature, lr, sampler, boundary=walls)

    def _start(self, start: str, law: Gibbs, generator: torch.Generator) -> Tensor:
        if start == "gibbs":
            return law.draw(self.walkers, generator).float()
        x = torch.zeros(self.walkers, 2, device=generator.device)
        return x.uniform_(-1, 1, generator=generator) if start == "uniform" else x

    def _in_time(self, surface: Landscape, law: Gibbs, around: Surroundings) -> tuple[np.ndarray, np.ndarray]:
        """Times lr step, and P(box at the crossing) with its error for walkers started at the crossing and anywhere."""
        lr = min(self.lr)
        steps = np.unique(np.geomspace(min(10, self.steps), self.steps, NUM_TIMES).round().astype(int))
        dynamics, where = self._dynamics(surface, "euler", lr), Boxes(torch.zeros(1, 2), self.box)
        curves = []
        for start, tick in around.over("finite time", ("crossing", "uniform")):
            generator = around.stream(f"{self.name}/from {start}")
            x, at, seen = self._start(start, law, generator), 0, []
            for n in steps.tolist():
                dynamics.run(x, n - at, generator)
                p, at = float(where(x).double().mean()), n
                seen.append((p, (p * (1 - p) / self.walkers) ** 0.5))
                tick(n / self.steps)
            curves.append(seen)
        return lr * steps, np.array(curves)

    def _path(self, surface: Landscape, lr: float, around: Surroundings) -> Tensor:
        """Two trajectories (MOVES, 2, 2) at the smallest step: from the crossing, and from the valley."""
        dynamics, generator = self._dynamics(surface, "euler", lr), around.stream(f"{self.name}/path")
        x = self.valley()[[NUM_BOXES // 2, FAR]].float().to(around.device)
        path = [x.clone()]
        for _ in range(MOVES - 1):
            dynamics.run(x, max(1, self.steps // MOVES), generator)
            path.append(x.clone())
        return torch.stack(path).cpu()

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return draw(arrays, title)


@dataclass(frozen=True)
class AtCrossing(Measured):
    """Time that walkers spend in the boxes by sampler and step size, beside the `truth` of Gibbs (boxes,); P(box at the
    crossing) with its error (starts, times, 2); two trajectories.
    """

    card: SingularLangevin
    surface: Landscape
    truth: np.ndarray
    walks: dict[tuple[Sampler, float], Occupation]
    times: np.ndarray
    curves: np.ndarray
    path: Tensor

    @cached_property
    def ratios(self) -> dict[tuple[Sampler, float], Estimate]:
        """Time in the box at the crossing over that of Gibbs."""
        middle = NUM_BOXES // 2
        shares, true = {key: walk.of(middle) for key, walk in self.walks.items()}, self.truth[middle]
        return {key: Estimate(s.value / true, s.error / true, 0, "walkers") for key, s in shares.items()}

    def rows(self) -> list[Verdict]:
        late = Estimate(float(self.curves[0, -1, 0]), float(self.curves[0, -1, 1]), 0, "walkers")
        begun = f"P(box) a time {self.times[-1]:.3g} after the start at the crossing"
        return [
            *(
                (about if sampler == "euler" or self.card.start != "gibbs" else exact)(
                    f"time in the box at the crossing / Gibbs, {sampler} lr={lr:g}", 1.0, ratio
                )
                for (sampler, lr), ratio in self.ratios.items()
            ),
            about(begun, self.truth[NUM_BOXES // 2], late),
        ]

    def arrays(self) -> dict[str, object]:
        card, seen, lrs = self.card, window(self.surface, [-1, -1], [1, 1]), sorted(self.card.lr)
        return {
            "lr": lrs,
            "ratio": [[self.ratios[sampler, lr] for lr in lrs] for sampler in SAMPLERS],
            "accepted": [[self.walks[sampler, lr].accepted for lr in lrs] for sampler in SAMPLERS],
            "profile": [[self.walks[sampler, lr].shares.mean(0) for lr in lrs] for sampler in SAMPLERS],
            "profile_gibbs": self.truth,
            "centres": card.valley(),
            "box": card.box,
            "times": self.times,
            "in_time": self.curves,
            "grid": seen.columns,
            "loss": seen.values,
            "path": self.path,
            "cusp": card.surface == "cusp",
        }

    def values(self) -> dict[str, float]:
        of = {
            "gibbs_box_at_the_crossing": float(self.truth[NUM_BOXES // 2]),
            "gibbs_box_in_the_valley": float(self.truth[FAR]),
        }
        return of | {f"accepted_mala_lr_{lr:g}": self.walks["mala", lr].accepted for lr in self.card.lr}

    @property
    def worst(self) -> tuple[float, Estimate]:
        """The step size at which MALA is furthest off, and its ratio there."""
        off = max(self.card.lr, key=lambda lr: abs(self.ratios["mala", lr].value - 1))
        return off, self.ratios["mala", off]

    def sentence(self) -> str:
        card, truth, times, middle = self.card, self.truth, self.times, NUM_BOXES // 2
        low, high, (off, worst) = min(card.lr), max(card.lr), self.worst
        coarse, fine, slow = self.ratios["euler", high], self.ratios["euler", low], ""
        if card.start != "gibbs" and abs(worst.value - 1) > max(0.05, 4 * worst.error):
            taken = 100 * self.walks["mala", off].accepted
            slow = f" (not yet Gibbs: it has taken {taken:.2g} % of its steps from that start)"
        ever, spread = (self.curves[0, :, k] / truth[middle] for k in (0, 1))
        early = int(np.argmin(np.abs(times - times[-1] / 10)))
        passing = "an excess of finite time" if ever[early] > 1 + 2 * spread[early] else "that start is forgotten"
        steps = f"at lr={high:g} Euler spends {shown(coarse)} times that there"
        if low < high:
            steps += f", at lr={low:g} {shown(fine)}"
        moral = "so early the step of Euler is not told from the start" if slow else _moral(coarse)
        theory = "whose theory is 1 at every step size" if card.start == "gibbs" else f"started from {card.start}"
        return (
            f"{card.walkers} walkers on {card.surface} at T = {card.temperature:g}. By Gibbs (quadrature) the box of "
            f"half-width {card.box:g} at the crossing holds {truth[middle]:.4f} of the mass, "
            f"{truth[middle] / truth[FAR]:.3f} times a box on the valley: its theory, no trap. Measured, {steps}; MALA, "
            f"{theory}, {shown(worst)} where it is furthest off{slow}: {moral}. Started at the crossing, {ever[early]:.1f} "
            f"times the share of Gibbs is still there after a time {times[early]:.2g}, and {ever[-1]:.2f} +- "
            f"{spread[-1]:.2f} times after {times[-1]:.2g}: {passing}."
        )


def _moral(coarse: Estimate) -> str:
    """What the largest step of Euler makes of the box at the crossing."""
    if not abs(coarse.value - 1) > max(0.05, 4 * coarse.error):
        return "no step here is too large for Euler either"
    blame = "the excess" if coarse.value > 1 else "the deficit" if coarse.value < 1 else "the difference"
    return f"{blame} is the step of Euler, not the landscape"

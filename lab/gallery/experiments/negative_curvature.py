"""Out of a saddle along its most negative eigenvector: what a step gains, how long it may be, and the waiting it saves.

Along u the loss falls by s^2 |lambda|/2 to second order, L(s u) = (1 - s^2/2)^2/2 on (1 - ab)^2/2, until the fourth order
has used up the descent. Without the step training waits: for its own rounding errors to grow,
log(r/rounding)/log(1 + lr |lambda|) updates, or for noise, as long as `lab.escape.saddle` says. Held against each other on a
factorisation, a saddle with several descending directions, and a deep linear network between two of its singular values.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lab.curvature.operators import hessian
from lab.escape.saddle import Departure, Descent
from lab.escape.walkers import Walkers
from lab.gallery.base import Experiment, Outcome, Surroundings, about, exact, paragraph, shown
from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.landscapes.base import Landscape
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.saddle import Saddle
from lab.points.critical import classify
from lab.points.negative_curvature import Limits, WayDown, limits, line_search, way_down
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import settings

NETWORK = DeepLinear()
PLACES: dict[str, tuple[Landscape, Tensor]] = {
    "factorisation": (Factorisation(), torch.zeros(2, dtype=torch.float64)),
    "saddle, 3 of 10 descend": (Saddle(dimension=10, negative=3), torch.zeros(10, dtype=torch.float64)),
    "deep linear, 1 of 3 learnt": (NETWORK, NETWORK.saddle(1)),
}
"""Landscapes, and the saddle of each."""
NONLINEAR, CROWDED = 0.2, 0.03
"""Radius and crowding above which the law of a quadratic saddle with small noise is an approximation."""
POINTS = 81
COLORS = ("tab:blue", "tab:orange", "tab:green")


@settings()
class SaddleSteps(Experiment):
    """Out of a saddle along its most negative eigenvector: what the step gains, and the waiting for noise or rounding it
    saves.

    On (1 - ab)^2/2 a step of 0.3 gives 0.4560125, to second order 0.455; the descent is used up at 2. The eigenvector costs
    a few Hessian products, waiting for noise of size s some log(radius/(lr s)) / log(1 + lr |lambda|) updates.
    """

    name: ClassVar[str] = "negative_curvature"

    length: Annotated[
        float, Field(ge=0.01, le=2, description="of the step that is held against its prediction (unit of the weights)")
    ] = 0.3
    lr: Annotated[float, Field(ge=0.005, le=0.3, description="learning rate of gradient descent")] = 0.05
    noise: Annotated[float, Field(ge=1e-14, le=1, description="standard deviation, in each coordinate")] = 1e-3
    rounding: Annotated[
        float, Field(ge=1e-30, le=1e-3, description="displacement that descent without noise starts from")
    ] = 1e-16
    radius: Annotated[
        float, Field(ge=1e-3, le=0.7, description="distance in its descending directions where it is left")
    ] = 0.1
    walkers: Annotated[int, Field(ge=100, le=10_000_000, description="with noise, on each landscape")] = 4000

    def __post_init__(self) -> None:
        if self.rounding >= self.radius / 10:
            raise ValueError(f"rounding={self.rounding}: expected less than a tenth of radius={self.radius}")
        crowding = Descent([-1.0], self.noise, self.lr).time(self.radius).crowding
        if crowding > 0.3:
            raise ValueError(
                f"noise={self.noise} spreads over {crowding:.0%} of the radius before the instability acts: no escape from "
                "a saddle; use a smaller noise or a larger radius"
            )

    def stages(self) -> dict[str, float]:
        noisy = Descent([-1.0], self.noise, self.lr).time(self.radius)
        quiet = Descent([-1.0], 0.0, self.lr, start=self.rounding).time(self.radius).mean
        numbers = self.walkers * max(landscape.num_params for landscape, _ in PLACES.values())
        steps = (noisy.mean + 4 * noisy.std) * (1e-4 + 3e-8 * numbers) + 1e-4 * quiet
        return {"along u": 0.2, "ways out": len(PLACES) * steps}

    def simulate(self, around: Surroundings) -> Outcome:
        tick = around.stage("along u")
        lines = np.linspace(0, max(2.0, 1.5 * self.length), POINTS)
        profiles = {
            name: Profile.of(landscape, at.to(around.device), lines) for name, (landscape, at) in PLACES.items()
        }
        tick(1.0)
        ways = {}
        for i, (name, tick) in enumerate(around.over("ways out", list(PLACES))):
            ways[name] = self._ways(around, i, *PLACES[name], tick)
        return self._outcome(lines, profiles, ways)

    def _ways(self, around: Surroundings, place: int, landscape: Landscape, saddle: Tensor, tick: Tick) -> "Ways":
        """From one saddle: by the step, by noise, by growth from rounding."""
        saddle = saddle.to(around.device)
        point = classify(landscape, saddle)
        lambdas, down = point.values[: point.index].tolist(), point.vectors[:, : point.index]

        def outside(x: Tensor) -> Tensor:
            return ((x - saddle) @ down).norm(dim=-1) > self.radius

        step = way_down(landscape, saddle)
        length, _, losses = line_search(landscape, saddle, step)
        noisy = Descent(lambdas, self.noise, self.lr).time(self.radius)
        times = Walkers(landscape, self.lr, self.noise).first_exits(
            saddle,
            outside,
            around.stream(f"{self.name}/noise", place),
            walkers=self.walkers,
            steps=int(noisy.mean + 40 * noisy.std) + 10,
            tick=tick,
        )
        kick = torch.randn(
            len(saddle),
            generator=around.stream(f"{self.name}/rounding", place),
            dtype=saddle.dtype,
            device=saddle.device,
        )
        kick = self.rounding * down @ (down.T @ kick)  # where it can grow
        quiet = Descent(lambdas, 0.0, self.lr, start=(down.T @ kick).tolist()).time(self.radius)
        moved = Centred(landscape, saddle)
        grown = Walkers(moved, self.lr, 0.0).first_exits(
            kick,
            lambda x: (x @ down).norm(dim=-1) > self.radius,
            around.stream(f"{self.name}/none", place),
            walkers=1,
            steps=int(1.5 * quiet.mean) + 100,
        )
        left = times.times[times.exited]
        mean = Estimate(float(left.mean()), float(left.std()) / len(left) ** 0.5, 0, "walkers")
        out = bool(outside((saddle + length * step.direction)[None])[0])
        return Ways(step, length, out, losses, mean, noisy, float(grown.times[0]), quiet.mean)

    def _outcome(self, s: np.ndarray, profiles: dict[str, "Profile"], ways: dict[str, "Ways"]) -> Outcome:
        first = profiles["factorisation"]
        actual = float(Factorisation().value(self.length * first.down.direction))
        bottom = torch.linalg.eigvalsh(hessian(Factorisation(), torch.tensor([2.0, 0.5], dtype=torch.float64)).dense())
        comparisons = [
            exact(f"loss at s = {self.length:g}, factorisation", 0.5 * (1 - self.length**2 / 2) ** 2, actual),
            exact("the same to second order", 0.5 - self.length**2 / 2, 0.5 - first.down.drop(self.length)),
            exact("lambda_min at its saddle", -1.0, first.down.curvature),
            exact("fourth derivative along u", 3.0, first.limits.fourth),
            exact("lambda_max at its minimum (2, 1/2)", 4.25, float(bottom[1])),
        ]
        for name, way in ways.items():
            comparisons += [
                (about if self.radius > NONLINEAR or way.noisy.crowding > CROWDED else exact)(
                    f"updates by noise, {name}", way.noisy.mean, way.mean
                ),
                about(f"updates from rounding, {name}", way.quiet, way.grown),
            ]
        arrays = {
            "s": s,
            "loss": np.stack([p.losses for p in profiles.values()]),
            "curvature": np.array([p.down.curvature for p in profiles.values()]),
            "third": np.array([p.limits.third for p in profiles.values()]),
            "fourth": np.array([p.limits.fourth for p in profiles.values()]),
            "length": np.array(self.length),
            "chosen": np.array([way.length for way in ways.values()]),
            "updates": np.array([[w.grown, w.mean.value, w.evaluations] for w in ways.values()]),
            "error": np.array([w.mean.error for w in ways.values()]),
            "theory": np.array([[w.quiet, w.noisy.mean] for w in ways.values()]),
        }
        values = {f"evaluations_{i}": float(way.evaluations) for i, way in enumerate(ways.values())}
        return Outcome(self._finding(first, actual, ways), comparisons, arrays, values)

    def _finding(self, first: "Profile", actual: float, ways: dict[str, "Ways"]) -> str:
        second = 0.5 - first.down.drop(self.length)
        sentences = [
            f"On (1 - ab)^2/2 a step of {self.length:g} from the saddle along u takes the loss from 0.5 to {actual:.7g}, "
            f"exact {0.5 * (1 - self.length**2 / 2) ** 2:.7g}, to second order {second:.7g}; the fourth order has used up "
            f"the descent at {first.limits.quartic:.3g}"
        ]
        for name, way in ways.items():
            saved = (
                f"saves {way.mean.value:.0f} updates of waiting for noise and {way.grown:.0f} from rounding"
                if way.out
                else f"does not come as far as the radius {self.radius:g}"
            )
            sentences.append(
                f"{name} (lambda = {way.down.curvature:.3g}): by noise out after "
                f"{shown(way.mean)} updates (theory {way.noisy.mean:.4g}), from rounding after "
                f"{way.grown:.0f} (theory {way.quiet:.0f}); one step of {way.length:.2g} along u, found with "
                f"{way.down.matvecs - 1} Hessian products and {way.losses} losses, {saved}"
            )
        return paragraph(sentences)

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return panels(arrays, title, (_draw_loss, _draw_orders, _draw_updates), size=(14, 4.8))


@dataclass(frozen=True)
class Profile:
    """The loss along u from a saddle, and its derivatives there."""

    down: WayDown
    limits: Limits
    losses: np.ndarray

    @staticmethod
    def of(landscape: Landscape, saddle: Tensor, s: np.ndarray) -> "Profile":
        down = way_down(landscape, saddle)
        places = saddle + torch.from_numpy(s).to(saddle)[:, None] * down.direction
        return Profile(down, limits(landscape, saddle, down), landscape.energy(places).cpu().numpy())


@dataclass(frozen=True)
class Ways:
    """Three ways out of a saddle: the step (its length, whether it leads out, losses computed), updates by noise and by
    growth from rounding, each beside what theory says.
    """

    down: WayDown
    length: float
    out: bool
    losses: int
    mean: Estimate
    noisy: Departure
    grown: float
    quiet: float

    @property
    def evaluations(self) -> int:
        """Hessian products, the gradient and losses of the step."""
        return self.down.matvecs + self.losses


class Centred(Landscape):
    """A landscape in coordinates about its saddle: small ones are not lost beside large weights."""

    def __init__(self, landscape: Landscape, saddle: Tensor):
        self.landscape, self.saddle, self.num_params = landscape, saddle, landscape.num_params

    def energy(self, x: Tensor) -> Tensor:
        return self.landscape.energy(self.saddle + x)

    def gradient(self, x: Tensor) -> Tensor:
        return self.landscape.gradient(self.saddle + x)


def _draw_loss(axis: Axes, arrays: Arrays) -> None:
    s, loss, length = arrays["s"], arrays["loss"][0], float(arrays["length"])
    second = loss[0] + arrays["curvature"][0] * s**2 / 2
    fourth = second + arrays["third"][0] * s**3 / 6 + arrays["fourth"][0] * s**4 / 24
    axis.plot(s, loss, color="tab:blue", lw=2.5, label="loss")
    law(axis, s, second, r"to second order, $-s^2|\lambda|/2$", lw=1.3)
    law(axis, s, fourth, "to fourth order", "k", ls=":", lw=1.3)
    axis.plot(length, np.interp(length, s, loss), "o", color="tab:blue", ms=7, label=f"s = {length:g}")
    chosen = arrays["chosen"][0]
    if chosen <= s[-1]:
        axis.plot(chosen, np.interp(chosen, s, loss), "D", color="tab:green", ms=7, label=f"line search, {chosen:.2g}")
    axis.set(xlabel="length s of the step along u", ylabel="loss", ylim=(-0.35 * loss[0], 1.6 * loss[0]))
    caption(axis, r"factorisation $(1 - ab)^2/2$ from its saddle", "upper right", small=8)


def _draw_orders(axis: Axes, arrays: Arrays) -> None:
    s = arrays["s"][1:]
    for i, name in enumerate(PLACES):
        size = -arrays["curvature"][i]
        ratio = (arrays["loss"][i, 0] - arrays["loss"][i, 1:]) / (size * s**2 / 2)
        axis.plot(s[::4], ratio[::4], "o", ms=4, color=COLORS[i], label=name)
        theory = 1 - arrays["third"][i] * s / (3 * size) - arrays["fourth"][i] * s**2 / (12 * size)
        law(axis, s, theory, color=COLORS[i], lw=1)
    law(axis, [], [], "third and fourth order", "k", lw=1)
    axis.axhline(0, color="k", lw=0.6)
    axis.set(xlabel="length s of the step along u", ylabel=r"drop of the loss / $(s^2|\lambda|/2)$", ylim=(-0.5, 1.6))
    caption(axis, "how far the prediction holds", "upper right", small=8)


def _draw_updates(axis: Axes, arrays: Arrays) -> None:
    labels = ("updates, from rounding", "updates, by noise", "evaluations of a step along u")
    places, width = np.arange(len(PLACES)), 0.27
    for j, (label, color) in enumerate(zip(labels, ("0.7", "tab:purple", "tab:green"), strict=True)):
        x = places + (j - 1) * width
        axis.bar(x, arrays["updates"][:, j], width, color=color, label=label)
        if j < 2:
            axis.plot(x, arrays["theory"][:, j], "k_", ms=20, mew=2, label="theory" if j else None)
    axis.set_xticks(places, [name.replace(", ", ",\n") for name in PLACES], fontsize=8)
    axis.set_ylim(top=1.35 * max(arrays["updates"].max(), arrays["theory"].max()))
    axis.set(xlabel="saddle", ylabel="until it is left (count)")
    caption(axis, "waiting, or a step", "upper right", small=8, columns=2)

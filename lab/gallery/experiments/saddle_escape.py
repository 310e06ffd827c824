"""How long does SGD stay at a saddle? The exit law against walkers, and what it takes to leave at all.

Time grows only as log(1/noise) / log(1 + lr |lambda|), falls with the number of descending directions, does not depend on
the dimension of the rest; and without noise in a descending direction (u'Du = 0) it never ends, however noisy the others
are. The law is exact for a quadratic saddle (`lab.escape.saddle`); beside it two that are not quadratic, a factorisation
and a deep linear network whose next singular value is about to be learnt. Daneshmand et al. (2018); Saxe et al. (2014).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Generator, Tensor

from lab.curvature.operators import hessian
from lab.escape.passage import Outside
from lab.escape.saddle import Departure, Descent, autoregression, growth_factor, kick_growth
from lab.escape.walkers import Walkers
from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.saddle_escape_figure import draw
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.landscapes.base import Landscape
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.saddle import Saddle
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
HALF_WAY = 0.5
"""Exit from the factorisation, in units of the distance sqrt(curvature) of its minimum along each axis."""
KICK, KICK_GROWS, KICKED = 1e-8, 1e4, 16
FOLLOWED = 512
"""Walkers whose whole path is kept for the growth estimated under noise."""
CROWDED = 0.03
"""Above it the law is compared as the approximation that it is: it is 0.1 % early at twice that."""
SECONDS_PER_STEP, SECONDS_PER_NUMBER = 1.5e-4, 3.5e-8


@settings()
class SaddleEscape(Experiment):
    """How long does SGD stay at a saddle? Exit times against their law, and saddles that noise can never leave.

    The time grows as log(1/noise) / log(1 + lr |lambda|): the slope, the spread pi / (sqrt(8) log(1 + lr |lambda|)) and the
    effect of k descending directions are exact. Noise that has no part along them (u'Du = 0) leaves the walker for ever.
    """

    name: ClassVar[str] = "saddle_escape"

    lr: Annotated[Positive, Field(description="learning rate; lr x curvature from 0.001 to 0.5")] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1, description="of heavy ball, as torch.optim.SGD has it")] = 0.0
    curvature: Annotated[Positive, Field(description="|lambda| of descending directions, and of the others")] = 1.0
    noise: Annotated[
        tuple[Annotated[float, Field(ge=1e-15, le=1e9)], ...],
        Field(description="standard deviations in each coordinate of the gradient"),
    ] = (1e-2, 1e-3, 1e-4, 1e-5)
    radius: Annotated[float, Field(ge=1e-9, le=1e9, description="a walker has left when |x_-| exceeds it")] = 1.0
    dimension: Annotated[int, Field(ge=2, le=10_000, description="variables of the saddle, one of them descending")] = 2
    directions: Annotated[
        tuple[Annotated[int, Field(ge=1, le=10_000)], ...], Field(description="numbers of descending directions")
    ] = (1, 3, 10, 30, 100)
    walkers: Annotated[int, Field(ge=100, le=100_000_000, description="started at the saddle for every point")] = 4000

    def __post_init__(self) -> None:
        for name in ("noise", "directions"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected one or more different numbers, e.g. [1,10]")
        if not 1e-3 <= self.lr * self.curvature <= 0.5:
            raise ValueError(
                f"lr={self.lr}, curvature={self.curvature}: expected lr x curvature between 0.001 and 0.5, so that leaving "
                "takes many steps and not too many"
            )
        crowding = self._descent(max(self.noise)).time(min(self.radius, self._half_way)).crowding
        if crowding > 0.3:
            raise ValueError(
                f"noise={max(self.noise)} spreads over {crowding:.0%} of the radius before the instability acts: no escape "
                "from a saddle; use a smaller noise or a larger radius"
            )

    @property
    def _middle(self) -> float:
        return sorted(self.noise)[(len(self.noise) - 1) // 2]

    @property
    def _log_z(self) -> float:
        return math.log(growth_factor(-self.curvature, lr=self.lr, momentum=self.momentum))

    @property
    def _half_way(self) -> float:
        return HALF_WAY * math.sqrt(self.curvature)

    def _descent(self, noise: float, directions: int = 1) -> Descent:
        return Descent([-self.curvature] * directions, noise, self.lr, self.momentum)

    def stages(self) -> dict[str, float]:
        def seconds(descent: Descent, numbers: int) -> float:
            steps = descent.time(self.radius).mean
            return (
                SECONDS_PER_STEP * (steps + 12 * descent.time(self.radius).std) + SECONDS_PER_NUMBER * numbers * steps
            )

        one = [seconds(self._descent(noise), self.walkers * self.dimension) for noise in self.noise]
        middle = self._middle
        many = [
            seconds(self._descent(middle, k), self.walkers * (k + self.dimension - 1)) for k in self.directions if k > 1
        ]
        return {
            "noises": sum(one),
            "directions": sum(many),
            "no noise downwards": one[0],
            "factorisation": one[0],
            "growth": 40 * SECONDS_PER_STEP / self.lr / self.curvature,
        }

    def simulate(self, around: Surroundings) -> Outcome:
        noises = sorted(self.noise, reverse=True)
        left = {s: self._leave(around, s, 1, tick) for s, tick in around.over("noises", noises)}
        many = {
            k: left[self._middle] if k == 1 else self._leave(around, self._middle, k, tick)
            for k, tick in around.over("directions", sorted(self.directions))
        }
        furthest = self._without_noise_downwards(around, around.stage("no noise downwards"))
        bent = self._factorisation(around, around.stage("factorisation"))
        growth = self._growth(around, around.stage("growth"))
        return self._outcome(_Found(left, many, furthest, bent, *growth))

    def _leave(self, around: Surroundings, noise: float, k: int, tick: Tick) -> Tensor:
        """First steps at which |x_-| exceeds the radius."""
        saddle = Saddle(self.dimension + k - 1, k, self.curvature, self.curvature, 0.0)
        return self._times(
            saddle,
            lambda x: x[..., :k].norm(dim=-1) > self.radius,
            self._descent(noise, k).time(self.radius),
            noise,
            around.stream(f"{self.name}/{noise}", k),
            tick,
        )

    def _factorisation(self, around: Surroundings, tick: Tick) -> Tensor:
        generator, r = around.stream(f"{self.name}/factorisation"), self._half_way
        expected = self._descent(self._middle).time(r)
        valley = Factorisation(self.curvature)
        return self._times(
            valley, lambda x: x.sum(-1).abs() > math.sqrt(2) * r, expected, self._middle, generator, tick
        )

    def _times(
        self,
        landscape: Landscape,
        outside: Outside,
        expected: Departure,
        noise: float,
        generator: Generator,
        tick: Tick,
    ) -> Tensor:
        """Of walkers from 0, followed until all have left: one in 10^12 stays for 28 / log z beyond the mean."""
        steps = math.ceil(expected.mean + 28 / self._log_z)
        found = self._walkers(landscape, noise).first_exits(
            _origin(landscape, generator), outside, generator, walkers=self.walkers, steps=steps, tick=tick
        )
        return found.times

    def _without_noise_downwards(self, around: Surroundings, tick: Tick) -> float:
        """The furthest that |x_-| comes in the time in which the weakest noise has let everybody go."""
        saddle, generator = (
            Saddle(self.dimension, 1, self.curvature, self.curvature, 0.0),
            around.stream(f"{self.name}/up"),
        )
        noise = torch.full((self.dimension,), max(self.noise), dtype=torch.float64, device=generator.device)
        noise[0] = 0
        furthest = 0.0

        def outside(x: Tensor) -> Tensor:
            nonlocal furthest
            furthest = max(furthest, float(x[..., 0].abs().max()))
            return x[..., 0].abs() > self.radius

        expected = self._descent(min(self.noise)).time(self.radius)
        steps = math.ceil(expected.mean + 5 * expected.std)
        self._walkers(saddle, noise).first_exits(
            _origin(saddle, generator), outside, generator, walkers=self.walkers, steps=steps, tick=tick
        )
        return furthest

    def _growth(self, around: Surroundings, tick: Tick) -> tuple[Tensor, Estimate, Estimate]:
        """|x_-| (steps + 1, KICKED) of a deep linear network kicked off the saddle at which one of three singular values is
        learnt; its growth by that; and by autoregression of noisy walkers on the quadratic saddle.
        """
        generator = around.stream(f"{self.name}/growth")
        network = DeepLinear((1.5 * self.curvature, self.curvature, 0.5 * self.curvature))
        place = network.saddle(1).to(generator.device)
        values, vectors = torch.linalg.eigh(hessian(network, place) @ torch.eye(len(place)).to(place))
        descending = vectors[:, (values + self.curvature).abs() < 1e-6 * self.curvature]
        kick = KICK * torch.randn(KICKED, len(place), generator=generator, device=place.device, dtype=place.dtype)
        steps = max(6, round(math.log(KICK_GROWS) / self._log_z))
        kicked = (self._walkers(network, 0.0).path(place + kick, generator, steps=steps) - place) @ descending
        tick(0.7)
        expected = self._descent(self._middle).time(self.radius)
        saddle, steps = Saddle(1, 1, self.curvature, self.curvature, 0.0), math.ceil(expected.mean + 2 * expected.std)
        start = torch.zeros(FOLLOWED, 1, dtype=place.dtype, device=place.device)
        paths = self._walkers(saddle, self._middle).path(start, generator, steps=steps)
        noisy = autoregression(paths[:, :, 0], self.radius, generator, order=2 if self.momentum else 1)
        return kicked.norm(dim=2).cpu(), kick_growth(kicked), noisy

    def _walkers(self, landscape: Landscape, noise: Tensor | float) -> Walkers:
        return Walkers(landscape, self.lr, noise, self.momentum)

    def _outcome(self, found: "_Found") -> Outcome:
        left, many = found.left, found.many
        theory = {s: self._descent(s).time(self.radius) for s in left}
        wide = {k: self._descent(self._middle, k).time(self.radius) for k in many}
        there = self._descent(self._middle).time(self._half_way)
        slope = [] if found.slope is None else [("slope against log(1/noise)", 1 / self._log_z, found.slope)]
        compared = [
            *(
                self._compared(f"steps to leave, noise {s:g}", law.mean, _mean(left[s]), law)
                for s, law in theory.items()
            ),
            *(
                self._compared(f"their spread, noise {s:g}", law.std, _spread(left[s]), law)
                for s, law in theory.items()
            ),
            *(self._compared(*row, theory[max(left)]) for row in slope),
            *(
                self._compared(f"steps to leave, {k} descending", law.mean, _mean(many[k]), law)
                for k, law in wide.items()
            ),
            Comparison("furthest without noise downwards", 0.0, found.furthest),
            Comparison.of("steps to leave, factorisation", there.mean, _mean(found.bent), approximate=True),
            Comparison("growth a step, deep linear", self._log_z, found.kick.value),
            Comparison.of("growth a step, autoregression", self._log_z, found.noisy, approximate=True),
        ]
        steps = np.unique(np.linspace(0, max(float(t.quantile(0.995)) for t in left.values()), 200).astype(int))
        sizes = np.geomspace(min(left) / 2, max(left) * 2, 50)
        numbers = np.unique(np.geomspace(1, max(many), 30).astype(int))
        stays = [self._descent(s).survival(torch.from_numpy(steps), self.radius).numpy() for s in left]
        return Outcome(
            self._finding(found, there.mean),
            compared,
            {
                "noise": np.array(list(left)),
                "left": np.array([_numbers(t) for t in left.values()]),
                "sizes": sizes,
                "law": np.array([self._descent(s).time(self.radius).mean for s in sizes]),
                "steps": steps,
                "inside": np.array([_inside(t, steps) for t in left.values()]),
                "inside_law": np.array(stays),
                "directions": np.array(list(many)),
                "many": np.array([_numbers(t) for t in many.values()]),
                "numbers": numbers,
                "many_law": np.array([self._descent(self._middle, int(k)).time(self.radius).mean for k in numbers]),
                "factorisation": np.array([self._middle, there.mean, *_numbers(found.bent)]),
                "kicked": found.kicked.numpy() / KICK,
                "log_z": np.array(self._log_z),
                "middle": np.array(self._middle),
                "furthest": np.array(found.furthest),
            },
            {
                "log_growth": self._log_z,
                "kick_growth": found.kick.value,
                "autoregression": found.noisy.value,
                "furthest_without_noise": found.furthest,
            },
        )

    def _compared(self, quantity: str, theory: float, measured: Estimate, law: Departure) -> Comparison:
        return Comparison.of(quantity, theory, measured, approximate=law.crowding > CROWDED)

    def _finding(self, found: "_Found", law: float) -> str:
        ball = f", heavy ball {self.momentum:g}" * (self.momentum > 0)
        noises = "; ".join(
            f"{s:g}: {_said(t)} (theory {self._descent(s).time(self.radius).mean:.4g})" for s, t in found.left.items()
        )
        parts = [
            f"Steps that SGD (lr {self.lr:g}{ball}) needs to leave a saddle of curvature -{self.curvature:g}, by the size "
            f"of its noise: {noises}."
        ]
        if found.slope is not None:
            parts.append(
                f"Each factor e less noise costs {with_error(found.slope.value, found.slope.error)} steps more (theory, "
                f"1/log z: {1 / self._log_z:.4g}), so a large batch is late by a logarithm, not trapped."
            )
        if len(found.many) > 1:
            few, lots = min(found.many), max(found.many)
            took = {k: _said(found.many[k]) for k in (few, lots)}
            parts.append(f"With {lots} descending directions it takes {took[lots]} steps, with {few} {took[few]}.")
        still = found.furthest == 0
        said = "nobody has moved along it at all" if still else f"the furthest has come {found.furthest:.2g} along it"
        parts.append(
            f"Without noise in the descending direction (u'Du = 0) {said}: never by noise. Where the saddle is not "
            f"quadratic, (t - ab)^2/2 left half way to its minimum, it takes {_said(found.bent)} steps (law {law:.4g}). A "
            f"deep linear network kicked off its saddle leaves by {found.kick.value:.7g} a step (theory, log z: "
            f"{self._log_z:.7g}); under noise autoregression finds {with_error(found.noisy.value, found.noisy.error)}."
        )
        return " ".join(parts)

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return draw(arrays, title)


@dataclass(frozen=True)
class _Found:
    """First steps outside by noise, by number of directions, and of the factorisation; the furthest without noise
    downwards; the kicked network and the growth rates.
    """

    left: dict[float, Tensor]
    many: dict[int, Tensor]
    furthest: float
    bent: Tensor
    kicked: Tensor
    kick: Estimate
    noisy: Estimate

    @property
    def slope(self) -> Estimate | None:
        """Of the mean against log(1/noise), weighted; None where there is one noise."""
        if len(self.left) < 2:
            return None
        x = -np.log(list(self.left))
        y, error = np.array([_numbers(times) for times in self.left.values()]).T
        weight = error**-2
        away = x - np.average(x, weights=weight)
        total = float((weight * away**2).sum())
        return Estimate(float((weight * away * y).sum()) / total, total**-0.5, 0, "weighted fit")


def _origin(landscape: Landscape, generator: Generator) -> Tensor:
    return torch.zeros(landscape.num_params, dtype=torch.float64, device=generator.device)


def _mean(times: Tensor) -> Estimate:
    return Estimate(float(times.mean()), float(times.std()) / math.sqrt(len(times)), 0, "walkers")


def _numbers(times: Tensor) -> tuple[float, float]:
    return _mean(times).value, _mean(times).error


def _said(times: Tensor) -> str:
    return with_error(*_numbers(times))


def _spread(times: Tensor) -> Estimate:
    """Standard deviation; its error from the fourth moment."""
    std, n = float(times.std()), len(times)
    kurtosis = float((times - times.mean()).pow(4).mean()) / std**4
    return Estimate(std, std * math.sqrt((kurtosis - 1) / (4 * n)), 0, "walkers")


def _inside(times: Tensor, steps: np.ndarray) -> np.ndarray:
    """Share of walkers that are inside after so many steps."""
    return 1 - np.searchsorted(times.sort().values.numpy(), steps, side="right") / len(times)

"""How long does SGD stay at a saddle? The exit law against walkers, and what it takes to leave at all.

Time grows only as log(1/noise) / log(1 + lr |lambda|), falls with the number of descending directions, does not depend on
the dimension of the rest; and without noise in a descending direction (u'Du = 0) it never ends, however noisy the others
are. The law is exact for a quadratic saddle (`lab.escape.saddle`); beside it two that are not quadratic, a factorisation
and a deep linear network whose next singular value is about to be learnt. Daneshmand et al. (2018); Saxe et al. (2014).
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor

from lab.curvature.operators import hessian
from lab.escape.passage import Outside
from lab.escape.saddle import Departure, Descent, autoregression, growth_factor, kick_growth
from lab.escape.walkers import Walkers
from lab.gallery.base import (
    Experiment,
    Outcome,
    Positive,
    Surroundings,
)
from lab.gallery.experiments.saddle_escape_figure import draw
from lab.gallery.experiments.saddle_escape_theory import KICK, KICK_GROWS, KICKED, LeftSaddles
from lab.gallery.frame import Arrays, Figure
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.landscapes.base import Landscape
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.saddle import Saddle
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import settings

HALF_WAY = 0.5
"""Exit from the factorisation, in units of the distance sqrt(curvature) of its minimum along each axis."""
FOLLOWED = 512
"""Walkers whose whole path is kept for the growth estimated under noise."""
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
        self.require_different("noise", "[0.01,0.001]")
        self.require_different("directions", "[1,10]")
        if not 1e-3 <= self.lr * self.curvature <= 0.5:
            raise ValueError(
                f"lr={self.lr}, curvature={self.curvature}: expected lr x curvature between 0.001 and 0.5, so that leaving "
                "takes many steps and not too many"
            )
        crowding = self.descent(max(self.noise)).time(min(self.radius, self.half_way)).crowding
        if crowding > 0.3:
            raise ValueError(
                f"noise={max(self.noise)} spreads over {crowding:.0%} of the radius before the instability acts: no escape "
                "from a saddle; use a smaller noise or a larger radius"
            )

    @property
    def middle(self) -> float:
        return sorted(self.noise)[(len(self.noise) - 1) // 2]

    @property
    def log_z(self) -> float:
        return math.log(growth_factor(-self.curvature, lr=self.lr, momentum=self.momentum))

    @property
    def half_way(self) -> float:
        return HALF_WAY * math.sqrt(self.curvature)

    def descent(self, noise: float, directions: int = 1) -> Descent:
        return Descent([-self.curvature] * directions, noise, self.lr, self.momentum)

    def stages(self) -> dict[str, float]:
        def seconds(descent: Descent, numbers: int) -> float:
            steps = descent.time(self.radius).mean
            return (
                SECONDS_PER_STEP * (steps + 12 * descent.time(self.radius).std) + SECONDS_PER_NUMBER * numbers * steps
            )

        one = [seconds(self.descent(noise), self.walkers * self.dimension) for noise in self.noise]
        middle = self.middle
        many = [
            seconds(self.descent(middle, k), self.walkers * (k + self.dimension - 1)) for k in self.directions if k > 1
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
            k: left[self.middle] if k == 1 else self._leave(around, self.middle, k, tick)
            for k, tick in around.over("directions", sorted(self.directions))
        }
        furthest = _without_noise_downwards(self, around, around.stage("no noise downwards"))
        bent = self._factorisation(around, around.stage("factorisation"))
        growth = self._growth(around, around.stage("growth"))
        return LeftSaddles(self, left, many, furthest, bent, *growth).outcome()

    def _leave(self, around: Surroundings, noise: float, k: int, tick: Tick) -> Tensor:
        """First steps at which |x_-| exceeds the radius."""
        saddle = Saddle(self.dimension + k - 1, k, self.curvature, self.curvature, 0.0)
        return self._times(
            saddle,
            lambda x: x[..., :k].norm(dim=-1) > self.radius,
            self.descent(noise, k).time(self.radius),
            noise,
            around.stream(f"{self.name}/{noise}", k),
            tick,
        )

    def _factorisation(self, around: Surroundings, tick: Tick) -> Tensor:
        generator, r = around.stream(f"{self.name}/factorisation"), self.half_way
        expected = self.descent(self.middle).time(r)
        valley = Factorisation(self.curvature)
        return self._times(valley, lambda x: x.sum(-1).abs() > math.sqrt(2) * r, expected, self.middle, generator, tick)

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
        steps = math.ceil(expected.mean + 28 / self.log_z)
        found = self.sgd(landscape, noise).first_exits(
            _origin(landscape, generator), outside, generator, walkers=self.walkers, steps=steps, tick=tick
        )
        return found.times

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
        steps = max(6, round(math.log(KICK_GROWS) / self.log_z))
        kicked = (self.sgd(network, 0.0).path(place + kick, generator, steps=steps) - place) @ descending
        tick(0.7)
        expected = self.descent(self.middle).time(self.radius)
        saddle, steps = Saddle(1, 1, self.curvature, self.curvature, 0.0), math.ceil(expected.mean + 2 * expected.std)
        start = torch.zeros(FOLLOWED, 1, dtype=place.dtype, device=place.device)
        paths = self.sgd(saddle, self.middle).path(start, generator, steps=steps)
        noisy = autoregression(paths[:, :, 0], self.radius, generator, order=2 if self.momentum else 1)
        return kicked.norm(dim=2).cpu(), kick_growth(kicked), noisy

    def sgd(self, landscape: Landscape, noise: Tensor | float) -> Walkers:
        return Walkers(landscape, self.lr, noise, self.momentum)

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return draw(arrays, title)


def _origin(landscape: Landscape, generator: Generator) -> Tensor:
    return torch.zeros(landscape.num_params, dtype=torch.float64, device=generator.device)


def _without_noise_downwards(card: SaddleEscape, around: Surroundings, tick: Tick) -> float:
    """The furthest that |x_-| comes in the time in which the weakest noise has let everybody go."""
    saddle, generator = (
        Saddle(card.dimension, 1, card.curvature, card.curvature, 0.0),
        around.stream(f"{card.name}/up"),
    )
    noise = torch.full((card.dimension,), max(card.noise), dtype=torch.float64, device=generator.device)
    noise[0] = 0
    furthest = 0.0

    def outside(x: Tensor) -> Tensor:
        nonlocal furthest
        furthest = max(furthest, float(x[..., 0].abs().max()))
        return x[..., 0].abs() > card.radius

    expected = card.descent(min(card.noise)).time(card.radius)
    steps = math.ceil(expected.mean + 5 * expected.std)
    card.sgd(saddle, noise).first_exits(
        _origin(saddle, generator), outside, generator, walkers=card.walkers, steps=steps, tick=tick
    )
    return furthest

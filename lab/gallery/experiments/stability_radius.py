"""Is a sharp minimum left more easily? Exit times and the radius in which SGD stays, for two kinds of noise.

"The stability radius of SGD is inversely proportional to the curvature" is wrong as it stands. Noise that does not vanish
takes a walker out of every radius, surely; what has a size is the time, and the radius in which most walkers stay for a
given time. Where the noise covariance is proportional to the curvature (D = c h, as near a minimum of a squared loss) the
walkers fill the same radius whatever the curvature, and it even grows slowly, since the sharper minimum tries more often;
only under noise that does not know the curvature (D = c) does it shrink, as h^(-1/2), not 1/h. Exact for the discrete
chain: `lab.gallery.laws.nystrom`. What curvature does limit is linear stability, where the noise vanishes at the minimum:
there the learning rate decides, and second moments (`lab.noise.second_moments`) explode long before typical runs do
(`lab.noise.lyapunov`).
"""

import math
from itertools import product
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from scipy.optimize import brentq
from torch import Tensor

from lab.escape.passage import first_passages
from lab.escape.walkers import Walkers
from lab.gallery.base import Experiment, Outcome, Positive, Surroundings
from lab.gallery.experiments.stability_radius_figure import KINDS, Kind, draw
from lab.gallery.experiments.stability_radius_linear import linear_stability
from lab.gallery.experiments.stability_radius_theory import ExactStay, Stayed
from lab.gallery.frame import Arrays, Figure
from lab.gallery.laws.kramers import Domain, log_mean_time, on
from lab.gallery.laws.nystrom import Chain
from lab.landscapes.quadratic import Quadratic
from lab.progress import Tick
from lab.results import EscapeTimes
from lab.settings import settings

FAR = 1e10
"""Mean steps beyond which the time is told in continuous time: nobody will see the difference."""
FEWEST = 20
"""Walkers on either side of the radius in which a share of them stays, for its standard error to be one."""
SECONDS_PER_NUMBER = 2e-8


@settings()
class StabilityRadius(Experiment):
    """Is a sharp minimum left more easily? Exit times and the radius in which SGD stays, for two kinds of noise.

    "The stability radius is inversely proportional to the curvature" does not hold: every radius is left in the end, under
    noise ~ h the radius for a given time even grows with h, and under the same noise it falls as h^(-1/2). Exact values
    from the discrete chain. Where noise vanishes at the minimum, the learning rates of Wu, Ma and E (2018) take its place.
    """

    name: ClassVar[str] = "stability_radius"

    curvatures: Annotated[tuple[Positive, ...], Field(description="h of minima h x^2/2")] = (1.0, 2.0, 4.0, 8.0, 16.0)
    lr: Annotated[float, Field(ge=1e-3, allow_inf_nan=False, description="learning rate")] = 0.01
    noise: Annotated[Positive, Field(description="c: the gradient of a step has variance c h, or c for all h")] = 1.5
    radius: Annotated[Positive, Field(description="a walker has left when |x| exceeds it")] = 0.2
    longest: Annotated[Positive, Field(description="time for which exits are watched, in units of lr x steps")] = 150.0
    horizon: Annotated[Positive, Field(description="time for which a radius holds, in units of lr x steps")] = 20.0
    share: Annotated[float, Field(ge=0.01, le=0.99, description="of the walkers that stay within it")] = 0.9
    walkers: Annotated[int, Field(ge=100, le=10_000_000, description="for each curvature and noise")] = 2000
    examples: Annotated[
        tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...],
        Field(max_length=16, description="curvatures of single examples, where the noise vanishes at the minimum"),
    ] = (0.0, 0.5, 1.0, 1.5, 7.0)
    batch_size: Annotated[int, Field(ge=1, description="of them in a batch, without replacement")] = 1

    def __post_init__(self) -> None:
        self.require_different("curvatures", "[1,4,16]")
        if not self.lr * max(self.curvatures) < 2:
            raise ValueError(
                f"lr={self.lr:g} is not below 2/h = {2 / max(self.curvatures):g} of the largest curvature: nothing stays"
            )
        for name in ("longest", "horizon"):
            steps = getattr(self, name) / self.lr
            if not 10 <= steps <= 1e6:
                raise ValueError(
                    f"{name}={getattr(self, name):g} is {steps:.3g} steps of lr {self.lr:g}; expected 10 to 1000000"
                )
        if len(set(self.examples)) < 2 or not self.batch_size < len(self.examples):
            raise ValueError(
                f"batch_size={self.batch_size} of {len(self.examples)} examples: expected fewer than all, whose curvatures "
                "differ"
            )
        if not self.walkers * min(self.share, 1 - self.share) >= FEWEST - 1e-9:
            raise ValueError(
                f"walkers={self.walkers}: a share of {self.share:g} puts fewer than {FEWEST} of them on a side of the "
                f"radius; expected {math.ceil(FEWEST / min(self.share, 1 - self.share) - 1e-9)} or more"
            )
        spread = [math.sqrt(self.lr * self.variance(kind, h) / (h * (2 - self.lr * h))) for kind, h in self._cases]
        if not self.radius < 12 * max(spread):
            raise ValueError(
                f"radius={self.radius:g} is more than 12 standard deviations ({max(spread):.2g}): nobody ever leaves"
            )
        if not self.radius > 0.05 * min(spread):
            raise ValueError(f"radius={self.radius:g} is less than one step of the noise: everybody is outside at once")

    @property
    def _cases(self) -> list[tuple[Kind, float]]:
        return list(product(KINDS, sorted(self.curvatures)))

    def variance(self, kind: Kind, h: float) -> float:
        """Of the noise of the gradient."""
        return self.noise * (h if kind == "aligned" else 1.0)

    def _diffusion(self, kind: Kind, h: float) -> float:
        """D of dx = -h x dt + sqrt(2 D) dW in time lr x steps."""
        return self.lr * self.variance(kind, h) / 2

    def stages(self) -> dict[str, float]:
        walked = SECONDS_PER_NUMBER * self.walkers * len(self.curvatures)
        return {
            "exact": 0.03 * len(self._cases),
            "exit times": 2 * walked * self.longest / self.lr / 2,
            "radii": 2 * walked * self.horizon / self.lr,
            "linear stability": 0.3,
        }

    def simulate(self, around: Surroundings) -> Outcome:
        def law(case: tuple[Kind, float], tick: Tick) -> ExactStay:
            stay = self._exact(*case)
            tick(1.0)
            return stay

        laws = around.each("exact", self._cases, law)
        times = around.each("exit times", self._cases, lambda case, tick: self._times(around, *case, tick))
        reached = around.each("radii", KINDS, lambda kind, tick: _reached(self, around, kind, tick))
        linear = linear_stability(self.examples, self.batch_size, around)
        return Stayed(self, laws, times, reached, linear).outcome()

    # --- exact ----------

    def _chain(self, kind: Kind, h: float, radius: float) -> Chain:
        return Chain(on(Quadratic((h,)), self._diffusion(kind, h)), self.lr, Domain(-radius, radius), 0.0)

    def _exact(self, kind: Kind, h: float) -> ExactStay:
        process, domain = on(Quadratic((h,)), self._diffusion(kind, h)), Domain(-self.radius, self.radius)
        chain = self._chain(kind, h, self.radius)
        continuous = math.exp(log_mean_time(process, 0.0, domain))
        far = continuous / self.lr > FAR
        mean = continuous if far else chain.mean_steps() * self.lr
        steps = round(self.longest / self.lr)
        stays = math.exp(-self.longest / mean) if far else float(chain.survival(steps, 1)[1])
        return ExactStay(mean, stays, self._radius(kind, h))

    def _radius(self, kind: Kind, h: float) -> float:
        """In which `share` of the walkers stays for the horizon."""
        steps = round(self.horizon / self.lr)
        spread = math.sqrt(self.lr * self.variance(kind, h) / (h * (2 - self.lr * h)))

        def excess(times: float) -> float:
            return float(self._chain(kind, h, times * spread).survival(steps, 1)[1]) - self.share

        low = high = 1.0
        while excess(high) < 0:
            high += 0.5
        while excess(low) > 0:
            low /= 2
        return spread * float(brentq(excess, low, high, xtol=1e-5))

    # --- walkers ----------

    def _times(self, around: Surroundings, kind: Kind, h: float, tick: Tick) -> EscapeTimes:
        generator = around.stream(f"{self.name}/{kind}/{h:g}")
        return first_passages(
            Quadratic((h,)),
            torch.zeros(1, dtype=torch.float64, device=generator.device),
            lambda x: x[..., 0].abs() > self.radius,
            lr=self.lr,
            diffusion=self._diffusion(kind, h),
            walkers=self.walkers,
            max_steps=round(self.longest / self.lr),
            generator=generator,
            tick=tick,
        )

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return draw(arrays, title)


def _reached(card: StabilityRadius, around: Surroundings, kind: Kind, tick: Tick) -> Tensor:
    """The largest |x| of each walker over the horizon, (walkers, curvatures): one coordinate for each."""
    generator, h = around.stream(f"{card.name}/radius/{kind}"), sorted(card.curvatures)
    noise = torch.tensor([card.variance(kind, each) for each in h], dtype=torch.float64).sqrt()
    walk = Walkers(Quadratic(tuple(h)), card.lr, noise.to(generator.device))
    x = torch.zeros(card.walkers, len(h), dtype=torch.float64, device=generator.device)
    velocity, xi, reached = torch.zeros_like(x), torch.empty_like(x), torch.zeros_like(x)
    steps = round(card.horizon / card.lr)
    for step in range(steps):
        walk.move(x, velocity, xi, generator)
        torch.maximum(reached, x.abs(), out=reached)
        if step % 100 == 0:
            tick(step / steps)
    tick(1.0)
    return reached.cpu()

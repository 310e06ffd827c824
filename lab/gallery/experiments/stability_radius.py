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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from scipy.optimize import brentq
from torch import Tensor

from lab.curvature.stability import UpdateRule
from lab.escape.passage import first_passages
from lab.escape.walkers import Walkers
from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.stability_radius_figure import KINDS, NAMES, Kind, draw
from lab.gallery.laws.kramers import Domain, log_mean_time, on
from lab.gallery.laws.nystrom import Chain
from lab.landscapes.quadratic import Quadratic
from lab.noise.example_curvature import ExampleCurvature
from lab.noise.lyapunov import critical_lr, lyapunov
from lab.noise.second_moments import in_plane, plane_lr
from lab.progress import Tick
from lab.results import EscapeTimes, Estimate
from lab.sampling import batch_factor
from lab.settings import settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FAR = 1e10
"""Mean steps beyond which the time is told in continuous time: nobody will see the difference."""
LEAST = 5
"""Walkers that leave, and stay, where a share is compared or a mean is told in spite of those that stay."""
FEWEST = 20
"""Walkers on either side of the radius in which a share of them stays, for its standard error to be one."""
REPLICAS, GROWTH_STEPS = 64, 400
SECONDS_PER_NUMBER = 2e-8
TINY = np.finfo(float).tiny


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
        if not self.curvatures or len(set(self.curvatures)) < len(self.curvatures):
            raise ValueError("curvatures: expected one or more different numbers, e.g. [1,4,16]")
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
        spread = [math.sqrt(self.lr * self._variance(kind, h) / (h * (2 - self.lr * h))) for kind, h in self._cases]
        if not self.radius < 12 * max(spread):
            raise ValueError(
                f"radius={self.radius:g} is more than 12 standard deviations ({max(spread):.2g}): nobody ever leaves"
            )
        if not self.radius > 0.05 * min(spread):
            raise ValueError(f"radius={self.radius:g} is less than one step of the noise: everybody is outside at once")

    @property
    def _cases(self) -> list[tuple[Kind, float]]:
        return list(product(KINDS, sorted(self.curvatures)))

    def _variance(self, kind: Kind, h: float) -> float:
        """Of the noise of the gradient."""
        return self.noise * (h if kind == "aligned" else 1.0)

    def _diffusion(self, kind: Kind, h: float) -> float:
        """D of dx = -h x dt + sqrt(2 D) dW in time lr x steps."""
        return self.lr * self._variance(kind, h) / 2

    def stages(self) -> dict[str, float]:
        walked = SECONDS_PER_NUMBER * self.walkers * len(self.curvatures)
        return {
            "exact": 0.03 * len(self._cases),
            "exit times": 2 * walked * self.longest / self.lr / 2,
            "radii": 2 * walked * self.horizon / self.lr,
            "linear stability": 0.3,
        }

    def simulate(self, around: Surroundings) -> Outcome:
        exact = {}
        for case, tick in around.over("exact", self._cases):
            exact[case] = self._exact(*case)
            tick(1.0)
        times = {case: self._times(around, *case, tick) for case, tick in around.over("exit times", self._cases)}
        reached = {kind: self._reached(around, kind, tick) for kind, tick in around.over("radii", KINDS)}
        return self._outcome(exact, times, reached, self._linear(around, around.stage("linear stability")))

    # --- exact ----------

    def _chain(self, kind: Kind, h: float, radius: float) -> Chain:
        return Chain(on(Quadratic((h,)), self._diffusion(kind, h)), self.lr, Domain(-radius, radius), 0.0)

    def _exact(self, kind: Kind, h: float) -> "_Exact":
        process, domain = on(Quadratic((h,)), self._diffusion(kind, h)), Domain(-self.radius, self.radius)
        chain = self._chain(kind, h, self.radius)
        continuous = math.exp(log_mean_time(process, 0.0, domain))
        far = continuous / self.lr > FAR
        mean = continuous if far else chain.mean_steps() * self.lr
        steps = round(self.longest / self.lr)
        stays = math.exp(-self.longest / mean) if far else float(chain.survival(steps, 1)[1])
        return _Exact(mean, stays, self._radius(kind, h))

    def _radius(self, kind: Kind, h: float) -> float:
        """In which `share` of the walkers stays for the horizon."""
        steps = round(self.horizon / self.lr)
        spread = math.sqrt(self.lr * self._variance(kind, h) / (h * (2 - self.lr * h)))

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

    def _reached(self, around: Surroundings, kind: Kind, tick: Tick) -> Tensor:
        """The largest |x| of each walker over the horizon, (walkers, curvatures): one coordinate for each."""
        generator, h = around.stream(f"{self.name}/radius/{kind}"), sorted(self.curvatures)
        noise = torch.tensor([self._variance(kind, each) for each in h], dtype=torch.float64).sqrt()
        walk = Walkers(Quadratic(tuple(h)), self.lr, noise.to(generator.device))
        x = torch.zeros(self.walkers, len(h), dtype=torch.float64, device=generator.device)
        velocity, xi, reached = torch.zeros_like(x), torch.empty_like(x), torch.zeros_like(x)
        steps = round(self.horizon / self.lr)
        for step in range(steps):
            walk.move(x, velocity, xi, generator)
            torch.maximum(reached, x.abs(), out=reached)
            if step % 100 == 0:
                tick(step / steps)
        tick(1.0)
        return reached.cpu()

    def _linear(self, around: Surroundings, tick: Tick) -> "_Linear":
        h, size = np.array(self.examples), len(self.examples)
        batches = np.array([np.mean(batch) for batch in combinations(h, self.batch_size)])
        curvature = ExampleCurvature(torch.from_numpy(h).sqrt()[:, None, None])
        factor = batch_factor(size, self.batch_size, "without_replacement")
        a, s = curvature.sharpness, curvature.non_uniformity

        def typical(lr: float) -> float:
            return float(np.log(np.abs(1 - lr * batches) + TINY).mean())

        square = plane_lr(a, s, factor=factor)
        edge = critical_lr(typical, square, 2 / a)
        grid = np.linspace(0.02, 1.5, 400) * 2 / a
        tried = np.array([0.5 * square, 0.9 * square, 0.5 * (square + edge), 1.1 * edge])
        seen = []
        for i, lr in enumerate(tried):
            rule, generator = UpdateRule(lr=float(lr)), around.stream(f"{self.name}/linear", i)
            found = lyapunov(
                curvature,
                rule,
                batch_size=self.batch_size,
                sampling="without_replacement",
                steps=GROWTH_STEPS,
                replicas=REPLICAS,
                generator=torch.Generator().manual_seed(generator.initial_seed()),
            )
            seen.append((found.value, found.error))
            tick((i + 1) / len(tried))
        mean_square = [0.5 * math.log(in_plane(a, s, lr=float(lr), factor=factor) + TINY) for lr in grid]
        ends = np.isfinite(seen).all(1)  # where a batch maps everything to zero there is no growth to compare
        return _Linear(
            edges=np.array([square, edge, 2 / a]),
            grid=grid,
            mean_square=np.array(mean_square),
            typical=np.array([typical(float(lr)) for lr in grid]),
            tried=tried[ends],
            expected=np.array([typical(float(lr)) for lr in tried[ends]]),
            seen=np.array(seen)[ends],
        )

    # --- what it says ----------

    def _outcome(
        self,
        exact: "dict[tuple[Kind, float], _Exact]",
        times: dict[tuple[Kind, float], EscapeTimes],
        reached: dict[Kind, Tensor],
        linear: "_Linear",
    ) -> Outcome:
        h = sorted(self.curvatures)
        radii = {(kind, c): _quantile(reached[kind][:, i], self.share) for kind in KINDS for i, c in enumerate(h)}
        left = {case: _left(found) for case, found in times.items()}
        means = {case: self._mean(found) for case, found in times.items()}
        compared = []
        for (kind, c), law in exact.items():
            stay = law.stays * self.walkers
            if stay < 0.01:
                compared.append(
                    Comparison.of(f"time to leave, h = {c:g}, {NAMES[kind]}", law.mean, self._mean(times[kind, c]))
                )
            elif LEAST < stay < self.walkers - LEAST:
                name = f"share gone by {self.longest:g}, h = {c:g}, {NAMES[kind]}"
                compared.append(Comparison.of(name, 1 - law.stays, left[kind, c]))
        for case, law in exact.items():
            kind, c = case
            compared.append(Comparison.of(f"radius, h = {c:g}, {NAMES[kind]}", law.radius, radii[case]))
        for lr, theory, (value, error) in zip(linear.tried, linear.expected, linear.seen, strict=True):
            compared.append(Comparison(f"typical growth a step, lr {lr:.3g}", float(theory), value, error))

        def table(of: Callable[[tuple[Kind, float]], float]) -> np.ndarray:
            return np.array([[of((kind, c)) for c in h] for kind in KINDS])

        return Outcome(
            self._finding(exact, left, radii, linear),
            compared,
            {
                "h": np.array(h),
                "mean": table(lambda case: exact[case].mean),
                "measured": table(lambda case: means[case].value),
                "measured_error": table(lambda case: means[case].error),
                "longest": np.array(self.longest),
                "radius": table(lambda case: exact[case].radius),
                "reached": table(lambda case: radii[case].value),
                "reached_error": table(lambda case: radii[case].error),
                "settings": np.array([self.radius, self.share, self.horizon, self.batch_size]),
                **vars(linear),
            },
            {
                "mean_square_lr": float(linear.edges[0]),
                "typical_lr": float(linear.edges[1]),
                "gradient_descent_lr": float(linear.edges[2]),
            },
        )

    def _mean(self, found: EscapeTimes) -> Estimate:
        """Mean time to leave in units of lr x step: time watched over exits, which is the mean where all have left."""
        t, gone = self.lr * found.times, int(found.exited.sum())
        if gone < len(t):
            value = float(t.sum()) / gone if gone >= LEAST else math.nan
            return Estimate(value, value / math.sqrt(max(1, gone)), 0, "censored")
        return Estimate(float(t.mean()), float(t.std()) / math.sqrt(len(t)), 0, "walkers")

    def _finding(
        self,
        exact: "dict[tuple[Kind, float], _Exact]",
        left: dict[tuple[Kind, float], Estimate],
        radii: dict[tuple[Kind, float], Estimate],
        linear: "_Linear",
    ) -> str:
        low, high = min(self.curvatures), max(self.curvatures)

        def said(kind: Kind) -> str:
            mean = " and ".join(f"{exact[kind, c].mean:.3g} (h = {c:g})" for c in (low, high))
            gone = ", ".join(f"{left[kind, c].value:.0%}" for c in (low, high))
            return f"{mean} in theory (gone by {self.longest:g}: {gone})"

        def reach(kind: Kind) -> str:
            near, far = (radii[kind, c] for c in (low, high))
            return f"{with_error(near.value, near.error)} to {with_error(far.value, far.error)}"

        square, edge, full = linear.edges
        return (
            f"A minimum h x^2/2 under SGD of noise that does not vanish is left for good, sooner or later, at every "
            f"curvature: the mean time out of |x| < {self.radius:g} (in lr x steps) is {said('aligned')} where the noise is "
            f"proportional to h, {said('isotropic')} where it is the same for all. As h goes from {low:g} to {high:g}, the "
            f"radius in which {self.share:.0%} stay for a time of {self.horizon:g} goes from {reach('aligned')} under noise "
            f"~ h and from {reach('isotropic')} under the same noise: neither is the 1/h of the popular theorem, which "
            f"would be a factor {low / high:.3g}. Where the noise vanishes at the minimum the learning rate decides: second "
            f"moments grow beyond {square:.4g}, typical runs beyond {edge:.4g} (full batch: {full:.4g})."
        )

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return draw(arrays, title)


@dataclass(frozen=True)
class _Exact:
    """Mean exit time, the share inside after `longest`, and the radius."""

    mean: float
    stays: float
    radius: float


@dataclass(frozen=True)
class _Linear:
    """Learning rates at the edge of mean square, of typical runs and of the full batch; growth over a grid, and measured."""

    edges: np.ndarray
    grid: np.ndarray
    mean_square: np.ndarray
    typical: np.ndarray
    tried: np.ndarray
    expected: np.ndarray
    seen: np.ndarray


def _left(found: EscapeTimes) -> Estimate:
    n = len(found.times)
    share = float(found.exited.double().mean())
    return Estimate(share, math.sqrt(share * (1 - share) / n), 0, "walkers")


def _quantile(values: Tensor, share: float) -> Estimate:
    """With the standard error of the order statistics: half of what one of a binomial count moves it, to both sides."""
    ordered, n = values.sort().values, len(values)
    spread = math.sqrt(n * share * (1 - share))
    low, high = (ordered[min(n - 1, max(0, round(n * share + side * spread)))] for side in (-1, 1))
    return Estimate(float(values.quantile(share)), float(high - low) / 2, 0, "walkers")

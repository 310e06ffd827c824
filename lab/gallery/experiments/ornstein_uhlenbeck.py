"""Where SGD of constant learning rate settles in a quadratic minimum: exact covariances beside walkers, and what they miss.

The stationary covariance solves a discrete Lyapunov equation; the continuous (Ornstein-Uhlenbeck) formula is its limit of
small learning rates and too small by lr h / 2 along curvature h. Real mini-batches multiply w as well, which additive noise
leaves out. Noise as large in flat directions as in sharp ones fills the flat ones; noise proportional to the curvature fills
all alike and climbs out of a minimum faster at first (Zhu et al. 2019). Noise without a variance has no covariance, but a
law all the same. `lab.noise.stationary`, `lab.noise.settling`, `lab.noise.tails`.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor

from lab.gallery.base import (
    Experiment,
    Outcome,
    Positive,
    Surroundings,
)
from lab.gallery.experiments.ornstein_uhlenbeck_figure import KINDS, draw
from lab.gallery.experiments.ornstein_uhlenbeck_theory import CLIMBING_STEPS, Settlings
from lab.gallery.frame import Arrays, Figure
from lab.noise.example_curvature import ExampleCurvature
from lab.noise.second_moments import mean_square_lr
from lab.noise.settling import Regression, Settled, additive, average, climb, relaxation, settle
from lab.noise.tails import stable
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import settings

SLOWEST = 5000
SECONDS_PER_NUMBER = 3e-8
SECONDS_PER_STEP = 1.5e-4


@settings()
class OrnsteinUhlenbeck(Experiment):
    """Where SGD of constant learning rate settles in a quadratic minimum: exact covariances beside walkers, and what they
    miss.

    The discrete Lyapunov equation is exact; the continuous one is too small by lr h / 2 along curvature h (Mandt et al.
    2017, Liu et al. 2021). Beside it heavy ball, running means, real mini-batches, isotropic noise against noise that
    follows the curvature (Zhu et al. 2019), how likely large noise is, and noise that has no variance.
    """

    name: ClassVar[str] = "ornstein_uhlenbeck"

    curvatures: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=30, description="eigenvalues of H")] = (
        2.0,
        1.0,
        0.4,
    )
    noise: Annotated[
        tuple[Positive, ...],
        Field(description="eigenvalues of the covariance of the gradient of a step, in axes of its own"),
    ] = (3.0, 1.0, 0.3)
    lr: Annotated[Positive, Field(description="learning rate, below 2 / lambda_max")] = 0.4
    momentum: Annotated[float, Field(gt=0, le=0.99, description="of a second run, with heavy ball")] = 0.9
    decay: Annotated[float, Field(gt=0, le=0.999, description="of the running mean of the weights")] = 0.95
    examples: Annotated[int, Field(ge=4, le=100_000, description="of a linear regression")] = 30
    batch_size: Annotated[int, Field(ge=1, le=1000, description="of its mini-batches, with replacement")] = 2
    edge: Annotated[
        float, Field(ge=0.01, le=0.5, description="its learning rate, over that at which second moments explode")
    ] = 0.35
    valley: Annotated[
        tuple[Positive, ...],
        Field(min_length=2, max_length=30, description="curvatures for isotropic noise against noise ~ curvature"),
    ] = (10.0, 1.0, 0.1, 0.01)
    time: Annotated[Positive, Field(description="for which the first climb out of it is followed")] = 0.2
    alpha: Annotated[float, Field(ge=0.3, le=2, description="index of the noise without a variance; 2: Gaussian")] = 1.5
    walkers: Annotated[
        int, Field(ge=100, le=10_000_000, description="of each; half in the valley, ten times as many on the climb")
    ] = 4000
    looks: Annotated[int, Field(ge=1, le=1000, description="times at which they are seen, once they have settled")] = 10

    def __post_init__(self) -> None:
        if len(self.noise) != len(self.curvatures):
            raise ValueError(f"noise: {len(self.noise)} values for {len(self.curvatures)} curvatures; expected as many")
        for name in ("curvatures", "valley"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or max(values) > 1e4 * min(values):
                raise ValueError(f"{name}: expected different numbers, the largest at most 10000 times the smallest")
        product = self.lr * max(self.curvatures)
        if not 1e-3 <= product < 2:
            raise ValueError(
                f"lr={self.lr:g} times the largest curvature is {product:g}; expected 0.001 to 2, the edge of stability"
            )
        for name, lr in (("curvatures", self.lr), ("valley", self.valley_lr)):
            slow = 1 / min(lr * min(getattr(self, name)), 2 - product)
            if slow > SLOWEST:
                cure = "a larger lr or curvatures that differ less" if product < 1 else "a smaller lr"
                raise ValueError(
                    f"lr={self.lr:g}: the slowest direction of {name} settles in {slow:.0f} steps; expected at most "
                    f"{SLOWEST}, with {cure}"
                )
        if self.time * max(self.valley) > CLIMBING_STEPS / 10:
            raise ValueError(
                f"time={self.time:g} times the largest curvature of the valley is {self.time * max(self.valley):g}; "
                f"expected at most {CLIMBING_STEPS // 10}, by which it has long settled"
            )
        if self.walkers * self.looks < 2000:
            raise ValueError(f"walkers={self.walkers} seen {self.looks} times: expected 2000 or more in all")
        if self.examples < 2 * len(self.curvatures):
            raise ValueError(
                f"examples={self.examples}: expected at least {2 * len(self.curvatures)}, twice the number of "
                "curvatures"
            )

    @property
    def H(self) -> Tensor:
        return torch.diag(torch.tensor(sorted(self.curvatures, reverse=True), dtype=torch.float64))

    @property
    def V(self) -> Tensor:
        """Curvatures of the valley (n,), largest first."""
        return torch.tensor(sorted(self.valley, reverse=True), dtype=torch.float64)

    @property
    def valley_lr(self) -> float:
        """As far from the edge in the valley as lr is in H."""
        return self.lr * max(self.curvatures) / max(self.valley)

    def valley_noise(self, kind: str) -> Tensor:
        """Variances (n,) of the noise along the curvatures: of the same sum."""
        return self.V if kind == "aligned" else self.V.mean().expand(len(self.V))

    def stages(self) -> dict[str, float]:
        d, looks = len(self.curvatures), 6 + 3 * self.looks
        slow = 1 / (self.lr * min(self.curvatures))

        def seconds(steps: float, numbers: int) -> float:
            return steps * (SECONDS_PER_STEP + SECONDS_PER_NUMBER * self.walkers * numbers)

        long = 1 / (self.valley_lr * min(self.valley))
        return {
            "SGD and its running mean": seconds(looks * (slow + 1 / (1 - self.decay)), d),
            "heavy ball": seconds(looks * max(slow, 2 / (1 - self.momentum)), d),
            "real mini-batches": seconds(looks * slow, 4 * d * self.batch_size),
            "a valley": 2 * seconds(9 * long, len(self.valley)) / 2,
            "climbing out": 2 * seconds(CLIMBING_STEPS, 10 * len(self.valley)),
            "noise without a variance": seconds(looks * slow, 6 * d),
        }

    def simulate(self, around: Surroundings) -> Outcome:
        C = _covariance(self, around)
        plain = self._settled(around, "SGD and its running mean", C, decay=self.decay)
        ball = self._settled(around, "heavy ball", C, momentum=self.momentum)
        batches = _mini_batches(self, around)
        valley = around.each("a valley", KINDS, lambda kind, tick: self._in_valley(around, kind, tick))
        climbs = around.each("climbing out", KINDS, lambda kind, tick: self._climb(around, kind, tick))
        heavy_tailed = _without_variance(self, around, around.stage("noise without a variance"))
        return Settlings(
            self, C, plain, ball, *batches, valley, climbs, heavy_tailed, _sizes(self, around, C)
        ).outcome()

    def _settled(
        self, around: Surroundings, part: str, C: Tensor, *, momentum: float = 0.0, decay: float = 0.0
    ) -> Settled:
        generator, H = around.stream(f"{self.name}/{part}"), self.H.to(around.device)
        root = torch.linalg.cholesky(C).to(around.device)
        return settle(
            additive(H, lambda w: _like(w, generator) @ root.T),
            torch.zeros(self.walkers, len(H), dtype=H.dtype, device=around.device),
            lr=self.lr,
            relaxation=relaxation(H, lr=self.lr, momentum=momentum),
            looks=self.looks,
            momentum=momentum,
            decay=decay,
            tick=around.stage(part),
        )

    def _in_valley(self, around: Surroundings, kind: str, tick: Tick) -> Settled:
        generator, h = around.stream(f"{self.name}/valley/{kind}"), self.V.to(around.device)
        size = self.valley_noise(kind).sqrt().to(h)
        return settle(
            lambda w: h * w + size * _like(w, generator),
            torch.zeros(max(100, self.walkers // 2), len(h), dtype=h.dtype, device=around.device),
            lr=self.valley_lr,
            relaxation=relaxation(torch.diag(h), lr=self.valley_lr),
            looks=1,
            tick=tick,
        )

    def _climb(self, around: Surroundings, kind: str, tick: Tick) -> tuple[Tensor, Estimate]:
        generator, h = around.stream(f"{self.name}/climb/{kind}"), self.V.to(around.device)
        noise, walkers = self.valley_noise(kind).to(h), 10 * self.walkers
        losses, last = climb(
            h, noise, time=self.time, steps=CLIMBING_STEPS, walkers=walkers, generator=generator, tick=tick
        )
        return losses, average(last)

    @staticmethod
    def figure(arrays: Arrays, title: str) -> Figure:
        return draw(arrays, title)


def _normal(around: Surroundings, name: str, *shape: int) -> Tensor:
    generator = around.stream(f"ornstein_uhlenbeck/{name}")
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device=around.device)


def _like(w: Tensor, generator: Generator) -> Tensor:
    return torch.empty_like(w).normal_(generator=generator)


def _mini_batches(card: OrnsteinUhlenbeck, around: Surroundings) -> tuple[Settled, Regression]:
    """Walkers under real mini-batches, in the eigenvectors of the Hessian of their regression, and that."""
    d, part = len(card.curvatures), "real mini-batches"
    x, y = _normal(around, "regression", card.examples, d), _normal(around, "targets", card.examples)
    x = x * card.H.diagonal().sqrt().to(x)
    x = x @ torch.linalg.eigh(x.T @ x)[1].flip(1)
    lr = card.edge * mean_square_lr(ExampleCurvature(x[:, None, :]), factor=1 / card.batch_size).value
    problem, generator = Regression(x, y, card.batch_size, lr), around.stream(f"{card.name}/batches")
    found = problem.settle(card.walkers, generator, looks=card.looks, tick=around.stage(part))
    return found, Regression(x.cpu(), y.cpu(), card.batch_size, lr)


def _covariance(card: OrnsteinUhlenbeck, around: Surroundings) -> Tensor:
    """C (d, d): its axes are turned against those of H by a random rotation."""
    z = _normal(around, "axes", len(card.noise), len(card.noise)).cpu()
    axes, _ = torch.linalg.qr(z)
    return axes @ torch.diag(torch.tensor(card.noise, dtype=torch.float64)) @ axes.T


def _sizes(card: OrnsteinUhlenbeck, around: Surroundings, C: Tensor) -> Tensor:
    """|v|^2 of draws v ~ N(0, C)."""
    z = _normal(around, "sizes", 50 * card.walkers, len(C)).cpu()
    return (z @ torch.linalg.cholesky(C).T).square().sum(1)


def _without_variance(card: OrnsteinUhlenbeck, around: Surroundings, tick: Tick) -> Tensor:
    """Walkers (looks x walkers, d) under independent noise of index alpha and width 1 along every curvature."""
    generator, H = around.stream(f"{card.name}/stable"), card.H.to(around.device)
    return settle(
        additive(H, lambda w: stable(w, card.alpha, generator)),
        torch.zeros(card.walkers, len(H), dtype=H.dtype, device=around.device),
        lr=card.lr,
        relaxation=2 / card.alpha * relaxation(H, lr=card.lr),
        looks=card.looks,
        tick=tick,
    ).w

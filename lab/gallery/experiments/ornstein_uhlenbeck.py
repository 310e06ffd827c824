"""Where SGD of constant learning rate settles in a quadratic minimum: exact covariances beside walkers, and what they miss.

The stationary covariance solves a discrete Lyapunov equation; the continuous (Ornstein-Uhlenbeck) formula is its limit of
small learning rates and too small by lr h / 2 along curvature h. Real mini-batches multiply w as well, which additive noise
leaves out. Noise as large in flat directions as in sharp ones fills the flat ones; noise proportional to the curvature fills
all alike and climbs out of a minimum faster at first (Zhu et al. 2019). Noise without a variance has no covariance, but a
law all the same. `lab.noise.stationary`, `lab.noise.settling`, `lab.noise.tails`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Generator, Tensor

from lab.gallery.experiments.base import Comparison, Experiment, Outcome, Surroundings, with_error
from lab.gallery.experiments.ornstein_uhlenbeck_figure import KINDS, draw, relative, tail
from lab.noise.example_curvature import ExampleCurvature
from lab.noise.second_moments import mean_square_lr
from lab.noise.settling import Regression, Settled, additive, average, climb, relaxation, settle
from lab.noise.stationary import (
    averaging_factor,
    escape_loss,
    markov_bound,
    paley_zygmund_bound,
    stationary_covariance,
    stationary_width,
)
from lab.noise.tails import excess_kurtosis, stable, stable_index, stable_width
from lab.progress import Tick
from lab.results import Estimate
from lab.settings import settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MULTIPLES = np.linspace(0.05, 4, 80)
"""Of Tr C, beyond which the share of |v|^2 is counted."""
CLIMBING_STEPS = 200
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
        for name, lr in (("curvatures", self.lr), ("valley", self._valley_lr)):
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
                f"examples={self.examples}: expected at least {2 * len(self.curvatures)}, twice the number of curvatures"
            )

    # --- settings of the parts ----------

    @property
    def _H(self) -> Tensor:
        return torch.diag(torch.tensor(sorted(self.curvatures, reverse=True), dtype=torch.float64))

    @property
    def _V(self) -> Tensor:
        """Curvatures of the valley (n,), largest first."""
        return torch.tensor(sorted(self.valley, reverse=True), dtype=torch.float64)

    @property
    def _valley_lr(self) -> float:
        """As far from the edge in the valley as lr is in H."""
        return self.lr * max(self.curvatures) / max(self.valley)

    def _valley_noise(self, kind: str) -> Tensor:
        """Variances (n,) of the noise along the curvatures: of the same sum."""
        return self._V if kind == "aligned" else self._V.mean().expand(len(self._V))

    def stages(self) -> dict[str, float]:
        d, looks = len(self.curvatures), 6 + 3 * self.looks
        slow = 1 / (self.lr * min(self.curvatures))

        def seconds(steps: float, numbers: int) -> float:
            return steps * (SECONDS_PER_STEP + SECONDS_PER_NUMBER * self.walkers * numbers)

        long = 1 / (self._valley_lr * min(self.valley))
        return {
            "SGD and its running mean": seconds(looks * (slow + 1 / (1 - self.decay)), d),
            "heavy ball": seconds(looks * max(slow, 2 / (1 - self.momentum)), d),
            "real mini-batches": seconds(looks * slow, 4 * d * self.batch_size),
            "a valley": 2 * seconds(9 * long, len(self.valley)) / 2,
            "climbing out": 2 * seconds(CLIMBING_STEPS, 10 * len(self.valley)),
            "noise without a variance": seconds(looks * slow, 6 * d),
        }

    def simulate(self, around: Surroundings) -> Outcome:
        C = self._covariance(around)
        plain = self._settled(around, "SGD and its running mean", C, decay=self.decay)
        ball = self._settled(around, "heavy ball", C, momentum=self.momentum)
        batches = self._mini_batches(around)
        valley = {kind: self._in_valley(around, kind, tick) for kind, tick in around.over("a valley", KINDS)}
        climbs = {kind: self._climb(around, kind, tick) for kind, tick in around.over("climbing out", KINDS)}
        stable_law = self._without_variance(around, around.stage("noise without a variance"))
        return self._outcome(_Found(C, plain, ball, *batches, valley, climbs, stable_law, self._sizes(around, C)))

    # --- the parts ----------

    def _covariance(self, around: Surroundings) -> Tensor:
        """C (d, d): its axes are turned against those of H by a random rotation."""
        z = _normal(around, "axes", len(self.noise), len(self.noise)).cpu()
        axes, _ = torch.linalg.qr(z)
        return axes @ torch.diag(torch.tensor(self.noise, dtype=torch.float64)) @ axes.T

    def _settled(
        self, around: Surroundings, part: str, C: Tensor, *, momentum: float = 0.0, decay: float = 0.0
    ) -> Settled:
        generator, H = around.stream(f"{self.name}/{part}"), self._H.to(around.device)
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

    def _mini_batches(self, around: Surroundings) -> tuple[Settled, Regression]:
        """Walkers under real mini-batches, in the eigenvectors of the Hessian of their regression, and that."""
        d, part = len(self.curvatures), "real mini-batches"
        x, y = _normal(around, "regression", self.examples, d), _normal(around, "targets", self.examples)
        x = x * self._H.diagonal().sqrt().to(x)
        x = x @ torch.linalg.eigh(x.T @ x)[1].flip(1)
        lr = self.edge * mean_square_lr(ExampleCurvature(x[:, None, :]), factor=1 / self.batch_size).value
        problem, generator = Regression(x, y, self.batch_size, lr), around.stream(f"{self.name}/batches")
        found = problem.settle(self.walkers, generator, looks=self.looks, tick=around.stage(part))
        return found, Regression(x.cpu(), y.cpu(), self.batch_size, lr)

    def _in_valley(self, around: Surroundings, kind: str, tick: Tick) -> Settled:
        generator, h = around.stream(f"{self.name}/valley/{kind}"), self._V.to(around.device)
        size = self._valley_noise(kind).sqrt().to(h)
        return settle(
            lambda w: h * w + size * _like(w, generator),
            torch.zeros(max(100, self.walkers // 2), len(h), dtype=h.dtype, device=around.device),
            lr=self._valley_lr,
            relaxation=relaxation(torch.diag(h), lr=self._valley_lr),
            looks=1,
            tick=tick,
        )

    def _climb(self, around: Surroundings, kind: str, tick: Tick) -> tuple[Tensor, Estimate]:
        generator, h = around.stream(f"{self.name}/climb/{kind}"), self._V.to(around.device)
        noise, walkers = self._valley_noise(kind).to(h), 10 * self.walkers
        losses, last = climb(
            h, noise, time=self.time, steps=CLIMBING_STEPS, walkers=walkers, generator=generator, tick=tick
        )
        return losses, average(last)

    def _without_variance(self, around: Surroundings, tick: Tick) -> Tensor:
        """Walkers (looks x walkers, d) under independent noise of index alpha and width 1 along every curvature."""
        generator, H = around.stream(f"{self.name}/stable"), self._H.to(around.device)
        return settle(
            additive(H, lambda w: stable(w, self.alpha, generator)),
            torch.zeros(self.walkers, len(H), dtype=H.dtype, device=around.device),
            lr=self.lr,
            relaxation=2 / self.alpha * relaxation(H, lr=self.lr),
            looks=self.looks,
            tick=tick,
        ).w

    def _sizes(self, around: Surroundings, C: Tensor) -> Tensor:
        """|v|^2 of draws v ~ N(0, C)."""
        z = _normal(around, "sizes", 50 * self.walkers, len(C)).cpu()
        return (z @ torch.linalg.cholesky(C).T).square().sum(1)

    # --- what it says ----------

    def _outcome(self, found: "_Found") -> Outcome:
        h, V = self._H.diagonal(), self._V
        exact = stationary_covariance(self._H, found.C, lr=self.lr)
        ball = stationary_covariance(self._H, found.C, lr=self.lr, momentum=self.momentum)
        factors = _numbers(averaging_factor(self.decay, 1 - self.lr * float(each)) for each in h)
        settled = {kind: self._valley_law(kind) for kind in KINDS}
        climbs = {kind: self._climbing(kind) for kind in KINDS}
        widths = _numbers(stationary_width(float(each), lr=self.lr, alpha=self.alpha) for each in h)
        compared = [
            *_along("variance", exact.diagonal(), h, lambda i: found.plain.product(i, i)),
            Comparison.of("covariance of the first two", float(exact[0, 1]), found.plain.product(0, 1)),
            *_along("heavy ball, variance", ball.diagonal(), h, lambda i: found.ball.product(i, i)),
            *_along(
                "running mean, variance",
                exact.diagonal() * factors,
                h,
                lambda i: average(found.plain.mean[:, i] ** 2),
            ),
            Comparison.of(
                "real mini-batches, trace", float(found.problem.law.trace()), average(found.batches.w.square().sum(1))
            ),
            *(
                Comparison.of(
                    f"settled loss, {kind} noise", float(V @ settled[kind]) / 2, average(walk.w.square() @ V / 2)
                )
                for kind, walk in found.valley.items()
            ),
            *(
                Comparison.of(f"E L({self.time:g}), {kind} noise", climbs[kind][-1], last, approximate=True)
                for kind, (_, last) in found.climbs.items()
            ),
            Comparison.of("E|v|^2, v ~ N(0, C)", float(found.C.trace()), average(found.sizes)),
            *_along(f"width, alpha {self.alpha:g}", widths, h, lambda i: stable_width(found.stable[:, i], self.alpha)),
            Comparison.of("stable index of w", self.alpha, stable_index(found.stable[:, 0])),
        ]
        return Outcome(
            self._finding(found, exact, climbs),
            compared,
            self._arrays(found, exact, ball, settled, climbs),
            {
                "continuous_error": _apart(self._continuous(found.C), exact),
                "additive_error": _apart(found.problem.additive_law, found.problem.law),
                "mini_batch_error": _apart(found.batches.covariance, found.problem.law),
                "measured_error": _apart(found.plain.covariance, exact),
                "mini_batch_kurtosis": excess_kurtosis(found.batches.w).value,
            },
        )

    def _continuous(self, C: Tensor) -> Tensor:
        """The solution of H S + S H = lr C."""
        h = self._H.diagonal()
        return self.lr * C / (h[:, None] + h)

    def _valley_law(self, kind: str) -> Tensor:
        """Variances (n,) that it settles at."""
        noise = torch.diag(self._valley_noise(kind))
        return stationary_covariance(torch.diag(self._V), noise, lr=self._valley_lr).diagonal()

    def _climbing(self, kind: str) -> np.ndarray:
        times = np.linspace(0, self.time, CLIMBING_STEPS + 1)
        H, S = torch.diag(self._V), torch.diag(self._valley_noise(kind))
        return np.array([escape_loss(H, S, float(t)) for t in times])

    def _arrays(
        self,
        found: "_Found",
        exact: Tensor,
        ball: Tensor,
        settled: dict[str, Tensor],
        climbs: dict[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        h, d = self._H.diagonal(), range(len(self.curvatures))
        value = [average(found.plain.mean[:, i] ** 2) for i in d]
        return {
            "product": (self.lr * h).numpy(),
            "ratio": np.array([relative(found.plain.product(i, i), exact[i, i]) for i in d]),
            "ball": np.array([relative(found.ball.product(i, i), ball[i, i]) for i in d]),
            "batch_product": (found.problem.lr * found.problem.H.diagonal()).numpy(),
            "batch": np.array([relative(found.batches.product(i, i), found.problem.law[i, i]) for i in d]),
            "additive": (found.problem.additive_law.diagonal() / found.problem.law.diagonal()).numpy(),
            "mean": np.array([relative(value[i], exact[i, i]) for i in d]),
            "decay": np.array(self.decay),
            "valley": self._V.numpy(),
            **{f"settled_{kind}": law.numpy() for kind, law in settled.items()},
            **{
                f"seen_{kind}": np.array([relative(walk.product(i, i), 1.0) for i in range(len(self._V))])
                for kind, walk in found.valley.items()
            },
            "times": np.linspace(0, self.time, CLIMBING_STEPS + 1),
            **{f"climb_{kind}": seen.numpy() for kind, (seen, _) in found.climbs.items()},
            **{f"climb_law_{kind}": law for kind, law in climbs.items()},
            "multiples": MULTIPLES,
            "larger": np.array([float((found.sizes > m * float(found.C.trace())).double().mean()) for m in MULTIPLES]),
            "markov": np.array([markov_bound(m) for m in MULTIPLES]),
            "paley_zygmund": np.array([paley_zygmund_bound(m, found.C) if m < 1 else np.nan for m in MULTIPLES]),
            "alpha": np.array(self.alpha),
            **{
                f"tail_{name}": tail(w)
                for name, w in (
                    ("stable", found.stable[:, 0]),
                    ("gaussian", found.plain.w[:, 0]),
                    ("batches", found.batches.w[:, 0]),
                )
            },
        }

    def _finding(self, found: "_Found", exact: Tensor, climbs: dict[str, np.ndarray]) -> str:
        half = float((found.sizes > 0.5 * float(found.C.trace())).double().mean())
        twice = float((found.sizes > 2 * float(found.C.trace())).double().mean())
        index = stable_index(found.stable[:, 0])
        flat = {kind: walk.product(-1, -1).value for kind, walk in found.valley.items()}
        variance = "" if self.alpha == 2 else " has no variance, and w none"
        measured, continuous = _apart(found.plain.covariance, exact), _apart(self._continuous(found.C), exact)
        batches, added = (
            _apart(one, found.problem.law) for one in (found.batches.covariance, found.problem.additive_law)
        )
        said = {kind: with_error(last.value, last.error) for kind, (_, last) in found.climbs.items()}
        return (
            f"SGD with noise that does not depend on w settles at the discrete Lyapunov covariance (lr "
            f"{self.lr:g}, lr x lambda_max {self.lr * max(self.curvatures):g}): measured within {measured:.1%} in norm of "
            f"the exact one, which the continuous formula misses by {continuous:.1%}. Real mini-batches of "
            f"{self.batch_size} out of {self.examples}, at {self.edge:g} of the lr at which second moments explode: "
            f"measured within {batches:.1%} of the exact operator, additive noise is off by {added:.1%}; excess kurtosis of "
            f"w {excess_kurtosis(found.batches.w).value:.2f}. Noise of one trace: in the flattest direction isotropic noise "
            f"spreads w over a variance of {flat['isotropic']:.3g}, aligned noise over {flat['aligned']:.3g}; in time "
            f"{self.time:g} aligned noise climbs to E L = {said['aligned']} (theory {climbs['aligned'][-1]:.4g}), isotropic "
            f"to {said['isotropic']} ({climbs['isotropic'][-1]:.4g}). A large trace bounds large noise from above only: "
            f"P(|v|^2 > 2 Tr C) = {twice:.3f} <= {markov_bound(2.0):g} (Markov), P(|v|^2 > Tr C / 2) = {half:.3f} >= "
            f"{paley_zygmund_bound(0.5, found.C):.3f} (Paley-Zygmund). Noise of index {self.alpha:g}{variance}: of w the "
            f"index is {with_error(index.value, index.error)}."
        )

    @staticmethod
    def figure(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
        return draw(arrays, title)


@dataclass(frozen=True)
class _Found:
    """C; walkers of SGD, heavy ball and real mini-batches; these' problem; walkers in the valley; E L of the first climb and
    the last L; walkers under stable noise; sizes |v|^2.
    """

    C: Tensor
    plain: Settled
    ball: Settled
    batches: Settled
    problem: Regression
    valley: dict[str, Settled]
    climbs: dict[str, tuple[Tensor, Estimate]]
    stable: Tensor
    sizes: Tensor


def _normal(around: Surroundings, name: str, *shape: int) -> Tensor:
    generator = around.stream(f"ornstein_uhlenbeck/{name}")
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device=around.device)


def _like(w: Tensor, generator: Generator) -> Tensor:
    return torch.empty_like(w).normal_(generator=generator)


def _along(name: str, theory: Tensor, h: Tensor, measured: Callable[[int], Estimate]) -> list[Comparison]:
    return [Comparison.of(f"{name}, h = {float(h[i]):g}", float(theory[i]), measured(i)) for i in range(len(h))]


def _numbers(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _apart(one: Tensor, other: Tensor) -> float:
    """Their distance over the norm of the other."""
    return float((one - other).norm() / other.norm())

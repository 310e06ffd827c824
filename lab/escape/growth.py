"""How fast replicas leave a point that is unstable, against what its linearisation says.

At a saddle, along every negative direction:
    kick      no noise, from 1e-8 off: slope of log|x|, against log z, z the root of `lab.escape.saddle.growth_factor`
    noisy     x regressed on its own past, while it is within the radius
At a minimum that fits every example (no noise there, whatever the batch):
    growth    of a length that is scaled back, against the top Lyapunov exponent of the linearised steps
    landing   lr S/2 where runs end that were thrown out, over its critical value at the minimum that they left
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.curvature.stability import UpdateRule
from lab.escape.ensemble import Dynamics
from lab.escape.renormalised import exits, free_lengths, renormalised_growth, root_loss
from lab.escape.replicas import Replicas
from lab.escape.saddle import growth_factor
from lab.escape.seen_growth import autoregression, kick_growth
from lab.noise.example_curvature import ExampleCurvature
from lab.noise.lyapunov import DECIDED, critical_lr, lyapunov
from lab.noise.second_moments import mean_square_lr
from lab.objective import Objective
from lab.results import EscapeTimes, Estimate
from lab.sampling import Sampling, batch_factor

KICK, SHOVE = 1e-8, 1e-3
"""Length of the kick off a saddle, or off a minimum in each coordinate; the latter of runs that are to land elsewhere."""
LEFT = 1e-3
"""sqrt(2 L) at which a run has left a minimum of zero loss; one that was thrown out and is below it again has landed."""
DIRECTIONS = 250
"""Eigenvectors of the Gauss-Newton matrix in which the edge of second moments, where the search begins, is computed."""
GROWN = 1e5
"""Times by which a kick grows before the linear regime is left: the length of the run without noise."""


@dataclass(frozen=True)
class Descending:
    """Along one negative direction: its curvature, growth of log|x| per step by theory, by a kick and under noise."""

    curvature: float
    theory: float
    kick: Estimate
    noisy: Estimate


def descending(
    objective: Objective,
    w: Tensor,
    dynamics: Dynamics,
    curvatures: Tensor,
    vectors: Tensor,
    *,
    momentum: float,
    radius: float,
    replicas: int,
    steps: int,
    generator: torch.Generator,
) -> list[Descending]:
    """Growth along the columns of `vectors` (P, k) at the saddle w, of curvatures (k,) < 0.

    Cost: 8 replicas without noise for log(GROWN) over the slowest growth, and `replicas` under noise until all are beyond
    `radius`, `steps` at most. Noisy growth is NaN where nobody moved.
    """
    slopes = [math.log(growth_factor(float(c), lr=dynamics.lr, momentum=momentum)) for c in curvatures]
    kicks = torch.randn(8, vectors.shape[1], generator=generator, dtype=torch.float64).to(w)
    calm = dynamics.quiet().replicas(objective, w + KICK * kicks @ vectors.to(w).T, generator)
    quiet = _path(calm, w, vectors, min(steps, max(12, math.ceil(math.log(GROWN) / slopes[0]))))
    loud = dynamics.replicas(objective, w.expand(replicas, -1), generator)
    noisy = _path(loud, w, vectors, steps, radius)
    order = 2 if momentum else 1
    return [
        Descending(
            float(c), slope, kick_growth(quiet[:, :, i]), autoregression(noisy[:, :, i], radius, generator, order=order)
        )
        for i, (c, slope) in enumerate(zip(curvatures, slopes, strict=True))
    ]


def _path(replicas: Replicas, w: Tensor, vectors: Tensor, steps: int, radius: float = math.inf) -> Tensor:
    """Coordinates (steps + 1, R, k) along the vectors, until all have been beyond the radius."""
    rows = [(replicas.W - w) @ vectors.to(w)]
    gone = torch.zeros(len(replicas.W), dtype=torch.bool, device=w.device)
    for _ in range(steps):
        replicas.run(1)
        rows.append((replicas.W - w) @ vectors.to(w))
        gone |= ~(rows[-1].norm(dim=1) <= radius)
        if bool(gone.all()) and len(rows) > 4:
            break
    return torch.stack(rows)


@dataclass(frozen=True)
class Thrown:
    """At a minimum that fits every example, one learning rate and batch size.

    exponent  Lyapunov exponent of the linearised steps, per step; growth that of the network, renormalised
    critical  learning rate at which the exponent is zero; sharpness that of the minimum
    times     when replicas that started `KICK` off (each coordinate) were `LEFT` away, as sqrt(2 L)
    expected  steps that the exponent gives for it; inf where it is not positive
    landed    (n,) lr S/2 after the budget, over its critical value, of all runs that started `SHOVE` off and are finite
    settled   of how many of them sqrt(2 L) is below `LEFT` again; the others are still on their way
    """

    lr: float
    batch_size: int | None
    exponent: Estimate
    growth: Estimate
    critical: float
    sharpness: float
    times: EscapeTimes
    expected: float
    landed: Tensor
    settled: int


def thrown(
    objective: Objective,
    w: Tensor,
    dynamics: Dynamics,
    rule: UpdateRule,
    curvature: ExampleCurvature,
    *,
    replicas: int,
    steps: int,
    budget: int,
    generator: torch.Generator,
) -> Thrown:
    """Growth from the minimum w (P,) of zero loss under plain SGD, heavy ball or Nesterov, and where it ends.

    steps: of the measured growth, and of the random product, which takes more where its error is large; its random numbers,
    and all others, hang on `generator`. budget: until replicas are out, or until they have landed.
    Cost: some 10 random products for the critical learning rate, `replicas` x (`steps` + 2 `budget`) gradients of a batch
    at most, and an eigenvalue for each of them.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    product = _Product(dynamics, rule, curvature, steps, seed)
    critical, theory = product.critical(), product.exponent(dynamics.lr, 0.05)
    kicks = torch.randn(replicas, len(w), generator=generator, dtype=torch.float64).to(w)
    length, kicked = root_loss(objective, w), w + KICK * kicks
    lengths = free_lengths(dynamics.replicas(objective, kicked, generator), length, steps=budget, until=LEFT)
    growth, landed, settled, expected = Estimate(math.nan, math.nan, 0, "stays", False), w.new_empty(0), 0, math.inf
    if theory.value > 0:
        expected = math.log(LEFT / float(lengths[0].median())) / theory.value
        moved = dynamics.replicas(objective, w + 1e-12 * kicks, generator)
        growth = renormalised_growth(moved, w, length, steps=steps, burn_in=3 * steps // 10)
        moved = dynamics.replicas(objective, w + SHOVE * kicks[: max(2, replicas // 4)], generator)
        moved.run(budget)
        settled = int((length(moved.W) < LEFT).sum())
        landed = _tops(objective, moved.W) * dynamics.lr / (critical * curvature.sharpness)
    times, sharpness, size = _left_when(lengths), curvature.sharpness, dynamics.batch_size
    return Thrown(dynamics.lr, size, theory, growth, critical, sharpness, times, expected, landed, settled)


@dataclass(frozen=True)
class _Product:
    """The linearised steps at a minimum as a random product, by the same random numbers at every learning rate."""

    dynamics: Dynamics
    rule: UpdateRule
    curvature: ExampleCurvature
    steps: int
    seed: int

    @property
    def size(self) -> int:
        return self.dynamics.batch_size or self.curvature.num_examples

    @property
    def sampling(self) -> Sampling:
        return self.dynamics.sampling if self.dynamics.batch_size else "without_replacement"

    def at(self, lr: float) -> UpdateRule:
        """The rule at another learning rate."""
        rule = self.rule
        return UpdateRule(lr=lr, momentum=rule.momentum, dampening=rule.dampening, nesterov=rule.nesterov)

    def exponent(self, lr: float, tol: float) -> Estimate:
        """The Lyapunov exponent, a function of lr."""
        return lyapunov(
            self.curvature,
            self.at(lr),
            batch_size=self.size,
            sampling=self.sampling,
            steps=self.steps,
            generator=torch.Generator().manual_seed(self.seed),
            tol=tol,
        )

    def critical(self) -> float:
        """The learning rate at which it is zero, searched from the edge of second moments."""
        full = self.at(1.0).threshold / self.curvature.sharpness
        low = full
        if not self.rule.momentum:
            factor = batch_factor(self.curvature.num_examples, self.size, self.sampling)
            low = mean_square_lr(self.curvature.top(DIRECTIONS), factor=factor, tol=1e-2).value
        ends = min(low, 0.95 * full), min(1.3 * low, 1.05 * full)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # near its zero the exponent is not known any better than to its floor
            return critical_lr(lambda lr: self.exponent(lr, DECIDED).value, *ends)


def _left_when(lengths: Tensor) -> EscapeTimes:
    """When every replica was further away than `LEFT`; lengths (steps + 1, R)."""
    left = exits(lengths, LEFT)
    times = torch.where(left >= 0, left, len(lengths) - 1).double().cpu()
    return EscapeTimes(times, (left >= 0).cpu(), torch.zeros(len(left), dtype=torch.bool))


def _tops(objective: Objective, W: Tensor) -> Tensor:
    """The largest curvature at every row of W that is finite."""
    ends = W[W.isfinite().all(dim=1)]
    tops = [float(lanczos(hessian(objective, end), copies=False).top.values[0]) for end in ends]
    return torch.tensor(tops, dtype=torch.float64)

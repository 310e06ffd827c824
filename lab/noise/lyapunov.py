"""Do typical runs of SGD stay at a minimum? The top Lyapunov exponent of the linearised steps, a random matrix product.

    lim log|w_t - w*| / t  <=  log(rho) / 2

rho of `lab.noise.second_moments`: between the two thresholds second moments explode while almost every run converges.
Furstenberg and Kesten (1960).
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from scipy.optimize import brentq
from torch import Tensor

from lab.curvature.stability import UpdateRule
from lab.noise.example_curvature import ExampleCurvature
from lab.results import Estimate
from lab.sampling import Sampling, batch_factor

WIDENINGS = 8
"""How often the search for a critical learning rate goes on beyond the interval it was given."""
FLOOR = 2e-3
"""Error of an exponent that always does: a growth by e takes 500 steps."""
LONGEST = 10
"""Times the steps asked for that an exponent may take."""
DECIDED = 1 / 3
"""Relative error of an exponent whose sign alone is wanted, in the search for its zero."""
ROUND_OFF = 1e-12
"""The error of a growth is not below it."""


def lyapunov(
    curvature: ExampleCurvature,
    rule: UpdateRule,
    *,
    batch_size: int,
    sampling: Sampling,
    steps: int = 400,
    replicas: int = 32,
    tol: float = 0.05,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The top Lyapunov exponent of the linearised steps, growth of log|w - w*| per update: above 0 runs are thrown out.

    The product of random matrices is applied to `replicas` random vectors, made of length one after every step; the first
    quarter of the steps is left out. Batches are drawn as in training, epochs cut from permutations; momentum, Nesterov and
    decay of `rule` join in. Error: standard error over replicas, ~ 1/sqrt(replicas steps), or the change from the first half
    of the steps to the second, less two of its standard errors, where that is more: soft directions are still decaying, and
    the exponent comes out too low. `steps` are made first, then as many as bring the error below `tol` of the value
    or below `FLOOR`, `LONGEST` times `steps` at most; not converged: one warning. -inf, not converged, where a batch maps
    everything to zero. generator: on the CPU (default: a fixed seed). Cost: 4 N K r operations a step and replica;
    `matvecs` steps. Raises ValueError for a rule whose coefficients differ between weights.
    """
    generator = generator or torch.Generator().manual_seed(0)
    lengths = _lengths(curvature, rule, batch_size, sampling, replicas, generator)
    logs, most, wanted = list[Tensor](), LONGEST * steps, steps
    while True:
        logs += [length.log() for length in islice(lengths, wanted - len(logs))]
        value, error = _growth(torch.stack(logs[len(logs) // 4 :]))
        if not math.isfinite(error):
            return Estimate(value, error, len(logs), "random product", False)
        if error <= (aim := max(tol * abs(value), FLOOR)) or len(logs) >= most:
            break
        wanted = min(most, math.ceil(len(logs) * min(4.0, 1.1 * (error / aim) ** 2)) + 1)
    if error > aim:
        warnings.warn(
            f"Lyapunov exponent not converged: {value:.3g} +- {error:.1g} a step after {len(logs)} steps, wanted an error "
            f"of {aim:.2g}; raise steps (probe.linear_stability.steps, probe.escape.growth_steps) or replicas",
            stacklevel=2,
        )
    return Estimate(value, error, len(logs), "random product", error <= aim)


def sign(exponent: Estimate) -> int:
    """1: typical runs are thrown out, -1: they stay; 0 where the exponent is within two errors of 0."""
    if abs(exponent.value) <= 2 * exponent.error:
        return 0
    return int(math.copysign(1, exponent.value))


def _growth(logs: Tensor) -> tuple[float, float]:
    """Mean of the logs (steps, replicas) of the lengths; its error over replicas, or what is sure of the drift, if more."""
    half, growth = len(logs) // 2, logs.mean(0)
    drift = logs[half:].mean(0) - logs[:half].mean(0)
    if logs.shape[1] < 2:
        return float(growth.mean()), math.nan
    error, uncertain = (float(each.std()) / math.sqrt(logs.shape[1]) for each in (growth, drift))
    return float(growth.mean()), max(error, abs(float(drift.mean())) - 2 * uncertain, ROUND_OFF)


def _lengths(
    curvature: ExampleCurvature,
    rule: UpdateRule,
    batch_size: int,
    sampling: Sampling,
    replicas: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """By how much each step multiplies the lengths of the replicas (replicas,), without end."""
    lr, momentum, dampening, coupled, decoupled = coefficients(rule)
    F, num = curvature.rows, curvature.num_examples
    z = torch.randn(replicas, F.shape[1], generator=generator, dtype=torch.float64).to(F)
    velocity = torch.zeros_like(z)
    for weights in _batches(num, batch_size, sampling, replicas, generator):
        inside = (z @ F.T).reshape(replicas, num, -1) * weights.to(F)[:, :, None]
        gradient = inside.flatten(1) @ F + coupled * z
        velocity = momentum * velocity + (1 - dampening) * gradient
        z = (1 - lr * decoupled) * z - lr * (gradient + momentum * velocity if rule.nesterov else velocity)
        state = torch.cat([z, lr * velocity], 1) if momentum else z
        length = state.norm(dim=1, keepdim=True)
        yield length[:, 0]
        z, velocity = (torch.where(length > 0, v / length, 0.0) for v in (z, velocity))


def coefficients(rule: UpdateRule) -> tuple[float, float, float, float, float]:
    """lr, momentum, dampening, coupled and decoupled decay as numbers. Raises ValueError where they differ by weight."""
    values = (rule.lr, rule.momentum, rule.dampening, rule.coupled_decay, rule.decoupled_decay)
    if not rule.uniform:
        raise ValueError(
            "the parameter groups of the optimiser differ: the linearised steps need one learning rate for all"
        )
    lr, momentum, dampening, coupled, decoupled = (float(value) for value in values)
    return lr, momentum, dampening, coupled, decoupled


@dataclass(frozen=True)
class LinearSteps:
    """How training steps: a uniform rule, the batches as drawn from a probe set, and c of the whole training set."""

    rule: UpdateRule
    batch_size: int
    sampling: Sampling
    factor: float

    @classmethod
    def of(
        cls, rule: UpdateRule, batch_size: int | None, sampling: Sampling, num_train: int | None, num_examples: int
    ) -> "LinearSteps":
        """Of batches (None: the whole set) out of `num_train`, for which a probe set of `num_examples` stands."""
        total = num_train or num_examples
        sampling = sampling if batch_size else "without_replacement"
        batch_size = batch_size or total
        factor = batch_factor(total, batch_size, sampling)
        if batch_size == total and sampling != "with_replacement":
            batch_size = num_examples
        elif num_examples < total:
            sampling = "with_replacement"
        return cls(rule, batch_size, sampling, factor)

    @property
    def lr(self) -> float:
        return float(self.rule.lr)

    @property
    def decay(self) -> float:
        return float(self.rule.coupled_decay + self.rule.decoupled_decay)

    @property
    def plain(self) -> bool:
        """Whether a step is w - lr (g + decay w), which is what the second moments are about."""
        return not self.rule.momentum


def uniform_step(rule: UpdateRule, w: Tensor) -> tuple[UpdateRule | None, Tensor | None, bool]:
    """The step as one of uniform coefficients on weights in their own units: its rule, None where there is none or lr is 0;
    the scale (P,) of the columns of J that goes with it, 0 for weights that do not move (None: 1 for all); and whether that
    preconditions.

    Without decay, learning rates that differ are a preconditioner: lr_i / p_i = lr / (p_i lr / lr_i), lr the largest.
    """
    places, rule = rule.moved, rule.moving
    p, decay = rule.preconditioner, rule.coupled_decay + rule.decoupled_decay
    if isinstance(rule.lr, Tensor) and not isinstance(decay, Tensor) and not decay:
        lr = float(rule.lr.max())
        p = (lr / rule.lr).to(w) * (1.0 if p is None else p.to(w))
        rule = replace(rule, lr=lr)
    known = p is None or (bool(p.isfinite().all()) and bool((p > 0).all()))
    linear = rule.uniform and known and (p is None or not rule.coupled_decay)
    scale = None if p is None or not linear else p.to(w).rsqrt()
    preconditioned = scale is not None
    if places is not None:
        block = torch.ones_like(w[: len(places)]) if scale is None else scale
        scale = torch.zeros_like(w).index_copy(0, places.to(w.device), block)
    rule = replace(rule, preconditioner=None)
    return rule if linear and coefficients(rule)[0] > 0 else None, scale, preconditioned


def _batches(
    num: int, batch_size: int, sampling: Sampling, replicas: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Weights (replicas, N) of the examples in one batch after another: how often drawn, over the size of the batch."""
    while True:
        if sampling == "with_replacement":
            drawn = [torch.randint(num, (replicas, batch_size), generator=generator)]
        else:
            order = torch.rand(replicas, num, generator=generator).argsort(1)
            drawn = list(order.split(batch_size, 1)) if sampling == "epoch" else [order[:, :batch_size]]
        for index in drawn:
            weight = torch.full(index.shape, 1 / index.shape[1], dtype=torch.float64)
            yield torch.zeros(replicas, num, dtype=torch.float64).scatter_add_(1, index, weight)


def critical_lr(growth: Callable[[float], float], low: float, high: float, *, tol: float = 1e-2) -> float:
    """The learning rate at which growth(lr) passes through zero from below, to a relative `tol`; NaN where it does not.

    low, high: where it is expected between, e.g. the edge of mean square and that of gradient descent; the search goes
    on beyond them where it must. growth must be a deterministic function: with random numbers, the same at each call.
    """
    for _ in range(WIDENINGS):
        if growth(high) > 0:
            break
        low, high = high, 1.5 * high
    else:
        return math.nan
    for _ in range(WIDENINGS):
        if growth(low) < 0:
            return float(brentq(growth, low, high, xtol=tol * low, rtol=tol))
        low, high = low / 2, low
    return math.nan

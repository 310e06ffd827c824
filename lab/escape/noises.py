"""Noise of a chosen kind added to the gradients of replicas W (R, P), independent between replicas and steps.

    Isotropic       s xi                                             covariance s^2 1
    SampleWeights   sum_i a_i g_i(w),  a_i centred, variance 1/(n B)   covariance D(w)/B, which follows the replica
    Frozen          F xi                                             covariance F F', the same everywhere

With D(w) = (1/n) sum_i (g_i - g)(g_i - g)' the noise of one example; SampleWeights is the Gaussian of the covariance that
mini-batches of B drawn with replacement have (Wu et al., 2020), Frozen keeps the covariance of one place. At a
learning rate lr, isotropic noise of variance 2T/lr is Langevin dynamics at the temperature T, in time units of lr * steps.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.escape.replicas import ReplicaNoise
from lab.objective import Objective


def normals(rows: int, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers (rows, columns) in the dtype and on the device of `like`; drawn in single precision."""
    return torch.randn(rows, columns, generator=generator, device=generator.device).to(like)


@dataclass(frozen=True)
class IsotropicNoise(ReplicaNoise):
    """Standard deviation `std` in every coordinate of the gradient."""

    std: float

    def __post_init__(self) -> None:
        if not (self.std >= 0 and math.isfinite(self.std)):
            raise ValueError(f"std={self.std}: expected a number >= 0")

    @staticmethod
    def at_temperature(temperature: float, lr: float) -> "IsotropicNoise":
        """std = sqrt(2 T/lr): the stationary law of small steps is exp(-L/T)/Z."""
        return IsotropicNoise(math.sqrt(2 * temperature / lr))

    @staticmethod
    def of_trace(trace: float, num_params: int) -> "IsotropicNoise":
        """The isotropic noise whose covariance has this trace: std = sqrt(trace/P)."""
        return IsotropicNoise(math.sqrt(trace / num_params))

    def __call__(self, objective: Objective, W: Tensor, generator: torch.Generator) -> Tensor:
        return normals(len(W), W.shape[1], W, generator).mul_(self.std)


@dataclass(frozen=True)
class SampleWeightNoise(ReplicaNoise):
    """Gaussian with the covariance D(w)/B of mini-batches at the place where each replica is. Cost: a full gradient."""

    batch_size: float

    def __post_init__(self) -> None:
        if not (self.batch_size > 0 and math.isfinite(self.batch_size)):
            raise ValueError(f"batch_size={self.batch_size}: expected a positive number of examples")

    def weights(self, objective: Objective, W: Tensor, generator: torch.Generator) -> Tensor:
        """Centred weights a (R, n) on the examples."""
        if objective.num_examples is None:
            raise TypeError(f"{type(objective).__name__} has no examples to weight at random: use Isotropic or Frozen")
        xi = normals(len(W), objective.num_examples, W, generator)
        return xi.sub_(xi.mean(1, keepdim=True)).div_(math.sqrt(objective.num_examples * self.batch_size))

    def __call__(self, objective: Objective, W: Tensor, generator: torch.Generator) -> Tensor:
        return objective.replica_grads(W, weights=self.weights(objective, W, generator))

    def gradients(self, objective: Objective, W: Tensor, generator: torch.Generator) -> Tensor:
        """Gradient and noise in one pass: the weights 1/n + a."""
        a = self.weights(objective, W, generator)
        return objective.replica_grads(W, weights=a.add_(1 / a.shape[1]))


@dataclass(frozen=True)
class FrozenNoise(ReplicaNoise):
    """Gaussian of covariance factor factor', for factor (P, k)."""

    factor: Tensor

    @staticmethod
    def at(objective: Objective, w: Tensor, batch_size: float) -> "FrozenNoise":
        """The covariance D(w)/B of mini-batches at w (P,). Cost and memory: all per-example gradients."""
        g = objective.example_grads(w)
        return FrozenNoise((g - g.mean(0)).T / math.sqrt(len(g) * batch_size))

    def __call__(self, objective: Objective, W: Tensor, generator: torch.Generator) -> Tensor:
        return normals(len(W), self.factor.shape[1], W, generator) @ self.factor.to(W).T

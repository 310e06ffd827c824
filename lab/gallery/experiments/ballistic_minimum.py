"""The minimum of `escape_ballistic`, which fits every example; growth and landing of what leaves it."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn, optim

from lab.curvature.stability import UpdateRule
from lab.data.digits import Digits
from lab.escape.renormalised import Length
from lab.escape.replicas import Replicas
from lab.models.losses import MeanSquaredErrorCriterion
from lab.models.mlp import initialised
from lab.noise.example_curvature import ExampleCurvature
from lab.noise.lyapunov import lyapunov
from lab.objective import NetworkObjective
from lab.results import Estimate
from lab.streams import stream

PIXELS, CLASSES = 64, 10
PRODUCTS = 32
"""Random vectors behind an exponent."""


@dataclass(frozen=True)
class Minimum:
    """The minimum that fits: loss, weights, its loss, the curvatures of the examples there, how long a displacement is."""

    objective: NetworkObjective
    w: Tensor
    loss: float
    curvature: ExampleCurvature
    length: Length

    @property
    def edge(self) -> float:
        """2/S, the largest stable learning rate of gradient descent."""
        return 2 / self.curvature.sharpness


@dataclass(frozen=True)
class GrowthCell:
    """One learning rate (in units of 2/S) and batch size: growth per step of the linearised steps and of the network.

    moments: log(rho)/2, 0 where rho is at most 1; left: how many of the replicas left where they should stay, else -1.
    """

    lr: float
    batch_size: int
    exponent: Estimate
    moments: float
    growth: Estimate
    left: int

    @property
    def stays(self) -> bool:
        return not self.exponent.value > 0

    @property
    def measured(self) -> bool:
        return not self.stays and self.growth.converged

    @property
    def against_theory(self) -> Estimate:
        """Growth with the error of its difference from the exponent, which is measured too."""
        return replace(self.growth, error=math.hypot(self.growth.error, self.exponent.error))

    @property
    def name(self) -> str:
        return f"batch {self.batch_size or 'full'} at lr {self.lr:g} x 2/S"


@dataclass(frozen=True)
class Landing:
    """Where runs at lr = `start` end: S lr/2 (n,) there, and the edges of typical runs and of second moments, all x 2/S."""

    batch_size: int
    critical: float
    mean_square: float
    start: float
    ends: Tensor
    lost: int

    @property
    def end(self) -> Estimate:
        error = float(self.ends.std()) / math.sqrt(len(self.ends)) if len(self.ends) > 1 else 0.0
        return Estimate(float(self.ends.mean()), error, 0, "lanczos")

    @property
    def ratio(self) -> float:
        return self.end.value / self.critical

    @property
    def name(self) -> str:
        return str(self.batch_size or "full")


@lru_cache(maxsize=4)
def digits_loss(examples: int, hidden: int, device: torch.device) -> NetworkObjective:
    """Half the squared error of a 64-hidden-10 tanh network on the first digits, float64, pixels of variance one."""
    everything = Digits(examples="all").load(progress=False).train
    x = everything.x.double() / everything.x.double().std(correction=0)
    data = x[:examples].to(device), everything.y[:examples].to(device)
    return NetworkObjective(network(hidden, seed=0).to(device), MeanSquaredErrorCriterion(CLASSES), data)


def network(hidden: int, *, seed: int) -> nn.Module:
    """Initial weights as torch's defaults in float64, drawn in the order W1, b1, W2, b2."""
    wide = partial(nn.Linear, dtype=torch.float64)
    return initialised(
        lambda: nn.Sequential(wide(PIXELS, hidden), nn.Tanh(), wide(hidden, CLASSES)), seed=seed, init_scale=1.0
    )


def exponent(seed: int, at: Minimum, lr: float, size: int, steps: int, tol: float = 0.05) -> Estimate:
    """By the same random numbers at every call, so that it is a function of lr."""
    draws = stream(seed, "escape_ballistic/exponent", size)
    return lyapunov(
        at.curvature,
        UpdateRule(lr=lr),
        batch_size=size,
        sampling="with_replacement",
        steps=steps,
        replicas=PRODUCTS,
        generator=draws,
        tol=tol,
    )


def sgd(at: Minimum, W: Tensor, lr: float, size: int, draws: torch.Generator) -> Replicas:
    return Replicas(at.objective, W, lambda w: optim.SGD(w, lr=lr), batch_size=size or None, generator=draws)

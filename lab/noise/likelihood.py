"""The loss of a network as minus the log-likelihood of a model p(y | f) of its outputs f = f(x; w).

    score           s(f, y) = d(-log p(y | f))/df = mu(f) - T(y)      an exponential family with natural parameter f
    its covariance  S(f) = E_y[s s'],  y ~ p(. | f):  S = dmu/df = d2 loss/df2, for E_y[s] = 0

    Softmax     p_y = softmax(f)_y         mu = p           S = diag(p) - p p'     cross-entropy, label-smoothed too
    Gaussian    y ~ N(f, variance)         mu = f/variance  S = 1/variance         half squared error: variance 1
    Bernoulli   P(y = 1) = sigmoid(f)      mu = p           S = p (1 - p)          binary cross-entropy of one output

A loss is recognised by what it does, whatever its class: its slope in f differs from mu(f) by a constant of the target.
Smoothed labels move T(y) only: the model, and with it the Fisher matrix, is that of the plain softmax. Amari, Natural
gradient works efficiently in learning (1998); Martens, New insights and perspectives (2020), sections 5 and 9.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lab.objective import NetworkObjective

KNOWN = "cross-entropy (label-smoothed too), a squared error, binary cross-entropy of one output"
EXAMPLES, SPREAD = 8, 3.0
"""A loss is recognised on so many targets, at random outputs of this standard deviation."""
AGREE = 1e-5
"""How closely its slope must be that of the model, relatively: criteria may compute in float32."""


class Likelihood(ABC):
    """p(y | f) for outputs f (n, K) float64, one row an example: 1 - p of a fitted example is lost in float32."""

    @abstractmethod
    def mean(self, f: Tensor) -> Tensor:
        """mu(f) (n, K): the score is mu(f) - T(y)."""

    @abstractmethod
    def covariance_times(self, f: Tensor, a: Tensor) -> Tensor:
        """S(f) a, row by row, (n, K)."""

    @abstractmethod
    def root(self, f: Tensor, column: int) -> Tensor:
        """Column `column` < K of a root r of S = r r', row by row, (n, K)."""

    @abstractmethod
    def sampled_scores(self, f: Tensor, generator: torch.Generator) -> Tensor:
        """mu(f) - T(y) (n, K) of one label an example, drawn from p(. | f)."""


@dataclass(frozen=True)
class Softmax(Likelihood):
    """One of K >= 2 classes."""

    def mean(self, f: Tensor) -> Tensor:
        return f.softmax(1)

    def covariance_times(self, f: Tensor, a: Tensor) -> Tensor:
        p = f.softmax(1)
        return p * (a - (p * a).sum(1, keepdim=True))

    def root(self, f: Tensor, column: int) -> Tensor:
        """sqrt(p_k) (p - e_k): the score of label k, weighted by how probable it is."""
        p = f.softmax(1)
        score = p.clone()
        score[:, column] -= 1
        return p[:, column : column + 1].sqrt() * score

    def sampled_scores(self, f: Tensor, generator: torch.Generator) -> Tensor:
        p = f.softmax(1)
        labels = torch.multinomial(p.to(generator.device), 1, generator=generator)[:, 0]
        return p - functional.one_hot(labels, f.shape[1]).to(p)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """K independent numbers of the given variance around f: loss = |f - y|^2 / (2 variance)."""

    variance: float

    def mean(self, f: Tensor) -> Tensor:
        return f / self.variance

    def covariance_times(self, f: Tensor, a: Tensor) -> Tensor:
        return a / self.variance

    def root(self, f: Tensor, column: int) -> Tensor:
        unit = torch.zeros_like(f)
        unit[:, column] = self.variance**-0.5
        return unit

    def sampled_scores(self, f: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(f.shape, generator=generator, device=generator.device, dtype=f.dtype)
        return noise.to(f.device) * self.variance**-0.5


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Yes or no, K = 1: f is the logit of yes."""

    def mean(self, f: Tensor) -> Tensor:
        return f.sigmoid()

    def covariance_times(self, f: Tensor, a: Tensor) -> Tensor:
        return f.sigmoid() * (-f).sigmoid() * a

    def root(self, f: Tensor, column: int) -> Tensor:
        return (f.sigmoid() * (-f).sigmoid()).sqrt()

    def sampled_scores(self, f: Tensor, generator: torch.Generator) -> Tensor:
        p = f.sigmoid()
        return p - torch.bernoulli(p.to(generator.device), generator=generator).to(p)


def slopes(criterion: Callable[[Tensor], Tensor], f: Tensor) -> Tensor:
    """d loss_n/df_n for every example, in the shape (n, ...) of f, where the criterion is the mean of loss_n."""
    leaf = f.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(criterion(leaf), leaf, materialize_grads=True)
    return len(f) * slope


def likelihood_of(objective: NetworkObjective, w: Tensor) -> Likelihood:
    """The model whose minus log-likelihood, up to a constant of the targets, is the loss of one example.

    Recognised at random outputs for the first few targets, in float64. Raises ValueError, one line, where it is none of
    the known ones: the loss has no Fisher matrix then.
    """
    num = min(EXAMPLES, objective.chunk_size(w))
    few = objective.restrict(torch.arange(num, device=objective.y.device))
    with torch.no_grad():
        ((_, outputs, criterion),) = few.composition(w)
    shape = outputs.shape
    generator = torch.Generator().manual_seed(0)
    f, other = (SPREAD * torch.randn(shape, generator=generator, dtype=torch.float64).to(outputs.device) for _ in "12")
    change = (slopes(criterion, f) - slopes(criterion, other)).reshape(num, -1)
    f, other = f.reshape(num, -1), other.reshape(num, -1)
    scale = float((change * (f - other)).sum() / (f - other).square().sum())
    families: list[Likelihood] = [Gaussian(1 / scale)] if scale > 0 else []
    if len(shape) == 2:
        families += [Softmax()] if shape[1] > 1 else []
    if f.shape[1] == 1:
        families += [Bernoulli()]
    for family in families:
        expected = family.mean(f) - family.mean(other)
        if float((change - expected).norm()) <= AGREE * float(expected.norm()):
            return family
    name = getattr(objective.criterion, "__name__", type(objective.criterion).__name__)
    raise ValueError(
        f"{name} of outputs {tuple(outputs.shape[1:])} is no known log-likelihood of an example: it has no Fisher matrix; "
        f"known are {KNOWN}"
    )

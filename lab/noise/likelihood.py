"""The loss of an example as minus the log-likelihood of a model p(y | f) of its outputs f = f(x; w), times a scale c.

    loss of an example      c (-log p(y | f)), up to a constant of y;   p of an exponential family, f its natural parameter
    score                   s(f, y) = d loss/df = c (mu(f) - T(y)),     E_y[s] = 0 for y ~ p(. | f)
    its covariance          S(f) = E_y[s s'] = c^2 dmu/df = c d2 loss/df2

    Softmax     p_y = softmax(f)_y         mu = p           dmu/df = diag(p) - p p'   cross-entropy, label-smoothed too
    Gaussian    y ~ N(f, variance)         mu = f/variance  dmu/df = 1/variance       half squared error: variance 1
    Bernoulli   P(y = 1) = sigmoid(f)      mu = p           dmu/df = p (1 - p)        binary cross-entropy

An example may hold several independent labels: the tokens of a sequence, the pixels of an image, the labels of a multi-label
task. Its log-likelihood is then the sum over them, and c tells what the loss makes of the sum: 1/T for the mean over T
tokens, 1/K for the mean over K labels (as torch's criteria have it), 1 for the sum, any number for a loss that was scaled.
The scale of a Gaussian is its variance: c = 1.

A loss is recognised by what it does, whatever its class: its slope in f differs from c mu(f) by a constant of the target.
Smoothed labels move T(y) only: the model, and with it the Fisher matrix, is that of the plain softmax. Amari, Natural
gradient works efficiently in learning (1998); Martens, New insights and perspectives (2020), sections 5 and 9.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from lab.objective import NetworkObjective

KNOWN = (
    "cross-entropy (label-smoothed too), a squared error, binary cross-entropy, of one label or several, any multiple"
)
EXAMPLES, SPREAD = 8, 3.0
"""A loss is recognised on so many targets, at random outputs of this standard deviation."""
AGREE = 1e-5
"""How closely its slope must be that of the model, relatively: criteria may compute in float32."""


class Likelihood(ABC):
    """p(y | f) and the scale c, for outputs f (n, M), one row an example; what is below is of the loss, c included.

    In float64: 1 - p of a fitted example is lost in float32.
    """

    scale: float

    @abstractmethod
    def mean(self, f: Tensor) -> Tensor:
        """c mu(f) (n, M): the score is c (mu(f) - T(y))."""

    @abstractmethod
    def covariance_times(self, f: Tensor, a: Tensor) -> Tensor:
        """S(f) a, row by row, (n, M)."""

    @abstractmethod
    def root(self, f: Tensor, column: int) -> Tensor:
        """Column `column` < M of a root r of S = r r', row by row, (n, M)."""

    @abstractmethod
    def sampled_scores(self, f: Tensor, generator: torch.Generator) -> Tensor:
        """c (mu(f) - T(y)) (n, M) of labels drawn from p(. | f), one set an example."""

    def labels(self, f: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
        """For each label of an example the scores (n, M) of all its values, zero for the other labels, and how probable they
        are (values, n); nothing where labels are real numbers.
        """
        yield from ()


@dataclass(frozen=True)
class Softmax(Likelihood):
    """One of K >= 2 classes, for each of M/K labels. classes: K (None: M); inner: outputs between those of two classes of
    one label, as of (K, T) or (K, H, W), where classes come first; 1 where they come last.
    """

    classes: int | None = None
    inner: int = 1
    scale: float = 1.0

    def _rows(self, f: Tensor) -> Tensor:
        """(n, M) as (n, labels, K)."""
        return f.reshape(len(f), -1, self.classes or f.shape[1] // self.inner, self.inner).transpose(2, 3).flatten(1, 2)

    def _flat(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `_rows`."""
        return rows.reshape(len(like), -1, self.inner, rows.shape[2]).transpose(2, 3).reshape(like.shape)

    def mean(self, f: Tensor) -> Tensor:
        return self.scale * self._flat(self._rows(f).softmax(2), f)

    def covariance_times(self, f: Tensor, a: Tensor) -> Tensor:
        p, a = self._rows(f).softmax(2), self._rows(a.expand_as(f))
        return self.scale**2 * self._flat(p * (a - (p * a).sum(2, keepdim=True)), f)

    def root(self, f: Tensor, column: int) -> Tensor:
        """sqrt(p_k) c (p - e_k): the score of class k of one label, weighted by how probable it is."""
        p = self._rows(f).softmax(2)
        label, k = divmod(column, p.shape[2])
        return p[:, label, k].sqrt()[:, None] * self._score(p, f, label, k)

    def sampled_scores(self, f: Tensor, generator: torch.Generator) -> Tensor:
        p = self._rows(f).softmax(2)
        labels = torch.multinomial(p.flatten(0, 1).to(generator.device), 1, generator=generator).to(p.device)
        drawn = functional.one_hot(labels[:, 0], p.shape[2]).to(p).reshape(p.shape)
        return self.scale * self._flat(p - drawn, f)

    def labels(self, f: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
        p = self._rows(f).softmax(2)
        for label in range(p.shape[1]):
            yield [self._score(p, f, label, k) for k in range(p.shape[2])], p[:, label].T

    def _score(self, p: Tensor, f: Tensor, label: int, k: int) -> Tensor:
        """That of class k of one label, zero for the others."""
        score = torch.zeros_like(p)
        score[:, label] = p[:, label]
        score[:, label, k] -= 1
        return self.scale * self._flat(score, f)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """M independent numbers of the given variance around f: loss = |f - y|^2 / (2 variance)."""

    variance: float
    scale: float = 1.0

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
    """Yes or no, for each of M labels: f is the logit of yes."""

    scale: float = 1.0

    def mean(self, f: Tensor) -> Tensor:
        return self.scale * f.sigmoid()

    def covariance_times(self, f: Tensor, a: Tensor) -> Tensor:
        return self.scale**2 * f.sigmoid() * (-f).sigmoid() * a

    def root(self, f: Tensor, column: int) -> Tensor:
        root = torch.zeros_like(f)
        root[:, column] = self.scale * (f.sigmoid() * (-f).sigmoid()).sqrt()[:, column]
        return root

    def sampled_scores(self, f: Tensor, generator: torch.Generator) -> Tensor:
        p = f.sigmoid()
        return self.scale * (p - torch.bernoulli(p.to(generator.device), generator=generator).to(p))

    def labels(self, f: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
        for column in range(f.shape[1]):
            yes, no = torch.zeros_like(f), torch.zeros_like(f)
            p, q = f[:, column].sigmoid(), (-f[:, column]).sigmoid()
            yes[:, column], no[:, column] = -self.scale * q, self.scale * p
            yield [yes, no], torch.stack([p, q])


def slopes(criterion: Callable[[Tensor], Tensor], f: Tensor, num: int) -> Tensor:
    """d loss_n/df_n for each of `num` examples, in the shape of the outputs f, where the criterion is the mean of loss_n."""
    leaf = f.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(criterion(leaf), leaf, materialize_grads=True)
    return num * slope


def likelihood_of(objective: NetworkObjective, w: Tensor) -> Likelihood:
    """The model whose minus log-likelihood, up to a constant of the targets and a scale, is the loss of one example.

    Recognised at random outputs for the first few targets, in float64, in outputs (N,), (N, K), (N, T, K), (N, K, T), ...,
    and (N T, K) where an example has several rows. Raises ValueError, one line, where it is none of the known ones: the loss
    has no Fisher matrix then.
    """
    num = min(EXAMPLES, objective.chunk_size(w))
    few = objective.restrict(torch.arange(num, device=objective.y.device))
    with torch.no_grad():
        ((_, outputs, criterion),) = few.composition(w)
    shape = outputs.shape[1:] if len(outputs) == num else (len(outputs) // num, *outputs.shape[1:])
    generator = torch.Generator().manual_seed(0)
    f, other = (
        SPREAD * torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs.device) for _ in "12"
    )
    try:
        change = (slopes(criterion, f, num) - slopes(criterion, other, num)).reshape(num, -1)
    except RuntimeError as error:  # of a criterion that expects probabilities
        raise _unknown(objective, outputs, f" ({str(error).strip().splitlines()[0]})") from None
    f, other = f.reshape(num, -1), other.reshape(num, -1)
    for family in _families(shape):
        expected = family.mean(f) - family.mean(other)
        scale = float((change * expected).sum() / expected.square().sum())
        if scale > 0 and float((change - scale * expected).norm()) <= AGREE * scale * float(expected.norm()):
            if isinstance(family, Gaussian):
                return Gaussian(1 / scale)
            return replace(family, scale=_rounded(scale, f.shape[1]))  # type: ignore[type-var]
    raise _unknown(objective, outputs)


def _families(shape: tuple[int, ...]) -> Iterator[Likelihood]:
    """Candidates for the outputs of one example: classes may lie along any axis."""
    yield Gaussian(1.0)
    yield Bernoulli()
    for axis, classes in enumerate(shape):
        if classes > 1:
            inner = math.prod(shape[axis + 1 :])
            yield Softmax() if classes == math.prod(shape) else Softmax(classes, inner)


def _rounded(scale: float, size: int) -> float:
    """1, or 1 over a whole number up to the number of outputs, where the scale is that within `AGREE`: a sum or a mean."""
    whole = round(1 / scale) if 1 / scale < size + 0.5 else 0
    return 1 / whole if whole and abs(scale * whole - 1) <= AGREE else scale


def _unknown(objective: NetworkObjective, outputs: Tensor, why: str = "") -> ValueError:
    name = getattr(objective.criterion, "__name__", type(objective.criterion).__name__)
    return ValueError(
        f"{name} of outputs {tuple(outputs.shape[1:])} is no known log-likelihood of an example: it has no Fisher matrix; "
        f"known are {KNOWN}{why}"
    )

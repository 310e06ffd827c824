"""The Fisher matrices of a network, side by side and never taken for one another.

    F = (1/N) sum over examples n of J_n' M_n J_n,   J_n = df_n/dw (K, P),   s = d loss/df the score

    true         M_n = E[s s'] over labels drawn from the model      exact: M_n = diag(p) - p p' for the softmax
    sampled      M_n = (1/m) sum of s s' over m such labels          unbiased for the true one
    empirical    M_n = s s' at the label in the data                 `lab.noise.covariance`, not centred: no J'MJ is needed
    Gauss-Newton M_n = d2 loss/df2                                   `lab.curvature.operators.gauss_newton`

For a log-likelihood in its natural parameters the true Fisher is the Gauss-Newton matrix, at any w and whatever the labels;
it is also the Hessian of w' -> mean KL(p_w || p_w') at w' = w. The empirical one comes near it only where the model holds
(labels as if drawn from it), and the Hessian only where residual = H - Gauss-Newton is small: three statements, each of
which is often made for another. Amari (1998); Martens (2020), sections 5 and 9; Kunstner, Balles and Hennig (2019).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lab.curvature.anatomy import require_examples, take_apart
from lab.curvature.operators import Curvature, Product
from lab.noise.likelihood import Likelihood, likelihood_of
from lab.objective import NetworkObjective, Objective, directional
from lab.results import Estimate

Columns = list[Callable[[Tensor, slice], Tensor]]
"""Columns r of a root M = sum of r r': functions of the outputs f (n, K) float64 and of the examples they belong to."""


class OutputMetric(Curvature):
    """(1/N) sum of J_n' M_n J_n with M_n (K, K) positive semidefinite, a metric in the space of outputs.

    Cost: that of a Gauss-Newton product. Raises TypeError without a network, ValueError for train-mode BatchNorm.
    """

    def __init__(self, network: NetworkObjective, w: Tensor, *, memory: int | None = None):
        self.network = network
        super().__init__(network, w, memory=memory)

    @abstractmethod
    def times(self, f: Tensor, examples: slice, a: Tensor) -> Tensor:
        """M_n a_n, row by row, of outputs f (n, K) of these examples; float64."""

    @abstractmethod
    def columns(self) -> Columns:
        """The columns of a root of M: as many backward passes is what the exact trace costs."""

    def parts(self, objective: Objective, leaf: Tensor) -> Iterator[tuple[float, Tensor, Tensor, Product]]:
        begin = 0
        for weight, outputs, criterion in objective.composition(leaf):
            examples = slice(begin, begin := begin + len(outputs))
            f = outputs.detach().requires_grad_()
            loss = criterion(f)
            u = torch.autograd.grad(loss, f, materialize_grads=True)[0].requires_grad_()
            g = objective.slope(outputs, leaf, u)
            times = partial(self.times, f.detach().flatten(1).double(), examples)
            yield weight, loss, g, partial(_pulled_back, leaf, outputs, u, g, times)

    def trace(self, w: Tensor) -> Estimate:
        """Tr F, exact: the squared norms |J_n' r_n|^2 of every column r, without per-example gradients.

        Raises TypeError where the network has layers that cannot be taken apart.
        """
        anatomy, columns = take_apart(self.network, w), self.columns()
        total, begin = 0.0, 0
        for chunk in anatomy.chunks(w):
            examples = slice(begin, begin := begin + len(chunk.outputs))
            f = chunk.outputs.detach().flatten(1).double()
            for column in columns:
                total += chunk.weight * float(chunk.squared_norms(column(f, examples).to(w.dtype)).mean())
        return Estimate(total, 0.0, len(columns), "columns", math.isfinite(total))


class TrueFisher(OutputMetric):
    """The exact expectation over labels of the model."""

    def __init__(self, network: NetworkObjective, w: Tensor, likelihood: Likelihood, *, memory: int | None = None):
        self.likelihood = likelihood
        super().__init__(network, w, memory=memory)
        with torch.no_grad():
            self.num_outputs = network._outputs(w, network.x[:1]).numel()

    def times(self, f: Tensor, examples: slice, a: Tensor) -> Tensor:
        return self.likelihood.covariance_times(f, a)

    def columns(self) -> Columns:
        def column(f: Tensor, examples: slice, *, k: int) -> Tensor:
            return self.likelihood.root(f, k)

        return [partial(column, k=k) for k in range(self.num_outputs)]


class ScoreFisher(OutputMetric):
    """The mean of s s' over given scores (m, N, K)."""

    def __init__(self, network: NetworkObjective, w: Tensor, scores: Tensor, *, memory: int | None = None):
        self.scores = scores
        super().__init__(network, w, memory=memory)

    def times(self, f: Tensor, examples: slice, a: Tensor) -> Tensor:
        s = self.scores[:, examples]
        return ((s * a).sum(2, keepdim=True) * s).mean(0)

    def columns(self) -> Columns:
        def column(f: Tensor, examples: slice, *, scores: Tensor) -> Tensor:
            return scores[examples] / math.sqrt(len(self.scores))

        return [partial(column, scores=scores) for scores in self.scores]


def true_fisher(objective: Objective, w: Tensor, *, memory: int | None = None) -> TrueFisher:
    """F = mean over examples of E[g g'], g the gradient of -log p(y | x; w), y drawn from the model itself.

    The expectation is exact; the labels of the data do not enter. `memory` as in `lab.curvature.operators.hessian`. Cost:
    1 to 1.6 gradients now, then that of a Gauss-Newton product. Raises TypeError without a network, ValueError for
    train-mode BatchNorm and for a loss that is no known log-likelihood (`lab.noise.likelihood`).
    """
    network = require_examples(objective, w)
    return TrueFisher(network, w, likelihood_of(network, w), memory=memory)


def sampled_fisher(
    objective: Objective, w: Tensor, *, generator: torch.Generator, draws: int = 1, memory: int | None = None
) -> ScoreFisher:
    """The same from `draws` labels an example, drawn from the model once: unbiased, of variance ~ 1/(N draws).

    Cost, memory and errors as `true_fisher`; ValueError for draws < 1.
    """
    network = require_examples(objective, w)
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least one label an example")
    likelihood = likelihood_of(network, w)
    f = torch.cat([outputs for outputs, _ in _passes(network, w)]).flatten(1).double()
    scores = torch.stack([likelihood.sampled_scores(f, generator) for _ in range(draws)])
    return ScoreFisher(network, w, scores, memory=memory)


def _passes(network: NetworkObjective, w: Tensor) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Outputs and criterion of every chunk, no graph kept."""
    with torch.no_grad():
        for _, outputs, criterion in network.composition(w.detach()):
            yield outputs, criterion


def _pulled_back(leaf: Tensor, outputs: Tensor, u: Tensor, g: Tensor, times: Product, v: Tensor) -> Tensor:
    """J' M J v, with g = J'u; the mean over the examples of the part."""
    curved = times(directional(g, u, v).flatten(1).double()) / len(outputs)
    (product,) = torch.autograd.grad(
        outputs, leaf, curved.to(outputs.dtype).view_as(outputs), retain_graph=True, materialize_grads=True
    )
    return product

"""The Fisher matrices of a network, side by side and never taken for one another.

    F = (1/N) sum over examples n of J_n' M_n J_n,   J_n = df_n/dw (M, P),   s = d loss/df the score

    true         M_n = E[s s'] over labels drawn from the model      exact: M_n = diag(p) - p p' for the softmax
    sampled      M_n = (1/m) sum of s s' over m such labels          unbiased for the true one
    empirical    M_n = s s' at the label in the data                 `lab.noise.covariance`, not centred: no J'MJ is needed
    Gauss-Newton M_n = d2 loss/df2                                   `lab.curvature.operators.gauss_newton`

All are in the unit of the gradient g_n of the loss of one example: true = mean E[g_n g_n'], the empirical one with labels
drawn from the model, so that it can be held against the noise of mini-batches. Gauss-Newton is in the unit of the loss.
Where the loss of an example is c (-log p) in natural parameters (`lab.noise.likelihood`), at any w and whatever the labels,

    true Fisher = c Gauss-Newton,        Gauss-Newton = Hessian of w' -> c mean KL(p_w || p_w') at w' = w

c = 1: they are one, for a single label and for the sum over several. The mean over T tokens or K labels has c = 1/T, 1/K:
the gradient of an example is then a mean of as many independent scores, of smaller variance; the curvature is not smaller.
The Fisher information of an example as a whole, in -log p, is true / c^2; that of one of its labels, on average, is
Gauss-Newton.

The empirical one comes near the true one only where the model holds (labels as if drawn from it), and the Hessian near
Gauss-Newton only where residual = H - Gauss-Newton is small: three statements, each of which is often made for another.
Amari (1998); Martens (2020), sections 5 and 9; Kunstner, Balles and Hennig (2019).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lab.curvature.operators import Curvature, Product
from lab.layers.anatomy import output_passes, require_examples
from lab.noise.likelihood import Likelihood, likelihood_of
from lab.objective import NetworkObjective, Objective, directional
from lab.results import Estimate

Columns = list[Callable[[Tensor, slice], Tensor]]
"""Columns r of a root M = sum of r r': functions of the outputs f (n, M) float64 and of the examples they belong to."""


class OutputMetric(Curvature):
    """(1/N) sum of J_n' M_n J_n with M_n (M, M) positive semidefinite, a metric in the space of the M outputs of an example.

    Cost: that of a Gauss-Newton product. Raises TypeError without a network, ValueError for train-mode BatchNorm.
    """

    def __init__(self, network: NetworkObjective, w: Tensor, *, memory: int | None = None):
        self.network = network
        super().__init__(network, w, memory=memory)

    @abstractmethod
    def times(self, f: Tensor, examples: slice, a: Tensor) -> Tensor:
        """M_n a_n, row by row, of outputs f (n, M) of these examples; float64."""

    @abstractmethod
    def columns(self) -> Columns:
        """The columns of a root of M: as many backward passes is what the exact trace costs."""

    def parts(self, objective: Objective, leaf: Tensor) -> Iterator[tuple[float, Tensor, Tensor, Product]]:
        begin = 0
        for weight, outputs, criterion in objective.composition(leaf):
            examples = slice(begin, begin := begin + round(weight * len(self.network.x)))
            f = outputs.detach().requires_grad_()
            loss = criterion(f)
            u = torch.autograd.grad(loss, f, materialize_grads=True)[0].requires_grad_()
            g = objective.slope(outputs, leaf, u)
            times = partial(self.times, _by_example(f, examples), examples)
            yield weight, loss, g, partial(_product, leaf, outputs, u, g, examples, times)

    def trace(self, w: Tensor) -> Estimate:
        """Tr F, exact: the squared norms |J_n' r_n|^2 of every column r, in as many backward passes, without per-example
        gradients but where the network has layers that cannot be taken apart: those are formed (`lab.layers.examples`).
        """
        columns, total, begin = self.columns(), 0.0, 0
        for each in output_passes(self.network, w):
            examples = slice(begin, begin := begin + each.num)
            f = _by_example(each.outputs, examples)
            norms = each.pulled_norms(column(f, examples).to(w.dtype) for column in columns)
            total += sum(each.weight * float(norm.mean()) for norm in norms)
        return Estimate(total, 0.0, len(columns), "columns", math.isfinite(total))


class TrueFisher(OutputMetric):
    """The exact expectation over labels of the model."""

    def __init__(self, network: NetworkObjective, w: Tensor, likelihood: Likelihood, *, memory: int | None = None):
        self.likelihood = likelihood
        super().__init__(network, w, memory=memory)
        with torch.no_grad():
            self.num_outputs = network.outputs(w, network.x[:1]).numel()

    def times(self, f: Tensor, examples: slice, a: Tensor) -> Tensor:
        return self.likelihood.covariance_times(f, a)

    def columns(self) -> Columns:
        def column(f: Tensor, examples: slice, *, k: int) -> Tensor:
            return self.likelihood.root(f, k)

        return [partial(column, k=k) for k in range(self.num_outputs)]


class ScoreFisher(OutputMetric):
    """The mean of s s' over given scores (m, N, M)."""

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
    """F = mean over examples of E[g g'], g the gradient of the loss of one example c (-log p(y | x; w)), y drawn from the
    model itself.

    It is c times the Gauss-Newton matrix: c = 1 for one label an example and for the sum over several, 1/T for the mean
    over T tokens, 1/K for that over K labels (head of this file); `likelihood.scale` of the result tells. The expectation
    is exact; the labels of the data do not enter. Outputs of any shape whose first dimension is the examples. `memory` as in
    `lab.curvature.operators.hessian`. Cost: 1 to 1.6 gradients now, then that of a Gauss-Newton product. Raises TypeError
    without a network, ValueError for train-mode BatchNorm and for a loss that is no known log-likelihood
    (`lab.noise.likelihood`).
    """
    network = require_examples(objective)
    return TrueFisher(network, w, likelihood_of(network, w), memory=memory)


def sampled_fisher(
    objective: Objective, w: Tensor, *, generator: torch.Generator, draws: int = 1, memory: int | None = None
) -> ScoreFisher:
    """The same from `draws` labels an example, drawn from the model once: unbiased, of variance ~ 1/(N draws).

    Cost, memory and errors as `true_fisher`; ValueError for draws < 1.
    """
    network = require_examples(objective)
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least one label an example")
    likelihood = likelihood_of(network, w)
    with torch.no_grad():
        passes = [outputs for _, outputs, _ in network.composition(w.detach())]
    f = _by_example(torch.cat(passes), slice(0, len(network.x)))
    scores = torch.stack([likelihood.sampled_scores(f, generator) for _ in range(draws)])
    return ScoreFisher(network, w, scores, memory=memory)


def _by_example(outputs: Tensor, examples: slice) -> Tensor:
    """Outputs of these examples, whatever their shape, as (n, M) float64."""
    return outputs.detach().reshape(examples.stop - examples.start, -1).double()


def _product(leaf: Tensor, outputs: Tensor, u: Tensor, g: Tensor, examples: slice, times: Product, v: Tensor) -> Tensor:
    """J' M J v, with g = J'u; the mean over the examples of the part."""
    along = _by_example(directional(g, u, v), examples)
    curved = times(along) / len(along)
    (product,) = torch.autograd.grad(
        outputs, leaf, curved.to(outputs.dtype).view_as(outputs), retain_graph=True, materialize_grads=True
    )
    return product

"""The matrices of the Fisher probe as operators on the same examples, and their traces from records of the layers."""

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lab.curvature.operators import GaussNewton, Hessian, LinearOperator, difference
from lab.curvature.trace import gauss_newton_trace, hessian_trace
from lab.curvature.vectors import norm
from lab.layers.anatomy import Anatomy, take_apart
from lab.layers.recorder import Recording
from lab.noise.covariance import Covariance
from lab.noise.information import ScoreFisher, TrueFisher
from lab.noise.likelihood import Likelihood
from lab.noise.size import trace
from lab.objective import NetworkObjective
from lab.results import Estimate
from lab.streams import random_signs

MATRICES = ("true", "sampled", "empirical", "covariance", "gauss_newton", "hessian", "residual")
BLIND = 100
"""A difference of matrices is nothing but round-off where its norm is below so many eps of theirs."""
TRACE_TOL = 0.01
"""Wanted error of Tr H relative to itself."""
MOST_OUTPUTS = 100
"""Outputs up to which the traces of the true Fisher and of G are exact, at a backward pass for each; sampled beyond."""
REDRAWS = 10
"""Draws of labels that are real numbers, from which the variance of the sampled trace is estimated."""


@dataclass(frozen=True)
class Matrices:
    """The matrices of an objective at w: five operators and D; R comes with their products."""

    objective: NetworkObjective
    w: Tensor
    true: TrueFisher
    sampled: ScoreFisher
    noise: Covariance
    gauss_newton: GaussNewton
    hessian: Hessian

    def products(self, v: Tensor) -> Tensor:
        """Rows A v (7, P) in the order of `MATRICES`; those in the unit of the gradient over c, so that differences say
        something: true / c = G.
        """
        true, sampled, empirical, G, H = (operator @ v for operator in self.five)
        noise = torch.stack([true, sampled, empirical, self.noise @ v])
        return torch.cat([noise / self.true.likelihood.scale, torch.stack([G, H, H - G])])

    @property
    def units(self) -> Tensor:
        """What the rows of `products` are to be multiplied by, (7,) float64."""
        return torch.tensor([self.true.likelihood.scale] * 4 + [1.0] * 3, dtype=torch.float64)

    @cached_property
    def empirical(self) -> Covariance:
        return Covariance(self.noise.examples, centred=False, dtype=self.noise.dtype)

    @property
    def five(self) -> tuple[LinearOperator, ...]:
        return self.true, self.sampled, self.empirical, self.gauss_newton, self.hessian

    @property
    def matvecs(self) -> int:
        """Products so far."""
        return sum(operator.matvecs for operator in (*self.five, self.noise))

    def all(self, generator: torch.Generator) -> dict[str, LinearOperator]:
        """An operator for every matrix; R only where it is more than round-off."""
        R = difference(self.hessian, self.gauss_newton)
        operators = dict(zip(MATRICES, (*self.five[:3], self.noise, *self.five[3:], R), strict=True))
        z = random_signs((len(self.w),), self.w, generator)
        if norm(R @ z) <= BLIND * torch.finfo(z.dtype).eps * norm(self.hessian @ z):
            del operators["residual"]
        return operators

    def traces(self, generator: torch.Generator) -> dict[str, Estimate]:
        """Those that records of the layers give: exact but for H and R, which are where outputs are piecewise linear."""
        D = trace(self.objective, self.w)
        traces = {"empirical": Estimate(D.mean_square, 0.0, 1, "exact")}
        traces["covariance"] = Estimate(D.value, D.round_off, D.matvecs, D.method)
        with suppress(TypeError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error of Tr H is reported; no setting of this probe would change it
            anatomy = take_apart(self.objective, self.w)  # else the traces are those of the random vectors: TypeError
            few = self.true.num_outputs <= MOST_OUTPUTS
            error = self._label_error(anatomy, generator) if few else math.nan
            traces["sampled"] = replace(self.sampled.trace(self.w), error=error)
            if few:
                traces |= {"true": self.true.trace(self.w), "gauss_newton": gauss_newton_trace(self.objective, self.w)}
            if few and anatomy.piecewise_linear:  # R has no diagonal
                traces |= {"hessian": traces["gauss_newton"], "residual": Estimate(0.0, 0.0, 0, "exact")}
                return traces
            traces["hessian"] = H = hessian_trace(self.objective, self.w, tol=TRACE_TOL, generator=generator)
            if few:
                traces["residual"] = Estimate(H.value - traces["gauss_newton"].value, H.error, 0, "difference")
        return traces

    def _label_error(self, anatomy: Anatomy, generator: torch.Generator) -> float:
        """Standard error of the trace of the sampled Fisher: it is the mean of |J_n's|^2 over examples and labels drawn."""
        total, likelihood = 0.0, self.true.likelihood
        for chunk in anatomy.chunks(self.w):
            total += (chunk.weight / chunk.num) ** 2 * float(label_variance(chunk, likelihood, generator).sum())
        return math.sqrt(total / len(self.sampled.scores))


def label_variance(chunk: Recording, likelihood: Likelihood, generator: torch.Generator) -> Tensor:
    """Var_y |J_n's(y)|^2 of every example (n,) float64, s(y) the score of labels y drawn from the model.

    Exact for one label among classes, sum_k p_k (q_k - sum_j p_j q_j)^2 with q_k = |J_n'(p - e_k)|^2, at a backward pass
    each: a class of small probability has a large q and is seldom drawn, so draws would miss it. Real labels are drawn,
    `REDRAWS` times; so are several labels an example, and the sum of their exact ones is what it is at least.
    """
    f = chunk.outputs.detach().reshape(chunk.num, -1).double()

    def squares(scores: list[Tensor]) -> Tensor:
        return torch.stack([chunk.squared_norms(s.to(chunk.outputs.dtype)) for s in scores])

    exact, labels = f.new_zeros(len(f)), 0
    for scores, p in likelihood.labels(f):
        q, labels = squares(scores), labels + 1
        exact += (p * (q - (p * q).sum(0)).square()).sum(0)
    if labels == 1:
        return exact
    return torch.maximum(exact, squares([likelihood.sampled_scores(f, generator) for _ in range(REDRAWS)]).var(0))

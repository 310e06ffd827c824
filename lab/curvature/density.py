"""Spectral density phi(x) = (1/P) sum_i delta(x - lambda_i) of a symmetric operator, by stochastic Lanczos quadrature.

For a unit vector z the numbers (u_i'z)^2 add up to 1: a measure on the eigenvalues, with z'f(A)z as the integral of f. For
random z on the sphere every eigenvalue has the weight 1/P in the mean, so that

    E z'f(A)z = Tr f(A) / P,      z'f(A)z  =  sum_j tau_j^2 f(theta_j)

where the sum is the Gauss rule of that measure. Lanczos from z delivers it: T is the Jacobi matrix of the polynomials that
are orthogonal in the measure, since q_j = p_j(A) z; its eigenvalues theta_j are the nodes, and the squares of the first
entries tau_j of its eigenvectors the weights (`lab.curvature.quadrature`). m steps integrate polynomials up to degree
2 m - 1 exactly. Golub and Meurant 2010; Ubaru, Chen and Saad 2017; for networks Ghorbani, Krishnan and Xiao 2019
(arXiv 1901.10159).

Eigenvalues already known are taken out: their share is exact, and the quadrature is left with the rest, whose variance
is that of a bulk and no longer that of lambda_1. The error needs no repetition: on the sphere
Var z'f(A)z = 2 / (P + 2) (<f^2> - <f>^2), <f> = Tr f(A) / P, and these averages are quadratures themselves. Their own
variance says how many degrees of freedom the error rests on, and so by how much it is widened: as many as there are vectors
where one eigenvalue outweighs the others, P times more in a flat spectrum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lab.curvature.operators import LinearOperator
from lab.curvature.probing import widening
from lab.curvature.quadrature import gauss_rules
from lab.results import Density, Eigenpairs, Estimate

METHOD = "Lanczos quadrature"
RESOLVED = 0.05
"""Error relative to the number itself up to which one of the density counts as converged."""
WIDTH = 0.8
"""Smoothing where no sigma is given: sigma = WIDTH / steps of the range, 1 % at 80 steps. Ritz values of a bulk that fills
the range lie up to pi / (2 steps) of it apart: two sigma, where a sum of Gaussians has lost its ripples."""
SPAN = 5.0
"""The grid reaches this many sigma beyond the extreme eigenvalues: 6e-7 of the mass lies outside."""


@dataclass(frozen=True)
class SpectralDensity(Density):
    """A density that knows how many eigenvalues it stands for, and so the traces behind it, with their errors.

    size is P; the first `exact` nodes are known eigenvalues (of weight 1/P) and carry no error; coupling is what Tr A^2
    has beside the squares of the nodes, twice the squared residuals of the known pairs.
    """

    size: int
    exact: int = 0
    coupling: float = 0.0

    def mean(self, f: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """(1/P) Tr f(A) and its standard error, widened by Student's t, for f applied entry by entry."""
        values = f(self.nodes)
        mean = float((self.weights * values).sum(1).mean())
        rest, num = self.size - self.exact, len(self.nodes)
        weights = self.weights[:, self.exact :] * self.size / max(rest, 1)
        centred = values[:, self.exact :] - (weights * values[:, self.exact :]).sum(1).mean()
        second, fourth = (float((weights * centred**power).sum(1).mean()) for power in (2, 4))
        if not second > 0:
            return mean, second
        freedom = max(num, num * (rest + 2) / max(fourth / second**2 - 1, 1e-9))
        return mean, rest / self.size * math.sqrt(2 / (rest + 2) * second / num) * widening(freedom)

    def moment(self, power: int) -> Estimate:
        """Tr A^power / P, up to power 2 steps - 1. With known pairs exact to second order in their residuals."""
        mean, error = self.mean(lambda x: x**power)
        return self._estimate(mean + (self.coupling / self.size if power == 2 else 0.0), error)

    @property
    def trace(self) -> Estimate:
        """Tr A."""
        mean = self.moment(1)
        return self._estimate(self.size * mean.value, self.size * mean.error)

    @property
    def frobenius(self) -> Estimate:
        """|A|_F = sqrt(Tr A^2)."""
        mean = self.moment(2)
        norm = math.sqrt(self.size * mean.value)
        return self._estimate(norm, self.size * mean.error / (2 * norm) if norm else 0.0)

    @property
    def negative_mass(self) -> Estimate:
        """sum of |negative eigenvalues| / sum of |eigenvalues|, in [0, 1]; NaN for A = 0.

        |x| is no polynomial: beside the standard error there is that of the quadrature, by which 1.96 errors cover what the
        share would be if the eigenvalues that the nodes next to zero stand for lay at zero.
        """
        below, _ = self.mean(lambda x: (-x).clamp(min=0))
        total, _ = self.mean(torch.abs)
        if not total > 0:
            return self._estimate(math.nan, math.nan)
        share = below / total
        _, error = self.mean(lambda x: ((-x).clamp(min=0) - share * x.abs()) / total)
        return self._estimate(share, math.hypot(error, self._next_to_zero() / total / 1.96))

    def _next_to_zero(self) -> float:
        """Weight times distance from zero of the node next to it, mean over the vectors, on the side where it is more."""
        nodes, weights = self.nodes[:, self.exact :], self.weights[:, self.exact :]
        total = 0.0
        for side in (-nodes, nodes) if self.exact < self.size else ():
            distance, place = side.masked_fill((side < 0) | (weights == 0), math.inf).min(1)
            near = distance.isfinite()
            total = max(total, float((distance * weights.gather(1, place[:, None])[:, 0])[near].sum()) / len(nodes))
        return total

    @property
    def effective_rank(self) -> Estimate:
        """(Tr A)^2 / Tr A^2: of n equal eigenvalues beside zeros it is n. NaN for A = 0."""
        first, second = self.moment(1).value, self.moment(2).value
        if not second > 0:
            return self._estimate(math.nan, math.nan)
        _, error = self.mean(lambda x: 2 * first / second * x - (first / second) ** 2 * x**2)
        return self._estimate(self.size * first**2 / second, self.size * error)

    def above(self, x: float) -> Estimate:
        """The number of eigenvalues above x."""
        mean, error = self.mean(lambda nodes: (nodes > x).to(nodes.dtype))
        return self._estimate(self.size * mean, self.size * error)

    @property
    def bulk_edge(self) -> float:
        """Where the bulk ends: going up from the peak, the first x with less than one eigenvalue per smoothing width.

        In a formula, P phi(x) sqrt(2 pi) sigma < 1; a lone eigenvalue reaches 1 at its own place. Neighbours farther
        apart than that width, 2.5 sigma, are no longer one bulk. The smoothing moves the edge out by up to 5 sigma.
        """
        if not bool(self.values.isfinite().all()):
            return math.nan
        crowd = self.size * self.values * math.sqrt(2 * math.pi) * self.sigma
        peak = int(self.values.argmax())
        empty = (crowd[peak:] < 1).nonzero()
        return float(self.grid[peak + int(empty[0])] if len(empty) else self.grid[-1])

    @property
    def outliers(self) -> Estimate:
        """The number of eigenvalues above the `bulk_edge`; exact as far as they are among the known ones."""
        edge = self.bulk_edge
        return self.above(edge) if math.isfinite(edge) else self._estimate(math.nan, math.nan)

    def _estimate(self, value: float, error: float) -> Estimate:
        converged = math.isfinite(value) and error <= RESOLVED * abs(value)
        return Estimate(value, error, self.matvecs, METHOD, converged)


def density(
    operator: LinearOperator,
    *,
    steps: int = 80,
    vectors: int = 3,
    sigma: float | None = None,
    grid: int = 1024,
    known: Eigenpairs | None = None,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    """The spectral density of `operator`, smoothed with Gaussians of width sigma on `grid` points.

    steps      Lanczos steps per vector. The picture resolves 1/steps of the range, moments are exact up to 2 steps - 1.
    vectors    random vectors, uniform on the sphere; the error of Tr f / P falls as sqrt(2 Var f / (P vectors)).
    sigma      in the units of the eigenvalues (None: 0.8 / steps of the range).
    known      eigenpairs to take out: exact up to their residuals, which enter as ||r||^2 / gap.
    generator  of the vectors (default: a fixed seed).
    Cost: steps x vectors products, about one pass over the basis a step; memory (steps + known) P numbers. An invariant
    subspace ends a vector early, with exact nodes. A product that is not finite makes everything NaN. Raises ValueError.

    >>> from lab.curvature.operators import hessian
    >>> from lab.landscapes.quadratic import Quadratic
    >>> phi = density(hessian(Quadratic(torch.tensor([1.0, 1.0, 1.0, 1.0, 7.0])), torch.zeros(5)), steps=5)
    >>> sorted({round(float(node), 4) for node in phi.nodes[phi.weights > 0]})
    [1.0, 7.0]
    """
    if min(steps, vectors) < 1 or grid < 2 or (sigma is not None and not sigma > 0):
        raise ValueError(f"steps={steps}, vectors={vectors}, grid={grid}, sigma={sigma}: expected positive, grid >= 2")
    before = operator.matvecs
    nodes, weights = gauss_rules(operator, steps, vectors, known, generator or torch.Generator().manual_seed(0))
    sigma = sigma or spanned(nodes) * WIDTH / steps
    density = smoothed(nodes, weights, sigma=sigma, grid=grid, size=operator.size, matvecs=operator.matvecs - before)
    if known is None:
        return density
    return replace(density, exact=len(known.values), coupling=2 * float(known.residuals.square().sum()))


def smoothed(
    nodes: Tensor, weights: Tensor, *, sigma: float, grid: int, size: int, matvecs: int = 0
) -> SpectralDensity:
    """The density of Gauss `weights` (vectors, n) at `nodes` (vectors, n), smoothed, with the spread over the vectors.

    >>> phi = smoothed(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), sigma=0.1, grid=100, size=2)
    >>> round(torch.trapezoid(phi.values, phi.grid).item(), 4)
    1.0
    """
    low, high = float(nodes.min()) - SPAN * sigma, float(nodes.max()) + SPAN * sigma
    x = torch.linspace(0, 1, grid, dtype=torch.float64) * (high - low) + low  # (grid,)
    bumps = torch.exp(-0.5 * ((x[:, None, None] - nodes) / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma)
    each = (bumps * weights).sum(2)  # (grid, vectors)
    values = each.mean(1)
    spread = each.std(1) / math.sqrt(len(nodes)) if len(nodes) > 1 else torch.full_like(values, torch.nan)
    return SpectralDensity(
        x, values, (values - spread).clamp(min=0), values + spread, nodes, weights, sigma, matvecs, size
    )


def spanned(nodes: Tensor) -> float:
    """The range of the nodes; where they are all one value, that value (or 1, when it is zero).

    >>> spanned(torch.tensor([1.0, 4.0])), spanned(torch.tensor([-2.0, -2.0]))
    (3.0, 2.0)
    """
    span = float(nodes.max() - nodes.min())
    return span or float(nodes.abs().max()) or 1.0

"""Spectral density phi(x) = (1/P) sum_i delta(x - lambda_i) of a symmetric operator, by stochastic Lanczos quadrature.

    z'f(A)z / z'z  =  sum_j tau_j^2 f(theta_j),   E over random z:  Tr f(A) / P

with T = Q A Q' the Lanczos matrix begun at z, theta_j its eigenvalues and tau_j the first entries of its eigenvectors:
m steps integrate polynomials up to degree 2m - 1 exactly. Golub and Meurant 2010; Ubaru, Chen and Saad 2017; for
networks Ghorbani, Krishnan and Xiao 2019 (arXiv 1901.10159).

Eigenvalues already known are taken out: their share is exact, and the quadrature is left with the rest, whose variance
is that of a bulk and no longer that of lambda_1. The error needs no repetition: on the sphere
Var z'f(A)z / z'z = 2 / (P + 2) (<f^2> - <f>^2), <f> = Tr f(A) / P, and these averages are quadratures themselves. Their own
variance says how many degrees of freedom the error rests on, and so by how much it is widened: as many as there are vectors
where one eigenvalue outweighs the others, P times more in a flat spectrum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.operators import LinearOperator
from lab.curvature.probing import widening
from lab.curvature.vectors import dot, norm
from lab.results import Density, Eigenpairs, Estimate

METHOD = "Lanczos quadrature"
RESOLVED = 0.05
"""Error relative to the number itself up to which one of the density counts as converged."""
WIDTH = 0.8
"""Smoothing, when left to us: sigma = WIDTH / steps of the range, 1 % at 80 steps. Ritz values of a bulk that fills the
range lie up to pi / (2 steps) of it apart: two sigma, where a sum of Gaussians has lost its ripples."""
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
    Cost: steps x vectors products, one pass over the basis a step (half the time, two: see `_Lanczos`); memory
    (steps + known) P numbers. An invariant subspace ends a vector early, with exact nodes. A product that is not finite
    makes everything NaN.

    >>> from lab.curvature.operators import hessian
    >>> from lab.landscapes.quadratic import Quadratic
    >>> phi = density(hessian(Quadratic(torch.tensor([1.0, 1.0, 1.0, 1.0, 7.0])), torch.zeros(5)), steps=5)
    >>> sorted({round(float(node), 4) for node in phi.nodes[phi.weights > 0]})
    [1.0, 7.0]
    """
    if min(steps, vectors) < 1 or grid < 2 or (sigma is not None and not sigma > 0):
        raise ValueError(f"steps={steps}, vectors={vectors}, grid={grid}, sigma={sigma}: expected positive, grid >= 2")
    exact = 0 if known is None else known.vectors.shape[1]
    rest = operator.size - exact
    generator, before = generator or torch.Generator().manual_seed(0), operator.matvecs
    start = torch.zeros(0, dtype=torch.float64) if known is None else known.values.double().cpu()
    nodes = start.expand(vectors, exact)
    weights = torch.full_like(nodes, 1 / operator.size)
    if rest:
        runs = _Lanczos(operator, min(steps, rest), known)
        found = [runs.quadrature(generator) for _ in range(vectors)]
        nodes = torch.cat([nodes, torch.stack([theta for theta, _ in found])], dim=1)
        weights = torch.cat([weights, torch.stack([tau for _, tau in found]) * rest / operator.size], dim=1)
    return smoothed(
        nodes,
        weights,
        sigma=sigma or spanned(nodes) * WIDTH / steps,
        grid=grid,
        size=operator.size,
        exact=exact,
        coupling=0.0 if known is None else 2 * float(known.residuals.square().sum()),
        matvecs=operator.matvecs - before,
    )


def smoothed(
    nodes: Tensor,
    weights: Tensor,
    *,
    sigma: float,
    grid: int,
    size: int,
    exact: int = 0,
    coupling: float = 0.0,
    matvecs: int = 0,
) -> SpectralDensity:
    """The density of Gauss `weights` (vectors, n) at `nodes` (vectors, n), smoothed, with the spread over the vectors."""
    ends = float(nodes.min()) - SPAN * sigma, float(nodes.max()) + SPAN * sigma
    x = torch.linspace(0, 1, grid, dtype=torch.float64) * (ends[1] - ends[0]) + ends[0]
    bumps = torch.exp(-0.5 * ((x[:, None, None] - nodes) / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma)
    each = (bumps * weights).sum(2)  # (grid, vectors)
    values = each.mean(1)
    spread = each.std(1) / math.sqrt(len(nodes)) if len(nodes) > 1 else torch.full_like(values, torch.nan)
    low, high = (values - spread).clamp(min=0), values + spread
    return SpectralDensity(x, values, low, high, nodes, weights, sigma, matvecs, size, exact, coupling)


class _Lanczos:
    """Lanczos from random vectors, in the orthogonal complement of the known eigenvectors, with one basis for all.

    Without reorthogonalisation the largest eigenvalue comes back as ghosts. Full reorthogonalisation reads the basis
    twice a step, to measure the overlaps and to subtract them. Here they are measured, but subtracted only when one
    exceeds sqrt(eps / steps): at that semi-orthogonality T is as good as with an orthogonal basis (Simon 1984), and
    beyond it the next vector is cleaned too, since the recurrence carries the fault on. One step amplifies overlaps by
    at most about 2 |A| / beta; where that leaves room, the next step does without the measurement.
    """

    def __init__(self, operator: LinearOperator, steps: int, known: Eigenpairs | None):
        self.operator, self.steps = operator, steps
        self.exact = 0 if known is None else known.vectors.shape[1]
        rows = self.exact + steps
        self._basis = torch.empty(rows, operator.size, dtype=operator.dtype, device=operator.device)
        if known is not None:
            self._basis[: self.exact] = known.vectors.T
        self._limit = (torch.finfo(operator.dtype).eps / rows) ** 0.5

    def quadrature(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Nodes and weights (steps,), float64, from one random vector; the weight of a node that was not needed is 0."""
        alpha, beta = (torch.zeros(self.steps, dtype=torch.float64) for _ in range(2))
        v = torch.randn(self.operator.size, generator=generator, dtype=torch.float64, device=generator.device)
        v = self._clean(v.to(dtype=self.operator.dtype, device=self.operator.device), self.exact)
        v /= norm(v)
        carried, room, scale, begin, taken = False, False, 0.0, self.exact, self.steps
        for j in range(self.steps):
            self._basis[begin + j] = v
            image = self.operator @ v
            alpha[j] = dot(v[None], image)
            if not alpha[j].isfinite():
                return alpha.fill_(torch.nan), beta.fill_(torch.nan)
            if j + 1 == self.steps:
                break
            image = image.sub(v, alpha=float(alpha[j]))
            if j:
                image.sub_(self._basis[begin + j - 1], alpha=float(beta[j - 1]))
            length = norm(image)
            scale = max(scale, abs(float(alpha[j])), length)
            if room:
                room = False
            else:
                overlaps = self._basis[: begin + j + 1] @ image
                worst = float(overlaps.abs().max())
                room = worst * (2 * scale / length) ** 2 <= self._limit * length if length > 0 else False
                fault = worst > self._limit * length
                if fault or carried:
                    image = self._clean(image, begin + j + 1, overlaps)
                    length = norm(image)
                carried = fault and not carried
            beta[j], v = length, image
            if length <= 100 * torch.finfo(v.dtype).eps * scale:
                taken = j + 1
                break
            v /= length
        return self._gauss(alpha, beta, taken)

    def _gauss(self, alpha: Tensor, beta: Tensor, taken: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues of T and the squares of the first entries of its eigenvectors."""
        off = beta[: taken - 1]
        theta, s = torch.linalg.eigh(alpha[:taken].diag() + off.diag(1) + off.diag(-1))
        idle = self.steps - taken
        return torch.cat([theta, theta[-1:].expand(idle)]), torch.cat([s[0] ** 2, torch.zeros(idle).to(s)])

    def _clean(self, v: Tensor, size: int, overlaps: Tensor | None = None) -> Tensor:
        """v without its components in the first `size` vectors of the basis; again where most of it was taken away."""
        basis = self._basis[:size]
        for _ in range(2):
            before = norm(v)
            v, overlaps = v.addmv(basis.T, basis @ v if overlaps is None else overlaps, alpha=-1), None
            if norm(v) > 0.7 * before:
                break
        return v


def spanned(nodes: Tensor) -> float:
    """The range of the nodes; where they are all one value, that value (or 1, when it is zero)."""
    span = float(nodes.max() - nodes.min())
    return span or float(nodes.abs().max()) or 1.0

"""Gauss rules of the spectral measure of random vectors, from a Lanczos basis no more orthogonal than it must be.

T needs only that Lanczos vectors are orthogonal to sqrt(eps): then it is the projection on their span up to round-off
(Simon, Linear Algebra Appl. 61, 1984). Without any reorthogonalisation the largest eigenvalue comes back as ghosts; full
reorthogonalisation reads the basis twice a step, to measure the overlaps and to subtract them. Here they are measured, but
subtracted only when one exceeds sqrt(eps / steps); then those of the next vector are subtracted too, because the three-term
recurrence carries the fault on. One step amplifies overlaps by at most about 2 |A| / beta; where that leaves room, the next
step does without the measurement. In all that is about one pass over the basis a step, and at times half of one.
"""

import math

import torch
from torch import Generator, Tensor

from lab.curvature.basis import ROUND_OFF, Basis
from lab.curvature.operators import LinearOperator
from lab.curvature.vectors import dot, norm
from lab.results import Eigenpairs


def gauss_rules(
    operator: LinearOperator, steps: int, vectors: int, known: Eigenpairs | None, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Nodes and weights (vectors, k + steps), float64, of `vectors` random vectors; the weights of each add up to 1.

    The k `known` eigenvalues are nodes of weight 1/P, and the vectors random in the complement of their eigenvectors.
    Cost: steps x vectors products; memory (k + steps) P numbers.

    >>> from lab.curvature.operators import of_matrix
    >>> A = of_matrix(torch.tensor([1.0, 3.0]))
    >>> nodes, weights = gauss_rules(A, 2, 5, None, torch.Generator().manual_seed(0))
    >>> nodes[0].round(decimals=5).tolist(), weights.shape
    ([1.0, 3.0], torch.Size([5, 2]))
    """
    values = torch.zeros(0, dtype=torch.float64) if known is None else known.values.double().cpu()
    rest = operator.size - len(values)
    nodes = values.expand(vectors, len(values))
    weights = torch.full_like(nodes, 1 / operator.size)
    if not rest:
        return nodes, weights
    recurrence = Recurrence(operator, min(steps, rest), known)
    rules = [recurrence.rule(generator) for _ in range(vectors)]
    drawn, shares = (torch.stack(parts) for parts in zip(*rules, strict=True))  # (vectors, steps)
    return torch.cat([nodes, drawn], 1), torch.cat([weights, shares * rest / operator.size], 1)


class Recurrence:
    """beta_j q_{j+1} = A q_j - alpha_j q_j - beta_{j-1} q_{j-1}, again and again in the same memory."""

    def __init__(self, operator: LinearOperator, steps: int, known: Eigenpairs | None):
        self.operator, self.steps, self.basis = operator, steps, Basis(operator)
        self.exact = 0 if known is None else known.vectors.shape[1]
        self.basis.reserve(self.exact + steps)
        if known is not None:
            self.basis.append(known.vectors.T)
        self.limit = (torch.finfo(operator.dtype).eps / (self.exact + steps)) ** 0.5

    def rule(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Nodes and weights (steps,), float64, from one random vector; the weight of a node that was not needed is 0."""
        basis, alpha, beta = self.basis, list[float](), list[float]()
        basis.truncate(self.exact)
        self._measured = self._clean_next = False
        self._scale = 0.0
        v = torch.randn(self.operator.size, generator=generator, dtype=torch.float64, device=generator.device)
        v = self._cleaned(v.to(basis.rows))
        v /= norm(v)
        while True:
            basis.append(v)
            image = self.operator @ v  # (P,)
            alpha.append(float(dot(v[None], image)))
            if not math.isfinite(alpha[-1]):
                nothing = torch.full((self.steps,), math.nan, dtype=torch.float64)
                return nothing, nothing
            if len(alpha) == self.steps:
                break
            image = image.sub(v, alpha=alpha[-1])
            if beta:
                image.sub_(basis.rows[-2], alpha=beta[-1])
            self._scale = max(self._scale, abs(alpha[-1]), norm(image))
            v = self._semi_orthogonal(image)
            length = norm(v)
            if length <= ROUND_OFF * torch.finfo(v.dtype).eps * self._scale:
                break
            beta.append(length)
            v /= length
        return self._gauss(torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64))

    def _gauss(self, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues of T, tridiagonal, and the squares of the first entries of its eigenvectors."""
        theta, s = torch.linalg.eigh(alpha.diag() + beta.diag(1) + beta.diag(-1))  # (m,), (m, m)
        idle = self.steps - len(alpha)
        return torch.cat([theta, theta[-1:].expand(idle)]), torch.cat([s[0] ** 2, torch.zeros(idle).to(s)])

    def _semi_orthogonal(self, image: Tensor) -> Tensor:
        """The image (P,), with its overlaps subtracted where one is too large, or one of the vector before was."""
        if self._measured:  # a step ago, with room for this one
            self._measured = False
            return image
        length, overlaps = norm(image), self.basis.rows @ image  # (n,)
        worst = float(overlaps.abs().max())
        self._measured = length > 0 and worst * (2 * self._scale / length) ** 2 <= self.limit * length
        fault = worst > self.limit * length
        if fault or self._clean_next:
            image = self._cleaned(image, overlaps)
        self._clean_next = fault and not self._clean_next
        return image

    def _cleaned(self, v: Tensor, overlaps: Tensor | None = None) -> Tensor:
        """v (P,) without its components along the basis; again where most of it was taken away."""
        rows = self.basis.rows
        for _ in range(2):
            before = norm(v)
            v, overlaps = v.addmv(rows.T, rows @ v if overlaps is None else overlaps, alpha=-1), None
            if norm(v) > 0.7 * before:
                break
        return v

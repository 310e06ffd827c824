"""Noise of a chosen covariance and size for the gradient of a batch of N examples, so that it no longer hangs on the
learning rate and the batch size. With g_i the gradients of the examples, g their mean, D = (1/N) sum_i (g_i - g)(g_i - g)'
the noise of one example, and m the size of the batches that it is to be equivalent to:

    sample_weights     sum_i a_i g_i,  a_i = xi_i - mean of xi,  xi_i ~ N(0, 1/(N m))      covariance D/m
    half_difference    (g_B - g_B')/sqrt 2, two batches of m:  a_i = (n_i - n'_i)/(m sqrt 2)          D/m
    minibatch          g_B - g, one batch of m:                a_i = n_i/m - 1/N                      D/m
    signs              s_j n_j, signs s of n, any of the three                                        diag(D)/m
    isotropic          |n| u, u a random direction                                                    (Tr D/m)/P 1
    absolute_root      |A|^1/2 z, z ~ N(0, 1)                                                         |A|

All are exact and have mean 0: batches are drawn with replacement (n_i is how often i was drawn), and the last three are
as well as their first line says what n is. Of the three with D/m only sample_weights is Gaussian; the others keep the
tails that mini-batches have. Noise whose covariance is a Hessian needs its ROOT: H z has the covariance H^2, not |H|.

Zhu, Wu, Yu, Wu and Ma (2019), "The anisotropic noise in stochastic gradient descent"; Wu et al. (2020), "On the noisy
gradient descent that generalizes as SGD", for random weights; Wen et al. (2020) for diagonal noise in large batches.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lab.curvature.basis import Basis, ritz
from lab.curvature.operators import LinearOperator
from lab.curvature.vectors import norm
from lab.noise.size import trace
from lab.objective import NetworkObjective
from lab.streams import random_signs

CHECK_EVERY = 5
"""Products between two looks at whether a root has converged."""
MOST_DRAWN = 2**16
"""Examples of a drawn batch, at most, unless there are more examples: a larger one is this one scaled down. Its tails, of
order 1/m in the excess kurtosis, are then those of so many."""
PROBES = 16
"""Random vectors for Tr|A|, at most."""


# --- weights a (N,) on the examples; the noise is sum_i a_i g_i ----------


def sample_weights(
    num_examples: int, equivalent: float, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Centred Gaussian weights a (N,): the covariance of sum_i a_i g_i is D/m exactly. `equivalent` m > 0 is any number."""
    xi = torch.randn(num_examples, generator=generator, device=generator.device).to(dtype)  # float64 normals are slow
    return xi.sub_(xi.mean()).div_(math.sqrt(num_examples * equivalent))


def half_difference(
    num_examples: int, equivalent: float, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Weights a (N,) with sum_i a_i g_i = (g_B - g_B')/sqrt 2 for two batches of m examples: covariance D/m."""
    size, scale = _whole(equivalent, num_examples)
    one, other = (_counts(num_examples, size, generator).to(dtype) for _ in "12")
    return scale / (size * math.sqrt(2)) * (one - other)


def minibatch(
    num_examples: int, equivalent: float, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Weights a (N,) with sum_i a_i g_i = g_B - g for a batch of m examples: covariance D/m. Added to g it IS the
    gradient of a batch of m, drawn with replacement.
    """
    size, scale = _whole(equivalent, num_examples)
    return scale * (_counts(num_examples, size, generator).to(dtype) / size - 1 / num_examples)


def _whole(equivalent: float, num_examples: int) -> tuple[int, float]:
    """The examples to draw, a whole number of them and no more than `MOST_DRAWN` or N; the factor that makes up for the
    rest, so that the covariance stays D/m (1 where m is whole and not too large).
    """
    size = max(1, round(min(equivalent, max(MOST_DRAWN, num_examples))))
    return size, math.sqrt(size / equivalent)


def _counts(num_examples: int, size: int, generator: torch.Generator) -> Tensor:
    """How often each example is in a batch of `size`, drawn with replacement."""
    drawn = torch.randint(num_examples, (size,), generator=generator, device=generator.device)
    return torch.bincount(drawn, minlength=num_examples)


def example_trace(objective: NetworkObjective, w: Tensor) -> float:
    """Tr D of one example over the examples of `objective`, 0 where it is no more than round-off, which no noise is to be
    made of; cost and accuracy are those of `lab.noise.covariance.trace`.
    """
    found = trace(objective, w)
    return found.value if found.value > found.round_off else 0.0


# --- what is made of a noise n (P,) of covariance C ----------


def signs(n: Tensor, generator: torch.Generator) -> Tensor:
    """s_j n_j with independent random signs: covariance diag(C) exactly. Entries are uncorrelated, each with the law of
    +-n_j, but not independent: their sizes come together.
    """
    return n * random_signs((len(n),), n, generator)


def isotropic(length: Tensor | float, size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """A vector (size,) of the given length in a direction uniform on the sphere: covariance (E length^2)/size 1."""
    z = gaussian(size, like, generator)
    return z * (length / norm(z))


def gaussian(size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """z ~ N(0, 1) (size,), drawn in the dtype and on the device of `like`."""
    return torch.randn(size, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


# --- the root of a matrix ----------


@dataclass(frozen=True)
class Root:
    """|A|^1/2 z (P,); `negative` = z'|A_-|z of the negative part of A, whose mean is the sum of |negative eigenvalues|;
    the relative `change` of the vector over the last `CHECK_EVERY` products, 0 where the space is exhausted; `matvecs`.
    """

    vector: Tensor
    negative: float
    change: float
    matvecs: int


def absolute_root(operator: LinearOperator, z: Tensor, *, tol: float = 0.02, max_matvecs: int = 100) -> Root:
    """|A|^1/2 z of a symmetric A by Lanczos from z: |z| Q'|T|^1/2 e_1, full re-orthogonalisation.

    For z ~ N(0, 1) its covariance is |A|: that of A itself where A is positive semidefinite, and |lambda| along eigenvectors
    of either sign. Ends once `CHECK_EVERY` more products change the vector by less than tol of its norm; eigenvalues near 0
    converge last and weigh least. Error: about the `change`, which may be above tol after `max_matvecs` products, and is NaN
    where a product is not finite. Cost: `matvecs` products and as many vectors of memory. Druskin and Knizhnerman (1989);
    Higham (2008), ch. 13.

    >>> from lab.curvature.operators import of_matrix
    >>> absolute_root(of_matrix(torch.tensor([4.0, -9.0])), torch.tensor([1.0, 1.0])).vector
    tensor([2.0000, 3.0000])
    """
    basis, length, most = Basis(operator), norm(z), min(max_matvecs, operator.size)
    basis.begin(z)
    root, change, negative = torch.zeros(0, dtype=torch.float64), math.inf, 0.0
    while change > tol and len(basis.following) and basis.matvecs < most:
        basis.expand()
        if not basis.finite:
            return Root(torch.full_like(z, math.nan), math.nan, math.nan, basis.matvecs)
        ended = not len(basis.following)
        if ended or basis.matvecs % CHECK_EVERY == 0 or basis.matvecs == most:
            theta, s = ritz(basis.t)  # (m,), (m, m)
            before, root = root, length * (s @ (theta.abs().sqrt() * s[0]))  # (m,)
            change = 0.0 if ended else float((root - pad(before, (0, len(root) - len(before)))).norm() / root.norm())
            negative = length**2 * float((s[0] ** 2 * (-theta).clamp(min=0)).sum())
    return Root(basis.combined(root[:, None])[0], negative, change, basis.matvecs)


def absolute_trace(
    operator: LinearOperator, trace: float, generator: torch.Generator, *, tol: float = 0.02, max_matvecs: int = 100
) -> float:
    """Tr|A| = Tr A + 2 sum of |negative eigenvalues|, the sum by Lanczos quadrature from random signs of its own.

    `trace` is Tr A. Ends once the standard error is tol of the value, with `PROBES` vectors at most; where one negative
    eigenvalue makes up most of the sum, four vectors can seem to agree and the error be several times tol. Cost: as many
    roots as vectors, at least four.
    """
    negative: list[float] = []
    like = torch.zeros(0, dtype=operator.dtype, device=operator.device)
    while True:
        z = random_signs((operator.size,), like, generator)
        negative.append(absolute_root(operator, z, tol=tol, max_matvecs=max_matvecs).negative)
        known = torch.tensor(negative, dtype=torch.float64)
        total = trace + 2 * float(known.mean())
        enough = len(negative) > 3 and 2 * float(known.std()) <= tol * abs(total) * math.sqrt(len(negative))
        if enough or len(negative) == PROBES or not math.isfinite(total):
            return total

"""What the gradient noise has to do with the curvature: Tr(HD), u'Du along directions, and the cosine of H and D.

Noise e = N^-1/2 sum_i s_i (g_i - g) with random signs s has covariance D, so e'He has the mean Tr(HD), but a spread of 40 %
and more of it: a few curved directions carry both. These are taken exactly. With Q an orthonormal Krylov basis of H, m
steps from one noise vector, and R = 1 - QQ',

    Tr(HD) = Tr(Q'HDQ) + Tr(Q'DRHQ) + E (Re)'H(Re)

where every q'Dq' is a mean over examples of (g_i'q)(g_i'q'), and HQ lies in the span of Q and one vector more. Unbiased
whatever Q: the Krylov vectors need not have converged to eigenvectors (deflation as in Hutch++, Meyer et al. 2021). In the
same way |H|_F^2 = 2 |HQ|_F^2 - |Q'HQ|_F^2 + E |RHR s|^2. Near a minimum of the half squared error over K outputs D is
2 L/K times H (Mori et al. 2022), so that u'Du = (2 L/K) lambda and the cosine is 1; measured it is what it is.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.curvature.basis import Basis
from lab.curvature.forms import FEWEST_FORMS, Forms, Interval, warned
from lab.curvature.operators import LinearOperator
from lab.noise.covariance import GRAM_EXAMPLES, Covariance, centred_gram, covariance
from lab.objective import Objective
from lab.results import Estimate
from lab.streams import random_signs

DEFLATED = 15
"""Krylov vectors taken exactly. On a tanh MLP of 2000 images 5 % takes 27 products with these, which is the least, and some
60 to 90 with none."""


def variances(objective: Objective, w: Tensor, vectors: Tensor) -> Tensor:
    """u'Du (k,) float64: the variance of one example's gradient along unit vectors (P, k), or along one (P,).

    Cost: one gradient, and a third of one for every vector. Raises as `covariance`.
    """
    return covariance(objective, w).variances(vectors.reshape(len(vectors), -1))


@dataclass(frozen=True)
class Alignment:
    """What noise and curvature have in common: Tr(HD), and the cosine Tr(HD) / (|H|_F |D|_F) in [-1, 1], 1 where the noise
    has the shape of the curvature. `matvecs` of the trace are the products it took, those of the cosine all of both.
    """

    trace: Estimate
    cosine: Estimate


def alignment(
    hessian_operator: LinearOperator,
    noise_operator: Covariance,
    *,
    squares: Interval | None = None,
    tol: float = 0.05,
    generator: torch.Generator | None = None,
    max_matvecs: int = 200,
) -> Alignment:
    """Tr(HD) and the cosine of H and D, from the same Krylov space.

    squares: |D|_F^2 where it is known; else it comes from the Gram matrix, or beyond `GRAM_EXAMPLES` examples from
    E e'De = |D|_F^2. tol: wanted error of each factor, relative. Cost: `trace_with`, some ten products more for |H|_F, and
    the Gram matrix. One warning for each that is not converged.
    """
    noise = NoiseOperator(noise_operator, generator)
    span = deflate(hessian_operator, noise.draw(), DEFLATED)
    along, spent = _trace(hessian_operator, noise, span, tol, max_matvecs)
    size, more = _square(hessian_operator, span, noise.generator, tol, max_matvecs)
    spread = squares or noise.square(tol, max_matvecs)
    scale = math.sqrt(max(size.value * spread.value, 0.0))
    value = along.value / scale if scale else math.nan
    shares = math.nan, math.nan, math.nan
    if scale:
        shares = along.error / scale, value * size.error / (2 * size.value), value * spread.error / (2 * spread.value)
    converged = along.within(tol) and size.within(2 * tol) and (squares is not None or spread.within(2 * tol))
    return Alignment(
        warned(along.estimate(tol, spent, "deflated"), "Tr(HD)", tol),
        warned(Estimate(value, math.hypot(*shares), spent + more, "deflated", converged), "the cosine", tol),
    )


def trace_with(
    hessian_operator: LinearOperator,
    objective: Objective,
    w: Tensor,
    *,
    tol: float = 0.05,
    generator: torch.Generator | None = None,
    max_matvecs: int = 200,
) -> Estimate:
    """Tr(HD), the noise seen by the curvature: E L(w - lr g_B) rises by lr^2/2 of it times the factor of the batch.

    tol  wanted standard error relative to |Tr(HD)|. Error: that of `lab.curvature.forms`, which holds on degenerate
    spectra too: beyond 2 errors lie at most 7 %, beyond 4 at most 1 % of estimates. Cost: `matvecs` Hessian products (27 at
    least, whatever max_matvecs), and 0.7 gradients beside each; to 5 % about 27 on a tanh MLP.
    generator: of the signs (default: a fixed seed). Not converged within `max_matvecs`: one warning. Raises as `covariance`.
    """
    noise = NoiseOperator(covariance(objective, w), generator)
    along, spent = _trace(hessian_operator, noise, deflate(hessian_operator, noise.draw(), DEFLATED), tol, max_matvecs)
    return warned(along.estimate(tol, spent, "deflated"), "Tr(HD)", tol)


class NoiseOperator:
    """Random vectors of covariance D, and the one generator of all random numbers here."""

    def __init__(self, operator: Covariance, generator: torch.Generator | None):
        self.operator, self.examples = operator, operator.examples
        self.generator = generator or torch.Generator(operator.device).manual_seed(0)

    def signs(self) -> Tensor:
        """Random signs s (N,), one for each example."""
        return random_signs((self.examples.num_examples,), self.examples.w, self.generator)

    def draw(self, s: Tensor | None = None) -> Tensor:
        """N^-1/2 sum_i s_i (g_i - g) (P,). Cost: a third of a gradient."""
        s = self.signs() if s is None else s
        return self.examples.weighted((s - s.mean()) / math.sqrt(len(s))).to(self.operator.dtype)

    def seen(self, v: Tensor) -> Tensor:
        """N^-1/2 (g_i - g)'v (N,), so that e'v = s'seen(v) for the e drawn by s. Cost: a third of a gradient."""
        along = self.examples.along(v)
        return (along - along.mean()) / math.sqrt(len(along))

    def products(self, rows: Tensor) -> Tensor:
        """q'Dq' (k, k) float64 of rows (k, P)."""
        along = self.examples.along(rows.T)
        along = along - along.mean(0)
        return along.T @ along / len(along)

    def square(self, tol: float, most: int) -> Interval:
        """|D|_F^2."""
        num = self.examples.num_examples
        if num <= GRAM_EXAMPLES:
            return Interval(float(centred_gram(self.examples).square().sum()) / num**2, 0.0, math.inf)

        def root() -> tuple[Tensor, Tensor]:
            along = self.seen(self.draw())
            return along, along

        return Forms(signs=False).until(root, 0.0, 2 * tol, most)


def deflate(operator: LinearOperator, start: Tensor, steps: int) -> Basis:
    """The Krylov space of `operator` from `start`, `steps` products at most; fewer where it is invariant."""
    span = Basis(operator)
    span.begin(start)
    while len(span.following) and span.matvecs < steps:
        span.expand()
    return span


def _outside(span: Basis, v: Tensor) -> Tensor:
    """R v (P,)."""
    return span.outside(v, end=len(span.t))[0]


def _trace(operator: LinearOperator, noise: NoiseOperator, span: Basis, tol: float, most: int) -> tuple[Interval, int]:
    """Tr(HD) and the products spent, those of the span included."""
    m, D, T = len(span.t), noise.products(span.rows), span.images
    # HQ = rows' T: Tr Q'HDQ = sum of (T'D)[:, :m] on the diagonal; RHQ leaves the rows of T beyond m.
    exact = float((T * D[:, :m]).sum() + (T[m:] * D[m:, :m]).sum())
    forms = Forms(signs=True)

    def draw() -> tuple[Tensor, Tensor]:
        s = noise.signs()
        return s.double(), noise.seen(_outside(span, operator @ _outside(span, noise.draw(s))))

    return forms.until(draw, exact, tol, max(most - m, FEWEST_FORMS)), m + len(forms)


def _square(
    operator: LinearOperator, span: Basis, generator: torch.Generator, tol: float, most: int
) -> tuple[Interval, int]:
    """|H|_F^2 and the products spent beside those of the span."""
    m, T = len(span.t), span.images
    exact = 2 * float(T.square().sum()) - float(T[:m].square().sum())
    forms = Forms(signs=False)

    def draw() -> tuple[Tensor, Tensor]:
        image = _outside(span, operator @ _outside(span, random_signs((operator.size,), span.rows, generator)))
        return image, image

    return forms.until(draw, exact, 2 * tol, max(most, FEWEST_FORMS)), len(forms)

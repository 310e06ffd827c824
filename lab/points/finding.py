"""Critical points near a given point: zeros of the gradient field, of any index, by regularised Newton steps.

    minimise |g(w)|^2 / 2,    w <- w + p,    p = argmin |g + H p|^2 + mu |p|^2 = -(H^2 + mu)^-1 H g

the Levenberg-Marquardt step for the residual g, whose Jacobian is the Hessian: unlike Newton's method it always descends in
|g|, and unlike gradient descent it is drawn to saddles as to minima. p lies in the Krylov space of (H, g), whose basis Q
from Lanczos turns it into a small least squares problem, H Q = Q+ T; every mu is solved with the same basis. mu falls with
|g|^2 where steps do what they promise (Yamashita and Fukushima 2001: quadratic convergence also where zero eigenvalues make
the zeros a manifold) and grows where they do not (Nielsen 1999).

|g|^2 has minima that are no zeros of g: there H g = 0 with g not 0, the gradient lies in the null space of the Hessian.
Index-against-loss curves made of such points are worthless (Frye et al. 2021, arXiv 2003.10397), so they are told apart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lab.curvature.basis import Basis
from lab.curvature.operators import Hessian, hessian
from lab.curvature.vectors import norm
from lab.objective import Objective
from lab.points.critical import ROUNDING

STUCK = 1e-6
"""|H g| / (|H| |g|) below which the gradient lies in the null space of the Hessian."""
SLOW, WINDOW = 0.95, 15
"""|g| that falls by less than to this part in so many steps is taken to be near a minimum of |g| too."""
ENOUGH = 0.1
"""Part of |g| that the Krylov space may leave beside what the whole space would."""
SOFT = 1e-2
"""mu / (|g|^2 |H|^2 / |g_0|^2) of a step that is trusted: small beside H^2, and falling with |g|^2."""


@dataclass(frozen=True)
class Found:
    """Where the search ended. w (P,); grad_norm |g| there; norms of g after every step; matvecs products and gradients.

    reason     "zero": |g| <= tol. "stuck": at or near a minimum of |g| that is no zero. "rounding": |g| falls no more, and
               is no larger than the rounding of w may make it. "unfinished": iterations or products are spent.
    alignment  |H g|/(|H| |g|), which vanishes where the gradient lies in the null space of H.
    """

    w: Tensor
    grad_norm: float
    reason: Literal["zero", "stuck", "unfinished", "rounding"]
    alignment: float
    norms: tuple[float, ...]
    matvecs: int

    @property
    def found(self) -> bool:
        return self.reason == "zero"


def find_critical(
    objective: Objective,
    w: Tensor,
    *,
    tol: float = 1e-8,
    max_iterations: int = 100,
    max_matvecs: int = 20_000,
    subspace: int = 200,
    watch: Callable[[float], None] = lambda norm: None,
) -> Found:
    """A zero of the gradient near w (P,), |g| <= tol; give w in float64. Deterministic.

    subspace  vectors in a Krylov basis, at most: memory subspace x P, products in an iteration. P of them make the step
              exact; fewer are enough where |g + H p| is already small.
    watch     is told |g| after every iteration.
    Cost: two gradients and up to `subspace` products in an iteration.

    >>> from lab.landscapes.factorisation import Factorisation
    >>> found = find_critical(Factorisation(), torch.tensor([0.3, -0.2], dtype=torch.float64), tol=1e-12)
    >>> found.reason, bool(found.w.abs().max() < 1e-12)
    ('zero', True)
    """
    w, norms, products = w.detach().clone(), list[float](), 0
    trust, factor, alignment, first, epsilon = 1.0, 2.0, math.nan, 0.0, torch.finfo(w.dtype).eps
    for _ in range(max_iterations):
        H = hessian(objective, w)
        size = norm(H.gradient)
        first = first or size
        products += 1
        norms.append(size)
        watch(size)
        if not math.isfinite(size):
            raise ValueError("the gradient is not finite: there is no critical point to look for from here")
        if size <= tol:
            return Found(w, size, "zero", alignment, tuple(norms), products)
        newton = _Newton(H, min(subspace, len(w), max_matvecs - products), size * ENOUGH * min(1.0, size / first))
        products += newton.basis.matvecs
        alignment = newton.alignment
        stale = len(norms) > WINDOW and size > SLOW * norms[-1 - WINDOW]
        if alignment <= STUCK or stale:
            return Found(w, size, "stuck", alignment, tuple(norms), products)
        base = SOFT * (newton.largest * size / first) ** 2
        moved = False
        while not moved:
            p, left = newton.step(trust * base)
            if norm(p) <= epsilon * norm(w) or trust > 1e30:
                resolved = size > ROUNDING * epsilon * newton.largest * max(1.0, norm(w))
                return Found(w, size, "stuck" if resolved else "rounding", alignment, tuple(norms), products)
            after = norm(objective.grad(w + p))
            products += 1
            promised = size**2 - left**2
            ratio = (size**2 - after**2) / promised if math.isfinite(after) and promised > 0 else -1.0
            if ratio > 1e-4:
                w, moved = w + p, True
                trust, factor = max(1e-12, trust * max(1 / 3, 1 - (2 * ratio - 1) ** 3)), 2.0
            else:
                trust, factor = trust * factor, 2 * factor
        if products >= max_matvecs:
            break
    size = norm(objective.grad(w))
    return Found(w, size, "zero" if size <= tol else "unfinished", alignment, (*norms, size), products + 1)


class _Newton:
    """The least squares problem min |g + H p| in the Krylov space of (H, g): p = Q'y, H Q' = Q+'T, g = size q_1.

    The basis is grown until |g + H p| could be `enough`, or is as small as it gets. t is T (m + 1, m).
    """

    def __init__(self, H: Hessian, most: int, enough: float):
        self.basis, self.size = Basis(H), norm(H.gradient)
        self.basis.begin(H.gradient)
        for m in range(1, most + 1):
            self.basis.expand()
            if not len(self.basis.following) or (m % 10 == 0 and float(_least(self.basis.images, self.size)) <= enough):
                break  # without a next vector the space is invariant, and the step exact
        self.t = self.basis.images
        self.largest = float(torch.linalg.matrix_norm(self.t, 2))
        """The largest |eigenvalue| seen."""

    @property
    def alignment(self) -> float:
        """|H g| / (|H| |g|)."""
        return float(self.t[:, 0].norm()) / self.largest if self.largest > 0 else 0.0

    def step(self, mu: float) -> tuple[Tensor, float]:
        """p for this mu, and |g + H p| of it in the model."""
        u, s, v = torch.linalg.svd(self.t, full_matrices=False)
        c = self.size * u[0]  # u'(size e_1)
        y = -(v.T @ (s / (s**2 + mu) * c))
        residual = self.t @ y
        residual[0] += self.size
        return self.basis.combined(y[:, None])[0], float(residual.norm())


def _least(t: Tensor, size: float) -> Tensor:
    """min |size e_1 + T y|: the component of e_1 outside the range of T."""
    q, _ = torch.linalg.qr(t)
    return size * (1 - q[0].square().sum()).clamp(min=0).sqrt()

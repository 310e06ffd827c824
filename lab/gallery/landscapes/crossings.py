"""Valleys of minima that cross, or end in a cusp: where the set of minima is no smooth curve.

Do singular points attract? By Gibbs they hold no more than their share of low energy, and Langevin dynamics is Gibbs
whatever the kink; what a simulation shows beyond it is its step size or the little time it ran. What singular learning
theory (Watanabe 2009) counts is lambda: volume{L < e} ~ e^lambda (log 1/e)^(m - 1).

    MinCrossing        a min((x - b)^2, (y - b)^2)   lambda = 1/2, m = 1: the same as at any other point of the valleys
    ProductCrossing    a x^2 y^2                     lambda = 1/2, m = 2: more by a logarithm
    ThreeLines         a x^2 y^2 (x + y)^2           lambda = 1/3: truly preferred
    Cusp               a (y^2 - x^3)^2               lambda = 5/12
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.landscapes.base import Critical, InPlace
from lab.settings import settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Real = Annotated[float, Field(allow_inf_nan=False)]


@settings(frozen=False, kw_only=False)
class MinCrossing(InPlace):
    """L = alpha min((x - centre)^2, (y - centre)^2): two crossing lines of minima.

    Often printed as min(x - b^2, (y - b)^2), which has no lower bound: the square belongs outside the bracket. The kink
    on the diagonals has measure zero; where the two agree the gradient taken is that of x.
    """

    alpha: Annotated[Positive, Field(description="steepness")] = 100.0
    centre: Annotated[Real, Field(description="the lines cross at (centre, centre)")] = 0.0
    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        d = (x - self.centre).square()
        return torch.minimum(d[..., 0], d[..., 1]) * self.alpha

    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        torch.sub(x, self.centre, out=out).mul_(2 * self.alpha)
        a, b = out[..., 0], out[..., 1]
        first = a.abs() <= b.abs()
        a.mul_(first)
        b.mul_(first.logical_not_())
        return out

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        """One of each valley; at the crossing L has no Hessian."""
        b, steep = self.centre, 2 * self.alpha
        return Critical((b, b + 1), 0.0, (0.0, steep)), Critical((b + 1, b), 0.0, (0.0, steep))

    @property
    def learning_coefficient(self) -> tuple[float, int]:
        return 0.5, 1


@settings(frozen=False, kw_only=False)
class ProductCrossing(InPlace):
    """L = alpha x^2 y^2: two crossing lines of minima, flatter towards their crossing, where the Hessian is 0."""

    alpha: Annotated[Positive, Field(description="steepness")] = 400.0
    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        return (x[..., 0] * x[..., 1]).square() * self.alpha

    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        for i, other in ((0, 1), (1, 0)):
            torch.mul(x[..., other], x[..., other], out=out[..., i]).mul_(x[..., i])
        return out.mul_(2 * self.alpha)

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        return Critical((0.0, 0.0), 0.0, (0.0, 0.0)), Critical((1.0, 0.0), 0.0, (0.0, 2 * self.alpha))

    @property
    def learning_coefficient(self) -> tuple[float, int]:
        return 0.5, 2


@settings(frozen=False, kw_only=False)
class ThreeLines(InPlace):
    """L = alpha x^2 y^2 (x + y)^2: three lines of minima through one point; learning coefficient 1/3 there, else 1/2."""

    alpha: Annotated[Positive, Field(description="steepness")] = 400.0
    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        return (a * b).mul(a + b).square().mul(self.alpha)

    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        """2 a p s (y s + p) and 2 a p s (x s + p), with p = x y and s = x + y."""
        a, b = x[..., 0], x[..., 1]
        product, total = a * b, a + b
        torch.addcmul(product, b, total, out=out[..., 0])
        torch.addcmul(product, a, total, out=out[..., 1])
        return out.mul_(product.mul_(total).mul_(2 * self.alpha)[..., None])

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        return Critical((0.0, 0.0), 0.0, (0.0, 0.0)), Critical((1.0, 0.0), 0.0, (0.0, 2 * self.alpha))

    @property
    def learning_coefficient(self) -> tuple[float, int]:
        return 1 / 3, 1


@settings(frozen=False, kw_only=False)
class Cusp(InPlace):
    """L = alpha (y^2 - x^3)^2: a curve of minima that turns back at the origin; learning coefficient 5/12 there."""

    alpha: Annotated[Positive, Field(description="steepness")] = 400.0
    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        return (b * b - a * a * a).square() * self.alpha

    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        square = a * a
        error = torch.addcmul(b * b, square, a, value=-1).mul_(2 * self.alpha)
        torch.mul(square, error, out=out[..., 0]).mul_(-3)
        torch.mul(b, error, out=out[..., 1]).mul_(2)
        return out

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        return Critical((0.0, 0.0), 0.0, (0.0, 0.0)), Critical((1.0, 1.0), 0.0, (0.0, 26 * self.alpha))

    @property
    def learning_coefficient(self) -> tuple[float, int]:
        return 5 / 12, 1

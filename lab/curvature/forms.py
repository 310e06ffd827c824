"""The error of a mean of quadratic forms e_i'Be_i in random vectors, an estimate of Tr B (Hutchinson 1990).

The spread of a few forms is no measure of their variance: where B has few large eigenvalues they are skew, those that agree
are low ones, and who stops there has too low a mean with too small an error. The products between different vectors tell
more, and cost no product with B: with B0 = B off its diagonal, for random signs and i, j, k different

    Var e'Be = 2 Tr B0^2,  Tr B0^2 = E (e_i'B0 e_j)^2,  Tr B0^3 = E (e_i'B0 e_j)(e_j'B0 e_k)(e_k'B0 e_i)

n vectors have n (n - 1)/2 such squares, small where the forms are, so that the RELATIVE error comes out right.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import chdtri
from torch import Tensor

from lab.curvature.vectors import dots
from lab.results import Estimate

FEWEST_FREEDOM = 4
"""Degrees of freedom the error must rest on before it may stop the sampling: two probes that agree prove nothing."""
FEWEST_FORMS = 12
"""Quadratic forms that a mean rests on: 66 products between them. With 8 a lone large eigenvalue beside much that is exact
is beyond 4 errors in 2 % of cases, with 12 in 0.5 %."""
KEPT = 16
"""Random vectors that are kept with their images, for the products between them."""
MANY = 8 * KEPT
"""Forms whose own spread is known better than by the products between those kept."""


@dataclass(frozen=True)
class Interval:
    """A mean, its error widened by Student's t, and the degrees of freedom that the error rests on."""

    value: float
    error: float
    freedom: float

    def within(self, tol: float) -> bool:
        """Whether the error is known well enough and at most `tol` of the value."""
        return self.freedom >= FEWEST_FREEDOM and self.error <= tol * abs(self.value)

    def needed(self, num: int, tol: float) -> float:
        """Draws after which the error should be small, given that this is the mean of `num`."""
        return num * (self.error / (tol * abs(self.value))) ** 2 if tol * self.value else math.inf

    def plus(self, offset: float) -> "Interval":
        """The same for value + offset, the offset exact."""
        return Interval(self.value + offset, self.error, self.freedom)

    def estimate(self, tol: float, spent: int, method: str) -> Estimate:
        """The result after `spent` products or draws; converged where it is `within` tol."""
        return Estimate(self.value, self.error, spent, method, self.within(tol))


class Forms:
    """Quadratic forms e_i'Be_i of independent random vectors, and the error of their mean, an estimate of Tr B.

    The mean is taken for a shifted chi-square variable of d = n (Tr B0^2)^3 / (Tr B0^3)^2 degrees of freedom, which has the
    right three moments, and the error so wide that value + 1.96 error is the upper limit of 97.5 %. Beyond `KEPT` vectors
    the variance over all forms is taken where it is larger, beyond `MANY` in any case.

    signs  the vectors are random signs (or of independent entries with variance 1) in the coordinates in which the images
           Be are given: the diagonal, which signs do not see, is estimated and taken out. False: any vectors, any
           coordinates, e.g. roots; B in place of B0, which is right for Gaussian vectors and too large for signs.
    """

    def __init__(self, *, signs: bool):
        self.signs, self._kept, self._own = signs, list[tuple[Tensor, Tensor]](), list[Tensor]()

    def __len__(self) -> int:
        return len(self._own)

    def add(self, left: Tensor, right: Tensor) -> None:
        """One more vector e as e and Be, or twice the root of B times e: e_i'Be_j = left_i'right_j."""
        self._own.append(dots(left[None], right[None])[0, 0])
        if len(self._kept) < KEPT:
            self._kept.append((left, right))

    def until(self, draw: Callable[[], tuple[Tensor, Tensor]], exact: float, tol: float, most: int) -> "Interval":
        """More vectors by `draw`, until exact + their mean has a relative error of `tol`, or `most` were drawn.

        How many is decided a few times only, and 10 % more are drawn than needed: to look after each favours the moment at
        which the error looks small.
        """
        wanted = FEWEST_FORMS
        while True:
            while len(self) < min(wanted, most):
                self.add(*draw())
            mean = self.interval().plus(exact)
            if mean.within(tol) or len(self) >= most or not math.isfinite(mean.value):
                return mean
            wanted = max(len(self) + 1, math.ceil(1.1 * min(3 * len(self), mean.needed(len(self), tol))))

    def interval(self) -> Interval:
        """The mean with its error; `freedom` is d. Of three or more vectors."""
        own, num, kept = torch.stack(self._own), len(self._own), len(self._kept)
        value, products, more = float(own.mean()), *self._products()
        square = float(products.square().sum()) / (kept * (kept - 1))
        cube = float((products @ products * products).sum()) / (kept * (kept - 1) * (kept - 2))
        freedom = num * (square**1.5 / cube) ** 2 if cube else math.inf
        variance = 2 * square + more
        if num > kept:
            variance = max(variance if num < MANY else 0.0, float(own.var()))
        return Interval(value, _skewed(freedom) * math.sqrt(variance / num), freedom)

    def _products(self) -> tuple[Tensor, float]:
        """e_i'B0 e_j (k, k) of those kept, 0 for i = j; and what the diagonal adds to the variance of entries not +-1."""
        left, right = (torch.stack(side) for side in zip(*self._kept, strict=True))
        products, num, more = dots(left, right), len(left), 0.0
        if self.signs:
            diagonals = (left * right).sum(0)
            # Off the diagonal as the vectors other than i and j tell it, whose own noise adds 1/(num - 2) to the square.
            products = (num * products - dots(left * diagonals, left)) / math.sqrt((num - 2) * (num - 1))
            spread = float(left.double().pow(4).mean()) - 1
            more = max(0.0, spread * float((diagonals.double() / num).square().sum()))
        return ((products + products.T) / 2).fill_diagonal_(0), more


def warned(estimate: Estimate, name: str, tol: float) -> Estimate:
    """The estimate, with one warning where it is not converged."""
    if not estimate.converged:
        warnings.warn(
            f"{name} not converged: {estimate.value:g} +- {estimate.error:.1g} by {estimate.method} after "
            f"{estimate.matvecs} products or draws, wanted an error of {tol:g} of it; raise max_matvecs or tol",
            stacklevel=3,
        )
    return estimate


def _skewed(freedom: float) -> float:
    """Error over standard deviation of a chi-square variable that stands for its mean; 1 for many degrees of freedom."""
    if freedom > 1e6:
        return 1.0
    return math.sqrt(freedom / 2) * (freedom / float(chdtri(freedom, 0.975)) - 1) / 1.96

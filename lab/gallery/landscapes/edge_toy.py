"""L(x, y) = y x^2 / 2 + k (y - y*)^2 / 2: the edge of stability in two variables.

The curvature of x is y, which the loss draws to y* > 2/lr, past the edge. Gradient descent holds y at 2/lr instead: x
oscillates with x^2 = 2 k (y* - 2/lr), the very amplitude at which its push on y cancels the pull. The central flow
(Cohen et al. 2025) predicts it exactly.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.landscapes.base import Critical, Landscape
from lab.settings import settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
CYCLE_BOUND = 0.5
"""lr (y* - 2/lr) beyond which the cycle of period 2 is lost."""


@settings(frozen=False, kw_only=False)
class EdgeToy(Landscape):
    """L = y x^2/2 + k (y - y*)^2/2: the edge of stability in two variables; gradient descent stays at y = 2/lr.

    Minimum (0, y*), with eigenvalues (y*, k).
    """

    pull: Annotated[Positive, Field(description="k, which draws y to y*")] = 0.05
    goal: Annotated[Positive, Field(description="y*, where the loss alone would go")] = 22.0
    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * x[..., 1] * x[..., 0] ** 2 + 0.5 * self.pull * (x[..., 1] - self.goal) ** 2

    def gradient(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., 0] * x[..., 1], 0.5 * x[..., 0] ** 2 + self.pull * (x[..., 1] - self.goal)], dim=-1)

    def cycle(self, lr: float) -> tuple[float, float]:
        """(x^2, y) of the cycle of period 2 of gradient descent: (2 k (y* - 2/lr), 2/lr); stable while lr (y* - 2/lr) < 1/2.

        NaN where y* is not past the edge: gradient descent then goes to the minimum.
        """
        past = self.goal - 2 / lr
        return (2 * self.pull * past, 2 / lr) if past > 0 else (math.nan, math.nan)

    def cycle_growth(self, lr: float) -> float:
        """Growth of log distance from that cycle a step, negative where it is stable; NaN where there is none.

        Half the log of the spectral radius of two steps. Where they turn (complex eigenvalues, small k) it is
        log(1 - lr k (1 - 2 lr (y* - 2/lr)))/2.
        """
        square, _ = self.cycle(lr)
        c, d = lr**2 * square, 1 - lr * self.pull
        trace, root = 1 - 2 * c + d * d, d + c  # of two steps; their determinant is the square of d + c
        beyond = math.sqrt(max(0.0, trace**2 - 4 * root**2))
        return math.log((abs(trace) + beyond) / 2 if beyond else root) / 2 if square > 0 else math.nan

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        """The minimum; and two saddles at y = 0, x^2 = 2 k y*, with eigenvalues (k -+ sqrt(k^2 + 8 k y*))/2."""
        k, root = self.pull, math.sqrt(self.pull**2 + 8 * self.pull * self.goal)
        minimum = Critical((0.0, self.goal), 0.0, tuple(sorted((self.goal, k))))
        x = math.sqrt(2 * k * self.goal)
        value = 0.5 * k * self.goal**2
        return minimum, *(Critical((sign * x, 0.0), value, ((k - root) / 2, (k + root) / 2)) for sign in (-1, 1))

    @property
    def learning_coefficient(self) -> tuple[float, int]:
        return 1.0, 1

"""L(a, b) = (t - a b)^2 / 2: the smallest network with a hidden layer, and with it a saddle and a valley of minima.

Along the valley a b = t the sharpness a^2 + b^2 goes from 2|t| to infinity, so gradient descent chooses among minima by
its learning rate; gradient flow keeps a^2 - b^2. With a target that is drawn anew at each step (t = noise) it is label
noise: both valleys a = 0 and b = 0 of t = 0 attract towards their crossing.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.landscapes.base import Critical, InPlace
from lab.settings import settings


@settings(frozen=False, kw_only=False)
class Factorisation(InPlace):
    """L = (target - a b)^2/2: a saddle at 0 and a valley of minima a b = target of every sharpness a^2 + b^2 >= 2 target.

    The eigenvalues at 0 are -+target, those of the minima {0, a^2 + b^2}. target 0: the minima are the two
    axes, which cross at 0, where the Hessian vanishes: lambda = 1/2, m = 2.
    """

    target: Annotated[float, Field(ge=0, allow_inf_nan=False, description="0: two valleys cross at the origin")] = 1.0
    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * (self.target - x[..., 0] * x[..., 1]) ** 2

    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        error = (a * b).sub_(self.target)
        torch.mul(error, b, out=out[..., 0])
        torch.mul(error, a, out=out[..., 1])
        return out

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        """The origin, the flattest minimum, and one four times as steep along the same valley."""
        t, root = self.target, self.target**0.5
        origin = Critical((0.0, 0.0), t * t / 2, (-t, t))
        if t == 0:
            return origin, Critical((2.0, 0.0), 0.0, (0.0, 4.0))
        return origin, Critical((root, root), 0.0, (0.0, 2 * t)), Critical((2 * root, root / 2), 0.0, (0.0, 4.25 * t))

    @property
    def learning_coefficient(self) -> tuple[float, int]:
        return (0.5, 1) if self.target else (0.5, 2)

    def flow_end(self, start: Tensor) -> Tensor:
        """a^2 + b^2 where gradient flow from start (..., 2) ends: sqrt((a^2 - b^2)^2 + 4 t^2), since a^2 - b^2 is kept."""
        kept = start[..., 0] ** 2 - start[..., 1] ** 2
        return torch.sqrt(kept**2 + 4 * self.target**2)

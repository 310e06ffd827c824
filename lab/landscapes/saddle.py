"""A saddle with any number of descending directions, confined by a quartic so that what leaves it arrives somewhere.

L(x) = 1/2 (b |x_+|^2 - a |x_-|^2) + c/4 |x|^4,     x_- the first k coordinates, x_+ the other d - k
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.landscapes.base import Critical, Landscape
from lab.settings import settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@settings(frozen=False, kw_only=False)
class Saddle(Landscape):
    """A saddle at 0: L = (b |x_+|^2 - a |x_-|^2)/2 + c/4 |x|^4.

    With c > 0 the minima are the points with |x_-|^2 = a/c, x_+ = 0: L = -a^2/(4c), curvatures 2a along the radius, a + b
    in the other dimensions, 0 along the sphere (none when negative = 1).
    """

    dimension: Annotated[int, Field(ge=1, description="number of variables")] = 2
    negative: Annotated[int, Field(ge=1, description="directions of negative curvature")] = 1
    down: Annotated[Positive, Field(description="a, the curvature there is -a")] = 1.0
    up: Annotated[Positive, Field(description="b, curvature of the other directions")] = 1.0
    confinement: Annotated[float, Field(ge=0, allow_inf_nan=False, description="c; 0: no minimum anywhere")] = 1.0

    def __post_init__(self) -> None:
        if self.negative > self.dimension:
            raise ValueError(f"negative={self.negative}: a point in {self.dimension} dimensions has at most that many")
        self.num_params = self.dimension

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * (self._h(x) * x * x).sum(-1) + 0.25 * self.confinement * (x * x).sum(-1) ** 2

    def gradient(self, x: Tensor) -> Tensor:
        return (self._h(x) + self.confinement * (x * x).sum(-1, keepdim=True)) * x

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        others = self.dimension - self.negative
        saddle = Critical((0.0,) * self.dimension, 0.0, (-self.down,) * self.negative + (self.up,) * others)
        if self.confinement == 0:
            return (saddle,)
        radius = (self.down / self.confinement) ** 0.5
        curvatures = sorted([2 * self.down] + [0.0] * (self.negative - 1) + [self.up + self.down] * others)
        ends = [(sign * radius, *[0.0] * (self.dimension - 1)) for sign in (-1, 1)]
        return saddle, *(Critical(w, -(self.down**2) / (4 * self.confinement), tuple(curvatures)) for w in ends)

    @property
    def learning_coefficient(self) -> tuple[float, int] | None:
        """Half the codimension of the sphere of minima; None without confinement, where there is no minimum."""
        return ((self.dimension - self.negative + 1) / 2, 1) if self.confinement else None

    def _h(self, x: Tensor) -> Tensor:
        h = torch.full((self.dimension,), self.up, dtype=x.dtype, device=x.device)
        h[: self.negative] = -self.down
        return h

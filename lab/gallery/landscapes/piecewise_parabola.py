"""A well of curvature H_a behind a barrier of curvature H_b: parabolas joined with continuous slope.

    L(x) = H_a (x + l)^2 / 2                   left of the inflection x_i
         = barrier - H_b x^2 / 2               between x_i and -x_i, the top at 0
         = H_a (x - l)^2 / 2                   right of -x_i: the mirrored well

The law of escape by noise that grows with the curvature (Xie, Sato and Sugiyama 2021) is stated on it: the curvature, and
with it the noise, jumps at the inflections, H_a in the wells and H_b around the top.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.landscapes.base import Critical, Landscape
from lab.settings import settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@settings(frozen=False, kw_only=False)
class PiecewiseParabola(Landscape):
    """Two parabolic wells of curvature H_a with a parabolic top of curvature -H_b between them (Xie et al. 2021)."""

    well: Annotated[Positive, Field(description="H_a")] = 2.0
    top: Annotated[Positive, Field(description="H_b")] = 1.0
    barrier: Annotated[Positive, Field(description="height of the top above the minima")] = 0.25
    num_params = 1

    @property
    def share(self) -> float:
        """s = H_b / (H_a + H_b): the share of the barrier that is climbed in the well."""
        return self.top / (self.well + self.top)

    @property
    def inflection(self) -> float:
        """|x_i|: H_b x_i^2 / 2 = (1 - s) barrier."""
        return math.sqrt(2 * (1 - self.share) * self.barrier / self.top)

    @property
    def minimum(self) -> float:
        """l = |x_i| (1 + H_b / H_a), from the slopes at the inflection."""
        return self.inflection * (1 + self.top / self.well)

    def energy(self, x: Tensor) -> Tensor:
        x = x[..., 0]
        size = x.abs()
        inside, outside = self.barrier - 0.5 * self.top * x**2, 0.5 * self.well * (size - self.minimum) ** 2
        return torch.where(size < self.inflection, inside, outside)

    def gradient(self, x: Tensor) -> Tensor:
        size = x.abs()
        return torch.where(size < self.inflection, -self.top * x, self.well * (x - self.minimum * x.sign()))

    def curvature(self, x: Tensor) -> Tensor:
        """|L''| at every x (..., 1): (..., 1), to which the noise of Xie et al. is proportional."""
        return torch.where(x.abs() < self.inflection, self.top, self.well).to(x)

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        wells = tuple(Critical((x,), 0.0, (self.well,)) for x in (-self.minimum, self.minimum))
        return (*wells, Critical((0.0,), self.barrier, (-self.top,)))

    @property
    def learning_coefficient(self) -> tuple[float, int]:
        return 0.5, 1

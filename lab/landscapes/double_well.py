"""L(x, y) = (x^2 - 1)^2 / 4 + k y^2 / 2: two wells at (+-1, 0) and a saddle between them at the origin."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.landscapes.base import Critical, InPlace
from lab.settings import settings


@settings(frozen=False, kw_only=False)
class DoubleWell(InPlace):
    """Two wells at (+-1, 0) and a saddle at 0, 1/4 above them: L = (x^2 - 1)^2/4 + 1/2 sum_i k_i y_i^2.

    Minima (+-1, 0) with Hessian eigenvalues (2, k) and L = 0; saddle at 0 with eigenvalues (-1, k) and L = 1/4, which is
    the barrier.
    """

    stiffness: Annotated[tuple[float, ...], Field(description="k > 0 of each direction across; []: none")] = (1.0,)

    def __post_init__(self) -> None:
        self.num_params = 1 + len(self.stiffness)
        if any(k <= 0 for k in self.stiffness):
            raise ValueError(f"stiffness={list(self.stiffness)}: expected positive curvatures")

    @property
    def barrier(self) -> float:
        """L(saddle) - L(minimum)."""
        return 0.25

    def energy(self, x: Tensor) -> Tensor:
        across, along = x[..., 1:], x[..., 0]
        return (along * along - 1) ** 2 / 4 + 0.5 * (self._k(x) * across * across).sum(-1)

    def gradient_into(self, x: Tensor, out: Tensor) -> Tensor:
        along, down = x[..., 0], out[..., 0]
        torch.mul(along, along, out=down).sub_(1).mul_(along)
        for i, k in enumerate(self.stiffness, start=1):
            torch.mul(x[..., i], k, out=out[..., i])
        return out

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        rest, k = (0.0,) * len(self.stiffness), self.stiffness
        wells = tuple(Critical((x, *rest), 0.0, tuple(sorted((2.0, *k)))) for x in (-1.0, 1.0))
        return (*wells, Critical((0.0, *rest), 0.25, tuple(sorted((-1.0, *k)))))

    @property
    def learning_coefficient(self) -> tuple[float, int]:
        return self.num_params / 2, 1

    def _k(self, x: Tensor) -> Tensor:
        return torch.tensor(self.stiffness, dtype=x.dtype, device=x.device)

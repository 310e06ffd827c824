"""L(w) = 1/2 sum_i h_i w_i^2: the landscape on which every threshold is exact (gradient descent diverges iff lr h > 2)."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.landscapes.base import Critical, Landscape
from lab.settings import settings


@settings(frozen=False, kw_only=False)
class Quadratic(Landscape):
    """L(w) = 1/2 sum_i h_i w_i^2, Hessian diag(h); gradient descent is stable while lr < 2 / max h."""

    curvatures: Annotated[Tensor | tuple[float, ...], Field(description="h (P,), of either sign")] = (10.0, 1.0)

    def __post_init__(self) -> None:
        self.num_params = len(self.curvatures)
        if self.num_params == 0:
            raise ValueError("curvatures=[]: expected at least one")

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * (self._h(x) * x * x).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return self._h(x) * x

    @property
    def critical_points(self) -> tuple[Critical, ...]:
        h = torch.as_tensor(self.curvatures).tolist()
        return (Critical((0.0,) * len(h), 0.0, tuple(sorted(h))),)

    @property
    def learning_coefficient(self) -> tuple[float, int] | None:
        """Half the number of curved directions of a minimum; None where some descend."""
        h = torch.as_tensor(self.curvatures)
        return (int((h > 0).sum()) / 2, 1) if bool((h >= 0).all()) and bool((h > 0).any()) else None

    def _h(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.curvatures).to(x)

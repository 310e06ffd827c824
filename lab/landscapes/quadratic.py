"""L(w) = 1/2 sum_i h_i w_i^2: the landscape on which every threshold is exact (gradient descent diverges iff lr h > 2)."""

from collections.abc import Iterator

from torch import Tensor

from lab.objective import Objective


class Quadratic(Objective):
    """L(w) = 1/2 sum_i h_i w_i^2. Minimum (or saddle) at 0; Hessian diag(h); h (P,) of either sign."""

    def __init__(self, curvatures: Tensor):
        self.curvatures = curvatures
        self.num_params = curvatures.numel()

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        yield 1.0, 0.5 * (self.curvatures.to(w) * w * w).sum()

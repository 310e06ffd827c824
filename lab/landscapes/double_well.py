"""L(x, y) = (x^2 - 1)^2 / 4 + y^2 / 2: two wells at (+-1, 0) and a saddle between them at the origin."""

from collections.abc import Iterator

from torch import Tensor

from lab.objective import Objective


class DoubleWell(Objective):
    """L(x, y) = (x^2 - 1)^2/4 + y^2/2.

    Minima (+-1, 0) with Hessian eigenvalues (2, 1) and L = 0; saddle (0, 0) with eigenvalues (1, -1) and L = 1/4.
    """

    num_params = 2

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        x, y = w
        yield 1.0, (x * x - 1) ** 2 / 4 + y * y / 2

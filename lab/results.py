"""What a measurement returns: the value, its error, its cost, and whether it may be trusted."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Eigenpairs:
    """k eigenpairs at one end of the spectrum, the extreme one first.

    values (k,) float64 Ritz values; vectors (P, k) orthonormal; residuals (k,) ||A v - theta v||_2, so an eigenvalue of A
    lies within residual of each value; errors (k,) the estimated distance to the eigenvalue it stands for, never larger
    than the residual; matvecs the products spent on the whole solve; converged: every error is within the tolerance.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    errors: Tensor
    matvecs: int
    converged: bool

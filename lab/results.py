"""What a measurement returns: the value, its error, its cost, and whether it may be trusted."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Eigenpairs:
    """k eigenpairs at one end of the spectrum, the extreme one first.

    values (k,) float64 Ritz values; vectors (P, k) orthonormal; residuals (k,) ||A v - theta v||_2, so an eigenvalue of A
    lies within residual of each value; errors (k,) the estimated distance to the eigenvalue it stands for, never larger
    than the residual nor smaller than round-off; matvecs the products spent on the whole solve; converged: every error is
    within the tolerance. NaN where a pair was not found.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    errors: Tensor
    matvecs: int
    converged: bool


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error (0: exact up to round-off), its cost and the way it was got.

    value, error floats; matvecs the products spent (or their equivalent in gradients, where no product was formed);
    method says how in a word; converged: the error is within the tolerance asked for.
    """

    value: float
    error: float
    matvecs: int
    method: str
    converged: bool = True


@dataclass(frozen=True)
class Density:
    """Spectral density phi(x) = sum_i delta(x - lambda_i) / P, smoothed, from several random vectors.

    grid (n,) abscissae; values (n,) density, integrating to 1; low, high (n,) the band of one standard error over the
    vectors; nodes, weights (vectors, steps) the Ritz values and Gauss weights behind it (weights of a vector sum to 1);
    sigma the width of the smoothing, in the units of the eigenvalues; matvecs the products spent.
    """

    grid: Tensor
    values: Tensor
    low: Tensor
    high: Tensor
    nodes: Tensor
    weights: Tensor
    sigma: float
    matvecs: int

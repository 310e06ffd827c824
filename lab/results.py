"""What a measurement returns: the value, its error, its cost, and whether it may be trusted."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(ABC):
    """What a measurement of the lab returns; every one is a frozen dataclass that can say, show and store itself.

    In numbers() a standard error or a bound of the error stands beside its quantity x as error/x; NaN means "not measured".
    """

    blank: ClassVar[str] = "there is nothing to draw"

    @abstractmethod
    def numbers(self) -> dict[str, float]:
        """Every quantity by its name, with its error."""

    @abstractmethod
    def sentence(self) -> str:
        """What was found, in one plain sentence, for somebody who sees nothing else."""

    def figure(self, when: str = "") -> "Figure":
        """The picture of it, by default the first that a run logs; `when` is added to its title, e.g. ", step 130".

        Raises ValueError where there is none, with the reason `blank`.
        """
        if not isinstance(when, str):
            raise TypeError(f"figure({when!r}): expected the end of a title, a text; a threshold goes by its name")
        if not (figures := self.figures(when)):
            raise ValueError(self.blank)
        return next(iter(figures.values()))

    def figures(self, when: str = "") -> "dict[str, Figure]":
        """The pictures that a run logs, by name."""
        return {}

    def arrays(self) -> dict[str, Tensor]:
        """What the pictures are drawn from, by name."""
        return {}

    def costs(self) -> dict[str, float]:
        """What it took, by name, beside the seconds: matvecs, batches."""
        return {}

    def memory(self) -> Mapping[str, Tensor]:
        """What the next measurement of the same run can build on."""
        return {}


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


@dataclass(frozen=True)
class EscapeTimes:
    """When each of R replicas left, or until when it was watched without leaving.

    times (R,) float64, steps from the end of the burn-in to the inspection that found the replica outside (or not finite),
    or to the last one that found it inside; exited (R,) bool: found outside; failed (R,) bool: not finite any more, an exit
    of its own kind, never both; neither: censored. inspection: steps between inspections, 0 where times are exact;
    burn_in: steps before the clock started; replaced: exits during these, whose places others took over.
    """

    times: Tensor
    exited: Tensor
    failed: Tensor
    inspection: float = 0.0
    burn_in: float = 0.0
    replaced: int = 0


@dataclass(frozen=True)
class Rate:
    """A rate of events with its exact interval at confidence `level`: events over exposure.

    value per `unit`, NaN where no event was seen: then low is 0 and high the one-sided bound -log(1 - level) / exposure
    (3.0 / exposure at 95 %). exits the number of events; exposure the sum over replicas of the units watched.
    """

    value: float
    low: float
    high: float
    exits: int
    exposure: float
    level: float = 0.95
    unit: str = "step"


Kind = Literal["minimum", "saddle", "maximum", "degenerate", "not critical", "undetermined"]


@dataclass(frozen=True)
class ClassifiedPoint:
    """What a point of a loss is: `lab.points.critical.classify`.

    kind           minimum, saddle, maximum, degenerate (zero eigenvalues and no opposite signs: the Hessian does not tell),
                   "not critical" (the gradient does not vanish; the rest then describes the Hessian there), or
                   undetermined (the eigensolve did not converge, and its bounds leave the kind open).
    value          L(w); grad_norm |g|; gain, length: what a step along -g could take off the loss at the curvature it
                   meets there, |g|^2/(2h), h = |Hg|/|g|, and how long that step would be, |g|/h (inf where h = 0).
    index          number of eigenvalues below -tolerance, nullity of those within tolerance of zero; at least so many where
                   index_exact, nullity_exact are False.
    values, errors, vectors   (m,), (m,), (P, m): the eigenpairs that are known, ascending: all, or both ends.
    tolerance      eigenvalues nearer to zero than this are not told from it; matvecs Hessian products spent.
    """

    kind: Kind
    value: float
    grad_norm: float
    gain: float
    length: float
    index: int
    index_exact: bool
    nullity: int
    nullity_exact: bool
    values: Tensor
    errors: Tensor
    vectors: Tensor
    tolerance: float
    matvecs: int
    converged: bool

    @property
    def index_fraction(self) -> float:
        """Share of the P eigenvalues that are negative, or a lower bound of it."""
        return self.index / self.vectors.shape[0]


def with_errors(pairs: Mapping[str, tuple[float | Tensor, float | Tensor]]) -> dict[str, float]:
    """Every value by its name, every error as error/name, of (value, error) by name."""
    values = {name: float(value) for name, (value, _) in pairs.items()}
    return values | {f"error/{name}": float(error) for name, (_, error) in pairs.items()}


def numbered(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """The same of estimates."""
    return with_errors({name: (estimate.value, estimate.error) for name, estimate in estimates.items()})


def ranked(names: Iterable[str], pairs: Eigenpairs) -> dict[str, float]:
    """The same of eigenvalues, the first name for the extreme one; as many as both last."""
    return with_errors(dict(zip(names, zip(pairs.values, pairs.errors, strict=True), strict=False)))


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those that were measured."""
    return {name: number for name, number in numbers.items() if math.isfinite(number)}

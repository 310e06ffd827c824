"""The critical points of the landscapes, known in closed form: all of them, or one of each family where there are lines."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lab.gallery.landscapes.crossings import Cusp, MinCrossing, ProductCrossing, ThreeLines
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.gallery.landscapes.edge_toy import EdgeToy
from lab.gallery.landscapes.piecewise_parabola import PiecewiseParabola
from lab.landscapes.base import Landscape
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.quadratic import Quadratic
from lab.landscapes.saddle import Saddle


@dataclass(frozen=True)
class KnownPoint:
    """Where it is, the loss there, and the eigenvalues of its Hessian, ascending."""

    w: tuple[float, ...]
    value: float
    eigenvalues: tuple[float, ...]

    @property
    def index(self) -> int:
        return sum(value < 0 for value in self.eigenvalues)

    @property
    def nullity(self) -> int:
        return sum(value == 0 for value in self.eigenvalues)

    @property
    def kind(self) -> Literal["minimum", "saddle", "maximum", "degenerate"]:
        """A saddle has curvatures of both signs; with zero ones and no opposite signs it is degenerate."""
        if 0 < self.index < len(self.eigenvalues) - self.nullity:
            return "saddle"
        if self.nullity:
            return "degenerate"
        return "maximum" if self.index else "minimum"


Points = tuple[KnownPoint, ...]


def known_points(landscape: Landscape) -> Points:
    return KNOWN[type(landscape)](landscape) if type(landscape) in KNOWN else ()


def of_quadratic(landscape: Quadratic) -> Points:
    h = torch.as_tensor(landscape.curvatures).tolist()
    return (KnownPoint((0.0,) * len(h), 0.0, tuple(sorted(h))),)


def of_saddle(landscape: Saddle) -> Points:
    others, down = landscape.dimension - landscape.negative, landscape.down
    saddle = KnownPoint((0.0,) * landscape.dimension, 0.0, (-down,) * landscape.negative + (landscape.up,) * others)
    if landscape.confinement == 0:
        return (saddle,)
    radius = (down / landscape.confinement) ** 0.5
    curvatures = sorted([2 * down] + [0.0] * (landscape.negative - 1) + [landscape.up + down] * others)
    ends = [(sign * radius, *[0.0] * (landscape.dimension - 1)) for sign in (-1, 1)]
    return saddle, *(KnownPoint(w, -(down**2) / (4 * landscape.confinement), tuple(curvatures)) for w in ends)


def of_double_well(landscape: DoubleWell) -> Points:
    rest, k = (0.0,) * len(landscape.stiffness), landscape.stiffness
    wells = tuple(KnownPoint((x, *rest), 0.0, tuple(sorted((2.0, *k)))) for x in (-1.0, 1.0))
    return (*wells, KnownPoint((0.0, *rest), landscape.barrier, tuple(sorted((-1.0, *k)))))


def of_factorisation(landscape: Factorisation) -> Points:
    """The origin, the flattest minimum, and one four times as steep along the same valley."""
    t, root = landscape.target, landscape.target**0.5
    origin = KnownPoint((0.0, 0.0), t * t / 2, (-t, t))
    if t == 0:
        return origin, KnownPoint((2.0, 0.0), 0.0, (0.0, 4.0))
    flattest = KnownPoint((root, root), 0.0, (0.0, 2 * t))
    return origin, flattest, KnownPoint((2 * root, root / 2), 0.0, (0.0, 4.25 * t))


def of_piecewise_parabola(landscape: PiecewiseParabola) -> Points:
    wells = tuple(KnownPoint((x,), 0.0, (landscape.well,)) for x in (-landscape.minimum, landscape.minimum))
    return (*wells, KnownPoint((0.0,), landscape.barrier, (-landscape.top,)))


def of_edge_toy(landscape: EdgeToy) -> Points:
    """The minimum; and two saddles at y = 0, x^2 = 2 k y*, with eigenvalues (k -+ sqrt(k^2 + 8 k y*))/2."""
    k, goal = landscape.pull, landscape.goal
    root, x, value = math.sqrt(k**2 + 8 * k * goal), math.sqrt(2 * k * goal), 0.5 * k * goal**2
    minimum = KnownPoint((0.0, goal), 0.0, tuple(sorted((goal, k))))
    return minimum, *(KnownPoint((sign * x, 0.0), value, ((k - root) / 2, (k + root) / 2)) for sign in (-1, 1))


def of_deep_linear(landscape: DeepLinear) -> Points:
    """The origin: eigenvalues -+s_i for every hidden unit with two matrices, none with more."""
    s, width = landscape.singular_values, len(landscape.singular_values)
    pairs = [sign * each for each in s for sign in (-1, 1) for _ in range(width)]
    eigenvalues = sorted(pairs) if landscape.depth == 2 else [0.0] * landscape.num_params
    return (KnownPoint((0.0,) * landscape.num_params, 0.5 * sum(each * each for each in s), tuple(eigenvalues)),)


def of_min_crossing(landscape: MinCrossing) -> Points:
    """One of each valley; at the crossing L has no Hessian."""
    b, steep = landscape.centre, 2 * landscape.alpha
    return KnownPoint((b, b + 1), 0.0, (0.0, steep)), KnownPoint((b + 1, b), 0.0, (0.0, steep))


def of_lines(landscape: ProductCrossing | ThreeLines) -> Points:
    return KnownPoint((0.0, 0.0), 0.0, (0.0, 0.0)), KnownPoint((1.0, 0.0), 0.0, (0.0, 2 * landscape.alpha))


def of_cusp(landscape: Cusp) -> Points:
    return KnownPoint((0.0, 0.0), 0.0, (0.0, 0.0)), KnownPoint((1.0, 1.0), 0.0, (0.0, 26 * landscape.alpha))


KNOWN: dict[type, Callable[[Any], Points]] = {
    Quadratic: of_quadratic,
    Saddle: of_saddle,
    DoubleWell: of_double_well,
    Factorisation: of_factorisation,
    PiecewiseParabola: of_piecewise_parabola,
    EdgeToy: of_edge_toy,
    DeepLinear: of_deep_linear,
    MinCrossing: of_min_crossing,
    ProductCrossing: of_lines,
    ThreeLines: of_lines,
    Cusp: of_cusp,
}

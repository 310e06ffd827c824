"""Points classified: every known critical point, plateaus that are none, and bounds that hold when the products run out."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from lab.curvature.operators import hessian
from lab.gallery.landscapes.crossings import ProductCrossing
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.gallery.landscapes.piecewise_parabola import PiecewiseParabola
from lab.landscapes.base import Critical, Landscape
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.quadratic import Quadratic
from lab.landscapes.saddle import Saddle
from lab.points.critical import classify
from lab.run.cards import card, config_dir

DOUBLE = torch.float64


CARDS = sorted(Path(config_dir(), "landscape").glob("*.yaml"))
LANDSCAPES = [card(yaml.safe_load(file.read_text()), "landscape") for file in CARDS] + [
    Quadratic((-2.0, -1.0)),
    Quadratic((-2.0, 0.0)),
    Quadratic((2.0, -1.0, 0.0)),
    Saddle(dimension=5, negative=3, down=0.7, up=2.0, confinement=0.3),
    Saddle(dimension=2, negative=2),
    Factorisation(target=0.0),
    DeepLinear(singular_values=(2.0, 1.0), depth=3),
    PiecewiseParabola(well=1.0, top=3.0),
]
KNOWN = [(landscape, point) for landscape in LANDSCAPES for point in landscape.critical_points]


class Slope(Landscape):
    """e^-x + steep y^2/2: small everywhere to the right, and nowhere critical."""

    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        return (-x[..., 0]).exp() + 50 * x[..., 1].square()


@pytest.mark.parametrize("dense", [500, 0], ids=["all", "lanczos"])
@pytest.mark.parametrize(("landscape", "point"), KNOWN, ids=[f"{type(a).__name__}-{b.kind}" for a, b in KNOWN])
def test_every_known_critical_point_is_classified_right(landscape: Landscape, point: Critical, dense: int) -> None:
    found = classify(landscape, torch.tensor(point.w, dtype=DOUBLE), dense=dense)
    assert (found.kind, found.index, found.index_exact) == (point.kind, point.index, True)
    assert found.nullity == point.nullity or (not found.nullity_exact and 0 < found.nullity < point.nullity)
    assert found.value == pytest.approx(point.value, abs=1e-12)
    scale = max(1.0, *map(abs, point.eigenvalues))
    assert float(found.values[0]) == pytest.approx(min(point.eigenvalues), abs=1e-9 * scale)
    assert float(found.values[-1]) == pytest.approx(max(point.eigenvalues), abs=1e-4 * scale)  # tol of Lanczos
    H = hessian(landscape, torch.tensor(point.w, dtype=DOUBLE))
    off = (H @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert bool((off <= 0.02 * scale).all()), "an error of tol in a value is one of sqrt(tol) in its vector"


def test_all_four_kinds_are_among_them() -> None:
    assert {point.kind for _, point in KNOWN} == {"minimum", "saddle", "maximum", "degenerate"}


def test_a_zero_eigenvalue_leaves_a_minimum_undecided() -> None:
    # THEORY row 42: (2, 1/2) is a minimum of (1 - ab)^2/2 with eigenvalues {0, 4.25}; the origin of depth 3 has H = 0.
    found = classify(Factorisation(), torch.tensor([2.0, 0.5], dtype=DOUBLE))
    assert (found.kind, found.nullity) == ("degenerate", 1)
    assert found.values.tolist() == pytest.approx([0, 4.25], abs=1e-14)
    deep = classify(DeepLinear((2.0, 1.0), depth=3), torch.zeros(12, dtype=DOUBLE))
    assert (deep.kind, deep.nullity, deep.tolerance) == ("degenerate", 12, 0.0)


@pytest.mark.parametrize("x", [2.0, 15.0, 20.0])
def test_a_plateau_is_no_critical_point_however_small_its_gradient(x: float) -> None:
    # THEORY row 39. At x = 20 |g| = 2e-9 passes any tolerance, but following it would still halve the loss.
    found = classify(Slope(), torch.tensor([x, 0.0], dtype=DOUBLE), gradient_tol=1.0)
    assert found.kind == "not critical"
    assert (found.gain, found.length) == pytest.approx((math.exp(-x) / 2, 1.0))


def test_a_gradient_in_the_null_space_is_not_done_at_any_distance() -> None:
    class Ramp(Landscape):
        num_params = 2

        def energy(self, x: Tensor) -> Tensor:
            return 1e-9 * x[..., 0] + x[..., 1].square()

    found = classify(Ramp(), torch.zeros(2, dtype=DOUBLE))
    assert (found.kind, found.gain, found.length) == ("not critical", math.inf, math.inf)


def test_the_gradient_is_held_against_its_tolerance_first() -> None:
    w = torch.tensor([1e-6, 0.0], dtype=DOUBLE)
    assert classify(Factorisation(), w).kind == "not critical"
    assert classify(Factorisation(), w, gradient_tol=1e-5).kind == "saddle"
    assert classify(Factorisation(), w).index == 1, "the index is that of the Hessian there"


def test_a_minimum_of_zero_loss_is_one_before_it_is_reached_to_the_last_digit() -> None:
    # Near it |g|^2/(2 lambda) is as large as the loss itself; what tells it from a plateau is how short the step would be.
    found = classify(Quadratic((10.0, 1.0)), torch.tensor([1e-10, 1e-10], dtype=DOUBLE))
    assert found.kind == "minimum"
    assert found.gain > 0.5 * found.value > 0


def with_index(size: int, index: int, zeros: int) -> Quadratic:
    g = torch.Generator().manual_seed(1)
    negative = -0.05 - torch.rand(index, generator=g, dtype=DOUBLE)
    rest = 0.05 + 10 * torch.rand(size - index - zeros, generator=g, dtype=DOUBLE)
    return Quadratic(torch.cat([negative, torch.zeros(zeros, dtype=DOUBLE), rest]))


@pytest.mark.parametrize(
    ("index", "zeros", "kind"), [(0, 0, "minimum"), (4, 0, "saddle"), (4, 50, "saddle"), (0, 50, "degenerate")]
)
def test_lanczos_counts_what_dense_matrices_count(index: int, zeros: int, kind: str) -> None:
    found = classify(with_index(400, index, zeros), torch.zeros(400, dtype=DOUBLE), dense=0)
    assert (found.kind, found.index, found.index_exact) == (kind, index, True)
    assert (found.nullity, found.nullity_exact) == ((0, True) if zeros == 0 else (1, False))
    assert found.matvecs < 400


def test_products_that_run_out_leave_a_lower_bound_of_the_index_and_an_open_kind() -> None:
    w = torch.zeros(600, dtype=DOUBLE)
    found = classify(with_index(600, 80, 100), w, dense=0, max_matvecs=120)
    assert (found.kind, found.index_exact, found.converged) == ("saddle", False, False)
    assert 0 < found.index < 80
    assert (found.nullity, found.nullity_exact) == (0, False), "near zero may be what is negative"
    assert found.index_fraction == found.index / 600
    few = classify(with_index(600, 0, 0), w, dense=0, max_matvecs=6)
    assert (few.kind, few.index, few.index_exact) == ("undetermined", 0, False)


def test_float32_tells_fewer_eigenvalues_from_zero_and_says_so() -> None:
    landscape, w = ProductCrossing(), torch.tensor([1.0, 0.0])
    single, double = classify(landscape, w), classify(landscape, w.double())
    assert single.kind == double.kind == "degenerate"
    assert float(single.errors[0]) > float(double.errors[0])


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        classify(Factorisation(), torch.tensor([math.nan, 0.0], dtype=DOUBLE))

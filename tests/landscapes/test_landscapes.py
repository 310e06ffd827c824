"""Every landscape against what it claims of itself, and against the numbers of the literature."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from lab.curvature.operators import hessian
from lab.gallery.landscapes.crossings import Cusp, MinCrossing, ProductCrossing, ThreeLines
from lab.gallery.landscapes.deep_linear import DeepLinear
from lab.gallery.landscapes.edge_toy import EdgeToy
from lab.gallery.landscapes.piecewise_parabola import PiecewiseParabola
from lab.landscapes.base import Critical, Landscape
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.factorisation import Factorisation
from lab.landscapes.quadratic import Quadratic
from lab.landscapes.saddle import Saddle
from lab.run.cards import card, config_dir

DOUBLE = torch.float64


CARDS = [
    card(yaml.safe_load(file.read_text()), "landscape")
    for file in sorted(Path(config_dir(), "landscape").glob("*.yaml"))
]
MORE: list[Landscape] = [
    DoubleWell(stiffness=()),
    DoubleWell(stiffness=(0.5, 8.0)),
    Saddle(dimension=5, negative=3, down=0.7, up=2.0, confinement=0.3),
    Saddle(dimension=2, negative=2),
    Saddle(confinement=0.0),
    Factorisation(target=0.0),
    Factorisation(target=2.5),
    DeepLinear(singular_values=(2.0, 1.0), depth=3),
    MinCrossing(alpha=3.0, centre=0.4),
    PiecewiseParabola(well=1.0, top=3.0),
    Quadratic((2.0, -1.0, 0.0)),
]


@pytest.mark.parametrize("landscape", CARDS + MORE, ids=repr)
def test_gradients_of_many_points_equal_automatic_ones(landscape: Landscape) -> None:
    x = torch.randn(4, 3, landscape.num_params, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    truth = Landscape.gradient(landscape, x)
    torch.testing.assert_close(landscape.gradient(x), truth, rtol=1e-12, atol=1e-12)
    assert landscape.energy(x).shape == (4, 3)


@pytest.mark.parametrize("landscape", CARDS + MORE, ids=repr)
def test_critical_points_are_what_they_are_said_to_be(landscape: Landscape) -> None:
    for point in landscape.critical_points:
        w = torch.tensor(point.w, dtype=DOUBLE)
        scale = max(1.0, max(map(abs, point.eigenvalues)))
        assert float(landscape.grad(w).abs().max()) <= 1e-12 * scale
        assert float(landscape.value(w)) == pytest.approx(point.value, abs=1e-12)
        values = torch.linalg.eigvalsh(hessian(landscape, w).dense())
        torch.testing.assert_close(values, torch.tensor(point.eigenvalues, dtype=DOUBLE), rtol=0, atol=1e-12 * scale)
        assert point.kind == _kind(values, scale)


def _kind(values: torch.Tensor, scale: float) -> str:
    down, up = bool((values < -1e-12 * scale).any()), bool((values > 1e-12 * scale).any())
    if down and up:
        return "saddle"
    if bool((values.abs() <= 1e-12 * scale).any()):
        return "degenerate"
    return "maximum" if down else "minimum"


def test_index_and_nullity_of_a_critical_point_are_counted() -> None:
    point = Critical((0.0,) * 4, 0.0, (-2.0, -1.0, 0.0, 3.0))
    assert (point.index, point.nullity, point.kind) == (2, 1, "saddle")
    assert Critical((0.0,), 0.0, (0.0,)).kind == "degenerate"
    assert Critical((0.0,), 0.0, (-1.0,)).kind == "maximum"


def test_piecewise_parabola_joins_with_its_slope_and_its_barrier() -> None:
    landscape = PiecewiseParabola(well=4.0, top=1.0, barrier=0.25)
    assert landscape.share == pytest.approx(0.2)
    joint = torch.tensor([[-landscape.inflection - 1e-9], [-landscape.inflection + 1e-9]], dtype=DOUBLE)
    assert float(landscape.energy(joint).diff().abs()) < 1e-8
    assert float(landscape.gradient(joint)[:, 0].diff().abs()) < 1e-8
    # s of the barrier is climbed in the well, 1 - s on the top.
    assert float(landscape.energy(joint)[0]) == pytest.approx(0.25 * landscape.share, abs=1e-8)
    assert landscape.curvature(joint)[:, 0].tolist() == [4.0, 1.0]


def test_gradient_flow_of_the_factorisation_keeps_its_difference_of_squares() -> None:
    landscape = Factorisation()
    w = torch.tensor([3.0, 0.2], dtype=DOUBLE)
    end = landscape.flow_end(w)
    for _ in range(3000):
        w = w - 1e-3 * landscape.gradient(w)
    assert float(w.square().sum()) == pytest.approx(float(end), rel=1e-2)  # Euler's error, of the order of the step
    assert float(end) == pytest.approx(9.18, abs=0.005)


def test_gradient_descent_of_the_factorisation_ends_below_the_edge() -> None:
    landscape = Factorisation()
    for lr, expected in ((0.25, 6.432), (0.2, 9.012)):
        w = torch.tensor([3.0, 0.2], dtype=DOUBLE)
        for _ in range(5000):
            w = w - lr * landscape.gradient(w)
        assert float(w.square().sum()) == pytest.approx(expected, abs=0.001)
        assert expected < 2 / lr


@pytest.mark.parametrize(("lr", "pull", "past"), [(0.1, 0.05, 2.0), (0.05, 0.02, 4.0), (0.1, 0.2, 4.9)])
def test_the_cycle_of_the_edge_toy_comes_back_after_two_steps(lr: float, pull: float, past: float) -> None:
    landscape = EdgeToy(pull=pull, goal=2 / lr + past)
    square, level = landscape.cycle(lr)
    assert square == pytest.approx(2 * pull * past)
    w = torch.tensor([math.sqrt(square), level], dtype=DOUBLE)
    once = w - lr * landscape.gradient(w)
    twice = once - lr * landscape.gradient(once)
    torch.testing.assert_close(once, w * torch.tensor([-1.0, 1.0]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(twice, w, rtol=1e-12, atol=1e-12)


def test_gradient_descent_on_the_edge_toy_goes_to_two_over_lr() -> None:
    landscape, lr = EdgeToy(), 0.1
    w = torch.tensor([0.3, 19.0], dtype=DOUBLE)
    for _ in range(8000):
        w = w - lr * landscape.gradient(w)
    assert w.abs().tolist() == pytest.approx([math.sqrt(0.2), 20.0], rel=1e-4)


def test_the_cusp_scales_by_its_learning_coefficient() -> None:
    # L(t^2 x, t^3 y) = t^12 L(x, y), so volumes shrink like t^(2 + 3) where energies shrink like t^12: lambda = 5/12.
    x, t = torch.randn(20, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)), 0.3
    scaled = x * torch.tensor([t**2, t**3], dtype=DOUBLE)
    torch.testing.assert_close(Cusp().energy(scaled), t**12 * Cusp().energy(x), rtol=1e-10, atol=0)
    assert Cusp().learning_coefficient == ((2 + 3) / 12, 1)


def test_the_cycle_of_the_edge_toy_is_lost_beyond_its_bound_and_absent_below_the_edge() -> None:
    landscape = EdgeToy(pull=0.05, goal=20 + 5.5)  # lr (y* - 2/lr) = 0.55 > 1/2
    w, seen = torch.tensor([0.3, 19.0], dtype=DOUBLE), []
    for step in range(4000):
        w = w - 0.1 * landscape.gradient(w)
        if step >= 2000:
            seen.append(float(w[1]))
    assert torch.tensor(seen).std() > 1.0
    assert all(math.isnan(value) for value in EdgeToy(goal=10.0).cycle(0.1))


def test_negative_eigenvalues_of_a_deep_linear_saddle_are_the_values_not_learnt() -> None:
    landscape = DeepLinear(singular_values=(3.0, 2.0, 1.0))
    for rank in range(4):
        w = landscape.saddle(rank)
        assert float(landscape.grad(w).abs().max()) < 1e-12
        values = torch.linalg.eigvalsh(hessian(landscape, w).dense())
        rest = landscape.singular_values[rank:]
        truth = [-s for s in rest for _ in rest]
        assert values[values < -1e-9].tolist() == pytest.approx(truth)
        assert len(truth) == (3 - rank) ** 2


def test_growth_from_a_deep_linear_saddle_is_log_one_plus_lr_lambda() -> None:
    landscape, lr = DeepLinear(), 0.01
    saddle = landscape.saddle(1)
    values, vectors = torch.linalg.eigh(hessian(landscape, saddle).dense())
    assert float(values[0]) == pytest.approx(-2.0)
    w, before, growth = saddle + 1e-8 * vectors[:, 0], 1e-8, 0.0
    for _ in range(200):
        w = w - lr * landscape.gradient(w)
        now = float((w - saddle) @ vectors[:, 0])
        growth, before = math.log(now / before), now
    assert growth == pytest.approx(math.log(1 + lr * 2), rel=1e-5)
    assert growth == pytest.approx(0.01980263, rel=1e-5)


def test_a_step_along_negative_curvature_drops_as_the_quartic_says() -> None:
    landscape = Factorisation()
    direction = torch.ones(2, dtype=DOUBLE) / math.sqrt(2)
    drop = landscape.value(torch.zeros(2, dtype=DOUBLE)) - landscape.value(0.3 * direction)
    assert float(landscape.value(0.3 * direction)) == pytest.approx(0.4560125, abs=1e-12)
    assert float(drop) == pytest.approx(0.5 * 0.3**2, rel=0.03)  # the quadratic prediction, .045 of .0440


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Quadratic(()), "at least one"),
        (lambda: DoubleWell(stiffness=(1.0, -1.0)), "positive"),
        (lambda: Saddle(dimension=2, negative=3), "at most"),
        (lambda: DeepLinear(singular_values=(1.0, 2.0)), "descending"),
        (lambda: Cusp(alpha=-1.0), "greater than 0"),
        (lambda: ThreeLines(alpha=math.inf), "finite"),
        (lambda: ProductCrossing(slope=1.0), "slope"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()

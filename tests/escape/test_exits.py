"""Exit rules on landscapes whose basins are known."""

import torch

from lab.escape.exits import Coordinate, Growth, LossBarrier, Quench, TopDistance
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic

DOUBLE = torch.float64


def at(*points: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(points, dtype=DOUBLE)


def test_a_coordinate_beyond_the_saddle_lies_half_way_to_the_minimum_whatever_the_sign_of_its_direction() -> None:
    for sign in (1.0, -1.0):
        rule = Coordinate.beyond(sign * at((1, 0))[0], at((0, 0))[0], at((1, 0.3))[0])
        assert rule.outside(at((0.4, 5), (0.6, -5), (-3, 0))).tolist() == [False, True, False]
    both = Coordinate(at((1, 0))[0], at((0, 0))[0], 0.5, both=True)
    assert both.outside(at((0.4, 5), (0.6, 0), (-3, 0))).tolist() == [False, True, True]


def test_growth_and_top_distance_measure_in_their_directions_only() -> None:
    rule = Growth(at((0,), (1,)), at((1, 1))[0], 0.5)  # type: ignore[arg-type]
    assert rule.outside(at((9, 1.2), (1, 1.6), (1, 0.4))).tolist() == [False, True, True]
    assert not rule.warning and "softest" in TopDistance.warning


def test_the_loss_barrier_is_the_full_loss() -> None:
    rule = LossBarrier(DoubleWell(), 0.3)
    assert rule.outside(at((-1, 0), (-1, 0.9), (0, 0))).tolist() == [False, True, False]
    assert "P T/2" in rule.warning


def test_nothing_that_diverged_is_outside_of_anything() -> None:
    gone, well = at((float("nan"), 0)), DoubleWell()
    rules = [
        Coordinate(at((1, 0))[0], at((0, 0))[0], 0.5, both=True),
        LossBarrier(well, 0.3),
        Quench(well, at((-1, 0))[0], lr=0.3, steps=5),
    ]
    assert [rule.outside(gone).tolist() for rule in rules] == [[False]] * 3


def test_gradient_descent_from_every_point_ends_in_its_basin_of_the_double_well() -> None:
    rule = Quench(DoubleWell(), at((-1, 0))[0], lr=0.3)
    start = at((-0.02, 1), (0.02, 1), (-1.8, -2), (1.4, 0))
    assert rule.outside(start).tolist() == [False, True, False, True]
    assert rule.unconverged == 0 and rule.quenched == 4
    torch.testing.assert_close(rule.ends(start).w[:, 0].sign(), torch.tensor([-1.0, 1, -1, 1], dtype=DOUBLE))


def test_a_flat_valley_is_one_basin_and_its_equal_loss_image_beyond_a_barrier_is_another() -> None:
    flat = Quadratic(torch.tensor([1.0, 0.0], dtype=DOUBLE))
    assert not Quench(flat, at((0, 0))[0], lr=0.9).outside(at((0.5, 100), (2, -3))).any()
    assert Quench(DoubleWell(), at((-1, 0))[0], lr=0.3).elsewhere(at((1, 0))).all()


def test_a_quench_that_did_not_come_to_rest_is_counted() -> None:
    rule = Quench(DoubleWell(stiffness=(1e-3,)), at((-1, 0))[0], lr=1e-3, steps=1, gradient_tolerance=1e-12)
    rule.outside(at((-0.1, 1), (-1, 0)))
    assert (rule.unconverged, rule.quenched) == (1, 2)

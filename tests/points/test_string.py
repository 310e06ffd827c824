"""The string method on landscapes whose saddle is known, and where there is none to be had."""

import pytest
import torch
from torch import Tensor

from lab.landscapes.base import Landscape
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic
from lab.points.string import equal_arcs, find_pass, string


class Bent(Landscape):
    """(x^2 - 1)^2/4 + k/2 (y - c (1 - x^2))^2: minima (+-1, 0), saddle (0, c) of height 1/4, and a valley that bends."""

    num_params = 2

    def __init__(self, k: float = 4.0, c: float = 1.0):
        self.k, self.c = k, c

    def energy(self, x: Tensor) -> Tensor:
        return (x[..., 0] ** 2 - 1) ** 2 / 4 + self.k / 2 * (x[..., 1] - self.c * (1 - x[..., 0] ** 2)) ** 2


class ThreeWells(Landscape):
    """x^2 (x^2 - 1)^2 + y^2/2: minima at -1, 0, 1."""

    num_params = 2

    def energy(self, x: Tensor) -> Tensor:
        return x[..., 0] ** 2 * (x[..., 0] ** 2 - 1) ** 2 + x[..., 1] ** 2 / 2


def at(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_points_at_equal_arcs_lie_on_the_path() -> None:
    corner = torch.stack([at(0, 0), at(0.1, 0), at(3, 0), at(3, 1), at(3, 5)])
    even = equal_arcs(corner)
    torch.testing.assert_close(even, torch.stack([at(0, 0), at(2, 0), at(3, 1), at(3, 3), at(3, 5)]))
    line = torch.stack([at(0, 0), at(1, 2), at(2, 4), at(3, 6)])
    torch.testing.assert_close(equal_arcs(line), line)


def test_the_saddle_of_a_bent_valley_is_found_to_round_off() -> None:
    """Straight between the minima the highest point is (0, 0), of loss 1/4 + k/2: the string has to bend."""
    bent = Bent()
    found = find_pass(bent, at(-1, 0), at(1, 0), steps=600)
    assert found.saddle is not None and not found.failure
    torch.testing.assert_close(found.saddle.w, at(0, 1), atol=1e-12, rtol=0)
    assert found.saddle.index == 1 and found.saddle.grad_norm < 1e-13
    assert found.saddle.value == pytest.approx(0.25, abs=1e-13)
    torch.testing.assert_close(found.saddle.eigenvalues, at(-1, 4), atol=1e-12, rtol=0)
    assert float(found.values.max()) == pytest.approx(0.25, rel=0.02)
    # On a path of least loss the gradient has no component across the path.
    inner, tangents = found.string[1:-1], found.string[2:] - found.string[:-2]
    gradient = bent.gradient(inner)
    tangents = tangents / tangents.norm(dim=1, keepdim=True)
    across = gradient - (gradient * tangents).sum(1, keepdim=True) * tangents
    assert float(across.norm(dim=1).max()) < 0.05, "it is 4 on the straight line"


def test_the_saddle_of_the_double_well() -> None:
    found = find_pass(DoubleWell((2.0, 0.5)), at(-1, 0, 0), at(1, 0, 0), steps=100)
    assert found.saddle is not None
    torch.testing.assert_close(found.saddle.w, at(0, 0, 0), atol=1e-13, rtol=0)


def test_a_minimum_on_the_way_is_told() -> None:
    found = find_pass(ThreeWells(), at(-1, 0), at(1, 0), images=41, steps=100)
    assert found.saddle is None and "goes through another minimum" in found.failure


def test_a_slope_has_no_saddle() -> None:
    found = find_pass(Quadratic((1.0, 2.0)), at(0, 0), at(1, 1), steps=20)
    assert found.saddle is None and "no maximum" in found.failure


def test_the_wrong_saddle_is_not_taken() -> None:
    """From a string that has not come down, at (0, 0), Newton finds a point all the same; its loss is not the string's."""
    found = find_pass(Bent(k=40.0, c=1.5), at(-1, 0), at(1, 0), steps=0)
    assert found.saddle is None and found.failure


def test_a_string_with_too_long_steps_says_so() -> None:
    with pytest.raises(ValueError, match="lr=50: the string diverged"):
        string(Bent(), at(-1, 0.3), at(1, 0), lr=50.0, steps=60)

"""Minima and local Hessians against landscapes that are known, and a network whose minima have images."""

import pytest
import torch

from lab.curvature.operators import hessian
from lab.data.halves import halves_loss
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic
from lab.objective.decayed import Decayed
from lab.points.dense import LARGEST, gradient_field, local, losses, stationary
from lab.points.minima import descend, find_minima
from lab.points.symmetry import hidden_neurons


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_local_pictures_are_those_of_one_point_after_the_other() -> None:
    objective = Decayed(halves_loss(50, 3, 2, 2), 0.02)
    W = torch.randn(4, objective.num_params, generator=seeded(), dtype=torch.float64)
    at = local(objective, W)
    field = gradient_field(objective)(W)
    for r, w in enumerate(W):
        assert float(at.values[r]) == pytest.approx(float(objective.value(w)), rel=1e-14)
        torch.testing.assert_close(at.gradients[r], objective.grad(w), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(field[r], objective.grad(w), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(at.hessians[r], hessian(objective, w).dense(), rtol=1e-10, atol=1e-13)
    assert losses(objective, W.clone().requires_grad_()).requires_grad


def test_a_hessian_too_large_to_form_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters: full Hessians are formed up to"):
        local(Quadratic((1.0,) * (LARGEST + 1)), torch.ones(1, LARGEST + 1))


def test_the_two_wells_are_found_with_their_curvatures_to_round_off() -> None:
    well = DoubleWell((3.0,))
    found = find_minima(well, seeded(), restarts=20)
    assert sum(found.counts) + found.lost == 20 and len(found.points) == 2
    assert sorted(round(float(point.w[0]), 9) for point in found.points) == [-1, 1]
    for point in found.points:
        assert point.value < 1e-20 and point.grad_norm < 1e-10 and point.index == 0
        torch.testing.assert_close(point.eigenvalues, torch.tensor([2.0, 3.0], dtype=torch.float64), rtol=1e-8, atol=0)


def test_descent_leaves_a_saddle_sideways_and_does_not_end_there() -> None:
    ends = descend(DoubleWell((3.0,)), torch.tensor([[1e-6, 0.5], [-1e-6, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64), atol=1e-9, rtol=0)


def test_what_has_no_minimum_is_lost() -> None:
    found = find_minima(Quadratic((1.0, -1.0)), seeded(), restarts=2)
    assert not found.points and found.lost == 2
    flat = find_minima(Quadratic((1.0, 0.0)), seeded(), restarts=5)
    assert not flat.points and flat.lost == 5, "a valley is no isolated minimum"


def test_symmetric_images_of_a_minimum_are_one() -> None:
    network = halves_loss(30, 3, 1, 2)
    objective = Decayed(network, 0.02)
    starts = 8
    one = find_minima(objective, seeded(), restarts=starts, symmetry=hidden_neurons(network))
    every = find_minima(objective, seeded(), restarts=starts)
    assert one.lost == every.lost == 0
    assert len(one.points) < len(every.points), "8 images of each"
    assert one.points[0].value == pytest.approx(min(point.value for point in every.points), abs=1e-12)


def test_the_best_network_of_one_neuron_is_the_known_one() -> None:
    """L = 0.753402: an independent implementation, 12 restarts."""
    network = halves_loss(200, 8, 2, 1)
    found = find_minima(network, seeded(), restarts=6, spread=0.3, symmetry=hidden_neurons(network))
    assert found.points[0].value == pytest.approx(0.753402, abs=1e-6)
    assert stationary(network, found.points[0].w).grad_norm < 1e-10

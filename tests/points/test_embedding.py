"""Saddles made from a smaller network: the function is kept, all gradients vanish, and where the noise is exactly zero."""

import pytest
import torch
from torch import Tensor

from lab.data.halves import halves_loss
from lab.objective import NetworkObjective
from lab.points.dense import stationary
from lab.points.embedding import OneHidden, add_neuron, dead_neuron, joined, output_slopes, split_neuron
from lab.points.minima import descend

EXAMPLES, SHAPE = 200, OneHidden(8, 1, 2)
LARGER = OneHidden(8, 2, 2)


@pytest.fixture(scope="module")
def small() -> tuple[NetworkObjective, Tensor]:
    """A critical point of the 8-1-2 network."""
    loss = halves_loss(EXAMPLES, 8, 2, 1)
    start = 0.3 * torch.randn(4, loss.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = descend(loss, start, max_steps=60)
    norms = loss.replica_grads(ends).norm(dim=1)
    assert float(norms.min()) < 1e-10
    return loss, ends[norms.argmin()]


@pytest.fixture(scope="module")
def large() -> NetworkObjective:
    return halves_loss(EXAMPLES, 8, 2, 2)


def noise(loss: NetworkObjective, w: Tensor, u: Tensor) -> float:
    """u'Du by its definition."""
    along = loss.example_grads(w) @ u
    return float((along - along.mean()).square().mean())


def test_split_and_joined_are_the_layout_of_the_network(large: NetworkObjective) -> None:
    w = torch.arange(LARGER.num_params, dtype=torch.float64)
    W1, b1, W2, b2 = LARGER.split(w)
    assert torch.equal(joined(W1, b1, W2, b2), w)
    x = torch.randn(5, 8, dtype=torch.float64)
    small = w / 100
    W1, b1, W2, b2 = LARGER.split(small)
    assert torch.allclose(large.outputs(small, x), torch.tanh(x @ W1.T + b1) @ W2.T + b2, atol=1e-13)


@pytest.mark.parametrize("share", [0.5, 0.3, -1.0, 2.0])
def test_a_split_neuron_keeps_the_loss_and_the_vanishing_gradient(
    share: float, small: tuple[NetworkObjective, Tensor], large: NetworkObjective
) -> None:
    loss, w = small
    there = split_neuron(w, SHAPE, share=share)
    assert float(large.value(there)) == pytest.approx(float(loss.value(w)), rel=1e-13)
    assert float(large.grad(there).norm()) < 1e-9


def test_equal_halves_have_no_noise_in_any_descending_direction_and_unequal_ones_have(
    small: tuple[NetworkObjective, Tensor], large: NetworkObjective
) -> None:
    """Also straight from the example gradients: those of the two halves differ by round-off only."""
    _, w = small
    equal = stationary(large, split_neuron(w, SHAPE))
    assert equal.index > 0
    descending = equal.vectors[:, equal.eigenvalues < -1e-8]
    assert all(noise(large, equal.w, u) < 1e-25 for u in descending.T)
    unequal = stationary(large, split_neuron(w, SHAPE, share=0.3))
    assert noise(large, unequal.w, unequal.vectors[:, 0]) > 1e-6
    parts = LARGER.split(large.example_grads(equal.w)[0])
    assert torch.allclose(parts[0][0], parts[0][1], atol=1e-15)


def test_the_eigenvalues_of_a_split_go_as_share_times_the_rest(
    small: tuple[NetworkObjective, Tensor], large: NetworkObjective
) -> None:
    """Along (w_1, c_1, w_2, c_2) = ((1 - m) z, -m z) the Hessian is m (1 - m) mean (v'r) phi'' (x, 1)(x, 1)', by hand."""
    loss, w = small
    _, _, W2, _ = SHAPE.split(w)
    weights, bias = SHAPE.split(w)[:2]
    inner = torch.tanh(loss.x @ weights[0] + bias[0])
    second = -2 * inner * (1 - inner.square())
    x = torch.cat([loss.x, torch.ones(EXAMPLES, 1, dtype=torch.float64)], 1)
    inside = (x.T * ((output_slopes(loss, w) @ W2[:, 0]) * second)) @ x / EXAMPLES
    for m in (0.5, 0.3):
        H = torch.autograd.functional.hessian(
            lambda v: large.loss_of(v, large.x, large.y), split_neuron(w, SHAPE, share=m)
        )
        z = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        first, other = (1 - m) * z, -m * z
        u = joined(
            torch.stack([first[:8], other[:8]]), torch.stack([first[8], other[8]]), torch.zeros(2, 2), torch.zeros(2)
        )
        assert float(u.double() @ H @ u.double()) == pytest.approx(float(m * (1 - m) * z @ inside @ z), rel=1e-9)


def test_a_dead_neuron_is_a_critical_point_with_noise(
    small: tuple[NetworkObjective, Tensor], large: NetworkObjective
) -> None:
    loss, w = small
    start = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.5
    incoming = dead_neuron(loss, w, SHAPE, start=start)
    there = add_neuron(w, SHAPE, incoming)
    assert float(large.value(there)) == pytest.approx(float(loss.value(w)), rel=1e-14)
    assert float(large.grad(there).norm()) < 1e-9
    point = stationary(large, there)
    assert float(point.eigenvalues[0]) < -1e-4
    assert noise(large, there, point.vectors[:, 0]) > 1e-4
    anywhere = add_neuron(w, SHAPE, start)  # not critical unless the neuron is placed
    assert float(large.grad(anywhere).norm()) > 1e-3


def test_output_slopes_of_the_squared_error_are_the_residuals(small: tuple[NetworkObjective, Tensor]) -> None:
    loss, w = small
    assert torch.allclose(output_slopes(loss, w), loss.outputs(w, loss.x) - loss.y, atol=1e-14)


def test_what_cannot_be_is_said(small: tuple[NetworkObjective, Tensor]) -> None:
    loss, w = small
    with pytest.raises(ValueError, match="8-1-2 network with biases has"):
        split_neuron(w[1:], SHAPE)
    with pytest.raises(ValueError, match="neuron=1: expected 0 to 0"):
        split_neuron(w, SHAPE, neuron=1)
    saturated = torch.cat([torch.zeros(8), torch.tensor([30.0])]).double()  # tanh = 1 for all: no way to turn
    shifted = w + 0.1  # mean residual is not zero there
    with pytest.raises(ValueError, match="no dead neuron was found"):
        dead_neuron(loss, shifted, SHAPE, start=saturated)

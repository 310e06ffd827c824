"""Linear operators: counting, shapes, the kept and the rebuilt Hessian, and the preconditioned one."""

import pytest
import torch
from torch import nn

from lab.curvature.operators import LinearOperator, hessian, preconditioned
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic
from lab.objective import NetworkObjective

DOUBLE = torch.float64


def network() -> tuple[NetworkObjective, torch.Tensor]:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, dtype=DOUBLE, generator=generator), torch.randint(2, (7,), generator=generator)
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (x, y), chunk_size=3)
    return loss, torch.randn(loss.num_params, dtype=DOUBLE, generator=generator)


def test_products_are_counted_and_a_block_is_its_columns() -> None:
    operator = hessian(Quadratic(torch.tensor([2.0, 5.0, -1.0])), torch.zeros(3))
    assert operator.products == 0
    assert (operator @ torch.ones(3)).tolist() == [2.0, 5.0, -1.0]
    assert torch.equal(operator @ torch.eye(3)[:, :2], torch.diag(torch.tensor([2.0, 5.0, -1.0]))[:, :2])
    assert operator.products == 3
    operator.dense()
    assert operator.products == 6


def test_a_vector_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a vector of 2 entries; the operator acts on 3"):
        _ = hessian(Quadratic(torch.ones(3)), torch.zeros(3)) @ torch.ones(2)


def test_kept_and_rebuilt_graphs_agree() -> None:
    loss, w = network()
    kept, rebuilt = hessian(loss, w), hessian(loss, w, memory=0)
    assert kept.kept
    assert not rebuilt.kept
    assert (kept.dense() - rebuilt.dense()).abs().max() < 1e-14
    assert float(kept.value) == pytest.approx(float(rebuilt.value), rel=1e-14)
    assert (kept.gradient - rebuilt.gradient).abs().max() < 1e-15


def test_value_and_gradient_come_with_the_hessian() -> None:
    loss, w = network()
    for memory in (0, None):
        H = hessian(loss, w, memory=memory)
        assert float(H.value) == pytest.approx(float(loss.value(w)), rel=1e-14)
        assert (H.gradient - loss.grad(w)).abs().max() < 1e-15
        assert not H.gradient.requires_grad
        assert not (H @ w).requires_grad


def test_the_hessian_is_that_at_w_even_if_w_is_changed_afterwards() -> None:
    # The optimiser updates in place: an operator that shares memory with w would change under the solver.
    for memory in (0, None):
        w = torch.tensor([0.5, 0.5], dtype=DOUBLE)
        H = hessian(DoubleWell(), w, memory=memory)
        before = H.dense()
        w.add_(1.0)
        assert torch.equal(H.dense(), before)


@pytest.mark.parametrize("shift", [0.0, 0.3, torch.tensor([0.1, 0.2, 0.3])], ids=["none", "number", "vector"])
def test_preconditioned_has_the_eigenvalues_of_P_inverse_times_A_plus_shift(shift: float | torch.Tensor) -> None:
    a = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 1.0]], dtype=DOUBLE)
    p = torch.tensor([0.5, 2.0, 10.0])  # float32, as an optimiser keeps it beside a float64 operator
    operator = LinearOperator(3, lambda v: a @ v, dtype=DOUBLE, device=torch.device("cpu"))
    scaled = preconditioned(operator, p, shift)
    dense = scaled.dense()
    assert dense.dtype == DOUBLE
    assert torch.allclose(dense, dense.T, atol=1e-15)
    added = torch.as_tensor(shift, dtype=DOUBLE) * torch.ones(3, dtype=DOUBLE)
    truth = torch.linalg.eigvals(torch.diag(1 / p.double()) @ (a + torch.diag(added))).real.sort().values
    assert torch.allclose(torch.linalg.eigvalsh(dense), truth, rtol=1e-6)  # the root of p is taken in float32
    assert operator.products == scaled.products == 3


@pytest.mark.parametrize("entry", [0.0, -1.0, float("nan")])
def test_a_preconditioner_that_is_not_positive_is_refused(entry: float) -> None:
    operator = hessian(Quadratic(torch.ones(2)), torch.zeros(2))
    with pytest.raises(ValueError, match="a preconditioner must be positive"):
        preconditioned(operator, torch.tensor([1.0, entry]))

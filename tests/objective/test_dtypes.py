"""Results have the dtype of w, whatever that of the network."""

import copy

import pytest
import torch
from torch import nn

from lab.curvature.operators import hessian
from lab.objective import NetworkObjective

DOUBLE = torch.float64


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_a_float64_w_gives_float64_results_on_a_float32_model(batch_norm: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (x, y), chunk_size=4, batch_norm=batch_norm)  # type: ignore[arg-type]
    w = loss.weights.double()
    doubled = copy.deepcopy(model).double()
    reference = NetworkObjective(doubled, nn.CrossEntropyLoss(), (x.double(), y), chunk_size=4, batch_norm=batch_norm)  # type: ignore[arg-type]
    for found, truth in [
        (loss.value(w), reference.value(w)),
        (loss.grad(w), reference.grad(w)),
        (loss.hvp(w, w), reference.hvp(w, w)),
        (hessian(loss, w).dense(), reference_dense := hessian(reference, w).dense()),
    ]:
        assert found.dtype == DOUBLE
        assert torch.equal(found, truth)
    assert not torch.equal(hessian(loss, w.float()).dense().double(), reference_dense)
    assert next(model.parameters()).dtype == torch.float32


def test_float_targets_follow_the_dtype_of_w_and_integer_labels_do_not() -> None:
    loss = NetworkObjective(nn.Linear(2, 1), nn.MSELoss(), (torch.randn(3, 2), torch.randn(3, 1)))
    assert loss.value(torch.zeros(3, dtype=DOUBLE)).dtype == DOUBLE
    loss = NetworkObjective(nn.Linear(2, 2), nn.CrossEntropyLoss(), (torch.randn(3, 2), torch.tensor([0, 1, 1])))
    assert float(loss.value(torch.zeros(6, dtype=DOUBLE))) == pytest.approx(0.6931471805599453, rel=1e-14)

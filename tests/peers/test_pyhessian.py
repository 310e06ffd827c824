"""lambda_max beside PyHessian's power iteration and beside ARPACK on curvlinops' Hessian."""

import pytest
import torch
from torch import nn

from lab.curvature.eigen import lanczos
from lab.curvature.operators import hessian
from lab.objective import NetworkObjective

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    """A tanh network in eval mode, its criterion and 64 examples, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)).eval()
        return model, nn.CrossEntropyLoss(), torch.randn(64, 8), torch.randint(4, (64,))


@pytest.fixture(scope="module")
def truth(problem: tuple) -> float:
    """The largest eigenvalue of the dense Hessian in float64, and |lambda_min| below it: all three agree on "top"."""
    model, criterion, x, y = problem
    loss = NetworkObjective(model, criterion, (x, y))
    eigenvalues = torch.linalg.eigvalsh(hessian(loss, loss.weights.double()).dense())
    assert -eigenvalues[0] < eigenvalues[-1]
    return float(eigenvalues[-1])


@pytest.mark.parametrize(("tol", "accuracy"), [(1e-3, 5e-2), (1e-6, 1e-3)])
def test_pyhessian_agrees_within_its_own_accuracy(problem: tuple, truth: float, tol: float, accuracy: float) -> None:
    # PyHessian stops when two Rayleigh quotients in a row differ by tol relatively. Its error is tol / (1 - rate) with
    # rate = (lambda_2/lambda_1)^2: 50 tol at rate 0.98. Its quotient approaches from below. It finds the eigenvalue of
    # largest magnitude, here the top one.
    pyhessian = pytest.importorskip("pyhessian")
    model, criterion, x, y = problem
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        peer = pyhessian.hessian(model, criterion, data=(x, y), cuda=False)
        theirs = peer.eigenvalues(maxIter=2000, tol=tol, top_n=1)[0][0]
    loss = NetworkObjective(model, criterion, (x, y))
    ours = float(lanczos(hessian(loss, loss.weights), tol=1e-6).top.values)
    assert ours == pytest.approx(truth, rel=5e-6)
    assert theirs == pytest.approx(ours, rel=accuracy)


def test_curvlinops_with_arpack_agrees_to_1e_5(problem: tuple, truth: float) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    sparse = pytest.importorskip("scipy.sparse.linalg")
    model, criterion, x, y = problem
    params = [p for p in model.parameters() if p.requires_grad]
    operator = curvlinops.HessianLinearOperator(model, criterion, params, [(x, y)])
    theirs = float(sparse.eigsh(operator.to_scipy(), k=1, which="LA", tol=1e-7, return_eigenvectors=False)[0])
    loss = NetworkObjective(model, criterion, (x, y))
    ours = float(lanczos(hessian(loss, loss.weights), tol=1e-6).top.values)
    assert ours == pytest.approx(truth, rel=5e-6)
    assert theirs == pytest.approx(ours, rel=1e-5)

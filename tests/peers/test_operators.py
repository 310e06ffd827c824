"""Hessian and Gauss-Newton products, eigenvalues and traces beside curvlinops and hessian-eigenthings."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.curvature.eigen import lanczos
from lab.curvature.operators import gauss_newton, hessian
from lab.curvature.trace import hessian_trace
from lab.models.losses import MeanSquaredError
from lab.objective import NetworkObjective

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

EXAMPLES, CLASSES = 50, 4
NETS = {
    "mlp": lambda: nn.Sequential(nn.Linear(36, 7), nn.Tanh(), nn.Linear(7, CLASSES)),
    "conv net": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)),
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),  # GroupNorm has no forward derivative, which curvlinops takes
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(27, CLASSES),
    ),
}


@dataclass
class Problem:
    """A float64 network in eval mode, a criterion, the data; the loss of the lab, in uneven chunks, and w."""

    model: nn.Module
    criterion: Any
    x: Tensor
    y: Tensor
    loss: NetworkObjective
    w: Tensor

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Two batches of the same size: not every peer weighs a ragged one by its examples."""
        return list(zip(self.x.split(EXAMPLES // 2), self.y.split(EXAMPLES // 2), strict=True))


@pytest.fixture(params=[(net, loss) for net in NETS for loss in ("cross entropy", "mse")], ids=", ".join)
def problem(request: pytest.FixtureRequest) -> Problem:
    net, name = request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x, y = NETS[net]().double().eval(), torch.randn(EXAMPLES, 36).double(), torch.arange(EXAMPLES) % CLASSES
    criterion = nn.CrossEntropyLoss() if name == "cross entropy" else MeanSquaredError().build(CLASSES)
    loss = NetworkObjective(model, criterion, (x, y), chunk_size=20)
    return Problem(model, criterion, x, y, loss, loss.weights)


def theirs(problem: Problem, kind: str) -> Tensor:
    """The dense matrix of curvlinops, for the convention of its losses."""
    curvlinops = pytest.importorskip("curvlinops")
    loss: nn.Module = nn.CrossEntropyLoss()
    target, scale = problem.y, 1.0
    if not isinstance(problem.criterion, nn.CrossEntropyLoss):
        # MSELoss is the mean over classes of the squared error, 2/K of the lab's half sum.
        loss, target, scale = nn.MSELoss(), nn.functional.one_hot(problem.y, CLASSES).double(), CLASSES / 2
    half = EXAMPLES // 2
    batches = list(zip(problem.x.split(half), target.split(half), strict=True))
    params = [p for p in problem.model.parameters() if p.requires_grad]
    operator = getattr(curvlinops, kind)(problem.model, loss, params, batches)
    return scale * (operator @ torch.eye(problem.w.numel(), dtype=torch.float64))


def test_hessian_is_that_of_curvlinops(problem: Problem) -> None:
    # Both are exact in float64: round-off of 1e-16 times sums of some thousand numbers of order 1.
    torch.testing.assert_close(
        hessian(problem.loss, problem.w).dense(), theirs(problem, "HessianLinearOperator"), rtol=0, atol=1e-12
    )


def test_gauss_newton_is_that_of_curvlinops(problem: Problem) -> None:
    G = gauss_newton(problem.loss, problem.w).dense()
    torch.testing.assert_close(G, theirs(problem, "GGNLinearOperator"), rtol=0, atol=1e-12)
    assert float((G - hessian(problem.loss, problem.w).dense()).abs().max()) > 1e-3, "which is not the Hessian"


def test_eigenvalues_are_those_of_hessian_eigenthings(problem: Problem) -> None:
    module = pytest.importorskip("hessian_eigenthings.operators.hessian")
    solver = pytest.importorskip("hessian_eigenthings.algorithms.lanczos")
    operator = module.HessianOperator(
        problem.model, problem.batches, lambda model, batch: problem.criterion(model(batch[0]), batch[1])
    )
    # 40 steps: with 150 it has lost orthogonality, and returns the largest eigenvalue twice.
    result = solver.lanczos(operator, k=2, max_iter=40, which="LA", seed=0)
    ours = lanczos(hessian(problem.loss, problem.w), top=2, tol=1e-8, max_matvecs=300).top
    assert sorted(map(float, result.eigenvalues), reverse=True) == pytest.approx(ours.values.tolist(), rel=1e-6)


def test_gauss_newton_products_are_those_of_hessian_eigenthings(problem: Problem) -> None:
    module = pytest.importorskip("hessian_eigenthings.operators.ggn")
    operator = module.GGNOperator(
        problem.model,
        problem.batches,
        lambda model, batch: model(batch[0]),
        lambda outputs, batch: problem.criterion(outputs, batch[1]),
    )
    v = torch.randn(problem.w.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        gauss_newton(problem.loss, problem.w) @ v, operator.matvec(v).reshape(-1), rtol=0, atol=1e-10
    )


def test_traces_agree_within_their_errors(problem: Problem) -> None:
    module = pytest.importorskip("hessian_eigenthings.operators.hessian")
    algorithm = pytest.importorskip("hessian_eigenthings.algorithms.trace")
    operator = module.HessianOperator(
        problem.model, problem.batches, lambda model, batch: problem.criterion(model(batch[0]), batch[1])
    )
    result = algorithm.hutchinson(operator, num_samples=400, seed=0)
    ours = hessian_trace(problem.loss, problem.w, tol=0.01, max_matvecs=400)
    # Hutchinson with signs: variance 2 sum of squares off the diagonal, over 400 draws; four standard errors of both.
    dense = hessian(problem.loss, problem.w).dense()
    variance = 2 * float(dense.square().sum() - dense.diagonal().square().sum()) / 400
    assert abs(float(result.estimate) - ours.value) < 4 * (variance + ours.error**2) ** 0.5
    assert abs(float(dense.trace()) - ours.value) < 4 * ours.error + 1e-9

"""Small networks with all layers that the models use, their data and losses, and every method of an objective."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lab.curvature.operators import gauss_newton, hessian
from lab.models.losses import CrossEntropyCriterion, MeanSquaredErrorCriterion
from lab.objective import NetworkObjective

Criterion = Callable[[Tensor, Tensor], Tensor]
Case = tuple[nn.Module, Criterion, Tensor, Tensor]
DOUBLE = torch.float64


class Unused(nn.Module):
    """A network with a parameter that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.used(x))


class Tied(nn.Module):
    """f = W tanh(W x + b): one matrix twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def network(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *middle, nn.Linear(4, 3))


def frozen() -> nn.Sequential:
    model = network(nn.Tanh())
    model[0].weight.requires_grad_(False)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: network(nn.Tanh()),
    "relu": lambda: network(nn.ReLU()),
    "softplus": lambda: network(nn.Softplus()),
    "group norm": lambda: network(nn.GroupNorm(2, 4), nn.Tanh()),
    "layer norm": lambda: network(nn.LayerNorm(4), nn.Tanh()),
    "batch norm": lambda: network(nn.BatchNorm1d(4), nn.Tanh()),
    "frozen": frozen,
    "unused": Unused,
    "tied": Tied,
}


def _case(name: str, examples: int = 7) -> Case:
    """A float64 network with all parameters and running statistics random, its loss, and data."""
    generator = torch.Generator().manual_seed(1)
    model = NETWORKS[name]().to(DOUBLE)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator, dtype=DOUBLE))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and module.running_var is not None:
            module.running_var.abs_().add_(0.1)
    x = torch.randn(examples, 4, generator=generator, dtype=DOUBLE)
    classes = 4 if name == "tied" else 3
    y = torch.randint(classes, (examples,), generator=generator)
    return model, CrossEntropyCriterion(0.1) if examples % 2 else MeanSquaredErrorCriterion(classes), x, y


def _assert_same(found: Tensor, truth: Tensor) -> None:
    """Equal to 1e-10 of the largest entry: float64 round-off over a few hundred operations is 1e-13."""
    assert (found - truth).abs().max() <= 1e-10 * max(1.0, float(truth.abs().max()))


METHODS: dict[str, Callable[[NetworkObjective, Tensor], object]] = {
    "value": lambda loss, w: loss.value(w),
    "grad": lambda loss, w: loss.grad(w),
    "hvp": lambda loss, w: loss.hvp(w, w),
    "third": lambda loss, w: loss.third(w, w, w) if loss.batch_norm == "eval" else None,
    "kept hessian": lambda loss, w: hessian(loss, w) @ w,
    "rebuilt hessian": lambda loss, w: hessian(loss, w, memory=0) @ w,
    "kept gauss-newton": lambda loss, w: gauss_newton(loss, w) @ w,
    "rebuilt gauss-newton": lambda loss, w: gauss_newton(loss, w, memory=0) @ w,
    "restrict": lambda loss, w: loss.restrict(torch.tensor([1, 2])).grad(w),
    "bytes": lambda loss, w: loss.bytes_per_example(w),
    "example_grads": lambda loss, w: loss.example_grads(w) if loss.batch_norm == "eval" else None,
}


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of every network in turn."""
    return request.param


@pytest.fixture
def case() -> Callable[..., Case]:
    """A network by name, its loss, and data of so many examples."""
    return _case


@pytest.fixture
def assert_same() -> Callable[[Tensor, Tensor], None]:
    return _assert_same


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Callable[[NetworkObjective, Tensor], object]:
    """Every method in turn, called with an objective and weights."""
    return METHODS[request.param]

"""What a network is taken for, against the dense Hessian: piecewise linear, and made of layers that are each used once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.operators import hessian
from lab.curvature.trace import hessian_trace
from lab.layers.anatomy import take_apart
from lab.objective import NetworkObjective


class Net(nn.Module):
    """A forward function of x and two layers a (5, 6), b (6, 3)."""

    def __init__(self, function: Callable[["Net", Tensor], Tensor]):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Abs(torch.autograd.Function):
    """sqrt(a^2 + 0.1), a smooth function with the name of a piecewise linear one."""

    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return (a * a + 0.1).sqrt()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return g * a / (a * a + 0.1).sqrt()


class Clamp(torch.autograd.Function):
    """tanh."""

    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a.tanh()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return g * (1 - a.tanh().square())


class Relu(torch.autograd.Function):
    """a^2 where a > 0."""

    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a.relu().square()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return 2 * g * a.relu()


def loss_of(net: nn.Module, num: int = 20) -> NetworkObjective:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (num,), generator=generator)
    return NetworkObjective(net.double(), nn.CrossEntropyLoss(), (x, y))


def built(function: Callable[[Net, Tensor], Tensor]) -> NetworkObjective:
    torch.manual_seed(1)
    return loss_of(Net(function))


def assert_right(loss: NetworkObjective) -> None:
    w = loss.weights
    truth, found = float(hessian(loss, w).dense().trace()), hessian_trace(loss, w)
    assert abs(found.value - truth) <= 5 * found.error + 1e-9 * abs(truth), (found, truth)


CURVED = {
    "a constant over a layer": lambda n, x: x[:, :3] / (n.b(n.a(x).relu()).relu() + 0.3),
    "a constant over a size": lambda n, x: x[:, :3] / (n.b(n.a(x).relu()).abs() + 0.2),
    "a layer over a layer": lambda n, x: n.b(n.a(x).relu()) / (n.a.weight.new_ones(3) + n.b(n.a(x).relu()).abs()),
    "smooth, named Abs": lambda n, x: n.b(Abs.apply(n.a(x))),
    "smooth, named Clamp": lambda n, x: n.b(Clamp.apply(n.a(x))),
    "smooth, named Relu": lambda n, x: n.b(Relu.apply(n.a(x))),
}


@pytest.mark.parametrize("name", CURVED)
def test_what_only_looks_piecewise_linear_has_the_trace_of_its_hessian(name: str) -> None:
    loss = built(CURVED[name])
    found = hessian_trace(loss, loss.weights)
    assert not found.method.startswith("gauss_newton")
    assert_right(loss)


@pytest.mark.parametrize(
    "function",
    [
        lambda n, x: n.b(n.a(x).relu()) / 0.7,
        lambda n, x: n.b(n.a(x).clamp(-1, 1)) / (1 + x[:, :3].abs()),
        lambda n, x: n.b(functional.leaky_relu(n.a(x)) * x[:, :1]),
    ],
)
def test_a_layer_over_a_constant_is_piecewise_linear(function: Callable[[Net, Tensor], Tensor]) -> None:
    loss = built(function)
    assert take_apart(loss, loss.weights).piecewise_linear
    assert_right(loss)


def gated(n: Net, x: Tensor) -> Tensor:
    """The first layer a second time, of the examples with x_0 > 1 only."""
    again = functional.linear(x.flip(1), n.a.weight).relu()
    return n.b(n.a(x).relu() + (x[:, :1] > 1) * again)


def deeper(n: Net, x: Tensor) -> Tensor:
    h = n.b(n.a(x).tanh())
    return torch.where(x[:, 1:2].abs() > 1, h + functional.linear(n.a(x).detach(), n.b.weight), h)


def autoencoder(n: Net, x: Tensor) -> Tensor:
    h = functional.linear(functional.linear(n.a(x).relu(), n.a.weight.t()).relu(), n.a.weight)
    return n.b(h.relu())


def scaled(n: Net, x: Tensor) -> Tensor:
    return n.b(n.a(x).relu()) * (1 + n.b.bias.square().sum())


def added(n: Net, x: Tensor) -> Tensor:
    return n.b(n.a(x).relu()) + n.a.bias[:3].pow(2) * x[:, :3]


TWICE = [gated, deeper, autoencoder, scaled, added]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("function", TWICE)
def test_a_parameter_in_a_second_place_is_refused_and_auto_is_right(
    function: Callable[[Net, Tensor], Tensor], zero: bool
) -> None:
    torch.manual_seed(1)
    net = Net(function)
    if zero:  # the first derivative in the second place vanishes with it
        nn.init.zeros_(net.a.bias)
        nn.init.zeros_(net.b.bias)
    loss = loss_of(net)
    with pytest.raises(TypeError, match=r"outside its layer|more than once"):
        take_apart(loss, loss.weights)
    assert_right(loss)

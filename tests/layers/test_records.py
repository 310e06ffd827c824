"""Layers that some examples of the data use in another way: the records are never the gradients then."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.layers.examples import ExampleGradients
from lab.objective import NetworkObjective


class Net(nn.Module):
    """Two layers; `second` adds to their hidden units, for the examples with x_0 > bound."""

    def __init__(self, second: Callable[["Net", Tensor, Tensor], Tensor], bound: float):
        super().__init__()
        self.a, self.b, self.second, self.bound = nn.Linear(5, 6), nn.Linear(6, 3), second, bound

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.second(self, x, self.a(x).tanh()))


def multiplied(n: Net, x: Tensor, h: Tensor) -> Tensor:
    return h + (x[:, :1] > n.bound) * functional.linear(x.flip(1), n.a.weight).tanh()


def chosen(n: Net, x: Tensor, h: Tensor) -> Tensor:
    return torch.where(x[:, :1] > n.bound, functional.linear(x, n.a.weight.square(), n.a.bias), h)


def branched(n: Net, x: Tensor, h: Tensor) -> Tensor:
    """A second call for the hard examples, where there are any."""
    hard = x[:, 0] > n.bound
    return h.index_put((hard,), n.a(x[hard].flip(1)).tanh()) if bool(hard.any()) else h


def hidden(n: Net, x: Tensor, h: Tensor) -> Tensor:
    """A second use that the graph hides in a function of somebody's own."""
    return h + (x[:, :1] > n.bound) * Product.apply(x, n.a.weight)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return g @ weight, g.T @ x


@pytest.mark.parametrize("chunk_size", [None, 8, 5])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("second", [multiplied, chosen, branched, hidden])
def test_a_second_use_by_some_examples_only_is_in_every_gradient(
    second: Callable[[Net, Tensor, Tensor], Tensor], last: bool, chunk_size: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 5, generator=generator).double(), torch.arange(24) % 3
    x[:, 0] = -x[:, 0].abs()
    x[[21, 22] if last else [3, 17], 0] = 2.0  # the hard examples, in few of the chunks
    torch.manual_seed(0)
    loss = NetworkObjective(Net(second, 0.5).double(), nn.CrossEntropyLoss(), (x, y), chunk_size=chunk_size)
    w = loss.weights
    truth = torch.stack([loss.restrict(torch.tensor([i])).grad(w) for i in range(24)])
    examples = ExampleGradients(loss, w)
    norms = torch.stack(list(examples.squared_norms().values())).sum(0)
    assert (norms - truth.square().sum(1)).abs().max() < 1e-10 * norms.max()
    assert (examples.gram() - truth @ truth.T).abs().max() < 1e-10 * norms.max()

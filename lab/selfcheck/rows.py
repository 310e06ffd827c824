"""What a check yields, and the small problems that several of them share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.models.losses import CrossEntropy
from lab.models.mlp import Mlp
from lab.objective import NetworkObjective
from lab.streams import stream

ROUND_OFF = 1e-11
"""Of float64 arithmetic on a few hundred numbers of order 1, with a factor of 100 to spare."""


@dataclass(frozen=True)
class Row:
    """One fact: passed where |measured - expected| <= tolerance, so never by a NaN."""

    what: str
    expected: float
    measured: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return abs(self.measured - self.expected) <= self.tolerance


Check = Callable[[], Iterator[Row]]


def normal(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, f"selfcheck/{name}"), dtype=torch.float64)


def small_network() -> NetworkObjective:
    """A tanh network 5-8-3 on 40 examples in uneven chunks: 75 weights."""
    x, y = normal("network", 40, 5), torch.arange(40) % 3
    return NetworkObjective(Mlp(widths=(8,)).build((5,), 3, 0), CrossEntropy().build(3), (x, y), chunk_size=16)


def row_by_row(loss: NetworkObjective, w: Tensor) -> Tensor:
    """The Hessian by double backward of every entry of the gradient, without the operators of the lab."""
    leaf = w.clone().requires_grad_()
    outputs = torch.func.functional_call(loss.model, loss.layout.unflatten(leaf), (loss.x.to(w),))
    (g,) = torch.autograd.grad(loss.criterion(outputs, loss.y), leaf, create_graph=True)
    return torch.stack([torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in g])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

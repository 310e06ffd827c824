"""Networks small enough for the matrix of per-example gradients, with what may go wrong in a layer's record."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lab.models.resnet import ResNet
from lab.objective import NetworkObjective

DOUBLE = torch.float64
N = 9


class Tied(nn.Module):
    """A tied weight, a parameter of its own, an unused and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.unused, self.frozen = nn.Linear(3, 3), nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.b(torch.tanh(self.a(x))) * self.scale)


class Twice(nn.Module):
    """A layer called twice, its input changed in place, and a weight that is used outside of its layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.act(self.a(x)).mul_(1.5))) + x @ self.b.weight


class Attention(nn.Module):
    """Positions first, as many as there are examples: the first axis of an output is not always that of the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=False)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(x).transpose(0, 1)).mean(0))


class Words(nn.Module):
    """An embedding of several words, linear layers on sequences, long ones and short ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5, padding_idx=0)
        self.wide, self.narrow = nn.Linear(5, 40), nn.Linear(40, 4)
        self.norm = nn.LayerNorm((3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.narrow(torch.tanh(self.wide(self.embedding(x))))).mean(1)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, stride=2),
        nn.GroupNorm(4, 8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=4, padding="same", padding_mode="circular"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, (2, 1), dilation=(1, 2), padding=(0, 1)),
        nn.Conv2d(16, 16, 2, stride=(2, 1)),
        nn.Flatten(),
        nn.Linear(80, 4),
    )


def signals() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1, stride=2, bias=False),
        nn.LayerNorm(4, elementwise_affine=True),
        nn.GELU(),
        nn.Conv1d(8, 8, 2, groups=2, dilation=2),
        nn.BatchNorm1d(8),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def resnet(norm: str) -> Callable[[], nn.Module]:
    return lambda: ResNet(depth=20, width=2, norm=norm).build((3, 8, 8), 4, seed=0)  # type: ignore[arg-type]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 4)), (4,), 0),
    "tied, unused and frozen": (Tied, (4,), 0),
    "used twice": (Twice, (4,), 0),
    "attention": (Attention, (N,), 11),
    "words": (Words, (3,), 7),
    "convolutions": (convolutions, (2, 8, 8), 0),
    "signals": (signals, (3, 8), 0),
    "resnet-20, group norm": (resnet("group"), (3, 8, 8), 0),
    "resnet-20, batch norm": (resnet("batch"), (3, 8, 8), 0),
}
"""Network, shape of an example, number of words (0: real inputs)."""


def objective(name: str, *, chunk_size: int | None = None) -> NetworkObjective:
    """The mean cross-entropy of the network over `N` examples, in float64, BatchNorm with statistics of its own."""
    build, shape, words = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    for parameter in model.parameters():  # affine parameters of norms away from 1 and 0
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, dtype=DOUBLE, generator=generator)
    x = torch.randn(N, *shape, dtype=DOUBLE, generator=generator)
    if words:
        x = torch.randint(words, (N, *shape), generator=generator)
    return NetworkObjective(
        model, nn.CrossEntropyLoss(), (x, torch.randint(4, (N,), generator=generator)), chunk_size=chunk_size
    )


@pytest.fixture
def network() -> Callable[..., NetworkObjective]:
    """`objective`, by name."""
    return objective


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of every network in turn."""
    return request.param

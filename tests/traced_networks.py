"""Networks small enough for their dense Hessian, and what may lie between and outside their layers."""

import torch
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.models.losses import CrossEntropy, MeanSquaredError
from lab.objective import NetworkObjective

DOUBLE = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Image(nn.Module):
    """A stem with stride, a grouped convolution with reflected padding in a residual branch, tokens, a linear head."""

    def __init__(self, activation: nn.Module, norm: nn.Module):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm, self.activation = norm, activation
        self.grouped = nn.Conv2d(4, 4, (3, 2), groups=2, padding="same", padding_mode="reflect", bias=False)
        self.tokens, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm(self.stem(x)))
        h = self.activation(self.grouped(h)) + h
        h = self.tokens(h.flatten(2).transpose(1, 2))  # (B, positions, 3)
        return self.head(self.activation(h).mean(1))


def image(activation: nn.Module, norm: nn.Module, criterion: nn.Module, chunk_size: int | None = 5) -> NetworkObjective:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Image(activation, norm).double()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
        x = 2 * torch.randn(9, 2, 6, 6, dtype=DOUBLE)
        y = torch.randint(3, (9,))
    return NetworkObjective(model, criterion, (x, y), chunk_size=chunk_size)


def mlp(activation: nn.Module, *, examples: int = 9, chunk_size: int | None = 5) -> NetworkObjective:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 4), activation, nn.Linear(4, 3)).double()
        x, y = torch.randn(examples, 5, dtype=DOUBLE), torch.randint(3, (examples,))
    return NetworkObjective(model, MeanSquaredError().build(3), (x, y), chunk_size=chunk_size)


CASES = {
    "tanh mlp": lambda: mlp(nn.Tanh()),
    "relu, batch norm": lambda: image(nn.ReLU(inplace=True), nn.BatchNorm2d(4), CrossEntropy().build(3)),
    "tanh, group norm": lambda: image(nn.Tanh(), nn.GroupNorm(2, 4), MeanSquaredError().build(3)),
    "gelu, layer norm": lambda: image(nn.GELU(), nn.LayerNorm([4, 3, 3]), CrossEntropy(label_smoothing=0.1).build(3)),
}


def dense_trace(objective: NetworkObjective) -> float:
    return float(hessian(objective, objective.weights).dense().trace())


def dense_gauss_newton(objective: NetworkObjective, criterion: nn.Module | None = None) -> float:
    """Tr J'HJ from the Jacobian (N K, P) and the Hessian of the criterion in all outputs."""
    w, total = objective.weights, 0.0
    for weight, outputs, loss in objective.composition(w.requires_grad_()):
        rows = [torch.autograd.grad(f, w, retain_graph=True)[0] for f in outputs.flatten()]
        J = torch.stack(rows)
        f = outputs.detach()
        H = torch.autograd.functional.hessian(loss, f).reshape(f.numel(), f.numel())
        total += weight * float((J * (H @ J)).sum())
    return total


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


class Twice(Tied):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(self.first(x).relu()).relu()) + 0 * self.second.bias.sum()


class Functional(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.linear(self.second(self.first(x).relu()), self.first.weight).relu())


class Unused(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu())


class Gated(Functional):
    """Layers all known, but a product of two of them between: not piecewise linear."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu() * self.second(x))


class Centred(Functional):
    """The mean over the batch couples its examples."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.head(self.second(h - h.mean(0)).relu())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x.long())
        return self.head(self.attention(h, h, h)[0].mean(1))


def small(model: nn.Module, *, chunk_size: int | None = None) -> NetworkObjective:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.6)
        x = torch.randint(5, (6, 4)).double() - (0 if isinstance(model, Attention) else 2)
    data = x, torch.arange(6) % 3
    return NetworkObjective(model.double(), CrossEntropy().build(3), data, chunk_size=chunk_size)

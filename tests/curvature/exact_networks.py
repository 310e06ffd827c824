"""Networks and criteria of every usual kind with their Hessians and Gauss-Newton matrices by double backward, row by row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab.models.losses import CrossEntropyCriterion, MeanSquaredErrorCriterion
from lab.objective import NetworkObjective

DOUBLE = torch.float64
Criterion = Callable[[Tensor, Tensor], Tensor]


# --- the networks ----------


class Attention(nn.Module):
    """Two heads of self-attention on (B, T, 4), by the fused kernel (which has no double backward) or spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(4, 12, bias=False), nn.Linear(4, 3), True

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (z.unflatten(-1, (2, 2)).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))  # (B, 2, T, 2)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.mT / 2**0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2).mean(1))


class Residual(nn.Module):
    """x + module(x)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.module(x)


class TiedWords(nn.Module):
    """Integer input (B, T): one matrix embeds the words and reads them out; one parameter is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.read = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.read.weight, self.unused = self.embed.weight, nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.tanh(self.mix(self.embed(x).mean(1))))


class Transformer(nn.Module):
    """torch's own encoder layer, with dropout (off when measured) and its inference fast path, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class MultiHead(nn.Module):
    """torch's own multi-head attention without attention weights: the fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Flat(nn.Sequential):
    """Layers, then the mean over pixels and a linear map to three classes."""

    def __init__(self, *layers: nn.Module, channels: int = 2) -> None:
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def dense(*middle: nn.Module, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *middle, nn.Linear(4, classes))


def frozen() -> nn.Sequential:
    model = dense(nn.Tanh(), nn.LayerNorm(4))
    model[0].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


def angle(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of one's own: mean of 1 - cos(angle to the one-hot target). Not convex in the outputs."""
    return 1 - functional.cosine_similarity(outputs, functional.one_hot(targets, 3).to(outputs)).mean()


def spread(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that couples the examples: the Hessian in output space has entries between them. No mean over examples."""
    return functional.cross_entropy(outputs, targets) + outputs.var(0).sum().exp() / 10


@dataclass(frozen=True)
class Case:
    """A network, its loss, and the shape of one example; `words` for integer input."""

    make: Callable[[], nn.Module]
    criterion: Criterion
    shape: tuple[int, ...] = (4,)
    targets: str = "classes"
    words: bool = False
    examples: int = 7
    chunk_size: int | None = 3
    batch_norm: str = "eval"


CE, SMOOTH, MSE = CrossEntropyCriterion(0.0), nn.CrossEntropyLoss(label_smoothing=0.2), MeanSquaredErrorCriterion(3)
IMAGE, SEQUENCE = (1, 4, 4), (3, 4)
CASES: dict[str, Case] = {
    "tanh, cross-entropy": Case(lambda: dense(nn.Tanh()), CE),
    "tanh, one example": Case(lambda: dense(nn.Tanh()), CE, examples=1),
    "relu, label smoothing": Case(lambda: dense(nn.ReLU()), SMOOTH),
    "gelu, mse": Case(lambda: dense(nn.GELU()), MSE),
    "softplus, binary cross-entropy": Case(lambda: dense(nn.Softplus()), nn.BCEWithLogitsLoss(), targets="bits"),
    "tanh, own loss": Case(lambda: dense(nn.Tanh()), angle),
    "tanh, coupled loss": Case(lambda: dense(nn.Tanh()), spread, chunk_size=None),
    "layer norm": Case(lambda: dense(nn.LayerNorm(4), nn.Tanh()), CE),
    "batch norm, eval": Case(lambda: dense(nn.BatchNorm1d(4), nn.Tanh()), CE),
    "batch norm, train": Case(lambda: dense(nn.BatchNorm1d(4), nn.Tanh()), SMOOTH, chunk_size=None, batch_norm="train"),
    "batch norm, train, three examples": Case(
        lambda: dense(nn.BatchNorm1d(4), nn.Tanh()), CE, examples=3, chunk_size=None, batch_norm="train"
    ),
    "frozen": Case(frozen, CE),
    "tied, unused, integer input": Case(TiedWords, CE, shape=(2,), targets="words", words=True),
    "convolution, max pooling": Case(lambda: Flat(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), CE, shape=(1, 6, 6)),
    "convolution, group norm, stride": Case(
        lambda: Flat(nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.GroupNorm(2, 4), nn.ReLU(), channels=4),
        CE,
        shape=IMAGE,
    ),
    "residual block, batch norm, eval": Case(
        lambda: Flat(
            nn.Conv2d(1, 2, 1), Residual(nn.Sequential(nn.BatchNorm2d(2), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1)))
        ),
        CE,
        shape=IMAGE,
    ),
    "residual block, batch norm, train": Case(
        lambda: Flat(
            nn.Conv2d(1, 2, 1), Residual(nn.Sequential(nn.BatchNorm2d(2), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1)))
        ),
        CE,
        shape=IMAGE,
        chunk_size=None,
        batch_norm="train",
    ),
    "attention": Case(Attention, CE, shape=SEQUENCE),
    "multi-head attention": Case(MultiHead, CE, shape=SEQUENCE),
    "transformer layer": Case(Transformer, CE, shape=SEQUENCE),
}


@dataclass(frozen=True)
class Truth:
    """The loss of a case, and its matrices by rows."""

    loss: NetworkObjective
    hessian: Tensor
    gauss_newton: Tensor


@cache
def truth(name: str) -> Truth:
    case, generator = CASES[name], torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        model = case.make().to(DOUBLE)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator, dtype=DOUBLE))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_var.abs_().add_(0.1)
    n, classes = case.examples, 5 if case.targets == "words" else 3
    x = torch.randn(n, *case.shape, generator=generator, dtype=DOUBLE)
    if case.words:
        x = torch.randint(5, (n, *case.shape), generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    if case.targets == "bits":
        y = torch.randint(2, (n, 3), generator=generator).to(DOUBLE)
    loss = NetworkObjective(
        model,
        case.criterion,
        (x, y),
        chunk_size=case.chunk_size,
        batch_norm=case.batch_norm,  # type: ignore[arg-type]
    )
    if isinstance(model, Attention):
        model.fused = False
    for module in model.modules():
        module.training = case.batch_norm == "train" and isinstance(module, nn.modules.batchnorm._BatchNorm)
    with sdpa_kernel(SDPBackend.MATH):
        found = Truth(loss, *matrices(model, case.criterion, x, y))
    if isinstance(model, Attention):
        model.fused = True
    model.train()  # the modes that the user left must not matter
    return found


def matrices(model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """H and J' (d2 loss / df2) J, row by row."""
    params = [p for p in model.parameters() if p.requires_grad]

    def row(scalar: Tensor, *, graph: bool = False) -> Tensor:
        grads = torch.autograd.grad(scalar, params, retain_graph=True, create_graph=graph, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(params, grads, strict=True)]
        )

    outputs = model(x)
    H = torch.stack([row(g) for g in row(criterion(outputs, y), graph=True)])
    J = torch.stack([row(f) for f in outputs.flatten()])
    f = outputs.detach().requires_grad_()
    slope = torch.autograd.grad(criterion(f, y), f, create_graph=True)[0].flatten()
    curved = torch.stack([torch.autograd.grad(s, f, retain_graph=True)[0].flatten() for s in slope])
    return H, J.T @ curved @ J


def assert_same(found: Tensor, truth: Tensor) -> None:
    """Equal to 1e-10 of the largest entry: float64 round-off over a few hundred operations is 1e-13."""
    assert found.shape == truth.shape
    assert (found - truth).abs().max() <= 1e-10 * float(truth.abs().max())

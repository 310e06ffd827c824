"""Networks and criteria as strangers write them: sound ones of every usual kind, and ones that break a law of losses."""

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from once_only import OnceOnly
from torch import Tensor, nn
from torch.nn import functional

from lab.models.resnet import ResNet

Data = tuple[Tensor, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
CLASSES = 5


class Apply(nn.Module):
    """A function of the activations as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h)


def mlp(*middle: nn.Module, width: int = 24) -> nn.Sequential:
    """12 inputs, `middle` on the first of two hidden layers."""
    return nn.Sequential(nn.Linear(12, width), *middle, nn.Linear(width, width), nn.Tanh(), nn.Linear(width, CLASSES))


# --- sound networks ----------


class Attention(nn.Module):
    """A block of a transformer on 8 tokens of 20."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 16), nn.Parameter(torch.zeros(8, 16))
        self.first, self.second, self.head = nn.LayerNorm(16), nn.LayerNorm(16), nn.Linear(16, CLASSES)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True, dropout=dropout)
        self.feed = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.place
        n = self.first(h)
        h = h + self.attend(n, n, n, need_weights=False)[0]
        return self.head((h + self.feed(self.second(h))).mean(1))


class Recurrent(nn.Module):
    """The last state of a recurrent layer on sequences (7, 4)."""

    def __init__(self, kind: type[nn.Module], **settings: str):
        super().__init__()
        self.layer, self.head = kind(4, 6, batch_first=True, **settings), nn.Linear(6, CLASSES)

    def forward(self, h: Tensor) -> Tensor:
        return self.head(self.layer(h)[0][:, -1])


class OfOnePrecision(nn.Module):
    """Computes in float32 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(functional.linear(x.float(), self.a.weight.float(), self.a.bias.float()))
        return functional.linear(h, self.b.weight.float(), self.b.bias.float())


class HalfInside(nn.Module):
    """Computes in bfloat16 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float()


class ZeroInit(nn.Module):
    """A residual branch and a head that begin at zero, squared ReLU: kinks and zeros where it starts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, CLASSES)
        for p in (self.b.weight, self.b.bias, self.head.weight):
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.b(torch.relu(self.a(x)).square()))


class Branching(nn.Module):
    """Takes another way for other data: vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = mlp(nn.Tanh()), mlp(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(self.a if float(row.sum()) > 0 else self.b)(row) for row in x])


class Routed(nn.Module):
    """Every example goes to the expert of its largest input, by indices."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(nn.Tanh(), width=8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = x[:, :3].argmax(1), x.new_zeros(len(x), CLASSES)
        for i, expert in enumerate(self.experts):
            those = (chosen == i).nonzero()[:, 0]
            if len(those):
                out = out.index_add(0, those, expert(x[those]))
        return out


def pooled() -> nn.Sequential:
    ends = nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), *ends
    )


def instance_norm() -> nn.Sequential:
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES))


def encoder() -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(20, 16), layers, Apply(lambda h: h.mean(1)), nn.Linear(16, CLASSES))


def resnet(depth: int, norm: str) -> nn.Module:
    return ResNet(depth=depth, norm=norm, width=4).build((3, 8, 8), CLASSES, seed=0)  # type: ignore[arg-type]


SOUND: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tanh": (lambda: mlp(nn.Tanh()), "vectors"),
    "relu": (lambda: mlp(nn.ReLU()), "vectors"),
    "wide relu": (lambda: mlp(nn.ReLU(), width=300), "vectors"),
    "leaky relu": (lambda: mlp(nn.LeakyReLU()), "vectors"),
    "hardtanh": (lambda: mlp(nn.Hardtanh()), "vectors"),
    "absolute value": (lambda: mlp(Apply(torch.abs)), "vectors"),
    "sorted features": (lambda: mlp(Apply(lambda h: h.sort(-1)[0])), "vectors"),
    "saturated": (lambda: mlp(Apply(lambda h: torch.tanh(30 * h))), "vectors"),
    "BatchNorm": (lambda: mlp(nn.BatchNorm1d(24), nn.ReLU()), "vectors"),
    "LayerNorm": (lambda: mlp(nn.LayerNorm(24), nn.GELU()), "vectors"),
    "GroupNorm": (lambda: mlp(nn.GroupNorm(4, 24), nn.ReLU()), "vectors"),
    "RMSNorm": (lambda: mlp(nn.RMSNorm(24), nn.SiLU()), "vectors"),
    "dropout": (lambda: mlp(nn.ReLU(), nn.Dropout(0.3)), "vectors"),
    "random slopes": (lambda: mlp(nn.RReLU()), "vectors"),
    "bfloat16": (lambda: mlp(nn.ReLU()).bfloat16(), "vectors"),
    "float16": (lambda: mlp(nn.Tanh()).half(), "vectors"),
    "float32 inside": (OfOnePrecision, "vectors"),
    "bfloat16 inside": (HalfInside, "vectors"),
    "zero initialised": (ZeroInit, "vectors"),
    "branches on the data": (Branching, "vectors"),
    "routing by indices": (Routed, "vectors"),
    "ResNet-8, BatchNorm": (lambda: resnet(8, "batch"), "images"),
    "ResNet-8, GroupNorm": (lambda: resnet(8, "group"), "images"),
    "ResNet-20, BatchNorm": (lambda: resnet(20, "batch"), "images"),
    "ResNet-20, GroupNorm": (lambda: resnet(20, "group"), "images"),
    "max pooling": (pooled, "images"),
    "InstanceNorm, running statistics": (instance_norm, "images"),
    "attention": (Attention, "tokens"),
    "attention with dropout": (lambda: Attention(0.2), "tokens"),
    "transformer encoder": (encoder, "tokens"),
    "LSTM": (lambda: Recurrent(nn.LSTM), "sequences"),
    "GRU": (lambda: Recurrent(nn.GRU), "sequences"),
    "RNN, ReLU": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), "sequences"),
}
"""Networks that keep the laws, and the kind of their inputs."""


def data(kind: str, seed: int = 0, examples: int = 24) -> Data:
    """Random inputs of a kind, and class labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (examples,), generator=generator)
    if kind == "tokens":
        return torch.randint(20, (examples, 8), generator=generator), y
    shape = {"vectors": (12,), "images": (3, 8, 8), "sequences": (7, 4)}[kind]
    return torch.randn(examples, *shape, generator=generator), y


# --- networks that break a law ----------


class SavedNorm(torch.autograd.Function):
    """Layer norm that keeps mean and deviation for its backward pass, as fused kernels do: gradients right, Hessian not."""

    @staticmethod
    def forward(ctx, a):
        mean = a.mean(1, keepdim=True)
        scale = (a.var(1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        ctx.save_for_backward(a, mean, scale)
        return (a - mean) * scale

    @staticmethod
    def backward(ctx, g):
        a, mean, scale = ctx.saved_tensors
        h = (a - mean) * scale
        return scale * (g - g.mean(1, keepdim=True) - h * (g * h).mean(1, keepdim=True))


class SavedOutput(torch.autograd.Function):
    """tanh whose derivative is made of a kept output."""

    @staticmethod
    def forward(ctx, a):
        ctx.output = torch.tanh(a).detach()
        return ctx.output.clone()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.output**2)


class InNumpy(torch.autograd.Function):
    """A sigmoid in numpy, both ways."""

    @staticmethod
    def forward(ctx, a):
        ctx.y = 1 / (1 + np.exp(-a.detach().numpy()))
        return torch.from_numpy(ctx.y).to(a.dtype)

    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy(g.detach().numpy() * ctx.y * (1 - ctx.y)).to(g.dtype)


class Unrecorded(torch.autograd.Function):
    """A cube whose backward pass is under no_grad."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a**3

    @staticmethod
    def backward(ctx, g):
        (a,) = ctx.saved_tensors
        with torch.no_grad():
            return 3 * g * a**2


class Rounded(torch.autograd.Function):
    """Rounding with the slope of the identity: a straight-through estimator."""

    @staticmethod
    def forward(ctx, a):
        return (4 * a).round() / 4

    @staticmethod
    def backward(ctx, g):
        return g


class Reversed(torch.autograd.Function):
    """The identity with the slope -1: gradient reversal."""

    @staticmethod
    def forward(ctx, a):
        return a.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Remembers(nn.Module):
    """Has a state of its own: what `keep` makes of the state and the batch is added to it."""

    def __init__(self, keep: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.keep, self.state = keep, torch.zeros(())

    def forward(self, h: Tensor) -> Tensor:
        self.state = self.keep(self.state, h.detach()).mean()
        return h + 0.1 * self.state


class OwnGenerator(nn.Module):
    """Noise of a generator that nobody else knows."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, h: Tensor) -> Tensor:
        return h + 0.1 * torch.randn(h.shape, generator=self.generator).to(h)


class InitialisedByData(nn.Module):
    """Sets its shift by the first batch, as ActNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.done = nn.Parameter(torch.zeros(24)), False

    def forward(self, h: Tensor) -> Tensor:
        if not self.done:
            self.shift.data.copy_(-h.detach().mean(0))
            self.done = True
        return h + self.shift


class NoiseOf(nn.Module):
    """Adds a number that `draw` makes, in whatever mode it is."""

    def __init__(self, draw: Callable[[], float]):
        super().__init__()
        self.draw = draw

    def forward(self, h: Tensor) -> Tensor:
        return h + self.draw()


@torch.no_grad()
def length(h: Tensor) -> Tensor:
    return h.norm(dim=1, keepdim=True)


BROKEN: dict[str, Callable[[], nn.Module]] = {
    "saved intermediates": lambda: Apply(SavedNorm.apply),
    "saved output": lambda: Apply(SavedOutput.apply),
    "numpy": lambda: Apply(InNumpy.apply),
    "no_grad in backward": lambda: Apply(Unrecorded.apply),
    "once_differentiable": lambda: Apply(OnceOnly.apply),
    "straight-through": lambda: Apply(Rounded.apply),
    "gradient reversal": lambda: Apply(Reversed.apply),
    "detached part": lambda: Apply(lambda h: h + h.detach().sigmoid()),
    "no_grad in forward": lambda: Apply(lambda h: h * length(h)),
    "counts its calls": lambda: Remembers(lambda state, h: state + 1),
    "remembers its batch": lambda: Remembers(lambda state, h: h),
    "running mean, no buffer": lambda: Remembers(lambda state, h: 0.9 * state + 0.1 * h.mean()),
    "generator of its own": OwnGenerator,
    "numpy's generator": lambda: NoiseOf(lambda: 0.1 * float(np.random.randn())),
    "Python's generator": lambda: NoiseOf(random.random),
    "initialised by data": InitialisedByData,
}
"""Layers of 24 units that make the loss no twice differentiable function of w, or its derivatives those of another one."""


class RunningMean(nn.Module):
    """Subtracts a running mean, kept in a buffer, that its batch has part in."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * h.mean())
        return h - self.mean


COUPLED: dict[str, Callable[[], nn.Module]] = {
    "batch norm by hand": lambda: Apply(lambda h: (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()),
    "unbiased batch norm": lambda: Apply(lambda h: (h - h.mean(0)) / (h.var(0) + 1e-5).sqrt()),
    "functional batch norm": lambda: Apply(lambda h: functional.batch_norm(h, None, None, training=True)),
    "sorts its batch": lambda: Apply(lambda h: h[h[:, 0].argsort()]),
    "centres a little": lambda: Apply(lambda h: h - 0.05 * h.mean(0)),
    "standardises all": lambda: Apply(lambda h: (h - h.mean()) / h.std()),
    "attention over the batch": lambda: Apply(lambda h: h + torch.softmax(h @ h.T / 5, 1) @ h),
    "neighbours": lambda: Apply(lambda h: h + h.roll(1, 0)),
    "running mean": RunningMean,
}
"""Layers through which the examples of a batch see each other."""

WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 7.0, 1.0])
HIDDEN: dict[str, Criterion] = {
    "class weights": lambda f, y: functional.cross_entropy(f, y, weight=WEIGHTS.to(f.dtype)),
    "ignored targets": partial(functional.cross_entropy, ignore_index=0),
    "a sum": partial(functional.cross_entropy, reduction="sum"),
    "a fixed divisor": lambda f, y: functional.cross_entropy(f, y, reduction="sum") / 32,
    "the worst example": lambda f, y: functional.cross_entropy(f, y, reduction="none").max(),
}
"""Criteria that are no mean over examples, hidden in functions."""

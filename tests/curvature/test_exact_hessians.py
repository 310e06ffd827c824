"""Small networks whose Hessian and Gauss-Newton matrix are known entry by entry, and spectra with a closed form.

The truth is plain double backward, row by row, through the module itself: not torch.func.hessian, which is silently
wrong through LayerNorm and train-mode BatchNorm. Everything is float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab.curvature.eigen import lanczos
from lab.curvature.operators import LinearOperator, gauss_newton, hessian, residual
from lab.landscapes.double_well import DoubleWell
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


@pytest.mark.parametrize("memory", [None, 0], ids=["kept", "rebuilt"])
@pytest.mark.parametrize("name", CASES)
def test_matrices_equal_double_backward_by_rows(name: str, memory: int | None) -> None:
    case, loss = truth(name), truth(name).loss
    w = loss.weights
    for operator, matrix in [
        (hessian(loss, w, memory=memory), case.hessian),
        (gauss_newton(loss, w, memory=memory), case.gauss_newton),
    ]:
        assert operator.kept == (memory is None)
        if operator.kept:
            assert_same(operator.dense(), matrix)
        else:
            V = torch.randn(len(w), 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
            assert_same(operator @ V, matrix @ V)
        assert_same(operator.gradient, loss.grad(w))
        assert float(operator.value) == pytest.approx(float(loss.value(w)), rel=1e-12)
    assert (case.hessian - case.gauss_newton).abs().max() > 1e-3  # these networks have a residual to speak of


@pytest.mark.parametrize("memory", [None, 0], ids=["kept", "rebuilt"])
def test_residual_is_the_hessian_without_gauss_newton(memory: int | None) -> None:
    case = truth("tanh, cross-entropy")
    found = residual(case.loss, case.loss.weights, memory=memory).dense()
    assert_same(found, case.hessian - case.gauss_newton)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", CASES)
def test_lanczos_finds_both_ends_to_1e_9(name: str, matrix: str) -> None:
    case = truth(name)
    operator = (hessian if matrix == "hessian" else gauss_newton)(case.loss, case.loss.weights)
    assert_ends(operator, torch.linalg.eigvalsh(getattr(case, matrix)), count=2)


def assert_ends(operator: LinearOperator, eigenvalues: Tensor, count: int) -> None:
    """The `count` values at each end, to 1e-9 of the largest: asked for 1e-11, and round-off is P times 1e-16."""
    found = lanczos(operator, top=count, bottom=count, tol=1e-11, max_matvecs=4 * operator.size)
    scale = float(eigenvalues.abs().max())
    assert found.top.converged and found.bottom.converged
    assert (found.top.values - eigenvalues.flip(0)[:count]).abs().max() <= 1e-9 * scale
    assert (found.bottom.values - eigenvalues[:count]).abs().max() <= 1e-9 * scale


# --- many layers, against finite differences ----------

VECTOR: dict[str, Callable[[], nn.Module]] = {
    **{
        name: getattr(nn, name)
        for name in ("CELU", "ELU", "GELU", "GLU", "Hardswish", "LeakyReLU", "LogSigmoid", "Mish")
    },
    **{name: getattr(nn, name) for name in ("PReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanhshrink")},
    "softmax": lambda: nn.Softmax(1),
    "layer norm without gain": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "rms norm": lambda: nn.RMSNorm(4),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
    "lstm": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.LSTM(2, 3, batch_first=True), First()),
    "gru": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.GRU(2, 3, batch_first=True), First()),
    "transformer, norm first": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 3, norm_first=True, batch_first=True)
    ),
}
PIXELS: dict[str, Callable[[], nn.Module]] = {
    "average pooling": lambda: nn.AvgPool2d(2),
    "adaptive max pooling": lambda: nn.AdaptiveMaxPool2d(3),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "local response norm": lambda: nn.LocalResponseNorm(2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "dilated groups": lambda: nn.Conv2d(4, 4, 3, groups=2, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2),
    "reflection": lambda: nn.ReflectionPad2d(1),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
}


class First(nn.Module):
    """Of a pair, the first."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


class Bowl(nn.Module):
    """Three outputs, of whatever number of features."""

    def forward(self, z: Tensor) -> Tensor:
        z = z.flatten(1)
        return torch.stack([z.sin().sum(1), 0.3 * z.square().sum(1), (z * torch.arange(z.shape[1])).cos().sum(1)], 1)


@pytest.mark.parametrize("name", [*VECTOR, *PIXELS])
def test_products_equal_finite_differences(name: str) -> None:
    # Central differences with step 1e-6 in float64: truncation 1e-12 times third derivatives up to 1e6 of these bowls,
    # round-off 1e-16 / 1e-6. A wrong kernel is off by per cents.
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = (nn.Linear(4, 4), VECTOR[name]()) if name in VECTOR else (nn.Conv2d(4, 4, 1), PIXELS[name]())
        model = nn.Sequential(*layers, Bowl()).to(DOUBLE)
    x = torch.randn(6, *((4,) if name in VECTOR else (4, 6, 6)), dtype=DOUBLE, generator=generator)
    loss = NetworkObjective(model, CE, (x, torch.arange(6) % 3), chunk_size=6)
    w = loss.weights
    v, step = torch.randn(len(w), dtype=DOUBLE, generator=generator), 1e-6
    truth = (loss.grad(w + step * v) - loss.grad(w - step * v)) / (2 * step)
    assert (hessian(loss, w) @ v - truth).abs().max() <= 1e-5 * truth.abs().max()
    (_, ahead, _), (_, behind, _), (_, f, criterion) = (
        next(iter(loss.composition(point))) for point in (w + step * v, w - step * v, w)
    )
    along, f = (ahead - behind) / (2 * step), f.requires_grad_()
    (slope,) = torch.autograd.grad(criterion(f), f, create_graph=True)
    curved = torch.autograd.grad(slope, f, along)[0]
    assert float(v @ (gauss_newton(loss, w) @ v)) == pytest.approx(float((along * curved).sum()), rel=1e-5)


# --- spectra with a closed form ----------


def linear(examples: int, criterion: Criterion) -> tuple[NetworkObjective, Tensor]:
    """f = W x without bias, W (3, 5); and the eigenvalues of X'X/N, ascending."""
    x = torch.randn(examples, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    loss = NetworkObjective(
        nn.Linear(5, 3, bias=False).to(DOUBLE), criterion, (x, torch.arange(examples) % 3), chunk_size=4
    )
    return loss, torch.linalg.eigvalsh(x.T @ x / examples)


@pytest.mark.parametrize("examples", [10, 2, 1], ids=["full rank", "rank 6 of 15", "one example"])
def test_every_eigenvalue_of_a_regression_with_three_outputs_comes_three_times(examples: int) -> None:
    loss, eigenvalues = linear(examples, MSE)
    assert_ends(hessian(loss, loss.weights), eigenvalues.repeat_interleave(3), count=4)
    assert_ends(gauss_newton(loss, loss.weights), eigenvalues.repeat_interleave(3), count=4)


def test_the_top_is_the_largest_even_if_the_bottom_is_four_times_as_far_from_zero() -> None:
    weights = torch.tensor([1.0, -4.0, 0.0], dtype=DOUBLE)
    loss, eigenvalues = linear(10, lambda f, y: 0.5 * (weights * f.square()).sum(-1).mean())
    spectrum = (weights[:, None] * eigenvalues).flatten().sort().values
    assert_ends(hessian(loss, loss.weights), spectrum, count=3)
    assert_ends(gauss_newton(loss, loss.weights), spectrum, count=3)  # also where the loss is not convex
    top = lanczos(hessian(loss, loss.weights), tol=1e-11).top
    assert float(top.values[0]) == pytest.approx(float(eigenvalues[-1]), rel=1e-9)


# --- Gauss-Newton ----------


@pytest.mark.parametrize("criterion", [CE, SMOOTH, MSE, angle], ids=["ce", "smoothed", "mse", "own"])
def test_gauss_newton_is_the_hessian_where_the_network_is_linear_in_its_weights(criterion: Criterion) -> None:
    loss, _ = linear(10, criterion)
    H, G = hessian(loss, loss.weights).dense(), gauss_newton(loss, loss.weights).dense()
    assert_same(G, H)
    assert residual(loss, loss.weights).dense().abs().max() <= 1e-13 * H.abs().max()


def test_gauss_newton_of_a_loss_linear_in_the_outputs_is_zero() -> None:
    loss, _ = linear(4, lambda f, y: f.mean())
    assert torch.equal(gauss_newton(loss, loss.weights).dense(), torch.zeros(15, 15, dtype=DOUBLE))
    assert_same(gauss_newton(loss, loss.weights).gradient, loss.grad(loss.weights))


def test_a_landscape_has_no_gauss_newton_matrix() -> None:
    with pytest.raises(TypeError, match="DoubleWell is no loss of outputs"):
        gauss_newton(DoubleWell(), torch.zeros(2))

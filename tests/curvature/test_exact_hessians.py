"""Small networks whose Hessian and Gauss-Newton matrix are known entry by entry, and spectra with a closed form.

The truth is plain double backward, row by row, through the module itself: not torch.func.hessian, which is silently
wrong through LayerNorm and train-mode BatchNorm. Everything is float64.
"""

from collections.abc import Callable

import pytest
import torch
from curvature.exact_networks import (
    CASES,
    CE,
    DOUBLE,
    MSE,
    SMOOTH,
    Criterion,
    angle,
    assert_same,
    truth,
)
from torch import Tensor, nn

from lab.curvature.eigen import lanczos
from lab.curvature.operators import LinearOperator, gauss_newton, hessian, residual
from lab.landscapes.double_well import DoubleWell
from lab.objective import NetworkObjective


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

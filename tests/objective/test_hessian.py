"""Derivatives of a network's loss against closed forms, double backward row by row, and finite differences."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lab.curvature.operators import hessian
from lab.landscapes.double_well import DoubleWell
from lab.models.losses import CrossEntropyCriterion
from lab.models.resnet import ResNet
from lab.objective import NetworkObjective, Objective
from lab.params import layout

Criterion = Callable[[Tensor, Tensor], Tensor]
MakeCase = Callable[..., tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]]
AssertSame = Callable[[Tensor, Tensor], None]
DOUBLE = torch.float64


def half_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """1/2 ||f - y||^2, mean over examples."""
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def hessian_by_rows(model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor, every: int = 1) -> Tensor:
    """The truth: plain double backward through the module itself, row by (every n-th) row, in whatever mode it is."""
    params = [p for p in model.parameters() if p.requires_grad]

    def flat(grads: tuple[Tensor | None, ...]) -> Tensor:
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(params, grads, strict=True)]
        )

    g = flat(torch.autograd.grad(criterion(model(x), y), params, create_graph=True, allow_unused=True))
    if not g.requires_grad:
        return torch.zeros(len(g), len(g), dtype=g.dtype)
    return torch.stack(
        [flat(torch.autograd.grad(gi, params, retain_graph=True, allow_unused=True)) for gi in g[::every]]
    )


@pytest.mark.parametrize("chunk_size", [1, 3, 10, None])
@pytest.mark.parametrize(("criterion", "factor"), [(half_mse, 1.0), (nn.MSELoss(), 2.0)], ids=["half", "torch"])
def test_hessian_of_linear_regression_is_XtX_over_N(
    criterion: Criterion, factor: float, chunk_size: int | None
) -> None:
    # N = 10 in chunks of 3 leaves a ragged last chunk of 1. torch's MSELoss (no 1/2, one output) has 2 X'X/N.
    x, y = torch.randn(10, 4, dtype=DOUBLE), torch.randn(10, 1, dtype=DOUBLE)
    loss = NetworkObjective(nn.Linear(4, 1), criterion, (x, y), chunk_size=chunk_size)
    with_bias = torch.cat([x, torch.ones(10, 1, dtype=DOUBLE)], dim=1)
    w = torch.randn(5, dtype=DOUBLE)
    residual = with_bias @ w - y[:, 0]
    assert torch.allclose(hessian(loss, w).dense(), factor * with_bias.T @ with_bias / 10, rtol=0, atol=1e-13)
    assert torch.allclose(loss.grad(w), factor * with_bias.T @ residual / 10, rtol=0, atol=1e-13)
    assert float(loss.value(w)) == pytest.approx(float(factor * residual.square().mean() / 2), rel=1e-13)
    assert sum(weight for weight, _ in loss.parts(w)) == pytest.approx(1.0, rel=1e-14)
    assert loss.third(w, w, w).abs().max() == 0


def test_a_model_linear_in_w_with_a_linear_loss_has_hessian_zero() -> None:
    loss = NetworkObjective(nn.Linear(3, 1), lambda f, y: (f - y).mean(), (torch.randn(5, 3), torch.randn(5, 1)))
    w = torch.randn(4)
    assert torch.equal(loss.hvp(w, w), torch.zeros(4))
    assert torch.equal(hessian(loss, w) @ w, torch.zeros(4))
    assert torch.equal(loss.third(w, w, w), torch.zeros(4))


@pytest.mark.parametrize("examples", [1, 7, 8])
@pytest.mark.parametrize("memory", [0, None], ids=["rebuilt", "kept"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_hessian_equals_double_backward_by_rows(
    name: str, chunk_size: int | None, memory: int | None, examples: int, case: MakeCase, assert_same: AssertSame
) -> None:
    model, criterion, x, y = case(name, examples)
    loss = NetworkObjective(model, criterion, (x, y), chunk_size=chunk_size)
    H = hessian(loss, loss.weights, memory=memory)
    assert H.kept == (memory is None)
    assert_same(H.dense(), hessian_by_rows(model.eval(), criterion, x, y))


@pytest.mark.parametrize("memory", [0, None], ids=["rebuilt", "kept"])
def test_hessian_of_train_mode_batch_norm_differentiates_through_the_batch_statistics(
    memory: int | None, case: MakeCase, assert_same: AssertSame
) -> None:
    model, criterion, x, y = case("batch norm", 8)
    loss = NetworkObjective(model, criterion, (x, y), batch_norm="train")
    assert_same(hessian(loss, loss.weights, memory=memory).dense(), hessian_by_rows(model.train(), criterion, x, y))


def test_hessian_of_a_tanh_network_equals_that_of_torch_func(case: MakeCase, assert_same: AssertSame) -> None:
    # No normalisation layer: torch.func.hessian is silently wrong through an affine LayerNorm or train-mode BatchNorm.
    model, criterion, x, y = case("tanh", 7)
    places, loss = layout(model), NetworkObjective(model, criterion, (x, y), chunk_size=2)

    def plain(w: Tensor) -> Tensor:
        return criterion(torch.func.functional_call(model, places.unflatten(w), (x,)), y)

    truth: Tensor = torch.func.hessian(plain)(loss.weights)  # type: ignore[assignment]
    assert_same(hessian(loss, loss.weights).dense(), truth)


def test_hessian_of_a_resnet_with_group_norm_equals_double_backward_by_rows(assert_same: AssertSame) -> None:
    model = ResNet(depth=8, norm="group", width=1, activation="relu").build((3, 8, 8), 3, seed=0).to(DOUBLE)
    x = torch.randn(3, 3, 8, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    y, criterion = torch.tensor([0, 1, 2]), CrossEntropyCriterion(0.0)
    loss = NetworkObjective(model, criterion, (x, y), chunk_size=2)
    H, rows = hessian(loss, loss.weights), torch.eye(loss.num_params, dtype=DOUBLE)[:, ::7]
    assert_same((H @ rows).T, hessian_by_rows(model.eval(), criterion, x, y, every=7))


def test_hessian_products_are_symmetric_and_linear(name: str, case: MakeCase, assert_same: AssertSame) -> None:
    model, criterion, x, y = case(name)
    loss = NetworkObjective(model, criterion, (x, y), chunk_size=3)
    w = loss.weights
    u, v = torch.randn(2, len(w), dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    assert float(u @ loss.hvp(w, v)) == pytest.approx(float(v @ loss.hvp(w, u)), rel=1e-10)
    assert_same(loss.hvp(w, 2 * u - 3 * v), 2 * loss.hvp(w, u) - 3 * loss.hvp(w, v))


def test_gradient_equals_backward_and_its_value(name: str, case: MakeCase, assert_same: AssertSame) -> None:
    model, criterion, x, y = case(name)
    loss = NetworkObjective(model, criterion, (x, y), chunk_size=3)
    value, gradient = loss.value_and_grad(loss.weights)
    direct = criterion(model.eval()(x), y)
    direct.backward()
    truth = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters() if p.requires_grad]
    )
    assert_same(gradient, truth)
    assert float(value.detach()) == pytest.approx(float(direct.detach()), rel=1e-12)
    assert float(loss.value(loss.weights)) == pytest.approx(float(direct.detach()), rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "softplus", "group norm", "batch norm", "tied", "unused"])
def test_third_derivative_equals_finite_differences_of_the_hessian(
    name: str, case: MakeCase, assert_same: AssertSame
) -> None:
    # Central differences with step 1e-4 in float64: truncation 1e-8, round-off 1e-16 / 1e-4 = 1e-12, times curvature.
    model, criterion, x, y = case(name)
    loss = NetworkObjective(model, criterion, (x, y), chunk_size=3)
    w = loss.weights
    u, v = torch.randn(2, len(w), dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    step = 1e-4 / float(u.norm())
    truth = (loss.hvp(w + step * u, v) - loss.hvp(w - step * u, v)) / (2 * step)
    third = loss.third(w, u, v)
    assert (third - truth).abs().max() < 1e-5 * truth.abs().max()
    assert_same(third, loss.third(w, v, u))


def test_third_derivatives_that_torch_gets_wrong_or_does_not_have_are_refused(case: MakeCase) -> None:
    # Through LayerNorm torch 2.15 returns a third derivative that is off by 10 to 160 % and raises nothing.
    model, criterion, x, y = case("layer norm")
    loss = NetworkObjective(model, criterion, (x, y))
    with pytest.raises(ValueError, match=r"no right third derivative.*LayerNorm"):
        loss.third(loss.weights, loss.weights, loss.weights)
    model, criterion, x, y = case("batch norm")
    loss = NetworkObjective(model, criterion, (x, y), batch_norm="train")
    with pytest.raises(ValueError, match=r"cannot be differentiated again: .*once_differentiable"):
        loss.third(loss.weights, loss.weights, loss.weights)


class Cubic(Objective):
    """L(w) = sum_ijk T_ijk w_i w_j w_k / 6 with a symmetric T, in two parts: third(w, u, v)_k = T_ijk u_i v_j."""

    def __init__(self, size: int):
        t = torch.randn(size, size, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
        orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        self.t = torch.stack([t.permute(order) for order in orders]).mean(0)
        self.num_params = size

    def parts(self, w: Tensor) -> Iterator[tuple[float, Tensor]]:
        cube = torch.einsum("ijk,i,j,k->", self.t, w, w, w) / 6
        yield 0.25, 2 * cube
        yield 0.75, cube * 2 / 3


def test_third_derivative_of_a_cubic_is_its_tensor(assert_same: AssertSame) -> None:
    cubic = Cubic(4)
    w, u, v = torch.randn(3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert_same(cubic.third(w, u, v), torch.einsum("ijk,i,j->k", cubic.t, u, v))
    assert_same(cubic.hvp(w, v), torch.einsum("ijk,i,j->k", cubic.t, w, v))
    leaf = w.clone().requires_grad_()
    g = torch.autograd.grad(sum(a * b for a, b in cubic.parts(leaf)), leaf, create_graph=True)[0]  # type: ignore[arg-type]
    hv = torch.autograd.grad(g @ u, leaf, create_graph=True)[0]
    assert_same(cubic.third(w, u, v), torch.autograd.grad(hv @ v, leaf)[0])


@pytest.mark.parametrize(
    ("w", "eigenvalues"), [((0.0, 0.0), (-1.0, 1.0)), ((1.0, 0.0), (1.0, 2.0)), ((-1.0, 0.0), (1.0, 2.0))]
)
def test_double_well_has_its_saddle_and_minima(w: tuple, eigenvalues: tuple) -> None:
    well = DoubleWell()
    assert torch.linalg.eigvalsh(hessian(well, torch.tensor(w)).dense()).tolist() == list(eigenvalues)
    assert well.grad(torch.tensor(w)).tolist() == [0.0, 0.0]
    assert float(well.value(torch.tensor(w))) == (0.25 if w == (0.0, 0.0) else 0.0)

"""Tr H and Tr G of networks by their layers: closed forms, dense twins, unbiasedness, coverage of the reported error.

Statistical tests have fixed seeds. Where a mean is held to 4 standard errors the false-alarm rate would be 6e-5; where the
share of 300 intervals of 95 % is held to 0.90 .. 0.99 it would be below 1e-3 (binomial).
"""

import pytest
import torch
from torch import Tensor, nn
from traced_networks import (
    CASES,
    DOUBLE,
    dense_gauss_newton,
    dense_trace,
    image,
    mlp,
    seeded,
)

from lab.curvature.operators import hessian
from lab.curvature.trace import gauss_newton_trace, hessian_trace
from lab.models.losses import CrossEntropy, MeanSquaredError
from lab.models.resnet import ResNet
from lab.objective import NetworkObjective

unconverged = pytest.mark.filterwarnings("ignore:trace not converged")


@pytest.mark.parametrize("case", CASES)
@unconverged
def test_signs_are_unbiased(case: str) -> None:
    objective = CASES[case]()
    found = hessian_trace(objective, objective.weights, method="signs", tol=0, max_matvecs=300)
    assert found.matvecs == 300
    assert abs(found.value - dense_trace(objective)) < 4 * found.error


@pytest.mark.parametrize("case", ["tanh mlp", pytest.param("tanh, group norm", marks=pytest.mark.slow)])
@unconverged
def test_the_interval_of_signs_covers(case: str) -> None:
    objective = CASES[case]()
    truth, w = dense_trace(objective), objective.weights
    found = [hessian_trace(objective, w, method="signs", tol=0, max_matvecs=3, generator=seeded(s)) for s in range(300)]
    values = torch.tensor([each.value for each in found], dtype=DOUBLE)
    assert abs(values.mean() - truth) < 4 * values.std() / 300**0.5
    inside = sum(abs(each.value - truth) <= 1.96 * each.error for each in found) / 300
    assert 0.90 < inside < 0.99, inside


@pytest.mark.parametrize("case", CASES)
def test_gauss_newton_equals_the_dense_trace_and_that_by_per_example_gradients(case: str) -> None:
    objective = CASES[case]()
    found = gauss_newton_trace(objective, objective.weights)
    assert found.value == pytest.approx(dense_gauss_newton(objective), rel=1e-12)
    assert found.error == 0 and found.method == "gauss_newton"
    assert found.matvecs == (2 if "relu" in case or "gelu" in case else 3)  # the softmax Hessian is singular


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(4)], ids=["plain", "batch norm"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.Hardtanh(), nn.MaxPool2d(3, 1, 1)])
def test_trace_of_H_is_the_gauss_newton_trace_where_outputs_are_piecewise_linear(
    activation: nn.Module, norm: nn.Module
) -> None:
    if isinstance(activation, nn.MaxPool2d):
        objective = image(nn.ReLU(), nn.Sequential(norm, activation), CrossEntropy().build(3))
    else:
        objective = image(activation, norm, CrossEntropy().build(3))
    w = objective.weights
    truth = dense_trace(objective)
    assert gauss_newton_trace(objective, w).value == pytest.approx(truth, rel=1e-10)
    found = hessian_trace(objective, w, method="gauss_newton", tol=0)
    assert (found.method, found.error) == ("gauss_newton", 0.0)
    assert found.value == pytest.approx(truth, rel=1e-10)
    sampled = hessian_trace(objective, w, tol=0.05)
    assert sampled.method in ("gauss_newton", "gauss_newton_signs")
    assert abs(sampled.value - truth) <= 4 * sampled.error + 1e-12


def test_a_resnet_agrees_with_hutchinson() -> None:
    model = ResNet(depth=8, width=4).build((3, 8, 8), 4, seed=0)
    x, y = torch.randn(12, 3, 8, 8, generator=seeded(0), dtype=DOUBLE), torch.arange(12) % 4
    objective = NetworkObjective(model, CrossEntropy().build(4), (x, y), chunk_size=5)
    w = objective.weights.double()
    exact = gauss_newton_trace(objective, w)
    found = hessian_trace(objective, w, tol=0.03)
    assert found.method in ("gauss_newton", "gauss_newton_signs")
    assert abs(found.value - exact.value) <= 4 * found.error + 1e-9
    # The diagonal of H over the last layer and 30 other places, against that of J'HJ by example gradients of v'f.
    places = torch.randperm(w.numel(), generator=seeded(1))[:30].tolist()
    H = hessian(objective, w)
    units = torch.zeros(w.numel(), 30, dtype=DOUBLE)
    units[places, range(30)] = 1
    diagonal = (H @ units)[places, range(30)]
    gauss = torch.zeros(30, dtype=DOUBLE)
    for weight, outputs, loss in objective.composition(leaf := w.clone().requires_grad_()):
        J = torch.stack([torch.autograd.grad(f, leaf, retain_graph=True)[0][places] for f in outputs.flatten()])
        f = outputs.detach()
        curvature = torch.autograd.functional.hessian(loss, f).reshape(f.numel(), f.numel())
        gauss += weight * (J * (curvature @ J)).sum(0)
    assert torch.allclose(diagonal, gauss, rtol=1e-8, atol=1e-12)


def test_linear_regression_in_closed_form() -> None:
    # f = W x + b, loss 1/2 |f - y|^2: H = 1_K (x) mean of (x, 1)(x, 1)', so Tr H = K (mean |x|^2 + 1), without variance.
    x, y = torch.randn(7, 5, dtype=DOUBLE, generator=seeded(0)), torch.arange(7) % 3
    objective = NetworkObjective(nn.Linear(5, 3).double(), MeanSquaredError().build(3), (x, y), chunk_size=3)
    truth = 3 * (float(x.square().sum(1).mean()) + 1)
    w = objective.weights
    assert gauss_newton_trace(objective, w).value == pytest.approx(truth, rel=1e-13)
    signs = hessian_trace(objective, w, method="signs")
    assert signs.value == pytest.approx(truth, rel=1e-13)
    assert signs.error < 1e-12 and signs.matvecs == 2


def test_softmax_regression_in_closed_form() -> None:
    # d2 loss/df2 = diag(p) - p p', whose trace is 1 - |p|^2.
    x, y = torch.randn(7, 5, dtype=DOUBLE, generator=seeded(0)), torch.arange(7) % 3
    model = nn.Linear(5, 3).double()
    objective = NetworkObjective(model, CrossEntropy().build(3), (x, y), chunk_size=3)
    p = model(x).detach().softmax(1)
    truth = float(((x.square().sum(1) + 1) * (1 - p.square().sum(1))).mean())
    assert gauss_newton_trace(objective, objective.weights).value == pytest.approx(truth, rel=1e-13)


def test_many_fitted_examples_are_not_lost_beside_a_few_others() -> None:
    # 1999 examples with 1 - p of 1e-7 to 1e-5 have most of the trace beside one with p = 1/2; float32 rounds 1 - p at 6e-8.
    x = torch.linspace(11, 16, 2000)[:, None]
    x[0] = 0
    model = nn.Linear(1, 2, bias=False)
    objective = NetworkObjective(model, CrossEntropy().build(2), (x, torch.zeros(2000, dtype=torch.int64)))
    w = torch.tensor([0.5, -0.5])
    p = torch.sigmoid(x.double())
    truth = float((x.double().square() * 2 * p * (1 - p)).mean())
    assert gauss_newton_trace(objective, w).value == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 8, 9, None])
def test_chunks_change_nothing(chunk_size: int | None) -> None:
    whole, cut = (image(nn.ReLU(), nn.BatchNorm2d(4), CrossEntropy().build(3), size) for size in (9, chunk_size))
    w = whole.weights
    assert gauss_newton_trace(cut, w).value == pytest.approx(gauss_newton_trace(whole, w).value, rel=1e-12)
    found = hessian_trace(mlp(nn.Tanh(), chunk_size=chunk_size), mlp(nn.Tanh()).weights, method="signs", tol=0.05)
    assert abs(found.value - dense_trace(mlp(nn.Tanh()))) < 4 * found.error


def wavy(outputs: Tensor, targets: Tensor) -> Tensor:
    """A criterion whose Hessian in the outputs is indefinite and not diagonal."""
    return (torch.cos(outputs[:, 0] * outputs[:, 1]) + outputs.sum(1).sin() + 0 * targets).mean()


@unconverged
def test_an_indefinite_criterion_is_traced_with_its_signs() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
        x = 2 * torch.randn(11, 4, dtype=DOUBLE)
    objective = NetworkObjective(model, wavy, (x, torch.zeros(11)), chunk_size=6)
    w, truth = objective.weights, dense_trace(objective)
    assert gauss_newton_trace(objective, w).value == pytest.approx(truth, rel=1e-11)
    runs = [hessian_trace(objective, w, method="gauss_newton", tol=1, generator=seeded(s)) for s in range(60)]
    drawn = torch.tensor([each.value for each in runs if each.method == "gauss_newton_signs"], dtype=DOUBLE)
    assert len(drawn) > 40
    assert abs(drawn.mean() - truth) < 4 * drawn.std() / len(drawn) ** 0.5


def test_frozen_parameters_are_no_part_of_the_trace() -> None:
    for frozen in ("stem.weight", "norm.bias", "tokens.bias", "head.weight"):
        objective = image(nn.ReLU(), nn.BatchNorm2d(4), CrossEntropy().build(3))
        objective.model.get_parameter(frozen).requires_grad_(False)
        objective = NetworkObjective(objective.model, objective.criterion, (objective.x, objective.y))
        w = objective.weights
        assert gauss_newton_trace(objective, w).value == pytest.approx(dense_trace(objective), rel=1e-11)


@pytest.mark.parametrize("method", ["auto", "signs", "gauss_newton"])
def test_nothing_of_the_model_or_of_the_random_state_is_changed(method: str) -> None:
    objective = image(nn.ReLU(), nn.BatchNorm2d(4), CrossEntropy().build(3))
    model = objective.model.train()
    model.get_submodule("norm").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    hessian_trace(objective, objective.weights, method=method, tol=0.2)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_the_same_generator_gives_the_same_trace() -> None:
    objective = mlp(nn.Tanh())
    first, again, other = (hessian_trace(objective, objective.weights, tol=0.1, generator=seeded(s)) for s in (5, 5, 6))
    assert first == again
    assert first.value != other.value


def test_a_single_example_needs_more_than_two_draws() -> None:
    # One example, two draws: one degree of freedom, whatever they say.
    objective = mlp(nn.Tanh(), examples=1, chunk_size=None)
    found = hessian_trace(objective, objective.weights, method="signs", tol=0.3, max_matvecs=2000)
    assert found.matvecs >= 5
    assert abs(found.value - dense_trace(objective)) < 4 * found.error


def test_few_parameters_are_traced_exactly_where_signs_would_need_more() -> None:
    objective = mlp(nn.Tanh())
    found = hessian_trace(objective, objective.weights, tol=1e-3, max_matvecs=100)
    assert found.method == "diagonal" and found.matvecs == objective.num_params
    assert found.value == pytest.approx(dense_trace(objective), rel=1e-12)


def test_weights_of_another_dtype_than_the_model_decide() -> None:
    objective = image(nn.ReLU(), nn.BatchNorm2d(4), CrossEntropy().build(3))
    w, value = objective.weights, gauss_newton_trace(objective, objective.weights).value
    single = NetworkObjective(objective.model.float(), objective.criterion, (objective.x, objective.y))
    assert gauss_newton_trace(single, w).value == pytest.approx(value, rel=1e-6)  # its buffers were rounded
    assert gauss_newton_trace(single, w.float()).value == pytest.approx(value, rel=1e-4)

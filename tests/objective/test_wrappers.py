"""Wrappers of models, gradients switched off, and half precision: right, or one line that names the cure."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from strangers import Attention, data, mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lab.curvature.operators import hessian
from lab.curvature.trace import gauss_newton_trace, hessian_trace
from lab.noise.covariance import trace
from lab.noise.information import true_fisher
from lab.objective import NetworkObjective
from lab.probes.spectrum import spectrum

CE = nn.CrossEntropyLoss()
DOUBLE = torch.float64


class Checkpointed(nn.Module):
    """The middle of an MLP checkpointed in one of torch's ways."""

    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(9, 5)
        self.how = how

    def block(self, h: Tensor) -> Tensor:
        return torch.tanh(self.middle(torch.tanh(h)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.how(self.block, self.first(x)))


WAYS: dict[str, Callable[..., Tensor]] = {
    "not reentrant": lambda f, h: checkpoint(f, h, use_reentrant=False),
    "reentrant": lambda f, h: checkpoint(f, h, use_reentrant=True),
    "sequential": lambda f, h: checkpoint_sequential([f], 1, h, use_reentrant=False),
    "nested": lambda f, h: checkpoint(lambda a: checkpoint(f, a, use_reentrant=False), h, use_reentrant=False),
}


@pytest.mark.parametrize("name", WAYS)
def test_checkpointed_parts_are_right_at_every_w(name: str) -> None:
    torch.manual_seed(0)
    x, y = data("vectors")
    model = Checkpointed(WAYS[name]).double()
    plain = copy.deepcopy(model)
    plain.how = lambda f, h: f(h)
    loss, truth = (NetworkObjective(m, CE, (x.double(), y)) for m in (model, plain))
    w = loss.weights + 0.5 * torch.randn(loss.num_params, dtype=DOUBLE)
    assert torch.equal(loss.grad(w), truth.grad(w))
    assert torch.equal(hessian(loss, w) @ w, hessian(truth, w) @ w)
    assert trace(loss, w).value == trace(truth, w).value
    torch.testing.assert_close(loss.example_grads(w), truth.example_grads(w))
    model.train()
    CE(model(x.double()), y).backward()  # training itself is checkpointed as before


def inside() -> nn.Module:
    return nn.Sequential(torch.compile(mlp(nn.Tanh()), backend="aot_eager"), nn.Identity())


def in_place() -> nn.Module:
    model = mlp(nn.Tanh())
    model.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda m: torch.compile(m, backend="aot_eager"), lambda m: nn.DataParallel(torch.compile(m))],
    ids=["DataParallel", "compiled", "both"],
)
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(nn.Tanh()), data("vectors")
    loss, truth = NetworkObjective(wrap(model), CE, (x, y)), NetworkObjective(model, CE, (x, y))
    w = truth.weights
    assert loss.layout == truth.layout
    assert torch.equal(loss.hvp(w, w), truth.hvp(w, w))


@pytest.mark.parametrize("make", [inside, in_place])
def test_compiled_parts_are_run_eagerly_whoever_compiled_them(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, (x, y) = make(), data("vectors")
    torch.manual_seed(0)
    truth = NetworkObjective(mlp(nn.Tanh()), CE, (x, y))
    loss = NetworkObjective(model, CE, (x, y))
    w = truth.weights
    model(x).sum().backward()  # compiled, with buffers given away, before the lab comes
    torch.testing.assert_close(hessian(loss, w) @ w, hessian(truth, w) @ w)
    torch.testing.assert_close(loss.example_grads(w), truth.example_grads(w))
    model(x)  # and goes on compiled


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(12, 4, dtype=torch.cfloat)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.to(self.w.dtype) @ self.w).abs())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda: torch.jit.script(mlp(nn.Tanh())), "give the nn.Module it was made from"),
        (lambda: nn.Sequential(nn.Linear(12, 9), torch.jit.script(nn.Linear(9, 5))), "give the nn.Module"),
        (lambda: nn.Sequential(nn.LazyLinear(5)), "run one batch through the model first"),
        (Complex, "torch.complex"),
        (lambda: nn.Sequential(nn.DataParallel(mlp(nn.Tanh()))), "put its `.module` in its place"),
    ],
    ids=["scripted", "scripted inside", "lazy", "complex", "DataParallel inside"],
)
def test_what_has_no_weights_to_replace_is_refused_with_its_cure(make: Callable[[], nn.Module], cure: str) -> None:
    with pytest.raises(ValueError, match=cure) as refused:
        NetworkObjective(make(), CE, data("vectors"))
    assert "\n" not in str(refused.value)


ASKED: dict[str, Callable[[NetworkObjective, Tensor], object]] = {
    "gradient": lambda o, w: o.grad(w),
    "product": lambda o, w: o.hvp(w, w),
    "third": lambda o, w: o.third(w, w, w),
    "spectrum": lambda o, w: spectrum(o, k=1, bottom=0, steps=4, vectors=1).top.values,
    "trace": lambda o, w: hessian_trace(o, w).value,
    "Gauss-Newton trace": lambda o, w: gauss_newton_trace(o, w).value,
    "Tr D": lambda o, w: trace(o, w).value,
    "Fisher": lambda o, w: true_fisher(o, w).trace(w).value,
    "example gradients": lambda o, w: o.example_grads(w),
    "replicas": lambda o, w: o.replica_grads(w[None]),
}


@pytest.mark.parametrize("name", ASKED)
def test_under_no_grad_all_works_and_under_inference_mode_one_line_says_what_to_do(name: str) -> None:
    torch.manual_seed(0)
    loss = NetworkObjective(mlp(nn.Tanh()), CE, data("vectors"))
    w, ask = loss.weights, ASKED[name]
    truth = ask(loss, w)
    with torch.no_grad():
        torch.testing.assert_close(ask(loss, w), truth)
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"called under torch\.inference_mode") as refused:
        ask(loss, w)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("make", "kind"), [(lambda: mlp(nn.Tanh()), "vectors"), (Attention, "tokens")])
def test_models_in_half_precision_are_measured_in_float32_and_it_is_said(
    make: Callable[[], nn.Module], kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, (x, y) = make().to(dtype), data(kind)
    truth = NetworkObjective(copy.deepcopy(model).double(), CE, (x.double() if x.is_floating_point() else x, y))
    with pytest.warns(UserWarning, match=f"{str(dtype).removeprefix('torch.')}: it is measured in float32"):
        loss = NetworkObjective(model, CE, (x.to(dtype) if x.is_floating_point() else x, y))
    if x.is_floating_point():
        truth.x = loss.x.double()
    half = torch.cat([p.detach().flatten() for p in model.parameters()])
    for w in (loss.weights, half):
        H = hessian(loss, w)
        assert H.dtype == torch.float32
        v = torch.randn(loss.num_params)
        torch.testing.assert_close((H @ v).double(), hessian(truth, truth.weights) @ v.double(), rtol=1e-3, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.restrict(torch.arange(3))  # said once
    found = spectrum(loss, k=1, bottom=0, steps=4, vectors=1).top
    exact = torch.linalg.eigvalsh(hessian(truth, truth.weights).dense())[-1] if kind == "vectors" else None
    assert exact is None or float(found.values[0]) == pytest.approx(float(exact), rel=1e-2)


def test_an_automatic_half_precision_around_a_measurement_is_left_out() -> None:
    torch.manual_seed(0)
    loss = NetworkObjective(mlp(nn.Tanh()), CE, data("vectors"))
    w = loss.weights
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss.grad(w), loss.grad(w))
        inside = loss.grad(w)
    assert torch.equal(inside, loss.grad(w))

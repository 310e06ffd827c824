"""Gradients of single examples where vmap cannot go: one by one, against backward passes of the module itself."""

from collections.abc import Callable

import pytest
import torch
from strangers import SOUND, Apply, Recurrent, data, mlp
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.trace import gauss_newton_trace
from lab.layers.examples import ExampleGradients
from lab.noise.batch_minima import BatchLosses
from lab.noise.covariance import eigenvalues, trace
from lab.noise.draws import batch_moments
from lab.objective import NetworkObjective

CE = nn.CrossEntropyLoss()
DOUBLE = torch.float64


def one_hot_squares(f: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (f - functional.one_hot(y, 5).to(f.dtype)).square().sum(1).mean()


def branching(f: Tensor, y: Tensor) -> Tensor:
    """A criterion that looks at its numbers."""
    return functional.cross_entropy(f, y) if bool(f.isfinite().all()) else f.sum()


class SavedOnce(torch.autograd.Function):
    """A square with a right double backward, in the old form that functorch refuses."""

    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(a)
        return a.square()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * g * ctx.saved_tensors[0]


class Scaled(nn.Module):
    """A parameter that is no weight of a known layer, beside a recurrent one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = Recurrent(nn.GRU), nn.Parameter(torch.randn(5))

    def forward(self, h: Tensor) -> Tensor:
        return self.scale * self.inner(h)


CASES: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Tensor, Tensor], Tensor]]] = {
    "LSTM": (SOUND["LSTM"][0], "sequences", CE),
    "GRU": (SOUND["GRU"][0], "sequences", CE),
    "RNN": (SOUND["RNN, ReLU"][0], "sequences", CE),
    "scaled GRU": (Scaled, "sequences", CE),
    "routing": (SOUND["routing by indices"][0], "vectors", CE),
    "branches": (SOUND["branches on the data"][0], "vectors", CE),
    "one_hot": (lambda: mlp(nn.Tanh()), "vectors", one_hot_squares),
    "criterion that branches": (lambda: mlp(nn.Tanh()), "vectors", branching),
    "old function": (lambda: mlp(Apply(SavedOnce.apply)), "vectors", CE),
    "InstanceNorm": (SOUND["InstanceNorm, running statistics"][0], "images", CE),
}


@pytest.fixture(params=CASES)
def found(request: pytest.FixtureRequest) -> tuple[NetworkObjective, Tensor, Tensor]:
    """A loss, its weights, and the truth: gradients (N, P) of single examples by the module itself."""
    make, kind, criterion = CASES[request.param]
    torch.manual_seed(0)
    model, (x, y) = make().double(), data(kind, examples=9)
    x = x.double()
    rows = []
    for i in range(len(x)):
        value = criterion(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    loss = NetworkObjective(model, criterion, (x, y), batch_norm="train")
    return loss, loss.weights, torch.stack(rows)


def test_every_quantity_of_single_examples_is_that_of_a_loop(found: tuple[NetworkObjective, Tensor, Tensor]) -> None:
    loss, w, truth = found
    centred = truth - truth.mean(0)
    torch.testing.assert_close(loss.example_grads(w), truth)
    index = torch.tensor([4, 0, 4])
    torch.testing.assert_close(loss.example_grads(w, index), truth[index])
    torch.testing.assert_close(sum(ExampleGradients(loss, w).squared_norms().values()), truth.square().sum(1))
    assert trace(loss, w).value == pytest.approx(float(centred.square().sum(1).mean()), rel=1e-9)
    top = torch.linalg.eigvalsh(centred.T @ centred / len(truth))[-1]
    assert float(eigenvalues(loss, w, k=1).pairs.values[0]) == pytest.approx(float(top), rel=1e-6)
    batches = torch.tensor([[0, 1, 2], [3, 4, 5]])
    squares = torch.stack([(truth[b].mean(0) - truth.mean(0)).square().sum() for b in batches]).mean()
    assert batch_moments(loss, w, batches)[0] == pytest.approx(float(squares), rel=1e-9)


def test_replicas_and_batches_at_weights_of_their_own_are_those_of_a_loop(
    found: tuple[NetworkObjective, Tensor, Tensor],
) -> None:
    loss, w, truth = found
    W, index = torch.stack([w, 1.1 * w]), torch.tensor([[0, 1, 2], [3, 4, 5]])
    rows = [loss.restrict(index[r]) for r in range(2)]
    torch.testing.assert_close(loss.replica_grads(W, index)[0], truth[:3].mean(0))
    torch.testing.assert_close(loss.replica_grads(W, index)[1], rows[1].grad(W[1]))
    torch.testing.assert_close(loss.replica_values(W, index)[1], rows[1].value(W[1]))
    a = torch.randn(2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss.replica_grads(W, index, a)[0], a[0] @ truth[:3])
    batches = BatchLosses(loss, index)
    values, gradients = batches.value_and_grad(W)
    torch.testing.assert_close(gradients[0], truth[:3].mean(0))
    torch.testing.assert_close(values, batches.value(W))


def test_the_gauss_newton_trace_is_that_of_its_factors(found: tuple[NetworkObjective, Tensor, Tensor]) -> None:
    loss, w, _ = found
    loss = loss.restrict(torch.arange(3))  # the dense matrix takes a loop over the examples for each of its columns
    from lab.curvature.operators import gauss_newton

    assert gauss_newton_trace(loss, w).value == pytest.approx(float(gauss_newton(loss, w).dense().trace()), rel=1e-6)


def test_a_squeeze_that_takes_the_axis_of_a_single_example_is_made_up_for() -> None:
    torch.manual_seed(0)
    head = Apply(lambda h: h.squeeze())
    model = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 1), head).double()
    x, y = data("vectors", examples=8)
    loss = NetworkObjective(model, nn.BCEWithLogitsLoss(), (x.double(), (y > 2).double()))
    w = loss.weights
    torch.testing.assert_close(loss.example_grads(w).mean(0), loss.grad(w))
    assert trace(loss, w).value > 0


def test_a_vmap_that_is_wrong_is_found_and_left_out() -> None:
    # Under vmap the batch of one example is all that is seen: a network that divides by their number gives another gradient.
    class Counting(nn.Module):
        """Right by plain backward passes; under functorch it takes another way."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (2.0 if torch._C._functorch.maybe_current_level() is not None else 1.0)

    torch.manual_seed(0)
    loss = NetworkObjective(Counting().double(), CE, (data("vectors")[0].double(), data("vectors")[1]))
    w = loss.weights
    torch.testing.assert_close(loss.example_grads(w).mean(0), loss.grad(w))
    assert loss.vectorised.works is False


def test_a_loop_that_takes_long_says_so_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.objective.singles.LONG", 0.0)
    loss = NetworkObjective(SOUND["GRU"][0](), CE, data("sequences", examples=5))
    with pytest.warns(UserWarning, match=r"gradients of 5 examples are formed one by one, .*about \d+ s"):
        loss.example_grads(loss.weights)

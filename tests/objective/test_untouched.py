"""Nothing of the caller's is changed: weights, buffers, flags, gradients, random state."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.operators import hessian
from lab.objective import NetworkObjective
from lab.params import weights

MakeCase = Callable[..., tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]]
Method = Callable[[NetworkObjective, Tensor], object]


def noisy() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_no_method_changes_buffers_flags_grads_weights_or_random_state(
    method: Method, batch_norm: str, training: bool
) -> None:
    model = noisy().train(training)
    model[0].eval()  # a mixture of flags must come back as it was
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    functional.cross_entropy(model(x), y).backward()
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (x, y), chunk_size=3, batch_norm=batch_norm)  # type: ignore[arg-type]
    w = loss.weights
    state, w_before = copy.deepcopy(model.state_dict()), w.clone()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    flags, random = [m.training for m in model.modules()], torch.get_rng_state()
    method(loss, w)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True) if p.grad is not None)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(w, w_before)
    assert not w.requires_grad


def test_flags_are_put_back_after_an_error() -> None:
    model = noisy().train()
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (torch.randn(4, 5), torch.zeros(4).long()))
    with pytest.raises(RuntimeError):
        loss.value(weights(model))
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_dropout_is_off(batch_norm: str) -> None:
    model = noisy().train()
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (x, y), batch_norm=batch_norm)  # type: ignore[arg-type]
    value = loss.value(loss.weights)
    assert torch.equal(value, loss.value(loss.weights))
    for module in model.modules():
        module.train(isinstance(module, nn.BatchNorm1d) and batch_norm == "train")
    assert float(value) == pytest.approx(float(functional.cross_entropy(model(x), y).detach()), rel=1e-6)


def test_a_network_that_counts_its_calls_does_not_count_these() -> None:
    class Counting(nn.Linear):
        calls: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    model = Counting(2, 2)
    model.register_buffer("calls", torch.zeros(()))
    loss = NetworkObjective(model, nn.MSELoss(), (torch.randn(3, 2), torch.randn(3, 2)))
    hessian(loss, loss.weights)
    assert float(model.calls) == 0


def test_the_settings_of_attention_are_put_back() -> None:
    def settings() -> tuple[bool, ...]:
        cuda = torch.backends.cuda
        return (
            torch.backends.mha.get_fastpath_enabled(),
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
        )

    inside = []

    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            inside.append(settings())
            return super().forward(x)

    before = settings()
    loss = NetworkObjective(Looking(2, 2), nn.MSELoss(), (torch.randn(3, 2), torch.randn(3, 2)))
    loss.value(loss.weights)
    assert settings() == before
    assert set(inside) == {(False, False, False, True)}


def test_a_parameter_frozen_or_freed_afterwards_stays_what_it_was(case: MakeCase) -> None:
    model, criterion, x, y = case("frozen")
    loss = NetworkObjective(model, criterion, (x, y))
    w, truth = loss.weights, loss.grad(loss.weights)
    for p in model.parameters():
        p.requires_grad_(not p.requires_grad)
    assert torch.equal(loss.weights, w)
    assert torch.equal(loss.grad(w), truth)


def test_the_models_own_weights_are_not_used_where_w_is_given(case: MakeCase) -> None:
    model, criterion, x, y = case("tanh")
    loss = NetworkObjective(model, criterion, (x, y))
    w = loss.weights
    before = loss.value(w)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(loss.value(w), before)

"""Values and gradients at many points at once, against a loop over single ones: networks, landscapes, weight decay."""

import pytest
import torch
from torch import Tensor, nn

from lab.landscapes.double_well import DoubleWell
from lab.objective import Decayed, NetworkObjective, Objective
from lab.objective.replicas import RECORD_AFTER

DOUBLE = torch.float64


def mean_squared(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).square().sum(1).mean() / 2


def network(norm: bool = False, **settings: object) -> NetworkObjective:
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(5, 4), nn.BatchNorm1d(4) if norm else nn.Identity(), nn.Tanh(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=DOUBLE, generator=generator) / 2
    x, y = (torch.randn(30, k, dtype=DOUBLE, generator=generator) for k in (5, 3))
    if norm:
        with torch.no_grad():
            model(x)  # running statistics that are not 0 and 1
    return NetworkObjective(model, mean_squared, (x, y), **settings)  # type: ignore[arg-type]


def stacked(objective: NetworkObjective, replicas: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return objective.weights + 0.3 * torch.randn(replicas, objective.num_params, dtype=DOUBLE, generator=generator)


def naive(objective: Objective) -> Objective:
    """The same methods as the loop of the base class."""

    class Loop(Objective):
        num_params, num_examples = objective.num_params, objective.num_examples
        parts, restrict, example_grads = objective.parts, objective.restrict, objective.example_grads

    return Loop()


def index(replicas: int = 3, batch: int = 6) -> Tensor:
    return torch.randint(30, (replicas, batch), generator=torch.Generator().manual_seed(2))


OBJECTIVES = {
    "network": network(),
    "batch_norm": network(norm=True),
    "chunks": network(chunk_size=4),
    "decayed": Decayed(network(), 0.1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_row_is_what_a_loop_over_single_points_gives_recorded_or_not(name: str) -> None:
    objective = OBJECTIVES[name]
    W = stacked(objective.inner if isinstance(objective, Decayed) else objective)  # type: ignore[arg-type]
    loop, batches = naive(objective), index()
    weights = torch.randn(len(W), 30, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    for _ in range(RECORD_AFTER + 1):  # unrecorded, then recorded
        torch.testing.assert_close(objective.replica_values(W), loop.replica_values(W))
        torch.testing.assert_close(objective.replica_values(W, batches), loop.replica_values(W, batches))
        torch.testing.assert_close(objective.replica_grads(W), loop.replica_grads(W))
        torch.testing.assert_close(objective.replica_grads(W, batches), loop.replica_grads(W, batches))
        every = objective.replica_grads(W, weights=weights), loop.replica_grads(W, weights=weights)
        torch.testing.assert_close(*every)
        some = weights[:, :6]
        torch.testing.assert_close(objective.replica_grads(W, batches, some), loop.replica_grads(W, batches, some))
        W = W + 0.1


def test_a_recorded_program_sees_new_buffers() -> None:
    objective = network(norm=True)
    W = stacked(objective)
    for _ in range(RECORD_AFTER + 1):
        before = objective.replica_grads(W)
    assert objective._replicated._recorded, "nothing was recorded: this test would show nothing"
    objective.model[1].running_var.mul_(4)  # type: ignore[operator, union-attr]
    after = objective.replica_grads(W)
    torch.testing.assert_close(after, naive(objective).replica_grads(W))
    assert not torch.allclose(before, after)


def test_many_replicas_go_in_chunks_that_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = network()
    W, whole = stacked(objective), network().replica_grads(stacked(objective), index())
    monkeypatch.setattr("lab.objective.chunks.CHUNK_BYTES", 4 * 6 * objective.bytes_per_example(W[0]))
    seen: list[int] = []
    call = objective._replicated._call
    monkeypatch.setattr(
        objective._replicated, "_call", lambda f, name, W, *a: (seen.append(len(W)), call(f, name, W, *a))[1]
    )
    torch.testing.assert_close(objective.replica_grads(W, index()), whole)
    assert len(seen) > 1 and sum(seen) == len(W)


def test_single_precision_and_whole_numbers_as_inputs() -> None:
    embedding = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5))
    x, y = torch.randint(9, (20, 3)), torch.randint(5, (20,))
    objective = NetworkObjective(embedding, nn.CrossEntropyLoss(), (x, y))
    W = (objective.weights + 0.1 * torch.randn(4, objective.num_params)).double()
    torch.testing.assert_close(objective.replica_grads(W), naive(objective).replica_grads(W))
    low = objective.replica_grads(W.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), objective.replica_grads(W), rtol=1e-4, atol=1e-6)


def test_the_models_parameters_buffers_and_mode_stay_as_they_were() -> None:
    objective = network(norm=True)
    objective.model.train()
    before = {name: t.clone() for name, t in objective.model.state_dict().items()}
    for _ in range(RECORD_AFTER + 1):
        objective.replica_grads(stacked(objective), index())
    assert objective.model.training
    assert all(torch.equal(before[name], t) for name, t in objective.model.state_dict().items())


def test_batch_statistics_are_refused_in_a_line() -> None:
    objective = network(norm=True, batch_norm="train")
    with pytest.raises(ValueError, match="couples the examples"):
        objective.replica_grads(stacked(objective), index())


def test_a_landscape_moves_all_walkers_at_once() -> None:
    well = DoubleWell()
    W = torch.randn(9, well.num_params, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(well.replica_grads(W), torch.stack([well.grad(w) for w in W]))
    torch.testing.assert_close(well.replica_values(W), torch.stack([well.value(w) for w in W]))
    with pytest.raises(TypeError, match="mini-batches"):
        well.replica_grads(W, torch.zeros(9, 2, dtype=torch.int64))


def test_weight_decay_adds_its_gradient_and_curvature() -> None:
    inner = network()
    objective, w = Decayed(inner, 0.3), stacked(inner)[0]
    torch.testing.assert_close(objective.grad(w), inner.grad(w) + 0.3 * w)
    torch.testing.assert_close(objective.hvp(w, w), inner.hvp(w, w) + 0.3 * w)
    chosen = torch.tensor([1, 4, 4])
    torch.testing.assert_close(objective.restrict(chosen).grad(w), inner.restrict(chosen).grad(w) + 0.3 * w)
    with pytest.raises(ValueError, match="weight decay -1"):
        Decayed(inner, -1.0)


def test_weight_decay_has_no_third_derivative_and_what_the_loss_refuses_is_refused() -> None:
    inner = network()
    w, u, v = stacked(inner)
    torch.testing.assert_close(Decayed(inner, 0.3).third(w, u, v), inner.third(w, u, v))
    normed = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)).double()
    inner = NetworkObjective(normed, mean_squared, (inner.x, inner.y))
    with pytest.raises(ValueError, match="no right third derivative"):
        Decayed(inner, 0.3).third(inner.weights, inner.weights, inner.weights)

"""Train-mode BatchNorm means the statistics of each chunk, eval mode those of the network."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lab.objective import NetworkObjective

MakeCase = Callable[..., tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]]
AssertSame = Callable[[Tensor, Tensor], None]
DOUBLE = torch.float64


def test_train_mode_batch_norm_means_the_statistics_of_each_chunk(case: MakeCase, assert_same: AssertSame) -> None:
    # Chunks of 4 out of 10: ghost batches of 4, 4, 2, each normalised by itself, weighted by 4/10, 4/10, 2/10.
    model, criterion, x, y = case("batch norm", 10)
    loss = NetworkObjective(model, criterion, (x, y), chunk_size=4, batch_norm="train")
    first, norm, last = (model[i] for i in (0, 1, 3))  # type: ignore[index]
    total = torch.zeros((), dtype=DOUBLE)
    for xs, ys in zip(x.split(4), y.split(4), strict=True):
        z = first(xs)
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
        total = total + len(xs) / 10 * criterion(last(torch.tanh(z)), ys)
    assert float(loss.value(loss.weights)) == pytest.approx(float(total.detach()), rel=1e-12)
    params = list(model.parameters())
    assert_same(loss.grad(loss.weights), torch.cat([g.flatten() for g in torch.autograd.grad(total, params)]))
    whole = NetworkObjective(model, criterion, (x, y), batch_norm="train")
    assert whole.chunk_size(whole.weights) == 10
    assert abs(float(whole.value(whole.weights) - total.detach())) > 1e-3


def test_eval_mode_batch_norm_does_not_depend_on_chunks(case: MakeCase) -> None:
    model, criterion, x, y = case("batch norm", 10)
    values = [
        float(loss.value(loss.weights))
        for size in (1, 4, 10)
        if (loss := NetworkObjective(model, criterion, (x, y), chunk_size=size))
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-13)


def test_example_gradients_of_train_mode_batch_norm_are_refused(case: MakeCase) -> None:
    model, criterion, x, y = case("batch norm")
    with pytest.raises(ValueError, match='batch_norm="eval"'):
        NetworkObjective(model, criterion, (x, y), batch_norm="train").example_grads(torch.zeros(1))


def test_batch_norm_without_running_statistics_is_refused_in_eval_mode() -> None:
    # It normalises by the statistics of whatever chunk it is given, in eval mode too: the value would depend on chunks.
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="track_running_stats"):
        NetworkObjective(model, nn.CrossEntropyLoss(), (torch.randn(6, 4), torch.zeros(6).long()))

"""Gradients of single examples and the losses of mini-batches: their means are those of the whole."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lab.landscapes.double_well import DoubleWell
from lab.objective import NetworkObjective

MakeCase = Callable[..., tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]]
AssertSame = Callable[[Tensor, Tensor], None]


@pytest.mark.parametrize("chunk_size", [None, 3, 1])
def test_the_mean_of_example_gradients_is_the_gradient(
    name: str, chunk_size: int | None, case: MakeCase, assert_same: AssertSame
) -> None:
    model, criterion, x, y = case(name)
    loss = NetworkObjective(model, criterion, (x, y), chunk_size=chunk_size)
    w = loss.weights
    grads = loss.example_grads(w)
    assert grads.shape == (7, len(w))
    assert not grads.requires_grad
    assert_same(grads.mean(0), loss.grad(w))
    assert_same(grads, torch.stack([loss.restrict(torch.tensor([i])).grad(w) for i in range(7)]))
    index = torch.tensor([5, 0, 5])
    assert_same(loss.example_grads(w, index), grads[index])


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_restrict_is_the_loss_over_those_examples_with_repeats(chunk_size: int | None, case: MakeCase) -> None:
    model, criterion, x, y = case("tanh")
    index = torch.tensor([6, 1, 1])
    batch = NetworkObjective(model, criterion, (x, y), chunk_size=chunk_size).restrict(index)
    assert batch.num_examples == 3
    direct = criterion(model(x[index]), y[index])
    assert float(batch.value(batch.weights)) == pytest.approx(float(direct.detach()), rel=1e-12)


def test_the_mean_over_a_partition_is_the_whole_loss(case: MakeCase, assert_same: AssertSame) -> None:
    model, criterion, x, y = case("relu")
    loss = NetworkObjective(model, criterion, (x, y))
    w, pieces = loss.weights, torch.arange(7).split(3)
    assert_same(torch.stack([len(i) / 7 * loss.restrict(i).grad(w) for i in pieces]).sum(0), loss.grad(w))


def test_landscapes_have_no_examples() -> None:
    with pytest.raises(TypeError, match="DoubleWell is not a mean over examples"):
        DoubleWell().example_grads(torch.zeros(2))
    with pytest.raises(TypeError, match="DoubleWell is not a mean over examples"):
        DoubleWell().restrict(torch.tensor([0]))

"""Losses cut into chunks: how many examples fit, means that stay the same, and functions that are no means."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.curvature.operators import gauss_newton, hessian
from lab.objective import NetworkObjective

Criterion = Callable[[Tensor, Tensor], Tensor]
AssertSame = Callable[[Tensor, Tensor], None]
DOUBLE = torch.float64


def test_the_chunk_is_the_largest_whose_graph_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3))
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (torch.randn(100, 4), torch.randint(3, (100,))))
    w = loss.weights
    per_example = loss.bytes_per_example(w)
    # At least the hidden layer, once forward and once backward, in float32; at most ten times that.
    assert 2 * 64 * 4 <= per_example <= 20 * 64 * 4
    monkeypatch.setattr("lab.objective.chunks.CHUNK_BYTES", 10 * per_example)
    assert loss.chunk_size(w) == 10
    assert len(list(loss.parts(w))) == 10
    monkeypatch.setattr("lab.objective.chunks.CHUNK_BYTES", 1)
    assert loss.chunk_size(w) == 1


def labels(*ignored: int) -> Tensor:
    """Sorted by class, as data sets come; the examples `ignored` carry no label."""
    y = torch.arange(60) // 20
    y[list(ignored)] = -100
    return y


WEIGHTED = torch.tensor([1.0, 5.0, 2.0])
NO_MEANS: dict[str, tuple[Criterion, Tensor]] = {
    "sum": (partial(functional.cross_entropy, reduction="sum"), labels()),
    "class weights": (partial(functional.cross_entropy, weight=WEIGHTED), labels()),
    "class weights in a function": (lambda f, y: functional.cross_entropy(f, y, weight=WEIGHTED), labels()),
    "one target ignored": (functional.cross_entropy, labels(31)),
    "the last target ignored": (functional.cross_entropy, labels(59)),
    "many ignored": (functional.nll_loss, labels(1, 2, 3, 40, 41, 50)),
    "a class ignored": (partial(functional.cross_entropy, ignore_index=1), labels()),
    "root of a mean": (lambda f, y: functional.cross_entropy(f, y).sqrt(), labels()),
}


@pytest.mark.parametrize("name", NO_MEANS)
def test_a_function_that_is_no_mean_is_refused_once_it_is_cut_into_chunks(name: str) -> None:
    criterion, y = NO_MEANS[name]
    model, x = nn.Linear(4, 3), torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    whole = NetworkObjective(model, criterion, (x, y), chunk_size=60)
    assert float(whole.value(whole.weights)) == pytest.approx(float(criterion(model(x), y).detach()))
    cut = NetworkObjective(model, criterion, (x, y), chunk_size=16)
    for method in (cut.value, cut.grad, lambda w: hessian(cut, w), lambda w: gauss_newton(cut, w)):
        with pytest.raises(ValueError, match="no mean over examples"):
            method(cut.weights)


MEANS: dict[str, tuple[Criterion, Callable[[Tensor], Tensor]]] = {
    "cross-entropy": (functional.cross_entropy, lambda y: y),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.3), lambda y: y),
    "soft labels": (functional.cross_entropy, lambda y: torch.softmax(functional.one_hot(y, 3).float(), -1)),
    "mse": (nn.MSELoss(), lambda y: functional.one_hot(y, 3).float()),
    "huber": (nn.HuberLoss(), lambda y: functional.one_hot(y, 3).float()),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTED), lambda y: functional.one_hot(y, 3).float()),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), lambda y: functional.one_hot(y, 3).float()),
    "own": (lambda f, y: (f.logsumexp(-1) - f[:, 0] * (y == 1)).exp().mean(), lambda y: y),
}


@pytest.mark.parametrize("chunk_size", [1, 7, 59])
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_the_same_in_one_chunk_and_in_many(name: str, chunk_size: int, assert_same: AssertSame) -> None:
    criterion, targets = MEANS[name]
    model, x, y = nn.Linear(4, 3), torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), targets(labels())
    cut = NetworkObjective(model, criterion, (x, y), chunk_size=chunk_size)
    w = cut.weights.double()
    whole = NetworkObjective(model, criterion, (x, y), chunk_size=60)
    if name != "binary":  # its weights are float32 and stay so
        assert_same(cut.hvp(w, w), whole.hvp(w, w))
    assert float(cut.value(w)) == pytest.approx(float(whole.value(w)), rel=1e-6)


@pytest.mark.parametrize("chunk_size", [2, 9])
def test_a_network_may_give_several_rows_an_example(chunk_size: int) -> None:
    def words(f: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(f, y.flatten())

    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1)).to(DOUBLE)
    x, y = torch.randn(9, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)), torch.arange(18).view(9, 2) % 3
    loss = NetworkObjective(model, words, (x, y), chunk_size=chunk_size)
    assert float(loss.value(loss.weights)) == pytest.approx(float(words(model(x), y).detach()), rel=1e-13)


def test_a_diverged_network_is_not_mistaken_for_a_loss_that_is_no_mean() -> None:
    model = nn.Linear(4, 3)
    loss = NetworkObjective(model, functional.cross_entropy, (torch.randn(60, 4), labels()), chunk_size=16)
    model.bias.data.fill_(torch.nan)
    assert loss.value(loss.weights).isnan()

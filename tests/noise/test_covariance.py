"""The covariance of the gradient noise against its dense matrix, in float64."""

import math
import statistics
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from lab.layers.examples import ExampleGradients
from lab.noise.covariance import NoiseSpectrum, covariance, eigenvalues, square_by_sample
from lab.noise.size import trace
from lab.objective import NetworkObjective

DOUBLE = torch.float64
Build = Callable[..., NetworkObjective]
DENSE = ["mlp", "tied, unused and frozen", "used twice", "attention", "words"]
"""Networks of few enough parameters for the matrix."""


def dense(loss: NetworkObjective) -> Tensor:
    return torch.cov(loss.example_grads(loss.weights).T, correction=0)


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("which", DENSE)
def test_products_are_those_of_the_matrix(network: Build, which: str, memory: int | None) -> None:
    loss = network(which, chunk_size=4)
    D, truth = covariance(loss, loss.weights, memory=memory), dense(loss)
    v = torch.randn(len(truth), 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert (D @ v - truth @ v).abs().max() < 1e-10 * truth.norm()
    assert D.matvecs == 2


def test_uncentred_it_is_the_empirical_fisher_matrix(network: Build) -> None:
    loss = network("mlp")
    G = loss.example_grads(loss.weights)
    truth = G.T @ G / len(G)
    assert (covariance(loss, loss.weights, centred=False).dense() - truth).abs().max() < 1e-14
    assert (truth - dense(loss)).abs().max() > 1e-3


def test_the_operator_is_that_at_w_even_if_w_is_changed_afterwards(network: Build) -> None:
    loss = network("mlp")
    w = loss.weights
    for memory in (0, None):
        D = covariance(loss, w, memory=memory)
        before = D @ torch.ones_like(w)
        w.add_(1.0)
        assert torch.equal(D @ torch.ones_like(w), before)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_the_trace_its_blocks_and_its_error_are_those_of_the_matrix(
    network: Build, name: str, chunk_size: int | None
) -> None:
    loss = network(name, chunk_size=chunk_size)
    G = loss.example_grads(loss.weights)
    centred = G - G.mean(0)
    found = trace(loss, loss.weights)
    truth = float(centred.square().sum()) / len(G)
    assert found.value == pytest.approx(truth, rel=1e-10)
    assert found.mean_square == pytest.approx(float(G.square().sum()) / len(G), rel=1e-10)
    assert found.error == pytest.approx(float(centred.square().sum(1).std()) / math.sqrt(len(G)), rel=1e-8)
    assert (found.gradient - G.mean(0)).abs().max() < 1e-10 * G.norm()
    assert list(found.by_parameter) == list(loss.layout.names)
    for parameter, place in loss.layout.slices().items():
        expected = float(centred[:, place].square().sum()) / len(G)
        assert found.by_parameter[parameter] == pytest.approx(expected, rel=1e-9, abs=1e-10 * truth)


def test_the_error_of_the_trace_covers_the_population() -> None:
    """Of 200 samples of 300 examples a share of 68 % should hold the population's trace within one error; 6 standard
    errors of that share are 0.20. The error itself rests on a sample of the inner products here."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 1).double()
    x, y = (
        torch.randn(60_000, 4, dtype=DOUBLE, generator=generator),
        torch.randn(60_000, 1, generator=generator).double(),
    )
    whole = NetworkObjective(model, nn.MSELoss(), (x, y + x[:, :1]), chunk_size=60_000)
    w = whole.weights
    truth, hits = trace(whole, w).value, 0
    for index in torch.randperm(60_000, generator=generator).split(300):
        found = trace(whole.restrict(index), w)
        hits += abs(found.value * 300 / 299 - truth) < found.error
    assert 0.48 < hits / 200 < 0.88


def test_the_spectrum_is_that_of_the_matrix(network: Build) -> None:
    loss = network("words", chunk_size=4)
    truth = torch.linalg.eigvalsh(D := dense(loss)).flip(0)
    found = eigenvalues(loss, loss.weights, 3)
    assert found.method == "gram" and found.rank_bound == 8
    assert (found.values - truth[:8]).abs().max() < 1e-12 * truth[0]
    assert truth[8] < 1e-12 * truth[0]
    assert found.trace == pytest.approx(float(D.trace()), rel=1e-12)
    assert found.effective_rank == pytest.approx(float(D.trace() ** 2 / D.square().sum()), rel=1e-12)
    vectors = found.pairs.vectors
    assert (vectors.T @ vectors - torch.eye(3, dtype=DOUBLE)).abs().max() < 1e-12
    assert (D @ vectors - vectors * found.pairs.values).abs().max() < 1e-6 * truth[0]
    assert eigenvalues(loss, loss.weights, 0).pairs.vectors.shape == (len(D), 0)


def test_many_examples_take_lanczos_and_find_the_same(network: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = network("mlp")
    few = eigenvalues(loss, loss.weights, 2)
    monkeypatch.setattr("lab.noise.covariance.GRAM_EXAMPLES", 5)
    many = eigenvalues(loss, loss.weights, 2, tol=1e-6)
    assert many.method == "lanczos"
    assert many.effective_rank == pytest.approx(few.effective_rank, rel=1e-10) and many.effective_rank_error == 0
    assert (many.pairs.values - few.pairs.values).abs().max() < 1e-6 * few.pairs.values[0]
    monkeypatch.setattr("lab.noise.covariance.GRAM_EXAMPLES", 4096)
    monkeypatch.setattr("lab.layers.examples.memory_of", lambda device: 1000)
    assert eigenvalues(loss, loss.weights, 2, tol=1e-6).method == "lanczos"


def test_tr_d_squared_of_a_sample_is_unbiased_over_all_samples(network: Build) -> None:
    loss = network("mlp")
    D, num = dense(loss), len(loss.x)
    examples = ExampleGradients(loss, loss.weights)
    g = examples.gradient()
    lengths = (loss.example_grads(loss.weights) - g).square().sum(1)
    found = [
        square_by_sample(examples, g, lengths, torch.tensor(index))[0] for index in combinations(range(num), num // 2)
    ]
    assert sum(found) / len(found) == pytest.approx(float(D.square().sum()), rel=1e-12)
    assert max(found) > 1.05 * min(found)


def test_the_error_of_an_effective_rank_covers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # 60 samples of 100 out of 400 examples: 68 % within one error, and 6 standard errors of that share are 0.36. Over
    # samples the mean of Tr D^2 is exact: 4 standard errors.
    monkeypatch.setattr("lab.noise.covariance.RANKED", 100)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, dtype=DOUBLE, generator=generator) * torch.linspace(0.2, 2, 6, dtype=DOUBLE)
    y = torch.randint(3, (400,), generator=generator)
    loss = NetworkObjective(nn.Linear(6, 3).double(), nn.CrossEntropyLoss(), (x, y))
    truth = eigenvalues(loss, loss.weights)
    assert truth.squares_error == 0
    monkeypatch.setattr("lab.noise.covariance.GRAM_EXAMPLES", 300)
    found = [eigenvalues(loss, loss.weights, generator=generator) for _ in range(60)]
    squares = torch.tensor([each.squares for each in found], dtype=DOUBLE)
    assert abs(float(squares.mean()) - truth.squares) < 4 * float(squares.std()) / math.sqrt(60)
    assert all(each.trace == pytest.approx(truth.trace, rel=1e-10) for each in found)
    within = sum(abs(each.effective_rank - truth.effective_rank) < each.effective_rank_error for each in found) / 60
    assert 0.32 < within < 0.97
    assert 0.6 < float(squares.std()) / statistics.mean(each.squares_error for each in found) < 1.6


def test_equal_gradients_have_no_noise() -> None:
    model = nn.Linear(3, 2).double()
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (torch.ones(5, 3, dtype=DOUBLE), torch.zeros(5).long()))
    assert abs(trace(loss, loss.weights).value) < 1e-14
    found: NoiseSpectrum = eigenvalues(loss, loss.weights, 1)
    assert found.values.abs().max() < 1e-14
    assert bool(found.pairs.vectors.isfinite().all())


def test_one_example_has_no_noise_and_no_error(network: Build) -> None:
    loss = network("mlp").restrict(torch.tensor([0]))
    found = trace(loss, loss.weights)
    assert abs(found.value) < 1e-14 and math.isnan(found.error)
    with pytest.raises(ValueError, match="k=1: the covariance of 1 gradients of 67 entries has rank 0 at most"):
        eigenvalues(loss, loss.weights, 1)


def test_the_rank_is_at_most_N_minus_1(network: Build) -> None:
    loss = network("mlp")
    with pytest.raises(ValueError, match="k=9: the covariance of 9 gradients of 67 entries has rank 8 at most"):
        eigenvalues(loss, loss.weights, 9)
    assert int((torch.linalg.eigvalsh(dense(loss)) > 1e-12).sum()) == 8


def test_train_mode_batch_norm_is_refused(network: Build) -> None:
    loss = network("resnet-20, batch norm")
    coupled = NetworkObjective(loss.model, loss.criterion, (loss.x, loss.y), batch_norm="train")
    for measure in (trace, covariance, eigenvalues):
        with pytest.raises(ValueError, match="train-mode BatchNorm couples the examples of a batch"):
            measure(coupled, loss.weights)

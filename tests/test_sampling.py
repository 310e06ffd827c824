"""Lemma 1 of Smith and Le (2018) and its corrections: by enumeration of every batch, and by Monte Carlo on a network."""

from itertools import combinations, permutations, product

import pytest
import torch
from torch import Tensor, nn

from lab.noise.size import trace
from lab.objective import NetworkObjective
from lab.sampling import Sampling, batch_factor, cross_factor

DOUBLE = torch.float64
N, M = 6, 3


@pytest.fixture
def gradients() -> Tensor:
    return torch.randn(N, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def noise_covariance(gradients: Tensor) -> Tensor:
    return torch.cov(gradients.T, correction=0)


def test_all_216_batches_with_replacement_have_the_covariance_D_over_m(gradients: Tensor) -> None:
    means = torch.stack([gradients[list(batch)].mean(0) for batch in product(range(N), repeat=M)])
    assert len(means) == 216
    expected = batch_factor(N, M, "with_replacement") * noise_covariance(gradients)
    assert (noise_covariance(means) - expected).abs().max() < 1e-14


@pytest.mark.parametrize("sampling", ["without_replacement", "epoch"])
def test_all_20_subsets_have_the_covariance_with_the_finite_population_factor(
    gradients: Tensor, sampling: Sampling
) -> None:
    means = torch.stack([gradients[list(batch)].mean(0) for batch in combinations(range(N), M)])
    assert len(means) == 20
    assert (noise_covariance(means) - batch_factor(N, M, sampling) * noise_covariance(gradients)).abs().max() < 1e-14


def test_two_batches_of_an_epoch_have_the_cross_covariance_minus_D_over_N_minus_1(gradients: Tensor) -> None:
    orders = torch.tensor(list(permutations(range(N))))
    assert len(orders) == 720
    first, second = gradients[orders[:, :M]].mean(1), gradients[orders[:, M:]].mean(1)
    mean = gradients.mean(0)
    cross = (first - mean).T @ (second - mean) / len(orders)
    assert (cross - cross_factor(N, "epoch") * noise_covariance(gradients)).abs().max() < 1e-14
    assert (cross - cross_factor(N, "with_replacement")).abs().max() > 1e-2


def test_a_whole_epoch_has_no_noise() -> None:
    batches = 4
    within, between = batch_factor(8, 2, "epoch"), cross_factor(8, "epoch")
    assert batches * within + batches * (batches - 1) * between == pytest.approx(0, abs=1e-16)


def test_a_batch_larger_than_the_set_is_refused_without_replacement_only() -> None:
    with pytest.raises(ValueError, match="a batch of 7 out of 6 examples; expected 1 to 6"):
        batch_factor(6, 7, "epoch")
    assert batch_factor(6, 12, "with_replacement") == 1 / 12


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
def test_the_spread_of_drawn_batches_is_the_factor_times_the_trace(sampling: Sampling) -> None:
    """3 standard errors of 4000 draws: a false alarm in 370."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(40, 6, dtype=DOUBLE, generator=generator)
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (x, torch.randint(3, (40,), generator=generator)))
    w, m, draws = loss.weights, 5, 4000
    gradients = loss.example_grads(w)
    if sampling == "with_replacement":
        index = torch.randint(40, (draws, m), generator=generator)
    else:
        index = torch.rand(draws, 40, generator=generator).argsort(1)[:, :m]
    squares = (gradients[index].mean(1) - gradients.mean(0)).square().sum(1)
    expected = batch_factor(40, m, sampling) * trace(loss, w).value
    assert abs(float(squares.mean()) - expected) < 3 * float(squares.std()) / draws**0.5
    wrong = (
        batch_factor(40, m, "with_replacement" if sampling != "with_replacement" else "epoch") * trace(loss, w).value
    )
    assert abs(float(squares.mean()) - wrong) > 3 * float(squares.std()) / draws**0.5

"""The covariance of every kind of noise against the one it stands for."""

import pytest
import torch
from torch import Tensor, nn

from lab.escape.noises import FrozenNoise, IsotropicNoise, SampleWeightNoise
from lab.landscapes.quadratic import Quadratic
from lab.objective import NetworkObjective

DOUBLE, DRAWS = torch.float64, 20000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def network() -> NetworkObjective:
    model = nn.Linear(3, 1).double()
    x, y = (torch.randn(12, k, dtype=DOUBLE, generator=generator(k)) for k in (3, 1))
    return NetworkObjective(model, lambda f, y: (f - y).square().sum(1).mean() / 2, (x, y))


def covariance(network: NetworkObjective, w: Tensor) -> Tensor:
    g = network.example_grads(w)
    centred = g - g.mean(0)
    return centred.T @ centred / len(g)


@pytest.mark.parametrize("kind", ["sample_weights", "frozen", "isotropic"])
def test_covariance_is_that_of_the_name(kind: str, network: NetworkObjective) -> None:
    here = torch.zeros(4, dtype=DOUBLE)
    there = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=DOUBLE)
    D = covariance(network, there) / 5
    noise, expected = {
        "sample_weights": (SampleWeightNoise(5), D),
        "frozen": (FrozenNoise.at(network, here, 5), covariance(network, here) / 5),
        "isotropic": (IsotropicNoise.of_trace(float(D.trace()), 4), D.trace() / 4 * torch.eye(4, dtype=DOUBLE)),
    }[kind]
    found = noise(network, there.expand(DRAWS, -1), generator())
    # entries of a Wishart mean: relative Frobenius error about sqrt((1 + (tr C)^2/|C|^2)/n) <= sqrt(5/n) = .016
    error = (found.T @ found / DRAWS - expected).norm() / expected.norm()
    assert float(error) < 0.04
    assert float(found.mean(0).norm()) < 4 * float((expected.trace() / DRAWS).sqrt())


def test_rows_are_independent(network: NetworkObjective) -> None:
    found = SampleWeightNoise(5)(network, torch.ones(DRAWS, 4, dtype=DOUBLE), generator())
    one, other = found[::2, 0], found[1::2, 0]
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 4 / (DRAWS / 2) ** 0.5


def test_gradient_and_noise_in_one_pass_are_their_sum(network: NetworkObjective) -> None:
    W = torch.randn(5, 4, dtype=DOUBLE, generator=generator())
    for noise in (SampleWeightNoise(3), IsotropicNoise(0.2), FrozenNoise.at(network, W[0], 3)):
        together = noise.gradients(network, W, generator(1))
        torch.testing.assert_close(together, network.replica_grads(W) + noise(network, W, generator(1)))


def test_what_cannot_be_is_said_in_a_line() -> None:
    with pytest.raises(ValueError, match="std=-1"):
        IsotropicNoise(-1.0)
    with pytest.raises(ValueError, match="batch_size=0"):
        SampleWeightNoise(0)
    with pytest.raises(TypeError, match="no examples to weight"):
        SampleWeightNoise(2)(Quadratic(torch.ones(2)), torch.ones(3, 2), generator())

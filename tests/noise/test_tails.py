"""Tail indices and Gaussianity on samples whose answer is known, with the errors and false alarms that are claimed."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lab.noise.tails import extreme_index, gaussianity, stable_index, tail_index
from lab.results import Estimate


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pareto(n: int, alpha: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64) ** (-1 / alpha)


def repeated(times: int, estimate: Callable[[], Estimate]) -> tuple[Tensor, Tensor]:
    found = [estimate() for _ in range(times)]
    return torch.tensor([e.value for e in found]), torch.tensor([e.error for e in found])


@pytest.mark.parametrize("alpha", [1.5, 3.0, 6.0])
def test_hill_finds_the_index_of_a_pareto_law_within_its_error(alpha: float, generator: torch.Generator) -> None:
    values, errors = repeated(200, lambda: tail_index(pareto(2000, alpha, generator)))
    z = (values - alpha) / errors
    # 200 standard normals: the mean within 4/sqrt(200), the spread within 4/sqrt(400) of 1.
    assert abs(float(z.mean())) < 0.28
    assert float(z.std()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_the_moment_estimator_finds_one_over_alpha_within_its_error(alpha: float, generator: torch.Generator) -> None:
    values, errors = repeated(200, lambda: extreme_index(pareto(2000, alpha, generator)))
    z = (values - 1 / alpha) / errors
    assert abs(float(z.mean())) < 0.6  # biased by a third of its error at 100 of 2000 values
    assert float(z.std()) == pytest.approx(1.0, abs=0.2)


def test_a_gaussian_tail_is_light_though_hill_gives_it_an_index(generator: torch.Generator) -> None:
    sample = normal(100000, generator=generator).abs()
    gamma, alpha = extreme_index(sample), tail_index(sample)
    assert gamma.value < 0 + 3 * gamma.error
    assert gamma.value > -0.25
    assert 5 < alpha.value < 8


def test_exponential_tails_have_index_zero_and_uniform_ones_minus_one(generator: torch.Generator) -> None:
    exponential = extreme_index(torch.empty(20000, dtype=torch.float64).exponential_(generator=generator))
    assert exponential.value == pytest.approx(0.0, abs=4 * exponential.error)
    uniform = extreme_index(torch.rand(20000, generator=generator, dtype=torch.float64))
    assert uniform.value == pytest.approx(-1.0, abs=4 * uniform.error)


def test_scale_does_not_matter(generator: torch.Generator) -> None:
    sample = pareto(500, 2.0, generator)
    for estimator in (tail_index, extreme_index):
        assert estimator(1e-9 * sample).value == pytest.approx(estimator(sample).value, rel=1e-9)


def test_a_sample_without_a_tail_is_not_measured() -> None:
    for estimator in (tail_index, extreme_index):
        for sample in (torch.ones(50), torch.zeros(50)):
            found = estimator(sample)
            assert math.isnan(found.value)
            assert not found.converged


def test_stable_index_is_two_for_gaussian_and_one_for_cauchy(generator: torch.Generator) -> None:
    gaussian = stable_index(normal(40000, generator=generator))
    assert gaussian.value == pytest.approx(2.0, abs=4 * gaussian.error)
    assert gaussian.error < 0.1
    cauchy = stable_index(torch.empty(40000, dtype=torch.float64).cauchy_(generator=generator))
    assert cauchy.value == pytest.approx(1.0, abs=4 * cauchy.error)


def test_gaussian_coordinates_of_different_variance_thrown_together_look_heavy_tailed(
    generator: torch.Generator,
) -> None:
    """The trap: every coordinate is Gaussian, the mixture of all is not, and its alpha says nothing of the noise."""
    coordinates = normal(400, 400, generator=generator) * torch.logspace(-3, 0, 400, dtype=torch.float64)
    shuffled = coordinates.flatten()[torch.randperm(160000, generator=generator)]
    assert stable_index(shuffled).value < 1.3
    along = coordinates @ normal(400, generator=generator)
    found = stable_index(along)
    assert found.value == pytest.approx(2.0, abs=4 * found.error)


@pytest.mark.parametrize("low_rank", [False, True], ids=["independent", "one direction dominates"])
def test_gaussian_noise_raises_no_more_false_alarms_than_stated(low_rank: bool, generator: torch.Generator) -> None:
    family = rejected = beyond = 0.0
    for _ in range(100):
        draws = normal(400, 6, generator=generator)
        if low_rank:
            draws = draws[:, :1] * normal(6, generator=generator) + 0.1 * draws
        found = gaussianity(draws, level=0.05)
        family += found.p_value < 0.05
        rejected += found.rejected
        beyond += abs(found.kurtosis.value) > 3 * found.kurtosis.error
    # At a level of 5 % more than 13 of 100 have probability 4e-4; the shares of dependent directions scatter as one would.
    assert family <= 13
    assert rejected <= 13
    assert beyond <= 5


def test_noise_that_is_not_gaussian_is_found(generator: torch.Generator) -> None:
    uniform = torch.rand(1000, 5, generator=generator, dtype=torch.float64)
    found = gaussianity(uniform)
    assert found.rejected == 1.0
    assert found.p_value < 1e-6
    assert found.kurtosis.value == pytest.approx(-1.2, abs=4 * found.kurtosis.error)


def test_a_mean_of_m_draws_has_one_m_th_of_the_excess(generator: torch.Generator) -> None:
    laplace = torch.distributions.Laplace(0.0, 1.0)
    torch.manual_seed(0)
    one = laplace.sample((4000, 4, 8)).double()
    whole, mean = gaussianity(one[..., 0]), gaussianity(one.mean(-1))
    assert whole.kurtosis.value == pytest.approx(3.0, abs=4 * whole.kurtosis.error)
    assert mean.kurtosis.value == pytest.approx(3.0 / 8, abs=4 * mean.kurtosis.error)


def test_directions_without_noise_do_not_count(generator: torch.Generator) -> None:
    draws = normal(200, 2, generator=generator)
    with_constant = torch.cat([draws, torch.full((200, 1), 0.3, dtype=torch.float64)], 1)
    assert gaussianity(with_constant) == gaussianity(draws)
    assert math.isnan(gaussianity(torch.zeros(200, 2)).p_value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: tail_index(torch.rand(5)),
        lambda: tail_index(torch.rand(50, 2)),
        lambda: extreme_index(torch.rand(100), share=1.5),
        lambda: stable_index(torch.rand(50)),
        lambda: gaussianity(torch.rand(10, 2)),
        lambda: gaussianity(torch.rand(6000, 1)),
    ],
)
def test_too_small_samples_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()

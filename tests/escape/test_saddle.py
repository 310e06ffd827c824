"""Leaving a saddle: the law of the exit time against simulation, and the estimators of its growth."""

import math

import pytest
import torch
from torch import Tensor

from lab.escape.saddle import SaddleDescent, growth_factor, log_chi, noise_std
from lab.escape.seen_growth import autoregression, kick_growth

GAMMA = 0.5772156649015329


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def left(descent: SaddleDescent, radius: float, *, walkers: int, seed: int = 0) -> Tensor:
    """First steps outside, by moving walkers as torch's SGD moves weights."""
    c, k = torch.tensor(descent.curvatures, dtype=torch.float64), len(descent.curvatures)
    noise, slope, start = (
        torch.as_tensor(value, dtype=torch.float64).expand(k)
        for value in (descent.noise, descent.gradient, descent.start)
    )
    draws, x = generator(seed), start.repeat(walkers, 1)
    velocity, times = torch.zeros_like(x), torch.zeros(walkers).double()
    inside, step = torch.ones(walkers, dtype=torch.bool), 0
    while bool(inside.any()):
        step += 1
        g = c * x + slope + noise * torch.randn(walkers, k, generator=draws, dtype=torch.float64)
        velocity = descent.momentum * velocity + g
        x = x - descent.lr * velocity
        times[inside] = step
        inside &= x.norm(dim=1) <= radius
    return times


@pytest.mark.parametrize(
    ("lr", "curvature", "noise", "expected"),
    [(0.1, 0.5, 1e-3, 178.95), (0.05, 1.0, 1e-2, 145.96), (0.2, 1.0, 1e-4, 61.077)],
)
def test_one_direction_is_the_closed_form(lr: float, curvature: float, noise: float, expected: float) -> None:
    found, a = SaddleDescent([-curvature], noise, lr).time(1.0), 1 + lr * curvature
    drawn = math.log(1 / (lr * noise)) + 0.5 * math.log(a * a - 1) + (GAMMA + math.log(2)) / 2
    assert found.mean == pytest.approx(drawn / math.log(a) + 0.5, rel=1e-12)
    assert found.mean == pytest.approx(expected, rel=1e-4)
    assert found.std**2 == pytest.approx(math.pi**2 / 8 / math.log(a) ** 2 + 1 / 12, rel=1e-12)
    weaker = SaddleDescent([-curvature], noise / 10, lr).time(1.0)
    assert (weaker.mean - found.mean) / math.log(10) == pytest.approx(found.slope, rel=1e-9)
    assert found.slope == pytest.approx(1 / math.log(a), rel=1e-12)


@pytest.mark.parametrize(("k", "expected"), [(1, 193.16), (10, 157.60), (100, 133.05)])
def test_many_equal_directions_leave_sooner(k: int, expected: float) -> None:
    assert SaddleDescent([-1.0] * k, 1e-3, 0.05).time(1.0).mean == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    "descent",
    [
        SaddleDescent([-0.5], 1e-3, 0.1),
        SaddleDescent([-0.5], 1e-3, 0.05, momentum=0.9),
        SaddleDescent([-1.0, -0.5, -0.2], 1e-3, 0.1),
        SaddleDescent([-1.0, -0.9], [1e-3, 1e-2], 0.1, momentum=0.5),
        SaddleDescent([-1.0], 1e-3, 0.1, gradient=5e-4),
        SaddleDescent([-1.0], 1e-3, 0.1, momentum=0.8, gradient=-5e-4, start=1e-3),
        SaddleDescent([-1.0, -0.4], [0.0, 1e-3], 0.1, momentum=0.5),
        SaddleDescent([-1.0, -0.4], [0.0, 1e-3], 0.1, momentum=0.5, start=[1e-4, 0.0]),
        SaddleDescent([-1.0] * 20, 1e-3, 1.0),
    ],
    ids=lambda d: f"k{len(d.curvatures)}-momentum{d.momentum}-gradient{d.gradient}-start{d.start}",
)
def test_simulated_walkers_leave_when_theory_says(descent: SaddleDescent) -> None:
    times = left(descent, 1.0, walkers=4000)
    found = descent.time(1.0)
    # Four standard errors; the spread's from the fourth moment of the times; all noises are below crowding 0.01.
    assert found.crowding < 0.1
    assert abs(float(times.mean()) - found.mean) < 4 * float(times.std()) / math.sqrt(len(times)) + 4 * found.error
    kurtosis = float((times - times.mean()).pow(4).mean() / times.var() ** 2)
    assert abs(float(times.std()) / found.std - 1) < 4 * math.sqrt((kurtosis - 1) / 4 / len(times)) + 0.005
    # The largest distance of the two distribution functions: 1.95/sqrt(n) is exceeded by chance once in 1000 times.
    steps = torch.arange(int(times.max()) + 1)
    seen = 1 - torch.searchsorted(times.sort().values, steps.double(), right=True).double() / len(times)
    assert float((descent.survival(steps, 1.0) - seen).abs().max()) < 1.95 / math.sqrt(len(times)) + 0.002


def test_unequal_directions_tend_to_equal_ones() -> None:
    nearly = SaddleDescent([-1.0, -1.0 - 1e-9, -1.0], 1e-3, 0.05).time(1.0)
    equal = SaddleDescent([-1.0] * 3, 1e-3, 0.05).time(1.0)
    assert (nearly.method, equal.method) == ("quasi-random", "closed form")
    assert nearly.mean == pytest.approx(equal.mean, abs=0.02)
    assert nearly.std == pytest.approx(equal.std, rel=2e-3)
    alone = SaddleDescent([-1.0], 1e-3, 0.05).time(1.0)
    assert SaddleDescent([-1.0, -1e-3], 1e-3, 0.05).time(1.0).mean == pytest.approx(alone.mean, abs=0.05)


def test_without_noise_in_the_descending_directions_it_never_ends() -> None:
    never = SaddleDescent([-1.0, -0.2], 0.0, 0.1).time(0.5)
    assert never.never and math.isinf(never.mean) and str(never) == "never by noise"
    assert bool((SaddleDescent([-1.0], 0.0, 0.1).survival(torch.arange(9), 0.5) == 1).all())
    assert bool((noise_std(torch.tensor([2e-31, 0.0]), factor=1 / 16, scale=1.0) == 0).all())
    assert float(noise_std(torch.tensor([2e-31]), factor=1.0)) > 0, "without a scale nothing is called round-off"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_alone_leaves_at_the_exact_step(momentum: float) -> None:
    descent = SaddleDescent([-0.5], 0.0, 0.1, momentum=momentum, gradient=1e-4)
    assert float(left(descent, 1.0, walkers=1)) == descent.time(1.0).mean
    assert descent.time(1.0).std == 0


def test_the_larger_root_of_heavy_ball_is_what_gradient_descent_grows_by() -> None:
    x, velocity = 1e-8, 0.0
    for _ in range(400):
        velocity = 0.9 * velocity - 0.18244 * x
        before, x = x, x - 0.02 * velocity
    assert x / before == pytest.approx(growth_factor(-0.18244, lr=0.02, momentum=0.9), rel=1e-12)
    assert math.log(x / before) == pytest.approx(0.028673, abs=1e-6)


@pytest.mark.parametrize(("k", "offset"), [(1, 0.0), (1, 0.3), (3, 40.0), (2, 25000.0), (7, 19000.0)])
def test_moments_of_the_log_of_a_noncentral_chi(k: int, offset: float) -> None:
    z = torch.randn(200_000, k, generator=generator(), dtype=torch.float64)
    z[:, 0] += math.sqrt(offset)
    logs = z.norm(dim=1).log()
    mean, variance = log_chi(k, offset)
    assert abs(float(logs.mean()) - mean) < 4 * float(logs.std()) / math.sqrt(len(logs))
    kurtosis = float((logs - logs.mean()).pow(4).mean() / logs.var() ** 2)
    assert float(logs.var()) == pytest.approx(variance, rel=4 * math.sqrt(kurtosis / len(logs)))


# --- growth ----------


def runs(z: float, noise: float, *, replicas: int = 256, steps: int = 150, momentum: float = 0.0) -> Tensor:
    """x (steps + 1, R) from the saddle: the coordinate grows by z a step; noise is that of a step."""
    middle, draws = z + momentum / z, generator(3)
    x = torch.zeros(steps + 1, replicas).double()
    for t in range(steps):
        before = x[t - 1] if t else x[0]
        x[t + 1] = (
            middle * x[t] - momentum * before + noise * torch.randn(replicas, generator=draws, dtype=torch.float64)
        )
    return x


@pytest.mark.parametrize(("momentum", "z"), [(0.0, 1.0365), (0.9, 1.0291)])
def test_autoregression_finds_the_growth_within_its_error(momentum: float, z: float) -> None:
    x = runs(z, 1e-3, momentum=momentum, replicas=512)
    found = autoregression(x, 0.15, generator(), order=1 + (momentum > 0))
    # A bias of at most 4 % comes from stopping at the radius, beside three standard errors.
    assert abs(found.value - math.log(z)) < 3 * found.error + 0.04 * math.log(z)
    # The error over the bootstrap is that over independent repetitions of the experiment, to the error of 8 of them.
    again = [autoregression(part, 0.15, generator(), order=1 + (momentum > 0)).value for part in x.split(64, 1)]
    assert float(torch.tensor(again).std()) / math.sqrt(8) == pytest.approx(found.error, rel=0.8)


def test_half_the_log_of_the_mean_square_is_too_steep_from_a_zero_start() -> None:
    z = 1.0365
    x = runs(z, 1e-3, replicas=4096, steps=60)
    times, logs = torch.arange(20, 61).double(), 0.5 * x[20:].square().mean(1).log()
    slope = float(((times - times.mean()) @ logs) / (times - times.mean()).square().sum())
    assert slope > 1.05 * math.log(z)
    assert autoregression(x, 1.0, generator()).value == pytest.approx(math.log(z), rel=0.02)


def test_growth_from_a_kick_without_noise_is_exact() -> None:
    z, other = 1.030436, 0.9 / 1.030436
    kick = 1e-8 * torch.randn(64, generator=generator(), dtype=torch.float64)
    steps = torch.arange(301).double()[:, None]
    x = kick * (z * z**steps - other * other**steps) / (z - other)
    found = kick_growth(x)
    assert found.value == pytest.approx(math.log(z), rel=1e-5)
    both = torch.stack([x, 2 * x.flip(1)], 2)
    assert kick_growth(both).value == pytest.approx(math.log(z), rel=1e-5)


def test_what_was_not_measured_is_not_a_number() -> None:
    assert math.isnan(autoregression(torch.zeros(50, 8), 0.1, generator()).value)
    assert math.isnan(kick_growth(torch.zeros(50, 8)).value)
    assert not kick_growth(torch.full((50, 8), math.inf)).converged
    assert not autoregression(torch.zeros(50, 8), 0.1, generator(), order=2).converged


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: SaddleDescent([], 1.0, 0.1), "one or more, all negative"),
        (lambda: SaddleDescent([-1.0, 0.5], 1.0, 0.1), "all negative"),
        (lambda: SaddleDescent([-1.0], -1.0, 0.1), "noise=-1.0"),
        (lambda: SaddleDescent([-1.0], math.nan, 0.1), "noise=nan"),
        (lambda: SaddleDescent([-1.0], [1.0, 2.0], 0.1), "2 values for 1 descending"),
        (lambda: SaddleDescent([-1.0], 1.0, 0.0), "lr=0.0"),
        (lambda: SaddleDescent([-1.0], 1.0, 0.1, momentum=1.0), "momentum=1.0"),
        (lambda: SaddleDescent([-1.0], 1.0, 0.1).time(0.0), "radius=0.0"),
        (lambda: growth_factor(1.0, lr=0.1), "expected a negative one"),
        (lambda: kick_growth(torch.ones(4, 3)), "6 steps or more"),
        (lambda: autoregression(torch.ones(9, 1), 1.0, generator()), "R >= 2"),
        (lambda: autoregression(torch.ones(9, 3), 1.0, generator(), order=3), "order=3"),
    ],
)
def test_what_cannot_be_right_is_refused(call, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        call()

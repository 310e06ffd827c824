"""The chain of discrete steps: against a naive twin on uniform cells, its own survival curve, and the limit lr -> 0."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from lab.gallery.landscapes.piecewise_parabola import PiecewiseParabola
from lab.gallery.laws.kramers import Diffusion, Domain, escape_rate, log_mean_time, on
from lab.gallery.laws.nystrom import StepChain
from lab.landscapes.double_well import DoubleWell

QUARTIC = on(DoubleWell(()), 0.07)

WIDE = Diffusion(lambda x: 2 * x, lambda x: 0 * x + 0.1)
"""Near lr = 1 its steps overshoot, and the walker is found far beyond where it would be for small steps."""


def naive(process: Diffusion, lr: float, low: float, high: float, start: float, cells: int = 1500) -> float:
    """(1 - P) tau = 1 with the exact probabilities of uniform cells, walkers at their centres: an error of h^2."""
    edges = np.linspace(low, high, cells + 1)
    x = torch.from_numpy((edges[1:] + edges[:-1]) / 2)
    mean, std = (x - lr * process.slope(x)).numpy(), (2 * lr * process.diffusion(x)).sqrt().numpy()
    P = np.diff(ndtr((edges - mean[:, None]) / std[:, None]), axis=1)
    tau = np.linalg.solve(np.eye(cells) - P, np.ones(cells))
    return float(np.interp(start, x.numpy(), tau))


@pytest.mark.parametrize(("lr", "time"), [(0.1, 178.4), (0.4, 114.8)])
def test_the_quartic_well_at_large_learning_rates(lr: float, time: float) -> None:
    """Published, with 1400 to 1600 cells."""
    chain = StepChain(QUARTIC, lr, Domain(high=1.0), -1.0)
    assert lr * chain.mean_steps() == pytest.approx(time, abs=0.06)


@pytest.mark.parametrize(("lr", "low", "high"), [(0.05, -2.3, 1.0), (0.3, -2.45, 0.0)])
def test_mean_steps_are_those_of_the_naive_twin(lr: float, low: float, high: float) -> None:
    found = StepChain(QUARTIC, lr, Domain(high=high), -1.0).mean_steps()
    assert found == pytest.approx(naive(QUARTIC, lr, low, high, -1.0), rel=1e-3)


@pytest.mark.parametrize(
    ("h", "noise", "walkers"), [(1, 1.5, 10.02), (2, 3.0, 5.29), (4, 6.0, 2.83), (8, 12.0, 1.51), (2, 1.5, 61.1)]
)
def test_an_ornstein_uhlenbeck_walker_leaves_a_ball_as_late_as_walkers_did(
    h: float, noise: float, walkers: float
) -> None:
    """|x| < 0.2, lr = 0.01, T = lr D / 2: of 2000 walkers, +- 2.2 %; for small steps it is 15 to 45 % sooner."""
    process, ball = Diffusion(lambda x: h * x, lambda x: 0 * x + 0.005 * noise), Domain(-0.2, 0.2)
    found = 0.01 * StepChain(process, 0.01, ball, 0.0).mean_steps()
    assert found == pytest.approx(walkers, rel=3 * 0.022)
    assert 1.15 < found / math.exp(log_mean_time(process, 0.0, ball)) < 1.5


def test_two_exits_and_a_diffusion_that_jumps() -> None:
    L = PiecewiseParabola(4.0, 1.0, 0.25)
    process = on(L, lambda x: L.curvature(x) / 16, cuts=(-L.inflection, L.inflection))
    low, high = -L.minimum - 0.6, 0.3
    found = StepChain(process, 0.05, Domain(low, high), -L.minimum).mean_steps()
    assert found == pytest.approx(naive(process, 0.05, low, high, -L.minimum), rel=2e-3)


def test_the_survival_curve_has_the_mean_and_the_rate() -> None:
    chain = StepChain(QUARTIC, 0.4, Domain(high=0.0), -1.0)
    curve = chain.survival(1, 4000)
    assert float(curve.sum()) == pytest.approx(chain.mean_steps(), rel=1e-7)
    assert float((curve[99] / curve[100]).log()) == pytest.approx(chain.rate, rel=1e-9)
    assert torch.allclose(chain.survival(5, 20), curve[:101:5], rtol=1e-10)


def test_the_law_is_quasi_stationary_and_that_of_the_autoregression_where_nobody_leaves() -> None:
    """x <- (1 - lr h) x + sqrt(2 lr T) xi has variance 2 lr T / (1 - (1 - lr h)^2), larger than T / h."""
    h, T, lr = 2.0, 0.1, 0.5
    chain = StepChain(Diffusion(lambda x: h * x, lambda x: 0 * x + T), lr, Domain(high=1.9), 0.0)
    x, mass = chain.law
    assert float(mass.sum()) == pytest.approx(1)
    assert float((mass * x * x).sum()) == pytest.approx(2 * lr * T / (1 - (1 - lr * h) ** 2), rel=1e-6)
    assert 0 < chain.rate < 1e-8


def test_a_side_without_exit_is_widened_as_far_as_large_steps_go() -> None:
    found = StepChain(WIDE, 0.99, Domain(high=4.0), 0.0).mean_steps()
    assert found == pytest.approx(naive(WIDE, 0.99, -15.0, 4.0, 0.0), rel=2e-3)


def test_small_steps_tend_to_the_differential_equation_as_lr_to_a_well_and_as_its_root_to_a_top() -> None:
    limits = {end: math.exp(log_mean_time(QUARTIC, -1.0, Domain(high=end))) for end in (0.0, 1.0)}
    off = {
        end: [StepChain(QUARTIC, lr, Domain(high=end), -1.0).mean_steps() * lr / limit - 1 for lr in (0.04, 0.01)]
        for end, limit in limits.items()
    }
    assert off[0.0][0] / off[0.0][1] == pytest.approx(2, rel=0.15)
    assert abs(off[1.0][1]) < 0.002 < 0.05 < off[0.0][1] < 0.07
    rate = StepChain(QUARTIC, 0.002, Domain(high=1.0), -1.0).rate / 0.002
    assert rate == pytest.approx(escape_rate(QUARTIC, Domain(high=1.0), start=-1.0), rel=5e-3)


def test_rates_that_one_cannot_wait_for_keep_their_digits() -> None:
    """1 - rho of 1e-10 is no difference of two numbers near 1: the mean time says the same."""
    chain = StepChain(on(DoubleWell(()), 0.012), 0.05, Domain(high=1.0), -1.0)
    assert 1e8 < chain.mean_steps() < 1e12
    assert chain.rate * chain.mean_steps() == pytest.approx(1, abs=1e-5)


def test_more_points_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = StepChain(QUARTIC, 0.05, Domain(high=1.0), -1.0).mean_steps()
    monkeypatch.setattr("lab.gallery.laws.nystrom.WIDTH", 1.25)
    assert StepChain(QUARTIC, 0.05, Domain(high=1.0), -1.0).mean_steps() == pytest.approx(before, rel=1e-7)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        (lambda: StepChain(QUARTIC, 0.0, Domain(high=1.0), -1.0), "lr=0.0"),
        (lambda: StepChain(QUARTIC, 0.1, Domain(high=1.0), 2.0), "not inside"),
        (lambda: StepChain(QUARTIC, 1e-7, Domain(high=1.0), -1.0), "use a larger lr"),
        (lambda: StepChain(on(DoubleWell(()), 0.005), 0.05, Domain(high=1.0), -1.0), "beyond 1e"),
        (lambda: StepChain(WIDE, 0.9999, Domain(high=60.0), 0.0), "runs away"),
    ],
)
def test_what_cannot_be_computed_is_said_in_one_line(chain: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chain().rate  # type: ignore[operator]  # noqa: B018

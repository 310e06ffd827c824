"""SGD with label noise on a scalar factorisation: its drift, its growth at the crossing, and where it gathers walkers."""

import math

import mpmath
import numpy as np
import pytest
import torch

from lab.flows.langevin import reflecting
from lab.gallery.laws.label_noise import FactorSGD, crossing_growth, drift_share, drift_time, flow_share, valley_drift
from lab.landscapes.factorisation import Factorisation
from lab.streams import stream

DOUBLE = torch.float64


def test_a_step_without_noise_is_gradient_descent() -> None:
    x = torch.randn(300, 2, dtype=DOUBLE, generator=stream(0, "start"))
    moved = x.clone()
    FactorSGD(0.1).run(moved, 1, stream(0, "none"))
    torch.testing.assert_close(moved, x - 0.1 * Factorisation(target=0.0).gradient(x), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("noise", "batch_size"), [("label", 1), ("minibatch", 3)])
def test_a_step_is_that_of_the_numbers_drawn(noise: str, batch_size: int) -> None:
    x, lr, std = torch.randn(50, 2, dtype=DOUBLE, generator=stream(0, "start")), 0.1, 0.7
    drawn = torch.empty(batch_size, 50, dtype=DOUBLE).normal_(generator=stream(0, "noise"))
    a, b = x.unbind(1)
    error = std * drawn[0] - a * b if noise == "label" else -(drawn.square().mean(0) * a * b)
    truth = torch.stack([a + lr * error * b, b + lr * error * a], dim=1)
    moved = x.clone()
    FactorSGD(lr, std, noise, batch_size).run(moved, 1, stream(0, "noise"))  # type: ignore[arg-type]
    torch.testing.assert_close(moved, truth, rtol=1e-13, atol=1e-15)


def test_mini_batch_noise_does_nothing_on_a_valley() -> None:
    x = torch.tensor([[1.5, 0.0], [0.0, -0.7]])
    moved = x.clone()
    FactorSGD(0.1, noise="minibatch").run(moved, 50, stream(0, "still"))
    assert torch.equal(moved, x)


def test_the_drift_solves_its_equation() -> None:
    lr, std, a, dt = 0.1, 0.5, 2.0, 0.01
    for _ in range(int(100 / dt)):  # explicit midpoint steps, error of second order
        middle = a - dt / 2 * (lr * std) ** 2 * a / (2 - lr * a * a)
        a -= dt * (lr * std) ** 2 * middle / (2 - lr * middle**2)
    assert valley_drift(2.0, lr, std, np.array([100.0])) == pytest.approx(a, rel=1e-8)
    assert drift_time(2.0, float(a), lr, std) == pytest.approx(100, rel=1e-7)
    # THEORY: a(100, 200, 400, 800) of another implementation.
    expected = [1.7194, 1.4895, 1.1338, 0.6736]
    assert valley_drift(2.0, lr, std, np.array([100, 200, 400, 800])) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="unstable"):
        valley_drift(4.5, lr, std, np.array([1.0]))


def test_label_noise_drifts_down_the_valley() -> None:
    # 2 %: terms of higher order in lr s^2/a^2 (0.9 % at a = .67), where the standard error is 0.1 %.
    x, sgd, generator, at = torch.tensor([[2.0, 0.0]]).repeat(4000, 1), FactorSGD(0.1, 0.5), stream(0, "drift"), 0
    for steps in (100, 200, 400, 800):
        sgd.run(x, steps - at, generator)
        at = steps
        assert float(x[:, 0].mean()) == pytest.approx(
            float(valley_drift(2.0, 0.1, 0.5, np.array([steps]))[0]), rel=0.02
        )


@pytest.mark.parametrize("scale", [0.019, 0.021, 0.25, 0.5, 1.0, 1.55, 3.0])
def test_growth_at_the_crossing_is_the_mean_of_the_logarithm(scale: float) -> None:
    # E log|m + z| = -(gamma + log 2)/2 + m^2/2 2F2(1, 1; 3/2, 2; -m^2/2): a hypergeometric form, by arbitrary precision.
    m = 1 / mpmath.mpf(scale)
    series = m**2 / 2 * mpmath.hyp2f2(1, 1, 1.5, 2, -(m**2) / 2)
    truth = mpmath.log(scale) - (mpmath.euler + mpmath.log(2)) / 2 + series
    assert crossing_growth(0.1, scale / 0.1) == pytest.approx(float(truth), abs=2e-12)


def test_label_noise_grows_at_the_crossing_as_it_says() -> None:
    # log|a + b| adds up independent steps: 4 standard errors over walkers.
    x = torch.full((3000, 2), 1e-100, dtype=DOUBLE)
    FactorSGD(0.5, 0.5).run(x, 200, stream(0, "growth"))
    growth = ((x.sum(1).abs() / 2e-100).log()) / 200
    assert float(growth.mean()) == pytest.approx(
        crossing_growth(0.5, 0.5), abs=4 * float(growth.std()) / math.sqrt(3000)
    )
    assert float(growth.mean()) == pytest.approx(-0.0352, rel=0.03)


def test_gradient_flow_gathers_those_whose_difference_of_squares_is_small() -> None:
    x = torch.rand(200_000, 2, dtype=DOUBLE, generator=stream(0, "flow")) * 2
    share = float(((x[:, 0] ** 2 - x[:, 1] ** 2).abs() < 0.3**2).double().mean())
    assert flow_share(2.0, 0.3) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 200_000))
    assert flow_share(2.0, 2.0) == pytest.approx(1.0)
    assert drift_share(2.0, 0.2, 0.1, 0.5, np.array([0.0, 1e6])) == pytest.approx([flow_share(2.0, 0.2), 1.0])


def test_label_noise_gathers_walkers_at_the_crossing_and_mini_batches_do_not() -> None:
    walls, walkers = reflecting(-2, 2), 1500
    shares = {}
    for noise in ("label", "minibatch"):
        x = torch.empty(walkers, 2).uniform_(-2, 2, generator=stream(0, "places"))
        sgd = FactorSGD(0.1, 0.5, noise, boundary=walls)  # type: ignore[arg-type]
        sgd.run(x, 1000, stream(0, noise))
        early = float((x.abs() < 0.2).all(1).double().mean())
        sgd.run(x, 1500, stream(1, noise))
        shares[noise] = early, float((x.abs() < 0.2).all(1).double().mean())
    # THEORY: .247 at step 1000 and .9625 at 2000, 4000 walkers; 4 standard errors here are .045.
    assert shares["label"][0] == pytest.approx(0.247, abs=0.05)
    assert shares["label"][1] > 0.97
    assert shares["minibatch"][0] == shares["minibatch"][1] < 0.08


def test_settings_that_cannot_be_are_refused() -> None:
    for settings in ({"lr": 0.0}, {"lr": 0.1, "std": -1.0}, {"lr": 0.1, "batch_size": 0}):
        with pytest.raises(ValueError, match="lr > 0"):
            FactorSGD(**settings)  # type: ignore[arg-type]

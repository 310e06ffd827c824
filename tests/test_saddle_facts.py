"""Saddles, stationary covariances and the stability radius, by the simulations a user runs, held to known numbers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lab.gallery.base import Outcome, Surroundings, Verdict
from lab.run.cards import config_dir
from lab.simulate.settings import read_settings


def simulate(name: str, seed: int = 0, **settings: Any) -> Outcome:
    plain = yaml.safe_load((Path(config_dir()) / "simulation" / f"{name}.yaml").read_text())
    experiment, _ = read_settings(plain | settings)
    around = Surroundings(seed, torch.device("cpu"), lambda part: lambda share: None)
    return experiment.simulate(around)


def rows(outcome: Outcome) -> dict[str, Verdict]:
    return {c.quantity: c for c in outcome.comparisons}


SADDLES = [(0.1, 0.5, 1e-3, 178.95, 22.77), (0.05, 1.0, 1e-2, 145.96, 22.77), (0.2, 1.0, 1e-4, 61.077, 6.09)]


@pytest.mark.parametrize(("lr", "curvature", "noise", "mean", "spread"), SADDLES)
def test_walkers_leave_a_saddle_after_the_time_of_the_law(
    lr: float, curvature: float, noise: float, mean: float, spread: float
) -> None:
    found = rows(simulate("saddle_escape", lr=lr, curvature=curvature, noise=[noise], directions=[1], walkers=1000))
    c = found[f"steps to leave, noise {noise:g}"]
    assert c.theory == pytest.approx(mean, rel=1e-3)
    assert abs(c.measured - c.theory) < 4 * c.error  # 0.4 % of the mean
    wide = found[f"their spread, noise {noise:g}"]
    assert wide.theory == pytest.approx(spread, rel=3e-3)  # given without the 1/12 of whole steps
    assert abs(wide.measured - wide.theory) < 4 * wide.error
    assert found["furthest without noise downwards"].measured == 0
    assert found["growth a step, deep linear"].measured == pytest.approx(math.log(1 + lr * curvature), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "curvature", "noise", "mean", "spread"), SADDLES)
def test_twenty_thousand_walkers_leave_a_saddle_within_one_percent(
    lr: float, curvature: float, noise: float, mean: float, spread: float
) -> None:
    sizes = [noise, noise / 10, noise / 100]
    found = rows(simulate("saddle_escape", lr=lr, curvature=curvature, noise=sizes, directions=[1], walkers=20_000))
    assert found[f"steps to leave, noise {noise:g}"].measured == pytest.approx(mean, rel=0.01)
    assert found[f"their spread, noise {noise:g}"].measured == pytest.approx(spread, rel=0.03)
    slope = found["slope against log(1/noise)"]
    assert slope.measured == pytest.approx(1 / math.log(1 + lr * curvature), rel=0.01)


@pytest.mark.slow
def test_many_descending_directions_leave_when_digamma_says() -> None:
    found = rows(simulate("saddle_escape", noise=[1e-3], directions=[1, 10, 100], walkers=20_000))
    for k, expected in ((1, 193.16), (10, 157.60), (100, 133.05)):
        c = found[f"steps to leave, {k} descending"]
        assert c.theory == pytest.approx(expected, abs=0.005)
        assert c.measured == pytest.approx(expected, rel=0.01)
    c = found["steps to leave, factorisation"]
    assert c.theory == pytest.approx(178.95, abs=0.01)  # half way to its minimum: r = .5
    assert c.measured == pytest.approx(180.19, abs=4 * (c.error + 0.25))  # as measured by another program


@pytest.mark.slow
def test_a_deep_linear_network_grows_out_of_its_saddle_by_log_of_one_plus_two_lr() -> None:
    found = rows(simulate("saddle_escape", lr=0.01, curvature=2.0, noise=[1e-3], directions=[1], walkers=200))
    assert found["growth a step, deep linear"].measured == pytest.approx(0.01980263, rel=1e-5)


@pytest.mark.slow
def test_heavy_ball_leaves_by_its_larger_root() -> None:
    # curvature, u'Du and batch of a saddle of a real network: 112.80 +- 1.74 steps were measured there
    noise = math.sqrt(0.11203 / 64)
    settings: dict[str, Any] = {
        "momentum": 0.9,
        "lr": 0.02,
        "curvature": 0.18244,
        "noise": [noise],
        "radius": 0.3,
        "directions": [1],
    }
    c = rows(simulate("saddle_escape", walkers=20_000, **settings))[f"steps to leave, noise {noise:g}"]
    assert c.theory == pytest.approx(112.3, abs=0.05)
    assert c.measured == pytest.approx(c.theory, rel=0.01)


def test_sgd_settles_at_the_discrete_covariance_and_not_at_the_continuous_one() -> None:
    outcome = simulate("ornstein_uhlenbeck", walkers=1000, valley=[10.0, 1.0], momentum=0.5, decay=0.5)
    assert not outcome.disagreement()
    assert outcome.values["continuous_error"] > 0.1 > 4 * outcome.values["measured_error"]
    assert outcome.values["additive_error"] > 0.1 > 4 * outcome.values["mini_batch_error"]


@pytest.mark.slow
def test_stationary_covariances_climbs_and_bounds_in_full() -> None:
    outcome = simulate("ornstein_uhlenbeck", looks=40)
    found = rows(outcome)
    assert not outcome.disagreement()
    assert outcome.values["measured_error"] < 0.01 < 0.1 < outcome.values["continuous_error"]
    assert outcome.values["mini_batch_error"] < 0.01
    assert outcome.values["additive_error"] == pytest.approx(0.20, abs=0.05)
    climbs = {kind: found[f"E L(0.2), {kind} noise"] for kind in ("isotropic", "aligned")}
    assert climbs["isotropic"].theory == pytest.approx(0.9406, abs=1e-4)
    assert climbs["aligned"].theory == pytest.approx(2.538, abs=1e-3)
    for c in climbs.values():
        assert c.measured == pytest.approx(c.theory, abs=4 * c.error + 0.005 * c.theory)  # Euler's step: .5 %
    larger, multiples = outcome.arrays["larger"], outcome.arrays["multiples"]
    assert bool((larger <= outcome.arrays["markov"]).all())
    assert bool((larger >= outcome.arrays["paley_zygmund"])[multiples < 1].all())


def test_the_radius_of_noise_that_follows_the_curvature_does_not_shrink_with_it() -> None:
    outcome = simulate("stability_radius", noise=1.0, curvatures=[1, 4, 16], walkers=200, longest=1.0)
    found = rows(outcome)
    for kind, expected in (("noise ~ h", (0.243, 0.270, 0.292)), ("noise the same", (0.244, 0.134, 0.073))):
        for h, value in zip((1, 4, 16), expected, strict=True):
            c = found[f"radius, h = {h}, {kind}"]
            assert c.theory == pytest.approx(value, rel=0.015)  # as another program measured it
            assert abs(c.z) < 4


def test_a_radius_with_too_few_walkers_on_one_side_has_no_standard_error_and_is_refused() -> None:
    with pytest.raises(ValueError, match=r"walkers=200: a share of 0.01 puts fewer than 20 .* expected 2000 or more"):
        simulate("stability_radius", share=0.01, walkers=200)


def test_a_learning_rate_so_near_the_edge_that_nothing_settles_is_refused() -> None:
    with pytest.raises(ValueError, match=r"settles in 5000000 steps.* with a smaller lr"):
        simulate("ornstein_uhlenbeck", lr=0.9999999)


@pytest.mark.slow
def test_exit_times_are_inverse_to_the_curvature_only_under_noise_that_follows_it() -> None:
    outcome = simulate("stability_radius", curvatures=[1, 2, 4, 8], longest=310.0)
    assert not outcome.disagreement()
    mean, measured = outcome.arrays["mean"], outcome.arrays["measured"]
    for kind, expected in ((0, (10.02, 5.29, 2.83, 1.51)), (1, (9.96, 61.1))):
        for i, value in enumerate(
            expected
        ):  # 2000 walkers of another program, seen at every step: 2.3 % a standard error
            assert measured[kind, i] == pytest.approx(mean[kind, i], rel=0.09)
            assert mean[kind, i] == pytest.approx(value, rel=0.09)
    share = rows(outcome)["share gone by 310, h = 4, noise the same"]
    assert share.theory < 0.118, "1765 of 2000 were still there"
    scaled = mean[0] * outcome.arrays["h"]
    assert float(scaled.max() / scaled.min()) < 1.25, "inverse to h, to the step of the chain"

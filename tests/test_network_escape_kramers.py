"""Kramers' law, and the law of SGD, in a real network: measured independently before (24 parameters, digits), by the code a
user calls. Sizes are scaled; the full ones are slow.
"""

import warnings
from functools import cache

import pytest
import torch

from lab.escape.survival import against, per_time, rate, same_rate, slope
from lab.gallery.base import Outcome, Surroundings
from lab.gallery.experiments.escape_kramers import EscapeKramers
from lab.gallery.experiments.escape_kramers_sgd import EscapeKramersSgd
from lab.gallery.experiments.stage import actions, set_stage
from lab.points.string import find_pass
from lab.results import Rate
from lab.streams import stream


@cache
def outcome(experiment: EscapeKramers | EscapeKramersSgd, seed: int = 0) -> Outcome:
    return experiment.simulate(Surroundings(seed, torch.device("cpu"), lambda part: lambda share: None))


def sgd_rate(batch_size: int, lr: float, *, exits: int, replicas: int = 128, **noise: object) -> Rate:
    stage = set_stage("K2")
    stays = stage.run(
        lr,
        stream(5, f"test {batch_size} {lr}"),
        replicas=replicas,
        exits=exits,
        steps=200_000,
        batch_size=batch_size,
        **noise,  # type: ignore[arg-type]
    )
    return per_time(rate(stays.times), lr)


def test_the_stage_has_the_known_barrier_curvature_and_prefactor() -> None:
    this = set_stage("K2").langer
    assert this.barrier == pytest.approx(0.0013391, abs=2e-6)
    assert float(this.saddle.eigenvalues[0]) == pytest.approx(-0.07827, abs=2e-5)
    assert this.prefactor == pytest.approx(0.01130, abs=1e-5)
    assert this.back == pytest.approx(0.0204, abs=1e-4)
    assert [round(point.value, 4) for point in set_stage("K2").minima] == [0.4245, 0.4055]
    assert float(this.well.eigenvalues[0]) == pytest.approx(0.0289, abs=1e-4)
    assert float(this.well.eigenvalues[-1]) == pytest.approx(2.40, abs=0.01)
    assert this.saddle.grad_norm < 1e-14 and this.saddle.index == 1
    assert this.refusals(this.barrier / 4) == []


def test_the_least_action_in_the_noise_of_sgd_and_twice_the_barrier_without() -> None:
    """An independent implementation found 0.0557 (25 points, Adam) and, with D = 1, 0.002692 for 0.002678."""
    theory, this = actions("K2"), set_stage("K2").langer
    assert theory.sgd.value == pytest.approx(0.0557, rel=0.03)
    assert theory.unit.value == pytest.approx(2 * this.barrier, rel=0.006)
    assert theory.chord == pytest.approx(0.072, abs=5e-4)
    assert theory.isotropic == pytest.approx(0.0153, abs=1e-4)
    assert theory.sgd.start > 3 * theory.sgd.value, "the path had to be found"


def test_between_wrong_symmetric_images_there_is_no_saddle_to_be_had() -> None:
    stage = set_stage("K2")
    well, beyond = stage.minima
    wrong = beyond.w.clone()
    places = stage.symmetry.places
    wrong[places[0]], wrong[places[1]] = -beyond.w[places[1]], beyond.w[places[0]]
    assert float(stage.objective.value(wrong)) == pytest.approx(beyond.value, abs=1e-12)
    found = find_pass(stage.objective, well.w, wrong, steps=400)
    assert found.saddle is None or found.saddle.value - well.value > 5 * stage.langer.barrier
    assert float(found.values.max()) - well.value > 5 * stage.langer.barrier


def test_noise_of_a_temperature_leaves_at_langers_rate_and_sgd_more_slowly_with_more_examples() -> None:
    small = outcome(EscapeKramers(barriers=(3.0,), exits=20, steps=3000))
    # 20 exits: 22 %, of 0.85. More than three standard errors on either side.
    assert 0.25 < small.comparisons[0].measured < 1.6
    assert small.values["ends_elsewhere"] == 0 and "REFUSED" not in small.finding
    few, many = sgd_rate(12, 0.4, exits=25), sgd_rate(20, 0.4, exits=25)
    found = slope([30, 50], [few, many])
    assert found.low - 2 * found.error < actions("K2").sgd.value < found.high + 2 * found.error


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"barriers": ()}, "barriers"),
        ({"barriers": (3.0, 3.0)}, "barriers"),
        ({"lr": 0.9}, "lr=0.9: gradient descent is stable in this well below"),
        ({"lr": 1e-5}, "steps=20000 of lr=1e-05 are a time of 0.2, and replicas are looked at every 4"),
    ],
)
def test_slips_of_kramers(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        outcome(EscapeKramers(**knobs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"batch_sizes": (12,)}, "batch_sizes"),
        ({"other_lrs": (0.4,)}, "other_lrs: expected learning rates different"),
        (
            {"other_lrs": (0.15,)},
            "other_lrs: at lr 0.15 the batch of equal B / lr would be 7.5; expected a whole number",
        ),
    ],
)
def test_slips_of_kramers_sgd(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EscapeKramersSgd(**knobs)  # type: ignore[arg-type]


def test_a_run_too_short_for_any_exit_tells_no_rate() -> None:
    found = outcome(EscapeKramers(barriers=(12.0,), replicas=4, steps=100))
    assert "below " in found.finding and "nan" not in found.finding.lower()
    assert not any(key.startswith("rate_at") for key in found.values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EscapeKramers.figure(found.arrays, "t").axes
    sgd = outcome(EscapeKramersSgd(batch_sizes=(80, 90), other_lrs=(), noises=False, replicas=4, steps=100))
    assert "Too few rates for a slope" in sgd.finding and "nan" not in sgd.finding.lower()
    assert EscapeKramersSgd.figure(sgd.arrays, "t").axes


# --- full sizes ----------


@pytest.mark.slow
def test_the_shipped_kramers_is_within_its_band() -> None:
    found = outcome(EscapeKramers())
    ratios = [c.measured for c in found.comparisons if "Langer" in c.quantity]
    print(found.finding)
    assert len(ratios) == 2 and all(0.55 < ratio < 1.2 for ratio in ratios)
    [pooled] = [c.measured for c in found.comparisons if c.quantity == "all together"]
    assert 0.65 < pooled < 1.1
    assert "finds the losses 0.4055, 0.4245." in found.finding and "REFUSED" not in found.finding


@pytest.mark.slow
def test_the_shipped_sgd_is_within_its_band_and_excludes_the_isotropic_slope() -> None:
    found = outcome(EscapeKramersSgd())
    print(found.finding)
    assert 0.036 < found.values["slope"] < 0.060
    assert found.values["slope_low"] > found.values["slope_isotropic"]
    assert 6.5e-4 < found.values["rate_B_20"] < 1.1e-3
    same = [found.values[key] for key in ("rate_B_20", "rate_lr_0.2", "rate_lr_0.1")]
    assert max(same) / min(same) < 1.35
    assert "EXCLUDED" in found.finding and "isotropic, same trace noise: NO RATE" in found.finding


@pytest.mark.slow
def test_many_exits_give_the_slope_of_the_action_and_one_rate_for_all_learning_rates() -> None:
    rates = [sgd_rate(B, 0.4, exits=exits, replicas=512) for B, exits in ((12, 400), (20, 400), (30, 200))]
    found = slope([30, 50, 75], rates)
    print(found, rates)
    assert 0.044 < found.value < 0.060 and found.low > 0.0153
    again = [sgd_rate(10, 0.2, exits=400, replicas=512), sgd_rate(5, 0.1, exits=400, replicas=512)]
    assert max(r.value for r in (rates[1], *again)) / min(r.value for r in (rates[1], *again)) < 1.35
    print(same_rate([rates[1], *again]), again)


@pytest.mark.slow
def test_a_third_minimum_is_found_by_the_converged_quench_and_the_formula_refused() -> None:
    found = outcome(EscapeKramers(case="K1"))
    print(found.finding)
    assert "Langer's formula is REFUSED" in found.finding and "in a third minimum" in found.finding
    assert "0.3742" in found.finding and not any("Langer" in c.quantity for c in found.comparisons)
    this = set_stage("K1").langer
    wrong = against(
        [Rate(found.values["rate_at_3"], 0, 0, 60, 60 / found.values["rate_at_3"])], [this.rate(this.barrier / 3)]
    )
    assert wrong.value < 0.45, "the formula would have been wrong by a factor"


@pytest.mark.slow
def test_where_the_noise_is_not_small_a_frozen_covariance_is_not_sgd() -> None:
    """At B/lr = 60: 2.30e-4 [1.99, 2.65] (SGD), 2.34e-4 [1.79, 3.00] (D(w)), 3.12e-3 (frozen), 4.0e-3 (isotropic)."""
    card = EscapeKramersSgd(case="C1", lr=0.2, batch_sizes=(8, 12), other_lrs=(), exits=30, steps=60_000)
    found = outcome(card)
    print(found.finding)
    assert 1.4e-4 < found.values["rate_B_12"] < 3.8e-4
    assert 0.5 < found.values["rate_Gaussian,_D(w)"] / found.values["rate_B_12"] < 2  # 30 exits each: 26 %
    assert found.values["rate_Gaussian,_D_frozen"] > 6 * found.values["rate_B_12"]
    assert "D frozen noise: NO RATE" in found.finding and "isotropic, same trace noise: NO RATE" in found.finding

"""Rates from censored times: coverage of the interval, the laws behind it, and that a missing rate is no number."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

from lab.escape.survival import (
    after,
    against,
    exponentiality,
    kaplan_meier,
    of_counts,
    per_epoch,
    per_time,
    pooled,
    rate,
    same_rate,
    slope,
    words,
)
from lab.results import EscapeTimes, Rate
from lab.streams import stream


def watched(t: torch.Tensor, budget: float, *, inspection: float = 0.0) -> EscapeTimes:
    """Replicas that leave at t, watched up to the budget, at every `inspection`."""
    left = t <= budget
    if inspection:
        t = (t / inspection).ceil() * inspection
    return EscapeTimes(t.clamp(max=budget), left, torch.zeros_like(left), inspection)


def exponentials(replicas: int, step: int, name: str = "survival") -> torch.Tensor:
    return -torch.rand(replicas, generator=stream(0, name, step), dtype=torch.float64).log()


@pytest.mark.parametrize("inspection", [0.0, 0.1])
def test_the_interval_covers_the_truth_as_often_as_it_says_with_a_third_censored(inspection: float) -> None:
    found = [rate(watched(exponentials(60, i), 1.0, inspection=inspection)) for i in range(1000)]
    assert 0.93 <= sum(r.low <= 1 <= r.high for r in found) / 1000 <= 0.97
    # E[k/T] = 1 + O(1/R): 1.3 standard errors of the mean of 1000; the mean of the times of those that left is 0.418.
    assert abs(sum(r.value for r in found) / 1000 - 1) < 0.03


def test_the_mean_of_those_that_left_is_wrong_by_the_factor_told_in_the_docstring() -> None:
    mean = quad(lambda t: t * math.exp(-t), 0, 1)[0] / (1 - math.exp(-1))
    assert mean == pytest.approx(0.418, abs=5e-4)


def test_a_coarse_inspection_does_not_move_the_rate() -> None:
    """The exact rate of a geometric law is -log(1 - p) / interval; the middle of the interval gives it to (k D)^2 / 12."""
    t, step = exponentials(200_000, 0), 0.5
    times = watched(t, 3.0, inspection=step)
    k, inspections = int(times.exited.sum()), float(times.times.sum()) / step
    exact = -math.log(1 - k / inspections) / step
    assert rate(times).value == pytest.approx(exact, rel=step**2 / 12)
    assert rate(times).value == pytest.approx(1, abs=4 / k**0.5 + step**2 / 12)


def test_no_exit_is_a_bound_and_not_a_number() -> None:
    nobody = watched(torch.full((50,), 9.0), 4.0)
    found = rate(nobody)
    assert math.isnan(found.value) and found.low == 0 and found.exits == 0
    assert found.high == pytest.approx(3.0 / 200, rel=2e-3)
    assert found.high == pytest.approx(-math.log(0.05) / 200)
    assert "below" in words(found) and "nan" not in words(found)


def test_failed_replicas_are_censored_for_the_exits() -> None:
    times = EscapeTimes(
        torch.tensor([2.0, 4.0, 10.0]), torch.tensor([True, False, False]), torch.tensor([False, True, False])
    )
    assert rate(times).value == pytest.approx(1 / 16)
    curve = kaplan_meier(times)
    assert curve.times.tolist() == [2.0] and curve.survival.tolist() == pytest.approx([2 / 3])


def test_units() -> None:
    step = of_counts(10, 1000.0)
    time, epoch = per_time(step, 0.1), per_epoch(step, 50)
    assert time.value == pytest.approx(0.1) and time.exposure == pytest.approx(100) and time.unit == "lr * step"
    assert epoch.value == pytest.approx(0.5) and epoch.exposure == pytest.approx(20)
    for r in (time, epoch):
        assert r.value == pytest.approx(r.exits / r.exposure)
        assert r.low / r.value == pytest.approx(step.low / step.value)


def test_kaplan_meier_is_the_empirical_law_without_censoring_and_greenwood_its_binomial_error() -> None:
    t = exponentials(300, 3)
    curve = kaplan_meier(watched(t, math.inf))
    share = torch.tensor([(t > at).double().mean() for at in curve.times])
    assert torch.allclose(curve.survival, share)
    assert torch.allclose(curve.error[:-1], (share * (1 - share) / 300).sqrt()[:-1])
    assert math.isnan(curve.error[-1])


def test_kaplan_meier_by_hand_with_ties_and_censoring() -> None:
    t = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 4.0])
    left = torch.tensor([True, False, True, True, False, True])
    curve = kaplan_meier(EscapeTimes(t, left, torch.zeros(6, dtype=torch.bool)))
    assert curve.at_risk.tolist() == [6, 4, 1]
    assert curve.survival.tolist() == pytest.approx([5 / 6, 5 / 6 / 2, 0])
    assert curve.log_error[1].item() == pytest.approx((1 / 30 + 2 / 8) ** 0.5)


@pytest.mark.parametrize(("budget", "inspection"), [(math.inf, 0.0), (0.5, 0.0), (1.0, 0.02)])
def test_the_p_value_of_exponential_times_is_uniform_also_under_censoring(budget: float, inspection: float) -> None:
    found = [exponentiality(watched(exponentials(80, i), budget, inspection=inspection)) for i in range(250)]
    assert kstest([x.p for x in found], "uniform").pvalue > 1e-4
    z = torch.tensor([x.early for x in found])
    # Inspections leave less room for chance, never more.
    assert abs(z.mean()) < 4 / 250**0.5 and 0.85 < z.std() < 1.15
    assert abs(sum(x.cv for x in found) / 250 - 1) < 0.03


def test_a_delay_and_two_states_are_not_exponential() -> None:
    t = exponentials(400, 0)
    late = exponentiality(watched(0.5 + t, 2.0))
    assert late.p < 1e-6 and late.early < -4 and late.cv < 0.9
    two = exponentiality(watched(torch.cat([t, 10 * exponentials(400, 1)]), 5.0))
    assert two.p < 1e-6 and two.early > 4 and two.cv > 1.05


def test_few_exits_are_no_test() -> None:
    assert math.isnan(exponentiality(watched(torch.tensor([1.0, 2.0, 9.0]), 3.0)).p)


def test_a_delay_that_is_known_is_cut_off() -> None:
    covered = []
    for i in range(400):
        times = watched(2 + exponentials(40, i), 3.5)
        found = rate(after(times, 2.0))
        assert found.value > rate(times).value
        covered.append(found.low <= 1 <= found.high)
    assert sum(covered) / 400 > 0.92  # 95 +- 1.1 %


def test_after_drops_the_early_ones_and_shifts_the_clock() -> None:
    times = watched(torch.tensor([1.0, 3.0, 5.0, 9.0]), 6.0)
    cut = after(times, 2.0)
    assert cut.times.tolist() == [1.0, 3.0, 4.0] and cut.exited.tolist() == [True, True, False] and cut.burn_in == 2
    with pytest.raises(ValueError, match="nobody is left"):
        after(times, 6.0)


def test_pooled_rates_add_up_and_different_ones_are_told() -> None:
    a, b, c = of_counts(100, 1000.0), of_counts(110, 1000.0), of_counts(200, 1000.0)
    assert pooled([a, b]).value == pytest.approx(0.105)
    assert same_rate([a, b]) > 0.3 and same_rate([a, c]) < 1e-6 and same_rate([a, b, c]) < 1e-6
    ratio = against([a, c], [0.1, 0.2])
    assert ratio.value == pytest.approx(1) and ratio.low < 1 < ratio.high and ratio.exits == 300
    assert math.isnan(same_rate([of_counts(0, 1.0), of_counts(0, 1.0)]))


def test_equal_rates_are_told_apart_no_more_often_than_chance() -> None:
    p = []
    for i in range(300):
        rates = [rate(watched(exponentials(50, 3 * i + j, "same"), budget)) for j, budget in enumerate((0.5, 1.0, 2.0))]
        p.append(same_rate(rates))
    assert 0.01 < sum(x < 0.05 for x in p) / 300 < 0.1  # 5 +- 1.3 %


def test_the_slope_of_log_time_covers_its_truth() -> None:
    x, covered = [1.0, 2.0, 3.0, 4.0], 0
    for i in range(300):
        rates = [rate(watched(math.exp(0.5 * b) * exponentials(60, 4 * i + j, "slope"), 9.0)) for j, b in enumerate(x)]
        found = slope(x, rates)
        covered += found.low <= 0.5 <= found.high
    assert 0.91 <= covered / 300 <= 0.985  # 95 +- 1.3 %
    assert found.points == 4 and 0 < found.p < 1


def test_a_curved_line_and_missing_points_are_told() -> None:
    curved = [of_counts(400, 400 * math.exp(0.1 * b * b)) for b in range(6)]
    assert slope(range(6), curved).p < 1e-6
    silent = [*curved[:3], of_counts(0, 10.0)]
    assert slope(range(4), silent).points == 3
    with pytest.raises(ValueError, match="at least two"):
        slope([1, 2], [curved[0], of_counts(0, 10.0)])


def test_the_slope_is_that_of_the_weighted_normal_equations() -> None:
    rates = [of_counts(k, k / r) for k, r in ((30, 0.1), (200, 0.03), (12, 0.02))]
    X = torch.tensor([[1.0, 1], [1, 2], [1, 5]], dtype=torch.float64)
    W, y = torch.diag(torch.tensor([30.0, 200, 12])).double(), -torch.tensor([0.1, 0.03, 0.02]).double().log()
    covariance = torch.linalg.inv(X.T @ W @ X)
    solution = covariance @ X.T @ W @ y
    found = slope([1, 2, 5], rates)
    assert found.value == pytest.approx(float(solution[1])) and found.intercept == pytest.approx(float(solution[0]))
    assert found.error == pytest.approx(float(covariance[1, 1]) ** 0.5)


def test_intervals_narrow_with_exits() -> None:
    widths = [(r.high - r.low) / r.value for r in (of_counts(k, float(k)) for k in (1, 5, 20, 100, 1000))]
    assert all(a > b for a, b in pairwise(widths))


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (EscapeTimes(torch.tensor([math.nan]), torch.tensor([True]), torch.tensor([False])), "numbers of steps"),
        (EscapeTimes(torch.tensor([1.0]), torch.tensor([True]), torch.tensor([True])), "both exited and failed"),
        (EscapeTimes(torch.ones(2), torch.tensor([True]), torch.tensor([False])), r"expected \(R,\)"),
        (EscapeTimes(torch.zeros(1), torch.tensor([False]), torch.tensor([False])), "exposure"),
    ],
)
def test_times_that_cannot_be_are_refused(times: EscapeTimes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rate(times)


def test_rates_of_different_units_are_not_mixed() -> None:
    a: Rate = of_counts(3, 10.0)
    with pytest.raises(ValueError, match="same unit"):
        pooled([a, per_time(a, 0.1)])

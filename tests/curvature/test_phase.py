"""The phase classifier on constructed series, where the right answer is known by construction."""

import math

import pytest
from curvature.series import RUNS, Series, falling, follow, oscillating, ramp

from lab.curvature.edge import FAR, QUIET, Phase
from lab.curvature.phase import FEWEST, PhaseTracker, rhythm


def test_a_constant_ratio_with_a_falling_loss_is_below_the_edge() -> None:
    tracker = follow(lambda _: 0.5, falling, steps=200)
    assert tracker.changes == [(0, Phase.BELOW)]
    assert tracker.summary()["crossing_step"] is None
    assert tracker.summary()["overshoot"] is None


def test_a_growing_ratio_is_progressive_sharpening_up_to_one_and_above_while_the_loss_falls() -> None:
    tracker = follow(ramp, falling, steps=300)
    assert tracker.changes == [(0, Phase.BELOW), (5, Phase.SHARPENING)]
    assert tracker.entry_step is None


def test_an_oscillating_loss_far_below_one_is_not_the_edge() -> None:
    assert follow(lambda _: 0.5, oscillating, steps=200).entry_step is None


def test_the_edge_is_entered_when_both_signs_are_there() -> None:
    # The loss rises at 121, 123, 125: more than 10 % of the last 20 steps at the third rise, known before update 126.
    tracker = follow(ramp, lambda step: oscillating(step) if step > 120 else falling(step), steps=300)
    assert tracker.entry_step == 126
    assert tracker.changes[-1] == (126, Phase.EDGE)  # its own step, known at the measurement of step 130


def test_the_history_shows_an_edge_that_was_entered_and_left_between_two_measurements() -> None:
    # Interpolated, 1.3 -> 0.3 from step 50 to 100; the rises at 51, 53, 55 are known before update 56, at ratio 1.18, and
    # all but two of them are out of the window of update 75, at ratio 0.8 or below.
    tracker = follow(
        lambda step: (0.5, 1.3, 0.3)[min(step // 50, 2)],
        lambda step: oscillating(step) if 50 < step <= 55 else falling(step),
        steps=101,
        every=50,
    )
    assert tracker.entry_step == 56
    assert [change for change in tracker.changes if change[0] > 50] == [(56, Phase.EDGE), (100, Phase.BELOW)]


def test_the_edge_is_found_when_the_oscillation_takes_the_ratio_down_before_a_tenth_of_the_steps_has_risen() -> None:
    # At or above 1 at the steps 100 to 110 only; the loss rises at 109, 111, 113.
    tracker = follow(*RUNS["both signs apart"], steps=300)
    assert tracker.entry_step == 114


def test_two_rises_in_twenty_steps_are_not_more_than_ten_per_cent() -> None:
    tracker = follow(lambda _: 1.1, lambda step: falling(step) * (1.1 if step % 10 == 0 else 1.0), steps=200)
    assert tracker.entry_step is None


def test_a_rise_among_the_first_few_steps_counts_as_one_of_twenty() -> None:
    def ratio(step: int) -> float:
        return 0.9 if step == 0 else 1.1

    once = follow(ratio, lambda step: 1.1 if step == 1 else falling(step), steps=15, every=1)
    assert once.entry_step is None
    thrice = follow(ratio, oscillating, steps=15, every=1)
    assert thrice.entry_step == 6  # the rises at 1, 3, 5


def test_a_pause_between_bursts_is_not_leaving() -> None:
    def bursts(step: int) -> float:
        return oscillating(step) if step % QUIET < 30 else falling(step)

    tracker = follow(lambda step: 1.05 if step % QUIET < 10 else 0.9, bursts, steps=5 * QUIET)
    assert [phase for _, phase in tracker.changes].count(Phase.EDGE) == 1
    assert tracker.phase == Phase.EDGE


def test_the_edge_is_left_when_no_sign_was_seen_for_long_and_can_be_entered_again() -> None:
    end, again = 200, 700
    tracker = follow(
        lambda step: 1.05 if step < end or step >= again else 0.95,
        lambda step: oscillating(step) if step < end or step >= again else falling(step),
        steps=900,
        every=1,
    )
    left = next(step for step, phase in tracker.changes if step > end and phase != Phase.EDGE)
    # The last rise, at 199, leaves "more than two of twenty" with the rises at 195 and 197, at step 215.
    assert left == 215 + QUIET
    assert tracker.phase == Phase.EDGE
    assert tracker.changes[-1][0] > again


def test_a_ratio_far_below_one_without_oscillation_leaves_the_edge_at_once() -> None:
    # As when a schedule lowers the learning rate: the threshold jumps up.
    tracker = follow(
        lambda step: 1.05 if step < 200 else FAR - 0.1,
        lambda step: oscillating(step) if step < 200 else falling(step),
        steps=300,
        every=1,
    )
    # Calm once only the rises at 197 and 199 are among the last twenty steps.
    assert next(step for step, phase in tracker.changes if step >= 200) == 216


def test_the_crossing_step_is_interpolated_between_measurements() -> None:
    # The ramp is linear and comes up to 1 at step 100 exactly; the measurements at 91 and 104 do not hit it.
    assert follow(ramp, falling, steps=300, every=13).summary()["crossing_step"] == 100


def test_a_run_that_starts_above_one_crosses_only_after_it_was_below() -> None:
    above = follow(lambda _: 1.2, falling, steps=100)
    assert above.summary()["crossing_step"] is None
    dipping = follow(lambda step: 1 + math.cos(2 * math.pi * step / 80) / 2, falling, steps=100, every=1)
    assert dipping.summary()["crossing_step"] == 60


def test_a_crossing_at_step_zero_has_an_overshoot() -> None:
    tracker = PhaseTracker()
    for step, ratio in ((0, 1 - 1e-9), (5, 2.0)):
        tracker.add_ratio(step, ratio)
    assert tracker.summary()["crossing_step"] == 0
    assert tracker.summary()["overshoot"] == 2.0


def test_level_and_overshoot_are_those_of_the_series() -> None:
    # 0, .1, ... 2.0 at the steps 0, 10, ... 200, then 1.5 to the end: crossing 100, peak 2, last half all 1.5.
    summary = follow(lambda step: step / 100 if step <= 200 else 1.5, falling, steps=611, every=10).summary()
    assert summary["crossing_step"] == 100
    assert summary["overshoot"] == summary["max_ratio"] == 2.0
    assert (summary["level"], summary["level_low"], summary["level_high"]) == (1.5, 1.5, 1.5)
    assert (summary["first_ratio"], summary["last_ratio"]) == (0.0, 1.5)
    assert (summary["first_loss"], summary["last_loss"], summary["loss_rises"]) == (1.0, 0.99**610, 0.0)


def test_loss_rises_is_the_share_of_rising_steps_in_the_last_half() -> None:
    # 100 steps; of the last 50, every other one rises.
    tracker = follow(lambda _: 1.1, lambda step: oscillating(step) if step >= 50 else falling(step), steps=100)
    assert tracker.summary()["loss_rises"] == 0.5


def test_a_loss_below_a_hundredth_that_never_met_the_edge_is_interpolated() -> None:
    tracker = follow(lambda _: 0.6, falling, steps=600)
    assert [phase for _, phase in tracker.changes] == [Phase.BELOW, Phase.INTERPOLATED]
    # 0.99^step averaged over 20 steps is below 0.01 from step 469 on.
    assert tracker.changes[-1][0] == 470


def test_a_fitted_run_that_was_at_the_edge_is_not_interpolated_before_it() -> None:
    tracker = follow(
        lambda step: 1.1 if step < 100 else 0.6,
        lambda step: oscillating(step) if step < 100 else falling(step),
        steps=600,
    )
    assert tracker.entry_step is not None
    assert tracker.phase == Phase.BELOW


def test_divergence_ends_the_history() -> None:
    tracker = follow(ramp, falling, steps=100)
    assert tracker.diverged(100) == Phase.DIVERGED
    assert tracker.summary()["phases"][-1] == [100, "diverged"]
    assert tracker.summary()["phase"] == "diverged"


@pytest.mark.parametrize("ratio", [math.nan, math.inf])
def test_a_ratio_that_was_not_measured_leaves_everything_as_it_was(ratio: float) -> None:
    tracker = follow(ramp, oscillating, steps=300)
    before = tracker.summary()
    assert tracker.add_ratio(300, ratio) is None
    assert tracker.summary() == before


def test_a_run_without_measurements_or_losses_has_an_empty_summary() -> None:
    summary = PhaseTracker().summary()
    assert {name: value for name, value in summary.items() if value is not None} == {"phases": []}
    assert math.isnan(PhaseTracker().ratio)


@pytest.mark.parametrize("stochastic", [False, True], ids=["full batch", "mini-batches"])
def test_fewer_than_five_measurements_in_the_last_half_are_no_phase_whatever_they_are(stochastic: bool) -> None:
    for ratio, loss in RUNS.values():
        for count in range(1, 2 * FEWEST - 1):
            few = follow(ratio, loss, steps=40 * count, every=40, tracker=PhaseTracker(stochastic=stochastic))
            summary = few.summary()
            assert len(few.ratios) == count and summary["level_measurements"] < FEWEST
            assert (few.phase, summary["phase"], summary["phases"], summary["entry_step"]) == (None, None, [], None)
            assert few.add_ratio(40 * count, 1.5) == few.phase
            assert few.diverged(40 * count + 1) == few.phase == Phase.DIVERGED
            if count < 2 * FEWEST - 2:
                assert few.summary()["phases"] == [[40 * count + 1, "diverged"]]


def test_what_was_seen_early_is_part_of_the_history_once_there_are_enough() -> None:
    logged = PhaseTracker()
    phases = [logged.add_ratio(10 * i, 0.5 + i / 20) for i in range(12)]
    assert phases == [None] * 8 + [Phase.SHARPENING] * 4
    assert logged.summary()["phases"] == [[0, "below the edge"], [10, "progressive sharpening"]]


@pytest.mark.parametrize("first", [0, 1], ids=["from the start", "from the first update"])
def test_the_rhythm_that_is_advised_suffices_and_is_odd(first: int) -> None:
    for steps in [*range(9, 200), 1000, 12345]:
        every = rhythm(steps)
        assert every is not None and every % 2 == 1
        tracker = PhaseTracker()
        for step in [*range(first * every, steps, every), steps]:
            tracker.add_ratio(step, 0.5)
        assert tracker.phase == Phase.BELOW, (steps, every)
    assert [rhythm(steps) for steps in (1, 8, 9, 26, 27, 1000)] == [None, None, 1, 1, 3, 111]


def test_an_entry_just_before_the_end_is_told_by_the_last_half() -> None:
    late = follow(lambda step: 0.5 + step / 200, falling, steps=111, tracker=PhaseTracker(stochastic=True))
    summary = late.summary()
    assert summary["entry_step"] == 100 and summary["phase"] == "edge of stability"
    assert summary["level_since"] == 55 and summary["level_measurements"] == 12  # three since step 100: too few


def test_without_a_threshold_there_is_no_phase_but_divergence() -> None:
    tracker = follow(lambda _: math.nan, falling, steps=100)
    assert tracker.phase is None
    assert tracker.changes == []
    assert tracker.diverged(100) == Phase.DIVERGED


@pytest.mark.parametrize("stochastic", [False, True], ids=["full batch", "mini-batches"])
@pytest.mark.parametrize(("ratio", "loss"), RUNS.values(), ids=RUNS)
def test_a_restored_tracker_has_the_same_future_wherever_it_was_cut(
    ratio: Series, loss: Series, stochastic: bool
) -> None:
    def tracked(steps: int, begin: int = 0, tracker: PhaseTracker | None = None) -> PhaseTracker:
        return follow(ratio, loss, steps=steps, begin=begin, tracker=tracker or PhaseTracker(stochastic=stochastic))

    for start in (0, 10):  # a tracker may join late
        whole = tracked(600, start)
        for cut in (0, 1, 3, 5, 11, 15, 113, 126, 131, 215, 245, 400):
            first = tracked(cut, start)
            second = follow(
                falling, oscillating, steps=40, tracker=PhaseTracker(stochastic=stochastic)
            )  # not a fresh one
            second.load_state_dict(first.state_dict())
            tracked(600, max(start, cut), second)
            assert second.summary() == whole.summary(), f"start {start}, cut at {cut}"
            assert second.changes == whole.changes

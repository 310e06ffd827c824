"""The phase of runs that begin above the edge, are thrown, or have the noise of mini-batches."""

import pytest
from curvature.series import RUNS, falling, follow, oscillating, thrown

from lab.curvature.edge import Phase
from lab.curvature.phase import PhaseTracker


@pytest.mark.parametrize("every", [1, 2, 13], ids="every {}".format)
def test_a_catapult_is_dated_by_the_losses_whatever_the_rhythm_of_the_measurements(every: int) -> None:
    tracker = follow(lambda step: 3.0 if step < 13 else 0.7, thrown, steps=120, every=every)
    # The loss of step 1 is known before update 2; that of step 3, back below the first, before update 4.
    assert (2, Phase.CATAPULT) in tracker.changes
    after = tracker.changes[tracker.changes.index((2, Phase.CATAPULT)) + 1]
    assert 4 <= after[0] < 4 + every
    assert after[1] != Phase.CATAPULT
    # Thrown, and come down far below: it was above the edge and below it, never at it.
    assert tracker.changes[0] == (0, Phase.ABOVE)
    assert tracker.phase == Phase.BELOW
    assert tracker.entry_step is None


def test_a_run_that_begins_above_one_is_above_the_edge_until_it_comes_down() -> None:
    tracker = follow(lambda step: 2820.0 if step < 50 else 0.7, falling, steps=100)
    assert tracker.changes == [(0, Phase.ABOVE), (50, Phase.BELOW)]
    assert tracker.entry_step is None
    assert follow(lambda _: 1.5, falling, steps=400).changes == [(0, Phase.ABOVE)]


def test_the_code_of_a_phase_is_what_it_was_in_older_logs() -> None:
    assert [phase.code for phase in Phase] == list(range(7))
    assert (Phase.BELOW.code, Phase.DIVERGED.code, Phase.ABOVE.code) == (0, 5, 6)


def test_a_start_above_one_that_stays_and_oscillates_is_at_the_edge_after_twenty_steps() -> None:
    # The loss rises at every other step, but not above its first value: not thrown.
    tracker = follow(lambda _: 1.3, lambda step: 1.0 if step == 0 else 0.8 * oscillating(step), steps=100)
    assert tracker.changes == [(0, Phase.ABOVE), (20, Phase.EDGE)]


def test_the_rises_of_a_catapult_are_not_those_of_the_edge() -> None:
    # Thrown by five rises, back below the first loss at step 6; then calm, while the ratio dips below 1 and comes back.
    def loss(step: int) -> float:
        return 1.0 + step if step < 6 else 0.5 * 0.99**step

    calm = follow(lambda step: {0: 3.0, 1: 0.9}.get(step // 8, 1.2), loss, steps=60, every=4)
    assert calm.changes[:2] == [(0, Phase.ABOVE), (2, Phase.CATAPULT)]
    assert calm.entry_step is None
    # Staying above, it enters when the loss rises in its own right and twenty steps after the catapult have passed.
    stays = follow(lambda _: 1.5, lambda step: loss(step) * (1.1 if step > 6 and step % 2 else 1.0), steps=60, every=4)
    assert stays.entry_step == 6 + 20


def test_the_edge_is_not_entered_during_a_catapult() -> None:
    tracker = follow(lambda _: 3.0, lambda step: 1 + step % 2 + step / 100, steps=100)
    assert tracker.phase == Phase.CATAPULT
    assert tracker.entry_step is None


def test_a_rise_of_the_loss_from_a_start_below_one_is_no_catapult() -> None:
    # The start-up of momentum.
    tracker = follow(lambda _: 0.5, thrown, steps=100)
    assert Phase.CATAPULT not in [phase for _, phase in tracker.changes]


def test_scattering_mini_batch_losses_are_no_catapult() -> None:
    tracker = follow(
        lambda _: 1.3, lambda step: 1.0 + 0.2 * (step % 2), steps=50, tracker=PhaseTracker(stochastic=True)
    )
    assert Phase.CATAPULT not in [phase for _, phase in tracker.changes]
    thrown_far = follow(lambda _: 3.0, thrown, steps=50, tracker=PhaseTracker(stochastic=True))
    assert (2, Phase.CATAPULT) in thrown_far.changes


def test_with_mini_batches_the_ratio_alone_decides_with_a_margin_for_leaving() -> None:
    def ratio(step: int) -> float:
        return {0: 0.5, 1: 1.0, 2: 0.95, 3: 0.89, 4: 0.95, 5: 1.1}[step // 20]

    tracker = follow(ratio, oscillating, steps=120, every=1, tracker=PhaseTracker(stochastic=True))
    edges = [(step, phase == Phase.EDGE) for step, phase in tracker.changes]
    # In at 1, not out at 0.95, out at 0.89, not in at 0.95, in at 1.1.
    assert [step for (step, edge), (_, before) in zip(edges[1:], edges, strict=False) if edge != before] == [
        20,
        60,
        100,
    ]
    assert tracker.entry_step == 20


def test_with_mini_batches_a_start_above_one_enters_the_edge_only_from_below() -> None:
    def stochastic(*ratios: float) -> PhaseTracker:
        return follow(lambda step: ratios[step // 7], oscillating, steps=7 * len(ratios), every=7,
                      tracker=PhaseTracker(stochastic=True))  # fmt: skip

    came_down = stochastic(2.41, 0.40, 0.71, 0.73, 0.56)
    assert came_down.entry_step is None
    assert came_down.changes[0] == (0, Phase.ABOVE)
    assert Phase.EDGE not in [phase for _, phase in came_down.changes]
    assert stochastic(2.41, 1.8, 1.2).changes == [(0, Phase.ABOVE)]
    # From 0.4 at step 7 to 1.6 at 14 the ratio is 1 at 10.5.
    assert stochastic(2.41, 0.4, 1.6).changes[-1] == (11, Phase.EDGE)


@pytest.mark.parametrize("stochastic", [False, True], ids=["full batch", "mini-batches"])
@pytest.mark.parametrize("every", [1, 5, 13])
def test_entry_step_is_the_step_of_the_first_edge_in_the_history(stochastic: bool, every: int) -> None:
    for ratio, loss in RUNS.values():
        tracker = follow(ratio, loss, steps=600, every=every, tracker=PhaseTracker(stochastic=stochastic))
        edges = [step for step, phase in tracker.changes if phase == Phase.EDGE]
        assert tracker.entry_step == (edges[0] if edges else None)
        assert [step for step, _ in tracker.changes] == sorted({step for step, _ in tracker.changes})

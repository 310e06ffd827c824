"""What the governor decides, by costs that are made up: no clock, no network."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from lab.callbacks.account import caveats, words
from lab.probes.budget import SECONDS, Budget, budget_of
from lab.probes.governor import DENSER, ENOUGH, Course, Governor, Offer
from lab.settings import SettingError


def course(*costs: float, every: int = 13, fixed: bool = False, at_end: bool = True, warm: float = 1.0) -> Course:
    return Course(every, fixed, at_end, [Offer(cost, warm * cost) for cost in costs])


def run(
    governor: Governor,
    *,
    real: Callable[[str, int], float] = lambda name, chosen: math.nan,
    ratio: Callable[[int], float] = lambda step: math.nan,
    step_seconds: float = 1.0,
    begin: int = 0,
    end: int | None = None,
) -> dict[str, list[int]]:
    """The steps at which probes measure in a run whose measurements cost what was expected, or what `real` says."""
    made: dict[str, list[int]] = {name: [] for name in governor.courses}
    for step in range(begin, governor.total if end is None else end):
        for name, one in governor.courses.items():
            if step % one.every == 0 and governor.wants(name, step, ratio=ratio(step)):
                cost = real(name, one.chosen)
                governor.made(name, step, one.offers[one.chosen].first if math.isnan(cost) else cost)
                made[name].append(step)
        governor.train(step_seconds, 1)
    if end is None:
        for name, one in governor.courses.items():
            if one.at_end:
                governor.made(name, governor.total, one.after, end=True)
    return made


def governed(budget: Any, total: int, guess: float = 1.0, **courses: Course) -> Governor:
    governor = Governor(budget_of(budget) or Budget(), total)
    governor.guess = guess
    governor.begin(courses)
    return governor


def test_a_budget_that_does_not_bind_changes_nothing() -> None:
    governor = governed(0.2, 1000, sharpness=course(2.0))
    assert run(governor)["sharpness"] == list(range(0, 1000, 13))
    assert governor.courses["sharpness"].chosen == 0 and governor.spent == 78 * 2.0


def test_a_short_run_has_ten_seconds_whatever_its_share() -> None:
    governor = governed(0.2, 1000, guess=1e-3, sharpness=course(0.1))
    assert run(governor, step_seconds=1e-3)["sharpness"] == list(range(0, 1000, 13)) and governor.spent < SECONDS


@pytest.mark.parametrize("cost", [4.0, 6.0, 9.0])
@pytest.mark.parametrize("total", [1000, 6000])
def test_where_the_budget_binds_it_is_kept_and_used(cost: float, total: int) -> None:
    governor = governed(0.2, total, sharpness=course(cost))
    steps = run(governor)["sharpness"]
    assert 0.75 * 0.2 <= governor.spent / governor.trained <= 0.2
    assert steps[0] == 0 and steps[-1] > 0.8 * total, "spread over the whole run"
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert max(gaps) <= min(gaps) + 2 * 13 or max(gaps) <= 2 * min(gaps), "evenly"
    assert all(gap % 2 == 1 for gap in gaps), "odd: iterates at the edge have period 2"


def test_it_is_kept_where_costs_and_steps_turn_out_otherwise_than_expected() -> None:
    for factor in (0.3, 3.0):
        governor = governed(0.2, 3000, guess=0.3, sharpness=course(8.0))
        run(governor, real=lambda name, chosen, factor=factor: 8.0 * factor)  # type: ignore[misc]
        assert 0.75 * 0.2 <= governor.spent / governor.trained <= 0.2


def test_a_smaller_probe_set_is_taken_where_the_whole_leaves_too_few_measurements() -> None:
    governor = governed(0.2, 1000, sharpness=course(40.0, 20.0, 10.0, 5.0))
    assert (
        governor.courses["sharpness"].chosen == 3
    )  # 200 s, less the first and the last one, are 18 of 10 s, 38 of 5 s
    assert len(run(governor)["sharpness"]) >= ENOUGH
    assert {chosen for _, _, chosen, _ in governor.decisions} == {3}, "one set for the whole run"


def test_the_dearest_probe_gives_way_first() -> None:
    governor = governed(
        0.2, 1300, sharpness=course(1.0, 0.5), spectrum=course(40.0, 20.0, 10.0, every=130, at_end=False)
    )
    assert governor.courses["spectrum"].chosen > 0 == governor.courses["sharpness"].chosen


def test_first_and_last_are_measured_however_dear() -> None:
    governor = governed(0.2, 60, sharpness=course(400.0, 200.0), spectrum=course(900.0, every=130, at_end=False))
    assert governor.ends > governor.allowed
    assert run(governor) == {"sharpness": [0], "spectrum": [0]}
    assert governor.courses["sharpness"].count == 2, "and the end"
    assert [every for _, name, _, every in governor.decisions if name == "sharpness"][-1] > 60


def test_a_rhythm_that_was_typed_is_kept_and_the_others_give_way() -> None:
    governor = governed(0.2, 1000, typed=course(2.0, fixed=True, at_end=False), auto=course(2.0))
    made = run(governor)
    assert made["typed"] == list(range(0, 1000, 13))
    assert 10 < len(made["auto"]) < 30 and governor.spent <= 0.2 * governor.trained
    alone = governed(0.2, 1000, typed=course(20.0, fixed=True))
    assert run(alone)["typed"] == list(range(0, 1000, 13))


def test_near_the_threshold_measurements_are_denser() -> None:
    def ratio(step: int) -> float:
        return 0.2 if step < 1500 else 0.95

    governor = governed(0.2, 3000, sharpness=course(10.0))
    steps = run(governor, ratio=ratio)["sharpness"]
    far, near = sum(step < 1500 for step in steps), sum(step >= 1500 for step in steps)
    assert near > 2 * far and governor.spent <= 0.2 * governor.trained
    assert governor.spent >= 0.75 * 0.2 * governor.trained
    always = run(governed(0.2, 3000, sharpness=course(10.0)), ratio=lambda step: 0.95)["sharpness"]
    thirds = [sum(a <= step < a + 1000 for step in always) for a in (0, 1000, 2000)]
    assert thirds[0] <= 2 * DENSER * thirds[2], "something is left for the end"


def test_products_look_at_no_clock_and_repeat_exactly() -> None:
    runs = [
        run(governed("products:300", 2000, guess=guess, sharpness=course(20.0, warm=0.7)), step_seconds=guess)
        for guess in (1e-3, 7.0)
    ]
    assert runs[0] == runs[1]
    governor = governed("products:300", 2000, sharpness=course(20.0))
    run(governor)
    assert 0.75 * 300 <= governor.spent <= 300


@pytest.mark.parametrize("cut", [1, 500, 501, 1300])
def test_a_resumed_run_goes_on_by_what_was_decided(cut: int) -> None:
    whole = run(governed("products:300", 2000, sharpness=course(20.0, 10.0)), ratio=lambda step: step / 2000)
    first = governed("products:300", 2000, sharpness=course(20.0, 10.0))
    made = run(first, ratio=lambda step: step / 2000, end=cut)
    second = Governor(Budget(products=300), 2000)
    second.load_state_dict(first.state_dict())
    rest = run(second, ratio=lambda step: step / 2000, begin=cut)
    assert made["sharpness"] + rest["sharpness"] == whole["sharpness"]
    assert second.state_dict()["decisions"][: len(first.decisions)] == first.decisions


def test_a_hopeless_probe_set_is_given_up_once() -> None:
    governor = governed(0.2, 1000, sharpness=course(4.0, 2.0, 1.0))
    assert governor.courses["sharpness"].chosen == 0
    made = run(governor, real=lambda name, chosen: 80.0 / 2**chosen)
    assert governor.courses["sharpness"].chosen == 2 and made["sharpness"][:2] == [0, 13], "measured anew at once"
    assert len({chosen for _, _, chosen, _ in governor.decisions}) == 2


@pytest.mark.parametrize("typed", [0, -1, True, "products:0", "products:many", "20 %", math.nan, math.inf, [0.2]])
def test_what_is_no_budget_is_refused_in_one_line(typed: Any) -> None:
    with pytest.raises(SettingError, match=r"^probe\.budget=.*: expected a share of the training time"):
        budget_of(typed, "probe.budget")


def dear(cost: float) -> Course:
    one = course(cost, every=130, at_end=False)
    one.patient = True
    return one


def test_a_probe_one_measurement_of_which_is_beyond_the_budget_waits_for_the_end() -> None:
    governor = governed(0.2, 60, sharpness=course(40.0), spectrum=dear(85.0), noise=dear(9.0))
    assert governor.waits("spectrum") and not governor.waits("noise") and not governor.waits("sharpness")
    assert run(governor) == {"sharpness": [0], "spectrum": [], "noise": [0]}
    assert governor.waits("spectrum")  # so the end of the run measures it


def test_a_probe_that_waited_is_measured_once_training_turns_out_to_be_long_enough() -> None:
    governor = governed(0.2, 1000, guess=0.1, spectrum=dear(85.0))
    assert governor.waits("spectrum")
    assert run(governor, step_seconds=1.0)["spectrum"][0] == 130  # a step takes 1 s: 200 s are allowed


def test_a_rhythm_that_was_typed_does_not_wait() -> None:
    governor = governed(0.2, 60, spectrum=Course(20, True, False, [Offer(85.0, 85.0)], patient=True))
    assert run(governor)["spectrum"] == [0, 20, 40]


def test_it_is_said_when_a_probe_is_measured_and_when_it_never_was() -> None:
    last = course(9.0, at_end=True)
    governor = governed(0.2, 60, sharpness=last, spectrum=dear(85.0), noise=dear(9.0))
    offer = Offer(85.0, 85.0, numbers={"k": 3.0})
    governor.courses["spectrum"].offers = [offer]
    assert words(governor, 10, governor.decisions) == [
        "step 0 on sharpness once and at the end",
        "step 0 on spectrum at the end only, with k=3",
        "step 0 on noise once",
    ]
    assert run(governor)["noise"] == [0]
    assert caveats(governor, 10, {"spectrum": ""}) == [
        "Probe spectrum has measured nothing: once is beyond budget=0.2, and that is made where a run ends only"
    ]
    governor.made("spectrum", 60, 85.0, end=True)
    assert caveats(governor, 10, {"spectrum": ""}) == ["Probe spectrum measured with k=3 (budget=0.2)"]


def test_a_rhythm_longer_than_the_run_is_said_as_it_is_where_nothing_binds() -> None:
    governor = governed(0.2, 60, spectrum=dear(1.0))
    assert words(governor, 10, governor.decisions) == ["step 0 on spectrum every 130 steps"]

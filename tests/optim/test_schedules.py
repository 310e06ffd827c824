"""Schedules against their closed forms and against torch's own schedulers."""

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import nn, optim

from lab.optim.schedules import Constant, Cosine, Schedule, Step, Warmup


def rates_of_torch(make: Callable[[optim.Optimizer], optim.lr_scheduler.LRScheduler], total: int) -> list[float]:
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(schedule: Schedule, total: int) -> list[float]:
    return [schedule.factor(step, total) for step in range(total)]


def test_constant_is_one() -> None:
    assert rates(Constant(), 5) == [1.0] * 5


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_equals_that_of_torch(final: float) -> None:
    torch_rates = rates_of_torch(lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=final), 50)
    assert rates(Cosine(final=final), 50) == pytest.approx(torch_rates, rel=1e-9)


def test_cosine_starts_at_one_passes_the_middle_and_would_end_at_final() -> None:
    cosine = Cosine(final=0.2)
    assert cosine.factor(0, 100) == 1.0
    assert cosine.factor(50, 100) == pytest.approx(0.6)
    assert cosine.factor(100, 100) == pytest.approx(0.2)
    assert Cosine().factor(99, 100) == pytest.approx((1 - math.cos(math.pi / 100)) / 2)


@pytest.mark.parametrize(
    "schedule", [Constant(), Cosine(), Step(), Warmup(), Warmup(steps=1), Warmup(steps=0.5)], ids=repr
)
@pytest.mark.parametrize("total", [1, 2, 1000])
def test_no_update_has_a_rate_of_zero(schedule: Schedule, total: int) -> None:
    assert all(0 < rate <= 1 for rate in rates(schedule, total))


def test_step_equals_that_of_torch() -> None:
    torch_rates = rates_of_torch(lambda o: optim.lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.5), 10)
    assert rates(Step(milestones=(3, 7), gamma=0.5), 10) == pytest.approx(torch_rates)
    assert rates(Step(milestones=(3, 7), gamma=0.5), 10) == [1.0] * 3 + [0.5] * 4 + [0.25] * 3


@pytest.mark.parametrize("milestones", [(5, 5), (7, 3), (0, 3), (-1,), (1.5,)])
def test_milestones_must_be_positive_updates_in_increasing_order(milestones: tuple) -> None:
    with pytest.raises(ValidationError, match="milestones"):
        Step(milestones=milestones)


def test_warmup_is_linear_from_one_over_steps_then_constant() -> None:
    assert rates(Warmup(steps=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_warm_up_that_is_a_share_of_the_run_takes_as_much_of_any_run() -> None:
    assert rates(Warmup(steps=0.4), 10) == rates(Warmup(steps=4), 10)
    assert rates(Warmup(steps=0.4), 2) == [1.0, 1.0], "less than one update is none"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cosine(final=1.1),
        lambda: Cosine(final=-0.1),
        lambda: Step(gamma=0.0),
        lambda: Warmup(steps=0),
        lambda: Warmup(steps=100.0),
    ],
)
def test_out_of_range_is_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(ValidationError):
        make()

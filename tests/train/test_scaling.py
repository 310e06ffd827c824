"""Settings made for one batch size, carried to another: plain values in, plain values out."""

from typing import Any

import pytest

from lab.settings import SettingError
from lab.train.scaling import scaled

CARD = "lab.train.scaling.Scaling"


def settings(scaling: dict[str, Any], batch_size: Any, **others: Any) -> dict[str, Any]:
    """Those of a run that is meant for batches of 100."""
    return {
        "scaling": {"_target_": CARD, "batch_size": 100} | scaling,
        "data": {"batch_size": batch_size, "examples": 1000},
        "optimizer": {"lr": 0.1},
        "schedule": {"_target_": "lab.optim.schedules.Warmup", "steps": 40},
        "steps": 200,
    } | others


@pytest.mark.parametrize(("budget", "steps", "warm"), [("epochs", 50, 10), ("steps", 200, 40)])
def test_a_warm_up_has_the_share_of_the_run_that_it_had(budget: str, steps: int, warm: int) -> None:
    carried = scaled(settings({"budget": budget, "lr": "linear"}, 400))
    assert (carried["steps"], carried["schedule"]["steps"], carried["optimizer"]["lr"]) == (steps, warm, 0.4)
    share = scaled(settings({"budget": budget}, 400, schedule={"steps": 0.2}))
    assert share["schedule"]["steps"] == 0.2


def test_milestones_are_carried_and_refused_where_they_fall_together() -> None:
    by_step = {"_target_": "lab.optim.schedules.Step", "milestones": [100, 150]}
    carried = scaled(settings({"budget": "epochs"}, 1000, schedule=by_step))
    assert carried["schedule"]["milestones"] == [10, 15]
    near = by_step | {"milestones": [100, 102]}
    with pytest.raises(SettingError, match=r"milestones=\[100,102\] fall together at data.batch_size=1000.*\[10,10\]"):
        scaled(settings({"budget": "epochs"}, 1000, schedule=near))


@pytest.mark.parametrize(("batch_size", "passes"), [(100, 30), (300, 12), (1000, 3)])
def test_epochs_of_the_budget_are_passes_with_the_ragged_batch_or_updates_of_the_base(
    batch_size: int, passes: int
) -> None:
    """ceil(1000 / 300) = 4 updates a pass; 10 in batches of 100."""
    counts = [
        scaled(settings({"epochs": 3, "budget": budget}, batch_size, steps=None))["steps"]
        for budget in ("epochs", "steps")
    ]
    assert counts == [passes, 30]


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"steps": 200}, "steps=200 and scaling.epochs=3 contradict each other; write scaling.epochs=null"),
        ({"steps": None, "epochs": 5}, "epochs=5 and scaling.epochs=3 contradict each other; write scaling.epochs=5 alone"),
        (
            {"steps": None, "data": {"batch_size": 100, "examples": "all"}},
            "data.examples=all, but scaling.lr=none scaling.budget=steps count in it: give data.examples as",
        ),
        ({"steps": None, "data": {"batch_size": "full", "examples": 100}}, "data.batch_size=full, but scaling.lr=none"),
    ],
)  # fmt: skip
def test_lengths_that_contradict_each_other_are_refused(others: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError) as refused:
        scaled(settings({"epochs": 3}, 100, **others))
    assert str(refused.value).startswith(says)

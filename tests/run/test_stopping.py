"""Conditions that end a run: how they are written, which is met, and which can never be."""

import math

import pytest

from lab.probes.tags import written
from lab.run.stopping import Condition, Stopping
from lab.settings import SettingError


def stopping(*texts: str) -> Stopping:
    return Stopping(map(Condition.of, texts))


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("train/loss<1e-3", 9.8e-4, True),
        ("train/loss<1e-3", 1e-3, False),
        ("train/loss<=1e-3", 1e-3, True),
        ("test/accuracy >.99", 0.991, True),
        ("sharpness/ratio>=1.5", 1.4, False),
        ("train/loss<1", math.nan, False),
        ("train/loss>1", math.nan, False),
        ("train/loss>1", math.inf, True),
        ("spectrum/layer/0.weight/trace>-1", 0.0, True),
    ],
)
def test_a_condition_is_met_on_its_side_of_the_bound_and_by_no_nan(text: str, value: float, met: bool) -> None:
    assert Condition.of(text).met(value) == met
    assert Condition.of(str(Condition.of(text))) == Condition.of(text)


@pytest.mark.parametrize(
    "text",
    ["", "train/loss", "loss<1", "train/loss<<1", "train/loss<x", "train/loss<nan", "train/loss<inf", "<1", "a/b=1"],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a tag, one of < > <= >= and a finite number"):
        Condition.of(text)


def test_the_first_condition_that_is_met_stays() -> None:
    conditions = stopping("train/loss<1e-3", "test/accuracy>.99")
    assert conditions and not stopping()
    assert not conditions.see(0, {"train/loss": 2.0, "other": 0.0})
    assert conditions.unseen() == ["trainer.stop: test/accuracy was never measured."]
    assert conditions.see(7, {"test/accuracy": 0.995})
    assert conditions.see(8, {"train/loss": 1e-4})
    assert conditions.reason == "test/accuracy 0.995 > 0.99"


def test_what_was_met_is_met_after_a_resume_and_no_more_where_the_condition_has_gone() -> None:
    before, same, other = stopping("train/loss<1e-3"), stopping("train/loss<0.001"), stopping("train/loss<1e-4")
    before.see(5, {"train/loss": 5e-4})
    for after in (same, other):
        after.load_state_dict(before.state_dict())
    assert same.reason == before.reason
    assert not other.reason and not other.see(5, {"train/loss": 5e-4})


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("trian/loss<1", "did you mean train/loss?"),
        ("test/loss<1", "did you mean train/loss?"),
        ("noise/scale>1", "there is train/loss, train/accuracy, train/grad_norm"),
        ("sharpness/ration>1.5", "did you mean sharpness/ratio?"),
        ("sharpness/lambda_mx>1", "did you mean sharpness/lambda_max?"),
        ("sharpness/zzz>1", "there is sharpness/ratio, sharpness/threshold, sharpness/lambda_max"),
        ("error/sharpness/lambda_mx>1", "did you mean error/sharpness/lambda_max"),
        ("sharpness/lambda_12>1", None),
        ("sharpness/clipped_ratio>1", None),
        ("cost/sharpness/seconds>1", None),
        ("train/lr<1", None),
        ("sharpness/ratio>1", None),
        ("error/sharpness/lambda_max>1", None),
        ("negative_curvature/length>1", None),
    ],
)
def test_a_tag_that_nothing_writes_is_refused(text: str, cure: str | None) -> None:
    ask = {"measured": written("sharpness"), "tests": False, "logs": True, "others": ["negative_curvature/*"]}
    if cure is None:
        stopping(text).require(**ask)
        return
    with pytest.raises(SettingError) as refused:
        stopping(text).require(**ask)
    assert cure in str(refused.value) and "nothing in this run writes" in str(refused.value)


def test_the_probe_of_somebody_else_may_write_whatever_begins_with_its_name() -> None:
    stopping("mine/anything>1", "error/mine/a/b>1").require(written("mine"), tests=False, logs=False)
    with pytest.raises(
        SettingError, match=r"there is train/loss, train/accuracy, mine/\.\.\., error/mine/\.\.\., cost/"
    ):
        stopping("other/anything>1").require(written("mine"), tests=False, logs=False)


def test_without_training_curves_only_loss_and_accuracy_of_the_batch_are_known() -> None:
    stopping("train/loss<1", "train/accuracy>.9").require([], tests=False, logs=False)
    with pytest.raises(SettingError, match="nothing in this run writes train/grad_norm"):
        stopping("train/grad_norm<1").require([], tests=False, logs=False)


def test_a_slip_in_a_tag_of_a_probe_is_told_by_its_first_measurement_and_a_later_tag_is_none() -> None:
    measured = {"sharpness/ratio": 0.5, "sharpness/threshold": 2.0, "sharpness/lambda_max": 1.0}
    stopping("sharpness/phase>2", "sharpness/clipped_ratio>1", "sharpness/lambda_min<0").require_measured(measured)
    with pytest.raises(SettingError, match=r"nothing writes sharpness/ration; did you mean sharpness/ratio\?"):
        stopping("sharpness/ration>1").require_measured(measured)

"""The budget of a watched loop: a number of products is kept to without a clock, and no budget without a length."""

from typing import Any

import pytest
import torch
from callbacks.loops import Loss, Training, batches, data, same

from lab.callbacks.probing import in_doubt
from lab.callbacks.watching import loss_now
from lab.probes.bench import Bench
from lab.probes.budget import budget_of
from lab.probes.sharpness import Sharpness
from lab.settings import SettingError

STEPS = 140


def governed(budget: str | float | None, steps: int | None) -> tuple[list[tuple[int, float]], dict | None, list]:
    """The ratios of a loop, what became of its budget, and its last state."""
    training = Training(norm=False)
    watch = training.watch(probes=[Sharpness(examples="all")], budget=budget, steps=steps)
    training.run(STEPS, watch)
    watch.close()
    return list(watch.tracker.ratios), watch.costs.summary(), training.state()


def test_two_loops_with_a_budget_in_products_are_equal_and_keep_to_it() -> None:
    first, account, state = governed("products:60", STEPS)
    again, _, same_state = governed("products:60", STEPS)
    free, without, free_state = governed(None, STEPS)
    assert first == again and same(state, same_state)
    assert account is not None and without is None
    cold = 2 * 26  # the first measurement and the last, at most as many products as are expected of a cold one
    assert account["spent"] <= 60 + cold
    assert 2 <= len(first) < len(free), "fewer measurements than the rhythm of the card makes"
    assert {step for step, _ in first} <= {step for step, _ in free}
    assert same(state, free_state), "training is not touched"


def test_what_is_said_of_a_budget_speaks_of_the_argument_in_python_and_of_the_setting_at_the_door() -> None:
    lines = dict[str, list[str]]()
    for setting, none in {"budget": "None", "probe.budget": "null"}.items():
        budget = budget_of("products:40", setting)
        training = Training(norm=False)
        watch = training.watch(probes=[Sharpness()], budget=budget, steps=STEPS)
        said = lines.setdefault(setting, [])
        watch.costs.tell = said.append
        training.run(STEPS // 2, watch)
        watch.close()
        assert said and all(f"{setting}=products:40" in line for line in said), said
        assert any(f"{setting}={none} makes all that are due" in line for line in said)
        with pytest.raises(SettingError, match=f"^{setting}=-1: .* or {none} for no budget$"):
            budget_of(-1, setting)
    assert [line.replace("probe.", "").replace("null", "None") for line in lines["probe.budget"]] == lines["budget"]
    assert "probe.budget" not in "".join(lines["budget"])


def test_a_loop_of_unknown_length_has_no_budget_and_one_that_is_given_needs_a_length() -> None:
    ratios, account, _ = governed("auto", None)
    assert account is None and [step for step, _ in ratios] == [*range(0, STEPS, 13), STEPS]
    with pytest.raises(SettingError, match="needs to know how long the run is: give the number of its steps"):
        governed(0.2, None)


def test_a_cheap_loop_is_measured_as_without_a_budget() -> None:
    ratios, account, _ = governed("auto", STEPS)
    assert account is not None and account["unit"] == "seconds"
    assert ratios == governed(None, STEPS)[0], "ten seconds are more than it takes"


def test_a_sharpness_whose_error_is_above_a_tenth_tells_no_phase() -> None:
    known = {"sharpness/lambda_max": 2.0, "error/sharpness/lambda_max": 0.19, "cost/sharpness/examples": 250.0}
    assert in_doubt(known) == ""
    assert in_doubt(known | {"error/sharpness/lambda_max": 0.5}).startswith("lambda_max is 2 +- 0.5 on 250 examples")
    held = {"sharpness/preconditioned": 5.0, "error/sharpness/preconditioned": 0.1}
    assert in_doubt(known | {"error/sharpness/lambda_max": 0.5} | held) == "", (
        "the one that is held against the threshold"
    )
    assert in_doubt({}) == ""


def test_a_loss_of_the_probe_set_that_cannot_be_had_is_said_and_ends_nothing() -> None:
    class Broken:
        model = torch.nn.Linear(1, 1)

        def objective(self, examples: str) -> None:
            raise RuntimeError("no memory\nat all")

    lines: list[str] = []
    assert loss_now(Broken(), lines.append) is None  # type: ignore[arg-type]
    assert len(lines) == 1 and lines[0].endswith("cannot be had (RuntimeError: no memory at all)")


def test_a_loop_without_losses_takes_that_of_the_probe_set_from_the_sharpness_that_has_met_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[float | None]()

    def counted(bench: Bench, say: Any, known: float | None) -> float | None:
        asked.extend([None] if known is None else [])
        return loss_now(bench, say, known)

    monkeypatch.setattr("lab.callbacks.watching.loss_now", counted)
    for examples in ("auto", 16):
        training = Training(norm=False)
        watch = training.watch(every=2, probes=[Sharpness(every=2, examples=examples)], batch_size=8)  # type: ignore[arg-type]
        losses = list[float]()
        for x, y in batches(4):
            training.optimizer.zero_grad()
            Loss(training.model(x), y).backward()
            losses.append(float(Loss(training.model(data()[0]), data()[1]).detach()))
            with watch.step():
                training.optimizer.step()
            watch.flush()
            assert watch.ends[-1] == pytest.approx(losses[len(losses) - 1 & ~1], rel=1e-6)
        watch.close()
        assert len(asked) == (0 if examples == "auto" else 2), "a part of the probe set is another loss"

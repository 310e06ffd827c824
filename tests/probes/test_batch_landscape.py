"""The probe of the landscapes of batches: on linear regression, on full-batch runs, on what it must refuse."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lab.curvature.stability import UpdateRule
from lab.landscapes.quadratic import Quadratic
from lab.noise.batch_minima import draw_batches
from lab.objective import NetworkObjective
from lab.probes.base import Snapshot
from lab.probes.batch_landscape import BatchLandscape, batch_landscape
from lab.probes.bench import Bench
from lab.settings import SettingError
from lab.streams import stream

SIZE = 4


def half_squared(outputs: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (outputs[:, 0] - y).square().mean()


@pytest.fixture(scope="module")
def regression() -> NetworkObjective:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, SIZE, generator=generator, dtype=torch.float64)
    y = x @ torch.ones(SIZE, dtype=torch.float64) + 0.5 * torch.randn(240, generator=generator, dtype=torch.float64)
    return NetworkObjective(nn.Linear(SIZE, 1, bias=False).double(), half_squared, (x, y))


def snapshot(loss: NetworkObjective, batch_size: int | None = 20, w: Tensor | None = None) -> Snapshot:
    at = torch.zeros(loss.num_params, dtype=torch.float64) if w is None else w
    return Snapshot(7, at, lambda _: loss, UpdateRule(lr=0.1), seed=3, batch_size=batch_size)


def numbers(probe: BatchLandscape, state: Snapshot) -> dict[str, float]:
    return {tag: v for tag, v in probe.measure(state).items() if isinstance(v, float)}


def test_on_linear_regression_every_number_is_that_of_least_squares(regression: NetworkObjective) -> None:
    probe = BatchLandscape(batches=12, steps=200, leave_out=240, damping=0, max_matvecs=20)
    values = probe.measure(snapshot(regression))
    found = {tag.removeprefix("batch_landscape/"): v for tag, v in values.items()}
    x, y = regression.x, regression.y
    full = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    index = draw_batches(240, 20, 12, "epoch", stream(3, "batch_landscape", 7))
    minima = torch.linalg.lstsq(x[index], y[index][..., None]).solution[..., 0]
    distances = (minima - full).norm(dim=1)
    assert found["spread"] == pytest.approx(float(minima.var(0).sum()), rel=1e-9)
    assert found["distance"] == pytest.approx(float(distances.square().mean().sqrt()), rel=1e-9)
    assert found["offset"] == pytest.approx(float((minima.mean(0) - full).norm()), rel=1e-8)
    assert found["moved"] == pytest.approx(float(full.norm()), rel=1e-9)
    assert found["travelled"] == pytest.approx(float(minima.norm(dim=1).square().mean().sqrt()), rel=1e-9)
    at = [regression.restrict(batch) for batch in index]
    gain = [float(part.value(full) - part.value(w)) for part, w in zip(at, minima, strict=True)]
    price = [float(regression.value(w) - regression.value(full)) for w in minima]
    assert found["gain"] == pytest.approx(sum(gain) / 12, rel=1e-8)
    assert found["price"] == pytest.approx(sum(price) / 12, rel=1e-8)
    assert found["barrier"] == pytest.approx(0, abs=1e-12)
    inverse = torch.linalg.inv(x.T @ x)
    leverage = (x @ inverse * x).sum(1)
    shifts = (x @ inverse).norm(dim=1) * (y - x @ full).abs() / (1 - leverage)
    torch.testing.assert_close(found["shifts"].sort().values, shifts.sort().values, rtol=1e-6, atol=1e-10)
    assert found["leave_one_out"] == pytest.approx(float(shifts.mean()), rel=1e-6)
    assert found["gradient_left"] < 1e-9 and found["batch_size"] == 20
    middle = float(regression.value((full + minima[2]) / 2))
    assert float(found["along_full"][2, 5]) == pytest.approx(middle, rel=1e-9)


def test_full_batch_runs_are_measured_with_batches_of_their_own_and_say_so(regression: NetworkObjective) -> None:
    probe = BatchLandscape(batches=6, leave_out=0)
    values = numbers(probe, snapshot(regression, batch_size=None))
    assert values["batch_landscape/batch_size"] == 32
    assert "drawn for the measurement" in probe.finding(values)
    assert "batch_landscape/leave_one_out" not in values
    assert "drawn for the measurement" not in probe.finding(numbers(probe, snapshot(regression)))


def test_a_batch_is_at_most_half_of_a_small_probe_set(regression: NetworkObjective) -> None:
    few = regression.restrict(torch.arange(10))
    found = numbers(BatchLandscape(batches=3, leave_out=2), snapshot(few, batch_size=200))
    assert found["batch_landscape/batch_size"] == 5
    assert math.isfinite(found["batch_landscape/spread"])
    with pytest.raises(SettingError, match=r"batch_size=11 is larger than the probe set of 10 examples; use at most 9"):
        BatchLandscape(batch_size=11).measure(snapshot(few))


@pytest.mark.parametrize("size", [10, 11])
def test_the_advice_on_a_batch_too_large_is_true(regression: NetworkObjective, size: int) -> None:
    few, probe = regression.restrict(torch.arange(10)), BatchLandscape(batch_size=size, batches=3)
    with pytest.raises(SettingError, match="use at most 9") as refused:
        probe.measure(snapshot(few))
    assert ("all batches are the same" in str(refused.value)) == (size == 10)
    assert numbers(replace(probe, batch_size=9), snapshot(few))["batch_landscape/spread"] > 0
    BatchLandscape(batch_size=10).require_batches(10, "with_replacement")
    with pytest.raises(SettingError, match="one training example has no batches"):
        BatchLandscape().require_batches(1, "epoch")


def test_a_batch_too_large_is_refused_before_the_run() -> None:
    model, x, y = nn.Linear(3, 2), torch.randn(60, 3), torch.arange(60) % 2
    for size, wanted in ((61, "larger than the probe set of 60"), (60, "all of the probe set of 60")):
        with pytest.raises(SettingError, match=f"{wanted} .*use at most 59"):
            Bench(model, nn.functional.cross_entropy, (x, y)).require([BatchLandscape(batch_size=size)])
    Bench(model, nn.functional.cross_entropy, (x, y)).require([BatchLandscape(batch_size=59)])


def test_in_a_notebook_it_says_what_a_run_says(regression: NetworkObjective) -> None:
    result = batch_landscape(regression, batches=6, batch_size=20)
    assert result.sentence() == BatchLandscape(batches=6).finding(
        {f"batch_landscape/{name}": value for name, value in result.numbers().items()}
    )
    assert result.sentence().startswith("Each batch of 20 has its own minimum (training draws none of this size")
    assert len(result.figure().axes) == 3 and result.arrays()["minima"].shape == (6, 2)
    with pytest.raises(SettingError, match="Quadratic has no examples"):
        batch_landscape(Quadratic(torch.ones(3)), torch.ones(3))


@pytest.mark.filterwarnings("error")
def test_one_example_left_out_has_no_error_and_more_than_there_are_is_all(regression: NetworkObjective) -> None:
    few = regression.restrict(torch.arange(10))
    one, many = (BatchLandscape(batches=3, leave_out=n).measure(snapshot(few, 5)) for n in (1, 99))
    assert math.isnan(one["error/batch_landscape/leave_one_out"]) and one["batch_landscape/left_out"] == 1  # type: ignore[arg-type]
    assert many["batch_landscape/left_out"] == 10
    text = BatchLandscape(batches=3).finding({tag: v for tag, v in many.items() if isinstance(v, float)})
    assert "(mean of 10)" in text


def test_a_minimum_that_was_not_reached_is_not_spoken_of(regression: NetworkObjective) -> None:
    probe = BatchLandscape(batches=6, steps=2)
    values = numbers(probe, snapshot(regression))
    assert values["batch_landscape/reached_full"] == 0 and "batch_landscape/leave_one_out" not in values
    text = probe.finding(values)
    assert "leads elsewhere in 2 descent steps" in text and "where 2 descent steps on all examples end" in text
    assert "No minimum of all was reached" in text and "moves the minimum" not in text
    assert "at its own minimum" not in text and "at the minimum" not in text


def test_the_finding_leaves_out_what_has_no_meaning(regression: NetworkObjective) -> None:
    probe = BatchLandscape(batches=6)
    values = numbers(probe, snapshot(regression))
    assert "The loss of a batch is " in probe.finding(values) and "examples is " in probe.finding(values)
    worse = values | {"batch_landscape/gain": -0.011, "batch_landscape/price": 0.0, "batch_landscape/dimension": 1.0}
    text = probe.finding(worse | {"batch_landscape/leave_one_out_residual": 0.5})
    assert "-0.011" not in text and "The loss" not in text and "moves the minimum" not in text
    assert "over 1 direction as" in text
    still = {f"batch_landscape/{name}": 0.0 for name in ("spread", "moved", "travelled", "distance")}
    assert probe.finding(still) == ""  # a run that diverged: descent leads nowhere, its ratios are not measured


@pytest.mark.parametrize("batches", [2, 3])
def test_few_batches_of_a_model_with_one_weight(batches: int) -> None:
    x, y = torch.ones(6, 1, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    loss = NetworkObjective(nn.Linear(1, 1, bias=False).double(), half_squared, (x, y))
    values = BatchLandscape(batches=batches, leave_out=6, damping=0).measure(snapshot(loss, batch_size=2))
    assert values["batch_landscape/spread"] > 0
    assert values["batch_landscape/pc1_share"] == pytest.approx(1)
    shifts = (2.5 - torch.arange(6)).abs() / 5  # the mean of the others
    assert sorted(values["batch_landscape/shifts"].tolist()) == pytest.approx(sorted(shifts.tolist()))


def test_weights_that_diverged_are_not_measured(regression: NetworkObjective) -> None:
    w = torch.full((SIZE,), math.nan, dtype=torch.float64)
    probe = BatchLandscape()
    values = numbers(probe, snapshot(regression, w=w))
    assert set(values) == {"cost/batch_landscape/seconds"}
    assert probe.finding(values) == ""


def test_a_landscape_has_no_batches() -> None:
    bowl = Quadratic(torch.ones(3))
    with pytest.raises(SettingError, match="Quadratic has no examples"):
        BatchLandscape().measure(Snapshot(0, torch.ones(3), lambda _: bowl))


def test_the_finding_names_what_was_found(regression: NetworkObjective) -> None:
    probe = BatchLandscape(batches=6)
    text = probe.finding(numbers(probe, snapshot(regression)))
    assert text.startswith("Each batch of 20 has its own minimum: the 6 lie ")
    assert "one cloud" in text and "Leaving one example out" in text

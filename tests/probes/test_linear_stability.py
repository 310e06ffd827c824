"""The probe of linear stability: one dimension in closed form, the optimisers it knows, what it must refuse."""

import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lab.curvature.stability import UpdateRule
from lab.landscapes.quadratic import Quadratic
from lab.objective import NetworkObjective
from lab.probes.base import Snapshot
from lab.probes.linear_stability import LinearStability, linear_stability
from lab.settings import SettingError

CURVATURES = torch.tensor([0.0, 0.5, 1.0, 1.5, 7.0], dtype=torch.float64)
CRITICAL = {1: 0.380952, 2: 0.621359, 4: 0.907801}
PROBE = LinearStability(examples="all", steps=100, replicas=8)


def half_squared(outputs: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (outputs[:, 0] - y).square().mean()


@pytest.fixture(scope="module")
def line() -> NetworkObjective:
    """One weight, curvatures x_i^2 of five examples."""
    x = CURVATURES.sqrt()[:, None]
    return NetworkObjective(nn.Linear(1, 1, bias=False).double(), half_squared, (x, torch.zeros(5).double()))


def state(
    loss: NetworkObjective,
    batch_size: int | None,
    rule: UpdateRule | None,
    num_train: int | None = None,
    sampling: str = "without_replacement",
) -> Snapshot:
    w = torch.zeros(loss.num_params, dtype=torch.float64)
    return Snapshot(
        0,
        w,
        lambda _: loss,
        rule,
        batch_size=batch_size,
        sampling=sampling,
        num_train=num_train,  # type: ignore[arg-type]
    )


def numbers(snapshot: Snapshot, probe: LinearStability = PROBE) -> dict[str, float]:
    measured = probe.measure(snapshot)
    assert isinstance(measured.get("linear_stability/plane", Figure()), Figure)
    return {tag.removeprefix("linear_stability/"): v for tag, v in measured.items() if isinstance(v, float)}


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_in_one_dimension_all_conditions_are_those_of_wu_ma_and_e(line: NetworkObjective, batch_size: int) -> None:
    growth = {1: 0.65625, 2: 0.40234375, 4: 0.275390625}
    found = numbers(state(line, batch_size, UpdateRule(lr=0.25)))
    assert found["sharpness"] == pytest.approx(2) and found["non_uniformity"] == pytest.approx(math.sqrt(6.5))
    for name in ("in_plane", "bound", "second_moment_radius"):
        assert found[name] == pytest.approx(growth[batch_size], abs=1e-12)
    for name in ("critical_lr_plane", "critical_lr_mean_square"):
        assert found[name] == pytest.approx(CRITICAL[batch_size], abs=5e-7)
    assert found["stable_mean_square"] == found["stable"] == 1
    assert found["critical_lr"] > found["critical_lr_mean_square"]
    assert found["ratio"] == pytest.approx(0.25 / found["critical_lr"])


def test_typical_runs_are_stable_where_second_moments_are_not(line: NetworkObjective) -> None:
    found = numbers(state(line, 1, UpdateRule(lr=0.45)))  # between .381 and the zero of the mean of log|1 - lr h_i|
    assert found["stable"] == 1 and found["stable_mean_square"] == 0
    assert found["in_plane"] > 1
    text = PROBE.finding({f"linear_stability/{tag}": v for tag, v in found.items()})
    assert "typical runs are stable" in text and "explode" in text and "outside the region" in text


def test_full_batches_have_the_edge_of_gradient_descent(line: NetworkObjective) -> None:
    for lr in (0.9, 1.1):
        found = numbers(state(line, None, UpdateRule(lr=lr)))
        assert found["lyapunov"] == pytest.approx(math.log(abs(1 - 2 * lr)), abs=1e-12)
        assert found["second_moment_radius"] == pytest.approx((1 - 2 * lr) ** 2, abs=1e-12)
        assert found["stable"] == found["stable_mean_square"] == float(lr < 1)
        assert found["critical_lr"] == pytest.approx(1, rel=0.01)
        assert found["critical_lr_mean_square"] == pytest.approx(1, abs=1e-9)


def test_a_probe_set_stands_for_a_larger_training_set(line: NetworkObjective) -> None:
    found = numbers(state(line, 2, UpdateRule(lr=0.25), num_train=5000))
    factor = (5000 - 2) / (2 * 4999)
    assert found["in_plane"] == pytest.approx(0.25 + factor * 0.25**2 * 6.5, abs=1e-12)
    larger = numbers(state(line, 50, UpdateRule(lr=0.25), num_train=5000, sampling="epoch"))
    assert larger["stable"] == 1  # batches of 50 out of a probe set of five
    full = numbers(state(line, None, UpdateRule(lr=0.25), num_train=5000))
    assert full["lyapunov"] == pytest.approx(math.log(0.5), abs=1e-12)


def test_weight_decay_is_curvature(line: NetworkObjective) -> None:
    found = numbers(state(line, None, UpdateRule(lr=0.5, coupled_decay=0.4)))
    assert found["lyapunov"] == pytest.approx(math.log(abs(1 - 0.5 * 2.4)), abs=1e-12)
    assert found["second_moment_radius"] == pytest.approx((1 - 0.5 * 2.4) ** 2, abs=1e-12)
    assert found["critical_lr_mean_square"] == pytest.approx(2 / 2.4, abs=1e-9)
    assert found["critical_lr_plane"] == pytest.approx(2 / 2.4, abs=1e-12)


def test_momentum_joins_in_the_exponent_and_has_no_plane(line: NetworkObjective) -> None:
    probe = replace(PROBE, steps=400)
    found = numbers(state(line, None, UpdateRule(lr=0.5, momentum=0.9)), probe)
    assert found["critical_lr"] == pytest.approx(2 * 1.9 / 2, rel=0.02)  # (2 + 2 b) / a
    assert found["stable"] == 1
    assert "second_moment_radius" not in found and "in_plane" not in found


def test_a_preconditioner_scales_the_curvatures(line: NetworkObjective) -> None:
    rule = UpdateRule(lr=0.01, preconditioner=torch.tensor([0.04], dtype=torch.float64))
    found = numbers(state(line, 1, rule))
    assert found["sharpness"] == pytest.approx(2 / 0.04)
    assert found["second_moment_radius"] == pytest.approx(0.65625, abs=1e-12)  # lr / p = .25


@pytest.mark.parametrize(
    "rule",
    [
        None,
        UpdateRule(lr=0.0),
        UpdateRule(lr=torch.ones(1), coupled_decay=0.1),
        UpdateRule(lr=0.1, preconditioner=torch.full((1,), math.nan)),
        UpdateRule(lr=0.1, coupled_decay=0.1, preconditioner=torch.ones(1)),
    ],
)
def test_where_the_step_is_not_known_the_point_is_measured_and_no_region(
    line: NetworkObjective, rule: UpdateRule | None
) -> None:
    found = numbers(state(line, 1, rule))
    assert found["sharpness"] == pytest.approx(2) and "lyapunov" not in found
    assert "no region" in PROBE.finding({f"linear_stability/{tag}": v for tag, v in found.items()})


def test_batch_norm_is_seen_through_its_running_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    data = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    both = [NetworkObjective(model, nn.functional.cross_entropy, data, batch_norm=b) for b in ("train", "eval")]  # type: ignore[arg-type]
    w = both[0].weights
    found = [
        PROBE.measure(Snapshot(0, w, lambda _, loss=loss: loss, UpdateRule(lr=0.1), batch_size=2)) for loss in both
    ]
    for name in ("sharpness", "lyapunov", "critical_lr"):
        assert found[0][f"linear_stability/{name}"] == found[1][f"linear_stability/{name}"]


def test_weights_that_diverged_are_not_measured(line: NetworkObjective) -> None:
    broken = Snapshot(0, torch.full((1,), math.inf), lambda _: line, UpdateRule(lr=0.1))
    values = PROBE.measure(broken)
    assert set(values) == {"cost/linear_stability/seconds"} and PROBE.finding({}) == ""


def test_a_landscape_has_no_examples() -> None:
    bowl = Quadratic(torch.ones(3))
    with pytest.raises(SettingError, match="Quadratic has no examples"):
        PROBE.measure(Snapshot(0, torch.ones(3), lambda _: bowl))


def test_a_saturated_softmax_has_no_curvature_and_no_critical_learning_rate() -> None:
    torch.manual_seed(0)
    data = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3
    loss = NetworkObjective(nn.Linear(3, 3).double(), nn.functional.cross_entropy, data)
    for rule in (UpdateRule(lr=1.0), None):
        found = numbers(Snapshot(0, loss.weights * 1e8, lambda _: loss, rule, batch_size=4))
        assert found["sharpness"] == found["non_uniformity"] == 0
        assert rule is None or (math.isnan(found["critical_lr"]) and math.isnan(found["critical_lr_mean_square"]))
        told = {f"linear_stability/{tag}": v for tag, v in found.items() if math.isfinite(v)}
        assert "no curvature at these weights" in PROBE.finding(told)


def said(found: dict[str, float]) -> str:
    return PROBE.finding({f"linear_stability/{tag}": v for tag, v in found.items()})


def test_the_finding_says_what_kind_of_sharpness_it_is(line: NetworkObjective) -> None:
    rule = UpdateRule(lr=1e-6, preconditioner=torch.tensor([0.04], dtype=torch.float64))
    text = said(numbers(state(line, 1, rule)))
    assert "(preconditioned sharpness 50" in text and "lr = 0.00 x" not in text and "e-0" in text
    assert "preconditioned" not in said(numbers(state(line, 1, UpdateRule(lr=0.25))))


def test_before_the_first_update_there_is_no_preconditioner(line: NetworkObjective) -> None:
    text = said(numbers(state(line, 1, UpdateRule(lr=0.1, preconditioner=torch.full((1,), math.nan)))))
    assert "there is no preconditioner before the first update" in text and "no linear update rule" not in text
    assert "no linear update rule" in said(numbers(state(line, 1, None)))


def test_in_a_notebook_it_says_what_a_run_says_and_without_an_optimiser_the_point_alone(line: NetworkObjective) -> None:
    result = linear_stability(state(line, 1, UpdateRule(lr=0.25)), steps=100, replicas=8)
    assert result.sentence() == said(result.numbers())
    assert len(result.figure(", step 3").axes) == 1 and result.figures().keys() == {"plane"}
    alone = linear_stability(line)
    assert alone.numbers()["sharpness"] == pytest.approx(2) and "no region" in alone.sentence()
    with pytest.raises(SettingError, match="Quadratic has no examples"):
        linear_stability(Quadratic(torch.ones(3)), torch.ones(3))


def test_the_finding_says_where_epochs_were_replaced(line: NetworkObjective) -> None:
    replaced, kept = (numbers(state(line, 2, UpdateRule(lr=0.25), n, "epoch")) for n in (5000, 5))
    assert "drawn with replacement from the probe set (that of epochs is lower)" in said(replaced)
    assert "with replacement" not in said(kept)

"""Lines through points, and scaling laws over runs: closed forms, an interval that covers, refusals in words."""

import math
from pathlib import Path

import numpy as np
import pytest
from made_runs import made_run
from scipy.stats import linregress, t

from lab.compare import runs
from lab.compare.fit import Form, LineFit, fit
from lab.compare.laws import LAWS, ScalingLaw, fits, scaling_law
from lab.settings import SettingError

X = [1.0, 2.0, 5.0, 10.0, 30.0]


@pytest.mark.parametrize(
    ("form", "y"),
    [
        ("power", [3.0 * x**-0.7 for x in X]),
        ("exponential", [3.0 * math.exp(-0.7 * x) for x in X]),
        ("logarithmic", [3.0 - 0.7 * math.log(x) for x in X]),
    ],
)
def test_points_on_a_law_give_its_slope_without_an_error(form: Form, y: list[float]) -> None:
    made = fit(X, y, form=form)
    assert made.slope == pytest.approx(-0.7, rel=1e-9)
    assert made.high - made.low == pytest.approx(0, abs=1e-7)
    assert made.at(X) == pytest.approx(y, rel=1e-9)


def test_slope_and_interval_are_those_of_scipy() -> None:
    draw = np.random.default_rng(0)
    y = np.exp(0.5 * np.log(X) + 0.3 * draw.standard_normal(len(X)))
    made, peer = fit(X, list(y), level=0.9), linregress(np.log(X), np.log(y))
    reach = t.ppf(0.95, len(X) - 2) * peer.stderr
    assert (made.slope, made.intercept) == pytest.approx((peer.slope, peer.intercept), rel=1e-10)
    assert (made.low, made.high) == pytest.approx((peer.slope - reach, peer.slope + reach), rel=1e-10)


def test_the_interval_covers_the_slope_as_often_as_it_says() -> None:
    """400 draws at 95 %: 380 +- 4.4; beyond 4.6 standard errors in one run of 200,000."""
    draw, covered = np.random.default_rng(1), 0
    for _ in range(400):
        made = fit(X, list(np.exp(-0.7 * np.log(X) + draw.standard_normal(len(X)))))
        covered += made.low <= -0.7 <= made.high
    assert abs(covered - 380) < 20


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ([1, 2], [1.0, 2.0], "2 points: a line has no error below 3"),
        ([1, 2, -3, 4], [1.0, math.nan, 1.0, 0.0], "1 point: a line has no error below 3"),
        ([], [], "no points: a line has no error below 3"),
        ([2, 2, 2], [1.0, 2.0, 3.0], "3 points at one place: a line needs different ones"),
        ([1, 2, 3], [1.0], "3 values of x and 1 of y: expected as many"),
    ],
)
def test_what_no_line_goes_through_is_refused_in_words(x: list[float], y: list[float], says: str) -> None:
    with pytest.raises(SettingError) as refused:
        fit(x, y)
    assert str(refused.value) == says


def test_points_without_a_log_are_left_out_and_counted() -> None:
    made = fit([1, 2, 4, 0, 8], [1.0, 2.0, 4.0, 9.0, -1.0])
    assert (made.n, made.left_out) == (3, 2) and made.words() == "exponent 1 [1, 1], n = 3, 2 left out"


def test_a_law_has_a_line_for_each_group_and_says_where_there_is_none(tmp_path: Path) -> None:
    for size in (8, 32, "full"):
        for lr in (0.1, 0.2):
            examples = 300 if size == "full" else size
            value = lr * examples**0.5
            status = "failed" if (size, lr) == (8, 0.2) else "finished"
            values = {"data.batch_size": size, "optimizer.lr": lr}
            made_run(tmp_path / f"{size},{lr}", values, {"sharpness/lambda_max": value}, status=status)
    made_run(tmp_path / "lost", {"data.batch_size": 16}, {"sharpness/lambda_max": 1e9}, status="diverged")
    told = scaling_law(runs(tmp_path), "sharpness")
    assert told.sentence == (
        "lambda_max against data.batch_size, power law with 95 % intervals: lr=0.1: exponent 0.5 [0.5, 0.5], n = 3; "
        "lr=0.2: no line, 2 points: a line has no error below 3."
    )
    [axis] = told.figure.axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert sum(len(line.get_xdata()) == 50 for line in axis.get_lines()) == 1  # type: ignore[arg-type]


def test_escape_times_and_rates_are_held_against_b_over_lr(tmp_path: Path) -> None:
    for i, (size, lr) in enumerate(((10, 0.1), (10, 0.05), (30, 0.1))):
        time = math.exp(0.01 * size / lr)
        series = {"escape/time": time} if i else {"escape/rate": 1 / time}
        made_run(tmp_path / f"{i}", {"data.batch_size": size, "optimizer.lr": lr}, series)
    line = fits(runs(tmp_path), LAWS["escape"])[""]
    assert isinstance(line, LineFit) and line.slope == pytest.approx(0.01) and line.n == 3


@pytest.mark.parametrize(
    ("law", "says"),
    [
        ("growth", "there is no law 'growth'; expected one of escape, sharpness, accuracy, or a ScalingLaw"),
        ("escape", "escape time (steps) against data.batch_size / optimizer.lr: no finished run has both"),
        (ScalingLaw(("train/loss",), "optimizer.rate", "power", "loss"), "train"),
    ],
)
def test_a_law_that_no_run_has_is_refused_in_one_line(tmp_path: Path, law: str | ScalingLaw, says: str) -> None:
    made_run(tmp_path / "a", {}, {"train/loss": 1.0})
    with pytest.raises(SettingError) as refused:
        scaling_law(runs(tmp_path), law)
    assert says in str(refused.value) or "no finished run has both" in str(refused.value)

"""`python -m lab.selfcheck`: it passes here, and it fails where something is wrong."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from lab.curvature import operators
from lab.flows.langevin import Langevin
from lab.landscapes.base import Landscape
from lab.selfcheck import curvature, dynamics, main, noise
from lab.selfcheck.rows import Check, Row


def run(*checks: Check) -> int:
    """The exit code."""
    try:
        main([], checks or None)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_everything_passes_on_a_sound_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    told = capsys.readouterr().out
    assert "FAIL" not in told
    assert f"All {told.count(' pass ')} checks passed in " in told
    for what in ("X'X/N", "heavy ball", "Nesterov", "Adam", "edge of stability", "Gibbs", "escape from a saddle"):
        assert what in told


@pytest.mark.parametrize("measured", [1.0, 3.0, math.nan, math.inf], ids=str)
def test_a_broken_expectation_is_named_and_makes_the_exit_code_1(
    measured: float, capsys: pytest.CaptureFixture[str]
) -> None:
    def sound() -> Iterator[Row]:
        yield Row("sound", 2.0, 2.05, 0.1)

    def broken() -> Iterator[Row]:
        yield Row("broken", 2.0, measured, 0.1)

    assert run(sound, broken, sound) == 1
    told = capsys.readouterr().out
    assert told.count("pass") == 2
    assert "1 of 3 checks FAILED: broken." in told


def test_a_check_that_raises_is_a_failure_and_the_rest_is_still_checked(capsys: pytest.CaptureFixture[str]) -> None:
    def raises() -> Iterator[Row]:
        yield Row("before", 0.0, 0.0, 0.0)
        raise RuntimeError("no such [thing]")

    def after() -> Iterator[Row]:
        yield Row("after", 0.0, 0.0, 0.0)

    assert run(raises, after) == 1
    told = capsys.readouterr().out
    assert "raises: RuntimeError: no such [thing]" in told
    assert told.count("pass") == 2


@pytest.mark.parametrize(
    "check",
    [
        curvature.hessian_of_linear_regression,
        curvature.hessian_of_a_network,
        curvature.double_well_saddle,
        curvature.gauss_newton_matrix,
        curvature.clustered_spectrum,
    ],
)
def test_products_that_are_one_percent_off_are_found(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(operators.Hessian):
        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            return super().__matmul__(v) if v.dim() == 2 else 1.01 * super().__matmul__(v)

    assert run(check) == 0
    monkeypatch.setattr(curvature, "hessian", lambda loss, w, memory=None: Wrong(loss, w, memory=memory))
    assert run(check) == 1


def test_an_optimiser_whose_step_is_a_thousandth_longer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(torch.optim.SGD):
        def __init__(self, params: list[torch.Tensor], lr: float, **settings: float):
            super().__init__(params, lr=1.001 * lr, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "SGD", Longer)
    assert [row.passed for row in dynamics.thresholds()] == [False, False, False, False, True]


def test_a_temperature_that_is_a_tenth_too_high_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hotter(landscape: Landscape, temperature: float, lr: float) -> Langevin:
        return Langevin(landscape, 1.1 * temperature, lr)

    monkeypatch.setattr(dynamics, "Langevin", hotter)
    assert run(dynamics.gibbs_distribution) == 1


def test_noise_that_is_too_strong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # The mean escape moves by log(factor)/log a, 1 step of 179 for 5 %, within the tolerance of 1 %: here it takes 20 %.
    draw = torch.randn

    def stronger(*shape: int, **settings: object) -> torch.Tensor:
        return 1.2 * draw(*shape, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "randn", stronger)
    assert run(dynamics.saddle_escape) == 1


@pytest.mark.parametrize("check", [noise.lemma_one, noise.traces_of_the_noise])
def test_a_covariance_over_one_example_less_is_found(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(check) == 0
    right = noise.trace
    monkeypatch.setattr(noise, "batch_factor", lambda N, m, sampling: (N - m) / (m * N))
    monkeypatch.setattr(noise, "trace", lambda loss, w: replace(found := right(loss, w), value=found.value * 40 / 39))
    assert run(check) == 1

"""`python -m lab.selfcheck`: it passes here, and it fails where something is wrong."""

import math
from collections.abc import Iterator

import pytest
import torch

from lab import selfcheck
from lab.curvature import operators
from lab.selfcheck import Check, Row, main


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
        selfcheck.hessian_of_linear_regression,
        selfcheck.hessian_of_a_network,
        selfcheck.double_well_saddle,
        selfcheck.gauss_newton_matrix,
        selfcheck.clustered_spectrum,
    ],
)
def test_products_that_are_one_percent_off_are_found(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(operators.Hessian):
        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            return super().__matmul__(v) if v.dim() == 2 else 1.01 * super().__matmul__(v)

    assert run(check) == 0
    monkeypatch.setattr(selfcheck, "hessian", lambda loss, w, memory=None: Wrong(loss, w, memory=memory))
    assert run(check) == 1


def test_an_optimiser_whose_step_is_a_thousandth_longer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(torch.optim.SGD):
        def __init__(self, params: list[torch.Tensor], lr: float, **settings: float):
            super().__init__(params, lr=1.001 * lr, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "SGD", Longer)
    assert [row.passed for row in selfcheck.thresholds()] == [False, False, False, False, True]


@pytest.mark.parametrize("check", [selfcheck.gibbs_distribution, selfcheck.saddle_escape])
def test_noise_that_is_too_strong_is_found(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    # <x U'> = T grows by 10 %. The mean escape moves by log(factor)/log a, 1 step of 179 for 5 %, within the tolerance of
    # 1 %: there it takes 20 %.
    factor = 1.05 if check is selfcheck.gibbs_distribution else 1.2
    draw = torch.randn

    def stronger(*shape: int, **settings: object) -> torch.Tensor:
        return factor * draw(*shape, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "randn", stronger)
    assert run(check) == 1

"""Traces of any operator: closed forms, unbiasedness, coverage of the reported error, and what is refused.

Statistical tests have fixed seeds. Where a mean is held to 4 standard errors the false-alarm rate would be 6e-5; where the
share of 300 intervals of 95 % is held to 0.90 .. 0.99 it would be below 1e-3 (binomial).
"""

import pytest
import torch
from torch import Tensor
from traced_networks import (
    DOUBLE,
    seeded,
)

from lab.curvature.operators import LinearOperator, hessian
from lab.curvature.trace import hessian_trace, trace
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic

unconverged = pytest.mark.filterwarnings("ignore:trace not converged")


def operator_of(matrix: Tensor) -> LinearOperator:
    return LinearOperator(len(matrix), lambda v: matrix @ v, dtype=matrix.dtype, device=matrix.device)


def rotated(eigenvalues: Tensor) -> Tensor:
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=DOUBLE, generator=seeded(0))).Q
    return basis @ torch.diag(eigenvalues.to(DOUBLE)) @ basis.T


DECAYING = rotated(torch.arange(1, 121) ** -1.5)
FLAT = rotated(torch.linspace(-0.5, 2.5, 120))


def test_a_small_operator_is_summed_along_its_diagonal() -> None:
    found = trace(hessian(Quadratic(torch.tensor([2.0, 5.0, -1.0])), torch.zeros(3)))
    assert (found.value, found.error, found.matvecs, found.method, found.converged) == (6.0, 0.0, 3, "diagonal", True)
    assert hessian_trace(DoubleWell(), torch.zeros(2)).method == "diagonal"  # a landscape has no layers


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
@unconverged
def test_every_estimator_is_unbiased_and_its_interval_covers(method: str) -> None:
    # tol = 0 with a fixed budget: no stopping rule. The error of XTrace is a careful heuristic and only held from below.
    for matrix, budget in ((DECAYING, 30), (FLAT, 18)):
        truth, operator = float(matrix.trace()), operator_of(matrix)
        found = [
            trace(operator, method=method, tol=0, max_matvecs=budget, generator=seeded(seed))  # type: ignore[arg-type]
            for seed in range(300)
        ]
        values = torch.tensor([each.value for each in found], dtype=DOUBLE)
        assert abs(values.mean() - truth) < 4 * values.std() / 300**0.5
        inside = sum(abs(each.value - truth) <= 1.96 * each.error for each in found) / 300
        assert 0.90 < inside <= (1.0 if method == "xtrace" else 0.99), (method, inside)
        assert all(each.matvecs <= budget and not each.converged for each in found)


SPECTRA = {
    "40 equal": torch.cat([torch.ones(40), torch.full((160,), 0.01)]),
    "flat": torch.linspace(0.5, 1.5, 200),
    "outlier and bulk": torch.cat([torch.full((1,), 40.0), torch.linspace(0.5, 1.5, 199)]),
    "heavy-tailed": 1 / torch.arange(1, 201),
    "indefinite": torch.linspace(-0.5, 1.5, 200),
}


@pytest.mark.parametrize("seeds", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_an_error_of_5_percent_that_stopped_the_sampling_covers(spectrum: str, method: str, seeds: int) -> None:
    """Beyond 1, 2 and 4 standard errors lie 32 %, 4.6 % and .006 % of normal estimates. These are skew and stop when they
    look good: held to 36 %, 9 % and 1 %, plus 4 standard errors of the share. Stopped by the spread of the first few
    probes, 22 % and 7 % lay beyond 2 and 4 errors where a lone outlier stands beside a bulk."""
    values = SPECTRA[spectrum].double()
    operator, off = operator_of(rotated(values)), []
    for seed in range(seeds):
        found = trace(operator, method=method, tol=0.05, max_matvecs=600, generator=seeded(seed))  # type: ignore[arg-type]
        assert found.converged and found.error <= 0.05 * abs(found.value)
        off.append(abs(found.value - float(values.sum())) / max(found.error, 1e-9))
    for k, share in ((1, 0.36), (2, 0.09), (4, 0.01)):
        beyond = sum(each > k for each in off) / seeds
        assert beyond < share + 4 * (share * (1 - share) / seeds) ** 0.5, (k, beyond)


@unconverged
def test_hutchinson_has_the_variance_of_signs() -> None:
    # Var s'As = 2 sum over i != j of A_ij^2; a sum of 120 probes with 4 % error of the variance at most (3 sigma, chi2).
    off = FLAT - torch.diag(FLAT.diagonal())
    expected = (2 * off.square().sum()).sqrt() / 4000**0.5
    found = trace(operator_of(FLAT), method="hutchinson", tol=0, max_matvecs=4000)
    assert found.error == pytest.approx(float(expected), rel=0.04)


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_an_operator_of_low_rank_is_traced_exactly(method: str, dtype: torch.dtype) -> None:
    factor = torch.randn(200, 3, dtype=DOUBLE, generator=seeded(1))
    matrix = (factor @ torch.diag(torch.tensor([1.0, 1.0, -0.9], dtype=DOUBLE)) @ factor.T).to(dtype)
    found = trace(operator_of(matrix), method=method)  # type: ignore[arg-type]
    assert found.error == 0 and found.converged and found.matvecs <= 13
    assert found.value == pytest.approx(float(matrix.double().trace()), rel=1e-5 if dtype == torch.float32 else 1e-12)


def test_signs_that_happen_to_be_parallel_do_not_feign_a_low_rank() -> None:
    # A acts on two coordinates of 200: with pure signs five products are parallel once in 16 times, and the trace of the
    # span, +-2, would be reported as exact for a matrix of trace 0.
    matrix = torch.zeros(200, 200, dtype=DOUBLE)
    matrix[0, 1] = matrix[1, 0] = 1.0
    for seed in range(100):
        assert abs(trace(operator_of(matrix), method="xtrace", generator=seeded(seed)).value) < 1e-10


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_a_decaying_spectrum_is_where_taking_the_range_out_pays(method: str) -> None:
    truth = float(DECAYING.trace())
    found = trace(operator_of(DECAYING), method=method, max_matvecs=120)  # type: ignore[arg-type]
    assert found.converged and found.matvecs <= 60
    assert abs(found.value - truth) < 4 * found.error <= 4 * 0.02 * truth
    with pytest.warns(UserWarning, match="raise max_matvecs"):
        plain = trace(operator_of(DECAYING), method="hutchinson", max_matvecs=found.matvecs)
    assert plain.error > 2 * found.error


def test_automatic_chooses_by_the_spectrum() -> None:
    # sigma of one probe is 46 % of the trace in the first (XTrace), 2 % in the second (five probes do).
    assert trace(operator_of(DECAYING), tol=0.02, max_matvecs=100).method == "xtrace"
    dominant = torch.diag(torch.linspace(1, 2, 400, dtype=DOUBLE)) + 0.01
    assert trace(operator_of(dominant), tol=0.05).method == "hutchinson"
    assert trace(operator_of(rotated(torch.linspace(-1, 1.01, 60)))).method == "diagonal"  # cheaper than 10000 probes


def test_the_products_reported_are_those_spent() -> None:
    for matrix in (DECAYING, FLAT, FLAT.float()):
        for method in ("auto", "hutchinson", "hutch++", "xtrace"):
            operator = operator_of(matrix)
            found = trace(operator, method=method, tol=0.1)  # type: ignore[arg-type]
            assert found.matvecs == operator.matvecs <= 100


@unconverged
def test_probes_that_agree_do_not_stop_the_sampling() -> None:
    # 1 + one pair of entries off the diagonal: s'As is either of two values, two probes agree every second time.
    matrix = torch.eye(50, dtype=DOUBLE)
    matrix[0, 1] = matrix[1, 0] = 20.0
    found = [trace(operator_of(matrix), method="hutchinson", tol=0.02, generator=seeded(s)) for s in range(5)]
    assert all(each.matvecs >= 5 for each in found)


def test_a_zero_operator_has_trace_zero() -> None:
    for method in ("auto", "hutchinson", "hutch++", "xtrace"):
        found = trace(operator_of(torch.zeros(40, 40)), method=method)  # type: ignore[arg-type]
        assert (found.value, found.error, found.converged) == (0.0, 0.0, True)


@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_products_whose_squares_leave_float32_are_traced_all_the_same(method: str, scale: float) -> None:
    # Of an infinite norm every column was zero, the rank zero, and the trace "exactly" 0.
    matrix = torch.diag(torch.tensor([2.0, -1.0, 4.0] + 37 * [0.0])) * scale
    found = trace(operator_of(matrix), method=method)  # type: ignore[arg-type]
    assert found.value == pytest.approx(5 * scale, rel=1e-5)
    assert found.converged


@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutch++", "xtrace"])
@unconverged
def test_products_that_turn_nan_never_converge(method: str, size: int) -> None:
    operator = operator_of(torch.zeros(size, size))
    calls, zero = [0], operator._apply

    def apply(v: Tensor) -> Tensor:
        calls[0] += 1
        return zero(v) if calls[0] < 3 else torch.full_like(v, torch.nan)

    operator._apply = apply
    found = trace(operator, method=method)  # type: ignore[arg-type]
    assert found.value != found.value
    assert not found.converged


def test_not_converged_warns_once_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"trace not converged: .* by hutchinson after 20 products") as caught:
        found = trace(operator_of(DECAYING), method="hutchinson", tol=1e-4, max_matvecs=20)
    assert len(caught) == 1 and not found.converged and found.matvecs == 20


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of hutchinson"):
        trace(operator_of(FLAT), method="girard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 15 products"):
        trace(operator_of(FLAT), max_matvecs=10)
    with pytest.raises(ValueError, match="tol=-1"):
        trace(operator_of(FLAT), tol=-1)
    with pytest.raises(ValueError, match="expected auto, signs"):
        hessian_trace(DoubleWell(), torch.zeros(2), method="girard")  # type: ignore[arg-type]

"""Extreme eigenpairs against spectra that are known; the stopping rule has `test_stopping.py`."""

import pytest
import torch
from curvature.spectra import SPECTRA, check_residuals, rotated
from torch import Tensor

from lab.curvature.eigen import lanczos
from lab.curvature.operators import of_matrix


@pytest.mark.parametrize("turned", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("h", SPECTRA.values(), ids=SPECTRA)
def test_both_ends_are_exact_to_1e_9(h: Tensor, turned: bool) -> None:
    h = h.double()
    operator = rotated(h)[0] if turned else of_matrix(h)
    ends = lanczos(operator, top=1, bottom=1, tol=1e-10)
    assert float(ends.top.values) == pytest.approx(float(h.max()), abs=1e-9)
    assert float(ends.bottom.values) == pytest.approx(float(h.min()), abs=1e-9)
    assert ends.top.converged
    assert ends.bottom.converged
    assert ends.top.matvecs == ends.bottom.matvecs <= 60
    check_residuals(operator, ends)


@pytest.mark.parametrize("turned", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("name", ["spread", "outliers", "more negative than positive", "all negative"])
def test_several_at_each_end_come_in_order_with_their_vectors(name: str, turned: bool) -> None:
    h = SPECTRA[name].double()
    operator, a = rotated(h) if turned else (of_matrix(h), torch.diag(h))
    ends = lanczos(operator, top=3, bottom=2, tol=1e-10)
    ordered = h.sort(descending=True).values
    assert torch.allclose(ends.top.values, ordered[:3], rtol=0, atol=5e-8)
    assert torch.allclose(ends.bottom.values, ordered.flip(0)[:2], rtol=0, atol=5e-8)
    assert (a @ ends.top.vectors - ends.top.vectors * ends.top.values).norm() < 1e-3
    check_residuals(operator, ends)


@pytest.mark.parametrize("top", [2, 3, 4, 7])
def test_a_repeated_eigenvalue_is_found_as_often_as_it_occurs(top: int) -> None:
    # From b start vectors a Krylov space sees b copies; one more is drawn as long as all of them have found one.
    operator, _ = rotated(SPECTRA["repeated"].double())
    ends = lanczos(operator, top=top, bottom=1, tol=1e-10)
    truth = torch.tensor([4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)[:top]
    assert torch.allclose(ends.top.values, truth, atol=1e-9)
    assert ends.top.converged
    check_residuals(operator, ends)


def test_copies_in_a_large_spectrum_are_found_unless_they_are_not_asked_for() -> None:
    h = torch.cat([torch.tensor([9.0, 9.0, 9.0, 7.0]), torch.linspace(0, 3, 4996)]).double()
    ends = lanczos(of_matrix(h), top=4, tol=1e-6)
    assert torch.allclose(ends.top.values, h[:4], atol=1e-5)
    one_vector = lanczos(of_matrix(h), top=4, tol=1e-6, copies=False)
    assert one_vector.top.matvecs < ends.top.matvecs


def test_the_top_is_the_algebraically_largest_even_beside_a_larger_negative_one() -> None:
    h = torch.cat([torch.tensor([1.0]), torch.tensor([-100.0]), torch.linspace(-0.5, 0.5, 98)]).double()
    ends = lanczos(of_matrix(h), tol=1e-6)
    assert float(ends.top.values) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_the_zero_operator_has_eigenvalues_zero(size: int) -> None:
    ends = lanczos(of_matrix(torch.zeros(size, dtype=torch.float64)), top=1)
    assert ends.top.values.tolist() == [0.0]
    assert ends.top.errors.tolist() == ends.top.residuals.tolist() == [0.0]
    assert ends.top.converged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, -2.0])
def test_a_multiple_of_the_identity_takes_one_product(factor: float, dtype: torch.dtype) -> None:
    ends = lanczos(of_matrix(torch.full((50,), factor, dtype=dtype)), top=1)
    assert float(ends.top.values) == pytest.approx(factor, rel=1e-6)
    assert ends.top.converged
    assert ends.top.matvecs == 1


@pytest.mark.parametrize("h", [[-3.0], [5.0, -3.0], [0.0, 0.0], [2.0, 2.0]], ids=str)
def test_the_smallest_sizes_are_exact(h: list[float]) -> None:
    operator = of_matrix(torch.tensor(h, dtype=torch.float64))
    ends = lanczos(operator, top=len(h))
    assert ends.top.values.tolist() == pytest.approx(sorted(h, reverse=True), abs=1e-14)
    assert ends.top.converged
    if len(h) == 2:
        ends = lanczos(operator, top=1, bottom=1)
        assert [float(ends.top.values), float(ends.bottom.values)] == pytest.approx([max(h), min(h)], abs=1e-14)
    check_residuals(operator, ends)


def test_the_whole_spectrum_can_be_asked_for() -> None:
    h = torch.linspace(-2, 3, 12, dtype=torch.float64)
    operator, _ = rotated(h)
    ends = lanczos(operator, top=12, tol=1e-10)
    assert torch.allclose(ends.top.values, h.flip(0), atol=1e-10)
    ends = lanczos(operator, top=5, bottom=7, tol=1e-10)
    assert torch.allclose(torch.cat([ends.top.values, ends.bottom.values.flip(0)]), h.flip(0), atol=1e-10)
    ends = lanczos(operator, top=0, bottom=2, tol=1e-10)
    assert torch.allclose(ends.bottom.values, h[:2], atol=1e-10)
    assert ends.top.values.numel() == 0


# --- start vectors ----------


@pytest.mark.parametrize("k", [1, 3])
def test_a_warm_start_needs_fewer_products(k: int) -> None:
    # The next operator differs by a symmetric perturbation of relative size 1e-3, as between two measurements.
    h = torch.cat([torch.linspace(5, 10, 10), torch.randn(490, generator=torch.Generator().manual_seed(0))]).double()
    _, a = rotated(h)
    e = torch.randn(500, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    near = a + 1e-3 * 10 * (e + e.T) / 2 / 500**0.5
    first = lanczos(of_matrix(a), top=k)
    next_operator = of_matrix(near)
    cold, warm = lanczos(next_operator, top=k), lanczos(next_operator, top=k, start=first.start)
    assert warm.top.matvecs < cold.top.matvecs
    truth = torch.linalg.eigvalsh(near).flip(0)[:k]
    assert ((truth - warm.top.values).abs() <= 1e-3 * truth[0]).all()
    again = lanczos(next_operator, top=k, start=lanczos(next_operator, top=k, tol=1e-8).start)
    assert again.top.matvecs <= k + 4


BAD_STARTS = {
    "zero": torch.zeros(60, 1),
    "nan": torch.full((60, 2), torch.nan),
    "infinite": torch.full((60, 1), torch.inf),
    "dependent": torch.ones(60, 4) * torch.tensor([1.0, -2.0, 3.0, 1e-30]),
    "none": torch.zeros(60, 0),
    "tiny": torch.ones(60, 1) * 1e-200,
    "more than there are dimensions": torch.randn(60, 70, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("start", BAD_STARTS.values(), ids=BAD_STARTS)
def test_nothing_is_assumed_of_start_vectors(start: Tensor) -> None:
    h = SPECTRA["spread"].double()
    ends = lanczos(of_matrix(h), top=1, bottom=1, tol=1e-10, start=start.double())
    assert float(ends.top.values) == pytest.approx(3.0, abs=1e-9)
    assert float(ends.bottom.values) == pytest.approx(-1.0, abs=1e-9)
    check_residuals(of_matrix(h), ends)


def test_a_start_of_exact_eigenvectors_that_are_not_the_top_is_left() -> None:
    # Every residual is exactly zero: only a random vector leads out of the span of the start.
    h = torch.linspace(0, 5, 200, dtype=torch.float64)
    ends = lanczos(of_matrix(h), start=torch.eye(200, dtype=torch.float64)[:, [50, 60, 70]])
    assert float(ends.top.values) == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e20, 1e35])
def test_values_whose_squares_leave_float32_are_found_all_the_same(scale: float) -> None:
    # Squared residuals of 0, or infinite, would mean exact at once, or never.
    ends = lanczos(of_matrix(torch.linspace(-1, 1, 1000) * scale), tol=1e-4)
    assert float(ends.top.values) == pytest.approx(scale, rel=2e-4)
    assert ends.top.converged


def test_a_start_in_the_null_space_does_not_make_the_operator_zero() -> None:
    h, start = torch.linspace(0, 5, 200, dtype=torch.float64), torch.eye(200, dtype=torch.float64)[:, :1]
    ends = lanczos(of_matrix(h), start=start)
    assert float(ends.top.values) == pytest.approx(5.0, rel=1e-3)
    operator = of_matrix(h)
    with pytest.warns(UserWarning, match="not converged"):
        ends = lanczos(operator, start=start, max_matvecs=1)
    assert operator.matvecs == 1
    assert not ends.top.converged


def test_a_start_of_the_exact_eigenvectors_is_confirmed_by_a_few_random_vectors() -> None:
    # Two random vectors tell a value from a copy of it; with one alone the solve could never end.
    h = torch.cat([torch.tensor([20.0, 15.0, 10.0]), torch.linspace(0, 5, 200)]).double()
    ends = lanczos(of_matrix(h), top=3, start=torch.eye(203, dtype=torch.float64)[:, :3])
    assert ends.top.values.tolist() == pytest.approx([20.0, 15.0, 10.0], rel=1e-12)
    assert ends.top.converged
    assert ends.top.matvecs < 15


def test_ritz_values_exactly_a_tolerance_apart_are_no_singular_matrix() -> None:
    h = torch.cat([torch.tensor([1024.0, 1023.0]), torch.linspace(0, 500, 98)]).double()
    ends = lanczos(of_matrix(h), top=2, start=torch.eye(100, dtype=torch.float64)[:, :2], tol=2.0**-10)
    assert ends.top.values.tolist() == pytest.approx([1024.0, 1023.0], abs=1e-9)
    assert ends.top.converged


def test_a_start_of_another_dtype_is_cast() -> None:
    ends = lanczos(of_matrix(SPECTRA["spread"]), start=torch.ones(60, 1, dtype=torch.float64))
    assert ends.top.vectors.dtype == torch.float32
    assert ends.top.values.dtype == torch.float64


def test_the_result_is_a_function_of_operator_start_and_generator() -> None:
    operator, _ = rotated(SPECTRA["spread"].double())
    before = torch.get_rng_state()
    first, second = lanczos(operator, top=2), lanczos(operator, top=2)
    assert torch.equal(first.start, second.start)
    assert torch.equal(first.top.values, second.top.values)
    other = lanczos(operator, top=2, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first.start, other.start)
    assert torch.equal(torch.get_rng_state(), before)


# --- what went wrong is said ----------

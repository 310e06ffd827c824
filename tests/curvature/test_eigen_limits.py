"""Lanczos with few products or vectors, products that are not finite, arguments that are refused, and round-off."""

import warnings

import pytest
import torch
from curvature.spectra import CPU, SPECTRA, check_residuals
from torch import Tensor

from lab.curvature.eigen import lanczos, predicted
from lab.curvature.operators import LinearOperator, of_matrix


@pytest.mark.parametrize("top", [1, 4])
def test_not_converged_gives_one_warning_that_names_the_knob(top: int) -> None:
    h = torch.linspace(0, 1, 2000, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ends = lanczos(of_matrix(h), top=top, bottom=1, max_matvecs=12, tol=1e-6)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "raise max_matvecs=12 or tol" in message
    found, wanted = (float(message.split(before)[1].split()[0].rstrip(";")) for before in ("error ", "wanted "))
    assert found > wanted
    assert not ends.top.converged
    assert not ends.bottom.converged
    assert ends.top.matvecs == 12
    check_residuals(of_matrix(h), ends)


def test_the_budget_of_products_is_kept() -> None:
    operator = of_matrix(torch.linspace(0, 1, 2000, dtype=torch.float64))
    start = torch.randn(2000, 30, dtype=torch.float64)
    with pytest.warns(UserWarning, match="not converged"):
        lanczos(operator, top=5, bottom=5, max_matvecs=11, tol=1e-6, start=start)
    assert operator.matvecs == 11


@pytest.mark.parametrize(("top", "bottom", "vectors"), [(5, 0, 0), (5, 5, 3), (0, 8, 5)])
def test_pairs_that_the_products_do_not_suffice_for_are_nan(top: int, bottom: int, vectors: int) -> None:
    # Whole blocks only: top + bottom products need not give as many pairs. None is given at both ends.
    operator = of_matrix(torch.linspace(0, 1, 200, dtype=torch.float64))
    start = torch.randn(200, vectors, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="not converged: error [0-9]"):
        ends = lanczos(
            operator, top=top, bottom=bottom, max_matvecs=top + bottom, start=start if vectors else None, tol=1e-9
        )
    assert (len(ends.top.values), len(ends.bottom.values)) == (top, bottom)
    values = torch.cat([ends.top.values, ends.bottom.values])
    found = values.isfinite()
    assert 0 < found.sum() == ends.top.matvecs == operator.matvecs < top + bottom
    assert len(values[found].unique()) == found.sum()
    assert torch.equal(ends.start.isfinite().all(0), found)
    assert not ends.top.converged


def test_a_budget_of_one_product_is_kept_though_two_vectors_would_be_drawn() -> None:
    operator = of_matrix(torch.linspace(0, 1, 200, dtype=torch.float64))
    with pytest.warns(UserWarning, match="not converged"):
        lanczos(operator, above=0.5, max_matvecs=1)
    assert operator.matvecs == 1


@pytest.mark.parametrize("after", [0, 1, 3, 6, 20])
def test_a_product_that_is_not_finite_gives_nan_and_not_converged(after: int) -> None:
    h, calls = SPECTRA["spread"].double(), [0]

    def apply(v: Tensor) -> Tensor:
        calls[0] += 1
        return h * v if calls[0] <= after else torch.full_like(v, torch.nan)

    operator = LinearOperator(60, apply, dtype=torch.float64, device=CPU)
    with pytest.warns(UserWarning, match="not finite") as caught:
        ends = lanczos(operator, top=1, bottom=1, tol=0.0)
    assert len(caught) == 1
    assert ends.top.values.isnan().all()
    assert ends.bottom.values.isnan().all()
    assert not ends.top.converged
    assert not ends.bottom.converged
    assert operator.matvecs == after + 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"top": 0},
        {"top": -1, "bottom": 2},
        {"top": 61},
        {"top": 40, "bottom": 21},
        {"max_matvecs": 0},
        {"max_matvecs": 4, "top": 5},
        {"max_vectors": 6},
        {"tol": -1.0},
        {"tol": float("nan")},
        {"tol": float("inf")},
        {"start": torch.ones(60)},
        {"start": torch.ones(59, 1)},
    ],
    ids=lambda a: "+".join(a),
)
def test_bad_arguments_are_refused_by_name(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        lanczos(of_matrix(SPECTRA["spread"].double()), **arguments)


# --- what else may be asked for ----------


@pytest.mark.parametrize(("level", "count"), [(8.0, 5), (5.5, 10), (20.0, 1), (4.0, 12)])
def test_as_many_pairs_are_tracked_as_lie_above_a_level_and_one_below(level: float, count: int) -> None:
    h = torch.cat([torch.linspace(5, 10, 10), torch.tensor([4.5]), torch.linspace(0, 2, 989)]).double()
    ends = lanczos(of_matrix(h), above=level)
    assert len(ends.top.values) == count
    assert torch.allclose(ends.top.values, h.sort(descending=True).values[:count], atol=1e-2)
    assert (ends.top.values[:-1] > level).all()
    assert ends.top.values[-1] <= level


@pytest.mark.parametrize(("top", "copies", "vectors"), [(1, True, 7), (10, True, 22), (10, False, 16)])
def test_few_vectors_suffice_for_the_same_values(top: int, copies: bool, vectors: int) -> None:
    h = torch.cat([torch.linspace(5, 10, 10), torch.randn(1990, generator=torch.Generator().manual_seed(0))]).double()
    most = lanczos(of_matrix(h), top=top, tol=1e-4, copies=copies)
    least = lanczos(of_matrix(h), top=top, tol=1e-4, copies=copies, max_vectors=vectors)
    assert ((h.sort(descending=True).values[:top] - least.top.values).abs() <= 1e-3).all()
    assert least.top.converged
    assert most.top.matvecs <= least.top.matvecs
    check_residuals(of_matrix(h), least)


def test_a_coarse_operator_saves_products_of_the_true_one() -> None:
    h = torch.cat([torch.linspace(5, 10, 10), torch.randn(1990, generator=torch.Generator().manual_seed(0))]).double()
    operator, coarse = of_matrix(h), of_matrix(h.bfloat16().double())
    ends = lanczos(operator, coarse=coarse)
    assert float(ends.top.values) == pytest.approx(10.0, rel=1e-3)
    assert ends.top.matvecs == operator.matvecs < coarse.matvecs


def test_vectors_of_a_million_float32_entries_are_orthonormal_to_1e_5() -> None:
    # The sums behind the norms have 1e6 terms: in plain float32 they would lose three or four digits.
    size = 10**6
    h = torch.linspace(0, 1, size)
    h[:3] = torch.tensor([5.0, 4.0, 3.0])
    ends = lanczos(of_matrix(h), top=3, bottom=0, tol=1e-4)
    gram = ends.start.double().T @ ends.start.double()
    assert (gram - torch.eye(len(gram), dtype=torch.float64)).abs().max() < 1e-5
    assert torch.allclose(ends.top.values, torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64), atol=5e-4)
    assert ends.top.converged


def test_the_next_eigenvectors_are_predicted_by_the_last_two() -> None:
    # A plane that turns at a constant rate: its basis at t = 2 from those at 0 and 1, whatever their signs and rotation.
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64, generator=generator))[0]

    def basis(t: float) -> Tensor:
        angle = torch.tensor(0.05 * t, dtype=torch.float64)
        return torch.stack([frame[:, i] * angle.cos() + frame[:, i + 2] * angle.sin() for i in range(2)], dim=1)

    turn = torch.tensor([[0.6, -0.8], [-0.8, -0.6]], dtype=torch.float64)
    start = torch.linalg.qr(predicted(basis(1), basis(0) @ turn))[0]
    missed = torch.linalg.matrix_norm(basis(2) - start @ (start.T @ basis(2)), 2)
    assert float(missed) < 0.05**2 * 1.1  # the second difference of the angle's cosine and sine
    assert float(torch.linalg.matrix_norm(basis(2) - basis(1) @ (basis(1).T @ basis(2)), 2)) > 0.04


def test_no_error_is_smaller_than_the_round_off_of_the_products() -> None:
    h = torch.cat([torch.tensor([5.0]), torch.linspace(0, 1, 999)])
    top = lanczos(of_matrix(h), tol=1e-5).top
    assert float(top.errors) >= 5 * torch.finfo(torch.float32).eps
    assert abs(float(top.values) - 5.0) <= 2 * float(top.errors)

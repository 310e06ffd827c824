"""Traces, norms, cosines and distances of several matrices against their dense values."""

import pytest
import torch
from torch import Tensor

from lab.noise.comparison import Comparison, compare

SIZE = 60


@pytest.fixture(scope="module")
def matrices() -> list[Tensor]:
    """Symmetric, of decaying spectra; the second is near the first, the third indefinite, the fourth twice the first."""
    generator = torch.Generator().manual_seed(0)

    def drawn(decay: float) -> Tensor:
        q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
        return (q * decay ** torch.arange(SIZE, dtype=torch.float64)) @ q.T

    first, other = drawn(0.8), drawn(0.9)
    return [first, first + 0.3 * other, first - other, 2 * first]


def compared(matrices: list[Tensor], dtype: torch.dtype = torch.float64, **settings) -> Comparison:
    cast = [A.to(dtype) for A in matrices]
    return compare(lambda v: torch.stack([A @ v for A in cast]), torch.zeros(SIZE, dtype=dtype), **settings)


def truth(matrices: list[Tensor]) -> dict[str, Tensor]:
    stack = torch.stack(matrices)
    norms = stack.flatten(1).norm(dim=1)
    return {
        "traces": stack.diagonal(dim1=1, dim2=2).sum(1),
        "norms": norms,
        "cosines": stack.flatten(1) @ stack.flatten(1).T / norms[:, None] / norms,
        "distances": (stack[:, None] - stack[None]).flatten(2).norm(dim=2) / norms,
    }


def eigenvectors(A: Tensor, k: int) -> Tensor:
    return torch.linalg.eigh(A)[1][:, -k:]


@pytest.mark.parametrize("settings", [{"vectors": SIZE}, {"vectors": 40, "basis": torch.eye(SIZE)[:, :20]}])
def test_all_is_exact_where_the_vectors_would_be_no_fewer_than_P(matrices: list[Tensor], settings: dict) -> None:
    found = compared(matrices, **settings)
    for name, value in truth(matrices).items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-10, atol=1e-7)
        assert not getattr(found, f"{name.removesuffix('s')}_errors").any()
    assert found.vectors == SIZE


@pytest.mark.parametrize("deflated", [False, True])
def test_values_are_within_their_errors(matrices: list[Tensor], deflated: bool) -> None:
    """40 seeds: the mean square of error bars (value - truth)/error is about 1 for every quantity, 4 at most."""
    basis = torch.cat([eigenvectors(A, 3) for A in matrices], dim=1) if deflated else None
    expected, scores = truth(matrices), dict[str, list[Tensor]]()
    for seed in range(40):
        found = compared(matrices, basis=basis, vectors=12, generator=torch.Generator().manual_seed(seed))
        for name, value in expected.items():
            error = getattr(found, f"{name.removesuffix('s')}_errors")
            wanted = error > 1e-9
            scores.setdefault(name, []).append(((getattr(found, name) - value) / error)[wanted])
    for name, parts in scores.items():
        assert 0.3 < float(torch.cat(parts).square().mean()) < 1.7, name
        assert float(torch.cat(parts).abs().max()) < 6, name


def test_a_basis_of_eigenvectors_makes_the_errors_small(matrices: list[Tensor]) -> None:
    plain = compared(matrices, vectors=12)
    deflated = compared(matrices, vectors=12, basis=torch.cat([eigenvectors(A, 4) for A in matrices], dim=1))
    assert float(deflated.cosine_errors[0, 1]) < 0.2 * float(plain.cosine_errors[0, 1])


def test_multiples_have_a_cosine_of_one_without_error(matrices: list[Tensor]) -> None:
    found = compared(matrices, vectors=8)
    assert float(found.cosines[0, 3]) == pytest.approx(1, abs=1e-12)
    assert float(found.cosine_errors[0, 3]) < 1e-12
    assert float(found.distances[0, 3]) == pytest.approx(0.5, abs=1e-12)
    assert float(found.cosine_errors[0, 2]) > 1e-3


def test_basis_vectors_of_any_length_that_depend_or_are_not_finite_are_put_in_order(matrices: list[Tensor]) -> None:
    wanted = eigenvectors(matrices[0], 3)
    sloppy = torch.cat([5 * wanted, wanted @ torch.ones(3, 2).double(), torch.full((SIZE, 1), torch.nan)], dim=1)
    found = [compared(matrices, vectors=8, basis=basis) for basis in (wanted, sloppy)]
    torch.testing.assert_close(found[0].cosines, found[1].cosines, rtol=1e-9, atol=1e-12)
    assert found[0].vectors == found[1].vectors == 11


def test_equal_matrices_in_float32_are_apart_by_round_off_only(matrices: list[Tensor]) -> None:
    found = compared([matrices[0], matrices[0] * (1 + 1e-5)], dtype=torch.float32, vectors=8)
    assert float(found.distances[0, 1]) == pytest.approx(1e-5, rel=0.05)


def test_a_zero_matrix_has_no_cosine(matrices: list[Tensor]) -> None:
    found = compared([matrices[0], torch.zeros(SIZE, SIZE).double()], vectors=8)
    assert found.cosines[0, 1].isnan()
    assert float(found.distances[1, 0]) == 1
    assert float(found.norms[1]) == 0


def test_too_few_vectors_to_tell_an_error_are_refused(matrices: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="vectors=4: expected at least 5"):
        compared(matrices, vectors=4)


@pytest.mark.parametrize("size", [15, 60])  # by unit vectors, and by random ones beside a basis
@pytest.mark.parametrize("apart", [1e-6, 1e-9, 1e-12])
def test_the_distance_of_nearly_equal_matrices_does_not_cancel(apart: float, size: int) -> None:
    a = torch.linspace(1, 2, size, dtype=torch.float64)
    basis = torch.eye(size, dtype=torch.float64)[:, -5:]
    found = compare(lambda v: torch.stack([a * v, (1 + apart) * (a * v)]), a, basis=basis, vectors=20)
    assert float(found.distances[1, 0]) == pytest.approx(apart, rel=1e-3)
    assert float(found.distances[0, 0]) == 0

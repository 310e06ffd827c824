"""The one basis of all Krylov methods: A Q' = Q'T + N'C' on matrices, whatever the basis is begun with."""

import pytest
import torch
from torch import Tensor

from lab.curvature.basis import Basis, Rows, ritz
from lab.curvature.krylov import Krylov
from lab.curvature.operators import of_matrix

DOUBLE = torch.float64


def symmetric(size: int, seed: int = 0) -> Tensor:
    a = torch.randn(size, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return (a + a.T) / 2


def check(basis: Basis, a: Tensor) -> None:
    """Orthonormal rows, T = Q A Q', and the images of all rows that were multiplied."""
    Q, m = basis.rows, len(basis.t)
    assert torch.allclose(Q @ Q.T, torch.eye(len(Q), dtype=DOUBLE), atol=1e-12)
    assert torch.allclose(basis.t, Q[:m] @ a @ Q[:m].T, atol=1e-11)
    assert torch.allclose(Q.T @ basis.images, a @ Q[:m].T, atol=1e-11)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_images_of_a_basis_lie_in_it_and_in_the_next_block(block: int) -> None:
    a = symmetric(40)
    basis = Basis(of_matrix(a))
    for v in symmetric(40, 1)[:block]:
        assert basis.begin(v)
    for step in range(1, 8):
        basis.expand()
        check(basis, a)
        assert basis.matvecs == len(basis.t) == block * step and len(basis.following) == block
    off = basis.t[torch.ones_like(basis.t).triu(block + 1) > 0]
    assert float(off.abs().max()) < 1e-12  # block Lanczos: T is banded


def test_residuals_cost_no_product() -> None:
    a = symmetric(40)
    basis = Basis(of_matrix(a))
    basis.begin(torch.ones(40))
    for _ in range(10):
        basis.expand()
    theta, s = ritz(basis.t)
    v = basis.combined(s).T
    assert torch.allclose((a @ v - v * theta).norm(dim=0), (basis.images[10:] @ s).norm(dim=0), atol=1e-12)


def test_what_is_in_the_basis_already_is_not_begun_with() -> None:
    basis = Basis(of_matrix(symmetric(10)))
    assert basis.begin(torch.ones(10)) and not basis.begin(3 * torch.ones(10))
    assert not basis.begin(torch.zeros(10)) and not basis.begin(torch.full((10,), torch.inf))
    assert basis.begin(1e-200 * torch.arange(10, dtype=DOUBLE)) and len(basis) == 2
    check(basis, symmetric(10))


def test_an_invariant_subspace_leaves_no_next_block() -> None:
    a = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=DOUBLE))
    basis = Basis(of_matrix(a))
    basis.begin(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    basis.expand()
    basis.expand()
    assert len(basis.following) == 0 and ritz(basis.t)[0].tolist() == pytest.approx([3.0, 2.0])


def test_the_whole_space_is_a_basis_at_most() -> None:
    a = symmetric(5)
    basis = Basis(of_matrix(a))
    for v in symmetric(5, 1)[:2]:
        basis.begin(v)
    while len(basis.following):
        basis.expand()
    assert len(basis) == 5 and torch.allclose(ritz(basis.t)[0].flip(0), torch.linalg.eigvalsh(a))


def test_a_restart_keeps_the_wanted_ends_and_what_the_next_step_needs() -> None:
    a = symmetric(40)
    space = Krylov(of_matrix(a), torch.Generator().manual_seed(0))
    space.draw(2)
    for _ in range(8):
        space.expand()
    before = space.theta.clone()
    space.restart(2, 1, 12)
    kept = space.t.diagonal()
    assert torch.equal(kept[:2], before[:2]) and kept[-1] == before[-1] and len(space.following) == 2
    assert torch.allclose(space.rows @ space.rows.T, torch.eye(len(space), dtype=DOUBLE), atol=1e-12)
    space.expand()
    check(space, a)
    assert space.theta[0] > before[0] and space.theta[-1] < before[-1]


def test_a_product_that_is_not_finite_is_noticed() -> None:
    basis = Basis(of_matrix(torch.full((4,), torch.nan)))
    basis.begin(torch.ones(4))
    basis.expand()
    assert not basis.finite and len(basis.following) == 0 and basis.images.shape == (1, 1)


def test_rows_grow_and_are_combined() -> None:
    rows = Rows(of_matrix(torch.eye(3)))
    for i in range(70):
        rows.append(torch.full((3,), float(i)))
    rows.append(torch.ones(2, 3))
    assert len(rows) == 72 and rows.rows[:, 0].tolist() == [*range(70), 1, 1]
    total = torch.ones(1, 3)
    assert rows.combined(torch.tensor([[0.0], [2.0]]), total).tolist() == [[3.0, 3.0, 3.0]]

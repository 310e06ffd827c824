"""Linear operators: counting, shapes, the kept and the rebuilt Hessian, and the operators made of operators."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lab.curvature.eigen import lanczos
from lab.curvature.operators import (
    LinearOperator,
    block_diagonal,
    difference,
    gauss_newton,
    hessian,
    preconditioned,
    projected,
    residual,
    restricted,
    rounded,
    shifted,
)
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic
from lab.objective import NetworkObjective

DOUBLE = torch.float64


def network() -> tuple[NetworkObjective, torch.Tensor]:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, dtype=DOUBLE, generator=generator), torch.randint(2, (7,), generator=generator)
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (x, y), chunk_size=3)
    return loss, torch.randn(loss.num_params, dtype=DOUBLE, generator=generator)


def test_products_are_counted_and_a_block_is_its_columns() -> None:
    operator = hessian(Quadratic(torch.tensor([2.0, 5.0, -1.0])), torch.zeros(3))
    assert operator.matvecs == 0
    assert (operator @ torch.ones(3)).tolist() == [2.0, 5.0, -1.0]
    assert torch.equal(operator @ torch.eye(3)[:, :2], torch.diag(torch.tensor([2.0, 5.0, -1.0]))[:, :2])
    assert operator.matvecs == 3
    operator.dense()
    assert operator.matvecs == 6


def test_a_vector_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a vector of 2 entries; the operator acts on 3"):
        _ = hessian(Quadratic(torch.ones(3)), torch.zeros(3)) @ torch.ones(2)


@pytest.mark.parametrize("operator", [hessian, gauss_newton])
def test_kept_and_rebuilt_graphs_agree(operator: Callable) -> None:
    loss, w = network()
    kept, rebuilt = operator(loss, w), operator(loss, w, memory=0)
    assert kept.kept
    assert not rebuilt.kept
    assert (kept.dense() - rebuilt.dense()).abs().max() < 1e-14
    assert float(kept.value) == pytest.approx(float(rebuilt.value), rel=1e-14)
    assert (kept.gradient - rebuilt.gradient).abs().max() < 1e-15


@pytest.mark.parametrize("operator", [hessian, gauss_newton])
def test_value_and_gradient_come_with_the_operator(operator: Callable) -> None:
    loss, w = network()
    for memory in (0, None):
        H = operator(loss, w, memory=memory)
        assert float(H.value) == pytest.approx(float(loss.value(w)), rel=1e-14)
        assert (H.gradient - loss.grad(w)).abs().max() < 1e-15
        assert not H.gradient.requires_grad
        assert not (H @ w).requires_grad


def test_a_gauss_newton_matrix_is_that_at_w_even_if_w_is_changed_afterwards() -> None:
    loss, w = network()
    for memory in (0, None):
        G = gauss_newton(loss, w, memory=memory)
        before = G.dense()
        w.add_(1.0)
        assert torch.equal(G.dense(), before)


def test_the_hessian_is_that_at_w_even_if_w_is_changed_afterwards() -> None:
    # The optimiser updates in place: an operator that shares memory with w would change under the solver.
    for memory in (0, None):
        w = torch.tensor([0.5, 0.5], dtype=DOUBLE)
        H = hessian(DoubleWell(), w, memory=memory)
        before = H.dense()
        w.add_(1.0)
        assert torch.equal(H.dense(), before)


@pytest.mark.parametrize("shift", [0.0, 0.3, torch.tensor([0.1, 0.2, 0.3])], ids=["none", "number", "vector"])
def test_preconditioned_has_the_eigenvalues_of_P_inverse_times_A_plus_shift(shift: float | torch.Tensor) -> None:
    a = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 1.0]], dtype=DOUBLE)
    p = torch.tensor([0.5, 2.0, 10.0])  # float32, as an optimiser keeps it beside a float64 operator
    operator = LinearOperator(3, lambda v: a @ v, dtype=DOUBLE, device=torch.device("cpu"))
    scaled = preconditioned(operator, p, shift)
    dense = scaled.dense()
    assert dense.dtype == DOUBLE
    assert torch.allclose(dense, dense.T, atol=1e-15)
    added = torch.as_tensor(shift, dtype=DOUBLE) * torch.ones(3, dtype=DOUBLE)
    truth = torch.linalg.eigvals(torch.diag(1 / p.double()) @ (a + torch.diag(added))).real.sort().values
    assert torch.allclose(torch.linalg.eigvalsh(dense), truth, rtol=1e-6)  # the root of p is taken in float32
    assert operator.matvecs == scaled.matvecs == 3


@pytest.mark.parametrize("entry", [0.0, -1.0, float("nan")])
def test_a_preconditioner_that_is_not_positive_is_refused(entry: float) -> None:
    operator = hessian(Quadratic(torch.ones(2)), torch.zeros(2))
    with pytest.raises(ValueError, match="a preconditioner must be positive"):
        preconditioned(operator, torch.tensor([1.0, entry]))


# --- operators made of operators, on a matrix of random entries ----------


def matrix(size: int = 6, seed: int = 0) -> tuple[LinearOperator, torch.Tensor]:
    a = torch.randn(size, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    a = a + a.T
    return LinearOperator(size, lambda v: a @ v, dtype=DOUBLE, device=torch.device("cpu")), a


def same(operator: LinearOperator, truth: torch.Tensor) -> bool:
    """Entries of order 1, sums of at most 6 products: round-off below 1e-14."""
    return torch.allclose(operator.dense(), truth, rtol=0, atol=1e-14)


def test_difference_is_entrywise_and_costs_a_product_of_each() -> None:
    (first, a), (second, b) = matrix(), matrix(seed=1)
    assert same(difference(first, second), a - b)
    assert first.matvecs == second.matvecs == 6
    with pytest.raises(ValueError, match="on 6 and on 2 entries"):
        difference(first, matrix(2)[0])


def test_residual_costs_a_product_of_the_hessian_and_one_of_gauss_newton() -> None:
    loss, w = network()
    truth = hessian(loss, w).dense() - gauss_newton(loss, w).dense()
    assert (residual(loss, w).dense() - truth).abs().max() < 1e-15


@pytest.mark.parametrize("shift", [-0.5, torch.tensor(2.0), torch.arange(6)], ids=["number", "scalar", "vector"])
def test_shifted_adds_to_the_diagonal(shift: float | torch.Tensor) -> None:
    operator, a = matrix()
    assert same(shifted(operator, shift), a + torch.diag(torch.as_tensor(shift, dtype=DOUBLE) * torch.ones(6)))
    with pytest.raises(ValueError, match=r"a shift of shape \(3,\); expected a number or \(6,\)"):
        shifted(operator, torch.ones(3))


@pytest.mark.parametrize("k", [0, 1, 4, 6])
def test_projected_keeps_the_subspace_or_its_complement(k: int) -> None:
    operator, a = matrix()
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)))[0][:, :k]
    inside = basis @ basis.T
    outside = torch.eye(6, dtype=DOUBLE) - inside
    assert same(projected(operator, basis), inside @ a @ inside)
    assert same(projected(operator, basis, complement=True), outside @ a @ outside)
    assert operator.matvecs == 12


def test_deflation_by_the_top_eigenvectors_leaves_the_next() -> None:
    operator, a = matrix()
    operator, a = shifted(operator, 10.0), a + 10 * torch.eye(6, dtype=DOUBLE)  # deflated directions have eigenvalue 0
    values, vectors = torch.linalg.eigh(a)
    deflated = projected(operator, vectors[:, -2:], complement=True)
    assert float(lanczos(deflated, tol=1e-12).top.values[0]) == pytest.approx(float(values[-3]), rel=1e-11)


def test_a_basis_that_is_not_orthonormal_is_refused() -> None:
    operator, _ = matrix()
    with pytest.raises(ValueError, match=r"U'U differs from the identity by 3; orthonormalise it"):
        projected(operator, 2 * torch.eye(6)[:, :2])
    with pytest.raises(ValueError, match=r"a basis of shape \(6,\)"):
        projected(operator, torch.eye(6)[0])
    with pytest.raises(ValueError, match="U'U differs from the identity by nan"):
        projected(operator, torch.full((6, 1), torch.nan))


@pytest.mark.parametrize(
    ("entries", "places"),
    [(torch.tensor([4, 0, 5]), [4, 0, 5]), (slice(1, 4), [1, 2, 3]), ([slice(0, 1), slice(4, 6)], [0, 4, 5])],
    ids=["index", "slice", "slices"],
)
def test_restricted_is_the_principal_block(entries: torch.Tensor | slice | list[slice], places: list[int]) -> None:
    operator, a = matrix()
    block = restricted(operator, entries)
    assert block.size == 3
    assert same(block, a[places][:, places])
    assert operator.matvecs == 3


@pytest.mark.parametrize(
    "entries", [[slice(0, 2), torch.tensor([4, 5])], [slice(0, 6)], [slice(i, i + 1) for i in range(6)]]
)
def test_block_diagonal_keeps_the_blocks_and_nothing_else(entries: list) -> None:
    operator, a = matrix()
    truth = torch.zeros(6, 6, dtype=DOUBLE)
    for block in entries:
        places = torch.arange(6)[block]
        truth[places[:, None], places] = a[places[:, None], places]
    assert same(block_diagonal(operator, entries), truth)
    assert operator.matvecs == 6 * len(entries)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (torch.tensor([0, 6]), "entries from 0 to 6; the operator acts on 6"),
        (torch.tensor([-1, 2]), "entries from -1 to 2"),
        (torch.tensor([1, 1]), "named twice"),
        (torch.tensor([], dtype=torch.long), "expected at least one place"),
        (torch.tensor([True, False]), "expected at least one place"),
        (slice(6, 9), "expected at least one place"),
        ([], "expected at least one place"),
    ],
    ids=str,
)
def test_entries_that_are_no_set_of_places_are_refused(entries: torch.Tensor | slice | list, message: str) -> None:
    operator, _ = matrix()
    with pytest.raises(ValueError, match=message):
        restricted(operator, entries)
    with pytest.raises(ValueError, match=message):
        block_diagonal(operator, [entries])


def test_blocks_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="named twice"):
        block_diagonal(matrix()[0], [slice(0, 3), slice(2, 6)])


def test_the_hessian_of_a_layer_is_that_of_a_network_with_the_others_frozen() -> None:
    loss, w = network()
    layers = loss.layout.layers()
    blocks = [hessian(loss, w).dense()[place, place] for place in layers.values()]
    assert torch.equal(block_diagonal(hessian(loss, w), list(layers.values())).dense(), torch.block_diag(*blocks))
    with torch.no_grad():
        for p, piece in zip(loss.model.parameters(), loss.layout.unflatten(w).values(), strict=True):
            p.copy_(piece)
    loss.model[0].requires_grad_(False)  # type: ignore[index]
    last = NetworkObjective(loss.model, loss.criterion, (loss.x, loss.y))
    truth = hessian(last, last.weights).dense()
    for entries in (loss.layout.select("2.*"), layers["2"]):
        assert (restricted(hessian(loss, w), entries).dense() - truth).abs().max() < 1e-14


def test_products_in_bfloat16_are_near_those_in_float32_and_take_vectors_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 20, generator=generator), torch.randint(3, (64,), generator=generator)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 3))
    loss = NetworkObjective(model, nn.CrossEntropyLoss(), (x, y))
    H, H16 = hessian(loss, loss.weights), rounded(loss, loss.weights)
    v = torch.randn(loss.num_params, generator=generator)
    assert (H16 @ v).dtype == torch.float32
    # bfloat16 has 8 bits: 4e-3 for one rounding, a few of them in a product
    assert 0 < float((H @ v - H16 @ v).norm() / (H @ v).norm()) < 2e-2

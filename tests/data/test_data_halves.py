"""Top to bottom against a direct computation by eigenvectors of the covariance, and what is known of its networks."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lab.data.halves import half_square, halves_loss, top_to_bottom


@pytest.mark.parametrize(("n", "d", "k"), [(200, 8, 2), (50, 8, 2)])
def test_scores_are_those_of_the_eigenvectors_of_the_covariance(n: int, d: int, k: int) -> None:
    pixels = load_digits().images[:n] / 16
    for got, half, size in zip(top_to_bottom(n, d, k), (pixels[:, :4], pixels[:, 4:]), (d, k), strict=True):
        flat = half.reshape(n, 32) - half.reshape(n, 32).mean(0)
        _, vectors = np.linalg.eigh(flat.T @ flat)
        top = vectors[:, ::-1][:, :size]
        top = top * np.where(top[np.abs(top).argmax(0), np.arange(size)] > 0, 1, -1)
        scores = flat @ top
        assert got.dtype == torch.float64 and got.shape == (n, size)
        # Eigenvectors of nearby eigenvalues mix by round-off over the gap: 1e-15 / 1e-3.
        np.testing.assert_allclose(got, scores / scores.std(), atol=1e-10)
        assert float(got.std(correction=0)) == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(got.mean(0), 0, atol=1e-13)
        assert float(got.square().sum(0).diff().max()) < 0, "components in order of their variance"


def test_the_network_is_that_of_its_formula_with_the_parameters_in_their_order() -> None:
    objective = halves_loss(50, 8, 2, hidden=3)
    assert objective.num_params == 3 * (8 + 2 + 1) + 2
    w = torch.randn(objective.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    W1, b1, W2, b2 = w[:24].view(3, 8), w[24:27], w[27:33].view(2, 3), w[33:]
    X, Y = top_to_bottom(50, 8, 2)
    f = torch.tanh(X @ W1.T + b1) @ W2.T + b2
    loss = 0.5 * (f - Y).square().sum() / 50
    assert float(objective.value(w)) == pytest.approx(float(loss), rel=1e-14)
    assert objective.value(w).dtype == torch.float64
    assert float(half_square(f, Y)) == pytest.approx(float(loss), rel=1e-14)


def test_without_a_network_the_loss_is_half_the_spread_of_the_targets() -> None:
    """At w = 0 it is mean |y|^2 / 2 = k / 2: the targets are centred and of mean square 1."""
    objective = halves_loss(200, 8, 2, hidden=2)
    assert float(objective.value(torch.zeros(objective.num_params, dtype=torch.float64))) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [((1, 1, 1), "n=1"), ((1798, 8, 2), "n=1798"), ((50, 0, 2), "d=0"), ((50, 8, 33), "k=33"), ((5, 5, 1), "d=5")],
)
def test_what_there_is_not_is_refused(sizes: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        top_to_bottom(*sizes)

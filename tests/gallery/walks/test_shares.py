"""Principal components of random walks: exact limits against eigenvalues, Monte Carlo against THEORY F2."""

import numpy as np
import pytest
import torch

from lab.gallery.walks.lattice import FreeWalk, Kind
from lab.gallery.walks.shares import (
    components,
    cosines,
    first_order_share,
    limit_shares,
    mean_share,
    positions,
    walk_shares,
)
from lab.streams import stream

FINITE = {3: 0.9228, 5: 0.8567, 10: 0.8083, 20: 0.7812, 50: 0.7679, 200: 0.7620}
"""F2: the mean share of two centred components after 1000 steps of one coordinate each; tolerance .006."""


def gram(points: int) -> np.ndarray:
    """min(i, j), i, j = 0 .. points - 1: the mean of x_i . x_j for unit steps."""
    return np.minimum.outer(np.arange(points), np.arange(points)).astype(float)


def test_limits_are_the_eigenvalues_of_the_mean_gram_matrix() -> None:
    points = 101
    centre = np.eye(points) - 1 / points
    values = np.linalg.eigvalsh(centre @ gram(points) @ centre)[::-1][: points - 1]
    assert np.abs(limit_shares(points).numpy() - values / values.sum()).max() < 3e-14


def test_limits_of_long_walks() -> None:
    """F2: .607928 and .759911 at 1001 points. 6 / (pi k)^2 to first order."""
    shares = limit_shares(1001)
    assert (float(shares[0]), float(shares[:2].sum())) == pytest.approx((0.607928, 0.759911), abs=1e-6)
    k = torch.arange(1, 6)
    assert limit_shares(100_000)[:5].tolist() == pytest.approx((6 / (torch.pi * k) ** 2).tolist(), rel=1e-6)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-12)


def test_components_of_the_limit_are_its_eigenvectors() -> None:
    points = 40
    centre = np.eye(points) - 1 / points
    matrix, waves = centre @ gram(points) @ centre, cosines(points, 3).numpy()
    values = limit_shares(points)[:3].numpy() * np.trace(matrix)
    assert matrix @ waves == pytest.approx(waves * values, abs=1e-10)
    assert (waves**2).mean(0) == pytest.approx([1, 1, 1])


def test_shares_are_those_of_a_plain_singular_value_decomposition() -> None:
    for walk in (FreeWalk(4, 30), FreeWalk(60, 12), FreeWalk(5, 9, "gaussian")):
        for centred in (True, False):
            shares = walk_shares(walk, stream(0, "test"), walks=3, top=3, centred=centred)
            x = positions(walk, 3, stream(0, "test"))
            for mine, points in zip(shares, x, strict=True):
                values = torch.linalg.svdvals(points - points.mean(0) if centred else points) ** 2
                assert mine.tolist() == pytest.approx((values[:3] / values.sum()).tolist(), abs=1e-12)


def test_positions_begin_at_the_origin_and_move_one_coordinate_at_a_time() -> None:
    x = positions(FreeWalk(6, 20), 4, stream(0, "test"))
    assert x.shape == (4, 21, 6)
    assert not x[:, 0].any()
    assert (x.diff(dim=1).abs().sum(2) == 1).all()


def test_the_first_order_in_one_over_d_is_that_of_gaussian_walks() -> None:
    """The error is of second order: .0017 at d = 20 (F2: .7812), a 25th of that at d = 100; the rest is sampling."""
    for d, second_order in ((20, 0.0017), (100, 0.0001)):
        share = mean_share(walk_shares(FreeWalk(d, 100, "gaussian"), stream(0, "test"), walks=600))
        assert abs(share.value - first_order_share(101, d)) < 4 * share.error + second_order
        if d == 20:
            assert share.value - float(limit_shares(101)[:2].sum()) > 4 * share.error, "the limit alone would do"


def test_all_components_together_hold_everything() -> None:
    assert first_order_share(6, 10, 5) == pytest.approx(1, abs=1e-12)
    assert walk_shares(FreeWalk(3, 9), stream(0, "test"), walks=4, top=3).sum(1).tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize("d", [3, 10])
def test_mean_share_in_few_dimensions(d: int) -> None:
    """F2 with 200 walks of 1000 steps; single walks differ by .04 to .06, so 4 standard errors are about .015."""
    share = mean_share(walk_shares(FreeWalk(d, 1000), stream(0, "test"), walks=200))
    assert abs(share.value - FINITE[d]) < 0.006 + 3 * share.error
    assert share.error == pytest.approx({3: 0.042, 10: 0.057}[d] / 200**0.5, rel=0.3)


def test_many_dimensions_are_the_limit() -> None:
    """F2: 2000 dimensions, 201 points, 20 walks: .6075 and .7599, standard errors .0012 and .0006."""
    shares = walk_shares(FreeWalk(2000, 200), stream(0, "test"), walks=20)
    limit = limit_shares(201)
    assert float(shares[:, 0].mean()) == pytest.approx(float(limit[0]), abs=4 * 0.0012)
    assert float(shares.sum(1).mean()) == pytest.approx(float(limit[:2].sum()), abs=4 * 0.0006 + 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "share"), FINITE.items())
def test_mean_share_at_full_size(d: int, share: float) -> None:
    """F2: 1000 walks (200 in 200 dimensions), tolerance .006."""
    found = walk_shares(FreeWalk(d, 1000), stream(0, "test"), walks=1000 if d < 200 else 200)
    assert mean_share(found).value == pytest.approx(share, abs=0.006)
    if d == 10:
        assert float((found.sum(1) > 0.8).double().mean()) == pytest.approx(0.607, abs=0.06)
        assert float(found.sum(1).std()) == pytest.approx(0.057, rel=0.1)


@pytest.mark.slow
def test_gaussian_steps_have_the_same_shares() -> None:
    """F2: .8067 +- .0018 in 10 dimensions."""
    found = mean_share(walk_shares(FreeWalk(10, 1000, "gaussian"), stream(0, "test"), walks=1000))
    assert found.value == pytest.approx(0.8067, abs=0.006)


def test_the_components_of_a_walk_in_many_dimensions_are_cosines() -> None:
    found = components(FreeWalk(1000, 300), stream(0, "test"))
    assert (found * cosines(301)).mean(0).min() > 0.97


@pytest.mark.parametrize("kind", ["one_coordinate", "gaussian"])
def test_slips_are_told(kind: Kind) -> None:
    with pytest.raises(ValueError, match="fewer components"):
        walk_shares(FreeWalk(2, 10, kind), stream(0, "test"), walks=2, top=3)
    with pytest.raises(ValueError, match="between 1 and points - 1"):
        first_order_share(5, 10, 5)

"""Walks in d dimensions: exact moments by enumeration of all walks, limits by F2, walkers within standard errors."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from lab.gallery.walks.lattice import Ends, FreeWalk, Kind, steps, wander
from lab.streams import stream


def every_end(d: int, n: int, kind: Kind) -> np.ndarray:
    """(walks, d) the end of every one of the equally likely walks of n steps."""
    if kind == "one_coordinate":
        moves = np.concatenate((np.eye(d), -np.eye(d)))
    else:
        moves = np.array(list(itertools.product((-1, 1), repeat=d)))
    return np.array([sum(walk) for walk in itertools.product(moves, repeat=n)])


def variance_of_square(walk: FreeWalk) -> float:
    """Var |x_n|^2. Exact: twice the sum over pairs of steps of E (s_i . s_j)^2, plus that of the steps' own lengths."""
    pairs = walk.n if walk.kind == "gaussian" else walk.n - 1
    return 2 * walk.step_square**2 * walk.n * pairs / walk.d


@pytest.mark.parametrize("kind", ["one_coordinate", "all_coordinates"])
@pytest.mark.parametrize(("d", "n"), [(1, 5), (2, 4), (3, 3)])
def test_moments_are_those_of_all_walks_counted(d: int, n: int, kind: Kind) -> None:
    walk, ends = FreeWalk(d, n, kind), every_end(d, n, kind)
    squares = (ends**2).sum(1)
    assert squares.mean() == pytest.approx(walk.mean_square(), rel=1e-12)
    assert squares.var() == pytest.approx(variance_of_square(walk), rel=1e-12)
    if d > 1:
        away = ends[(ends != 0).any(1)]
        unit = away / np.linalg.norm(away, axis=1, keepdims=True)
        assert ((unit @ unit.T) ** 2).mean() == pytest.approx(1 / d, rel=1e-12)


def test_the_gaussian_walk_has_a_chi_squared_law() -> None:
    walk = FreeWalk(7, 30, "gaussian")
    law = stats.chi2(7, scale=30)
    assert (walk.mean_square(), variance_of_square(walk)) == pytest.approx((law.mean(), law.var()))


def test_mean_median_and_spread_are_those_of_the_density() -> None:
    """F2: n = 1000 in 10 dimensions, median 30.564 and mean 30.843; all coordinates at once: median 96.653."""
    walk = FreeWalk(10, 1000)
    r = np.linspace(0, 100, 200_001)
    density = walk.density(r)
    mean = np.trapezoid(density * r, r)
    assert walk.mean() == pytest.approx(mean, rel=1e-9) == pytest.approx(30.843, abs=1e-3)
    assert np.trapezoid(density[r <= walk.median()], r[r <= walk.median()]) == pytest.approx(0.5, abs=1e-4)
    assert walk.median() == pytest.approx(30.564, abs=1e-3)
    assert walk.spread() == pytest.approx(np.sqrt(np.trapezoid(density * r**2, r) - mean**2) / mean, rel=1e-6)
    assert FreeWalk(10, 1000, "all_coordinates").median() == pytest.approx(96.653, abs=1e-3)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_the_density_of_cosines_has_variance_one_over_d(d: int) -> None:
    angle = (np.arange(200_000) + 0.5) * np.pi / 200_000  # c = cos(angle): the density of d = 2 is infinite at +-1
    weight = FreeWalk(d, 1000).cosine_density(np.cos(angle)) * np.sin(angle) * np.pi / 200_000
    assert weight.sum() == pytest.approx(1, abs=1e-6)
    assert weight @ np.cos(angle) ** 2 == pytest.approx(1 / d, abs=1e-6)


@pytest.mark.parametrize("kind", ["one_coordinate", "all_coordinates", "gaussian"])
def test_walkers_get_as_far_as_theory_says(kind: Kind) -> None:
    """Exact mean square at every time, exact mean square cosine; spread, mean and median to their limit."""
    walk, times = FreeWalk(10, 200, kind), torch.tensor([1, 2, 20, 200])
    found = wander(walk, stream(0, "test"), walkers=4000, times=times)
    for n, square, error in zip(times.tolist(), found.mean_square, found.error, strict=True):
        assert abs(float(square) - walk.step_square * n) <= 4.5 * float(error) + 1e-9
        law = variance_of_square(FreeWalk(10, n, kind))
        assert float(error) == pytest.approx((law / 4000) ** 0.5, rel=0.15, abs=1e-9)
    distances, median = found.distances(), found.median()
    assert abs(float(distances.mean()) - walk.mean()) < 4.5 * float(distances.std()) / 4000**0.5
    assert abs(median.value - walk.median()) < 4.5 * median.error + 0.002 * walk.median()  # 1 / n of the limit
    # The median's error is sqrt(pi / 2) that of the mean for a nearly Gaussian law; order statistics see it to 20 %.
    assert median.error == pytest.approx(1.25 * float(distances.std()) / 4000**0.5, rel=0.4)
    cosines = found.cosines()
    assert len(cosines) == 2000
    assert abs(float(cosines.square().mean()) - 0.1) < 4.5 * float(cosines.square().std()) / 2000**0.5


@pytest.mark.slow
def test_distances_of_the_ten_dimensional_walk_at_full_size() -> None:
    """F2: 20000 walks of 1000 steps; root mean square 31.62, median 30.564, mean 30.843, each to 1 %."""
    for kind, median in (("one_coordinate", 30.564), ("all_coordinates", 96.653)):
        walk = FreeWalk(10, 1000, kind)  # type: ignore[arg-type]
        found = wander(walk, stream(0, "test"), walkers=20_000, times=torch.tensor([1000]))
        scale = (walk.step_square * 1000) ** 0.5
        assert float(found.mean_square[-1]) ** 0.5 == pytest.approx(scale, rel=0.01)
        assert found.median().value == pytest.approx(median, rel=0.01)
        distances = found.distances()
        assert float(distances.mean()) == pytest.approx(walk.mean(), rel=0.01)
        assert float(distances.std() / distances.mean()) == pytest.approx(0.227, rel=0.03)
        assert float(found.ends.std(0).mean()) == pytest.approx(scale / 10**0.5, rel=0.01)
        assert float(found.cosines().std()) == pytest.approx(0.316, rel=0.03)


@pytest.mark.parametrize(("kind", "square"), [("one_coordinate", 1), ("all_coordinates", 6)])
def test_single_steps_have_the_right_shape_and_length(kind: Kind, square: int) -> None:
    moves = steps(FreeWalk(6, 5, kind), 40, 5, stream(0, "test"))
    assert moves.shape == (40, 5, 6)
    assert (moves.square().sum(2) == square).all()
    assert set(moves.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_chunks_of_walkers_make_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.gallery.walks.lattice.CHUNK_NUMBERS", 40)
    told = list[float]()
    found = wander(FreeWalk(4, 50), stream(0, "test"), walkers=27, times=torch.tensor([7, 50]), tick=told.append)
    assert found.ends.shape == (27, 4)
    assert float(found.mean_square[-1]) == pytest.approx(float(found.ends.square().sum(1).mean()))
    assert float(found.error[-1]) == pytest.approx(float(found.ends.double().square().sum(1).std()) / 27**0.5)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_walk_at_the_origin_has_no_angle() -> None:
    ends = torch.tensor([[0.0, 0], [1, 0], [1, 0], [1, 1], [2, 0]])
    cosines = Ends(ends, torch.tensor([2]), torch.zeros(1), torch.zeros(1)).cosines()
    assert cosines.tolist() == pytest.approx([0.5**0.5])


def test_slips_are_told() -> None:
    with pytest.raises(ValueError, match="d=0, n=5"):
        FreeWalk(0, 5)
    for times in ([5, 7], [5, 5, 10], [0, 10]):
        with pytest.raises(ValueError, match="ascending to n=10"):
            wander(FreeWalk(2, 10), stream(0, "test"), walkers=5, times=torch.tensor(times))

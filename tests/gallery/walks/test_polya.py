"""Return probabilities: known values, enumeration of all walks, and simulated walkers (THEORY F2)."""

import itertools
import math

import numpy as np
import pytest
import torch

from lab.gallery.walks.polya import at_origin, first_return, first_returns, return_probability, tail
from lab.streams import stream

KNOWN = {3: 0.340537330, 4: 0.193201673, 5: 0.135178610, 6: 0.104715496, 10: 0.056197536}


@pytest.mark.parametrize(("d", "p"), KNOWN.items())
def test_the_return_probability_is_the_known_one(d: int, p: float) -> None:
    assert return_probability(d) == pytest.approx(p, abs=1e-9)


def test_three_dimensions_agree_with_watsons_closed_form() -> None:
    """Glasser and Zucker 1977: U = sqrt(6) / (32 pi^3) Gamma(1/24) Gamma(5/24) Gamma(7/24) Gamma(11/24)."""
    gammas = math.prod(math.gamma(x / 24) for x in (1, 5, 7, 11))
    assert return_probability(3) == pytest.approx(1 - 32 * math.pi**3 / (math.sqrt(6) * gammas), abs=1e-13)


def test_below_three_dimensions_the_walk_returns_for_sure_and_there_is_no_tail() -> None:
    assert return_probability(1) == return_probability(2) == 1
    with pytest.raises(ValueError, match="no tail to add below 3"):
        tail(2, 100)


@pytest.mark.parametrize(("d", "n"), [(1, 10), (2, 6), (3, 4), (4, 4)])
def test_exact_probabilities_are_those_of_all_walks_counted(d: int, n: int) -> None:
    moves = np.concatenate((np.eye(d, dtype=int), -np.eye(d, dtype=int)))
    at, first, walks = np.zeros(n + 1), np.zeros(n + 1), 0
    for walk in itertools.product(moves, repeat=n):
        home = (np.cumsum(walk, 0) == 0).all(1)
        at[1:] += home
        if home.any():
            first[1 + home.argmax()] += 1
        walks += 1
    assert at_origin(d, n)[1:] == pytest.approx(at[2::2] / walks, rel=1e-12)
    assert first_return(d, n) == pytest.approx(first[2::2] / walks, rel=1e-12)


def test_returns_by_step_100_and_2000_in_one_and_two_dimensions() -> None:
    """F2: 1 - C(n, n/2) / 2^n on the line; .920411 and .982161, in the plane .583222 and .699115."""
    line, plane = (np.cumsum(first_return(d, 2000)) for d in (1, 2))
    assert line[49] == pytest.approx(1 - math.comb(100, 50) / 2**100, abs=1e-12) == pytest.approx(0.920411, abs=1e-6)
    assert line[-1] == pytest.approx(0.982161, abs=1e-6)
    assert (plane[49], plane[-1]) == pytest.approx((0.583222, 0.699115), abs=1e-6)
    assert at_origin(2, 2000) == pytest.approx(
        at_origin(1, 2000) ** 2, rel=1e-10
    )  # the plane is two lines, turned by 45


@pytest.mark.parametrize("d", [3, 4, 5])
def test_the_tail_is_what_is_missing_after_n_steps(d: int) -> None:
    missing = return_probability(d) - first_return(d, 400).sum()
    assert tail(d, 400) == pytest.approx(missing, rel=2.5 / 400 * d)
    assert tail(d, 400) > 0


@pytest.mark.parametrize("d", [1, 2, 3, 7])
def test_walkers_return_as_often_as_exactly_computed(d: int) -> None:
    """20000 walkers followed for 100 steps, at four times: 4.5 binomial standard errors."""
    found, exact = first_returns(d, stream(0, "test"), walkers=20_000, steps=100), np.cumsum(first_return(d, 100))
    for n in (2, 4, 20, 100):
        share = found.by(n)
        assert abs(share.value - exact[n // 2 - 1]) < 4.5 * share.error
    assert not (found.times % 2).any()
    assert found.by(3).value == found.by(2).value
    assert found.by(n).error == pytest.approx(math.sqrt(share.value * (1 - share.value) / 20_000))


def test_coordinates_that_need_several_numbers_are_all_looked_at() -> None:
    """30 dimensions of 100 steps take four 64-bit numbers; a walk home in the first of them only is not back."""
    found = first_returns(30, stream(0, "test"), walkers=20_000, steps=100)
    exact = first_return(30, 100).sum()
    assert abs(found.by(100).value - exact) < 4.5 * math.sqrt(exact / 20_000)


def test_the_share_that_ever_returns_has_the_tail_added() -> None:
    found = first_returns(3, stream(0, "test"), walkers=2000, steps=40)
    assert found.ever().value == pytest.approx(found.by(40).value + tail(3, 40))
    with pytest.raises(ValueError, match="no tail"):
        first_returns(2, stream(0, "test"), walkers=10, steps=4).ever()


@pytest.mark.slow
def test_returns_of_200000_walkers() -> None:
    """F2: 100 steps, .920411 on the line and .583222 in the plane, tolerance .004."""
    for d, p in ((1, 0.920411), (2, 0.583222)):
        assert first_returns(d, stream(0, "test"), walkers=200_000, steps=100).by(100).value == pytest.approx(
            p, abs=0.004
        )


@pytest.mark.slow
def test_three_dimensions_need_the_tail() -> None:
    """F2: 60000 walkers, 1000 steps; with the tail .3405 within .006; without it 4 standard errors too low."""
    found = first_returns(3, stream(0, "test"), walkers=60_000, steps=1000)
    assert tail(3, 1000) == pytest.approx(0.0087, abs=5e-4)
    assert found.ever().value == pytest.approx(return_probability(3), abs=0.006)
    assert return_probability(3) - found.by(1000).value > 3 * found.ever().error


def test_slips_are_told() -> None:
    for call in (
        lambda: return_probability(0),
        lambda: at_origin(0, 4),
        lambda: first_returns(3, torch.Generator(), walkers=0, steps=5),
    ):
        with pytest.raises(ValueError, match="expected at least 1"):
            call()

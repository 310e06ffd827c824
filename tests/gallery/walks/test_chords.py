"""The chord-step walk against its geometry, point by point, and against the measured excess (THEORY F4)."""

import math

import pytest
import torch

from lab.gallery.walks.chords import ChordWalk
from lab.streams import stream

MEASURED = {(2, 0.0737): 1.69, (3, 0.0737): 2.27, (4, 0.0737): 2.32, (4, 0.0371): 2.57}
"""F4: the share of time within one step of the crossing over the share of the length, good to 5 %."""


@pytest.mark.parametrize("k", [2, 3, 4, 7])
def test_destinations_lie_on_the_lines_one_step_away(k: int) -> None:
    walk, t = ChordWalk(k, 0.1), torch.linspace(-0.3, 0.3, 41, dtype=torch.float64)
    ways = walk.destinations(t)
    angles = math.pi * torch.arange(k, dtype=torch.float64) / k
    away = ((ways * angles.cos()[:, None] - t[:, None, None]) ** 2 + (ways * angles.sin()[:, None]) ** 2).sqrt()
    there = ~ways.isnan()
    assert (away[there] - 0.1).abs().max() < 1e-14
    # Brute force: how often the distance from t to the points of a line crosses the step along that line.
    r = torch.linspace(-0.5, 0.5, 200_002, dtype=torch.float64)
    for i in range(0, len(t), 4):
        for j in range(k):
            inside = (r * angles[j].cos() - t[i]) ** 2 + (r * angles[j].sin()) ** 2 < 0.1**2
            assert int(there[i, j].sum()) == int((inside[1:] != inside[:-1]).sum())


def test_there_are_2k_ways_at_the_crossing_and_2_far_from_it() -> None:
    ways = ChordWalk(5, 0.1).destinations(torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert (~ways.isnan()).sum((1, 2)).tolist() == [10, 2]


def test_every_destination_is_drawn_equally_and_the_ends_are_joined() -> None:
    walk, generator = ChordWalk(3, 0.1), stream(0, "test")
    t = torch.full((60_000,), 0.05, dtype=torch.float64)
    ways = walk.destinations(t[:1]).flatten()
    ways = ways[~ways.isnan()]
    to = walk.moved(t, generator)
    counts = ((to[:, None] - ways).abs() < 1e-12).sum(0)
    assert int(counts.sum()) == 60_000
    p = 1 / len(ways)
    assert (counts / 60_000 - p).abs().max() < 4.5 * math.sqrt(p * (1 - p) / 60_000)
    over = walk.moved(torch.full((100,), 0.95, dtype=torch.float64), generator)
    assert set(over.mul(1e6).round().int().tolist()) == {850_000, -950_000}


def test_counting_the_destinations_is_the_mean_over_positions() -> None:
    walk = ChordWalk(4, 0.0737)
    t = torch.linspace(0, 1, 400_001, dtype=torch.float64)
    counts = (~walk.destinations(t).isnan()).sum((1, 2)).double()
    assert walk.share_by_counting() == pytest.approx(float(counts[t < walk.step].sum() / counts.sum()), abs=1e-4)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_excess_near_the_crossing(k: int) -> None:
    """F4 with 1000 walkers x 300 steps: its 5 % and three standard errors of about 1.3 %."""
    walk = ChordWalk(k, 0.0737)
    share = walk.near_share(stream(0, "test"), walkers=1000, steps=300)
    assert share.value / walk.step == pytest.approx(MEASURED[k, walk.step], rel=0.05 + 3 * share.error / share.value)
    assert share.value < walk.share_by_counting()
    assert 0 < share.error < 0.03 * share.value


@pytest.mark.slow
@pytest.mark.parametrize(("k", "step"), MEASURED)
def test_the_excess_near_the_crossing_at_full_size(k: int, step: float) -> None:
    """F4: 4000 walkers x 3000 steps, within 5 %; its mass falls with the step."""
    share = ChordWalk(k, step).near_share(stream(0, "test"), walkers=4000, steps=3000)
    assert share.value / step == pytest.approx(MEASURED[k, step], rel=0.05)
    assert share.error < 0.01 * share.value


@pytest.mark.parametrize(("k", "step"), [(1, 0.1), (3, 0.0), (3, 0.3), (3, -0.1)])
def test_impossible_walks_are_refused(k: int, step: float) -> None:
    with pytest.raises(ValueError, match=r"expected k of at least 2 and a step in \(0, 0.25\]"):
        ChordWalk(k, step)

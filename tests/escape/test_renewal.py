"""Stays that are watched one after the other, against counts that are known."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lab.escape.exits import Coordinate
from lab.escape.noises import IsotropicNoise
from lab.escape.renewal import renewals
from lab.escape.replicas import Replicas
from lab.escape.survival import rate
from lab.landscapes.base import Landscape
from lab.landscapes.quadratic import Quadratic


class Slope(Landscape):
    """L = -x: gradient descent moves by lr a step."""

    num_params = 1

    def energy(self, x: Tensor) -> Tensor:
        return -x[..., 0]


def replicas(objective: Landscape, count: int, lr: float, noise: IsotropicNoise | None = None) -> Replicas:
    start = torch.full((count, 1), 7.0, dtype=torch.float64)  # put home at the start
    make = partial(torch.optim.SGD, lr=lr)
    return Replicas(objective, start, make, noise=noise, generator=torch.Generator().manual_seed(0))


RULE = Coordinate(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0.95)
HOME = torch.zeros(1, dtype=torch.float64)


def test_a_walk_of_known_length_leaves_when_it_must_and_starts_again() -> None:
    """It is beyond 0.95 after 10 steps of 0.1; inspected every 4: at step 12. The clock starts at 8."""
    stays = renewals(replicas(Slope(), 3, 0.1), RULE, HOME, exits=100, steps=33, inspect_every=4, burn_in=6)
    assert stays.steps == 36
    assert stays.times.burn_in == 8 and stays.times.inspection == 4 and stays.times.replaced == 0
    assert stays.times.times.tolist() == [4.0] * 9 and bool(stays.times.exited.all())
    torch.testing.assert_close(stays.left, torch.full((9, 1), 1.2, dtype=torch.float64))
    assert torch.equal(stays.inside, torch.zeros(3, 1, dtype=torch.float64))
    part = renewals(replicas(Slope(), 3, 0.1), RULE, HOME, exits=100, steps=21, inspect_every=4, burn_in=4)
    assert part.times.times.tolist() == [8.0] * 6 and part.times.exited.tolist() == [True] * 3 + [True] * 3
    some = renewals(replicas(Slope(), 3, 0.1), RULE, HOME, exits=100, steps=19, inspect_every=4, burn_in=4)
    assert some.times.times.tolist() == [8.0] * 3 + [4.0] * 3 and some.times.exited.tolist() == [True] * 3 + [False] * 3


def test_it_ends_when_enough_have_left_and_early_exits_do_not_count() -> None:
    enough = renewals(replicas(Slope(), 3, 0.1), RULE, HOME, exits=4, steps=1000, inspect_every=4, burn_in=0)
    assert enough.steps == 24 and int(enough.times.exited.sum()) == 6
    early = renewals(replicas(Slope(), 3, 0.1), RULE, HOME, exits=4, steps=40, inspect_every=4, burn_in=12)
    assert early.times.replaced == 9 and len(early.left) == 0 and not bool(early.times.exited.any())


def test_the_rate_of_a_memoryless_exit_is_found() -> None:
    """lr h = 1: every step is a fresh draw N(0, s^2), outside with probability p. Of 5 steps between looks only the last
    counts, so the rate is that of a geometric law.
    """
    p = float(torch.distributions.Normal(0.0, 0.5).cdf(torch.tensor(-0.95)))
    copies = replicas(Quadratic((1.0,)), 400, 1.0, IsotropicNoise(0.5))
    stays = renewals(copies, RULE, HOME, exits=1500, steps=10_000, inspect_every=5, burn_in=20)
    found = rate(stays.times)
    # An exit is put into the middle of its interval: -log(1 - p) / 5 to order p^2.
    assert found.value == pytest.approx(-torch.tensor(1 - p).log().item() / 5, abs=4 * found.value / found.exits**0.5)
    assert bool((stays.left > 0.95).all())


def test_failures_are_of_their_own_kind_and_start_again() -> None:
    class Cliff(Slope):
        def gradient(self, x: Tensor) -> Tensor:
            return torch.where(x > 0.45, torch.nan, -torch.ones_like(x))

    stays = renewals(replicas(Cliff(), 2, 0.1), RULE, HOME, exits=3, steps=24, inspect_every=6, burn_in=0)
    assert stays.times.failed.tolist() == [True] * 8 and not bool(stays.times.exited.any()) and len(stays.left) == 0


def test_a_burn_in_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="steps=10: expected more than the burn-in of 12"):
        renewals(replicas(Slope(), 1, 0.1), RULE, HOME, exits=1, steps=10, inspect_every=4, burn_in=10)
